//! Archives that can be read only once: standard input, pipes, compressed files.
//!
//! Owns: one pass over an outer tar in whatever order it comes. Members that may be layers go to the caller at once,
//! because nobody can come back to them; documents are kept until the end, when the image is known. Refuses to know:
//! what the caller does with a layer. Memory is bounded: one document by its limit, all of them by twice that (the
//! largest are given up first — attestations can be huge, the documents of an image are small), names by the table.

use std::collections::BinaryHeap;
use std::fmt;
use std::io::{self, Cursor, Read};
use std::sync::Arc;

use super::archive::fill;
use super::docker::{self, Files, LayerFile, Picked};
use super::members::{Blocks, Ended, MARKERS, Members, clean, cut_short, looks_like_archive, walk};
use super::outer::{Magic, Outer, is_tar_header};
use super::reference::Selector;
use super::resolve::{OpenBlob, Wanted, read_limited};
use super::{Image, OpenOptions};
use crate::error::{Error, ErrorKind, escape, from_io};
use crate::policy::{Limit, Limits};
use crate::tar::EntryKind;

/// What an archive is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// A tar of an OCI image layout.
    Oci,
    /// What `docker save` writes, old or new.
    Docker,
    /// Either; the members tell.
    Sniff,
}

/// Entries after which a stream that has shown no name of an image archive is taken for a single layer.
const UNLIKELY_AFTER: u32 = 32;

/// An image archive that is read exactly once.
pub struct ArchiveStream {
    reader: Box<dyn Read + Send>,
    kind: ArchiveKind,
    selector: Selector,
    options: OpenOptions,
    reference: String,
}

impl fmt::Debug for ArchiveStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveStream")
            .field("kind", &self.kind)
            .field("selector", &self.selector)
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

/// A member that may be a layer: its raw bytes, read through [`Read`]. What the caller leaves unread is skipped.
pub struct Member<'a> {
    /// The cleaned name.
    pub name: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
    head: &'a [u8],
    rest: &'a mut dyn Read,
    remaining: u64,
}

impl fmt::Debug for Member<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({}, {} bytes)", crate::error::escape(&self.name), self.size)
    }
}

impl Read for Member<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            return self.head.read(buf);
        }
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..most).filter(|b| !b.is_empty()) else { return Ok(0) };
        let n = self.rest.read(buf)?;
        if n == 0 {
            return Err(cut(&self.name).into());
        }
        self.remaining = self.remaining.saturating_sub(n as u64);
        Ok(n)
    }
}

fn cut(name: &[u8]) -> Error {
    Error::new(ErrorKind::Malformed, "the archive ends within a member").with_entry(name)
}

/// What one pass found.
#[derive(Debug)]
pub struct Collected<T> {
    /// The chosen image. Its layers went by: [`Image::open_layer`] has nothing to open any more.
    pub image: Image,
    /// For each layer of the image, bottom first, the position of its token in `tokens`; one token may serve several.
    pub layers: Vec<usize>,
    /// What the callback returned, with the name of the member, in archive order.
    pub tokens: Vec<(Vec<u8>, T)>,
}

/// A regular member that went by.
enum Passed {
    /// Handed to the caller.
    Token { index: usize, size: u64, magic: Magic },
    /// A document, kept.
    Document(Arc<[u8]>),
    /// A document that was too large to keep, of this many bytes.
    TooLarge(u64),
    /// Anything else.
    Other,
}

/// What the first bytes of a member make it.
enum Looks {
    Layer(Magic),
    Document,
    Other,
}

impl Looks {
    fn of(name: &[u8], size: u64, head: &[u8]) -> Looks {
        let magic = Magic::of(head);
        if matches!(magic, Magic::Gzip | Magic::Zstd) {
            return Looks::Layer(magic);
        }
        if size == 0 {
            let named = name.ends_with(b".tar") || name.starts_with(b"blobs/");
            return if named { Looks::Layer(Magic::Other) } else { Looks::Other };
        }
        // A layer without entries is zero blocks only.
        if is_tar_header(head) || head.iter().all(|b| *b == 0) {
            return Looks::Layer(Magic::Other);
        }
        let first = head.iter().find(|b| !b" \t\r\n\xef\xbb\xbf".contains(b));
        if matches!(first, Some(b'{' | b'[')) || MARKERS.iter().any(|m| m.as_bytes() == name) {
            return Looks::Document;
        }
        Looks::Other
    }
}

/// Documents kept so far, and which of them could be given up.
struct Kept {
    bytes: u64,
    limit: u64,
    by_size: BinaryHeap<(u64, Vec<u8>)>,
}

/// The outer tar with one member's first block read ahead.
struct Source {
    outer: Outer,
}

impl Blocks for Source {
    fn block(&mut self, block: &mut [u8; 512]) -> io::Result<usize> {
        fill(&mut self.outer, block)
    }
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.outer).take(bytes), &mut io::sink())?;
        if skipped < bytes {
            // Only the padding of the last member may be missing, as with other readers.
            if bytes - skipped >= 512 {
                return Err(Error::new(ErrorKind::Malformed, "the archive ends within a member").into());
            }
        }
        Ok(())
    }
}

impl ArchiveStream {
    /// Prepares to read an archive, plain or compressed with gzip or zstd; nothing is read yet.
    pub fn from_reader(
        reader: Box<dyn Read + Send>,
        kind: ArchiveKind,
        selector: Selector,
        options: &OpenOptions,
    ) -> ArchiveStream {
        ArchiveStream { reader, kind, selector, options: options.clone(), reference: "-".to_owned() }
    }

    /// Sets the reference that errors and the image carry.
    pub(crate) fn named(mut self, reference: String) -> ArchiveStream {
        self.reference = reference;
        self
    }

    /// Reads the archive to its end. Calls `layer` for each regular member that may be a layer: one with the magic
    /// bytes of gzip or zstd, a tar header or a zero block at its start, or nothing in it and a name of a layer. The callback reads as much as it
    /// wants. A layer embedded in its descriptor is handed over last.
    ///
    /// # Errors
    /// `NotFound` when it is no image archive, when the image or one of its layers is not in it, or the choice is
    /// ambiguous; `Malformed`, `Limit`, `Integrity`, `Unsupported` as for other sources; whatever `layer` returned.
    pub fn read<T>(self, layer: impl FnMut(&mut Member<'_>) -> Result<T, Error>) -> Result<Collected<T>, Error> {
        let reference = self.reference.clone();
        self.read_inner(layer).map_err(|err| err.with_image(reference))
    }

    fn read_inner<T>(self, mut layer: impl FnMut(&mut Member<'_>) -> Result<T, Error>) -> Result<Collected<T>, Error> {
        let ArchiveStream { reader, kind, selector, options, reference } = self;
        let limits = &options.limits;
        let mut passed = Members::new(limits);
        let mut kept = Kept { bytes: 0, limit: limits.max_json_bytes.saturating_mul(2), by_size: BinaryHeap::new() };
        let mut tokens: Vec<(Vec<u8>, T)> = Vec::new();
        let (mut seen, mut likely) = (0u32, false);
        let mut source = Source { outer: Outer::new(reader, limits)? };
        let ended = walk(&mut source, limits, |source, entry| {
            // A member whose name leaves the archive cannot be asked for.
            let Some(name) = clean(&entry.path) else { return Ok(Some(0)) };
            seen = seen.saturating_add(1);
            likely |= looks_like_archive(&name);
            if !likely && seen >= UNLIKELY_AFTER {
                return Err(Error::new(ErrorKind::NotFound, "this is no image archive, by the names in it")
                    .with_entry(&name)
                    .with_hint("if it is the tar of a single layer or root file system, use layer:-"));
            }
            match &entry.kind {
                EntryKind::File { size, sparse: None } => {
                    let (size, consumed) = (*size, pass(source, &name, *size, limits, &mut layer, &mut tokens)?);
                    keep(&mut passed, &mut kept, name, consumed.passed)?;
                    Ok(Some(size.min(consumed.bytes)))
                }
                EntryKind::File { .. } => {
                    passed.add_file(name, Passed::Other)?;
                    Ok(Some(0))
                }
                other => {
                    passed.add_link(name, other)?;
                    Ok(Some(0))
                }
            }
        })?;
        // The writer must not see a closed pipe, and the compression's own check stands at the end.
        io::copy(&mut source.outer, &mut io::sink()).map_err(|err| from_io("reading the archive", err))?;

        let platform = options.platform.as_ref();
        let wanted = Wanted { selector: &selector, platform, limits, may_lack_layers: false };
        let files = PassedFiles { members: &passed, limits, ended };
        let Picked { mut image, members } = docker::pick(&files, kind, &wanted).map_err(|err| {
            let nothing = !passed.has("index.json") && !passed.has("manifest.json");
            match ended == Ended::Unmarked && likely && nothing && err.kind() == ErrorKind::NotFound {
                true => cut_short("index.json and manifest.json"),
                false => err,
            }
        })?;
        image.reference = reference;
        let mut layers = Vec::with_capacity(members.len());
        for (at, member) in members.iter().enumerate() {
            if let Some(descriptor) = image.layers.get(at) {
                descriptor.check_unpackable()?;
            }
            layers.push(match (passed.find(&member.name)?, image.blobs.embedded(at)) {
                (Some(Passed::Token { index, .. }), _) => *index,
                (_, Some(data)) => {
                    let token = layer(&mut Member {
                        name: member.name.clone(),
                        size: data.len() as u64,
                        head: &data,
                        rest: &mut io::empty(),
                        remaining: 0,
                    })?;
                    tokens.push((member.name.clone(), token));
                    tokens.len() - 1
                }
                (Some(_), None) => {
                    return Err(Error::new(ErrorKind::Malformed, format!("{member} is no tar, gzip or zstd data")));
                }
                (None, None) if ended == Ended::Unmarked => return Err(cut_short(member)),
                (None, None) => {
                    return Err(Error::new(ErrorKind::NotFound, format!("the archive has no {member}")));
                }
            });
        }
        Ok(Collected { image, layers, tokens })
    }
}

/// What became of a member and how many of its bytes were read.
struct Consumed {
    passed: Passed,
    bytes: u64,
}

fn pass<T>(
    source: &mut Source,
    name: &[u8],
    size: u64,
    limits: &Limits,
    layer: &mut impl FnMut(&mut Member<'_>) -> Result<T, Error>,
    tokens: &mut Vec<(Vec<u8>, T)>,
) -> Result<Consumed, Error> {
    let read_error = |err| from_io("reading the archive", err);
    let mut head = [0; 512];
    let want = usize::try_from(size).unwrap_or(usize::MAX).min(head.len());
    let head = head.get_mut(..want).unwrap_or(&mut []);
    let have = fill(&mut source.outer, head).map_err(read_error)?;
    if have < want {
        return Err(cut(name));
    }
    let head: &[u8] = head;
    let after_head = size.saturating_sub(have as u64);
    match Looks::of(name, size, head) {
        Looks::Layer(magic) => {
            let mut member = Member { name: name.to_vec(), size, head, rest: &mut source.outer, remaining: after_head };
            let token = layer(&mut member)?;
            let bytes = size.saturating_sub(member.remaining);
            tokens.push((name.to_vec(), token));
            Ok(Consumed { passed: Passed::Token { index: tokens.len() - 1, size, magic }, bytes })
        }
        Looks::Document if size > limits.max_json_bytes => {
            Ok(Consumed { passed: Passed::TooLarge(size), bytes: have as u64 })
        }
        Looks::Document => {
            let what = crate::error::escape(name);
            let rest = (&mut source.outer).take(after_head);
            let raw = read_limited(Cursor::new(head).chain(rest), &what, limits, Limit::JsonBytes)?;
            if raw.len() as u64 != size {
                return Err(cut(name));
            }
            Ok(Consumed { passed: Passed::Document(raw.into()), bytes: size })
        }
        Looks::Other => Ok(Consumed { passed: Passed::Other, bytes: have as u64 }),
    }
}

/// Adds a member to the table and gives up the largest documents while there are too many bytes of them.
fn keep(passed: &mut Members<Passed>, kept: &mut Kept, name: Vec<u8>, member: Passed) -> Result<(), Error> {
    if let Passed::Document(raw) = &member {
        kept.bytes = kept.bytes.saturating_add(raw.len() as u64);
        if !MARKERS.iter().any(|m| m.as_bytes() == name) {
            kept.by_size.push((raw.len() as u64, name.clone()));
        }
    }
    passed.add_file(name, member)?;
    while kept.bytes > kept.limit {
        let Some((size, name)) = kept.by_size.pop() else { break };
        if let Some(member) = passed.get_mut(&name) {
            *member = Passed::TooLarge(size);
        }
        kept.bytes = kept.bytes.saturating_sub(size);
    }
    Ok(())
}

/// The members that went by, as far as documents and facts about layers are known.
struct PassedFiles<'a> {
    members: &'a Members<Passed>,
    limits: &'a Limits,
    ended: Ended,
}

impl Files for PassedFiles<'_> {
    fn open(&self, name: &[u8]) -> Result<Option<OpenBlob>, Error> {
        match self.members.find(name)? {
            Some(Passed::Document(raw)) => {
                Ok(Some(OpenBlob { size: raw.len() as u64, reader: Box::new(Cursor::new(Arc::clone(raw))) }))
            }
            Some(Passed::TooLarge(size)) => {
                // All of them are kept, so all of them together are limited: in a file each is read when it is needed.
                Err(Limit::JsonBytes
                    .exceeded(self.limits.max_json_bytes, format_args!("{size} in one of the documents of a stream"))
                    .with_entry(name))
            }
            Some(Passed::Token { .. } | Passed::Other) => {
                Err(Error::new(ErrorKind::Malformed, "it is not a JSON document").with_entry(name))
            }
            None if self.ended == Ended::Unmarked => Err(cut_short(format_args!("\"{}\"", escape(name)))),
            None => Ok(None),
        }
    }

    fn layer(&self, name: &[u8]) -> Result<Option<LayerFile>, Error> {
        Ok(match self.members.find(name)? {
            Some(Passed::Token { size, magic, .. }) => Some(LayerFile { size: *size, magic: *magic }),
            _ => None,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.members.has(name)
    }
}
