//! Metadata of one node: owner, xattrs, mode, times, in the order that keeps all of them (rule M1).

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{Dir, failed};
use crate::error::Result;
use crate::sys::{self, SysError};
use crate::tar::Timestamp;

/// Permission bits, owner and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Access time.
    pub atime: Timestamp,
}

impl Meta {
    pub(super) fn from_raw(st: &rustix::fs::Stat) -> Meta {
        Meta {
            mode: st.st_mode & 0o7777,
            uid: st.st_uid,
            gid: st.st_gid,
            mtime: Timestamp { seconds: st.st_mtime, nanos: u32::try_from(st.st_mtime_nsec).unwrap_or(0) },
            atime: Timestamp { seconds: st.st_atime, nanos: u32::try_from(st.st_atime_nsec).unwrap_or(0) },
        }
    }

    fn timestamps(&self) -> Timestamps {
        let spec = |t: Timestamp| Timespec { tv_sec: t.seconds, tv_nsec: t.nanos.into() };
        Timestamps { last_access: spec(self.atime), last_modification: spec(self.mtime) }
    }
}

/// Metadata with extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeMeta {
    /// Permission bits, owner, times.
    pub meta: Meta,
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Returns what the kernel answered; every failed call has a number.
fn errno(err: &SysError) -> Errno {
    Errno::from_raw_os_error(err.errno().unwrap_or(libc::EIO))
}

/// Takes a file system without xattrs for one that has none set.
fn none_where_unsupported<T>(result: std::result::Result<Option<T>, SysError>) -> Result<Option<T>> {
    match result {
        Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => Ok(None),
        other => Ok(other?),
    }
}

/// Sets owner by descriptor.
pub fn set_owner_fd(fd: impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// Sets permission bits by descriptor.
pub fn set_mode_fd(fd: impl AsFd, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))
}

/// Sets times by descriptor.
pub fn set_times_fd(fd: impl AsFd, meta: &Meta) -> rustix::io::Result<()> {
    rustix::fs::futimens(fd, &meta.timestamps())
}

/// Returns the modification time by descriptor.
pub fn mtime_fd(fd: impl AsFd) -> rustix::io::Result<Timestamp> {
    Ok(Meta::from_raw(&rustix::fs::fstat(fd)?).mtime)
}

/// Sets one xattr by descriptor (a real one, not `O_PATH`).
pub fn set_xattr_fd(fd: impl AsFd, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
}

impl Dir {
    /// Sets the owner of `name`, not following it.
    pub fn set_owner(&self, name: &[u8], uid: u32, gid: u32) -> Result<()> {
        rustix::fs::chownat(self, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("fchownat", name, e))
    }

    /// Sets the permission bits of `name`, which must not be a symlink.
    pub fn set_mode(&self, name: &[u8], mode: u32) -> Result<()> {
        // Neither opened for reading (mode 000, devices: a device's open has effects) nor by a path that could follow.
        Ok(sys::fchmodat_nofollow(self, name, mode)?)
    }

    /// Sets the times of `name`, not following it.
    pub fn set_times(&self, name: &[u8], meta: &Meta) -> Result<()> {
        rustix::fs::utimensat(self, name, &meta.timestamps(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("utimensat", name, e))
    }

    /// Sets one xattr of `name`, not following it; the errno is left to the caller, who knows which failures are tolerable.
    pub fn set_xattr(&self, name: &[u8], xattr: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        sys::set_xattr(self, name, xattr, value).map_err(|e| errno(&e))
    }

    /// Sets one xattr of the directory itself.
    pub fn set_xattr_self(&self, xattr: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        set_xattr_fd(self, xattr, value)
    }

    /// Returns one xattr of `name`, not following it.
    pub fn get_xattr(&self, name: &[u8], xattr: &[u8]) -> Result<Option<Vec<u8>>> {
        none_where_unsupported(sys::get_xattr(self, name, xattr))
    }

    /// Returns one xattr of the directory itself.
    pub fn get_xattr_self(&self, xattr: &[u8]) -> Result<Option<Vec<u8>>> {
        read_xattr(|buf| rustix::fs::fgetxattr(self, xattr, buf)).map_err(|e| failed("fgetxattr", xattr, e))
    }

    /// Removes one xattr of the directory itself; absent is no error.
    pub fn remove_xattr_self(&self, xattr: &[u8]) -> Result<()> {
        match rustix::fs::fremovexattr(self, xattr) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(failed("fremovexattr", xattr, e)),
        }
    }

    /// Returns all xattrs of `name` that are visible to the caller, not following it.
    pub fn xattrs(&self, name: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let names = none_where_unsupported(sys::list_xattrs(self, name).map(Some))?.unwrap_or_default();
        let mut out = Vec::new();
        for xattr in names {
            if let Some(value) = self.get_xattr(name, &xattr)? {
                out.push((xattr, value));
            }
        }
        Ok(out)
    }

    /// Returns all xattrs of the directory itself that are visible to the caller.
    pub fn xattrs_self(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        xattrs_of(self)
    }

    /// Undoes what the place gave a directory that was just made (default ACL, setgid bit, umask): exactly this mode.
    pub fn forget_the_place(&self, mode: u32) -> Result<()> {
        for acl in [&b"system.posix_acl_default"[..], b"system.posix_acl_access"] {
            self.remove_xattr_self(acl)?;
        }
        set_mode_fd(self, mode).map_err(|e| failed("fchmod", b".", e))
    }

    /// Gives `name` this metadata: owner, xattrs (added to what is there), mode unless it is a symlink, times; nothing is followed.
    pub fn apply_meta(&self, name: &[u8], node: &NodeMeta, owner: bool, is_symlink: bool) -> Result<()> {
        if owner {
            self.set_owner(name, node.meta.uid, node.meta.gid)?;
        }
        for (xattr, value) in &node.xattrs {
            self.set_xattr(name, xattr, value).map_err(|e| failed("lsetxattr", xattr, e))?;
        }
        if !is_symlink {
            self.set_mode(name, node.meta.mode)?;
        }
        self.set_times(name, &node.meta)
    }

    /// Gives the directory itself this metadata: owner, then xattrs (replacing what is there, but for those `keep` names), mode, times.
    pub fn apply_meta_self(&self, node: &NodeMeta, owner: bool, keep: &dyn Fn(&[u8]) -> bool) -> Result<()> {
        if owner {
            set_owner_fd(self, node.meta.uid, node.meta.gid).map_err(|e| failed("fchown", b".", e))?;
        }
        for (name, _) in self.xattrs_self()? {
            if !keep(&name) && !node.xattrs.iter().any(|(n, _)| *n == name) {
                self.remove_xattr_self(&name)?;
            }
        }
        for (name, value) in &node.xattrs {
            self.set_xattr_self(name, value).map_err(|e| failed("fsetxattr", name, e))?;
        }
        set_mode_fd(self, node.meta.mode).map_err(|e| failed("fchmod", b".", e))?;
        set_times_fd(self, &node.meta).map_err(|e| failed("futimens", b".", e))
    }
}

/// Returns one xattr by descriptor.
pub fn xattr_get(fd: impl AsFd, xattr: &[u8]) -> Result<Option<Vec<u8>>> {
    read_xattr(|buf| rustix::fs::fgetxattr(fd.as_fd(), xattr, buf)).map_err(|e| failed("fgetxattr", xattr, e))
}

/// Returns all xattrs by descriptor.
pub fn xattrs_of(fd: impl AsFd) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let fd = fd.as_fd();
    let names = list_names(|buf| rustix::fs::flistxattr(fd, buf)).map_err(|e| failed("flistxattr", b"", e))?;
    let mut out = Vec::new();
    for xattr in names {
        if let Some(value) = xattr_get(fd, &xattr)? {
            out.push((xattr, value));
        }
    }
    Ok(out)
}

fn read_xattr(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut buf = vec![0u8; 256];
    loop {
        match call(&mut buf) {
            Ok(n) => {
                buf.truncate(n);
                return Ok(Some(buf));
            }
            // XATTR_SIZE_MAX is 64 KiB: one step reaches it.
            Err(Errno::RANGE) if buf.len() < 65_536 => buf.resize(65_536, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

fn list_names(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut buf = vec![0u8; 1024];
    loop {
        match call(&mut buf) {
            Ok(n) => {
                return Ok(buf[..n].split(|&b| b == 0).filter(|s| !s.is_empty()).map(<[u8]>::to_vec).collect());
            }
            Err(Errno::RANGE) if buf.len() < 65_536 => buf.resize(65_536, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    }
}
