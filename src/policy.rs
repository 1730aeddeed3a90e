//! Choices as plain data: limits, whiteout form, ownership, strictness.
//!
//! Owns: every option that changes what an unpack does, with its default. Refuses to know: I/O.

use serde::{Deserialize, Serialize};

/// Bounds on what an image may ask for; each names the attack it stops. Exceeding one is exit 5 and stops at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Decompressed bytes of one layer: stops decompression bombs (CVE-2017-14992). Default: none but the ratio.
    pub max_layer_bytes: u64,
    /// Decompressed : compressed ratio tolerated once `ratio_floor` bytes were produced. Zero-filled legal layers reach 1,030:1. Default 2,000.
    pub max_ratio: u64,
    /// Decompressed bytes before the ratio counts. Default 256 MiB.
    pub ratio_floor: u64,
    /// Entries in one layer: stops inode exhaustion. Default 10 million.
    pub max_entries: u64,
    /// Bytes of PAX and GNU metadata of one entry: stops memory bombs. Default 1 MiB.
    pub max_metadata_bytes: u64,
    /// Consecutive extension headers before one entry: stops endless chains. Default 16.
    pub max_extension_headers: u32,
    /// Bytes of one path: stops walks of unbounded length. Default 64 KiB.
    pub max_path_bytes: usize,
    /// Components of one path: stops directories nested without bound. Default 1,024.
    pub max_depth: usize,
    /// Regions of one sparse file: stops map bombs (CVE-2025-58183). Default 262,144.
    pub max_sparse_regions: usize,
    /// Bytes of all xattrs of one entry. Default 1 MiB (the metadata limit).
    pub max_xattr_bytes: usize,
    /// Base-2 logarithm of the largest zstd window accepted: stops memory bombs. Default 27 (128 MiB).
    pub max_zstd_window_log: u32,
    /// Bytes of an index or config document: stops memory bombs (CVE-2023-25153). Default 20 MiB.
    pub max_json_bytes: u64,
    /// Bytes of a manifest document. Default 4 MiB.
    pub max_manifest_bytes: u64,
    /// Depth of indexes within indexes. Default 8.
    pub max_index_depth: u32,
    /// Members of an image archive: stops member-table bombs. Default 100,000.
    pub max_archive_members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_layer_bytes: u64::MAX,
            max_ratio: 2_000,
            ratio_floor: 256 << 20,
            max_entries: 10_000_000,
            max_metadata_bytes: 1 << 20,
            max_extension_headers: 16,
            max_path_bytes: 64 << 10,
            max_depth: 1024,
            max_sparse_regions: 262_144,
            max_xattr_bytes: 1 << 20,
            max_zstd_window_log: 27,
            max_json_bytes: 20 << 20,
            max_manifest_bytes: 4 << 20,
            max_index_depth: 8,
            max_archive_members: 100_000,
        }
    }
}

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
