//! Opening directories, naming descriptors, and calls on one name inside a directory.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{SysError, raw};

/// Opens a directory for reading, with `O_CLOEXEC`; symlinks in `path` are followed.
///
/// # Errors
/// What `open` answers, `ENOTDIR` for anything but a directory included.
pub fn open_dir(path: &Path) -> Result<OwnedFd, SysError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| SysError::new("open", e).path(path).arg("O_RDONLY|O_DIRECTORY|O_CLOEXEC"))
}

/// Opens a directory as a mere place (`O_PATH`), which needs no permission to read it; symlinks are followed.
///
/// # Errors
/// As [`open_dir`].
pub fn open_dir_path(path: &Path) -> Result<OwnedFd, SysError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| SysError::new("open", e).path(path).arg("O_PATH|O_DIRECTORY|O_CLOEXEC"))
}

/// Opens `name` inside `dirfd` as a mere place, whatever its type, a symlink itself included.
///
/// # Errors
/// What `openat` answers; `EINVAL` when `name` holds a NUL.
pub fn open_path_at(dirfd: impl AsFd, name: &[u8]) -> Result<OwnedFd, SysError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dirfd.as_fd(), name, flags, Mode::empty())
        .map_err(|e| SysError::new("openat", e).fd(dirfd.as_fd()).bytes(name).arg("O_PATH|O_NOFOLLOW|O_CLOEXEC"))
}

/// Returns the name under which `/proc` shows a descriptor of this process; it stands for the open file itself.
pub fn proc_self_fd_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Makes a C string of a name, or answers `EINVAL` in the place of the call it was meant for.
pub(super) fn c_name(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Tells whether an answer may mean that the kernel lacks the call: `ENOSYS`, or `EPERM` from an old seccomp filter
/// (filters written before a call exists answer `EPERM`, <https://github.com/moby/moby/issues/42963>). Where `EPERM`
/// is the truth, the fallback meets it again.
pub(super) fn may_lack(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

/// Sets the permission bits of `name` inside `dirfd` without following a symlink and without opening the node.
///
/// `fchmodat2` (Linux 6.6), else the node is pinned with `O_PATH` and changed through `/proc/self/fd`; devices and
/// files of mode 000 work either way.
///
/// # Errors
/// `EOPNOTSUPP` when `name` is a symlink; otherwise what the kernel answers.
pub fn fchmodat_nofollow(dirfd: impl AsFd, name: &[u8], mode: u32) -> Result<(), SysError> {
    let dirfd = dirfd.as_fd();
    let fail = |e: io::Error| {
        SysError::new("fchmodat2", e).fd(dirfd).bytes(name).arg(format_args!("0{mode:o}")).arg("AT_SYMLINK_NOFOLLOW")
    };
    let c = c_name(name).map_err(fail)?;
    match raw::fchmodat2(dirfd, &c, mode) {
        Ok(()) => Ok(()),
        Err(e) if may_lack(&e) => chmod_through_proc(dirfd, name, mode),
        Err(e) => Err(fail(e)),
    }
}

fn chmod_through_proc(dirfd: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), SysError> {
    let node = open_path_at(dirfd, name)?;
    let stat = rustix::fs::fstat(&node).map_err(|e| SysError::new("fstat", e).fd(node.as_fd()))?;
    let fail =
        |e: rustix::io::Errno| SysError::new("chmod", e).path(proc_self_fd_path(&node)).arg(format_args!("0{mode:o}"));
    // Older kernels change a symlink's mode on some file systems and half-fail on others: refused like fchmodat2 does.
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink() {
        return Err(fail(rustix::io::Errno::OPNOTSUPP));
    }
    rustix::fs::chmod(proc_self_fd_path(&node), Mode::from_raw_mode(mode)).map_err(fail)
}

/// Renames `from` to `to`, which must not exist yet.
///
/// `renameat2` with `RENAME_NOREPLACE` (Linux 3.15, and not every file system); else a look whether `to` is there and
/// then a plain rename, which only somebody who works in the same directory without holding the caller's lock could slip
/// something between.
///
/// # Errors
/// `EEXIST` where `to` exists; otherwise what the kernel answers.
pub fn rename_new(
    from_dir: impl AsFd,
    from: impl rustix::path::Arg,
    to_dir: impl AsFd,
    to: impl rustix::path::Arg,
) -> rustix::io::Result<()> {
    use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, statat};
    use rustix::io::Errno;
    let (from, to) = (from.into_c_str()?, to.into_c_str()?);
    match renameat_with(&from_dir, &*from, &to_dir, &*to, RenameFlags::NOREPLACE) {
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => {}
        other => return other,
    }
    match statat(&to_dir, &*to, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => renameat(from_dir, &*from, to_dir, &*to),
        Err(e) => Err(e),
    }
}

/// Makes `command`, once started, see `root` as `/` and stand in it, with no signal blocked.
///
/// `soft_files` gives it a soft limit of open files other than the caller's. Starting it needs `CAP_SYS_CHROOT`.
///
/// # Errors
/// As [`open_dir_path`]; what entering the root answers is the error of starting the command.
pub fn enter_root(command: &mut std::process::Command, root: &Path, soft_files: Option<u64>) -> Result<(), SysError> {
    raw::enter_root(command, open_dir_path(root)?, soft_files);
    Ok(())
}

/// Writes the file system that holds `fd` to its device.
///
/// # Errors
/// A write error since `fd` was opened is reported once (Linux 5.8); open the descriptor before the first write.
pub fn sync_fs(fd: impl AsFd) -> Result<(), SysError> {
    rustix::fs::syncfs(fd.as_fd()).map_err(|e| SysError::new("syncfs", e).fd(fd.as_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn chmod_changes_the_node_and_refuses_a_symlink_on_both_ways() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("f"), "x").unwrap();
        symlink("f", tmp.path().join("l")).unwrap();
        let dir = open_dir_path(tmp.path()).unwrap();
        let mode = |name: &str| std::fs::symlink_metadata(tmp.path().join(name)).unwrap().mode() & 0o7777;
        type Way = fn(BorrowedFd<'_>, &[u8], u32) -> Result<(), SysError>;
        let first: Way = |d, n, m| fchmodat_nofollow(d, n, m);
        for (way, bits) in [(first, 0o4711), (chmod_through_proc as Way, 0o000)] {
            way(dir.as_fd(), b"f", bits).unwrap();
            assert_eq!(mode("f"), bits);
            let err = way(dir.as_fd(), b"l", 0o600).unwrap_err();
            assert_eq!(err.errno(), Some(libc::EOPNOTSUPP), "{err}");
            assert_eq!(mode("f"), bits, "the symlink was followed");
            assert_eq!(way(dir.as_fd(), b"none", 0o600).unwrap_err().errno(), Some(libc::ENOENT));
        }
        std::fs::set_permissions(tmp.path().join("f"), PermissionsExt::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_name_with_nul_is_refused_not_cut() {
        let dir = open_dir_path(Path::new("/")).unwrap();
        assert_eq!(fchmodat_nofollow(&dir, b"tmp\0x", 0o777).unwrap_err().errno(), Some(libc::EINVAL));
        assert_eq!(open_path_at(&dir, b"tmp\0x").unwrap_err().errno(), Some(libc::EINVAL));
    }
}
