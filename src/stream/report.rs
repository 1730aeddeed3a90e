//! What a fully read blob proved.

use crate::digest::{BlobDigest, DiffId};
use serde::{Deserialize, Serialize};

/// How a layer blob was compressed, by its magic bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// No compression.
    Plain,
    /// gzip, any number of members.
    Gzip,
    /// zstd, any number of frames.
    Zstd,
}

/// What must hold before a layer may be published; whatever is `None` was not promised by anyone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Digest of the blob.
    pub digest: Option<BlobDigest>,
    /// Size of the blob in bytes.
    pub size: Option<u64>,
    /// Digest of the decompressed stream.
    pub diff_id: Option<DiffId>,
}

/// The facts about a blob that was read to its very end with an intact trailer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Digest of the blob.
    pub digest: BlobDigest,
    /// Size of the blob in bytes.
    pub compressed_bytes: u64,
    /// Digest of the decompressed stream.
    pub diff_id: DiffId,
    /// Size of the decompressed stream in bytes.
    pub uncompressed_bytes: u64,
    /// How the blob was compressed.
    pub codec: Codec,
}

/// How a blob was packed, beyond its codec; nothing depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Framing {
    /// gzip members or zstd frames with data.
    pub members: u64,
    /// Skippable zstd frames.
    pub skippable: u64,
    /// The first zstd frame is a skippable one.
    pub starts_skippable: bool,
    /// Zero bytes after the last member or frame.
    pub padding: u64,
}
