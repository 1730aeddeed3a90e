//! Removal of whole trees by directory handles.
//!
//! Nothing is followed: no symlink, no mount point. Depth is bounded neither by PATH_MAX nor by the number of open
//! files: what lies deeper than [`DEPTH`] is first renamed up into the directory being removed. Directories whose
//! mode keeps their owner out are opened up. Several processes may remove one tree at once, and others may change it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, unlinkat};
use rustix::io::Errno;

use super::{Dir, failed, meta, stays_on_mount};
use crate::error::{Error, ErrorKind, Result};

/// Directory handles open at once.
const DEPTH: usize = 24;
/// Name prefix of what was renamed up.
const RENAMED_UP: &str = ".unply-removing-";

/// How a removal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing of the tree is left.
    Complete,
    /// `stop` said so; the rest can be removed later.
    Stopped,
}

/// Removes `path` and everything below it; what is not there counts as removed. Symlinks on the way to it are followed.
///
/// # Errors
/// As [`Dir::remove_tree`].
pub fn remove_path(path: &Path, stop: &dyn Fn() -> bool) -> Result<Removal> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed("rmdir", path.as_os_str().as_encoded_bytes(), Errno::INVAL));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match Dir::open(parent) {
        Ok(parent) => parent.remove_tree(name.as_encoded_bytes(), stop),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Removal::Complete),
        Err(e) => Err(e),
    }
}

impl Dir {
    /// Removes `name` and everything below it; what is not there counts as removed.
    ///
    /// # Errors
    /// The first thing that could not be removed; everything else is gone by then. `EXDEV` or `EBUSY`: something is
    /// mounted inside, and it was not touched.
    pub fn remove_tree(&self, name: &[u8], stop: &dyn Fn() -> bool) -> Result<Removal> {
        // This directory stays: its mode is not ours to change, those of what is below are.
        match unlinkat(self, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Removal::Complete),
            // EPERM is what POSIX says for a directory; if it is not one, opening it fails below.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(failed("unlinkat", name, e)),
        }
        let top = match open_for_removal(self, name) {
            Ok(top) => top,
            Err(Errno::NOENT) => return Ok(Removal::Complete),
            Err(e) => return Err(failed("openat", name, e)),
        };
        let mut walk = Walk { top: &top, stop, moved: 0, error: None, progress: false };
        loop {
            walk.progress = false;
            if walk.empty(&top, 0)? == Removal::Stopped {
                return Ok(Removal::Stopped);
            }
            match unlinkat(self, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(Removal::Complete),
                // Something was renamed up or added meanwhile, or reading skipped names while others were removed.
                Err(Errno::NOTEMPTY | Errno::EXIST) if walk.progress => walk.error = None,
                Err(e) => return Err(walk.error.take().unwrap_or_else(|| failed("rmdir", name, e))),
            }
        }
    }
}

struct Walk<'a> {
    top: &'a Dir,
    stop: &'a dyn Fn() -> bool,
    moved: u64,
    error: Option<Error>,
    progress: bool,
}

impl Walk<'_> {
    /// Removes what is in `dir`, in one pass; keeps the first error and goes on.
    fn empty(&mut self, dir: &Dir, depth: usize) -> Result<Removal> {
        for entry in rustix::fs::Dir::read_from(dir).map_err(|e| failed("openat", b".", e))? {
            let entry = match entry {
                Ok(entry) => entry,
                // Another process removed the directory itself.
                Err(Errno::NOENT) => break,
                Err(e) => return Err(failed("getdents64", b".", e)),
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if (self.stop)() {
                return Ok(Removal::Stopped);
            }
            if entry.file_type() != FileType::Directory {
                match unlink(dir, name, AtFlags::empty()) {
                    Ok(()) => {
                        self.progress = true;
                        continue;
                    }
                    Err(Errno::NOENT) => continue,
                    // The file system gives no types, or it became a directory.
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(e) => {
                        self.note("unlinkat", name, e);
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

    fn directory(&mut self, parent: &Dir, name: &[u8], depth: usize) -> Result<Removal> {
        match unlink(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.progress = true;
                return Ok(Removal::Complete);
            }
            Err(Errno::NOENT) => return Ok(Removal::Complete),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
            // A mount point (EBUSY) or a file that may not be removed (ENOTDIR).
            Err(e) => {
                self.note("rmdir", name, e);
                return Ok(Removal::Complete);
            }
        }
        let dir = match open_for_removal(parent, name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Removal::Complete),
            Err(e) => {
                self.note("openat", name, e);
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
            let outcome = self.empty(&dir, depth + 1);
            let progress = self.progress;
            self.progress |= before;
            if outcome? == Removal::Stopped {
                return Ok(Removal::Stopped);
            }
            match unlink(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) => {
                    self.progress = true;
                    return Ok(Removal::Complete);
                }
                Err(Errno::NOENT) => return Ok(Removal::Complete),
                Err(Errno::NOTEMPTY | Errno::EXIST) if progress => {}
                Err(e) => {
                    self.note("rmdir", name, e);
                    return Ok(Removal::Complete);
                }
            }
        }
    }

    fn rename_up(&mut self, parent: &Dir, name: &[u8]) {
        loop {
            self.moved += 1;
            // Renaming over an empty directory is as good as a free name: all of it is being removed.
            match rustix::fs::renameat(parent, name, self.top, format!("{RENAMED_UP}{}", self.moved)) {
                Ok(()) => {
                    self.progress = true;
                    return;
                }
                Err(Errno::NOENT) => return,
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(e) => return self.note("renameat", name, e),
            }
        }
    }

    fn note(&mut self, call: &str, name: &[u8], e: Errno) {
        self.error.get_or_insert_with(|| failed(call, name, e));
    }
}

/// Removes a name; where the directory's mode forbids it to its owner, who is us, the mode is changed first.
fn unlink(dir: &Dir, name: &[u8], flags: AtFlags) -> rustix::io::Result<()> {
    match unlinkat(dir, name, flags) {
        Err(Errno::ACCESS) if meta::set_mode_fd(dir, 0o700).is_ok() => unlinkat(dir, name, flags),
        other => other,
    }
}

/// Opens a directory that is going to be emptied, giving ourselves permission first where the image took it away.
fn open_for_removal(parent: &Dir, name: &[u8]) -> rustix::io::Result<Dir> {
    match parent.try_open_below(name) {
        Err(Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let place = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            stays_on_mount(parent.as_fd(), place.as_fd())?;
            open_up(place.as_fd())?;
            parent.try_open_below(name)
        }
        other => other,
    }
}

/// Only /proc leads from an `O_PATH` handle to the inode on every kernel.
fn open_up(place: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::chmod(crate::sys::proc_self_fd_path(place), Mode::RWXU)
}

#[cfg(test)]
#[path = "tests_remove.rs"]
mod tests;
