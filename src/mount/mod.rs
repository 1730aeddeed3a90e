//! Overlay mounts: a typed plan, the ways to carry it out, and the mount table.
//!
//! Owns: [`MountPlan`] and its rules, rendering for `mount(8)` and containerd, attaching and detaching, questions to
//! the kernel about overlayfs. Refuses to know: how a store is laid out, what an image is.
//!
//! Invariants: a list of lower directories has its **topmost first**; every option that a host could preset differently
//! is stated; a plan that the kernel would misread (a cut option page, one directory twice, marks in a namespace it
//! does not read) is refused before any mount is made; nothing changes the process (no working directory, no namespace)
//! and every mount appears in the mount namespace of the calling thread.
//!
//! # What the kernel does
//! Measured on Linux 6.18 by `tests.rs` beside this file; version numbers are in `docs/kernel-features.md`.
//! * *Lower directories.* 500 at most, empty ones counted; an overlay that is mounted nowhere may be one of them (Linux
//!   6.15), and shows neither marks nor whiteouts of its own layers; at least two without an upper, else `EINVAL`. One directory
//!   twice, or one inside another, is `ELOOP`. Both are refused here first, with names.
//! * *The option page.* `mount(2)` cuts options at one page without a word (4,378 bytes of options gave `ENOENT` for a
//!   name cut in two). The mount API has no such limit, but one string takes at most 255 bytes; a descriptor has no name
//!   to be too long or to be escaped, so it comes first. By `/proc/self/fd/N` 200 layers fit into a page of 4 KiB.
//! * *Escaping.* In the option page `\`, `,` and (between lower directories) `:` take a backslash. A `lowerdir+` string
//!   takes none, an `upperdir` string is unescaped by every way in: a backslash in its path makes us name the descriptor.
//! * *Options in a user namespace.* `userxattr` goes with `redirect_dir=nofollow` and `metacopy=off`. `redirect_dir=off`
//!   is refused there (with or without `userxattr`) where the kernel's build follows redirects by default, and outside
//!   it still follows them: `nofollow` is the value that means no (O3).
//! * *`trusted.*` in a user namespace* is not readable, and overlayfs takes that for "no mark": an opaque directory shows
//!   everything it should hide, without an error. Hence the refusal in [`MountPlan::attach`] (R5).
//! * *Whiteouts in listings.* A character-device whiteout is left out of `getdents` of a merged directory only. In a
//!   directory that one layer alone has, or that is opaque, the name is listed while `stat` denies it, unless the
//!   directory carries a zero-length `overlay.origin`.
//! * *Xattr whiteouts* are hidden from lookup in any case; from listings only where their directory carries `opaque=x`
//!   **and**, if one layer alone has it, a zero-length `overlay.origin` as well. `opaque=x` works at a layer's root too;
//!   a file there is listed without it. In the lowest directory of a stack the kernel does not look for `opaque=x` at all:
//!   an empty one goes below. Its `rmdir` in a writable mount knows character devices only: `ENOTEMPTY`. `opaque=y` at a layer's root does nothing: a plan leaves the lower layers out.
//! * *`mount(8)`, `fsopen` and messages.* Some refusals are explained through the mount descriptor, and those stand in
//!   the error; others only in the kernel's log, so the usual causes are looked for and given as a hint.
//! * *`volatile`* leaves `work/work/incompat/volatile`, and the next mount of that work directory is `EINVAL`.
//! * *`/proc/self/mountinfo`* shows `lowerdir+` layers by path, also those given as descriptors; a name given as
//!   `/proc/self/fd/N` is shown as that. Paths are shown as they were when mounted: a layer that is renamed later keeps
//!   its old name there.

mod backend;
mod detach;
mod probe;
mod render;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MoveMountFlags, move_mount};

pub use backend::Backend;
pub use detach::{detach, detach_lazy};
pub use probe::{OverlayProbe, probe_overlay};
pub use render::ContainerdMount;
pub use table::{
    MountInfo, OverlayUse, all_mounts, find_mount, overlay_mounts, overlays_anywhere_using, overlays_using,
};

use crate::error::{Error, ErrorKind, escape};
use crate::fail::fail_point;
use crate::policy::XattrFlavour;
use crate::sys::{self, SysError};

/// The most lower directories that one overlay takes (`OVL_MAX_STACK`), counting empty ones and fix-ups.
pub const MAX_LOWERS: usize = 500;

/// The most lower directories of a plan (N2): above [`MAX_LOWERS`] the bottom ones become an overlay of their own, which
/// is the lowest directory of the other one. Overlays do not stack deeper (`FILESYSTEM_MAX_STACK_DEPTH`).
pub const MAX_STACKED: usize = 2 * MAX_LOWERS - 1;

/// What a mount made here gives as its source: the first column of `df` and `findmnt`.
pub const SOURCE: &str = "unply";

/// The writable top of an overlay: two directories of one file system, used by one mount at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// Where changes go; its owner, mode and xattrs are those of the rootfs's root.
    pub upper: PathBuf,
    /// An empty directory for the kernel's own use.
    pub work: PathBuf,
}

/// Two empty directories that fill up a plan with too few layers: the kernel wants two lower directories for a view and
/// one below an upper, but an image may have fewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmptyDirs {
    first: PathBuf,
    second: PathBuf,
}

impl EmptyDirs {
    /// Names the two directories `0` and `1` inside `parent`, an absolute path; [`EmptyDirs::create`] makes them.
    pub fn within(parent: &Path) -> Self {
        EmptyDirs { first: parent.join("0"), second: parent.join("1") }
    }

    /// Makes the directories inside `parent`, which exists, or adopts those that are there: 0755, without a default ACL
    /// or setgid bit of the parent, dated 1970, since they show as the root of an image without layers.
    ///
    /// # Errors
    /// What the kernel answers; `AlreadyExists` when one of them is not empty.
    pub fn create(parent: &Path) -> Result<Self, Error> {
        use rustix::fs::{Mode, Timespec, Timestamps};
        let dirs = EmptyDirs::within(parent);
        for path in [&dirs.first, &dirs.second] {
            match rustix::fs::mkdir(path, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(SysError::new("mkdir", e).path(path).arg("0700").into()),
            }
            let fd = sys::open_dir(path)?;
            let mut entries = std::fs::read_dir(path).map_err(|e| Error::io(format!("list {}", path.display()), e))?;
            if entries.next().is_some() {
                let message = format!("{} has to be empty and is not", path.display());
                return Err(Error::new(ErrorKind::AlreadyExists, message));
            }
            for acl in [&b"system.posix_acl_default"[..], b"system.posix_acl_access"] {
                match sys::remove_xattr_fd(&fd, acl) {
                    Err(e) if !matches!(e.errno(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => return Err(e.into()),
                    _ => {}
                }
            }
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::fchmod(&fd, mode).map_err(|e| SysError::new("fchmod", e).fd(fd.as_fd()).arg("0755"))?;
            let epoch = Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::fs::futimens(&fd, &Timestamps { last_access: epoch, last_modification: epoch })
                .map_err(|e| SysError::new("utimensat", e).fd(fd.as_fd()))?;
        }
        Ok(dirs)
    }
}

/// An overlay to be mounted.
///
/// Made by [`MountPlan::view`] or [`MountPlan::writable`], carried out by [`attach`](MountPlan::attach) (at a
/// directory), [`detached`](MountPlan::detached) (as a descriptor that a runtime attaches where it likes), or rendered
/// for another program. Carrying out a plan never changes it; it may be used again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountPlan {
    /// Lower directories, topmost first; absolute paths.
    pub lowers: Vec<PathBuf>,
    /// The writable top; without one the mount is read-only and writes answer `EROFS`.
    pub upper: Option<Upper>,
    /// The xattr namespace that the layers carry their marks in.
    pub flavour: XattrFlavour,
    /// Never sync the upper (`volatile`): a crash may lose it, and the work directory refuses a second mount until
    /// [`forget_volatile`] cleared it. Ignored without an upper.
    pub volatile: bool,
}

impl MountPlan {
    /// Plans a read-only view of `lowers` (topmost first, none or one allowed), filled up with empty directories.
    ///
    /// A single layer is an overlay too, never a bind mount: a bind would show whiteouts and marks as they lie on disk.
    pub fn view(lowers: Vec<PathBuf>, flavour: XattrFlavour, empty: &EmptyDirs) -> Self {
        let mut plan = MountPlan { lowers, upper: None, flavour, volatile: false };
        let missing = 2usize.saturating_sub(plan.lowers.len());
        plan.lowers.extend([&empty.first, &empty.second].into_iter().take(missing).cloned());
        plan
    }

    /// Plans a writable rootfs: `upper` over `lowers` (topmost first, none allowed).
    pub fn writable(lowers: Vec<PathBuf>, upper: Upper, flavour: XattrFlavour, empty: &EmptyDirs) -> Self {
        let mut plan = MountPlan { lowers, upper: Some(upper), flavour, volatile: false };
        if plan.lowers.is_empty() {
            plan.lowers.push(empty.first.clone());
        }
        plan
    }

    /// Puts an empty directory below all others, for layers with xattr whiteouts: the kernel does not look for `opaque=x`
    /// in the lowest directory of a stack, and would list the whiteouts of a layer that lies there.
    pub fn on_empty_ground(mut self, empty: &EmptyDirs) -> Self {
        if self.lowers.last() != Some(&empty.second) {
            self.lowers.push(empty.second.clone());
        }
        self
    }

    /// Returns every directory of the plan: the lowers (topmost first), upper, work.
    pub(crate) fn directories(&self) -> impl Iterator<Item = &Path> {
        let upper = self.upper.iter().flat_map(|u| [&u.upper, &u.work]);
        self.lowers.iter().chain(upper).map(PathBuf::as_path)
    }

    /// Checks what can be known without the kernel.
    ///
    /// # Errors
    /// `Unsupported` for more than [`MAX_STACKED`] lower directories; `Usage` for too few, for a path that is not absolute
    /// or holds a NUL, and for a directory that comes twice or lies inside another: callers keep the topmost of a
    /// repeated layer.
    pub fn check(&self) -> Result<(), Error> {
        let usage = |message: String| Err(Error::new(ErrorKind::Usage, message));
        self.at_most(MAX_STACKED)?;
        let least = if self.upper.is_some() { 1 } else { 2 };
        if self.lowers.len() < least {
            return usage(format!("{} lower directories, the kernel wants {least}", self.lowers.len()));
        }
        let mut sorted: Vec<&Path> = self.directories().collect();
        if let Some(bad) = sorted.iter().find(|p| !p.is_absolute() || p.as_os_str().as_bytes().contains(&0)) {
            return usage(format!("\"{}\" is not an absolute path", escape(bad.as_os_str().as_bytes())));
        }
        // Paths sort by components, so that whatever lies inside a directory follows it at once.
        sorted.sort_unstable();
        for pair in sorted.windows(2) {
            if let [outer, inner] = pair
                && inner.starts_with(outer)
            {
                return usage(format!("directory {} comes twice or holds {}", outer.display(), inner.display()));
            }
        }
        Ok(())
    }

    /// Checks the number of lower directories.
    fn at_most(&self, limit: usize) -> Result<(), Error> {
        if self.lowers.len() <= limit {
            return Ok(());
        }
        let message = format!("{} lower directories, the kernel takes {limit}", self.lowers.len());
        Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("unpack the image into one directory instead of mounting its layers"))
    }

    /// Splits what one overlay cannot take: the plan of the bottom layers, a view, which stands below the rest.
    fn split(&self) -> Option<(MountPlan, MountPlan)> {
        if self.lowers.len() <= MAX_LOWERS {
            return None;
        }
        // Only the bottom may be split off: the marks of a layer mean nothing outside its own overlay.
        let (top, bottom) = self.lowers.split_at_checked(MAX_LOWERS - 1)?;
        let below = MountPlan { lowers: bottom.to_vec(), upper: None, volatile: false, ..self.clone() };
        Some((MountPlan { lowers: top.to_vec(), ..self.clone() }, below))
    }

    /// Mounts the plan at `target`, an existing directory, with the best backend the kernel has.
    ///
    /// The mount outlives the process; [`Attached::detach`] or [`detach`] ends it.
    ///
    /// # Errors
    /// As [`MountPlan::check`] and [`Backend::detect`]; `Unsupported` for what this kernel or file system cannot do,
    /// `NotPermitted` without the privilege; the text carries the call and the kernel's own message.
    pub fn attach(&self, target: &Path) -> Result<Attached, Error> {
        self.attach_with(Backend::detect()?, target)
    }

    /// Mounts the plan at `target` with a backend of the caller's choice.
    ///
    /// # Errors
    /// As [`MountPlan::attach`].
    pub fn attach_with(&self, backend: Backend, target: &Path) -> Result<Attached, Error> {
        self.ready()?;
        let target =
            std::fs::canonicalize(target).map_err(|e| Error::io(format!("resolve {}", target.display()), e))?;
        let place = sys::open_dir_path(&target)?;
        match backend {
            Backend::Classic => backend::mount_classic(self, &place).map_err(|e| self.explain(e))?,
            Backend::MountApiFd | Backend::MountApiPath => {
                let mount = backend::create_detached(self, backend).map_err(|e| self.explain(e))?;
                fail_point("mount.made")?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                move_mount(&mount, "", &place, "", flags).map_err(|e| {
                    let err = SysError::new("move_mount", e).fd(mount.as_fd()).path("").path(&target);
                    self.explain(Error::from(err.arg("MOVE_MOUNT_F_EMPTY_PATH")))
                })?;
            }
        }
        fail_point("mount.attached")?;
        Ok(Attached { target, backend })
    }

    /// Makes the mount without attaching it: a descriptor to look through, or to attach with `move_mount`.
    ///
    /// Unless it is attached the mount ends when the descriptor is closed.
    ///
    /// # Errors
    /// As [`MountPlan::attach`]; `Unsupported` before Linux 6.8.
    pub fn detached(&self) -> Result<OwnedFd, Error> {
        self.ready()?;
        match Backend::detect()? {
            Backend::Classic if sys::has_effective_cap_sys_admin() => {
                let message = "this kernel cannot make an overlay without attaching it";
                Err(Error::new(ErrorKind::Unsupported, message).with_hint("Linux 6.8 can"))
            }
            Backend::Classic => Err(self.explain(Error::new(ErrorKind::NotPermitted, "mounting is not permitted"))),
            backend => backend::create_detached(self, backend).map_err(|e| self.explain(e)),
        }
    }

    fn ready(&self) -> Result<(), Error> {
        self.check()?;
        if self.flavour == XattrFlavour::Trusted && sys::in_user_namespace() {
            // The kernel answers ENODATA for trusted.* here: opaque directories would show what they hide.
            let message = "layers marked with trusted.overlay.* cannot be mounted inside a user namespace";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("mount as root of the host, or use a store that was made inside a user namespace"));
        }
        Ok(())
    }

    /// Adds what an operator can do, from the state of things: overlayfs itself says little.
    fn explain(&self, err: Error) -> Error {
        if err.kind() == ErrorKind::NotPermitted && !sys::has_effective_cap_sys_admin() {
            return err.with_hint("mounting needs CAP_SYS_ADMIN: run as root, or in a user and mount namespace");
        }
        let Some(upper) = &self.upper else { return err };
        let Ok(upper_fd) = sys::open_dir_path(&upper.upper) else { return err };
        let Ok(work_fd) = sys::open_dir_path(&upper.work) else { return err };
        if volatile_mark(&upper.work).exists() {
            let work = upper.work.display();
            return err.with_hint(format!("{work} was mounted volatile: its upper may be damaged, discard both"));
        }
        if let (Ok((upper_dev, _)), Ok((work_dev, _))) = (sys::identity(&upper_fd), sys::identity(&work_fd))
            && upper_dev != work_dev
        {
            let (upper, work) = (upper.upper.display(), upper.work.display());
            return err.with_hint(format!("{upper} and {work} have to be on one file system"));
        }
        if sys::is_overlayfs(&upper_fd).unwrap_or(false) {
            let upper = upper.upper.display();
            return err.with_hint(format!("{upper} is on overlayfs, which cannot hold an upper: put it on a volume"));
        }
        err
    }
}

/// A mount that was made.
#[derive(Debug)]
pub struct Attached {
    target: PathBuf,
    backend: Backend,
}

impl Attached {
    /// Returns where it is mounted, without symlinks.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Returns how it was made.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// As [`detach`].
    pub fn detach(self) -> Result<(), Error> {
        detach(&self.target)
    }
}

/// Removes the mark that a `volatile` mount leaves in `work`; returns whether there was one.
///
/// The upper may lack whatever was not on the device at the last crash: only for callers that know that there was none
/// since (<https://docs.kernel.org/filesystems/overlayfs.html#volatile-mount>).
///
/// # Errors
/// What the kernel answers.
pub fn forget_volatile(work: &Path) -> Result<bool, Error> {
    let mark = volatile_mark(work);
    match std::fs::remove_dir_all(&mark) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(format!("remove {}", mark.display()), e)),
    }
}

fn volatile_mark(work: &Path) -> PathBuf {
    work.join("work/incompat/volatile")
}

/// The directories given to the kernel so far: one directory under two names is refused by name instead of with `ELOOP`.
#[derive(Default)]
struct Identities<'a> {
    seen: HashMap<(u64, u64), &'a Path>,
}

impl<'a> Identities<'a> {
    fn add(&mut self, dir: &OwnedFd, path: &'a Path) -> Result<(), Error> {
        match self.seen.insert(sys::identity(dir)?, path) {
            None => Ok(()),
            Some(other) => {
                let message = format!("{} and {} are one directory", other.display(), path.display());
                Err(Error::new(ErrorKind::Usage, message))
            }
        }
    }
}
