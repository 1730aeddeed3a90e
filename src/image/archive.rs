//! Archives in plain files, indexed once and read in any order.
//!
//! Owns: the table of members with their ranges in the file, reads at offsets. Refuses to know: which images there are
//! (that is [`docker::pick`]). Invariant: a range lies within the file as it was when it was indexed.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::docker::{self, Files, LayerFile, Picked};
use super::members::{Blocks, Ended, MARKERS, Members, clean, cut_short, looks_like_archive, walk};
use super::outer::Magic;
use super::resolve::{OpenBlob, Wanted};
use super::stream::ArchiveKind;
use super::{Image, Place};
use crate::error::{Error, ErrorKind, escape};
use crate::policy::Limits;
use crate::tar::EntryKind;

/// A stretch of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    offset: u64,
    length: u64,
}

/// A member that is a regular file; a sparse one has no single range.
type Stored = Option<Range>;

/// An indexed archive.
pub(crate) struct Archive {
    file: Arc<File>,
    members: Members<Stored>,
    ended: Ended,
}

/// Reads a stretch of a shared file without moving its offset.
pub(crate) struct RangeReader {
    file: Arc<File>,
    offset: u64,
    remaining: Option<u64>,
}

impl RangeReader {
    /// Reads a file from its start to wherever it ends.
    pub fn whole(file: Arc<File>) -> RangeReader {
        RangeReader { file, offset: 0, remaining: None }
    }
}

impl Read for RangeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = self.remaining.map_or(buf.len(), |r| usize::try_from(r).unwrap_or(usize::MAX).min(buf.len()));
        let Some(buf) = buf.get_mut(..most).filter(|b| !b.is_empty()) else { return Ok(0) };
        let n = self.file.read_at(buf, self.offset)?;
        if n == 0 && self.remaining.is_some() {
            return Err(Error::new(ErrorKind::Malformed, "the archive file became shorter while it was read").into());
        }
        self.offset = self.offset.saturating_add(n as u64);
        self.remaining = self.remaining.map(|r| r.saturating_sub(n as u64));
        Ok(n)
    }
}

impl Blocks for RangeReader {
    fn block(&mut self, block: &mut [u8; 512]) -> io::Result<usize> {
        fill(self, block)
    }
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.offset = self.offset.saturating_add(bytes);
        Ok(())
    }
}

/// Fills a buffer as far as there are bytes.
pub(crate) fn fill(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while let Some(rest) = buf.get_mut(have..).filter(|r| !r.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(have)
}

impl Archive {
    /// Reads all headers.
    ///
    /// # Errors
    /// `Malformed` when it is no tar, ends within a member or has two members of one name; `Limit`.
    pub fn index(file: Arc<File>, limits: &Limits) -> Result<Archive, Error> {
        let size = file.metadata().map_err(|err| Error::io("asking for the size of the archive", err))?.len();
        let mut members = Members::new(limits);
        let mut reader = RangeReader::whole(Arc::clone(&file));
        let ended = walk(&mut reader, limits, |at, entry| {
            let end = at.offset.checked_add(entry.stored);
            if end.is_none_or(|end| end > size) {
                return Err(
                    Error::new(ErrorKind::Malformed, "the archive ends within a member").with_entry(&entry.path)
                );
            }
            // A member whose name leaves the archive cannot be asked for.
            let Some(name) = clean(&entry.path) else { return Ok(Some(0)) };
            match &entry.kind {
                EntryKind::File { sparse, .. } => {
                    let range = Range { offset: at.offset, length: entry.stored };
                    members.add_file(name, sparse.is_none().then_some(range))?;
                }
                other => members.add_link(name, other)?,
            }
            Ok(Some(0))
        })?;
        Ok(Archive { file, members, ended })
    }

    /// Reads a member's bytes.
    pub fn reader(&self, range: Range) -> RangeReader {
        RangeReader { file: Arc::clone(&self.file), offset: range.offset, remaining: Some(range.length) }
    }

    fn range(&self, name: &[u8]) -> Result<Option<Range>, Error> {
        match self.members.find(name)? {
            Some(Some(range)) => Ok(Some(*range)),
            Some(None) => {
                Err(Error::new(ErrorKind::Malformed, "a sparse member holds no document or layer").with_entry(name))
            }
            None if self.ended == Ended::Unmarked => Err(cut_short(format_args!("\"{}\"", escape(name)))),
            None => Ok(None),
        }
    }
}

impl Files for Archive {
    fn open(&self, name: &[u8]) -> Result<Option<OpenBlob>, Error> {
        let range = self.range(name)?;
        Ok(range.map(|range| OpenBlob { size: range.length, reader: Box::new(self.reader(range)) }))
    }

    fn layer(&self, name: &[u8]) -> Result<Option<LayerFile>, Error> {
        let Some(range) = self.range(name)? else { return Ok(None) };
        let mut head = [0; 6];
        let have =
            fill(&mut self.reader(range), &mut head).map_err(|err| crate::error::from_io("reading a layer", err))?;
        Ok(Some(LayerFile { size: range.length, magic: Magic::of(head.get(..have).unwrap_or(&[])) }))
    }

    fn has(&self, name: &str) -> bool {
        self.members.has(name)
    }
}

/// Opens an image of a plain archive file.
///
/// # Errors
/// As [`Archive::index`] and [`docker::pick`].
pub(crate) fn open(file: Arc<File>, kind: ArchiveKind, wanted: &Wanted<'_>) -> Result<Image, Error> {
    let archive = Archive::index(file, wanted.limits)?;
    let Picked { mut image, members } = docker::pick(&archive, kind, wanted)?;
    // Missing layers are no error before one is opened: the store may have them already.
    let mut ranges = Vec::with_capacity(members.len());
    for member in &members {
        ranges.push(match archive.range(&member.name)? {
            Some(range) => Ok(range),
            None => Err(Arc::from(format!("the archive has no {member}"))),
        });
    }
    image.blobs.place = Place::Archive(Arc::new(archive), ranges);
    Ok(image)
}

/// What a tar turned out to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Archive,
    Layer,
}

/// Looks at member names to tell an image archive from a layer. Bounded: an archive whose documents come late is known
/// by the names before them. Whatever cannot be parsed is left to be reported as a layer.
pub(crate) fn holds<B: Blocks>(source: &mut B, limits: &Limits, max_entries: u32, max_bytes: u64) -> Holds {
    let (mut marked, mut seen, mut bytes, mut alike, mut stopped) = (false, 0u32, 0u64, true, false);
    let walked = walk(source, limits, |_, entry| {
        let name = clean(&entry.path).unwrap_or_default();
        marked |= MARKERS.iter().any(|m| m.as_bytes() == name);
        alike &= name.is_empty() || looks_like_archive(&name);
        seen += 1;
        bytes = bytes.saturating_add(entry.stored);
        stopped = seen >= max_entries || bytes >= max_bytes;
        Ok((!marked && !stopped).then_some(0))
    });
    let cut_short = stopped || walked.is_err();
    if marked || (cut_short && alike && seen > 0) { Holds::Archive } else { Holds::Layer }
}
