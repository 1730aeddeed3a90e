//! The documents of the store, and how they reach the disk whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::publish::rename_new;
use super::{Id, Store, VERSION, io_at};
use crate::apply::facts::{LayerFacts, RootMeta};
use crate::digest::{BlobDigest, ChainId, DiffId, ImageId};
use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;
use crate::policy::{Ownership, Selinux, TreeOptions, WhiteoutForm, XattrFlavour};
use crate::stream::report::StreamReport;

/// Largest record read: far above any real one, so that a damaged length cannot eat the memory.
const MAX_RECORD: u64 = 64 << 20;

/// What every layer of a store has in common; fixed when the store is made, never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flavour {
    /// Where overlayfs finds its marks.
    pub xattr: XattrFlavour,
    /// Whether owners are the image's.
    pub ownership: Ownership,
    /// How whiteouts are written.
    pub whiteouts: WhiteoutForm,
}

/// The options that change the tree of a layer taken alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct LayerOptions {
    /// Whether SELinux labels are in the tree.
    pub selinux: Selinux,
    /// Whether it was checked for what a conforming builder would not write.
    pub strict: bool,
}

impl From<&TreeOptions> for LayerOptions {
    fn from(options: &TreeOptions) -> Self {
        LayerOptions { selinux: options.selinux, strict: options.strict }
    }
}

/// What a fix-up is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FixupKey {
    /// The chain up to and including the layer that the fix-up corrects.
    pub chain_id: ChainId,
    /// The choices it was computed with.
    pub options: TreeOptions,
}

/// What a published layer or fix-up is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Form {
    /// A directory, usable as a lowerdir as it is.
    Directory,
}

/// Whether something survives a loss of power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durable {
    /// It does: every byte was on disk before its name appeared.
    Yes,
    /// It is good as long as the machine runs: after another boot it counts as absent.
    No {
        /// The kernel's id of the boot it was written in.
        boot_id: String,
    },
}

/// A moment, with nanoseconds. In JSON a decimal number of seconds since 1970 in a string: doubles would round it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub SystemTime);

impl Time {
    /// Returns the present moment.
    pub fn now() -> Time {
        Time(SystemTime::now())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        serializer.collect_str(&format_args!("{}.{:09}", since.as_secs(), since.subsec_nanos()))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let parsed = text.split_once('.').and_then(|(seconds, nanos)| {
            let since = Duration::new(seconds.parse().ok()?, 0);
            let nanos = Duration::from_nanos(u64::from(nanos.parse::<u32>().ok()?));
            UNIX_EPOCH.checked_add(since)?.checked_add(nanos)
        });
        parsed.map(Time).ok_or_else(|| serde::de::Error::custom("not a time"))
    }
}

/// `store.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoreRecord {
    pub version: u32,
    pub flavour: Flavour,
}

/// `layers/ID/record.json`: everything known about a published layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Version of this document.
    pub version: u32,
    /// What the layer is.
    pub diff_id: DiffId,
    /// How it was unpacked.
    pub options: LayerOptions,
    /// The flavour of the store that it was unpacked for.
    pub flavour: Flavour,
    /// What its tree is on disk.
    pub form: Form,
    /// Whether it survives a loss of power.
    pub durable: Durable,
    /// The blob that it came from, with both sizes.
    pub source: StreamReport,
    /// What applying it found out.
    pub facts: LayerFacts,
    /// When it was published.
    pub created: Time,
}

/// `fixups/ID/record.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FixupRecord {
    /// Version of this document.
    pub version: u32,
    /// The chain whose top layer it corrects.
    pub chain_id: ChainId,
    /// How it was computed.
    pub options: TreeOptions,
    /// The flavour of the store that it was computed for.
    pub flavour: Flavour,
    /// What its tree is on disk.
    pub form: Form,
    /// There was nothing to correct: no tree exists.
    pub empty: bool,
    /// Whether it survives a loss of power.
    pub durable: Durable,
    /// When it was published.
    pub created: Time,
}

/// A platform, in the words of the image index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// CPU architecture.
    pub architecture: String,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A layer as the manifest of its image describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// Digest of the decompressed layer.
    pub diff_id: DiffId,
    /// Digest of the blob.
    pub digest: BlobDigest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
}

/// What a pull found out about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the config document.
    pub image_id: ImageId,
    /// The reference it was pulled by, as the user gave it.
    pub reference: String,
    /// The same with an absolute path, to read layers again; `None` for standard input.
    #[serde(default)]
    pub source: Option<String>,
    /// Digest of the manifest; archives of the old Docker form have none.
    pub manifest_digest: Option<BlobDigest>,
    /// The platform it is for.
    pub platform: Platform,
    /// Its layers, bottom first, repeated ones repeated.
    pub layers: Vec<ImageLayer>,
    /// The id of all layers together.
    pub chain_id: ChainId,
    /// The choices its tree was pulled with.
    pub options: TreeOptions,
}

/// `images/ID/record.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Version of this document.
    pub version: u32,
    /// What the pull found out.
    #[serde(flatten)]
    pub image: Image,
    /// The names it can be found by.
    pub names: Vec<String>,
    /// Whether the record survives a loss of power.
    pub durable: Durable,
    /// When it was first pulled.
    pub created: Time,
    /// When it was last pulled or renamed.
    pub updated: Time,
}

/// What a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    /// Writable.
    Active,
    /// Read-only.
    View,
    /// A finished change, on which others may stand.
    Committed,
}

/// One lower directory of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lower {
    /// A published layer.
    Layer(Id),
    /// A published fix-up.
    Fixup(Id),
    /// What was written into a committed snapshot, by the name of its directory.
    Snapshot(Id),
}

/// What a snapshot's own directory takes on disk; hard links counted once, lower directories not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes allocated.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// `snapshots/ID.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Version of this document.
    pub version: u32,
    /// The key, or for a committed snapshot its name.
    pub key: String,
    /// What it is for.
    pub kind: SnapshotKind,
    /// The committed snapshot that it stands on.
    pub parent: Option<String>,
    /// The image that it or its lowest ancestor was made from.
    pub image_id: Option<ImageId>,
    /// Its directory below `s`.
    pub dir: Id,
    /// The lower directories, topmost first.
    pub lowers: Vec<Lower>,
    /// Metadata of the root of the upper directory, so that `/` looks the same before and after the first mount (N11).
    pub root: RootMeta,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// What it took when it was committed.
    pub usage: Option<Usage>,
    /// Whether the record survives a loss of power.
    pub durable: Durable,
    /// When it was made.
    pub created: Time,
    /// When its labels or kind last changed.
    pub updated: Time,
}

#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

/// Reads a document; `None` where there is none.
///
/// # Errors
/// `Unsupported` for a version this program does not know, `Malformed` for a damaged document.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    // One read for most records, and not one for each doubling.
    let mut bytes = Vec::with_capacity(8 << 10);
    match File::open(path).and_then(|file| file.take(MAX_RECORD).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENOTDIR) => return Ok(None),
        Err(e) => return Err(io_at("read", path, e)),
    }
    // What we write ourselves begins so: it need not be parsed twice.
    let ours = bytes.starts_with(format!("{{\n  \"version\": {VERSION},\n").as_bytes());
    match serde_json::from_slice::<AnyVersion>(if ours { b"" } else { &bytes }) {
        Ok(any) if any.version != VERSION => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} has version {}, this program knows version {VERSION}", path.display(), any.version),
            )
            .with_hint("use the release of unply that wrote this store, or another --root"));
        }
        _ => {}
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::new(ErrorKind::Malformed, format!("{} is damaged", path.display())).with_source(e))
}

pub(super) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(record)
        .map_err(|e| Error::new(ErrorKind::Other, "encode a record").with_source(e))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// How a document gets its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replace {
    /// `AlreadyExists` if the name is taken.
    Never,
    /// The one before is replaced.
    Yes,
}

impl Store {
    /// Writes `bytes` as `path`, whole or not at all. The caller holds the gate: temporary names are cleaned under it.
    pub(super) fn write_file(&self, path: &Path, bytes: &[u8], replace: Replace) -> Result<()> {
        let temporary = self.write_temporary(bytes)?;
        fail_point("record.before-rename")?;
        match replace {
            Replace::Yes => drop(temporary.persist(path).map_err(|e| io_at("create", path, e.error))?),
            Replace::Never => {
                // Not tempfile's own way, which takes a filter's EPERM for the truth. On failure the drop removes the file.
                rename_new(temporary.path(), path)?;
                let _ = temporary.into_temp_path().keep(); // it has another name now; nothing is left under the old one
            }
        }
        fail_point("record.after-rename")?;
        match path.parent() {
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    pub(super) fn write_temporary(&self, bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
        let staging = self.dir("staging");
        let mut temporary = tempfile::Builder::new()
            .prefix(super::TEMPORARY)
            .tempfile_in(&staging)
            .map_err(|e| io_at("create a file in", &staging, e))?;
        temporary.write_all(bytes).map_err(|e| io_at("write", temporary.path(), e))?;
        if self.durable() {
            temporary.as_file().sync_all().map_err(|e| io_at("sync", temporary.path(), e))?;
        }
        Ok(temporary)
    }

    /// Waits until everything written to the file system of `handle` is on disk.
    pub(super) fn sync_all(&self, handle: impl AsFd) -> Result<()> {
        fail_point("syncfs")?;
        rustix::fs::syncfs(handle).map_err(|e| io_at("sync", self.root(), e))
    }

    /// Makes the names in a directory durable, where the caller wants durability at all.
    pub(super) fn sync_dir(&self, dir: &Path) -> Result<()> {
        if self.durable() { sync_dir(dir) } else { Ok(()) }
    }
}

pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io_at("sync", dir, e))
}

/// Lists the names in a directory of the store, sorted; a directory that is not there is empty.
/// Below this many records another thread costs more than it saves.
const WORTH_A_THREAD: usize = 256;
/// Readers at once; more of them only wait for each other in the file system.
const MAX_READERS: usize = 4;

/// Looks up many records by name, on threads of its own where there are many, in the order of the names.
///
/// # Errors
/// The first error in that order.
pub(super) fn each<T: Send>(names: &[String], get: impl Fn(&str) -> Result<Option<T>> + Sync) -> Result<Vec<T>> {
    let read = |names: &[String]| names.iter().filter_map(|name| get(name).transpose()).collect::<Result<Vec<T>>>();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let readers = (names.len() / WORTH_A_THREAD).min(processors).min(MAX_READERS);
    if readers < 2 {
        return read(names);
    }
    let (own, others) = names.split_at(names.len().div_ceil(readers));
    std::thread::scope(|scope| {
        let read = &read;
        let spawn = |names| std::thread::Builder::new().spawn_scoped(scope, move || read(names)).map_err(|_| names);
        let parts: Vec<_> = others.chunks(own.len()).map(spawn).collect();
        let mut out = read(own)?;
        for part in parts {
            out.extend(match part {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                // No thread was to be had.
                Err(names) => read(names)?,
            });
        }
        Ok(out)
    })
}

pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_at("list", dir, e)),
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| io_at("list", dir, e))?;
        // A name that is not UTF-8 is not ours; nothing of the store ever looks at it.
        if let Ok(name) = entry.file_name().into_string() {
            out.push(name);
        }
    }
    out.sort_unstable();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_records_come_in_the_order_of_their_names_and_the_first_error_is_the_error() {
        for count in [0, 1, WORTH_A_THREAD, 5 * WORTH_A_THREAD + 3] {
            let names: Vec<String> = (0..count).map(|n| format!("{n:05}")).collect();
            let even = each(&names, |name| Ok(name.ends_with(['0', '2', '4', '6', '8']).then(|| name.to_owned())));
            let expected: Vec<&String> = names.iter().step_by(2).collect();
            assert_eq!(even.unwrap().iter().collect::<Vec<_>>(), expected);
            let failed = each::<()>(&names, |name| match name.parse::<usize>().unwrap() {
                n if n + 2 >= count => Err(Error::new(ErrorKind::Malformed, name)),
                _ => Ok(None),
            });
            match count.checked_sub(2) {
                _ if count == 0 => assert!(failed.unwrap().is_empty()),
                first => assert_eq!(failed.unwrap_err().message(), format!("{:05}", first.unwrap_or(0))),
            }
        }
    }
}
