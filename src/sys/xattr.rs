//! Extended attributes by descriptor, and of a name inside a directory without following or opening it.
//!
//! The `*_xattr(dirfd, name, …)` functions reach symlinks, devices and files of mode 000: the `*xattrat` calls of
//! Linux 6.13, else the `l*xattr` calls on `/proc/self/fd/PARENT/name`. The `*_fd` functions take a descriptor of any
//! kind; one opened with `O_PATH` goes through `/proc/self/fd/N`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::XattrFlags;

use super::fd::{c_name, may_lack, proc_self_fd_path};
use super::{SysError, raw};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of the kernel, in bytes.
const XATTR_MAX: usize = 65536;

fn below(dirfd: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    proc_self_fd_path(dirfd).join(std::ffi::OsStr::from_bytes(name))
}

/// A name inside a directory together with an xattr's name, ready for the kernel.
struct Node<'a> {
    dirfd: BorrowedFd<'a>,
    name: CString,
}

impl<'a> Node<'a> {
    /// `below` would leave the directory with an absolute name, and `lsetxattr` would follow a trailing slash.
    fn new(dirfd: BorrowedFd<'a>, name: &[u8]) -> io::Result<Self> {
        if name.is_empty() || name.starts_with(b"/") || name.ends_with(b"/") {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Node { dirfd, name: c_name(name)? })
    }

    fn path(&self) -> PathBuf {
        below(self.dirfd, self.name.to_bytes())
    }

    fn set(&self, xattr: &CStr, value: &[u8]) -> io::Result<()> {
        match raw::setxattrat(self.dirfd, &self.name, xattr, value) {
            Err(e) if may_lack(&e) => self.set_through_proc(xattr, value),
            other => other,
        }
    }

    fn set_through_proc(&self, xattr: &CStr, value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::lsetxattr(self.path(), xattr, value, XattrFlags::empty())?)
    }

    fn get(&self, xattr: &CStr, buf: &mut [u8]) -> io::Result<usize> {
        match raw::getxattrat(self.dirfd, &self.name, xattr, buf) {
            Err(e) if may_lack(&e) => self.get_through_proc(xattr, buf),
            other => other,
        }
    }

    fn get_through_proc(&self, xattr: &CStr, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::fs::lgetxattr(self.path(), xattr, buf)?)
    }

    fn list(&self, buf: &mut [u8]) -> io::Result<usize> {
        match raw::listxattrat(self.dirfd, &self.name, buf) {
            Err(e) if may_lack(&e) => self.list_through_proc(buf),
            other => other,
        }
    }

    fn list_through_proc(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::fs::llistxattr(self.path(), buf)?)
    }

    fn remove(&self, xattr: &CStr) -> io::Result<()> {
        match raw::removexattrat(self.dirfd, &self.name, xattr) {
            Err(e) if may_lack(&e) => self.remove_through_proc(xattr),
            other => other,
        }
    }

    fn remove_through_proc(&self, xattr: &CStr) -> io::Result<()> {
        Ok(rustix::fs::lremovexattr(self.path(), xattr)?)
    }
}

/// Reads what `call` writes: 256 bytes are enough nearly always, else the size is asked for; a value that grows
/// meanwhile is asked for again.
fn read_growing(mut call: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buf = vec![0u8; 256];
    loop {
        match call(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && buf.len() < XATTR_MAX => {
                let size = call(&mut [])?;
                buf.resize(size.clamp(buf.len() * 2, XATTR_MAX), 0);
            }
            Err(e) => return Err(e),
        }
    }
}

fn absent_is_none(result: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        Err(e) => Err(e),
    }
}

fn split_names(list: &[u8]) -> Vec<Vec<u8>> {
    list.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Sets `xattr` (the full name, with its namespace) of `name` inside `dirfd`, replacing a value it has.
///
/// # Errors
/// What the kernel answers: `EPERM` where the namespace is not for the caller or the node's type, `EOPNOTSUPP` where
/// the file system has no such namespace, `ENOSPC` or `E2BIG` where the value does not fit; `EINVAL` for a name that is
/// empty, absolute or ends in a slash.
pub fn set_xattr(dirfd: impl AsFd, name: &[u8], xattr: &[u8], value: &[u8]) -> Result<(), SysError> {
    let dirfd = dirfd.as_fd();
    Node::new(dirfd, name)
        .and_then(|node| node.set(&c_name(xattr)?, value))
        .map_err(|e| SysError::new("setxattrat", e).fd(dirfd).bytes(name).bytes(xattr).arg(value.len()))
}

/// Returns the value of `xattr` of `name` inside `dirfd`, or `None` where it has none of that name.
///
/// # Errors
/// What the kernel answers other than `ENODATA`; see [`set_xattr`] for names.
pub fn get_xattr(dirfd: impl AsFd, name: &[u8], xattr: &[u8]) -> Result<Option<Vec<u8>>, SysError> {
    let dirfd = dirfd.as_fd();
    Node::new(dirfd, name)
        .and_then(|node| {
            let xattr = c_name(xattr)?;
            absent_is_none(read_growing(|buf| node.get(&xattr, buf)))
        })
        .map_err(|e| SysError::new("getxattrat", e).fd(dirfd).bytes(name).bytes(xattr))
}

/// Returns the xattr names of `name` inside `dirfd`, in the kernel's order; those the caller may not see are absent.
///
/// # Errors
/// What the kernel answers; see [`set_xattr`] for names.
pub fn list_xattrs(dirfd: impl AsFd, name: &[u8]) -> Result<Vec<Vec<u8>>, SysError> {
    let dirfd = dirfd.as_fd();
    Node::new(dirfd, name)
        .and_then(|node| read_growing(|buf| node.list(buf)))
        .map(|list| split_names(&list))
        .map_err(|e| SysError::new("listxattrat", e).fd(dirfd).bytes(name))
}

/// Removes `xattr` of `name` inside `dirfd`.
///
/// # Errors
/// `ENODATA` where there is none of that name; otherwise as [`set_xattr`].
pub fn remove_xattr(dirfd: impl AsFd, name: &[u8], xattr: &[u8]) -> Result<(), SysError> {
    let dirfd = dirfd.as_fd();
    Node::new(dirfd, name)
        .and_then(|node| node.remove(&c_name(xattr)?))
        .map_err(|e| SysError::new("removexattrat", e).fd(dirfd).bytes(name).bytes(xattr))
}

/// Runs the call by descriptor, and where that is an `O_PATH` one (`EBADF`) the call by its name in `/proc`.
fn by_fd_or_proc<T>(
    fd: BorrowedFd<'_>,
    by_fd: impl FnOnce() -> rustix::io::Result<T>,
    by_path: impl FnOnce(PathBuf) -> rustix::io::Result<T>,
) -> io::Result<T> {
    match by_fd() {
        Err(rustix::io::Errno::BADF) => Ok(by_path(proc_self_fd_path(fd))?),
        other => Ok(other?),
    }
}

/// Sets `xattr` of the node behind `fd`, of whatever kind the descriptor is.
///
/// # Errors
/// As [`set_xattr`].
pub fn set_xattr_fd(fd: impl AsFd, xattr: &[u8], value: &[u8]) -> Result<(), SysError> {
    let fd = fd.as_fd();
    let none = XattrFlags::empty();
    by_fd_or_proc(fd, || rustix::fs::fsetxattr(fd, xattr, value, none), |p| rustix::fs::setxattr(p, xattr, value, none))
        .map_err(|e| SysError::new("fsetxattr", e).fd(fd).bytes(xattr).arg(value.len()))
}

/// Returns the value of `xattr` of the node behind `fd`, or `None` where it has none of that name.
///
/// # Errors
/// As [`get_xattr`].
pub fn get_xattr_fd(fd: impl AsFd, xattr: &[u8]) -> Result<Option<Vec<u8>>, SysError> {
    let fd = fd.as_fd();
    absent_is_none(read_growing(|buf| {
        let len = match rustix::fs::fgetxattr(fd, xattr, &mut *buf) {
            Err(rustix::io::Errno::BADF) => rustix::fs::getxattr(proc_self_fd_path(fd), xattr, &mut *buf),
            other => other,
        };
        Ok(len?)
    }))
    .map_err(|e| SysError::new("fgetxattr", e).fd(fd).bytes(xattr))
}

/// Returns the xattr names of the node behind `fd`, in the kernel's order.
///
/// # Errors
/// As [`list_xattrs`].
pub fn list_xattrs_fd(fd: impl AsFd) -> Result<Vec<Vec<u8>>, SysError> {
    let fd = fd.as_fd();
    read_growing(|buf| {
        let len = match rustix::fs::flistxattr(fd, &mut *buf) {
            Err(rustix::io::Errno::BADF) => rustix::fs::listxattr(proc_self_fd_path(fd), &mut *buf),
            other => other,
        };
        Ok(len?)
    })
    .map(|list| split_names(&list))
    .map_err(|e| SysError::new("flistxattr", e).fd(fd))
}

/// Removes `xattr` of the node behind `fd`.
///
/// # Errors
/// As [`remove_xattr`].
pub fn remove_xattr_fd(fd: impl AsFd, xattr: &[u8]) -> Result<(), SysError> {
    let fd = fd.as_fd();
    by_fd_or_proc(fd, || rustix::fs::fremovexattr(fd, xattr), |p| rustix::fs::removexattr(p, xattr))
        .map_err(|e| SysError::new("fremovexattr", e).fd(fd).bytes(xattr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{open_dir_path, open_path_at};
    use std::os::unix::fs::symlink;

    /// The kernel allows `user.*` on files and directories only; `trusted.*` reaches every node but needs root.
    fn trusted_is_allowed(dir: BorrowedFd<'_>) -> bool {
        match set_xattr(dir, b"f", b"trusted.unply-probe", b"") {
            Ok(()) => true,
            Err(e) if e.errno() == Some(libc::EPERM) => {
                assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "CI needs root: {e}");
                eprintln!("SKIP: {e}");
                false
            }
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn xattrs_of_files_symlinks_and_devices_on_both_ways_without_following() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("f"), "x").unwrap();
        symlink("f", tmp.path().join("l")).unwrap();
        let dir = open_dir_path(tmp.path()).unwrap();
        if !trusted_is_allowed(dir.as_fd()) {
            return;
        }
        rustix::fs::mknodat(&dir, "p", rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for name in ["f", "l", "p"] {
            let node = Node::new(dir.as_fd(), name.as_bytes()).unwrap();
            node.set(c"trusted.new", b"1").unwrap();
            node.set_through_proc(c"trusted.old", b"").unwrap();
            let mut buf = [0u8; 8];
            assert_eq!(node.get_through_proc(c"trusted.new", &mut buf).unwrap(), 1);
            assert_eq!(get_xattr(&dir, name.as_bytes(), b"trusted.old").unwrap(), Some(vec![]));
            assert_eq!(get_xattr(&dir, name.as_bytes(), b"trusted.none").unwrap(), None);
            let listed = list_xattrs(&dir, name.as_bytes()).unwrap();
            assert_eq!(split_names(&read_growing(|b| node.list_through_proc(b)).unwrap()), listed);
            assert!(listed.contains(&b"trusted.new".to_vec()) && listed.contains(&b"trusted.old".to_vec()));

            let place = open_path_at(&dir, name.as_bytes()).unwrap();
            set_xattr_fd(&place, b"trusted.place", name.as_bytes()).unwrap();
            assert_eq!(get_xattr_fd(&place, b"trusted.place").unwrap(), Some(name.as_bytes().to_vec()));
            assert!(list_xattrs_fd(&place).unwrap().contains(&b"trusted.place".to_vec()));
            remove_xattr_fd(&place, b"trusted.place").unwrap();

            node.remove_through_proc(c"trusted.new").unwrap();
            remove_xattr(&dir, name.as_bytes(), b"trusted.old").unwrap();
            assert_eq!(remove_xattr(&dir, name.as_bytes(), b"trusted.old").unwrap_err().errno(), Some(libc::ENODATA));
        }
        set_xattr(&dir, b"l", b"trusted.mine", b"").unwrap();
        assert_eq!(get_xattr(&dir, b"f", b"trusted.mine").unwrap(), None, "the symlink was followed");
    }

    #[test]
    fn long_values_are_read_whole() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("f"), "x").unwrap();
        let dir = open_dir_path(tmp.path()).unwrap();
        let value = vec![7u8; 2000];
        match set_xattr(&dir, b"f", b"user.long", &value) {
            Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => return eprintln!("SKIP: {e}"),
            other => other.unwrap(),
        }
        assert_eq!(get_xattr(&dir, b"f", b"user.long").unwrap(), Some(value));
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let dir = open_dir_path(std::path::Path::new("/tmp")).unwrap();
        for name in [&b""[..], b"/etc/passwd", b"x/", b"a\0b"] {
            let err = set_xattr(&dir, name, b"user.x", b"").unwrap_err();
            assert_eq!(err.errno(), Some(libc::EINVAL), "{err}");
        }
    }
}
