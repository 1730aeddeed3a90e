//! The directory that a flattened image appears in: complete or not at all.
//!
//! The tree is staged in a directory of its own, beside the target, and takes its place by one rename. Where the target is a mount
//! point, which no rename can replace, the staging stands inside it and doubles as the mark that the target is unfinished:
//! it goes last. A staging whose lock is free belongs to nobody alive and is removed by the next run.
//!
//! Paths lead to the directory above the target and no further: what is inside is reached by handle, so that nobody who
//! swaps a directory there for a symlink leads us out.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;
use crate::root::Dir;
use crate::sys;

const PREFIX: &str = ".unply-";
const LOCK: &str = "lock";

/// A target that is being prepared; dropping it removes what was staged.
#[derive(Debug)]
pub(super) struct Target {
    /// Where it will be.
    path: PathBuf,
    /// The directory that holds the staging: the target's parent, or the target itself where `inside`.
    home: Dir,
    /// The staging's name in `home`.
    name: Vec<u8>,
    staging: Dir,
    inside: bool,
    _lock: File,
    done: bool,
}

fn at(call: &str, path: &Path, e: std::io::Error) -> Error {
    Error::io(format!("{call} {}", path.display()), e)
}

impl Target {
    /// Checks `dir`, removes what dead runs left beside or in it, and makes the staging directory.
    ///
    /// # Errors
    /// `AlreadyExists` where `dir` is not empty or no directory; `Busy` where another run is unpacking into it.
    pub(super) fn prepare(dir: &Path) -> Result<Target> {
        let dir = std::path::absolute(dir).map_err(|e| at("resolve", dir, e))?;
        let (inside, home) = match fs::symlink_metadata(&dir) {
            Ok(meta) if !meta.is_dir() => {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("{} exists and is no directory", dir.display()),
                )
                .with_hint("choose a directory that is absent or empty"));
            }
            Ok(_) if is_mount_point(&dir)? => (true, dir.clone()),
            Ok(_) => (false, parent_of(&dir)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => (false, parent_of(&dir)?),
            Err(e) => return Err(at("look at", &dir, e)),
        };
        clean(&home, inside)?;
        check_empty(&dir)?;
        let missing = |e: Error| match e.kind() {
            ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("{} does not exist", home.display()))
                .with_hint("make it first, or choose another target"),
            _ => e,
        };
        let above = Dir::open(&home).map_err(missing)?;
        let (name, staging, lock) = stage(&above, &home)?;
        // What the place gives its children by setgid bit or default ACL never reaches the rootfs.
        staging.forget_the_place(0o700)?;
        fail_point("target.prepared")?;
        Ok(Target { path: dir, home: above, name, staging, inside, _lock: lock, done: false })
    }

    /// Returns a directory of its own, on the target's file system.
    pub(super) fn staging(&self) -> &Dir {
        &self.staging
    }

    /// Returns where it will be.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the finished tree, the directory `name` of the staging, in the target's place; `tree` is a handle on it.
    ///
    /// # Errors
    /// Errors of system calls; the target is then as it was.
    pub(super) fn publish(mut self, name: &[u8], tree: &Dir, durable: bool) -> Result<()> {
        fail_point("target.complete")?;
        if durable {
            // This handle was opened before the first write, so it hears of every write-back error since.
            fail_point("syncfs")?;
            sys::sync_fs(self.staging.as_fd()).map_err(Error::from)?;
        }
        fail_point("target.synced")?;
        if self.inside {
            let dir = &self.home;
            // Before anything is moved out of it, which would change its mtime.
            let root = crate::root::NodeMeta { meta: tree.stat_self()?.meta, xattrs: tree.xattrs_self()? };
            for listed in tree.list()? {
                tree.rename(&listed.name, dir, &listed.name)?;
                fail_point("target.moved-one")?;
            }
            self.remove()?;
            self.done = true;
            fail_point("target.unmarked")?;
            self.home.apply_meta_self(&root, true, &|_| false)?;
            if durable {
                fail_point("syncfs")?;
                sys::sync_fs(self.home.as_fd()).map_err(Error::from)?;
            }
            return Ok(());
        }
        let at_last = self.path.file_name().unwrap_or_default().as_encoded_bytes();
        match rustix::fs::renameat(&self.staging, name, &self.home, at_last) {
            Ok(()) => self.home.check_is(at_last, tree)?,
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Err(not_empty(&self.path)),
            Err(e) => return Err(at("put the tree in place at", &self.path, e.into())),
        }
        fail_point("target.placed")?;
        if durable {
            rustix::fs::fsync(&self.home).map_err(|e| at("sync the directory of", &self.path, e.into()))?;
        }
        self.done = true;
        fail_point("target.before-removal")?;
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        remove_staging(&self.home, &self.name)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if self.inside
            && let Err(e) = empty(&self.home, &self.name)
        {
            tracing::warn!(path = %self.path.display(), error = %e, "an unfinished tree is left behind");
        }
        if let Err(e) = self.remove() {
            tracing::warn!(path = %self.path.display(), error = %e, "staging is left behind");
        }
    }
}

fn parent_of(dir: &Path) -> Result<PathBuf> {
    match dir.parent() {
        Some(parent) => Ok(parent.to_path_buf()),
        None => Err(Error::new(ErrorKind::AlreadyExists, "the root directory cannot be a target")),
    }
}

fn is_mount_point(dir: &Path) -> Result<bool> {
    match rustix::fs::statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
        Ok(st) if st.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            return Ok(st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        }
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => {}
        Err(e) => return Err(at("statx", dir, e.into())),
    }
    // Before Linux 5.8, or where a filter refuses the call: another device than the parent's.
    let parent = parent_of(dir)?;
    let here = rustix::fs::lstat(dir).map_err(|e| at("lstat", dir, e.into()))?;
    let above = rustix::fs::stat(&parent).map_err(|e| at("stat", &parent, e.into()))?;
    Ok(here.st_dev != above.st_dev)
}

/// Makes a staging directory in `home` and takes its lock.
///
/// A run that cleans up may take one without a lock, or with a free one, for a dead run's and remove it; another is made then.
fn stage(above: &Dir, home: &Path) -> Result<(Vec<u8>, Dir, File)> {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(10)
            .tempdir_in(home)
            .map_err(|e| at("create a directory in", home, e))?
            .keep();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        let staged = (|| -> Result<Option<(Dir, File)>> {
            fail_point("target.before-lock")?;
            let staging = above.open_child(&name)?;
            let lock = File::from(staging.new_file(LOCK.as_bytes())?);
            fail_point("target.before-own")?;
            Ok(own(&lock)?.then_some((staging, lock)))
        })();
        match staged {
            Ok(Some((staging, lock))) => return Ok((name, staging, lock)),
            Ok(None) => {}
            Err(_) if above.stat(&name)?.is_none() => {}
            Err(e) => {
                // The error matters more; what stays is removed by the next run.
                let _ = remove_staging(above, &name);
                return Err(e);
            }
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("other runs keep removing what this one stages in {}", home.display())))
}

/// Takes a staging's lock; says whether it was free and is still the staging's.
fn own(lock: &File) -> Result<bool> {
    match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(e) => return Err(Error::io("flock", e.into())),
    }
    Ok(rustix::fs::fstat(lock).map_err(|e| Error::io("fstat", e.into()))?.st_nlink > 0)
}

/// Removes a staging, its lock file last: a kill on the way leaves one that the next run knows for a dead run's.
fn remove_staging(home: &Dir, name: &[u8]) -> Result<()> {
    if home.stat(name)?.is_none() {
        return Ok(());
    }
    let staging = home.open_child(name)?;
    for listed in staging.list()?.iter().filter(|listed| listed.name != LOCK.as_bytes()) {
        staging.remove_all(&listed.name)?;
        fail_point("target.removed-one")?;
    }
    staging.unlink(LOCK.as_bytes())?;
    fail_point("target.unlocked")?;
    home.remove_all(name)
}

fn not_empty(dir: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("{} is not empty", dir.display()))
        .with_hint("choose a directory that is absent or empty")
}

fn check_empty(dir: &Path) -> Result<()> {
    let names = match fs::read_dir(dir) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at("list", dir, e)),
    };
    for name in names {
        let name = name.map_err(|e| at("list", dir, e))?.file_name();
        if name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            return Err(Error::new(ErrorKind::Busy, format!("another run is unpacking into {}", dir.display())));
        }
        if name != "lost+found" {
            return Err(not_empty(dir));
        }
    }
    Ok(())
}

/// Removes stagings in `home` whose owner is dead; with `inside`, also what such a run had put in place already.
fn clean(home: &Path, inside: bool) -> Result<()> {
    let names = match fs::read_dir(home) {
        Ok(names) => names,
        // Making the staging says what is wrong.
        Err(_) => return Ok(()),
    };
    for name in names.flatten() {
        if !name.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = name.path();
        let Ok(lock) = File::open(path.join(LOCK)) else {
            // Its run was killed before it made a lock or after it removed it, or is about to make one and will notice
            // that the directory is gone. One that is not empty is not ours.
            let _ = fs::remove_dir(&path);
            continue;
        };
        if !own(&lock)? {
            continue;
        }
        let home = Dir::open(home)?;
        if inside {
            empty(&home, name.file_name().as_encoded_bytes())?;
        }
        remove_staging(&home, name.file_name().as_encoded_bytes())?;
    }
    Ok(())
}

/// Empties the target of an unfinished run, but for `lost+found` and the staging that marks it.
fn empty(dir: &Dir, but: &[u8]) -> Result<()> {
    for listed in dir.list()? {
        if listed.name != b"lost+found" && listed.name != but {
            dir.remove_all(&listed.name)?;
        }
    }
    Ok(())
}
