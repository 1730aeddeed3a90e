//! One header block as raw fields.
//!
//! Owns: which dialect a block speaks and what its fixed fields say. Refuses to know: extension headers, what follows
//! the block. The `tar` crate gives the field offsets only; every number goes through [`super::number`], because the
//! crate keeps 8 of the 12 bytes of a base-256 field.

use ::tar::{GnuHeader, Header as Raw};

use super::error::{Error, Place};
use super::number;
use super::{BLOCK, Timestamp};

/// Bytes of the prefix field of a star header; its times follow.
const STAR_PREFIX: usize = 131;

/// A header block whose checksum is right.
pub(super) struct Header {
    raw: Raw,
    place: Place,
}

impl Header {
    /// Checks the checksum (T7: unsigned or signed sum) of a block that is not all zero.
    pub(super) fn new(block: &[u8; BLOCK], offset: u64) -> Result<Header, Error> {
        let mut raw = Raw::from_byte_slice(block).clone();
        let mut place = Place { offset, entry: Vec::new() };

        let field = raw.as_old().cksum;
        let blank = u32::from(b' ') * field.len() as u32;
        let unsigned = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
        let signed = |bytes: &[u8]| bytes.iter().map(|&b| i32::from(b as i8)).sum::<i32>();
        let expected = unsigned(block) - unsigned(&field) + blank;
        let expected_signed = signed(block) - signed(&field) + blank as i32;
        let found = number::field(&field);
        if found != Some(i128::from(expected)) && found != Some(i128::from(expected_signed)) {
            return Err(Error::Checksum { at: place, expected, found });
        }

        // Writers exist that leave the version of a POSIX header empty; readers look at the magic only, while the
        // crate's view wants "00".
        if block.get(257..263) == Some(b"ustar\0")
            && let Some(version) = raw.as_mut_bytes().get_mut(263..265)
        {
            version.copy_from_slice(b"00");
        }
        place.entry = until_nul(&raw.as_old().name).to_vec();
        let (magic, prefix) =
            (block.get(257..265).unwrap_or_default(), until_nul(block.get(345..500).unwrap_or_default()));
        // libarchive looks at five letters, GNU tar and Go at what follows them as well.
        let known = magic.starts_with(b"ustar\0") || magic == b"ustar  \0" || !magic.starts_with(b"ustar");
        if !known && !prefix.is_empty() {
            return Err(Error::AmbiguousPrefix { at: place, magic: magic.to_vec(), prefix: prefix.to_vec() });
        }
        Ok(Header { raw, place })
    }

    /// Returns where the header stands, with the name of its own name field.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the type flag.
    pub(super) fn typeflag(&self) -> u8 {
        self.raw.as_old().linkflag[0]
    }

    /// Decodes the size; negative sizes are refused whatever the type (T27).
    ///
    /// Digits behind a leading NUL are refused: bsdtar and Python read nothing there, GNU tar and Go the number, and what
    /// follows the header is data to the one and an entry to the other.
    pub(super) fn size(&self) -> Result<i128, Error> {
        let raw = &self.raw.as_old().size;
        let found = self.non_negative("size", raw, i64::MAX.into())?;
        if raw.first() == Some(&0) && found != 0 {
            return Err(Error::NotANumber { at: self.place.clone(), field: "size", found: raw.to_vec() });
        }
        Ok(found)
    }

    /// Decodes the mode, keeping the permission bits only (M3).
    pub(super) fn mode(&self) -> Result<u32, Error> {
        let mode = self.non_negative("mode", &self.raw.as_old().mode, i64::MAX.into())?;
        Ok(u32::try_from(mode & 0o7777).unwrap_or_default())
    }

    /// Decodes the owner; the range is the caller's to check.
    pub(super) fn uid(&self) -> Result<i128, Error> {
        self.number("uid", &self.raw.as_old().uid)
    }

    /// Decodes the group; the range is the caller's to check.
    pub(super) fn gid(&self) -> Result<i128, Error> {
        self.number("gid", &self.raw.as_old().gid)
    }

    /// Decodes the modification time, saturating.
    pub(super) fn mtime(&self) -> Result<Timestamp, Error> {
        Ok(number::whole_seconds(self.number("mtime", &self.raw.as_old().mtime)?))
    }

    /// Decodes the access time of a GNU or star header that has one.
    pub(super) fn atime(&self) -> Option<Timestamp> {
        let raw = match (self.gnu(), self.star()) {
            (Some(gnu), _) if self.go17_prefix().is_none() => &gnu.atime[..],
            (None, Some((_, times))) => times.get(..12)?,
            _ => return None,
        };
        if raw.first() == Some(&0) {
            return None;
        }
        number::field(raw).map(number::whole_seconds)
    }

    /// Decodes major and minor number; a header without such fields has 0 and 0.
    pub(super) fn device(&self) -> Result<(i128, i128), Error> {
        let (major, minor) = match (self.raw.as_ustar(), self.gnu()) {
            (Some(h), _) => (&h.dev_major, &h.dev_minor),
            (_, Some(h)) => (&h.dev_major, &h.dev_minor),
            (None, None) => return Ok((0, 0)),
        };
        Ok((self.number("device major", major)?, self.number("device minor", minor)?))
    }

    /// Returns the name of the fixed fields: cut at NUL, with the prefix of a POSIX header (T29).
    pub(super) fn path(&self) -> Vec<u8> {
        let prefix = match (self.star(), self.raw.as_ustar()) {
            (Some((prefix, _)), _) => until_nul(prefix),
            (None, Some(h)) => until_nul(&h.prefix),
            (None, None) => self.go17_prefix().unwrap_or_default(),
        };
        let name = until_nul(&self.raw.as_old().name);
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Returns the link name of the fixed field, cut at NUL.
    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.raw.as_old().linkname).to_vec()
    }

    /// Returns the GNU view of a block with GNU magic.
    pub(super) fn gnu(&self) -> Option<&GnuHeader> {
        self.raw.as_gnu()
    }

    /// Decodes the size of the expanded file of a GNU sparse header.
    pub(super) fn real_size(&self, gnu: &GnuHeader) -> Result<i128, Error> {
        self.non_negative("sparse real size", &gnu.realsize, i64::MAX.into())
    }

    /// Splits the prefix field of a star header into prefix and times: its trailer says `tar`, or the prefix has room
    /// to spare and two octal times follow it, which is GNU tar's test.
    fn star(&self) -> Option<(&[u8], &[u8])> {
        let posix = self.raw.as_ustar()?;
        let (prefix, times) = posix.prefix.split_at(STAR_PREFIX);
        let (atime, ctime) = times.split_at(12);
        let is_time = |t: &[u8]| t.first().is_some_and(|b| matches!(b, b'0'..=b'7')) && t.last() == Some(&b' ');
        let by_trailer = posix.pad.ends_with(b"tar\0");
        let by_times = prefix.last() == Some(&0) && is_time(atime) && is_time(ctime);
        (by_trailer || by_times).then_some((prefix, times))
    }

    /// Returns the prefix that Go before 1.8 wrote over the times of a GNU header: they are no numbers then
    /// (<https://github.com/golang/go/blob/master/src/archive/tar/reader.go>, `readHeader`).
    fn go17_prefix(&self) -> Option<&[u8]> {
        let gnu = self.gnu()?;
        let broken = |t: &[u8; 12]| t[0] != 0 && number::field(t).is_none();
        if !broken(&gnu.atime) && !broken(&gnu.ctime) {
            return None;
        }
        let prefix = until_nul(self.raw.as_bytes().get(345..500)?);
        prefix.is_ascii().then_some(prefix)
    }

    fn number(&self, field: &'static str, raw: &[u8]) -> Result<i128, Error> {
        number::field(raw).ok_or_else(|| Error::NotANumber { at: self.place.clone(), field, found: raw.to_vec() })
    }

    fn non_negative(&self, field: &'static str, raw: &[u8], max: i128) -> Result<i128, Error> {
        let found = self.number(field, raw)?;
        if !(0..=max).contains(&found) {
            return Err(Error::OutOfRange { at: self.place.clone(), field, found, max });
        }
        Ok(found)
    }
}

/// Cuts a C string at its first NUL.
pub(super) fn until_nul(raw: &[u8]) -> &[u8] {
    raw.split(|&b| b == 0).next().unwrap_or_default()
}

/// Takes the name of a GNU `L` or `K` body, cut at its first NUL (T13); an empty one says nothing.
pub(super) fn long(body: &[u8]) -> Option<Vec<u8>> {
    let name = until_nul(body);
    (!name.is_empty()).then(|| name.to_vec())
}
