//! The sections "Names" and "Names that start with `.wh.`": what each entry of a layer is, from its text alone.

use super::Options;
use crate::entry::{EntryKind, EntrySpec};
use std::collections::BTreeSet;
use std::fmt;

/// One component of a path.
pub type Name = Vec<u8>;

/// A cleaned path, from the root down; empty for the root.
pub type Path = Vec<Name>;

/// The directory whose files AUFS kept as hard link sources (W13).
pub(super) const PLNK: &[u8] = b".wh..wh.plnk";

/// Something odd that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Stable code.
    pub code: &'static str,
    /// The entry's name as the archive spells it.
    pub path: Vec<u8>,
}

/// Why a layer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A component over 255 bytes, over 1,024 components, or a name over 64 KiB.
    NameTooLong,
    /// Strict: `..` at the root.
    NameClamped,
    /// `.wh.`, `.wh..` or `.wh...`.
    BareWhiteout,
    /// Strict: an entry below a `.wh.` name.
    BelowWhiteout,
    /// A walk through a symlink would make a `.wh.` name.
    WhiteoutMade,
    /// Strict: a path twice in one layer.
    Duplicate,
    /// Strict: a character device 0:0.
    DeviceZero,
    /// The root as anything but a directory.
    RootRetyped,
    /// Empty symlink target, or one over 4,095 bytes.
    SymlinkTarget,
    /// An owner or device number out of range (M5, M6).
    Number,
    /// An xattr's name over 255 bytes or value over 65,536 (M21).
    XattrSize,
    /// A `security.capability` that is neither version 2 nor 3 (M16).
    Capability,
    /// More than 40 symlinks in one walk.
    TooManySymlinks,
    /// A hard link's target does not exist, not even at the end of the layer.
    LinkTargetMissing,
    /// A hard link's target is a directory.
    LinkTargetDirectory,
    /// Making the hard link removes its target.
    LinkRemovesTarget,
}

/// A refused layer: the reason and the entry it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The entry's name as the archive spells it.
    pub path: Vec<u8>,
}

impl Refusal {
    pub(super) fn new(reason: Reason, entry: &EntrySpec) -> Refusal {
        Refusal { reason, path: entry.path.clone() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.reason, self.path.escape_ascii())
    }
}

impl std::error::Error for Refusal {}

/// What an entry's name says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// A directory entry of the root.
    Root,
    /// An opaque marker for this directory.
    Opaque(Path),
    /// A whiteout of the last component in the directory before it.
    Whiteout(Path),
    /// A regular file that AUFS kept for links, under this name (W13).
    Stash(Name),
    /// Nothing happens.
    Skipped,
    /// An entry at this path, never empty.
    Ordinary(Path),
}

/// A layer whose names have been looked at.
pub(super) struct Layer<'a> {
    /// All entries in archive order.
    pub entries: Vec<(&'a EntrySpec, Meaning)>,
    /// The literal paths of the layer's directory entries: what it *describes*.
    pub directories: BTreeSet<Path>,
}

impl<'a> Layer<'a> {
    pub(super) fn read(
        entries: &'a [EntrySpec],
        options: &Options,
        warnings: &mut Vec<Warning>,
    ) -> Result<Layer<'a>, Refusal> {
        let mut layer = Layer { entries: Vec::new(), directories: BTreeSet::new() };
        let mut seen = BTreeSet::new();
        for entry in entries {
            let refuse = |reason| Err(Refusal::new(reason, entry));
            let mut warn = |code| warnings.push(Warning { code, path: entry.path.clone() });
            check_values(entry)?;
            let (path, mut clamped) = clean(&entry.path);
            let mut long = entry.path.len() > 64 << 10 || too_long(&path);
            if let EntryKind::HardLink(target) = &entry.kind {
                let (target, target_clamped) = clean(target);
                clamped |= target_clamped;
                long |= too_long(&target);
            }
            if long {
                return refuse(Reason::NameTooLong);
            }
            if clamped {
                warn("name-clamped");
                if options.strict {
                    return refuse(Reason::NameClamped);
                }
            }

            let meaning = match meaning(&path, entry) {
                Err(reason) => return refuse(reason),
                Ok(Named::BelowWhiteout) => {
                    warn("below-whiteout");
                    if options.strict {
                        return refuse(Reason::BelowWhiteout);
                    }
                    Meaning::Skipped
                }
                Ok(Named::RootLinkToItself) => {
                    warn("root-link-to-itself");
                    Meaning::Skipped
                }
                // nothing is removed or made.
                Ok(Named::Is(Meaning::Ordinary(_))) if entry.kind == EntryKind::Char(0, 0) => {
                    warn("device-zero");
                    if options.strict {
                        return refuse(Reason::DeviceZero);
                    }
                    Meaning::Skipped
                }
                Ok(Named::Is(meaning)) => meaning,
            };
            if matches!(meaning, Meaning::Ordinary(_) | Meaning::Root) && entry.xattrs.iter().any(bad_capability) {
                return refuse(Reason::Capability);
            }
            if let Meaning::Ordinary(path) = &meaning {
                if !seen.insert(path.clone()) {
                    warn("duplicate-entry");
                    if options.strict {
                        return refuse(Reason::Duplicate);
                    }
                }
                if entry.kind == EntryKind::Dir {
                    layer.directories.insert(path.clone());
                }
            }
            layer.entries.push((entry, meaning));
        }
        Ok(layer)
    }
}

/// Splits at `/`, drops empty components and `.`, lets `..` remove what is before it; the flag tells that a `..` stood
/// at the root.
pub(super) fn clean(name: &[u8]) -> (Path, bool) {
    let (mut path, mut clamped) = (Path::new(), false);
    for component in name.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => clamped |= path.pop().is_none(),
            name => path.push(name.to_vec()),
        }
    }
    (path, clamped)
}

/// W16: a component longer than 255 bytes, measured after a `.wh.` prefix of the last component is removed.
fn too_long(path: &Path) -> bool {
    let length = |(i, name): (usize, &Name)| match name.strip_prefix(b".wh.") {
        Some(rest) if i + 1 == path.len() => rest.len(),
        _ => name.len(),
    };
    path.len() > 1024 || path.iter().enumerate().map(length).any(|n| n > 255)
}

/// M5, M6, S1: numbers and targets that no entry may have, whatever its name.
fn check_values(entry: &EntrySpec) -> Result<(), Refusal> {
    let refuse = |reason| Err(Refusal::new(reason, entry));
    match &entry.kind {
        _ if entry.uid >= u64::from(u32::MAX) || entry.gid >= u64::from(u32::MAX) => refuse(Reason::Number),
        EntryKind::Symlink(target) if target.is_empty() || target.len() > 4095 => refuse(Reason::SymlinkTarget),
        EntryKind::Char(major, minor) | EntryKind::Block(major, minor) if *major > 4095 || *minor > 1_048_575 => {
            refuse(Reason::Number)
        }
        _ if entry.xattrs.iter().any(|(name, value)| name.len() > 255 || value.len() > 65_536) => {
            refuse(Reason::XattrSize)
        }
        _ => Ok(()),
    }
}

/// M16: little-endian words; the first has the version in its top byte. Version 2 has five words, version 3 six.
fn bad_capability((name, value): &(Vec<u8>, Vec<u8>)) -> bool {
    let version = value.get(3).map(|version| (*version, value.len()));
    name == b"security.capability" && !matches!(version, Some((2, 20) | (3, 24)))
}

enum Named {
    Is(Meaning),
    RootLinkToItself,
    BelowWhiteout,
}

/// The section "Names that start with `.wh.`", in its order.
fn meaning(path: &Path, entry: &EntrySpec) -> Result<Named, Reason> {
    let is = |meaning| Ok(Named::Is(meaning));
    // "An empty literal path is the root entry." (D3, D4)
    let Some((last, parent)) = path.split_last() else {
        return match &entry.kind {
            EntryKind::Dir => is(Meaning::Root),
            EntryKind::HardLink(target) if clean(target).0.is_empty() => Ok(Named::RootLinkToItself),
            _ => Err(Reason::RootRetyped),
        };
    };
    // 1. Whatever type the entry has (W12, W14, X8).
    if last == b".wh..wh..opq" {
        return is(Meaning::Opaque(parent.to_vec()));
    }
    // 2. AUFS leftovers (W13): only as the first component.
    if path[0].starts_with(b".wh..wh.") {
        return match (&entry.kind, &path[..]) {
            (EntryKind::File(_), [plnk, name]) if plnk == PLNK => is(Meaning::Stash(name.clone())),
            _ => is(Meaning::Skipped),
        };
    }
    // 3. (W11)
    if [&b".wh."[..], b".wh..", b".wh..."].contains(&&last[..]) {
        return Err(Reason::BareWhiteout);
    }
    // 4. (W15)
    if parent.iter().any(|name| name.starts_with(b".wh.")) {
        return Ok(Named::BelowWhiteout);
    }
    // 5. (W1, W14)
    if let Some(name) = last.strip_prefix(b".wh.") {
        let mut hidden = parent.to_vec();
        hidden.push(name.to_vec());
        return is(Meaning::Whiteout(hidden));
    }
    is(Meaning::Ordinary(path.clone()))
}
