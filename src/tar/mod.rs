//! Tar headers as a function of bytes: 512-byte blocks in, entries out, no I/O.
//!
//! Owns: framing, the v7, ustar, GNU, star and PAX dialects, extension headers, sparse maps, and every limit on them.
//! Refuses to know: whiteouts, file systems, compression, what an entry's data is.
//!
//! Words. A *header block* describes an entry. An *extension header* (`x`, `g`, `X`, `L`, `K`) describes the entry
//! after it. *Data blocks* belong to an entry and never pass through the parser. What stands between header and data —
//! bodies of extension headers, extension blocks of old sparse files, maps of PAX 1.0 sparse files, directory lists of
//! GNU dumps — is metadata and does pass through it.
//!
//! ```
//! use unply::policy::Limits;
//! use unply::tar::{Parser, Step};
//!
//! # fn demo(archive: &[u8]) -> Result<(), unply::tar::Error> {
//! let mut parser = Parser::new(&Limits::default());
//! let mut blocks = archive.chunks(512);
//! while let Some(block) = blocks.next() {
//!     let Ok(block) = block.try_into() else { return Err(parser.partial_block()) };
//!     match parser.block(block)? {
//!         Step::More => {}
//!         Step::Entry(entry) => { blocks.by_ref().take(entry.stored.div_ceil(512) as usize).for_each(drop) }
//!         Step::Skip(bytes) => { blocks.by_ref().take((bytes / 512) as usize).for_each(drop) }
//!         Step::End => return Ok(()), // whatever follows is padding, and part of the diff_id all the same
//!     }
//! }
//! parser.finish()
//! # }
//! # assert!(demo(&[0; 1024]).is_ok());
//! ```
//!
//! Invariants: the parser never guesses. Where real readers disagree about the meaning or the framing of an archive it
//! refuses it (T6, T16, T17, L10); where only a size on a type without data is in question (T9, T27) it reads what
//! container engines read, and says so. After an error it only repeats that error, because the framing is lost. Memory is
//! bounded by [`Limits`] whatever the input.
//!
//! Numbers such as T15 name rules of the project's rule book; the base is
//! <https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html#tag_20_92_13_06> and
//! <https://www.gnu.org/software/tar/manual/html_node/Standard.html>.

mod entry;
mod error;
mod header;
mod number;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use std::mem;

use ::tar::GnuExtSparseHeader;

pub use entry::{Entry, EntryKind, Oddity, Region, Timestamp};
pub use error::{Error, Place};

use crate::policy::{Limit, Limits};
use header::{Header, long};
use number::{MAX_MAJOR, MAX_MINOR, id, ranged, small};
use pax::Pax;
use sparse::{MapText, PaxMap, RawRegion};

/// Bytes of one block.
const BLOCK: usize = 512;

/// The longest symlink target that Linux stores, in bytes (S1).
const MAX_SYMLINK_TARGET: usize = 4095;

/// Oddities kept for a caller that does not fetch them; further ones are dropped, so that memory stays bounded.
const MAX_PENDING_ODDITIES: usize = 1024;

/// What the caller does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Hands over the next block.
    More,
    /// Consumes [`Entry::stored`] bytes of data, padded to 512, by itself; then hands over the next block.
    Entry(Box<Entry>),
    /// Discards that many bytes (padding included), then hands over the next block.
    Skip(u64),
    /// Reads the rest of the stream without the parser: the archive ended.
    End,
}

/// An extension header whose body is being read.
#[derive(Debug)]
struct Extension {
    kind: u8,
    place: Place,
    /// Bytes of the body that are still to come, without padding.
    remaining: u64,
    body: Vec<u8>,
}

/// A sparse file whose map is not complete.
#[derive(Debug)]
struct Draft {
    entry: Box<Entry>,
    size: u64,
    place: Place,
}

#[derive(Debug)]
enum State {
    /// The next block is a header, or the first zero block.
    Header,
    /// One zero block was seen.
    ZeroSeen,
    /// The next block belongs to an extension header.
    Extension(Extension),
    /// The next block is an extension block of an old GNU sparse file.
    OldSparse(Draft, Vec<RawRegion>),
    /// The next block belongs to the map of a PAX 1.0 sparse file.
    PaxMap(Draft, MapText),
    /// The next blocks, this many bytes, list the content of a dumped directory.
    Dumpdir(Box<Entry>, u64),
    /// The archive ended.
    End,
}

/// Extension headers read since the last entry.
#[derive(Debug, Default)]
struct Pending {
    pax: Option<(u64, Pax)>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Where and what the last header was that wants an entry; global headers want none.
    wants_entry: Option<(Place, u8)>,
    headers: u32,
    bytes: u64,
}

/// A tar parser that is fed block by block; see the module's example.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    offset: u64,
    state: State,
    pending: Pending,
    entries: u64,
    oddities: Vec<Oddity>,
    notes: bool,
    failed: Option<Error>,
}

impl Parser {
    /// Creates a parser at offset 0 of an archive.
    pub fn new(limits: &Limits) -> Parser {
        Parser {
            limits: limits.clone(),
            offset: 0,
            state: State::Header,
            pending: Pending::default(),
            entries: 0,
            oddities: Vec::new(),
            notes: false,
            failed: None,
        }
    }

    /// Also reports as oddities what is customary or read in one way here, and differently or not at all elsewhere.
    pub fn with_notes(mut self) -> Parser {
        self.notes = true;
        self
    }

    /// Takes the next block that is not data of an entry.
    ///
    /// # Errors
    /// One variant of [`Error`] per refusal; every further call repeats it.
    pub fn block(&mut self, block: &[u8; BLOCK]) -> Result<Step, Error> {
        self.sticky(|parser| parser.advance(block))
    }

    /// Says that the stream ended where a block was expected (T1, T2, T31: the zero blocks may be missing).
    ///
    /// # Errors
    /// [`Error::Truncated`] inside metadata, [`Error::Dangling`] behind an extension header that no entry followed (T30).
    pub fn finish(&mut self) -> Result<(), Error> {
        self.sticky(|parser| {
            let inside = match &parser.state {
                State::Header => {
                    parser.nothing_pending("the end of the stream")?;
                    return parser.unmarked_end("the archive ends without zero blocks");
                }
                State::ZeroSeen => return parser.unmarked_end("the archive ends with one zero block instead of two"),
                State::End => return Ok(()),
                State::Extension(_) => "an extension header",
                State::OldSparse(..) | State::PaxMap(..) => "a sparse map",
                State::Dumpdir(..) => "a directory list",
            };
            Err(Error::Truncated { at: Place { offset: parser.offset, entry: Vec::new() }, inside })
        })
    }

    fn unmarked_end(&mut self, how: &str) -> Result<(), Error> {
        self.note("no-end-blocks", &Place { offset: self.offset, entry: Vec::new() }, how);
        Ok(())
    }

    /// Makes the error for a stream that ended within the block expected next (T3).
    pub fn partial_block(&self) -> Error {
        Error::Truncated { at: Place { offset: self.offset, entry: Vec::new() }, inside: "a block of 512 bytes" }
    }

    /// Returns the oddities found since the last call; a caller that takes them after every step misses none.
    pub fn take_oddities(&mut self) -> Vec<Oddity> {
        mem::take(&mut self.oddities)
    }

    /// Returns the offset in the stream of the next block expected, in bytes; data that a step told the caller to
    /// consume is already counted.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn sticky<T>(&mut self, run: impl FnOnce(&mut Parser) -> Result<T, Error>) -> Result<T, Error> {
        if let Some(err) = &self.failed {
            return Err(err.clone());
        }
        let result = run(self);
        if let Err(err) = &result {
            self.failed = Some(err.clone());
        }
        result
    }

    fn advance(&mut self, block: &[u8; BLOCK]) -> Result<Step, Error> {
        let offset = self.offset;
        self.pass(BLOCK as u64)?;
        match mem::replace(&mut self.state, State::Header) {
            State::Header if is_zero(block) => {
                self.nothing_pending("the end of the archive")?;
                self.state = State::ZeroSeen;
                Ok(Step::More)
            }
            State::Header => self.header(Header::new(block, offset)?),
            State::ZeroSeen if is_zero(block) => {
                self.state = State::End;
                Ok(Step::End)
            }
            State::ZeroSeen => Err(Error::ZeroBlock { at: Place { offset, entry: Vec::new() } }),
            State::Extension(mut ext) => {
                let take = usize::try_from(ext.remaining).map_or(BLOCK, |n| n.min(BLOCK));
                ext.body.extend_from_slice(block.get(..take).unwrap_or(block));
                ext.remaining = ext.remaining.saturating_sub(BLOCK as u64);
                self.extension(ext)
            }
            State::OldSparse(draft, mut regions) => {
                let mut ext = GnuExtSparseHeader::new();
                ext.as_mut_bytes().copy_from_slice(block);
                sparse::old_regions(&ext.sparse, &mut regions, &draft.place, &self.limits)?;
                self.old_sparse(draft, regions, ext.isextended[0] != 0)
            }
            State::PaxMap(mut draft, mut text) => {
                let Some(left) = draft.entry.stored.checked_sub(BLOCK as u64) else {
                    let stored = draft.entry.stored.into();
                    return Err(sparse::malformed(draft.place, "the map does not end within the data", 512, stored));
                };
                draft.entry.stored = left;
                if text.block(block, &draft.place, &self.limits)? {
                    self.sparse_entry(draft, &text.into_regions())
                } else {
                    self.state = State::PaxMap(draft, text);
                    Ok(Step::More)
                }
            }
            State::Dumpdir(entry, left) => self.dumpdir(entry, left.saturating_sub(BLOCK as u64)),
            State::End => {
                self.state = State::End;
                Ok(Step::End)
            }
        }
    }

    /// Counts bytes of the stream.
    fn pass(&mut self, bytes: u64) -> Result<(), Error> {
        self.offset = self.offset.checked_add(bytes).ok_or_else(|| Error::OutOfRange {
            at: Place { offset: self.offset, entry: Vec::new() },
            field: "end of the data",
            found: i128::from(self.offset) + i128::from(bytes),
            max: u64::MAX.into(),
        })?;
        Ok(())
    }

    fn nothing_pending(&self, before: &'static str) -> Result<(), Error> {
        match &self.pending.wants_entry {
            Some((at, found)) => Err(Error::Dangling { at: at.clone(), found: *found, before }),
            None => Ok(()),
        }
    }

    fn oddity(&mut self, code: &'static str, place: &Place, detail: String) {
        if self.oddities.len() < MAX_PENDING_ODDITIES {
            self.oddities.push(Oddity { offset: place.offset, code, path: place.entry.clone(), detail });
        }
    }

    /// Reports what only [`Parser::with_notes`] asks for.
    fn note(&mut self, code: &'static str, place: &Place, detail: &str) {
        if self.notes {
            self.oddity(code, place, detail.to_owned());
        }
    }

    fn header(&mut self, header: Header) -> Result<Step, Error> {
        match header.typeflag() {
            kind @ (b'x' | b'X' | b'g' | b'L' | b'K') => self.begin_extension(kind, &header),
            b'V' => {
                self.nothing_pending("a volume label")?;
                self.oddity("volume-label", header.place(), "a volume label was skipped".to_owned());
                let bytes = self.padded(header.size()?, header.place())?;
                self.pass(bytes)?;
                Ok(Step::Skip(bytes))
            }
            0 | b'0'..=b'7' | b'S' | b'D' => self.entry(&header),
            found => Err(Error::UnsupportedType { at: header.place().clone(), found }),
        }
    }

    /// Starts an extension header. Its length is its own: a PAX size of an earlier header is for the entry only (T14).
    fn begin_extension(&mut self, kind: u8, header: &Header) -> Result<Step, Error> {
        let place = header.place().clone();
        let size = header.size()?;
        let over = |which, found, limit| Err(Error::Limit { at: place.clone(), which, found, limit });

        self.pending.headers = self.pending.headers.saturating_add(1);
        if self.pending.headers > self.limits.max_extension_headers {
            let limit = self.limits.max_extension_headers.into();
            return over(Limit::ExtensionHeaders, self.pending.headers.into(), limit);
        }
        let total = size.saturating_add(self.pending.bytes.into());
        match u64::try_from(total) {
            Ok(bytes) if bytes <= self.limits.max_metadata_bytes => self.pending.bytes = bytes,
            _ => return over(Limit::MetadataBytes, total, self.limits.max_metadata_bytes),
        }
        if let (b'x' | b'X', &Some((first, _))) = (kind, &self.pending.pax) {
            return Err(Error::SecondPaxHeader { at: place, first });
        }
        if kind != b'g' {
            self.pending.wants_entry = Some((place.clone(), kind));
        }
        // `size` is at most the limit checked above.
        let remaining = u64::try_from(size).unwrap_or_default();
        self.extension(Extension { kind, place, remaining, body: Vec::new() })
    }

    /// Goes on with an extension header, or interprets it when its body is complete.
    fn extension(&mut self, ext: Extension) -> Result<Step, Error> {
        if ext.remaining > 0 {
            self.state = State::Extension(ext);
            return Ok(Step::More);
        }
        match ext.kind {
            b'g' => {
                let keys = pax::global_keys(&ext.body, &ext.place)?;
                if !keys.is_empty() {
                    self.oddity("global-pax-header", &ext.place, format!("not applied: {}", pax::join(&keys)));
                }
            }
            b'L' => self.pending.long_name = long(&ext.body),
            b'K' => self.pending.long_link = long(&ext.body),
            kind => {
                if kind == b'X' {
                    self.note("solaris-header", &ext.place, "a PAX header of type X");
                }
                self.pending.pax = Some((ext.place.offset, pax::parse(&ext.body, &ext.place, &self.limits)?));
            }
        }
        Ok(Step::More)
    }

    /// Builds an entry from its header and what is pending.
    fn entry(&mut self, header: &Header) -> Result<Step, Error> {
        let pending = mem::take(&mut self.pending);
        let mut pax = pending.pax.map(|(_, pax)| pax).unwrap_or_default();
        let typeflag = header.typeflag();
        let offset = header.place().offset;

        let pax_path = pax.sparse.as_mut().and_then(|s| s.name.take()).or(pax.path);
        let path = one_name("path", pax_path, pending.long_name, header.place())?.unwrap_or_else(|| header.path());
        let link = one_name("linkpath", pax.linkpath, pending.long_link, header.place())?;
        let link = || link.unwrap_or_else(|| header.link());
        let place = Place { offset, entry: path.clone() };
        self.check_path(&path, &place)?;

        self.entries = self.entries.saturating_add(1);
        if self.entries > self.limits.max_entries {
            let (found, limit) = (self.entries.into(), self.limits.max_entries);
            return Err(Error::Limit { at: place, which: Limit::Entries, found, limit });
        }

        // The header's size is decoded even where PAX overrides it (T15), so that a negative one never passes (T27).
        let header_size = header.size()?;
        let size = ranged(pax.size.unwrap_or(header_size), "size", i64::MAX.into(), &place)?;
        let is_dir_by_name = path.ends_with(b"/");

        if !pax.not_applied.is_empty() {
            self.oddity("pax-key-not-applied", &place, pax::join(&pax.not_applied));
        }
        if !pax.libarchive_only.is_empty() {
            self.note("libarchive-xattr", &place, &pax::join(&pax.libarchive_only));
        }
        let mut entry = Box::new(Entry {
            offset,
            path,
            kind: EntryKind::Directory,
            mode: header.mode()?,
            uid: id(pax.uid.map_or_else(|| header.uid(), Ok)?, "uid", &place)?,
            gid: id(pax.gid.map_or_else(|| header.gid(), Ok)?, "gid", &place)?,
            mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
            atime: pax.atime.or_else(|| header.atime()),
            xattrs: pax.xattrs,
            stored: 0,
        });

        if let Some(sparse) = pax.sparse {
            if !matches!(typeflag, 0 | b'0' | b'7') {
                let problem = "GNU.sparse keys belong to a regular file";
                return Err(Error::SparseCarrier { at: place, found: typeflag, problem });
            }
            return self.pax_sparse(entry, sparse, size, place);
        }
        // A size in the header itself is customary and means nothing (L10, T27); one from PAX is there to be believed, and
        // bsdtar does for all of these types.
        if pax.size.is_some() && size != 0 && matches!(typeflag, b'1'..=b'6') {
            return Err(Error::SizeWithoutData { at: place, typeflag, found: size });
        }
        match typeflag {
            // Old archives mark directories by a trailing slash only (T9). Without data both types agree; with a size,
            // type NUL stays a directory without data, as Go and libarchive have it, and type 0 a file.
            0 if is_dir_by_name => self.without_data(entry, EntryKind::Directory, size, &place),
            b'0' if is_dir_by_name && size == 0 => {
                self.note("slash-directory", &place, "a regular file of no bytes whose name ends in a slash");
                self.without_data(entry, EntryKind::Directory, 0, &place)
            }
            0 | b'0' | b'7' => {
                if typeflag == b'7' {
                    self.note("contiguous-file", &place, "entry type 7");
                }
                entry.kind = EntryKind::File { size, sparse: None };
                entry.stored = size;
                self.deliver(entry)
            }
            b'1' => {
                let target = link();
                if header_size != 0 {
                    self.note("link-size", &place, &format!("the header states {header_size} bytes"));
                }
                self.check_path(&target, &place)?;
                self.without_data(entry, EntryKind::HardLink { target }, 0, &place)
            }
            b'2' => {
                let target = link();
                if target.is_empty() || target.len() > MAX_SYMLINK_TARGET {
                    return Err(Error::SymlinkTarget { at: place, found: target.len(), max: MAX_SYMLINK_TARGET });
                }
                self.without_data(entry, EntryKind::Symlink { target }, size, &place)
            }
            b'3' | b'4' => {
                let (major, minor) = header.device()?;
                let major = small(major, "device major", MAX_MAJOR, &place)?;
                let minor = small(minor, "device minor", MAX_MINOR, &place)?;
                let kind = match typeflag {
                    b'3' => EntryKind::CharDevice { major, minor },
                    _ => EntryKind::BlockDevice { major, minor },
                };
                self.without_data(entry, kind, size, &place)
            }
            b'5' => self.without_data(entry, EntryKind::Directory, size, &place),
            b'6' => self.without_data(entry, EntryKind::Fifo, size, &place),
            // GNU's incremental dumps list the directory's content in its data, which is no file content.
            b'D' => {
                self.note("dumpdir", &place, "entry type D");
                let left = self.padded(size.into(), &place)?;
                self.dumpdir(entry, left)
            }
            b'S' => {
                let Some(gnu) = header.gnu() else {
                    let problem = "its header has no GNU magic";
                    return Err(Error::SparseCarrier { at: place, found: typeflag, problem });
                };
                self.note("gnu-sparse", &place, "entry type S");
                let real_size = ranged(header.real_size(gnu)?, "sparse real size", i64::MAX.into(), &place)?;
                entry.stored = size;
                let mut regions = Vec::new();
                sparse::old_regions(&gnu.sparse, &mut regions, &place, &self.limits)?;
                self.old_sparse(Draft { entry, size: real_size, place }, regions, gnu.isextended[0] != 0)
            }
            found => Err(Error::UnsupportedType { at: place, found }),
        }
    }

    /// Delivers an entry of a type that has no data: a size in its header is ignored and nothing is skipped (T27).
    fn without_data(&mut self, mut entry: Box<Entry>, kind: EntryKind, size: u64, at: &Place) -> Result<Step, Error> {
        if size != 0 {
            self.oddity("size-ignored", at, format!("the header states {size} bytes for a type without data"));
        }
        entry.kind = kind;
        self.deliver(entry)
    }

    fn deliver(&mut self, entry: Box<Entry>) -> Result<Step, Error> {
        let place = Place { offset: entry.offset, entry: Vec::new() };
        let data = self.padded(entry.stored.into(), &place)?;
        self.pass(data)?;
        Ok(Step::Entry(entry))
    }

    fn dumpdir(&mut self, entry: Box<Entry>, left: u64) -> Result<Step, Error> {
        if left == 0 {
            return self.deliver(entry);
        }
        self.state = State::Dumpdir(entry, left);
        Ok(Step::More)
    }

    fn pax_sparse(
        &mut self,
        mut entry: Box<Entry>,
        sparse: sparse::PaxSparse,
        stored: u64,
        place: Place,
    ) -> Result<Step, Error> {
        let Some(size) = sparse.real_size else {
            return Err(sparse::malformed(place, "no size of the expanded file", 0, stored.into()));
        };
        let size = ranged(size, "GNU.sparse.realsize", i64::MAX.into(), &place)?;
        entry.stored = stored;
        let map = sparse.map(&place)?;
        let draft = Draft { entry, size, place };
        match map {
            PaxMap::Records(regions) => self.sparse_entry(draft, &regions),
            PaxMap::Data => {
                self.state = State::PaxMap(draft, MapText::default());
                Ok(Step::More)
            }
        }
    }

    fn old_sparse(&mut self, draft: Draft, regions: Vec<RawRegion>, extended: bool) -> Result<Step, Error> {
        if !extended {
            return self.sparse_entry(draft, &regions);
        }
        self.state = State::OldSparse(draft, regions);
        Ok(Step::More)
    }

    fn sparse_entry(&mut self, mut draft: Draft, regions: &[RawRegion]) -> Result<Step, Error> {
        let regions = sparse::checked(regions, draft.size, draft.entry.stored, &draft.place)?;
        draft.entry.kind = EntryKind::File { size: draft.size, sparse: Some(regions) };
        self.deliver(draft.entry)
    }

    /// Checks length and depth of a name (B5).
    fn check_path(&self, path: &[u8], place: &Place) -> Result<(), Error> {
        let over = |which, found: usize, limit: usize| {
            let mut at = place.clone();
            at.entry.truncate(256);
            Err(Error::Limit { at, which, found: found as i128, limit: limit as u64 })
        };
        if path.len() > self.limits.max_path_bytes {
            return over(Limit::PathBytes, path.len(), self.limits.max_path_bytes);
        }
        let depth = path.split(|&b| b == b'/').filter(|c| !c.is_empty() && c != b".").count();
        if depth > self.limits.max_depth {
            return over(Limit::Depth, depth, self.limits.max_depth);
        }
        Ok(())
    }

    /// Rounds up to whole blocks.
    fn padded(&self, bytes: i128, at: &Place) -> Result<u64, Error> {
        let bytes = ranged(bytes, "size", i64::MAX.into(), at)?;
        Ok(bytes.next_multiple_of(BLOCK as u64))
    }
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|&b| b == 0)
}

/// Picks the name that an extension header gives; two kinds of them are ambiguous (R-16).
fn one_name(
    key: &'static str,
    pax: Option<Vec<u8>>,
    gnu: Option<Vec<u8>>,
    at: &Place,
) -> Result<Option<Vec<u8>>, Error> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) => Err(Error::AmbiguousName { at: at.clone(), key, pax, gnu }),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}
