//! Choices as plain data: limits, whiteout form, ownership, strictness.
//!
//! Owns: every option that changes what an unpack does, with its default. Refuses to know: I/O.

mod limits;

use serde::{Deserialize, Serialize};

pub use limits::{Limit, Limits, Remembered, Unit};

/// Which xattr namespace overlayfs reads its marks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XattrFlavour {
    /// `trusted.overlay.*`: mounts by root of the initial user namespace.
    Trusted,
    /// `user.overlay.*`: mounts with the `userxattr` option, inside a user namespace.
    User,
}

impl XattrFlavour {
    /// Returns the prefix of overlayfs's own xattrs, with its final dot.
    pub fn prefix(self) -> &'static str {
        match self {
            XattrFlavour::Trusted => "trusted.overlay.",
            XattrFlavour::User => "user.overlay.",
        }
    }
}

/// How a whiteout is written into a layer directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhiteoutForm {
    /// A character device 0:0, the kernel's first form.
    CharDevice,
    /// An empty file with `overlay.whiteout`, its directory marked `opaque=x` (Linux 6.8): where mknod is refused.
    Xattr,
}

/// Whether owners can be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ownership {
    /// Owners are set as the image says.
    Keep,
    /// A user namespace that maps one id only: everything belongs to the caller, with one counted warning.
    Squash,
}

/// What happens to a root entry (`./`) of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootEntry {
    /// Recorded, not applied: the rootfs is 0755 0:0.
    #[default]
    Ignore,
    /// The topmost layer that has one decides owner, mode, times and xattrs of the rootfs.
    Apply,
}

/// What a name below a symlink of a lower layer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LowerSymlinks {
    /// Resolved inside the rootfs, as tar does.
    #[default]
    Resolve,
    /// A new directory hides the symlink, as containerd, Docker and podman show it.
    Shadow,
}

/// What happens to `security.selinux`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selinux {
    /// Dropped with a warning.
    #[default]
    Drop,
    /// Set as the archive says.
    Keep,
}

/// The choices of the rulings table that change the tree an image gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TreeOptions {
    /// Refuse what a conforming builder would not write.
    pub strict: bool,
    /// Root entries.
    pub root_entry: RootEntry,
    /// Names below symlinks of lower layers.
    pub lower_symlinks: LowerSymlinks,
    /// SELinux labels.
    pub selinux: Selinux,
}
