//! A tar writer that does exactly what it is told.
//!
//! Owns: blocks, header fields, PAX records, compression and digests of test archives. Refuses to know: what an entry
//! means. Invariant: nothing is checked or repaired; whatever a test asks for is in the bytes.
//! Field layout: <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_06>.

use crate::entry::{EntryKind, EntrySpec};
use sha2::{Digest, Sha256};
use std::io::Write;

/// Size of a tar block in bytes.
pub const BLOCK: usize = 512;

/// A header field as offset and length in bytes.
pub type Field = (usize, usize);

/// Offsets of the header fields.
pub mod field {
    use super::Field;
    /// Name.
    pub const NAME: Field = (0, 100);
    /// Mode.
    pub const MODE: Field = (100, 8);
    /// Owner.
    pub const UID: Field = (108, 8);
    /// Group.
    pub const GID: Field = (116, 8);
    /// Size.
    pub const SIZE: Field = (124, 12);
    /// Modification time.
    pub const MTIME: Field = (136, 12);
    /// Checksum.
    pub const CHECKSUM: Field = (148, 8);
    /// Type flag.
    pub const TYPEFLAG: Field = (156, 1);
    /// Link name.
    pub const LINKNAME: Field = (157, 100);
    /// Magic and version together.
    pub const MAGIC: Field = (257, 8);
    /// Owner's name.
    pub const UNAME: Field = (265, 32);
    /// Group's name.
    pub const GNAME: Field = (297, 32);
    /// Device major.
    pub const DEVMAJOR: Field = (329, 8);
    /// Device minor.
    pub const DEVMINOR: Field = (337, 8);
    /// ustar prefix (GNU headers keep other things there).
    pub const PREFIX: Field = (345, 155);
}

/// Magic and version of a POSIX ustar header.
pub const MAGIC_USTAR: &[u8; 8] = b"ustar\x0000";
/// Magic and version of a GNU header.
pub const MAGIC_GNU: &[u8; 8] = b"ustar  \0";
/// Magic and version of a V7 header.
pub const MAGIC_V7: &[u8; 8] = b"\0\0\0\0\0\0\0\0";

/// One header block under construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; BLOCK],
    checksum: Option<Vec<u8>>,
}

impl Header {
    /// Starts a ustar header of this type and name (cut at 100 bytes): 0644, 0:0, size 0, mtime 0.
    pub fn new(typeflag: u8, name: impl AsRef<[u8]>) -> Header {
        let header = Header { bytes: [0; BLOCK], checksum: None };
        let name = name.as_ref();
        header
            .raw(field::NAME, &name[..name.len().min(100)])
            .octal(field::MODE, 0o644)
            .octal(field::UID, 0)
            .octal(field::GID, 0)
            .octal(field::SIZE, 0)
            .octal(field::MTIME, 0)
            .raw(field::TYPEFLAG, [typeflag])
            .raw(field::MAGIC, MAGIC_USTAR)
    }

    /// Puts bytes into a field, zero-filling the rest of it.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn raw(mut self, (start, length): Field, bytes: impl AsRef<[u8]>) -> Header {
        let bytes = bytes.as_ref();
        assert!(bytes.len() <= length, "{} bytes do not fit a field of {length}", bytes.len());
        self.bytes[start..start + length].fill(0);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Puts an octal number into a field, zero-padded, with a final NUL.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn octal(self, field: Field, value: u64) -> Header {
        let digits = format!("{value:0width$o}", width = field.1 - 1);
        self.raw(field, digits)
    }

    /// Puts a base-256 number into a field (GNU's form for what octal cannot hold, negative numbers included).
    pub fn base256(self, field: Field, value: i128) -> Header {
        let mut bytes = vec![if value < 0 { 0xff } else { 0 }; field.1];
        let number = value.to_be_bytes();
        let take = field.1.min(number.len());
        let at = field.1 - take;
        bytes[at..].copy_from_slice(&number[number.len() - take..]);
        bytes[0] |= 0x80;
        self.raw(field, bytes)
    }

    /// Sets the size field.
    pub fn size(self, size: u64) -> Header {
        self.octal(field::SIZE, size)
    }

    /// Replaces the computed checksum by these bytes.
    pub fn checksum(mut self, bytes: impl AsRef<[u8]>) -> Header {
        self.checksum = Some(bytes.as_ref().to_vec());
        self
    }

    /// Sums the bytes as unsigned (or signed) numbers with the checksum field taken as spaces.
    pub fn sum(&self, signed: bool) -> i64 {
        let at = field::CHECKSUM.0..field::CHECKSUM.0 + field::CHECKSUM.1;
        let byte = |(i, b): (usize, &u8)| match () {
            () if at.contains(&i) => 32,
            () if signed => i64::from(*b as i8),
            () => i64::from(*b),
        };
        self.bytes.iter().enumerate().map(byte).sum()
    }

    /// Returns the finished block.
    pub fn block(&self) -> [u8; BLOCK] {
        let sum = self.checksum.clone().unwrap_or_else(|| format!("{:06o}\0 ", self.sum(false)).into_bytes());
        self.clone().raw(field::CHECKSUM, sum).bytes
    }
}

/// An archive under construction.
#[derive(Debug, Clone, Default)]
pub struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    /// Starts an empty archive.
    pub fn new() -> TarBuilder {
        TarBuilder::default()
    }

    /// Returns how many bytes were written so far: the offset of the next header.
    pub fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Appends bytes as they are, without padding.
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> TarBuilder {
        self.bytes.extend_from_slice(bytes.as_ref());
        self
    }

    /// Appends a header block.
    pub fn header(self, header: &Header) -> TarBuilder {
        self.raw(header.block())
    }

    /// Appends data and pads it to a whole block.
    pub fn data(self, data: impl AsRef<[u8]>) -> TarBuilder {
        let data = data.as_ref();
        let padding = data.len().next_multiple_of(BLOCK) - data.len();
        self.raw(data).zeros(padding)
    }

    /// Appends NUL bytes.
    pub fn zeros(mut self, count: usize) -> TarBuilder {
        self.bytes.resize(self.bytes.len() + count, 0);
        self
    }

    /// Appends a header whose size field is the data's length, and the data.
    pub fn member(self, header: Header, data: impl AsRef<[u8]>) -> TarBuilder {
        let header = header.size(data.as_ref().len() as u64);
        self.header(&header).data(data)
    }

    /// Appends a PAX extended header (`x`) for the next entry.
    pub fn pax<K: AsRef<[u8]>, V: AsRef<[u8]>>(self, records: &[(K, V)]) -> TarBuilder {
        self.pax_of_type(b'x', pax_records(records))
    }

    /// Appends a global PAX header (`g`).
    pub fn pax_global<K: AsRef<[u8]>, V: AsRef<[u8]>>(self, records: &[(K, V)]) -> TarBuilder {
        self.pax_of_type(b'g', pax_records(records))
    }

    /// Appends an extended header of any type with any record bytes.
    pub fn pax_of_type(self, typeflag: u8, records: impl AsRef<[u8]>) -> TarBuilder {
        self.member(Header::new(typeflag, "PaxHeaders.0/entry"), records)
    }

    /// Appends a GNU long name (`L`) for the next entry; the final NUL is added.
    pub fn gnu_long_name(self, name: impl AsRef<[u8]>) -> TarBuilder {
        self.gnu_long(b'L', name.as_ref())
    }

    /// Appends a GNU long link target (`K`) for the next entry; the final NUL is added.
    pub fn gnu_long_link(self, target: impl AsRef<[u8]>) -> TarBuilder {
        self.gnu_long(b'K', target.as_ref())
    }

    fn gnu_long(self, typeflag: u8, text: &[u8]) -> TarBuilder {
        let header = Header::new(typeflag, "././@LongLink").raw(field::MAGIC, MAGIC_GNU);
        self.member(header, [text, b"\0"].concat())
    }

    /// Appends an entry, with PAX records for whatever a ustar header cannot hold.
    pub fn entry(mut self, entry: &EntrySpec) -> TarBuilder {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let (typeflag, data, link): (u8, &[u8], &[u8]) = match &entry.kind {
            EntryKind::File(content) => (b'0', content, b""),
            EntryKind::HardLink(target) => (b'1', b"", target),
            EntryKind::Symlink(target) => (b'2', b"", target),
            EntryKind::Char(..) => (b'3', b"", b""),
            EntryKind::Block(..) => (b'4', b"", b""),
            EntryKind::Dir => (b'5', b"", b""),
            EntryKind::Fifo => (b'6', b"", b""),
        };
        let mut header = Header::new(typeflag, "").octal(field::MODE, u64::from(entry.mode));
        match split_name(&entry.path) {
            Some((prefix, name)) => header = header.raw(field::PREFIX, prefix).raw(field::NAME, name),
            None => {
                records.push((b"path".to_vec(), entry.path.clone()));
                header = header.raw(field::NAME, &entry.path[..entry.path.len().min(100)]);
            }
        }
        if link.len() > 100 {
            records.push((b"linkpath".to_vec(), link.to_vec()));
        }
        header = header.raw(field::LINKNAME, &link[..link.len().min(100)]);
        for (key, at, id) in [("uid", field::UID, entry.uid), ("gid", field::GID, entry.gid)] {
            match id {
                0..=0o7777777 => header = header.octal(at, id),
                _ => records.push((key.into(), id.to_string().into_bytes())),
            }
        }
        match entry.mtime {
            (seconds @ 0..=0o77777777777, 0) => header = header.octal(field::MTIME, seconds as u64),
            (seconds, nanos) => records.push((b"mtime".to_vec(), pax_time(seconds, nanos).into_bytes())),
        }
        if let EntryKind::Char(major, minor) | EntryKind::Block(major, minor) = entry.kind {
            for (at, number) in [(field::DEVMAJOR, major), (field::DEVMINOR, minor)] {
                header = match number {
                    0..=0o7777777 => header.octal(at, u64::from(number)),
                    _ => header.base256(at, i128::from(number)),
                };
            }
        }
        for (name, value) in &entry.xattrs {
            records.push(([b"SCHILY.xattr.", &name[..]].concat(), value.clone()));
        }
        if !records.is_empty() {
            self = self.pax(&records);
        }
        self.member(header, data)
    }

    /// Ends the archive with two zero blocks.
    pub fn finish(self) -> Vec<u8> {
        self.zeros(2 * BLOCK).bytes
    }

    /// Returns the bytes as they are, without an end mark.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// Splits a name into ustar prefix and name; `None` when no split fits.
fn split_name(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    let fits = |&i: &usize| path[i] == b'/' && (1..=155).contains(&i) && (1..=100).contains(&(path.len() - i - 1));
    (0..path.len()).find(fits).map(|i| (&path[..i], &path[i + 1..]))
}

/// Formats PAX records; each length counts itself.
pub fn pax_records<K: AsRef<[u8]>, V: AsRef<[u8]>>(records: &[(K, V)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let (key, value) = (key.as_ref(), value.as_ref());
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        out.extend_from_slice(format!("{length} ").as_bytes());
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

/// Formats a PAX time; `seconds` are rounded down, so -2 s and 0.5e9 ns is `-1.5`.
pub fn pax_time(seconds: i64, nanos: u32) -> String {
    let (sign, whole, part) = match (seconds, nanos) {
        (0.., n) => ("", i128::from(seconds), n),
        (_, 0) => ("-", -i128::from(seconds), 0),
        (_, n) => ("-", -i128::from(seconds) - 1, 1_000_000_000 - n),
    };
    let text = format!("{sign}{whole}.{part:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Makes the tar of a layer from its entries, in this order.
pub fn layer<'a>(entries: impl IntoIterator<Item = &'a EntrySpec>) -> Vec<u8> {
    entries.into_iter().fold(TarBuilder::new(), |tar, entry| tar.entry(entry)).finish()
}

/// Compresses into one gzip member, without a name or time in its header.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("writing into memory");
    encoder.finish().expect("writing into memory")
}

/// Compresses into one zstd frame with a checksum.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 1).expect("level 1 exists");
    encoder.include_checksum(true).expect("a checksum is supported");
    encoder.write_all(bytes).expect("writing into memory");
    encoder.finish().expect("writing into memory")
}

/// Returns the SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Returns the SHA-256 of bytes in lower-case hexadecimal digits, without `sha256:`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

/// Formats bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests;
