//! Whether a published layer still holds what was written into it.
//!
//! Owns: the comparison of a layer directory, and of its stash, with the inventory that its journal gives. Changes nothing.
//! Without reading content it finds what is missing, added, of another type or size, and wrong metadata or marks; a byte changed
//! in place behind size and mtime takes [`Depth::Content`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;

use xxhash_rust::xxh3::Xxh3;

use super::publish::LayerRef;
use super::{Store, io_at};
use crate::apply::inventory::{Inode, Inventory, Laid, LaidKind, LaidNode, Names};
use crate::apply::journal::{Reader, Sum};
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result, escape};
use crate::merge::Marks;
use crate::policy::{Ownership, XattrFlavour};
use crate::root::{Dir, Kind, NodeMeta, ReadLink, Stat};
use crate::tar::Region;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes read at a time.
pub(super) const CHUNK: usize = 256 << 10;
/// Seconds of mtime that every file system holds which can hold a store.
const KEPT_EVERYWHERE: std::ops::RangeInclusive<i64> = i32::MIN as i64..=i32::MAX as i64;

/// How closely a layer is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names, types, sizes, metadata, marks.
    Names,
    /// The content of every file besides.
    Content,
}

/// What is wrong with one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DamageKind {
    /// It is not there.
    Missing,
    /// It is there and should not be.
    Added,
    /// It is something else, or leads elsewhere.
    Type,
    /// A file has another size.
    Size,
    /// A file has other content.
    Content,
    /// Owner, mode, mtime or xattrs differ.
    Metadata,
    /// Names that were one inode are not any more, or the reverse.
    Links,
    /// An overlayfs mark is missing or added.
    Marks,
    /// It cannot be read.
    Unreadable,
}

impl DamageKind {
    /// Returns the stable word that JSON output carries.
    pub fn code(self) -> &'static str {
        match self {
            DamageKind::Missing => "missing",
            DamageKind::Added => "added",
            DamageKind::Type => "type",
            DamageKind::Size => "size",
            DamageKind::Content => "content",
            DamageKind::Metadata => "metadata",
            DamageKind::Links => "links",
            DamageKind::Marks => "marks",
            DamageKind::Unreadable => "unreadable",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What is wrong.
    pub kind: DamageKind,
    /// The path in the layer directory; below `.stash/` what only a fix-up needs; empty for the directory itself.
    pub path: Vec<u8>,
    /// What exactly.
    pub detail: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\": {}", escape(&self.path), self.detail)
    }
}

impl Store {
    /// Compares a published layer with what was recorded when it was unpacked, handing every difference to `found`.
    ///
    /// # Errors
    /// `Cancelled`; `Integrity` if the layer's own journal is damaged, so that nothing can be said; `Unsupported` for a
    /// journal of another version; errors of the disk.
    pub fn verify_layer(
        &self,
        layer: &LayerRef,
        depth: Depth,
        cancel: &CancelToken,
        found: &mut dyn FnMut(Damage),
    ) -> Result<()> {
        let path = layer.meta_path().join("entries");
        let unusable = |e: Error| {
            if e.kind() == ErrorKind::Unsupported {
                return e.with_layer(layer.diff_id());
            }
            Error::new(ErrorKind::Integrity, format!("the journal of the layer cannot be used: {}", e.message()))
                .with_layer(layer.diff_id())
                .with_hint("`unply repair` unpacks the layer again")
        };
        let file = File::open(&path).map_err(|e| unusable(io_at("open", &path, e)))?;
        let inventory = Reader::new(file).and_then(Inventory::read).map_err(unusable)?;
        let flavour = self.flavour();
        let mut walk = Walk {
            inventory: &inventory,
            marks: Marks { flavour: flavour.xattr, form: flavour.whiteouts },
            owners: flavour.ownership == Ownership::Keep,
            lenient_xattrs: layer.facts().xattrs_dropped,
            copied_links: layer.facts().copied_links > 0,
            depth,
            cancel,
            found,
            inodes: HashMap::new(),
            nodes: HashMap::new(),
        };
        walk.tree(&Dir::open(layer.tree_path())?, &inventory.tree, b"")?;
        if !inventory.stash.is_empty() {
            let stash = layer.meta_path().join("stash");
            match Dir::open(&stash) {
                Ok(dir) => walk.tree(&dir, &inventory.stash, b".stash")?,
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    walk.report(DamageKind::Missing, b".stash", "what fix-ups need is not there");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

struct Walk<'a> {
    inventory: &'a Inventory,
    marks: Marks,
    owners: bool,
    lenient_xattrs: bool,
    copied_links: bool,
    depth: Depth,
    cancel: &'a CancelToken,
    found: &'a mut dyn FnMut(Damage),
    /// Where each inode of several names was first seen, both ways.
    inodes: HashMap<Inode, (u64, u64)>,
    nodes: HashMap<(u64, u64), Inode>,
}

impl Walk<'_> {
    fn report(&mut self, kind: DamageKind, path: &[u8], detail: impl Into<String>) {
        (self.found)(Damage { kind, path: path.to_vec(), detail: detail.into() });
    }

    /// Compares everything below `root` with `names`; `shown` is put before the paths of findings.
    fn tree(&mut self, root: &Dir, names: &Names, shown: &[u8]) -> Result<()> {
        let mut seen = 0usize;
        let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
        let mut missing: Vec<&[u8]> = Vec::new();
        while let Some(path) = pending.pop() {
            self.cancel.check()?;
            let at = join(shown, &path);
            let dir = match root.open_below_or_self(&path) {
                Ok(dir) => dir,
                Err(e) => {
                    self.report(DamageKind::Unreadable, &at, e.message());
                    continue;
                }
            };
            if let Some(Laid::Directory { meta, opaque, whiteouts }) = names.get(&path) {
                seen += 1;
                self.directory(&dir, &at, meta, *opaque, *whiteouts)?;
            }
            let mut listing = dir.list()?;
            // Findings come in one order, whatever the file system's.
            listing.sort_by(|a, b| a.name.cmp(&b.name));
            for listed in listing {
                let path = join(&path, &listed.name);
                let at = join(shown, &path);
                let Some(stat) = dir.stat(&listed.name)? else { continue };
                let is_dir = stat.kind == Kind::Directory;
                match names.get(&path) {
                    // Directories in the stash never got their metadata: only what they hold counts.
                    None if is_dir && !shown.is_empty() => pending.push(path),
                    None => {
                        self.report(DamageKind::Added, &at, format!("{} that the layer does not have", name_of(&stat)))
                    }
                    Some(Laid::Directory { .. }) if is_dir => pending.push(path),
                    Some(Laid::Directory { .. }) => {
                        self.report(DamageKind::Type, &at, format!("is {}, should be a directory", name_of(&stat)));
                    }
                    Some(Laid::Whiteout) => {
                        seen += 1;
                        if !self.marks.is_whiteout(&dir, &listed)? {
                            self.report(DamageKind::Marks, &at, format!("is {}, should be a whiteout", name_of(&stat)));
                        }
                    }
                    Some(Laid::Node(inode)) => {
                        seen += 1;
                        self.node(&dir, &listed.name, &at, *inode, &stat)?;
                    }
                }
            }
        }
        if seen == names.len() {
            return Ok(());
        }
        // Rare: only now is every recorded name looked for.
        for path in names.keys() {
            if missing.last().is_some_and(|up| below(up, path)) {
                continue;
            }
            if !self.there(root, path)? {
                missing.push(path);
            }
        }
        for path in missing {
            self.report(DamageKind::Missing, &join(shown, path), "is not there");
        }
        Ok(())
    }

    fn there(&self, root: &Dir, path: &[u8]) -> Result<bool> {
        let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        if name.is_empty() {
            return Ok(true);
        }
        match root.open_below_or_self(parent) {
            Ok(dir) => Ok(dir.stat(name)?.is_some()),
            // Said of the directory already.
            Err(_) => Ok(true),
        }
    }

    fn directory(&mut self, dir: &Dir, at: &[u8], meta: &NodeMeta, opaque: bool, whiteouts: bool) -> Result<()> {
        let stat = dir.stat_self()?;
        self.metadata(at, meta, &stat);
        let xattrs = dir.xattrs_self()?;
        self.xattrs(at, meta, &xattrs);
        let has = |mark: &str| {
            let name = format!("{}{mark}", self.marks.flavour.prefix());
            xattrs.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, v)| v.as_slice())
        };
        let is_opaque = has("opaque") == Some(b"y");
        let filters = has("origin").is_some();
        if is_opaque != opaque {
            let detail = if opaque {
                "has lost its opaque mark: deleted content shows"
            } else {
                "has an opaque mark: it hides lower content"
            };
            self.report(DamageKind::Marks, at, detail);
        }
        if whiteouts && !filters {
            self.report(DamageKind::Marks, at, "has lost the mark that keeps whiteouts out of listings");
        }
        Ok(())
    }

    fn node(&mut self, dir: &Dir, name: &[u8], at: &[u8], inode: Inode, stat: &Stat) -> Result<()> {
        let inventory = self.inventory;
        let LaidNode { kind, meta } = inventory.node(inode);
        let device = |major: u32, minor: u32| rustix::fs::makedev(major, minor) == stat.rdev;
        let right = match (kind, stat.kind) {
            (LaidKind::File { .. }, Kind::File) | (LaidKind::Fifo, Kind::Fifo) => true,
            (LaidKind::Symlink(target), Kind::Symlink) => dir.read_link(name)? == ReadLink::Target(target.clone()),
            (LaidKind::CharDevice(major, minor), Kind::CharDevice)
            | (LaidKind::BlockDevice(major, minor), Kind::BlockDevice) => device(*major, *minor),
            _ => false,
        };
        if !right {
            self.report(DamageKind::Type, at, format!("is {}, should be {}", name_of(stat), wanted(kind)));
            return Ok(());
        }
        if inventory.names_of(inode) > 1 || stat.nlink > 1 {
            match self.inodes.entry(inode) {
                Entry::Occupied(first) if *first.get() == stat.id => return Ok(()), // looked at under its first name
                Entry::Occupied(_) => {
                    if !self.copied_links {
                        self.report(DamageKind::Links, at, "is no hard link any more");
                    }
                }
                Entry::Vacant(first) => {
                    first.insert(stat.id);
                    if *self.nodes.entry(stat.id).or_insert(inode) != inode {
                        self.report(DamageKind::Links, at, "is a hard link to another file of the layer");
                    }
                }
            }
        }
        self.metadata(at, meta, stat);
        self.xattrs(at, meta, &dir.xattrs(name)?);
        let LaidKind::File { size, sparse, sum } = kind else { return Ok(()) };
        if *size != stat.size {
            self.report(DamageKind::Size, at, format!("has {} bytes, should have {size}", stat.size));
            return Ok(());
        }
        if self.depth == Depth::Content
            && let Some(sum) = sum
        {
            let same = dir.open_file(name).and_then(|fd| self.content(File::from(fd), *size, sparse.as_deref(), *sum));
            match same {
                Ok(true) => {}
                Ok(false) => self.report(DamageKind::Content, at, "has other content than was unpacked"),
                Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                Err(e) => self.report(DamageKind::Unreadable, at, e.message()),
            }
        }
        Ok(())
    }

    fn metadata(&mut self, at: &[u8], want: &NodeMeta, stat: &Stat) {
        let (want, have) = (&want.meta, &stat.meta);
        if self.owners && (want.uid, want.gid) != (have.uid, have.gid) {
            let detail = format!("belongs to {}:{}, should to {}:{}", have.uid, have.gid, want.uid, want.gid);
            self.report(DamageKind::Metadata, at, detail);
        }
        if stat.kind != Kind::Symlink && want.mode != have.mode {
            self.report(DamageKind::Metadata, at, format!("has mode {:04o}, should have {:04o}", have.mode, want.mode));
        }
        // Times that a file system cannot hold were moved to the nearest one that it can.
        let held = KEPT_EVERYWHERE.contains(&want.mtime.seconds);
        if want.mtime != have.mtime && held {
            let shown = |t: crate::tar::Timestamp| format!("{}.{:09}", t.seconds, t.nanos);
            let detail = format!("has mtime {}, should have {}", shown(have.mtime), shown(want.mtime));
            self.report(DamageKind::Metadata, at, detail);
        }
    }

    fn xattrs(&mut self, at: &[u8], want: &NodeMeta, have: &[(Vec<u8>, Vec<u8>)]) {
        for (name, value) in &want.xattrs {
            match have.iter().find(|(n, _)| n == name) {
                None if self.lenient_xattrs => {}
                None => self.report(DamageKind::Metadata, at, format!("has lost xattr {}", escape(name))),
                // In a user namespace the kernel stores capabilities with the namespace's root id (M16).
                Some(_) if name == b"security.capability" && self.marks.flavour == XattrFlavour::User => {}
                Some((_, found)) if found != value => {
                    self.report(DamageKind::Metadata, at, format!("xattr {} has another value", escape(name)));
                }
                Some(_) => {}
            }
        }
        for (name, _) in have {
            // Labels are the host's; marks are compared apart.
            let expected = want.xattrs.iter().any(|(n, _)| n == name);
            if !expected && !self.marks.is_mark(name) && name != b"security.selinux" {
                self.report(DamageKind::Metadata, at, format!("has xattr {}, which the layer does not", escape(name)));
            }
        }
    }

    /// Whether a file's content is the recorded one.
    fn content(&self, file: File, size: u64, sparse: Option<&[Region]>, sum: Sum) -> Result<bool> {
        let whole = [Region { offset: 0, length: size }];
        let regions = sparse.unwrap_or(&whole);
        let mut hasher = Xxh3::new();
        let mut buf = vec![0u8; CHUNK];
        let read = |offset: u64, buf: &mut [u8]| file.read_exact_at(buf, offset).map_err(|e| Error::io("read", e));
        for region in regions {
            let (mut offset, mut left) = (region.offset, region.length);
            while left > 0 {
                self.cancel.check()?;
                let n = left.min(CHUNK as u64) as usize;
                read(offset, &mut buf[..n])?;
                hasher.update(&buf[..n]);
                offset += n as u64;
                left -= n as u64;
            }
        }
        if Sum(hasher.digest()) != sum {
            return Ok(false);
        }
        match sparse {
            Some(regions) => holes_are_empty(&file, size, regions, &mut buf, self.cancel),
            None => Ok(true),
        }
    }
}

/// Whether a sparse file holds nothing but zeros outside its regions.
fn holes_are_empty(file: &File, size: u64, regions: &[Region], buf: &mut [u8], cancel: &CancelToken) -> Result<bool> {
    let mut at = 0u64;
    let end = [Region { offset: size, length: 0 }];
    for region in regions.iter().chain(&end) {
        while at < region.offset {
            cancel.check()?;
            // The kernel skips what was never written.
            let data = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => return Ok(true),
                Err(e) => return Err(Error::io("lseek", e.into())),
            };
            if data >= region.offset {
                break;
            }
            let n = (region.offset - data).min(buf.len() as u64) as usize;
            let Some(piece) = buf.get_mut(..n) else { break };
            file.read_exact_at(piece, data).map_err(|e| Error::io("read", e))?;
            if piece.iter().any(|&b| b != 0) {
                return Ok(false);
            }
            at = data + n as u64;
        }
        at = region.offset.saturating_add(region.length);
    }
    Ok(true)
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir, name) {
        (b"", name) => name.to_vec(),
        (dir, b"") => dir.to_vec(),
        (dir, name) => [dir, b"/", name].concat(),
    }
}

/// Whether `path` is `up` or lies below it.
fn below(up: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(up).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

pub(super) fn name_of(stat: &Stat) -> &'static str {
    match stat.kind {
        Kind::Directory => "a directory",
        Kind::File => "a file",
        Kind::Symlink => "a symlink",
        Kind::CharDevice if stat.rdev == 0 => "a whiteout",
        Kind::CharDevice => "a character device",
        Kind::BlockDevice => "a block device",
        Kind::Fifo => "a named pipe",
        Kind::Other => "something else",
    }
}

fn wanted(kind: &LaidKind) -> String {
    match kind {
        LaidKind::File { .. } => "a file".into(),
        LaidKind::Symlink(target) => format!("a symlink to \"{}\"", escape(target)),
        LaidKind::CharDevice(major, minor) => format!("the character device {major}:{minor}"),
        LaidKind::BlockDevice(major, minor) => format!("the block device {major}:{minor}"),
        LaidKind::Fifo => "a named pipe".into(),
    }
}
