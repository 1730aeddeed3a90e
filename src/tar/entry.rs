//! What one archive entry says, with every number checked.

use crate::error::escape;
use std::fmt;

/// A point in time with nanoseconds; negative seconds are before 1970 and `nanos` always counts forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z, rounded down.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 1,000,000,000.
    pub nanos: u32,
}

/// One region of a sparse file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    /// Where the region starts in the file, in bytes.
    pub offset: u64,
    /// How many bytes it holds.
    pub length: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of `size` bytes. With `sparse`, the stored bytes are the regions' contents one after another;
    /// regions are sorted, do not overlap, end within `size`, and their lengths sum to [`Entry::stored`].
    File {
        /// Logical size in bytes.
        size: u64,
        /// The regions that hold data; `None` for an ordinary file.
        sparse: Option<Vec<Region>>,
    },
    /// Another name for `target`, verbatim.
    HardLink {
        /// The linked name as the archive spells it.
        target: Vec<u8>,
    },
    /// A symbolic link; the target is kept verbatim.
    Symlink {
        /// The target, 1 to 4,095 bytes.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number, at most 4,095.
        major: u32,
        /// Minor number, at most 1,048,575.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number, at most 4,095.
        major: u32,
        /// Minor number, at most 1,048,575.
        minor: u32,
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// An archive entry as the headers describe it, before any rule about layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Offset of the entry's own header block in the decompressed stream, in bytes.
    pub offset: u64,
    /// The name, verbatim, never containing NUL; may be empty, absolute, contain `..`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky; never type bits.
    pub mode: u32,
    /// Owner; below 4,294,967,295.
    pub uid: u32,
    /// Group; below 4,294,967,295.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Access time where the archive has one.
    pub atime: Option<Timestamp>,
    /// Extended attributes in archive order, names without prefix of the carrier; no name twice.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of data that follow the headers, without padding to 512; 0 for everything but [`EntryKind::File`].
    pub stored: u64,
}

/// Something odd in the archive that was accepted; becomes a warning event with this stable code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oddity {
    /// Offset of the header it is about, in bytes.
    pub offset: u64,
    /// Stable code, such as `global-pax-header`.
    pub code: &'static str,
    /// The entry's name where one is known.
    pub path: Vec<u8>,
    /// What was found.
    pub detail: String,
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}: {} ({})", self.code, self.offset, escape(&self.path), self.detail)
    }
}
