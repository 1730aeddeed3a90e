//! What overlayfs does on a given file system, found out by mounting.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::{Backend, MountPlan, Upper, detach};
use crate::error::Error;
use crate::policy::XattrFlavour;
use crate::sys::{self, SysError};

/// What overlays made of directories of one file system do, for one xattr flavour.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverlayProbe {
    /// How the overlays were mounted.
    pub backend: Backend,
    /// A character device 0:0 can be made and hides a name.
    pub char_whiteouts: bool,
    /// An empty file with `overlay.whiteout` hides a name (Linux 6.7), and does so from listings too (`opaque=x`).
    pub xattr_whiteouts: bool,
    /// `overlay.opaque=y` hides what is below a directory.
    pub opaque: bool,
    /// A zero-length `overlay.origin` keeps whiteouts out of the listing of a directory that nothing lies below.
    pub origin_filters: bool,
    /// A writable overlay works here: a file is made and one of a lower layer is changed and deleted.
    pub writable: bool,
}

/// Mounts two overlays below a temporary directory in `dir`, which it removes again, and looks at what they show.
///
/// # Errors
/// When a read-only overlay cannot be mounted at all, with the reason; and when the temporary directory cannot be made
/// or removed.
pub fn probe_overlay(dir: &Path, flavour: XattrFlavour) -> Result<OverlayProbe, Error> {
    let dir = std::fs::canonicalize(dir).map_err(|e| Error::io(format!("resolve {}", dir.display()), e))?;
    let backend = Backend::detect()?;
    let place = sys::ProbeDir::make(sys::open_dir(&dir)?)?;
    let root = dir.join(&place.name);
    let answer = Probe { root: &root, flavour, backend }.run();
    std::fs::remove_dir_all(&root).map_err(|e| Error::io(format!("remove {}", root.display()), e))?;
    answer
}

struct Probe<'a> {
    root: &'a Path,
    flavour: XattrFlavour,
    backend: Backend,
}

impl Probe<'_> {
    fn run(&self) -> Result<OverlayProbe, Error> {
        let make = |path: &str| {
            let path = self.root.join(path);
            std::fs::create_dir_all(&path).map_err(|e| Error::io(format!("make {}", path.display()), e))
        };
        let write = |path: &str| {
            let path = self.root.join(path);
            std::fs::write(&path, "lower").map_err(|e| Error::io(format!("write {}", path.display()), e))
        };
        for path in ["low/char", "low/x", "low/opq", "top/char", "top/x", "top/opq", "top/new", "up", "work", "mnt"] {
            make(path)?;
        }
        for path in ["low/char/gone", "low/x/gone", "low/opq/gone", "low/kept"] {
            write(path)?;
        }
        let top = sys::open_dir(&self.root.join("top"))?;
        let mark = |dir: &OwnedFd, name: &str, key: &str, value: &[u8]| {
            sys::set_xattr(dir, name.as_bytes(), format!("{}{key}", self.flavour.prefix()).as_bytes(), value).is_ok()
        };
        let whiteout = |dir: &str| {
            let name = format!("{dir}/gone");
            rustix::fs::mknodat(&top, name, FileType::CharacterDevice, Mode::empty(), 0).is_ok()
        };
        let char_made = whiteout("char");
        let new_made = whiteout("new") && mark(&top, "new", "origin", b"");
        let opaque_made = mark(&top, "opq", "opaque", b"y");
        let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let x_made = rustix::fs::openat(&top, "x/gone", file, Mode::RUSR).is_ok()
            && sys::open_dir(&self.root.join("top/x")).is_ok_and(|x| mark(&x, "gone", "whiteout", b""))
            && mark(&top, "x", "opaque", b"x");

        let lowers = vec![self.root.join("top"), self.root.join("low")];
        let view = MountPlan { lowers, upper: None, flavour: self.flavour, volatile: false };
        let mut probe = OverlayProbe {
            backend: self.backend,
            char_whiteouts: false,
            xattr_whiteouts: false,
            opaque: false,
            origin_filters: false,
            writable: false,
        };
        self.mounted(&view, |root| {
            probe.char_whiteouts = char_made && is_empty(root, "char");
            probe.xattr_whiteouts = x_made && is_empty(root, "x");
            probe.opaque = opaque_made && is_empty(root, "opq");
            probe.origin_filters = new_made && is_empty(root, "new");
        })?;
        let upper = Upper { upper: self.root.join("up"), work: self.root.join("work") };
        let writable = MountPlan { upper: Some(upper), ..view };
        // That an upper is refused here (overlayfs, nfs) is an answer.
        let _ = self.mounted(&writable, |root| probe.writable = can_write(root));
        Ok(probe)
    }

    /// Runs `look` on the root of the mounted plan.
    fn mounted(&self, plan: &MountPlan, look: impl FnOnce(&OwnedFd)) -> Result<(), Error> {
        if self.backend != Backend::Classic {
            look(&plan.detached()?);
            return Ok(());
        }
        let target = self.root.join("mnt");
        let attached = plan.attach_with(self.backend, &target)?;
        look(&sys::open_dir(&target)?);
        detach(attached.target())
    }
}

fn is_empty(root: &OwnedFd, name: &str) -> bool {
    let open = || -> Result<bool, rustix::io::Errno> {
        let dir = rustix::fs::openat(root, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for entry in Dir::read_from(&dir)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(rustix::fs::statat(&dir, "gone", AtFlags::SYMLINK_NOFOLLOW).err() == Some(rustix::io::Errno::NOENT))
    };
    open().unwrap_or(false)
}

fn can_write(root: &OwnedFd) -> bool {
    let write = || -> Result<(), SysError> {
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let fail = |e| SysError::new("openat", e).fd(root.as_fd());
        rustix::fs::openat(root, "made", create, Mode::RUSR).map_err(fail)?;
        rustix::fs::openat(root, "kept", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
        rustix::fs::unlinkat(root, "kept", AtFlags::empty()).map_err(fail)
    };
    write().is_ok()
}
