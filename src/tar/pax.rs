//! PAX extended headers: records, and what they say about one entry.
//!
//! Owns: the record syntax, the keys unply knows, xattrs of both carriers. Refuses to know: header blocks, precedence
//! over header fields. Invariants: parsing goes by the declared record length only, so values may hold any byte
//! (M12); a record that does not add up refuses the archive (T19), it is never skipped.
//! Format: <https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html#tag_20_92_13_03>.

use std::collections::HashMap;

use super::error::{Error, Place};
use super::sparse::PaxSparse;
use super::{Timestamp, number};
use crate::policy::{Limit, Limits};

/// Keys that carry metadata which unply knowingly does not apply (M14).
const NOT_APPLIED: [&[u8]; 4] = [b"RHT.security.selinux", b"SCHILY.acl.", b"SCHILY.fflags", b"LIBARCHIVE.symlinktype"];

/// Names of keys that a message lists at most.
const MAX_LISTED_KEYS: usize = 8;

/// What Linux stores of an xattr at most, in bytes: `XATTR_NAME_MAX` and `XATTR_SIZE_MAX` (M21).
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 65_536;

/// Bytes of a key or value that an error keeps.
const MAX_EXCERPT: usize = 128;

/// What the PAX header of one entry says; `None` where the header field or a GNU header decides.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<i128>,
    pub(super) uid: Option<i128>,
    pub(super) gid: Option<i128>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) atime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<PaxSparse>,
    /// Keys known and not applied, for a warning.
    pub(super) not_applied: Vec<Vec<u8>>,
    /// Xattrs that only libarchive's key gives, at most a handful.
    pub(super) libarchive_only: Vec<Vec<u8>>,
}

/// One record: where it begins in the stream, its key and its value.
struct Record<'a> {
    offset: u64,
    key: &'a [u8],
    value: &'a [u8],
}

/// Splits a body into records; stops at the first error.
struct Records<'a> {
    rest: &'a [u8],
    place: &'a Place,
    /// Offset of `rest` in the stream.
    offset: u64,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        match split_record(self.rest) {
            Ok((key, value, rest)) => {
                self.offset = offset.saturating_add((self.rest.len() - rest.len()) as u64);
                self.rest = rest;
                Some(Ok(Record { offset, key, value }))
            }
            Err(problem) => {
                self.rest = &[];
                Some(Err(Error::PaxRecord { at: Place { offset, entry: self.place.entry.clone() }, problem }))
            }
        }
    }
}

/// Key, value, and what follows the record.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits `LENGTH KEY=VALUE\n` off, where LENGTH counts the whole record.
fn split_record(body: &[u8]) -> Result<Split<'_>, &'static str> {
    let space = body.iter().take(21).position(|&b| b == b' ').ok_or("no length")?;
    let (digits, _) = body.split_at(space);
    let length = number::decimal(digits).ok_or("its length is not a number")?;
    let length = usize::try_from(length).map_err(|_| "longer than the header")?;
    let (record, rest) = body.split_at_checked(length).ok_or("longer than the header")?;
    let text = record.get(space + 1..).ok_or("shorter than its own length field")?;
    let text = text.strip_suffix(b"\n").ok_or("no newline at its end")?;
    let equals = text.iter().position(|&b| b == b'=').ok_or("no equals sign")?;
    let (key, value) = text.split_at(equals);
    if key.is_empty() {
        return Err("empty key");
    }
    Ok((key, value.get(1..).unwrap_or_default(), rest))
}

fn records<'a>(body: &'a [u8], place: &'a Place) -> Records<'a> {
    Records { rest: body, place, offset: place.offset.saturating_add(super::BLOCK as u64) }
}

/// Checks the syntax of a global header and lists its keys other than `comment`, at most a handful.
pub(super) fn global_keys(body: &[u8], place: &Place) -> Result<Vec<Vec<u8>>, Error> {
    let mut keys = Vec::new();
    for record in records(body, place) {
        let record = record?;
        if record.key != b"comment" {
            list(&mut keys, record.key);
        }
    }
    Ok(keys)
}

/// Joins listed keys for a message.
pub(super) fn join(keys: &[Vec<u8>]) -> String {
    keys.iter().map(|k| crate::error::escape(k)).collect::<Vec<_>>().join(", ")
}

fn list(keys: &mut Vec<Vec<u8>>, key: &[u8]) {
    let key = excerpt(key);
    if keys.len() < MAX_LISTED_KEYS && !keys.contains(&key) {
        keys.push(key);
    }
}

fn excerpt(bytes: &[u8]) -> Vec<u8> {
    bytes.get(..MAX_EXCERPT).unwrap_or(bytes).to_vec()
}

/// Reads the header of one entry. Later records of one key win (T18), an empty value takes an earlier one back (R-26,
/// T22), unknown keys are ignored.
pub(super) fn parse(body: &[u8], place: &Place, limits: &Limits) -> Result<Pax, Error> {
    let mut pax = Pax::default();
    let mut xattrs = Xattrs::default();
    for record in records(body, place) {
        let record = record?;
        let at = || Place { offset: record.offset, entry: place.entry.clone() };
        let bad =
            |expected| Error::PaxValue { at: at(), key: excerpt(record.key), found: excerpt(record.value), expected };
        let nul = || Error::PaxNul { at: at(), key: excerpt(record.key) };
        if record.key.contains(&0) {
            return Err(nul());
        }
        let value = (!record.value.is_empty()).then_some(record.value);
        let text = || if record.value.contains(&0) { Err(nul()) } else { Ok(value.map(<[u8]>::to_vec)) };
        let decimal = || value.map(|v| number::decimal(v).ok_or_else(|| bad("an unsigned decimal number"))).transpose();
        let time =
            || value.map(|v| number::pax_time(v).ok_or_else(|| bad("seconds with an optional fraction"))).transpose();
        match record.key {
            b"path" => pax.path = text()?,
            b"linkpath" => pax.linkpath = text()?,
            b"uname" | b"gname" => drop(text()?),
            b"size" => pax.size = decimal()?,
            b"uid" => pax.uid = decimal()?,
            b"gid" => pax.gid = decimal()?,
            b"mtime" => pax.mtime = time()?,
            b"atime" => pax.atime = time()?,
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    storable(name, record.value, at)?;
                    xattrs.add(name.to_vec(), record.value.to_vec(), Carrier::Schily);
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = url_decode(name);
                    if name.contains(&0) {
                        return Err(nul());
                    }
                    let value = base64_decode(record.value).ok_or_else(|| bad("base64"))?;
                    storable(&name, &value, at)?;
                    xattrs.add(name, value, Carrier::Libarchive);
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    let sparse = pax.sparse.get_or_insert_default();
                    match name {
                        b"name" => sparse.name = text()?,
                        b"major" => sparse.major = decimal()?,
                        b"minor" => sparse.minor = decimal()?,
                        b"size" | b"realsize" => sparse.real_size = decimal()?,
                        b"numblocks" => sparse.count = decimal()?,
                        b"offset" => sparse.push_offset(decimal()?.ok_or_else(|| bad("a number"))?, at())?,
                        b"numbytes" => sparse.push_length(decimal()?.ok_or_else(|| bad("a number"))?, at(), limits)?,
                        b"map" => sparse.set_map(value.unwrap_or_default(), at(), limits)?,
                        _ => list(&mut pax.not_applied, key),
                    }
                } else if NOT_APPLIED.iter().any(|known| key.starts_with(known)) {
                    list(&mut pax.not_applied, key);
                }
            }
        }
        let bytes = xattrs.bytes;
        if bytes > limits.max_xattr_bytes {
            let (found, limit) = (bytes as i128, limits.max_xattr_bytes as u64);
            return Err(Error::Limit { at: at(), which: Limit::XattrBytes, found, limit });
        }
        if xattrs.list.last().is_some_and(|x| x.0.is_empty()) {
            return Err(bad("a name after the prefix of an extended attribute"));
        }
    }
    for (name, ..) in xattrs.list.iter().filter(|x| x.2 == Carrier::Libarchive) {
        list(&mut pax.libarchive_only, name);
    }
    pax.xattrs = xattrs.list.into_iter().map(|(name, value, _)| (name, value)).collect();
    Ok(pax)
}

/// Refuses an xattr that no file system of Linux could hold, whatever becomes of it (M21).
fn storable(name: &[u8], value: &[u8], at: impl FnOnce() -> Place) -> Result<(), Error> {
    for (part, found, max) in [("name", name.len(), MAX_XATTR_NAME), ("value", value.len(), MAX_XATTR_VALUE)] {
        if found > max {
            return Err(Error::XattrTooLarge { at: at(), part, name: excerpt(name), found, max });
        }
    }
    Ok(())
}

/// Which key family an xattr came with; the later one in this order wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Carrier {
    Libarchive,
    Schily,
}

/// Xattrs in archive order, no name twice.
#[derive(Default)]
struct Xattrs {
    list: Vec<(Vec<u8>, Vec<u8>, Carrier)>,
    index: HashMap<Vec<u8>, usize>,
    bytes: usize,
}

impl Xattrs {
    fn add(&mut self, name: Vec<u8>, value: Vec<u8>, carrier: Carrier) {
        match self.index.get(&name).and_then(|&i| self.list.get_mut(i)) {
            Some(old) if carrier >= old.2 => {
                self.bytes = self.bytes.saturating_sub(old.1.len()).saturating_add(value.len());
                (old.1, old.2) = (value, carrier);
            }
            Some(_) => {}
            None => {
                self.bytes = self.bytes.saturating_add(name.len()).saturating_add(value.len());
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value, carrier));
            }
        }
    }
}

/// Decodes `%XX`; a percent sign without two hexadecimal digits stands for itself, as in libarchive.
fn url_decode(text: &[u8]) -> Vec<u8> {
    let hex = |b: Option<&u8>| b.and_then(|&b| char::from(b).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut i = 0;
    while let Some(&b) = text.get(i) {
        match (b, hex(text.get(i + 1)), hex(text.get(i + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                i += 3;
            }
            _ => {
                out.push(b);
                i += 1;
            }
        }
    }
    out
}

/// Decodes base64 with or without padding; anything else than its alphabet is refused.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    if text.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut bits = 0u32;
        for &b in chunk {
            let six = match b {
                b'A'..=b'Z' => b - b'A',
                b'a'..=b'z' => b - b'a' + 26,
                b'0'..=b'9' => b - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        bits <<= 6 * (4 - chunk.len());
        let [_, bytes @ ..] = bits.to_be_bytes();
        out.extend(bytes.iter().take(chunk.len() - 1));
    }
    Some(out)
}
