//! One archive entry as a test writes it down.

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file with this content.
    File(Vec<u8>),
    /// A directory.
    Dir,
    /// A symbolic link with this target, verbatim.
    Symlink(Vec<u8>),
    /// A hard link to this name, verbatim.
    HardLink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// An archive entry: the input of both the tar builder and the reference model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntrySpec {
    /// The name, verbatim.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// The mode field, verbatim (type bits may be set by a test).
    pub mode: u32,
    /// Owner; wider than any valid one so that a test can ask for too much.
    pub uid: u64,
    /// Group; wider than any valid one so that a test can ask for too much.
    pub gid: u64,
    /// Modification time: seconds (rounded down) and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes in archive order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The mtime of an entry that does not say otherwise, in seconds: neither zero nor near the time of the test run.
pub const DEFAULT_MTIME: i64 = 1_000_000_000;

impl EntrySpec {
    /// Makes an entry with mode 0755 for a directory and 0644 otherwise, owner 0:0 and [`DEFAULT_MTIME`].
    pub fn new(path: impl AsRef<[u8]>, kind: EntryKind) -> EntrySpec {
        let mode = if kind == EntryKind::Dir { 0o755 } else { 0o644 };
        let path = path.as_ref().to_vec();
        EntrySpec { path, kind, mode, uid: 0, gid: 0, mtime: (DEFAULT_MTIME, 0), xattrs: Vec::new() }
    }

    /// Sets the mode field.
    pub fn mode(mut self, mode: u32) -> EntrySpec {
        self.mode = mode;
        self
    }

    /// Sets owner and group.
    pub fn owner(mut self, uid: u64, gid: u64) -> EntrySpec {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Sets the modification time in whole seconds.
    pub fn mtime(self, seconds: i64) -> EntrySpec {
        self.mtime_nanos(seconds, 0)
    }

    /// Sets the modification time: seconds rounded down, nanoseconds counting forward.
    pub fn mtime_nanos(mut self, seconds: i64, nanos: u32) -> EntrySpec {
        self.mtime = (seconds, nanos);
        self
    }

    /// Adds an extended attribute.
    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> EntrySpec {
        self.xattrs.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
}

/// A regular file.
pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> EntrySpec {
    EntrySpec::new(path, EntryKind::File(content.as_ref().to_vec()))
}

/// A directory; a trailing slash is the caller's to write.
pub fn dir(path: impl AsRef<[u8]>) -> EntrySpec {
    EntrySpec::new(path, EntryKind::Dir)
}

/// A symbolic link.
pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> EntrySpec {
    EntrySpec::new(path, EntryKind::Symlink(target.as_ref().to_vec())).mode(0o777)
}

/// A hard link named `path` to `target`.
pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> EntrySpec {
    EntrySpec::new(path, EntryKind::HardLink(target.as_ref().to_vec()))
}

/// A character device.
pub fn chr(path: impl AsRef<[u8]>, major: u32, minor: u32) -> EntrySpec {
    EntrySpec::new(path, EntryKind::Char(major, minor))
}

/// A block device.
pub fn blk(path: impl AsRef<[u8]>, major: u32, minor: u32) -> EntrySpec {
    EntrySpec::new(path, EntryKind::Block(major, minor))
}

/// A named pipe.
pub fn fifo(path: impl AsRef<[u8]>) -> EntrySpec {
    EntrySpec::new(path, EntryKind::Fifo)
}

/// A whiteout of `name` in the directory `parent` (empty for the root).
pub fn whiteout(parent: impl AsRef<[u8]>, name: impl AsRef<[u8]>) -> EntrySpec {
    file(join(parent.as_ref(), &[b".wh.", name.as_ref()].concat()), "")
}

/// An opaque marker for the directory `parent` (empty for the root).
pub fn opaque(parent: impl AsRef<[u8]>) -> EntrySpec {
    file(join(parent.as_ref(), b".wh..wh..opq"), "")
}

/// Joins a directory and a name, without a leading slash for the root.
fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent.strip_suffix(b"/").unwrap_or(parent) {
        b"" => name.to_vec(),
        parent => [parent, b"/", name].concat(),
    }
}
