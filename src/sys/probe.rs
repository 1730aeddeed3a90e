//! What a file system can store, found out by trying.

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::fd::may_lack;
use super::{SysError, open_dir, raw, set_xattr};
use crate::error::Error;

/// A file system's magic number, as `statfs` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FsType(pub u32);

impl FsType {
    /// overlayfs.
    pub const OVERLAY: FsType = FsType(0x794c_7630);
    /// tmpfs.
    pub const TMPFS: FsType = FsType(0x0102_1994);
}

impl fmt::Display for FsType {
    /// Writes the usual name, or the number where it has none here.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0x794c_7630 => "overlay",
            0x0102_1994 => "tmpfs",
            0xef53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x2fc1_2fc1 => "zfs",
            0xca45_1a4e => "bcachefs",
            0xf2f5_2010 => "f2fs",
            0x6969 => "nfs",
            0x6573_5546 => "fuse",
            0xe0f5_e1e2 => "erofs",
            0x7371_7368 => "squashfs",
            0x0102_1997 => "9p",
            0x6a65_6a63 => "virtiofs",
            other => return write!(f, "{other:#x}"),
        };
        f.write_str(name)
    }
}

/// Returns the type of the file system that holds `dir`.
///
/// # Errors
/// What `fstatfs` answers.
pub fn fs_type(dir: impl AsFd) -> Result<FsType, SysError> {
    let stat = rustix::fs::fstatfs(dir.as_fd()).map_err(|e| SysError::new("fstatfs", e).fd(dir.as_fd()))?;
    // The field's width and sign differ between architectures; magic numbers have 32 bits.
    Ok(FsType(stat.f_type as u32))
}

/// Tells whether `dir` lies on overlayfs, which cannot hold an upper directory and refuses `mknod c 0 0`.
///
/// # Errors
/// As [`fs_type`].
pub fn is_overlayfs(dir: impl AsFd) -> Result<bool, SysError> {
    Ok(fs_type(dir)? == FsType::OVERLAY)
}

/// Returns the bytes and inodes that the caller can still use on the file system that holds `dir`.
///
/// A file system that does not count inodes (btrfs) gives `u64::MAX`.
///
/// # Errors
/// What `fstatvfs` answers.
pub fn fs_space(dir: impl AsFd) -> Result<(u64, u64), SysError> {
    let stat = rustix::fs::fstatvfs(dir.as_fd()).map_err(|e| SysError::new("fstatvfs", e).fd(dir.as_fd()))?;
    // What is kept in reserve is kept for root.
    let root = super::has_effective_cap_sys_admin() && !super::in_user_namespace();
    let (blocks, inodes) = if root { (stat.f_bfree, stat.f_ffree) } else { (stat.f_bavail, stat.f_favail) };
    Ok((blocks.saturating_mul(stat.f_frsize), if stat.f_files == 0 { u64::MAX } else { inodes }))
}

/// What a directory's file system lets the caller store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreProbe {
    /// The file system.
    pub fs_type: FsType,
    /// `mknod` of a character device 0:0 works: whiteouts in the kernel's first form.
    pub char_whiteouts: bool,
    /// `trusted.*` xattrs can be set: overlay marks for root.
    pub trusted_xattrs: bool,
    /// `user.*` xattrs can be set on directories and on empty files: overlay marks and xattr whiteouts for `userxattr`.
    pub user_xattrs: bool,
    /// Listings tell the type of an entry, which overlayfs needs.
    pub d_type: bool,
    /// `FICLONE` works: copies share blocks.
    pub reflink: bool,
}

/// Tries in a temporary directory below `dir`, which it removes again, what its file system can store.
///
/// # Errors
/// When the directory cannot be made, listed or removed; a capability that is refused is an answer, not an error.
pub fn probe_store(dir: &Path) -> Result<StoreProbe, Error> {
    let io = |e: Error| Error::io(format!("make a temporary directory in {}", dir.display()), io::Error::other(e));
    probe_store_at(open_dir(dir)?).map_err(io)
}

/// How the name of a probe's directory begins; one that a kill left behind may stand anywhere.
pub(crate) const PROBE: &str = ".unply-probe-";

/// As [`probe_store`], in an open directory.
///
/// # Errors
/// As [`probe_store`].
pub fn probe_store_at(dir: impl AsFd) -> Result<StoreProbe, Error> {
    let dir = dir.as_fd();
    let place = ProbeDir::make(dir)?;
    let probe = probe_in(&place.dir);
    for (name, flags) in PROBES {
        // What is not there was refused; what cannot be removed shows in the removal of the directory.
        let _ = rustix::fs::unlinkat(&place.dir, name, flags);
    }
    rustix::fs::unlinkat(dir, &place.name, AtFlags::REMOVEDIR)
        .map_err(|e| SysError::new("rmdir", e).fd(dir).path(&place.name))?;
    probe
}

/// A directory to try things in. It is locked for as long as its maker lives, so that what a kill left behind can be told
/// from it; whoever made it removes it.
pub(crate) struct ProbeDir {
    pub(crate) name: String,
    dir: OwnedFd,
}

impl ProbeDir {
    /// Makes one in `parent`.
    ///
    /// # Errors
    /// What `mkdirat` and `openat` answer.
    pub(crate) fn make(parent: impl AsFd) -> Result<ProbeDir, SysError> {
        let parent = parent.as_fd();
        let mut number = 0u32;
        loop {
            let name = format!("{PROBE}{}-{number}", std::process::id());
            number += 1;
            match rustix::fs::mkdirat(parent, &name, Mode::RWXU) {
                Ok(()) => {}
                // Another thread's, or a dead process's.
                Err(Errno::EXIST) if number < 1000 => continue,
                Err(e) => return Err(SysError::new("mkdirat", e).fd(parent).path(&name).arg("0700")),
            }
            match rustix::fs::openat(parent, &name, DIRECTORY, Mode::empty()) {
                Ok(dir) => {
                    // Where there are no locks, nobody takes it for dead either.
                    let _ = rustix::fs::flock(&dir, FlockOperation::LockExclusive);
                    // Without a lock it may have been taken for a dead process's, and removed.
                    let there = rustix::fs::openat(parent, &name, DIRECTORY, Mode::empty());
                    if there.is_ok_and(|there| identity(there).ok() == identity(&dir).ok()) {
                        return Ok(ProbeDir { name, dir });
                    }
                }
                Err(Errno::NOENT) if number < 1000 => {}
                Err(e) => return Err(SysError::new("openat", e).fd(parent).path(&name).arg("O_DIRECTORY|O_NOFOLLOW")),
            }
        }
    }

    /// Tells whether the one at `path` was left by a kill.
    ///
    /// # Errors
    /// What `openat` answers, unless that it is gone.
    pub(crate) fn is_dead(path: &Path) -> Result<bool, SysError> {
        match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
            Ok(dir) => Ok(rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(SysError::new("open", e).path(path).arg("O_DIRECTORY|O_NOFOLLOW")),
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a probe makes.
const PROBES: [(&str, AtFlags); 4] = [
    ("file", AtFlags::empty()),
    ("copy", AtFlags::empty()),
    ("dir", AtFlags::REMOVEDIR),
    ("whiteout", AtFlags::empty()),
];

fn probe_in(dir: &OwnedFd) -> Result<StoreProbe, Error> {
    let file = |name: &str| {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| SysError::new("openat", e).fd(dir.as_fd()).path(name).arg("O_RDWR|O_CREAT|O_CLOEXEC"))
    };
    let mut one = file("file")?;
    one.write_all(&[0u8; 4096]).map_err(|e| Error::io("write a probe file", e))?;
    let two = file("copy")?;
    rustix::fs::mkdirat(dir, "dir", Mode::RWXU)
        .map_err(|e| SysError::new("mkdirat", e).fd(dir.as_fd()).path("dir").arg("0700"))?;
    let both = |xattr: &[u8]| [&b"file"[..], b"dir"].iter().all(|name| set_xattr(dir, name, xattr, b"").is_ok());
    let null = rustix::fs::mknodat(dir, "whiteout", FileType::CharacterDevice, Mode::empty(), 0);
    Ok(StoreProbe {
        fs_type: fs_type(dir)?,
        char_whiteouts: null.is_ok(),
        trusted_xattrs: both(b"trusted.unply-probe"),
        user_xattrs: both(b"user.unply-probe"),
        d_type: lists_types(dir).map_err(|e| Error::io("list a probe directory", e))?,
        reflink: rustix::fs::ioctl_ficlone(&two, &one).is_ok(),
    })
}

/// Which of the newer system calls answer here. None is needed: each has a way around it, taken when the call itself is
/// refused, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelCalls {
    /// `openat2` (Linux 5.6).
    pub openat2: bool,
    /// `fchmodat2` (Linux 6.6).
    pub fchmodat2: bool,
    /// `setxattrat`, `getxattrat`, `listxattrat` and `removexattrat` (Linux 6.13).
    pub xattrat: bool,
    /// `statx` (Linux 4.11).
    pub statx: bool,
}

/// Finds out by calling each with an empty name, which changes nothing: a kernel that knows the call says `ENOENT`.
pub fn kernel_calls() -> KernelCalls {
    use rustix::fs::{AtFlags, CWD, OFlags, ResolveFlags, StatxFlags};
    let answers = |result: io::Result<()>| !result.is_err_and(|e| may_lack(&e));
    let name = c"";
    let xattrs = [
        raw::setxattrat(CWD, name, c"user.x", b""),
        raw::getxattrat(CWD, name, c"user.x", &mut []).map(drop),
        raw::listxattrat(CWD, name, &mut []).map(drop),
        raw::removexattrat(CWD, name, c"user.x"),
    ];
    let open = rustix::fs::openat2(CWD, name, OFlags::PATH, Mode::empty(), ResolveFlags::BENEATH);
    let stat = rustix::fs::statx(CWD, name, AtFlags::empty(), StatxFlags::BASIC_STATS);
    KernelCalls {
        openat2: answers(open.map(drop).map_err(io::Error::from)),
        fchmodat2: answers(raw::fchmodat2(CWD, name, 0)),
        xattrat: xattrs.into_iter().all(answers),
        statx: answers(stat.map(drop).map_err(io::Error::from)),
    }
}

fn lists_types(dir: &OwnedFd) -> io::Result<bool> {
    let mut known = true;
    for entry in Dir::read_from(dir)? {
        known &= entry?.file_type() != FileType::Unknown;
    }
    Ok(known)
}

/// Returns the device and inode number behind `dir`, which tell two directories apart.
pub(crate) fn identity(dir: impl AsFd) -> Result<(u64, u64), SysError> {
    let stat = rustix::fs::fstat(dir.as_fd()).map_err(|e| SysError::new("fstat", e).fd(dir.as_fd()))?;
    #[allow(clippy::unnecessary_cast, reason = "the widths differ between architectures")]
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n14_the_probe_answers_and_leaves_nothing_behind() {
        let tmp = tempfile::tempdir().unwrap();
        let probe = probe_store(tmp.path()).unwrap();
        assert!(probe.d_type, "{probe:?}");
        assert_eq!(probe.fs_type, fs_type(File::open(tmp.path()).unwrap()).unwrap());
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
        let initial_root = rustix::process::geteuid().is_root() && !crate::sys::in_user_namespace();
        if initial_root && !probe.fs_type.eq(&FsType::OVERLAY) {
            assert!(probe.char_whiteouts && probe.trusted_xattrs, "{probe:?}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_not_an_answer() {
        let err = probe_store(Path::new("/proc/self")).unwrap_err();
        assert!(err.to_string().contains("/proc/self"), "{err}");
    }

    #[test]
    fn space_is_counted_for_the_caller() {
        let (bytes, inodes) = fs_space(File::open(std::env::temp_dir()).unwrap()).unwrap();
        assert!(bytes > 0 && inodes > 0);
        assert_eq!(FsType(0xef53).to_string(), "ext4");
        assert_eq!(FsType(0x1234).to_string(), "0x1234");
        assert!(!is_overlayfs(File::open("/proc").unwrap()).unwrap());
    }
}
