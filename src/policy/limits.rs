//! Bounds on what an image may ask for, each with its name, its flag and the attack it stops.
//!
//! [`Limit`] is the one table: the command line makes its flags and their help from it, every refusal gets its words
//! and its hint from it, and a test holds the table of `docs/threat-model.md` against it.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// Bounds on what an image may ask for. Exceeding one is [`ErrorKind::Limit`] (exit 5) and stops at once. What each one
/// bounds, and the attack it stops, is told by [`Limit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// [`Limit::LayerBytes`]; none by default.
    pub max_layer_bytes: u64,
    /// [`Limit::Ratio`]; 2,000 by default. Zero-filled legal layers reach 1,030:1.
    pub max_ratio: u64,
    /// [`Limit::RatioFloor`], in bytes; 256 MiB by default.
    pub ratio_floor: u64,
    /// [`Limit::Entries`]; 10 million by default.
    pub max_entries: u64,
    /// [`Limit::LayerMemory`], in bytes; 1 GiB by default.
    pub max_layer_memory: u64,
    /// [`Limit::MetadataBytes`]; 1 MiB by default.
    pub max_metadata_bytes: u64,
    /// [`Limit::ExtensionHeaders`]; 16 by default.
    pub max_extension_headers: u32,
    /// [`Limit::PathBytes`]; 64 KiB by default.
    pub max_path_bytes: usize,
    /// [`Limit::Depth`]; 1,024 by default.
    pub max_depth: usize,
    /// [`Limit::SparseRegions`]; 262,144 by default.
    pub max_sparse_regions: usize,
    /// [`Limit::XattrBytes`]; 1 MiB by default.
    pub max_xattr_bytes: usize,
    /// [`Limit::ZstdWindow`], as a base-2 logarithm of bytes; 27 (128 MiB) by default.
    pub max_zstd_window_log: u32,
    /// [`Limit::ZstdMemory`], in bytes; 512 MiB by default.
    pub max_zstd_memory: u64,
    /// [`Limit::JsonBytes`]; 20 MiB by default.
    pub max_json_bytes: u64,
    /// [`Limit::ManifestBytes`]; 4 MiB by default.
    pub max_manifest_bytes: u64,
    /// [`Limit::IndexDepth`]; 8 by default.
    pub max_index_depth: u32,
    /// [`Limit::ArchiveMembers`]; 100,000 by default.
    pub max_archive_members: usize,
    /// [`Limit::Layers`]; 1,000 by default.
    pub max_layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_layer_bytes: u64::MAX,
            max_ratio: 2_000,
            ratio_floor: 256 << 20,
            max_entries: 10_000_000,
            max_layer_memory: 1 << 30,
            max_metadata_bytes: 1 << 20,
            max_extension_headers: 16,
            max_path_bytes: 64 << 10,
            max_depth: 1024,
            max_sparse_regions: 262_144,
            max_xattr_bytes: 1 << 20,
            max_zstd_window_log: 27,
            max_zstd_memory: 512 << 20,
            max_json_bytes: 20 << 20,
            max_manifest_bytes: 4 << 20,
            max_index_depth: 8,
            max_archive_members: 100_000,
            max_layers: 1_000,
        }
    }
}

/// One of the [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Decompressed bytes of one layer (CVE-2017-14992).
    LayerBytes,
    /// Decompressed bytes for each compressed one, of a layer or of a compressed archive.
    Ratio,
    /// Decompressed bytes before the ratio counts.
    RatioFloor,
    /// Entries of one layer.
    Entries,
    /// What is remembered of one layer's names and metadata while it is applied or fixed up.
    LayerMemory,
    /// PAX and GNU metadata of one entry.
    MetadataBytes,
    /// Consecutive extension headers before one entry.
    ExtensionHeaders,
    /// Bytes of one path.
    PathBytes,
    /// Components of one path, also of one that symlinks lead to.
    Depth,
    /// Regions of one sparse file (CVE-2025-58183).
    SparseRegions,
    /// Names and values of all xattrs of one entry.
    XattrBytes,
    /// Window of one zstd frame.
    ZstdWindow,
    /// Windows over 8 MiB that the layers of one run hold at once; further layers wait, so this refuses nothing.
    ZstdMemory,
    /// Bytes of an index or config document (CVE-2023-25153), and in units of it of all documents of one image.
    JsonBytes,
    /// Bytes of a manifest document.
    ManifestBytes,
    /// Indexes within indexes.
    IndexDepth,
    /// Members of an image archive.
    ArchiveMembers,
    /// Layers of one image.
    Layers,
}

/// What the number of a limit counts, which decides how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Bytes, a power of two from 1 KiB to 2 GiB.
    Window,
    /// Anything else.
    Count,
}

struct Row {
    flag: &'static str,
    bounds: &'static str,
    stops: &'static str,
    unit: Unit,
}

const fn row(flag: &'static str, unit: Unit, bounds: &'static str, stops: &'static str) -> Row {
    Row { flag, bounds, stops, unit }
}

impl Limit {
    /// Every limit, in the order of the documentation.
    pub const ALL: [Limit; 18] = [
        Limit::LayerBytes,
        Limit::Ratio,
        Limit::RatioFloor,
        Limit::Entries,
        Limit::LayerMemory,
        Limit::MetadataBytes,
        Limit::ExtensionHeaders,
        Limit::PathBytes,
        Limit::Depth,
        Limit::SparseRegions,
        Limit::XattrBytes,
        Limit::ZstdWindow,
        Limit::ZstdMemory,
        Limit::JsonBytes,
        Limit::ManifestBytes,
        Limit::IndexDepth,
        Limit::ArchiveMembers,
        Limit::Layers,
    ];

    fn row(self) -> Row {
        use Unit::{Bytes, Count, Window};
        match self {
            Limit::LayerBytes => {
                row("max-layer-bytes", Bytes, "decompressed bytes of a layer", "decompression bombs (CVE-2017-14992)")
            }
            Limit::Ratio => row(
                "max-ratio",
                Count,
                "decompressed bytes for each compressed one",
                "decompression bombs; legal layers of zeros reach 1,030",
            ),
            Limit::RatioFloor => row(
                "ratio-floor",
                Bytes,
                "decompressed bytes before the ratio counts",
                "bombs of whatever ratio beyond that size",
            ),
            Limit::Entries => row("max-entries", Count, "entries of a layer", "inode exhaustion"),
            Limit::LayerMemory => row(
                "max-layer-memory",
                Bytes,
                "bytes remembered of a layer's names and metadata",
                "memory bombs made of directories",
            ),
            Limit::MetadataBytes => {
                row("max-metadata-bytes", Bytes, "bytes of PAX and GNU metadata of an entry", "memory bombs")
            }
            Limit::ExtensionHeaders => {
                row("max-extension-headers", Count, "extension headers before an entry", "chains without end")
            }
            Limit::PathBytes => row("max-path-bytes", Bytes, "bytes of a path", "walks without end"),
            Limit::Depth => row("max-depth", Count, "components of a path", "nesting without end"),
            Limit::SparseRegions => {
                row("max-sparse-regions", Count, "regions of a sparse file", "map bombs (CVE-2025-58183)")
            }
            Limit::XattrBytes => row("max-xattr-bytes", Bytes, "bytes of the xattrs of an entry", "memory bombs"),
            Limit::ZstdWindow => row("max-zstd-window", Window, "bytes of a zstd window", "memory bombs"),
            Limit::ZstdMemory => row(
                "max-zstd-memory",
                Bytes,
                "bytes of zstd windows over 8 MiB at once; further layers wait",
                "many memory bombs side by side",
            ),
            Limit::JsonBytes => {
                row("max-json-bytes", Bytes, "bytes of an index or config document", "memory bombs (CVE-2023-25153)")
            }
            Limit::ManifestBytes => {
                row("max-manifest-bytes", Bytes, "bytes of a manifest document", "memory bombs (CVE-2023-25153)")
            }
            Limit::IndexDepth => row("max-index-depth", Count, "indexes within indexes", "recursion"),
            Limit::ArchiveMembers => row("max-archive-members", Count, "members of an image archive", "table bombs"),
            Limit::Layers => row("max-layers", Count, "layers of an image", "staging directories without end"),
        }
    }

    /// Returns its flag without the dashes, such as `max-entries`.
    pub fn flag(self) -> &'static str {
        self.row().flag
    }

    /// Returns what it bounds, in words that a number can follow.
    pub fn bounds(self) -> &'static str {
        self.row().bounds
    }

    /// Returns the attack it stops.
    pub fn stops(self) -> &'static str {
        self.row().stops
    }

    /// Returns what its number counts.
    pub fn unit(self) -> Unit {
        self.row().unit
    }

    /// Returns the refusal of something over this limit: what is bounded, how much was `found`, the limit `max`, the flag.
    pub fn exceeded(self, max: u64, found: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Limit, format!("{}: {found}, the limit is {max}", self.bounds())).with_hint(self.advice())
    }

    /// Returns the hint of a refusal.
    pub fn advice(self) -> String {
        format!("raise --{} if you trust the image", self.flag())
    }
}

impl Limits {
    /// Returns the number of one limit; windows are in bytes.
    pub fn get(&self, limit: Limit) -> u64 {
        match limit {
            Limit::LayerBytes => self.max_layer_bytes,
            Limit::Ratio => self.max_ratio,
            Limit::RatioFloor => self.ratio_floor,
            Limit::Entries => self.max_entries,
            Limit::LayerMemory => self.max_layer_memory,
            Limit::MetadataBytes => self.max_metadata_bytes,
            Limit::ExtensionHeaders => self.max_extension_headers.into(),
            Limit::PathBytes => self.max_path_bytes as u64,
            Limit::Depth => self.max_depth as u64,
            Limit::SparseRegions => self.max_sparse_regions as u64,
            Limit::XattrBytes => self.max_xattr_bytes as u64,
            Limit::ZstdWindow => 1u64.checked_shl(self.max_zstd_window_log).unwrap_or(u64::MAX),
            Limit::ZstdMemory => self.max_zstd_memory,
            Limit::JsonBytes => self.max_json_bytes,
            Limit::ManifestBytes => self.max_manifest_bytes,
            Limit::IndexDepth => self.max_index_depth.into(),
            Limit::ArchiveMembers => self.max_archive_members as u64,
            Limit::Layers => self.max_layers as u64,
        }
    }

    /// Sets one limit; a number that its field cannot hold means the largest that it can, and a window is rounded down
    /// to a power of two.
    pub fn set(&mut self, limit: Limit, value: u64) {
        let size = usize::try_from(value).unwrap_or(usize::MAX);
        let small = u32::try_from(value).unwrap_or(u32::MAX);
        match limit {
            Limit::LayerBytes => self.max_layer_bytes = value,
            Limit::Ratio => self.max_ratio = value,
            Limit::RatioFloor => self.ratio_floor = value,
            Limit::Entries => self.max_entries = value,
            Limit::LayerMemory => self.max_layer_memory = value,
            Limit::MetadataBytes => self.max_metadata_bytes = value,
            Limit::ExtensionHeaders => self.max_extension_headers = small,
            Limit::PathBytes => self.max_path_bytes = size,
            Limit::Depth => self.max_depth = size,
            Limit::SparseRegions => self.max_sparse_regions = size,
            Limit::XattrBytes => self.max_xattr_bytes = size,
            Limit::ZstdWindow => self.max_zstd_window_log = value.checked_ilog2().unwrap_or(0),
            Limit::ZstdMemory => self.max_zstd_memory = value,
            Limit::JsonBytes => self.max_json_bytes = value,
            Limit::ManifestBytes => self.max_manifest_bytes = value,
            Limit::IndexDepth => self.max_index_depth = small,
            Limit::ArchiveMembers => self.max_archive_members = size,
            Limit::Layers => self.max_layers = size,
        }
    }

    /// Returns the refusal of something over one of these limits; `found` says how much there is, and of what if that is
    /// not plain.
    pub fn exceeded(&self, limit: Limit, found: impl fmt::Display) -> Error {
        limit.exceeded(self.get(limit), found)
    }
}

/// Counts what is remembered of one layer ([`Limit::LayerMemory`]).
#[derive(Debug, Clone)]
pub struct Remembered {
    bytes: u64,
    max: u64,
}

impl Remembered {
    /// Starts with nothing.
    pub fn new(max: u64) -> Remembered {
        Remembered { bytes: 0, max }
    }

    /// Adds bytes; nothing is ever taken off, because an archive can ask for the same again and again.
    ///
    /// # Errors
    /// `Limit` once it is more than the layer may take.
    pub fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.is_over() { Err(Limit::LayerMemory.exceeded(self.max, self.bytes)) } else { Ok(()) }
    }

    /// Tells whether it is too much already.
    pub fn is_over(&self) -> bool {
        self.bytes > self.max
    }

    /// Adds what extended attributes take.
    ///
    /// # Errors
    /// As [`Remembered::add`].
    pub fn add_xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Error> {
        let each = size_of::<(Vec<u8>, Vec<u8>)>();
        self.add(xattrs.iter().map(|(name, value)| each + name.len() + value.len()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_field_and_a_flag_of_its_own() {
        let mut all = Limits::default();
        for (at, limit) in Limit::ALL.into_iter().enumerate() {
            all.set(limit, 1 << (at + 10));
        }
        for (at, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(all.get(limit), 1 << (at + 10), "{limit:?} shares its field");
            let same = Limit::ALL.iter().filter(|l| l.flag() == limit.flag() || l.bounds() == limit.bounds()).count();
            assert_eq!(same, 1, "{limit:?}");
        }
        // A new field must come into the table: this literal names all of them.
        let Limits {
            max_layer_bytes: _,
            max_ratio: _,
            ratio_floor: _,
            max_entries: _,
            max_layer_memory: _,
            max_metadata_bytes: _,
            max_extension_headers: _,
            max_path_bytes: _,
            max_depth: _,
            max_sparse_regions: _,
            max_xattr_bytes: _,
            max_zstd_window_log: _,
            max_zstd_memory: _,
            max_json_bytes: _,
            max_manifest_bytes: _,
            max_index_depth: _,
            max_archive_members: _,
            max_layers: _,
        } = all;
    }

    #[test]
    fn a_refusal_names_what_how_much_the_limit_and_the_flag() {
        let e = Limits::default().exceeded(Limit::Depth, 1025);
        assert_eq!(
            e.to_string(),
            "components of a path: 1025, the limit is 1024; raise --max-depth if you trust the image"
        );
        assert_eq!(e.kind().exit_code(), 5);
    }
}
