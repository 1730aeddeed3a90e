//! Making the files of a layer with as few calls as there can be.
//!
//! Owns: the bare loop of `openat`, `write`, `utimensat`, `close` (and `mkdirat`, `symlinkat`, `linkat`, `mknodat`) over the
//! names, types and sizes of an archive, on one thread, content from one recycled buffer. Refuses to know: owners, xattrs,
//! modes that `open` does not give, times of directories, whiteouts' meaning — it is the floor, not an unpack.
//! Invariant: parents are opened below the target without following any symlink, so nothing outside it changes.

use std::collections::HashMap;

use nix::sys::stat::{Mode as NodeMode, SFlag, makedev};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::decode::{BUFFER, Stopwatch};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::policy::Limits;
use crate::root::Dir;
use crate::tar::{Entry, EntryKind, Parser, Step, Timestamp};

/// What an archive has, entry by entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Hard links.
    pub hard_links: u64,
    /// Whiteouts, opaque marks, devices and pipes.
    pub others: u64,
    /// Bytes of file content, holes not counted.
    pub content_bytes: u64,
}

impl Counts {
    /// Returns how many entries there are.
    pub fn entries(&self) -> u64 {
        self.files + self.directories + self.symlinks + self.hard_links + self.others
    }
}

/// Entries made between two readings of the clock: enough that the clock costs nothing, few enough to be kept.
const BATCH: usize = 4096;

/// Handles of parents kept open.
const PARENTS: usize = 256;

/// An archive that comes in pieces of any size.
pub(super) struct Entries {
    parser: Parser,
    block: [u8; 512],
    have: usize,
    skip: u64,
    ended: bool,
}

impl Entries {
    pub fn new(limits: &Limits) -> Entries {
        Entries { parser: Parser::new(limits), block: [0; 512], have: 0, skip: 0, ended: false }
    }

    /// Takes the next piece and hands over the entries that begin in it.
    pub fn feed(&mut self, mut piece: &[u8], each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        while !piece.is_empty() && !self.ended {
            let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(piece.len());
            piece = piece.get(skip..).unwrap_or_default();
            self.skip -= skip as u64;
            let n = piece.len().min(self.block.len() - self.have);
            let (taken, rest) = piece.split_at(n);
            if let Some(free) = self.block.get_mut(self.have..self.have + n) {
                free.copy_from_slice(taken);
            }
            (self.have, piece) = (self.have + n, rest);
            if self.have < self.block.len() {
                continue;
            }
            self.have = 0;
            let step = self.parser.block(&self.block);
            match step.map_err(Error::from)? {
                Step::More => {}
                Step::Skip(bytes) => self.skip = bytes,
                Step::End => self.ended = true,
                Step::Entry(entry) => {
                    self.skip = entry.stored.checked_next_multiple_of(512).unwrap_or(u64::MAX);
                    each(*entry)?;
                }
            }
        }
        Ok(())
    }
}

/// The name of an entry as components; `None` where it is the root or would leave it.
fn components(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            return None;
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    (!out.is_empty()).then_some(out)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

/// What is made for an entry.
enum Make {
    Directory,
    File { mode: u32, bytes: u64, mtime: Timestamp },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Node,
    Nothing,
}

/// Makes what an archive has below a directory, and times that.
pub(super) struct Creator<'a> {
    root: Dir,
    parents: HashMap<Vec<u8>, Dir>,
    batch: Vec<(Vec<u8>, Make)>,
    content: Vec<u8>,
    watch: Stopwatch,
    counts: Counts,
    cancel: &'a CancelToken,
}

impl<'a> Creator<'a> {
    pub fn new(root: Dir, cancel: &'a CancelToken) -> Creator<'a> {
        Creator {
            root,
            parents: HashMap::new(),
            batch: Vec::new(),
            content: vec![0x5a; BUFFER],
            watch: Stopwatch::default(),
            counts: Counts::default(),
            cancel,
        }
    }

    /// Notes an entry; makes a batch of them once there are enough.
    pub fn add(&mut self, entry: Entry) -> Result<()> {
        let path = components(&entry.path);
        let name = path.as_deref().map(|path| split(path).1).unwrap_or_default();
        let make = match entry.kind {
            EntryKind::Directory => {
                self.counts.directories += 1;
                Make::Directory
            }
            _ if name.starts_with(b".wh..wh.") => {
                self.counts.others += 1;
                Make::Nothing
            }
            EntryKind::File { .. } if name.starts_with(b".wh.") => {
                self.counts.others += 1;
                Make::Node
            }
            EntryKind::File { .. } => {
                self.counts.files += 1;
                self.counts.content_bytes += entry.stored;
                Make::File { mode: entry.mode & 0o777, bytes: entry.stored, mtime: entry.mtime }
            }
            EntryKind::Symlink { target } => {
                self.counts.symlinks += 1;
                Make::Symlink(target)
            }
            EntryKind::HardLink { target } => {
                self.counts.hard_links += 1;
                components(&target).map_or(Make::Nothing, Make::HardLink)
            }
            EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo => {
                self.counts.others += 1;
                Make::Node
            }
        };
        if let Some(path) = path {
            self.batch.push((path, make));
        }
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Makes what is left; returns what there was and the time of making it.
    pub fn finish(mut self) -> Result<(Counts, Stopwatch)> {
        self.flush()?;
        Ok((self.counts, self.watch))
    }

    fn flush(&mut self) -> Result<()> {
        self.cancel.check()?;
        let batch = std::mem::take(&mut self.batch);
        let mut watch = std::mem::take(&mut self.watch);
        let made = watch.time(|| batch.iter().try_for_each(|(path, make)| self.make(path, make)));
        self.watch = watch;
        made
    }

    fn make(&mut self, path: &[u8], make: &Make) -> Result<()> {
        let (parent, name) = split(path);
        let Some(dir) = self.parent(parent)? else { return Ok(()) };
        // An archive that names a thing twice replaces it; once is enough for a floor.
        match self.make_in(&dir, name, make) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST | Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP | Errno::MLINK) => Ok(()),
            // A device needs root.
            Err(Errno::PERM) if matches!(make, Make::Node) => Ok(()),
            Err(e) => Err(Error::io(format!("create \"{}\"", crate::error::escape(path)), e.into())),
        }
    }

    fn make_in(&mut self, dir: &Dir, name: &[u8], make: &Make) -> rustix::io::Result<()> {
        match make {
            Make::Nothing => Ok(()),
            Make::Directory => rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)),
            Make::Symlink(target) => rustix::fs::symlinkat(target.as_slice(), dir, name),
            Make::HardLink(target) => {
                let (parent, target) = split(target);
                match self.parent(parent) {
                    Ok(Some(from)) => rustix::fs::linkat(&from, target, dir, name, AtFlags::empty()),
                    _ => Ok(()),
                }
            }
            Make::Node => {
                let mode = NodeMode::from_bits_truncate(0o600);
                nix::sys::stat::mknodat(dir, name, SFlag::S_IFCHR, mode, makedev(0, 0))
                    .map_err(|e| Errno::from_raw_os_error(e as i32))
            }
            Make::File { mode, bytes, mtime } => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(*mode))?;
                let mut left = *bytes;
                while left > 0 {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(self.content.len());
                    left -= rustix::io::write(&file, self.content.get(..n).unwrap_or_default())? as u64;
                }
                let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
                rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
            }
        }
    }

    /// Returns the handle of a directory, made where the archive did not; `None` where something else is there.
    fn parent(&mut self, path: &[u8]) -> Result<Option<Dir>> {
        if path.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        if let Some(dir) = self.parents.get(path) {
            return Ok(Some(dir.clone()));
        }
        let dir = match self.root.open_below(path) {
            Ok(dir) => dir,
            Err(_) => {
                let (parent, name) = split(path);
                let Some(parent) = self.parent(parent)? else { return Ok(None) };
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => parent.open_child(name)?,
                    Err(_) => return Ok(None),
                }
            }
        };
        if self.parents.len() >= PARENTS {
            self.parents.clear();
        }
        self.parents.insert(path.to_vec(), dir.clone());
        Ok(Some(dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn entry(path: &str, kind: EntryKind, stored: u64) -> Entry {
        Entry {
            offset: 0,
            path: path.as_bytes().to_vec(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp { seconds: 5, nanos: 7 },
            atime: None,
            xattrs: Vec::new(),
            stored,
        }
    }

    fn file(path: &str, size: u64) -> Entry {
        entry(path, EntryKind::File { size, sparse: None }, size)
    }

    fn symlink(path: &str, target: &Path) -> Entry {
        let target = target.as_os_str().as_encoded_bytes().to_vec();
        entry(path, EntryKind::Symlink { target }, 0)
    }

    #[test]
    fn everything_is_made_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancelToken::new();
        let mut creator = Creator::new(Dir::open(dir.path()).unwrap(), &cancel);
        creator.add(entry("./a/", EntryKind::Directory, 0)).unwrap();
        creator.add(file("a/big", BUFFER as u64 + 9)).unwrap();
        creator.add(file("/not/announced/x", 0)).unwrap();
        creator.add(symlink("a/s", Path::new("big"))).unwrap();
        creator.add(entry("a/h", EntryKind::HardLink { target: b"a/big".to_vec() }, 0)).unwrap();
        creator.add(file("a/.wh.gone", 0)).unwrap();
        creator.add(file("a/.wh..wh..opq", 0)).unwrap();
        creator.add(file("a/big", 3)).unwrap();
        let (counts, watch) = creator.finish().unwrap();
        assert_eq!((counts.files, counts.directories, counts.entries()), (3, 1, 8));
        assert_eq!((counts.symlinks, counts.hard_links, counts.others), (1, 1, 2));
        assert_eq!(counts.content_bytes, BUFFER as u64 + 12);
        assert!(watch.cost().wall_seconds > 0.0);
        let big = std::fs::metadata(dir.path().join("a/h")).unwrap();
        assert_eq!(big.len(), BUFFER as u64 + 9);
        assert_eq!(big.modified().unwrap(), std::time::UNIX_EPOCH + std::time::Duration::new(5, 7));
        assert!(dir.path().join("not/announced/x").is_file());
    }

    #[test]
    fn nothing_outside_is_made_through_a_symlink_or_dots() {
        let place = tempfile::tempdir().unwrap();
        let (inside, outside) = (place.path().join("in"), place.path().join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "x").unwrap();
        let cancel = CancelToken::new();
        let mut creator = Creator::new(Dir::open(&inside).unwrap(), &cancel);
        creator.add(symlink("s", &outside)).unwrap();
        creator.add(file("s/new", 1)).unwrap();
        creator.add(file("s/deep/new", 1)).unwrap();
        creator.add(file("../out/new", 1)).unwrap();
        creator.add(entry("h", EntryKind::HardLink { target: b"s/secret".to_vec() }, 0)).unwrap();
        creator.add(file("f", 1)).unwrap();
        creator.finish().unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        assert!(inside.join("f").is_file() && !inside.join("h").exists());
    }
}
