//! Every file operation, relative to directory handles.
//!
//! Owns: [`Dir`], a handle on a directory, and all that can be done to one name inside it. A path never reaches the
//! kernel from here except one whose every component was made by us, and then with
//! `openat2(RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV)`
//! (<https://man7.org/linux/man-pages/man2/openat2.2.html>) or, where that call is missing, one `O_NOFOLLOW` step at a time.
//! Refuses to know: tar, OCI, store. It is unconditionally safe and has no switches; which [`Resolver`] opens directories is
//! part of a handle, found out once where a path is opened, and equally safe either way.
//!
//! Symlinks are therefore never followed by the kernel. Whoever wants one resolved inside a root reads it with
//! [`Dir::read_link`] and walks on from a handle it already holds, which is what makes the *resolved* path known.

mod lazy;
pub mod meta;
mod remove;

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result, escape};

pub use lazy::{Handles, LazyDir};
pub use meta::{Meta, NodeMeta, xattr_get, xattrs_of};
pub use remove::{Removal, remove_path};

/// What a name inside a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket or something unknown.
    Other,
}

impl From<FileType> for Kind {
    fn from(t: FileType) -> Self {
        match t {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            _ => Kind::Other,
        }
    }
}

/// What `lstat` says about a name, as far as layers need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, owner, times.
    pub meta: Meta,
    /// Size in bytes.
    pub size: u64,
    /// Device and inode number: equal for two names of one inode.
    pub id: (u64, u64),
    /// Number of names of the inode.
    pub nlink: u64,
    /// Device number of a device node.
    pub rdev: u64,
}

impl Stat {
    fn from_raw(st: &rustix::fs::Stat) -> Stat {
        Stat {
            kind: FileType::from_raw_mode(st.st_mode).into(),
            meta: Meta::from_raw(st),
            size: u64::try_from(st.st_size).unwrap_or(0),
            id: (st.st_dev, st.st_ino),
            nlink: st.st_nlink as _,
            rdev: st.st_rdev,
        }
    }

    /// Whether this is overlayfs's first form of a whiteout, a character device 0:0.
    pub fn is_char_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.rdev == 0
    }
}

/// One name as the directory itself lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// What the directory says it is; `None` where the file system does not say.
    pub kind: Option<Kind>,
    /// The inode number the directory lists.
    pub ino: u64,
}

/// A handle on a directory; cheap to clone, closed with its last clone.
#[derive(Debug, Clone)]
pub struct Dir {
    fd: Arc<OwnedFd>,
    resolver: Resolver,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes the error of a failed call on `name`.
pub(crate) fn failed(call: &str, name: &[u8], errno: Errno) -> Error {
    Error::io(format!("{call}(\"{}\")", escape(name)), errno.into())
}

/// A longer path goes step by step: `PATH_MAX` with some room.
const MAX_PATH: usize = 4000;

const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// How directories below a handle are opened; neither follows a symlink or enters a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolver {
    /// `openat2` with every restricting flag, many components at once (Linux 5.6).
    Openat2,
    /// One `openat(O_NOFOLLOW)` a component, and a look at what was opened.
    Steps,
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl Resolver {
    /// Finds out by trying: old kernels lack `openat2`, and seccomp profiles that do not know it answer `EPERM`.
    pub fn probe(dir: impl AsFd) -> Resolver {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat2(dir, c".", flags, Mode::empty(), RESOLVE) {
            Err(Errno::NOSYS | Errno::PERM) => Resolver::Steps,
            _ => Resolver::Openat2,
        }
    }
}

impl Dir {
    /// Opens a directory by path; the only place where a caller's path is resolved, symlinks included.
    pub fn open(path: &Path) -> Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| failed("open", path.as_os_str().as_encoded_bytes(), e))?;
        Ok(Dir::from_fd(fd))
    }

    /// Takes over an open directory descriptor.
    pub fn from_fd(fd: OwnedFd) -> Dir {
        let resolver = Resolver::probe(&fd);
        Dir { fd: Arc::new(fd), resolver }
    }

    /// Returns this handle with another way to open what is below it; what is opened through it does the same.
    pub fn with_resolver(mut self, resolver: Resolver) -> Dir {
        self.resolver = resolver;
        self
    }

    /// Returns how it opens what is below it.
    pub fn resolver(&self) -> Resolver {
        self.resolver
    }

    /// Opens the directory `name`, never following a symlink; one component.
    pub fn open_child(&self, name: &[u8]) -> Result<Dir> {
        self.open_below(name)
    }

    /// Opens the directory at `path`, components separated by `/`, none of which may be a symlink, a mount point or `..`.
    ///
    /// # Errors
    /// `Busy` where there is no directory, or one that is mounted there: every path given here was a directory a moment
    /// ago, so somebody else changed it.
    pub fn open_below(&self, path: &[u8]) -> Result<Dir> {
        self.try_open_below(path).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => failed("openat", path, e)
                .reclassified(ErrorKind::Busy, "a directory was changed by somebody else meanwhile"),
            other => failed("openat", path, other),
        })
    }

    fn try_open_below(&self, path: &[u8]) -> rustix::io::Result<Dir> {
        let wrap = |fd: OwnedFd| Dir { fd: Arc::new(fd), resolver: self.resolver };
        if self.resolver == Resolver::Openat2 && path.len() < MAX_PATH {
            for _ in 0..16 {
                match rustix::fs::openat2(self, path, DIR_FLAGS, Mode::empty(), RESOLVE) {
                    // A rename elsewhere raced with the lookup; the kernel asks to try again.
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    other => return other.map(wrap),
                }
            }
        }
        let mut here = self.clone();
        for component in path.split(|&b| b == b'/').filter(|c| !c.is_empty() && *c != b".") {
            if component == b".." {
                return Err(Errno::XDEV);
            }
            let fd = rustix::fs::openat(&here, component, DIR_FLAGS, Mode::empty())?;
            stays_on_mount(here.as_fd(), fd.as_fd())?;
            here = wrap(fd);
        }
        Ok(here)
    }

    /// As [`Dir::open_below`]; an empty path is this directory.
    pub fn open_below_or_self(&self, path: &[u8]) -> Result<Dir> {
        if path.is_empty() { Ok(self.clone()) } else { self.open_below(path) }
    }

    /// Returns what `name` is, or `None` where there is nothing; never follows a symlink.
    pub fn stat(&self, name: &[u8]) -> Result<Option<Stat>> {
        match rustix::fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) => Ok(Some(Stat::from_raw(&st))),
            // A name that is too long cannot be there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(e) => Err(failed("fstatat", name, e)),
        }
    }

    /// Returns what the directory itself is.
    pub fn stat_self(&self) -> Result<Stat> {
        rustix::fs::fstat(self).map(|st| Stat::from_raw(&st)).map_err(|e| failed("fstat", b"", e))
    }

    /// Returns the target of the symlink `name`; `Ok(None)` where `name` is something else, `Err` with `ENOENT` where there is nothing.
    pub fn read_link(&self, name: &[u8]) -> Result<ReadLink> {
        match rustix::fs::readlinkat(self, name, Vec::new()) {
            Ok(target) => Ok(ReadLink::Target(target.into_bytes())),
            Err(Errno::INVAL) => Ok(ReadLink::NotALink),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(ReadLink::Nothing),
            Err(e) => Err(failed("readlinkat", name, e)),
        }
    }

    /// Creates the directory `name`; `Ok(false)` where the name is taken.
    pub fn make_dir(&self, name: &[u8], mode: u32) -> Result<bool> {
        taken(rustix::fs::mkdirat(self, name, Mode::from_raw_mode(mode)), "mkdirat", name)
    }

    /// Creates the regular file `name` for reading and writing; `Ok(None)` where the name is taken.
    pub fn make_file(&self, name: &[u8], mode: u32) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(self, name, flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::EXIST) => Ok(None),
            Err(e) => Err(failed("openat", name, e)),
        }
    }

    /// Creates the directory `name`, with exactly this mode whatever the place says, and opens it.
    ///
    /// # Errors
    /// `AlreadyExists` where the name is taken.
    pub fn new_dir(&self, name: &[u8], mode: u32) -> Result<Dir> {
        if !self.make_dir(name, 0o700)? {
            return Err(failed("mkdirat", name, Errno::EXIST));
        }
        let dir = self.open_child(name)?;
        dir.forget_the_place(mode)?;
        Ok(dir)
    }

    /// Creates the regular file `name` for reading and writing, for nobody else.
    ///
    /// # Errors
    /// `AlreadyExists` where the name is taken.
    pub fn new_file(&self, name: &[u8]) -> Result<OwnedFd> {
        self.make_file(name, 0o600)?.ok_or_else(|| failed("openat", name, Errno::EXIST))
    }

    /// Opens the regular file `name` for reading; a symlink is an error, and so is anything but a regular file.
    pub fn open_file(&self, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::openat(self, name, flags, Mode::empty()).map_err(|e| failed("openat", name, e))?;
        let st = rustix::fs::fstat(&fd).map_err(|e| failed("fstat", name, e))?;
        if FileType::from_raw_mode(st.st_mode) != FileType::RegularFile {
            return Err(failed("openat", name, Errno::INVAL));
        }
        Ok(fd)
    }

    /// Creates the symlink `name`; `Ok(false)` where the name is taken.
    pub fn make_symlink(&self, name: &[u8], target: &[u8]) -> Result<bool> {
        taken(rustix::fs::symlinkat(target, self, name), "symlinkat", name)
    }

    /// Creates a device node or a named pipe; `Ok(false)` where the name is taken. `rdev` counts for devices only.
    pub fn make_node(&self, name: &[u8], kind: Kind, mode: u32, rdev: u64) -> Result<bool> {
        let file_type = match kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        taken(rustix::fs::mknodat(self, name, file_type, Mode::from_raw_mode(mode), rdev), "mknodat", name)
    }

    /// Makes `name` here another name of `target` in `from`, not following it; see [`LinkOutcome`].
    pub fn link(&self, name: &[u8], from: &Dir, target: &[u8]) -> Result<LinkOutcome> {
        match rustix::fs::linkat(from, target, self, name, AtFlags::empty()) {
            Ok(()) => Ok(LinkOutcome::Made),
            Err(Errno::EXIST) => Ok(LinkOutcome::Taken),
            Err(Errno::NOENT) => Ok(LinkOutcome::NoTarget),
            Err(Errno::MLINK) => Ok(LinkOutcome::TooMany),
            Err(e) => Err(failed("linkat", name, e)),
        }
    }

    /// Removes the non-directory `name`; `Ok(false)` where there is nothing.
    pub fn unlink(&self, name: &[u8]) -> Result<bool> {
        match rustix::fs::unlinkat(self, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(failed("unlinkat", name, e)),
        }
    }

    /// Removes the empty directory `name`.
    pub fn remove_dir(&self, name: &[u8]) -> Result<()> {
        rustix::fs::unlinkat(self, name, AtFlags::REMOVEDIR).map_err(|e| failed("rmdir", name, e))
    }

    /// Removes `name` with everything below it, following nothing and entering no mount; nothing there is no error.
    ///
    /// # Errors
    /// As [`Dir::remove_tree`].
    pub fn remove_all(&self, name: &[u8]) -> Result<()> {
        self.remove_tree(name, &|| false).map(drop)
    }

    /// Removes everything inside this directory, following nothing.
    pub fn clear(&self) -> Result<()> {
        for listed in self.list()? {
            self.remove_all(&listed.name)?;
        }
        Ok(())
    }

    /// Renames `name` here to `new_name` in `to`, replacing a non-directory there.
    pub fn rename(&self, name: &[u8], to: &Dir, new_name: &[u8]) -> Result<()> {
        rustix::fs::renameat(self, name, to, new_name).map_err(|e| failed("renameat", name, e))
    }

    /// Renames `name` here to `new_name` in `to`; `Ok(false)` where that name is taken.
    pub fn rename_new(&self, name: &[u8], to: &Dir, new_name: &[u8]) -> Result<bool> {
        taken(crate::sys::rename_new(self, name, to, new_name), "renameat2", name)
    }

    /// Checks that `name`, which was just given to `what`, is `what`; something else there is removed, following nothing.
    ///
    /// # Errors
    /// `Busy` where somebody put something else in its place a moment before the rename.
    pub fn check_is(&self, name: &[u8], what: &Dir) -> Result<()> {
        if self.stat(name)?.is_some_and(|st| what.stat_self().is_ok_and(|mine| mine.id == st.id)) {
            return Ok(());
        }
        self.remove_all(name)?;
        Err(Error::new(ErrorKind::Busy, format!("\"{}\" was changed by somebody else meanwhile", escape(name))))
    }

    /// Returns the names inside, in the order the file system gives them, without `.` and `..`.
    pub fn list(&self) -> Result<Vec<Listed>> {
        // A handle's offset is shared by its clones: list from a fresh one.
        let fd = rustix::fs::openat(self, c".", DIR_FLAGS, Mode::empty()).map_err(|e| failed("openat", b".", e))?;
        let mut buf = [MaybeUninit::uninit(); 32 << 10];
        let mut raw = RawDir::new(fd, &mut buf);
        let mut out = Vec::new();
        while let Some(entry) = raw.next() {
            let entry = entry.map_err(|e| failed("getdents64", b".", e))?;
            let name: &CStr = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => None,
                known => Some(known.into()),
            };
            out.push(Listed { name: name.to_bytes().to_vec(), kind, ino: entry.ino() });
        }
        Ok(out)
    }

    /// Returns what a listed name is, asking the file system only where the listing did not say.
    pub fn kind_of(&self, listed: &Listed) -> Result<Option<Kind>> {
        match listed.kind {
            Some(kind) => Ok(Some(kind)),
            None => Ok(self.stat(&listed.name)?.map(|st| st.kind)),
        }
    }
}

/// Refuses a directory that is the root of another mount than its parent's (`EXDEV`).
fn stays_on_mount(parent: BorrowedFd<'_>, child: BorrowedFd<'_>) -> rustix::io::Result<()> {
    if let Ok(st) = rustix::fs::statx(child, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())
        && st.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
    {
        let root = st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        return if root { Err(Errno::XDEV) } else { Ok(()) };
    }
    // Before Linux 5.8: a bind mount of the same file system cannot be told apart.
    let same = rustix::fs::fstat(child)?.st_dev == rustix::fs::fstat(parent)?.st_dev;
    if same { Ok(()) } else { Err(Errno::XDEV) }
}

/// What [`Dir::read_link`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadLink {
    /// A symlink with this target.
    Target(Vec<u8>),
    /// Something, but no symlink.
    NotALink,
    /// Nothing.
    Nothing,
}

/// What [`Dir::link`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkOutcome {
    /// The new name exists.
    Made,
    /// The new name was taken already.
    Taken,
    /// The target is not there.
    NoTarget,
    /// The inode has as many names as the file system allows.
    TooMany,
}

fn taken(result: rustix::io::Result<()>, call: &str, name: &[u8]) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(failed(call, name, e)),
    }
}

#[cfg(test)]
mod tests;
