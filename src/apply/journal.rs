//! The layer's journal: what the archive asked for, in its order, kept beside the layer directory.
//!
//! A layer is stored without knowing the layers below it. What depends on them is settled later by replaying this
//! file over a view of the tree below (module `fixup`), so it holds everything a replay needs and nothing of the content.
//!
//! It also says what the layer directory holds in the end ([`super::inventory`]): what was taken away again, the directories
//! and whiteouts as they were left, a checksum of each file's content.
//!
//! Format, version 2: the line `unply journal 2\n`, then records: length (varint), then that many bytes.
//! Numbers are LEB128 varints, signed ones zig-zag; byte strings carry their length. A file that ends inside a record is damaged.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt as _;

use crate::error::{Error, ErrorKind, Result};
use crate::root::{Meta, NodeMeta};
use crate::tar::{Region, Timestamp};

use super::plan::{LiteralPath, Node};

const NAME: &[u8] = b"unply journal ";
const MAGIC: &[u8] = b"unply journal 2\n";
/// No record comes near this; a larger length is damage.
const MAX_RECORD: u64 = 16 << 20;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Something was asked for at `path`.
    Make {
        /// Literal path.
        path: LiteralPath,
        /// Where the layer directory has it, `None` where it could not be placed without the lower layers (late links).
        placed: Option<LiteralPath>,
        /// For a hard link that was placed: where in the layer directory its target was found.
        source: Option<LiteralPath>,
        /// What; a file's data is at `placed`.
        node: Node,
        /// Metadata, xattrs filtered.
        meta: NodeMeta,
        /// For a file whose data was written: its checksum.
        sum: Option<Sum>,
    },
    /// A whiteout.
    Whiteout {
        /// Directory.
        parent: LiteralPath,
        /// Hidden name.
        name: Vec<u8>,
    },
    /// An opaque marker, with the mtime an implied directory would take (O4).
    Opaque {
        /// The directory.
        dir: LiteralPath,
        /// Modification time of the marker.
        mtime: Timestamp,
    },
    /// What the layer directory had at this place was moved to the stash under this number, with everything below it.
    Stashed {
        /// Place in the layer directory.
        placed: LiteralPath,
        /// Number in the stash.
        number: u64,
    },
    /// AUFS kept a file aside that nothing names yet; a link by this number shares its inode.
    Aside {
        /// Number, among those of the stash.
        number: u64,
        /// Bytes.
        size: u64,
        /// Checksum of the data.
        sum: Option<Sum>,
    },
    /// What the layer directory had at this place was removed, with everything below it.
    Removed {
        /// Place in the layer directory.
        placed: LiteralPath,
    },
    /// A directory as it was left; after all records of entries.
    Left {
        /// Place in the layer directory.
        placed: LiteralPath,
        /// Its metadata.
        meta: NodeMeta,
        /// It hides what lower layers have in it.
        opaque: bool,
        /// It holds whiteouts.
        whiteouts: bool,
    },
    /// A whiteout that stands in the layer directory; after all records of entries.
    Hides {
        /// Its place.
        placed: LiteralPath,
    },
}

impl Record {
    /// Borrows its parts, to write it again.
    pub fn as_parts(&self) -> RecordRef<'_> {
        match self {
            Record::Make { path, placed, source, node, meta, sum } => {
                RecordRef::Make { path, placed: placed.as_ref(), source: source.as_ref(), node, meta, sum: *sum }
            }
            Record::Whiteout { parent, name } => RecordRef::Whiteout { parent, name },
            Record::Opaque { dir, mtime } => RecordRef::Opaque { dir, mtime: *mtime },
            Record::Stashed { placed, number } => RecordRef::Stashed { placed, number: *number },
            Record::Aside { number, size, sum } => RecordRef::Aside { number: *number, size: *size, sum: *sum },
            Record::Removed { placed } => RecordRef::Removed { placed },
            Record::Left { placed, meta, opaque, whiteouts } => {
                RecordRef::Left { placed, meta, opaque: *opaque, whiteouts: *whiteouts }
            }
            Record::Hides { placed } => RecordRef::Hides { placed },
        }
    }
}

/// XXH3 (64 bits, seed 0) of a file's content: of the data of its regions, where it is sparse.
///
/// It finds damage; it is no proof against somebody who makes it on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(pub u64);

/// Writes a journal.
pub struct Writer<W: Write> {
    out: BufWriter<W>,
    record: Vec<u8>,
}

fn io_failed(e: io::Error) -> Error {
    Error::io("write to the layer's journal", e)
}

impl<W: Write> Writer<W> {
    /// Starts a journal.
    pub fn new(out: W) -> Result<Self> {
        let mut out = BufWriter::with_capacity(64 << 10, out);
        out.write_all(MAGIC).map_err(io_failed)?;
        Ok(Writer { out, record: Vec::with_capacity(256) })
    }

    /// Adds a record.
    pub fn push(&mut self, record: RecordRef<'_>) -> Result<()> {
        let mut b = std::mem::take(&mut self.record);
        b.clear();
        match record {
            RecordRef::Make { path, placed, source, node, meta, sum } => {
                b.push(0);
                put_bytes(&mut b, path.as_bytes());
                put_place(&mut b, placed, path);
                put_place(&mut b, source, path);
                put_node(&mut b, node);
                put_meta(&mut b, meta);
                put_sum(&mut b, sum);
            }
            RecordRef::Whiteout { parent, name } => {
                b.push(1);
                put_bytes(&mut b, parent.as_bytes());
                put_bytes(&mut b, name);
            }
            RecordRef::Opaque { dir, mtime } => {
                b.push(2);
                put_bytes(&mut b, dir.as_bytes());
                put_time(&mut b, mtime);
            }
            RecordRef::Stashed { placed, number } => {
                b.push(3);
                put_bytes(&mut b, placed.as_bytes());
                put_number(&mut b, number);
            }
            RecordRef::Aside { number, size, sum } => {
                b.push(7);
                put_number(&mut b, number);
                put_number(&mut b, size);
                put_sum(&mut b, sum);
            }
            RecordRef::Removed { placed } => {
                b.push(4);
                put_bytes(&mut b, placed.as_bytes());
            }
            RecordRef::Left { placed, meta, opaque, whiteouts } => {
                b.push(5);
                put_bytes(&mut b, placed.as_bytes());
                put_meta(&mut b, meta);
                b.push(u8::from(opaque) | u8::from(whiteouts) << 1);
            }
            RecordRef::Hides { placed } => {
                b.push(6);
                put_bytes(&mut b, placed.as_bytes());
            }
        }
        let mut length = [0u8; 10];
        let n = varint(b.len() as u64, &mut length);
        let result = self.out.write_all(&length[..n]).and_then(|()| self.out.write_all(&b)).map_err(io_failed);
        self.record = b;
        result
    }

    /// Writes out what is buffered and returns the file.
    pub fn finish(self) -> Result<W> {
        self.out.into_inner().map_err(|e| io_failed(e.into_error()))
    }
}

impl Writer<File> {
    /// Writes out what is buffered and returns a reader of what there is so far; more may be added meanwhile.
    pub fn so_far(&mut self) -> Result<Reader<impl Read + use<>>> {
        self.out.flush().map_err(io_failed)?;
        let file = self.out.get_ref().try_clone().map_err(io_failed)?;
        let length = file.metadata().map_err(io_failed)?.len();
        Reader::new(Positioned { file, at: 0 }.take(length))
    }
}

/// Reads a file without moving the position that others share.
struct Positioned {
    file: File,
    at: u64,
}

impl Read for Positioned {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A [`Record`] whose parts are borrowed.
#[derive(Debug, Clone, Copy)]
pub enum RecordRef<'a> {
    /// See [`Record::Make`].
    Make {
        /// Literal path.
        path: &'a LiteralPath,
        /// Place in the layer directory.
        placed: Option<&'a LiteralPath>,
        /// Place of a hard link's target.
        source: Option<&'a LiteralPath>,
        /// What.
        node: &'a Node,
        /// Metadata.
        meta: &'a NodeMeta,
        /// Checksum of the data.
        sum: Option<Sum>,
    },
    /// See [`Record::Whiteout`].
    Whiteout {
        /// Directory.
        parent: &'a LiteralPath,
        /// Hidden name.
        name: &'a [u8],
    },
    /// See [`Record::Opaque`].
    Opaque {
        /// The directory.
        dir: &'a LiteralPath,
        /// Modification time of the marker.
        mtime: Timestamp,
    },
    /// See [`Record::Stashed`].
    Stashed {
        /// Place in the layer directory.
        placed: &'a LiteralPath,
        /// Number in the stash.
        number: u64,
    },
    /// See [`Record::Aside`].
    Aside {
        /// Number, among those of the stash.
        number: u64,
        /// Bytes.
        size: u64,
        /// Checksum of the data.
        sum: Option<Sum>,
    },
    /// See [`Record::Removed`].
    Removed {
        /// Place in the layer directory.
        placed: &'a LiteralPath,
    },
    /// See [`Record::Left`].
    Left {
        /// Place in the layer directory.
        placed: &'a LiteralPath,
        /// Metadata.
        meta: &'a NodeMeta,
        /// Opaque mark.
        opaque: bool,
        /// Holds whiteouts.
        whiteouts: bool,
    },
    /// See [`Record::Hides`].
    Hides {
        /// Place in the layer directory.
        placed: &'a LiteralPath,
    },
}

fn damaged() -> Error {
    Error::new(ErrorKind::Integrity, "the layer's journal is damaged")
        .with_hint("`unply repair` unpacks the layer again")
}

/// Reads a journal, record by record.
pub struct Reader<R: Read> {
    input: BufReader<R>,
    buf: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Opens a journal.
    ///
    /// # Errors
    /// `Unsupported` for a journal of another version, `Integrity` for what is no journal.
    pub fn new(input: R) -> Result<Self> {
        let mut input = BufReader::with_capacity(64 << 10, input);
        let mut line = Vec::with_capacity(MAGIC.len());
        // Versions have few digits.
        let longest = MAGIC.len() as u64 + 8;
        let read = input.by_ref().take(longest).read_until(b'\n', &mut line);
        read.map_err(|e| Error::io("read the layer's journal", e))?;
        if line != MAGIC {
            let version = line.strip_prefix(NAME).and_then(|rest| rest.strip_suffix(b"\n"));
            return Err(match version {
                Some(version) if !version.is_empty() && version.iter().all(u8::is_ascii_digit) => Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "the layer's journal has version {}; this program knows version 2",
                        String::from_utf8_lossy(version)
                    ),
                )
                .with_hint("use the release of unply that wrote it"),
                _ => damaged(),
            });
        }
        Ok(Reader { input, buf: Vec::new() })
    }

    /// Returns the next record, `None` at the end.
    ///
    /// # Errors
    /// `Integrity` where the file is damaged.
    pub fn read(&mut self) -> Result<Option<Record>> {
        if self.input.fill_buf().map_err(|e| Error::io("read the layer's journal", e))?.is_empty() {
            return Ok(None);
        }
        let mut length = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0u8];
            self.input.read_exact(&mut byte).map_err(|_| damaged())?;
            length |= u64::from(byte[0] & 127) << shift;
            if byte[0] & 128 == 0 {
                break;
            }
        }
        if length > MAX_RECORD {
            return Err(damaged());
        }
        self.buf.resize(length as usize, 0);
        self.input.read_exact(&mut self.buf).map_err(|_| damaged())?;
        let mut cursor = Cursor(&self.buf);
        cursor.record().map(Some).ok_or_else(damaged)
    }
}

fn varint(mut value: u64, out: &mut [u8; 10]) -> usize {
    for (n, byte) in out.iter_mut().enumerate() {
        *byte = (value & 127) as u8;
        value >>= 7;
        if value == 0 {
            return n + 1;
        }
        *byte |= 128;
    }
    10
}

fn put_number(b: &mut Vec<u8>, value: u64) {
    let mut buf = [0u8; 10];
    let n = varint(value, &mut buf);
    b.extend_from_slice(&buf[..n]);
}

fn put_sum(b: &mut Vec<u8>, sum: Option<Sum>) {
    b.push(sum.is_some().into());
    if let Some(Sum(sum)) = sum {
        b.extend_from_slice(&sum.to_le_bytes());
    }
}

fn put_bytes(b: &mut Vec<u8>, bytes: &[u8]) {
    put_number(b, bytes.len() as u64);
    b.extend_from_slice(bytes);
}

fn put_place(b: &mut Vec<u8>, place: Option<&LiteralPath>, same: &LiteralPath) {
    match place {
        None => b.push(0),
        Some(p) if p == same => b.push(1),
        Some(p) => {
            b.push(2);
            put_bytes(b, p.as_bytes());
        }
    }
}

fn put_time(b: &mut Vec<u8>, t: Timestamp) {
    put_number(b, ((t.seconds << 1) ^ (t.seconds >> 63)) as u64);
    put_number(b, t.nanos.into());
}

fn put_meta(b: &mut Vec<u8>, node: &NodeMeta) {
    put_number(b, node.meta.mode.into());
    put_number(b, node.meta.uid.into());
    put_number(b, node.meta.gid.into());
    put_time(b, node.meta.mtime);
    put_time(b, node.meta.atime);
    put_number(b, node.xattrs.len() as u64);
    for (name, value) in &node.xattrs {
        put_bytes(b, name);
        put_bytes(b, value);
    }
}

fn put_node(b: &mut Vec<u8>, node: &Node) {
    match node {
        Node::Directory => b.push(0),
        Node::File { size, sparse: None } => {
            b.push(1);
            put_number(b, *size);
        }
        Node::File { size, sparse: Some(regions) } => {
            b.push(8);
            put_number(b, *size);
            put_number(b, regions.len() as u64);
            for region in regions {
                put_number(b, region.offset);
                put_number(b, region.length);
            }
        }
        Node::Symlink(target) => {
            b.push(2);
            put_bytes(b, target);
        }
        Node::CharDevice(major, minor) => {
            b.push(3);
            put_number(b, (*major).into());
            put_number(b, (*minor).into());
        }
        Node::BlockDevice(major, minor) => {
            b.push(4);
            put_number(b, (*major).into());
            put_number(b, (*minor).into());
        }
        Node::Fifo => b.push(5),
        Node::HardLink(target) => {
            b.push(6);
            put_bytes(b, target.as_bytes());
        }
        Node::AufsLink(name) => {
            b.push(7);
            put_bytes(b, name);
        }
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte & 128 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn number32(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let n = usize::try_from(self.number()?).ok()?;
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head.to_vec())
    }

    fn path(&mut self) -> Option<LiteralPath> {
        self.bytes().map(LiteralPath::from_clean)
    }

    fn place(&mut self, same: &LiteralPath) -> Option<Option<LiteralPath>> {
        Some(match self.byte()? {
            0 => None,
            1 => Some(same.clone()),
            2 => Some(self.path()?),
            _ => return None,
        })
    }

    fn time(&mut self) -> Option<Timestamp> {
        let raw = self.number()?;
        Some(Timestamp { seconds: (raw >> 1) as i64 ^ -((raw & 1) as i64), nanos: self.number32()? })
    }

    fn meta(&mut self) -> Option<NodeMeta> {
        let meta = Meta {
            mode: self.number32()?,
            uid: self.number32()?,
            gid: self.number32()?,
            mtime: self.time()?,
            atime: self.time()?,
        };
        let mut xattrs = Vec::new();
        for _ in 0..self.number()? {
            xattrs.push((self.bytes()?, self.bytes()?));
        }
        Some(NodeMeta { meta, xattrs })
    }

    fn node(&mut self) -> Option<Node> {
        Some(match self.byte()? {
            0 => Node::Directory,
            1 => Node::File { size: self.number()?, sparse: None },
            2 => Node::Symlink(self.bytes()?),
            3 => Node::CharDevice(self.number32()?, self.number32()?),
            4 => Node::BlockDevice(self.number32()?, self.number32()?),
            5 => Node::Fifo,
            6 => Node::HardLink(self.path()?),
            7 => Node::AufsLink(self.bytes()?),
            8 => {
                let size = self.number()?;
                let mut regions = Vec::new();
                for _ in 0..self.number()? {
                    regions.push(Region { offset: self.number()?, length: self.number()? });
                }
                Node::File { size, sparse: Some(regions) }
            }
            _ => return None,
        })
    }

    fn sum(&mut self) -> Option<Option<Sum>> {
        Some(match self.byte()? {
            0 => None,
            _ => {
                let (head, rest) = self.0.split_first_chunk()?;
                self.0 = rest;
                Some(Sum(u64::from_le_bytes(*head)))
            }
        })
    }

    fn record(&mut self) -> Option<Record> {
        let record = match self.byte()? {
            0 => {
                let path = self.path()?;
                let placed = self.place(&path)?;
                let source = self.place(&path)?;
                let (node, meta) = (self.node()?, self.meta()?);
                Record::Make { path, placed, source, node, meta, sum: self.sum()? }
            }
            1 => Record::Whiteout { parent: self.path()?, name: self.bytes()? },
            2 => Record::Opaque { dir: self.path()?, mtime: self.time()? },
            3 => Record::Stashed { placed: self.path()?, number: self.number()? },
            4 => Record::Removed { placed: self.path()? },
            5 => {
                let (placed, meta) = (self.path()?, self.meta()?);
                let marks = self.byte()?;
                Record::Left { placed, meta, opaque: marks & 1 != 0, whiteouts: marks & 2 != 0 }
            }
            6 => Record::Hides { placed: self.path()? },
            7 => Record::Aside { number: self.number()?, size: self.number()?, sum: self.sum()? },
            _ => return None,
        };
        self.0.is_empty().then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_round_trip_and_every_truncation_is_noticed() {
        let path = |s: &str| LiteralPath::clean(s.as_bytes()).0;
        let meta = NodeMeta {
            meta: Meta {
                mode: 0o4755,
                uid: 3_000_000_000,
                gid: 7,
                mtime: Timestamp { seconds: -2, nanos: 500_000_000 },
                atime: Timestamp { seconds: i64::MAX, nanos: 1 },
            },
            xattrs: vec![(b"user.k".to_vec(), b"\0\n=x".to_vec())],
        };
        let nodes = [
            Node::Directory,
            Node::File { size: u64::MAX, sparse: None },
            Node::File { size: 9, sparse: Some(vec![Region { offset: 3, length: 2 }]) },
            Node::Symlink(b"../x".to_vec()),
            Node::CharDevice(4095, 1_048_575),
            Node::BlockDevice(8, 0),
            Node::Fifo,
            Node::HardLink(path("a/b")),
            Node::AufsLink(b"1.2".to_vec()),
        ];
        let mut writer = Writer::new(Vec::new()).unwrap();
        let mut expected = Vec::new();
        for (i, node) in nodes.into_iter().enumerate() {
            let (p, placed) = (path("usr/lib/x"), [None, Some(path("usr/lib/x")), Some(path("lib/x"))][i % 3].clone());
            let source = placed.clone();
            let sum = [None, Some(Sum(0xfeed_0000_0000_0001))][i % 2];
            let made = RecordRef::Make {
                path: &p,
                placed: placed.as_ref(),
                source: source.as_ref(),
                node: &node,
                meta: &meta,
                sum,
            };
            writer.push(made).unwrap();
            expected.push(Record::Make { path: p, placed, source, node, meta: meta.clone(), sum });
        }
        writer.push(RecordRef::Whiteout { parent: &path(""), name: b"n" }).unwrap();
        expected.push(Record::Whiteout { parent: path(""), name: b"n".to_vec() });
        writer.push(RecordRef::Opaque { dir: &path("d"), mtime: meta.meta.mtime }).unwrap();
        expected.push(Record::Opaque { dir: path("d"), mtime: meta.meta.mtime });
        writer.push(RecordRef::Stashed { placed: &path("d"), number: 300 }).unwrap();
        expected.push(Record::Stashed { placed: path("d"), number: 300 });
        writer.push(RecordRef::Removed { placed: &path("d/x") }).unwrap();
        expected.push(Record::Removed { placed: path("d/x") });
        let left = RecordRef::Left { placed: &path("d"), meta: &meta, opaque: true, whiteouts: false };
        writer.push(left).unwrap();
        expected.push(Record::Left { placed: path("d"), meta: meta.clone(), opaque: true, whiteouts: false });
        writer.push(RecordRef::Hides { placed: &path("d/n") }).unwrap();
        expected.push(Record::Hides { placed: path("d/n") });
        let bytes = writer.finish().unwrap();
        let read = |bytes: &[u8]| -> Result<Vec<Record>> {
            let mut reader = Reader::new(bytes)?;
            let mut out = Vec::new();
            while let Some(record) = reader.read()? {
                out.push(record);
            }
            Ok(out)
        };
        assert_eq!(read(&bytes).unwrap(), expected);
        let mut whole = 0;
        for end in 0..bytes.len() {
            whole += usize::from(read(&bytes[..end]).is_ok());
        }
        assert_eq!(whole, expected.len(), "only cuts between records may pass");
    }
}
