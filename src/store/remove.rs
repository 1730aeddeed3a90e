//! Removal of whole trees by directory handles.
//!
//! Nothing is followed: no symlink, no mount point. Depth is bounded neither by PATH_MAX nor by the number of open
//! files: what lies deeper than [`DEPTH`] is first renamed up into the directory being removed. Directories whose
//! mode keeps their owner out are opened up. Several processes may remove one tree at once.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, renameat, unlinkat};
use rustix::io::Errno;

/// Directory handles open at once.
const DEPTH: usize = 24;
/// Name prefix of what was renamed up.
const RENAMED_UP: &str = ".unply-removing-";

/// How a removal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Nothing of the tree is left.
    Complete,
    /// `stop` said so; the rest can be removed later.
    Stopped,
}

/// Removes `path` and everything below it; what is not there counts as removed.
///
/// # Errors
/// The first thing that could not be removed; everything else is gone by then. `EXDEV` or `EBUSY`: something is
/// mounted inside, and it was not touched.
pub(crate) fn remove_tree(path: &Path, stop: &dyn Fn() -> bool) -> io::Result<Removal> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match openat(CWD, parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(Removal::Complete),
        Err(e) => return Err(e.into()),
    };
    let name = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name))?;
    remove_tree_at(parent.as_fd(), &name, stop)
}

/// Removes the entry `name` of the directory `parent` and everything below it, as [`remove_tree`] does.
///
/// # Errors
/// As [`remove_tree`].
pub(crate) fn remove_tree_at(parent: BorrowedFd<'_>, name: &CStr, stop: &dyn Fn() -> bool) -> io::Result<Removal> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(Removal::Complete),
        // EPERM is what POSIX says for a directory; if it is not one, opening it fails below.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    let top = match open_dir(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(Removal::Complete),
        Err(e) => return Err(e.into()),
    };
    let mut walk = Walk { top: top.as_fd(), stop, moved: 0, error: None, progress: false };
    loop {
        walk.progress = false;
        if walk.empty(top.as_fd(), 0)? == Removal::Stopped {
            return Ok(Removal::Stopped);
        }
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Removal::Complete),
            // Something was renamed up or added meanwhile, or reading skipped names while others were removed.
            Err(Errno::NOTEMPTY | Errno::EXIST) if walk.progress => walk.error = None,
            Err(e) => return Err(walk.error.take().unwrap_or_else(|| e.into())),
        }
    }
}

struct Walk<'a> {
    top: BorrowedFd<'a>,
    stop: &'a dyn Fn() -> bool,
    moved: u64,
    error: Option<io::Error>,
    progress: bool,
}

impl Walk<'_> {
    /// Removes what is in `dir`, in one pass; keeps the first error and goes on.
    fn empty(&mut self, dir: BorrowedFd<'_>, depth: usize) -> io::Result<Removal> {
        for entry in Dir::read_from(dir)? {
            let entry = match entry {
                Ok(entry) => entry,
                // Another process removed the directory itself.
                Err(Errno::NOENT) => break,
                Err(e) => return Err(e.into()),
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if (self.stop)() {
                return Ok(Removal::Stopped);
            }
            if entry.file_type() != FileType::Directory {
                match unlinkat(dir, name, AtFlags::empty()) {
                    Ok(()) => {
                        self.progress = true;
                        continue;
                    }
                    Err(Errno::NOENT) => continue,
                    // The file system gives no types, or it became a directory.
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(e) => {
                        self.note(e);
                        continue;
                    }
                }
            }
            if self.directory(dir, name, depth)? == Removal::Stopped {
                return Ok(Removal::Stopped);
            }
        }
        Ok(Removal::Complete)
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<Removal> {
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.progress = true;
                return Ok(Removal::Complete);
            }
            Err(Errno::NOENT) => return Ok(Removal::Complete),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
            // A mount point (EBUSY) or a file that may not be removed (ENOTDIR).
            Err(e) => {
                self.note(e);
                return Ok(Removal::Complete);
            }
        }
        let dir = match open_dir(parent, name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Removal::Complete),
            Err(e) => {
                self.note(e);
                return Ok(Removal::Complete);
            }
        };
        if depth >= DEPTH {
            self.rename_up(parent, name);
            return Ok(Removal::Complete);
        }
        let mut before;
        loop {
            before = std::mem::replace(&mut self.progress, false);
            let outcome = self.empty(dir.as_fd(), depth + 1);
            let progress = self.progress;
            self.progress |= before;
            if outcome? == Removal::Stopped {
                return Ok(Removal::Stopped);
            }
            match unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) => {
                    self.progress = true;
                    return Ok(Removal::Complete);
                }
                Err(Errno::NOENT) => return Ok(Removal::Complete),
                Err(Errno::NOTEMPTY | Errno::EXIST) if progress => {}
                Err(e) => {
                    self.note(e);
                    return Ok(Removal::Complete);
                }
            }
        }
    }

    fn rename_up(&mut self, parent: BorrowedFd<'_>, name: &CStr) {
        loop {
            self.moved += 1;
            // Renaming over an empty directory is as good as a free name: all of it is being removed.
            match renameat(parent, name, self.top, format!("{RENAMED_UP}{}", self.moved)) {
                Ok(()) => {
                    self.progress = true;
                    return;
                }
                Err(Errno::NOENT) => return,
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(e) => return self.note(e),
            }
        }
    }

    fn note(&mut self, e: Errno) {
        self.error.get_or_insert_with(|| e.into());
    }
}

/// Opens a directory for emptying it, without following anything and without entering a mount.
fn open_dir(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let handle = open_beneath(parent, name, OFlags::PATH)?;
    // Emptying takes read, write and search permission. The owner of an image's 0000 or 0555 directory has not got
    // them without CAP_DAC_OVERRIDE, and giving them to himself before hurts nobody: the directory is going away.
    if u64::from(fstat(&handle)?.st_mode) & 0o700 != 0o700 && !rustix::process::geteuid().is_root() {
        // Only /proc leads from an O_PATH handle to the inode on every kernel; without it the open below says why.
        let _ = rustix::fs::chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), Mode::RWXU);
    }
    open_beneath(parent, name, OFlags::RDONLY)
}

fn open_beneath(parent: BorrowedFd<'_>, name: &CStr, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    loop {
        match openat2(parent, name, flags, Mode::empty(), resolve) {
            // A rename happened anywhere at the same time; the call asks to be repeated.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::PERM) => break,
            other => return other,
        }
    }
    // Before Linux 5.6, or behind a filter: a bind mount of the same file system cannot be told apart this way.
    let dir = openat(parent, name, flags, Mode::empty())?;
    if fstat(&dir)?.st_dev != fstat(parent)?.st_dev {
        return Err(Errno::XDEV);
    }
    Ok(dir)
}
