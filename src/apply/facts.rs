//! What applying a layer to an empty root found out.

use serde::{Deserialize, Serialize};

/// The lasting facts about one staged layer; stored in its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerFacts {
    /// Entries in the archive, whiteouts and skipped ones included.
    pub entries: u64,
    /// Bytes of file content, holes not counted, hard links counted once.
    pub content_bytes: u64,
    /// Inodes the layer directory takes.
    pub inodes: u64,
    /// The layer hides every layer below it (an opaque marker at its root).
    pub root_opaque: bool,
    /// Something in the layer can only be settled with the layers below: it needs a fix-up in each chain.
    pub depends_on_lower: bool,
    /// Entries that could not be placed without the layers below: above all hard links whose target the layer does not have before them.
    pub late_links: u64,
    /// Whiteouts written into the layer directory.
    pub whiteouts: u64,
    /// Opaque marks written into the layer directory.
    pub opaques: u64,
    /// Device nodes were skipped.
    pub devices_skipped: bool,
    /// Xattrs were dropped because this place cannot hold them.
    pub xattrs_dropped: bool,
    /// Hard links that became copies because the file system allows no more links (L12).
    pub copied_links: u64,
    /// Metadata of the root entry, where the archive has one.
    pub root_entry: Option<RootMeta>,
    /// Owners were squashed to the caller.
    pub squashed: bool,
}

/// Metadata of a root entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootMeta {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds.
    pub mtime: i64,
    /// Modification time, nanoseconds.
    pub mtime_nanos: u32,
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
