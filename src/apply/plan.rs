//! Entry → [`Action`]: the naming and whiteout rules as a pure function, and what becomes of xattrs.
//!
//! Source of the rules: <https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts> and
//! `docs/spec-notes.md`, whose headings this file follows.

use crate::error::{Error, ErrorKind};
use crate::policy::{Limit, Limits, Selinux, TreeOptions, XattrFlavour};
use crate::root::{Meta, NodeMeta};
use crate::tar::{Entry, EntryKind, Region};

use super::Warning;

/// The prefix of whiteout names.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The exact name of an opaque marker.
pub const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// AUFS's own names at the root of a layer.
pub(crate) const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// AUFS's directory of hard-link sources.
const AUFS_LINKS: &[u8] = b".wh..wh.plnk";
/// The xattr that holds file capabilities.
const CAPABILITY: &[u8] = b"security.capability";
/// `NAME_MAX` of Linux.
const MAX_NAME: usize = 255;

/// A name of the archive after textual cleaning: components without `.`, `..` or empty ones, joined by `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LiteralPath(Vec<u8>);

impl LiteralPath {
    /// Cleans `raw`; the flag says whether a `..` was stopped at the root.
    pub fn clean(raw: &[u8]) -> (LiteralPath, bool) {
        let mut out: Vec<u8> = Vec::with_capacity(raw.len());
        let mut clamped = false;
        for component in raw.split(|&b| b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    clamped |= out.is_empty();
                    let parent = out.iter().rposition(|&b| b == b'/').unwrap_or(0);
                    out.truncate(parent);
                }
                name => {
                    if !out.is_empty() {
                        out.push(b'/');
                    }
                    out.extend_from_slice(name);
                }
            }
        }
        (LiteralPath(out), clamped)
    }

    /// Takes bytes that were cleaned before.
    pub(crate) fn from_clean(bytes: Vec<u8>) -> LiteralPath {
        LiteralPath(bytes)
    }

    /// Returns the path's bytes; the root is empty.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// Returns the number of components.
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// Splits into parent and last component; the root has none.
    pub fn split_last(&self) -> Option<(LiteralPath, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(at) => (LiteralPath(self.0[..at].to_vec()), &self.0[at + 1..]),
            None => (LiteralPath::default(), &self.0[..]),
        })
    }

    /// Whether this is `above` or lies below it.
    pub fn is_within(&self, above: &LiteralPath) -> bool {
        let rest = self.0.strip_prefix(&above.0[..]);
        above.is_root() || rest.is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    }

    /// Returns this path with `name` below it.
    pub fn join(&self, name: &[u8]) -> LiteralPath {
        let mut out = self.0.clone();
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(name);
        LiteralPath(out)
    }
}

/// What is to be made at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file of `size` bytes whose data follows in the archive.
    File {
        /// Logical size in bytes.
        size: u64,
        /// Regions of a sparse file.
        sparse: Option<Vec<Region>>,
    },
    /// A symlink with this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// Another name of the inode at this path.
    HardLink(LiteralPath),
    /// Another name of a file that AUFS kept aside.
    AufsLink(Vec<u8>),
}

/// What one entry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing; data is skipped.
    Skip,
    /// A root entry: recorded.
    Root(NodeMeta),
    /// Hides `name` of the lower layers in the directory.
    Whiteout {
        /// Directory the name is in.
        parent: LiteralPath,
        /// The hidden name.
        name: Vec<u8>,
    },
    /// Hides everything that lower layers have in the directory.
    Opaque {
        /// The directory.
        dir: LiteralPath,
    },
    /// A file that AUFS kept aside under this name, for a later hard link.
    AufsStash(Vec<u8>),
    /// Makes something.
    Make {
        /// Where.
        path: LiteralPath,
        /// What.
        node: Node,
        /// With which metadata; xattrs are already filtered.
        meta: NodeMeta,
    },
}

/// What the plan depends on besides the entry.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// Choices of the rulings table.
    pub tree: TreeOptions,
    /// The namespace that the mount of this layer will read.
    pub flavour: XattrFlavour,
    /// Bounds.
    pub limits: Limits,
}

/// Decides what `entry` means. Warnings are handed to `warn`.
///
/// # Errors
/// `Malformed` for bare `.wh.` names (W11), a retyped root (D4), over-long components (S11) and, with `strict`, for what a
/// conforming builder would not write; `Limit` for paths over the limits.
pub fn plan(entry: Entry, options: &PlanOptions, warn: &mut dyn FnMut(Warning)) -> Result<Action, Error> {
    let offset = entry.offset;
    plan_inner(&entry, options, warn).map_err(|e| e.with_entry(&entry.path).with_offset(offset))
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Malformed, message)
}

fn plan_inner(entry: &Entry, options: &PlanOptions, warn: &mut dyn FnMut(Warning)) -> Result<Action, Error> {
    let strict = options.tree.strict;
    let limits = &options.limits;
    check_path(&entry.path, limits)?;
    let (path, mut clamped) = LiteralPath::clean(&entry.path);
    // What an entry says is looked at before what its name means: a long name is refused wherever it stands.
    let target = match &entry.kind {
        EntryKind::HardLink { target } => {
            check_path(target, limits)?;
            let (target, target_clamped) = LiteralPath::clean(target);
            clamped |= target_clamped;
            check_names(&target)?;
            Some(target)
        }
        _ => None,
    };
    if clamped {
        if strict {
            return Err(refuse("name leads out of the root (R-5)"));
        }
        warn(Warning::new("name-clamped", &entry.path, "name leads out of the root; clamped there"));
    }
    let depth = path.depth();
    if depth > limits.max_depth {
        return Err(limits.exceeded(Limit::Depth, depth));
    }
    let Some((parent, last)) = path.split_last() else {
        return root_entry(entry, options, warn);
    };
    check_names(&path)?;
    if last == OPAQUE_NAME {
        return Ok(Action::Opaque { dir: parent });
    }
    let first = path.components().next().unwrap_or_default();
    if first.starts_with(AUFS_PREFIX) {
        if parent.as_bytes() == AUFS_LINKS && matches!(entry.kind, EntryKind::File { .. }) {
            return Ok(Action::AufsStash(last.to_vec()));
        }
        return Ok(Action::Skip);
    }
    if matches!(last, b".wh." | b".wh.." | b".wh...") {
        return Err(refuse("whiteout of an empty name, \".\" or \"..\" (W11)"));
    }
    if parent.components().any(|c| c.starts_with(WHITEOUT_PREFIX)) {
        if strict {
            return Err(refuse("entry below a whiteout name (R-15)"));
        }
        warn(Warning::new("below-whiteout", &entry.path, "entry below a whiteout name is skipped"));
        return Ok(Action::Skip);
    }
    if let Some(name) = last.strip_prefix(WHITEOUT_PREFIX) {
        if entry.stored > 0 || !matches!(entry.kind, EntryKind::File { .. }) {
            warn(Warning::new("odd-whiteout", &entry.path, "whiteout is not an empty regular file"));
        }
        if name.starts_with(WHITEOUT_PREFIX) {
            return Ok(Action::Skip);
        }
        return Ok(Action::Whiteout { parent, name: name.to_vec() });
    }
    let node = match &entry.kind {
        EntryKind::Directory => Node::Directory,
        EntryKind::File { size, sparse } => Node::File { size: *size, sparse: sparse.clone() },
        EntryKind::Symlink { target } => Node::Symlink(target.clone()),
        EntryKind::CharDevice { major: 0, minor: 0 } => {
            if strict {
                return Err(refuse("character device 0:0 (R-14)"));
            }
            warn(Warning::new("device-zero", &entry.path, "character device 0:0 would act as a whiteout; skipped"));
            return Ok(Action::Skip);
        }
        EntryKind::CharDevice { major, minor } => Node::CharDevice(*major, *minor),
        EntryKind::BlockDevice { major, minor } => Node::BlockDevice(*major, *minor),
        EntryKind::Fifo => Node::Fifo,
        EntryKind::HardLink { .. } => {
            let target = target.unwrap_or_default();
            match target.split_last() {
                Some((dir, name)) if dir.as_bytes() == AUFS_LINKS => Node::AufsLink(name.to_vec()),
                _ => Node::HardLink(target),
            }
        }
    };
    let takes_user_xattrs = matches!(node, Node::Directory | Node::File { .. } | Node::HardLink(_) | Node::AufsLink(_));
    let meta = NodeMeta { meta: meta_of(entry), xattrs: xattrs_of(entry, takes_user_xattrs, options, warn)? };
    Ok(Action::Make { path, node, meta })
}

fn root_entry(entry: &Entry, options: &PlanOptions, warn: &mut dyn FnMut(Warning)) -> Result<Action, Error> {
    match &entry.kind {
        EntryKind::Directory => {
            Ok(Action::Root(NodeMeta { meta: meta_of(entry), xattrs: xattrs_of(entry, true, options, warn)? }))
        }
        EntryKind::HardLink { target } if LiteralPath::clean(target).0.is_root() => {
            warn(Warning::new("root-link", &entry.path, "hard link of the root to itself is skipped"));
            Ok(Action::Skip)
        }
        _ => Err(refuse("changes the type of the root (D4)")),
    }
}

fn check_path(path: &[u8], limits: &Limits) -> Result<(), Error> {
    if path.len() > limits.max_path_bytes {
        return Err(limits.exceeded(Limit::PathBytes, path.len()));
    }
    Ok(())
}

/// Checks the length of every name (S11), of the last one without the prefix of whiteouts (W16).
fn check_names(path: &LiteralPath) -> Result<(), Error> {
    let Some((parent, last)) = path.split_last() else { return Ok(()) };
    parent.components().try_for_each(check_component)?;
    check_component(last.strip_prefix(WHITEOUT_PREFIX).unwrap_or(last))
}

/// Refuses to make something in a directory of `depth` components: symlinks lead deeper than any name could (S11).
pub(crate) fn check_depth(depth: usize, most: usize) -> Result<(), Error> {
    if depth < most { Ok(()) } else { Err(Limit::Depth.exceeded(most as u64, depth.saturating_add(1))) }
}

/// Checks a name that a symlink's target asks to make.
pub(crate) fn check_implied(name: &[u8]) -> Result<(), Error> {
    if name.starts_with(WHITEOUT_PREFIX) {
        return Err(refuse("a symlink leads to a directory with a whiteout name (R-15)"));
    }
    check_component(name)
}

fn check_component(name: &[u8]) -> Result<(), Error> {
    if name.len() > MAX_NAME {
        return Err(refuse(format!("name component has {} bytes, at most {MAX_NAME} are possible (S11)", name.len())));
    }
    Ok(())
}

fn meta_of(entry: &Entry) -> Meta {
    Meta {
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        atime: entry.atime.unwrap_or(entry.mtime),
    }
}

fn xattrs_of(
    entry: &Entry,
    takes_user: bool,
    options: &PlanOptions,
    warn: &mut dyn FnMut(Warning),
) -> Result<Xattrs, Error> {
    let mut out = Vec::with_capacity(entry.xattrs.len());
    for (name, value) in &entry.xattrs {
        let capability = if name == CAPABILITY { Some(Capability::read(value)?) } else { None };
        let dropped = if name.starts_with(b"trusted.overlay.") {
            Some(("overlay-xattr", "would steer overlayfs (R-9)"))
        } else if name.starts_with(b"user.overlay.") && options.flavour == XattrFlavour::User {
            Some(("overlay-xattr", "would steer overlayfs in a user namespace (R-10)"))
        } else if name == b"security.selinux" && options.tree.selinux == Selinux::Drop {
            Some(("selinux-label", "belongs to the host that built the image (R-11)"))
        } else if name == b"system.nfs4_acl" {
            Some(("nfs4-acl", "belongs to the file system that built the image (M20)"))
        } else if name.starts_with(b"user.") && !takes_user {
            Some(("user-xattr", "the kernel keeps user xattrs on files and directories only (M18)"))
        } else if capability == Some(Capability::Foreign) {
            Some(("foreign-capability", "is for a user namespace of the machine that built the image (M16)"))
        } else {
            None
        };
        match dropped {
            Some((kind, why)) => {
                warn(Warning::new(kind, &entry.path, format!("xattr {} dropped: {why}", crate::error::escape(name))));
            }
            None => {
                let value = match capability {
                    Some(Capability::Everywhere(value)) => value,
                    _ => value.clone(),
                };
                out.push((name.clone(), value));
            }
        }
    }
    Ok(out)
}

/// Names and values, in archive order.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a `security.capability` says (<https://man7.org/linux/man-pages/man7/capabilities.7.html>, *File capability
/// extended attribute versioning*).
#[derive(Debug, PartialEq, Eq)]
enum Capability {
    /// Version 2, which holds wherever the file is; a version 3 whose root is 0 says the same and is written like this.
    Everywhere(Vec<u8>),
    /// Version 3 with another root: it holds in one user namespace only.
    Foreign,
}

impl Capability {
    fn read(value: &[u8]) -> Result<Capability, Error> {
        // The version is the top byte of a little-endian word.
        const VERSION: usize = 3;
        let version = value.get(VERSION).copied();
        match (version, value.len()) {
            (Some(2), 20) => Ok(Capability::Everywhere(value.to_vec())),
            (Some(3), 24) if value.ends_with(&[0; 4]) => {
                let mut second = value.get(..20).unwrap_or_default().to_vec();
                if let Some(version) = second.get_mut(VERSION) {
                    *version = 2;
                }
                Ok(Capability::Everywhere(second))
            }
            (Some(3), 24) => Ok(Capability::Foreign),
            (_, bytes) => Err(refuse(format!("security.capability of {bytes} bytes is neither version 2 nor 3 (M16)"))),
        }
    }
}
