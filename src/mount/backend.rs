//! The three ways to ask the kernel for an overlay, and which of them it knows.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::render::{ClassicNames, classic_data};
use super::{MAX_LOWERS, MountPlan, SOURCE};
use crate::error::{Error, ErrorKind, escape};
use crate::sys::{self, SysError};

/// Longest string that `fsconfig` takes as a value, in bytes (`strndup_user(_value, 256)` in `fs/fsopen.c`).
pub(super) const FSCONFIG_STRING_MAX: usize = 255;

/// A way to mount, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    /// Mount API, layers as descriptors (Linux 6.13): no limit on names, nothing to escape.
    MountApiFd,
    /// Mount API, one string a layer with `lowerdir+` (Linux 6.8): names over 255 bytes go through `/proc/self/fd`.
    MountApiPath,
    /// `mount(2)`: all options in one page, escaped.
    Classic,
}

impl Backend {
    /// All backends, best first.
    pub const ALL: [Backend; 3] = [Backend::MountApiFd, Backend::MountApiPath, Backend::Classic];

    /// Asks the kernel for its best backend.
    ///
    /// # Errors
    /// `Unsupported` where the kernel has no overlayfs. A caller without the privilege to mount gets `Classic`, whose
    /// attempt then says what is missing.
    pub fn detect() -> Result<Backend, Error> {
        let context = match open_context() {
            Ok(fd) => fd,
            Err(Errno::NODEV) => return Err(no_overlayfs(SysError::new("fsopen", Errno::NODEV).path("overlay"))),
            // No mount API, a seccomp filter in front of it, or no privilege.
            Err(_) => return Ok(Backend::Classic),
        };
        // Before 6.5 overlayfs is configured through a shim that takes any string and refuses at the very end.
        if fsconfig_set_string(&context, "unply-no-such-option", "1").is_ok() {
            return Ok(Backend::Classic);
        }
        let root = sys::open_dir(Path::new("/"))?;
        if fsconfig_set_fd(&context, "lowerdir+", &root).is_ok() {
            return Ok(Backend::MountApiFd);
        }
        match fsconfig_set_string(&context, "lowerdir+", "/") {
            Ok(()) => Ok(Backend::MountApiPath),
            Err(_) => Ok(Backend::Classic),
        }
    }
}

fn open_context() -> Result<OwnedFd, Errno> {
    fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
}

pub(super) fn no_overlayfs(err: SysError) -> Error {
    Error::new(ErrorKind::Unsupported, "the kernel has no overlayfs")
        .with_source(err)
        .with_hint("load the module `overlay`, or unpack into a plain directory")
}

/// A mount being configured; turns each refusal into an error that carries the call and what the kernel wrote about it.
struct Context {
    fd: OwnedFd,
}

impl Context {
    fn open() -> Result<Self, Error> {
        match open_context() {
            Ok(fd) => Ok(Context { fd }),
            Err(Errno::NODEV) => Err(no_overlayfs(SysError::new("fsopen", Errno::NODEV).path("overlay"))),
            Err(e) => Err(refused(SysError::new("fsopen", e).path("overlay").arg("FSOPEN_CLOEXEC"), None)),
        }
    }

    fn flag(&self, key: &str) -> Result<(), Error> {
        fsconfig_set_flag(&self.fd, key).map_err(|e| self.fail(e, "FSCONFIG_SET_FLAG", key, "NULL"))
    }

    fn string(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        fsconfig_set_string(&self.fd, key, value)
            .map_err(|e| self.fail(e, "FSCONFIG_SET_STRING", key, &format!("\"{}\"", escape(value))))
    }

    fn descriptor(&self, key: &str, dir: &OwnedFd, path: &Path) -> Result<(), Error> {
        fsconfig_set_fd(&self.fd, key, dir)
            .map_err(|e| self.fail(e, "FSCONFIG_SET_FD", key, &format!("\"{}\"", escape(path.as_os_str().as_bytes()))))
    }

    /// Gives one layer as a string, by its path where that fits and reads back unchanged, else by its descriptor's name.
    fn named(&self, key: &str, dir: &OwnedFd, path: &Path, plain: bool) -> Result<(), Error> {
        let bytes = path.as_os_str().as_bytes();
        if plain && bytes.len() <= FSCONFIG_STRING_MAX {
            return self.string(key, bytes);
        }
        self.string(key, sys::proc_self_fd_path(dir).as_os_str().as_bytes())
    }

    fn create(&self) -> Result<(), Error> {
        fsconfig_create(&self.fd).map_err(|e| {
            refused(SysError::new("fsconfig", e).fd(self.fd.as_fd()).arg("FSCONFIG_CMD_CREATE"), self.log())
        })
    }

    fn fail(&self, e: Errno, command: &str, key: &str, value: &str) -> Error {
        refused(SysError::new("fsconfig", e).fd(self.fd.as_fd()).arg(command).path(key).arg(value), self.log())
    }

    /// Reads the messages that the kernel kept for this mount, one a `read`, without their "e " in front.
    fn log(&self) -> Option<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut buf = [0u8; 1024];
        // The kernel keeps the last 8; the bound only guards against a file that never ends.
        for _ in 0..64 {
            let Ok(len @ 1..) = rustix::io::read(&self.fd, &mut buf) else { break };
            let line = buf.get(..len).unwrap_or_default().trim_ascii();
            let line = line.strip_prefix(b"e ").or_else(|| line.strip_prefix(b"w ")).unwrap_or(line);
            lines.push(escape(line));
        }
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// Turns a refused call into an error; `log` is what the kernel wrote about it.
fn refused(err: SysError, log: Option<String>) -> Error {
    let errno = err.errno();
    let err = Error::from(err);
    let kind = if errno == Some(libc::EINVAL) { ErrorKind::Unsupported } else { err.kind() };
    match log {
        Some(log) => Error::new(kind, format!("the kernel refused the mount (\"{log}\")")).with_source(err),
        None => Error::new(kind, "the kernel refused the mount").with_source(err),
    }
}

/// Returns the options that say yes or no, as key and value; a key without a value is a flag.
///
/// Everything that a distribution's build or module parameter could switch on is stated (N10), so that a rootfs is one
/// tree on every host.
pub(super) fn options(plan: &MountPlan) -> Vec<(&'static str, Option<&'static str>)> {
    let mut all = vec![
        ("index", Some("off")),
        ("redirect_dir", Some("nofollow")),
        ("metacopy", Some("off")),
        ("nfs_export", Some("off")),
        ("xino", Some("off")),
    ];
    if plan.flavour == crate::policy::XattrFlavour::User {
        all.push(("userxattr", None));
    }
    if plan.volatile && plan.upper.is_some() {
        all.push(("volatile", None));
    }
    all
}

/// Makes the mount without attaching it anywhere; `backend` is one of the mount API's.
pub(super) fn create_detached(plan: &MountPlan, backend: Backend) -> Result<OwnedFd, Error> {
    match plan.split() {
        None => create_one(plan, None, backend),
        Some((top, bottom)) => {
            // The upper overlay keeps the lower one alive.
            let below = create_one(&bottom, None, backend)?;
            create_one(&top, Some(&below), backend).map_err(|e| {
                e.with_hint(format!("Linux 6.15 stacks overlays for more than {MAX_LOWERS} layers; or unpack the image into one directory"))
            })
        }
    }
}

/// Makes one overlay; `below` is one more lower directory, the lowest.
fn create_one(plan: &MountPlan, below: Option<&OwnedFd>, backend: Backend) -> Result<OwnedFd, Error> {
    let context = Context::open()?;
    context.string("source", SOURCE.as_bytes())?;
    for (key, value) in options(plan) {
        match value {
            Some(value) => context.string(key, value.as_bytes())?,
            None => context.flag(key)?,
        }
    }
    let mut seen = super::Identities::default();
    // Descriptors are opened one at a time: 500 of them would be half of the usual limit.
    let give = |key: &str, path: &Path, dir: &OwnedFd| match backend {
        Backend::MountApiFd => context.descriptor(key, dir, path),
        // The kernel unescapes backslashes in `upperdir` and `workdir`, not in `lowerdir+`.
        _ => context.named(key, dir, path, key == "lowerdir+" || !path.as_os_str().as_bytes().contains(&b'\\')),
    };
    for lower in &plan.lowers {
        let dir = sys::open_dir(lower)?;
        seen.add(&dir, lower)?;
        give("lowerdir+", lower, &dir)?;
    }
    if let Some(below) = below {
        match backend {
            Backend::MountApiFd => context.descriptor("lowerdir+", below, Path::new("overlay of the bottom layers"))?,
            _ => context.named("lowerdir+", below, Path::new(""), false)?,
        }
    }
    if let Some(upper) = &plan.upper {
        for (key, path) in [("upperdir", &upper.upper), ("workdir", &upper.work)] {
            let dir = sys::open_dir(path)?;
            seen.add(&dir, path)?;
            give(key, path, &dir)?;
        }
    } else {
        context.flag("ro")?;
    }
    context.create()?;
    let attributes = if plan.upper.is_none() { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    fsmount(&context.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| refused(SysError::new("fsmount", e).fd(context.fd.as_fd()), context.log()))
}

/// Mounts with `mount(2)`; layers keep their paths where the page has room for them.
pub(super) fn mount_classic(plan: &MountPlan, target: &OwnedFd) -> Result<(), Error> {
    plan.at_most(MAX_LOWERS)?;
    let mut seen = super::Identities::default();
    for path in plan.directories() {
        seen.add(&sys::open_dir_path(path)?, path)?;
    }
    let room = rustix::param::page_size().saturating_sub(1);
    let data = classic_data(plan, &ClassicNames::paths(plan));
    // Held open until the mount is made: the names in `data` stand for them.
    let opened;
    let too_many = || {
        let message =
            format!("{} lower directories do not fit the {room} bytes that mount(2) takes", plan.lowers.len());
        Error::new(ErrorKind::Unsupported, message)
            .with_hint("Linux 6.8 has a mount call without this limit; or flatten the image into a directory")
    };
    let data = if data.len() <= room {
        data
    } else if plan.lowers.len().saturating_mul("/proc/self/fd/N:".len()) > room {
        return Err(too_many());
    } else {
        opened = plan.directories().map(sys::open_dir_path).collect::<Result<Vec<_>, _>>()?;
        [ClassicNames::lowers_by_fd(plan, &opened), ClassicNames::all_by_fd(plan, &opened)]
            .iter()
            .map(|names| classic_data(plan, names))
            .find(|data| data.len() <= room)
            .ok_or_else(too_many)?
    };
    let data =
        std::ffi::CString::new(data).map_err(|_| Error::new(ErrorKind::Usage, "a layer's path holds a NUL byte"))?;
    let flags = if plan.upper.is_none() { MountFlags::RDONLY } else { MountFlags::empty() };
    let data: &CStr = &data;
    match rustix::mount::mount(SOURCE, sys::proc_self_fd_path(target), "overlay", flags, data) {
        Ok(()) => Ok(()),
        Err(e) => {
            let err = SysError::new("mount", e)
                .path(SOURCE)
                .path(sys::proc_self_fd_path(target))
                .path("overlay")
                .arg(if plan.upper.is_none() { "MS_RDONLY" } else { "0" })
                .cstr(data);
            Err(if e == Errno::NODEV { no_overlayfs(err) } else { refused(err, None) })
        }
    }
}
