//! Short names of directories, and the keys they are made from.

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::record::{FixupKey, LayerOptions};
use crate::digest::{Algorithm, DiffId, Digest, ImageId};
use crate::error::{Error, ErrorKind};
use crate::policy::{LowerSymlinks, RootEntry, Selinux};

/// Characters of a name. A longer one would push 128 lower directories over one page of mount options.
pub(super) const LEN: usize = 12;
/// RFC 4648's alphabet in lower case: no `:`, `,` or `\`, which overlayfs's option string gives a meaning.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The short name of a store object: twelve characters of lower-case base32, 60 bits of a SHA-256.
///
/// The record behind the name holds the full key and is compared on every look-up, so two keys with one name are
/// refused and never mixed up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id([u8; LEN]);

impl Id {
    /// Returns the name of the layer with this diff_id, unpacked with these options.
    pub fn of_layer(diff_id: &DiffId, options: &LayerOptions) -> Id {
        // What was accepted by default says nothing about what `--strict` would have said.
        let strict = if options.strict { "strict" } else { "lenient" };
        Id::of(&["layer", &diff_id.to_string(), selinux_word(options.selinux), strict])
    }

    /// Returns the name of the fix-up that stands directly above the top layer of a chain.
    pub fn of_fixup(key: &FixupKey) -> Id {
        // Spelled by hand and not serialised: a renamed variant must not rename what is on disk.
        let strict = if key.options.strict { "strict" } else { "lenient" };
        let root_entry = match key.options.root_entry {
            RootEntry::Ignore => "ignore",
            RootEntry::Apply => "apply",
        };
        let lower_symlinks = match key.options.lower_symlinks {
            LowerSymlinks::Resolve => "resolve",
            LowerSymlinks::Shadow => "shadow",
        };
        let selinux = selinux_word(key.options.selinux);
        Id::of(&["fixup", &key.chain_id.to_string(), strict, root_entry, lower_symlinks, selinux])
    }

    pub(super) fn of_image(image_id: &ImageId) -> Id {
        Id::of(&["image", &image_id.to_string()])
    }

    pub(super) fn of_snapshot(key: &str) -> Id {
        Id::of(&["snapshot", key])
    }

    /// Returns a name that nothing has: the two hashers are seeded by the system and differ on every call.
    pub(super) fn random() -> Id {
        let word = || {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u32(std::process::id());
            if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
                hasher.write_u128(now.as_nanos());
            }
            hasher.finish().to_string()
        };
        Id::of(&["random", &word(), &word()])
    }

    fn of(parts: &[&str]) -> Id {
        let digest = Digest::of(Algorithm::Sha256, parts.join("\n").as_bytes());
        let mut out = [0u8; LEN];
        let mut bits = 0u64;
        for byte in &digest.as_bytes()[..8] {
            bits = bits << 8 | u64::from(*byte);
        }
        for (i, c) in out.iter_mut().enumerate() {
            let shift = 59 - 5 * i as u32;
            *c = ALPHABET[(bits >> shift & 31) as usize];
        }
        Id(out)
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

fn selinux_word(selinux: Selinux) -> &'static str {
    match selinux {
        Selinux::Drop => "drop",
        Selinux::Keep => "keep",
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Id {
    type Err = Error;

    /// Parses twelve characters of lower-case base32.
    ///
    /// # Errors
    /// `Malformed` for anything else.
    fn from_str(s: &str) -> Result<Self, Error> {
        match <[u8; LEN]>::try_from(s.as_bytes()) {
            Ok(bytes) if bytes.iter().all(|b| ALPHABET.contains(b)) => Ok(Id(bytes)),
            _ => Err(Error::new(
                ErrorKind::Malformed,
                format!("\"{}\" is no name of a store object", crate::error::escape(s.as_bytes())),
            )),
        }
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
