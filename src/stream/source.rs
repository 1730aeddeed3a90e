//! The compressed side: reads a blob, hashes and counts it.
//!
//! Owns: the read buffers, the blob's digest and size, the promise about both. Invariants: of a blob whose size was
//! promised at most one byte more is read (rule Z13); reading ahead changes neither the pieces in which the decoder is
//! offered the blob nor the place of an error among them.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::cancel::CancelToken;
use crate::digest::{BlobDigest, Digest};
use crate::error::{Error, ErrorKind, from_io};
use crate::stream::chunk::{Chunk, Pool};
use crate::stream::hashing::{Hashers, Running};
use crate::stream::report::Framing;

/// Bytes read and bytes made so far, readable from any thread.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) compressed: AtomicU64,
    pub(super) uncompressed: AtomicU64,
    /// Those of them that several threads decompressed side by side.
    pub(super) parallel: AtomicU64,
    /// Set once the blob was decoded to its end.
    pub(super) framing: OnceLock<Framing>,
}

/// Chunks of a blob that may be in hands at a time: one being decoded, the others being hashed.
const CHUNKS: usize = 6;

/// What one reading of the blob gave.
struct Piece {
    /// Offset of its first byte in the blob.
    at: u64,
    chunk: Chunk,
}

/// What [`Source::look_ahead`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    Read,
    /// As much is there as may be.
    Full,
    /// The blob ends here, or an error is due.
    Ended,
}

/// A blob on its way into a decoder.
pub(super) struct Source {
    blob: Box<dyn Read + Send>,
    pool: Arc<Pool>,
    /// What was read and not yet consumed, in order; of the first piece perhaps nothing is left.
    pieces: VecDeque<Piece>,
    /// Where in the first piece the first byte is that was not consumed.
    start: usize,
    /// How many pieces may be there at a time for the sake of those that look ahead.
    most: usize,
    /// An error behind the last piece.
    late: Option<Error>,
    ended: bool,
    digest: Running,
    read: u64,
    expected_size: Option<u64>,
    cancel: CancelToken,
    counters: Arc<Counters>,
}

impl Source {
    pub(super) fn new(
        blob: Box<dyn Read + Send>,
        chunk_bytes: usize,
        digest: Running,
        expected_size: Option<u64>,
        cancel: CancelToken,
        counters: Arc<Counters>,
    ) -> Self {
        let pool = Pool::new(chunk_bytes, CHUNKS);
        Source {
            blob,
            pool,
            pieces: VecDeque::new(),
            start: 0,
            most: 1,
            late: None,
            ended: false,
            digest,
            read: 0,
            expected_size,
            cancel,
            counters,
        }
    }

    /// Has threads compute the digest from now on.
    pub(super) fn hand_over(mut self, hashers: &Hashers) -> Source {
        self.digest = self.digest.hand_over(hashers, CHUNKS - 1);
        self
    }

    /// Returns what was read and not yet consumed, as far as it is in one piece.
    pub(super) fn buffered(&self) -> &[u8] {
        self.pieces.front().and_then(|piece| piece.chunk.get(self.start..)).unwrap_or(&[])
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.pieces.front().map_or(0, |piece| piece.chunk.len()));
    }

    /// Tells whether the blob's end was seen and nothing is left before it.
    pub(super) fn ended(&self) -> bool {
        self.ended && self.pieces.len() <= 1 && self.late.is_none()
    }

    /// Returns the offset in the blob of the first byte that was not consumed.
    pub(super) fn position(&self) -> u64 {
        self.pieces.front().map_or(self.read, |piece| piece.at + self.start as u64)
    }

    /// Goes on to the next piece, in place of what is buffered.
    ///
    /// # Errors
    /// `Integrity` when the blob turns out shorter or longer than promised, `Cancelled`, or what reading gave.
    pub(super) fn refill(&mut self) -> Result<(), Error> {
        self.fill(1)
    }

    /// As [`Source::refill`], until `least` bytes are there or the blob ends.
    pub(super) fn fill(&mut self, least: usize) -> Result<(), Error> {
        self.pieces.pop_front();
        self.start = 0;
        if !self.pieces.is_empty() {
            return Ok(());
        }
        match self.late.take() {
            Some(err) => Err(err),
            None => self.read_piece(least),
        }
    }

    fn read_piece(&mut self, least: usize) -> Result<(), Error> {
        let Some(mut chunk) = self.pool.acquire() else {
            return Err(Error::new(ErrorKind::Other, "the layer stream was stopped"));
        };
        let at = self.read;
        let mut have = 0;
        while have < least && !self.ended {
            let most = match self.expected_size {
                // One byte more than promised shows that there is more.
                Some(size) => usize::try_from(size.saturating_add(1).saturating_sub(self.read)).unwrap_or(usize::MAX),
                None => usize::MAX,
            };
            let space = chunk.space();
            let end = have.saturating_add(most).min(space.len());
            let n = self.read_once(space.get_mut(have..end).unwrap_or(&mut []))?;
            have += n;
            self.read += n as u64;
            self.ended = n == 0;
        }
        self.counters.compressed.store(self.read, Ordering::Relaxed);
        let chunk = chunk.freeze(have);
        if have > 0 {
            self.digest.push(&chunk);
        }
        match self.expected_size {
            Some(size) if self.read > size => {
                let what = format!("the blob is longer than the {size} bytes its descriptor says");
                return Err(Error::new(ErrorKind::Integrity, what));
            }
            Some(size) if self.ended && self.read < size => {
                let what = format!("the blob has {} bytes, its descriptor says {size}", self.read);
                return Err(Error::new(ErrorKind::Integrity, what));
            }
            _ => {}
        }
        if have > 0 {
            self.pieces.push_back(Piece { at, chunk });
        }
        Ok(())
    }

    /// Returns how long a piece is at most.
    pub(super) fn piece_bytes(&self) -> usize {
        self.pool.chunk_bytes()
    }

    /// Allows to look ahead over `pieces` pieces.
    pub(super) fn grow(&mut self, pieces: usize) {
        self.pool.grow(pieces);
        self.most = self.most.saturating_add(pieces);
    }

    /// Reads one piece more without consuming any; an error stays behind the pieces before it.
    pub(super) fn look_ahead(&mut self) -> Ahead {
        if self.ended || self.late.is_some() {
            return Ahead::Ended;
        }
        if self.pieces.len() >= self.most {
            return Ahead::Full;
        }
        self.late = self.read_piece(1).err();
        if self.ended || self.late.is_some() { Ahead::Ended } else { Ahead::Read }
    }

    /// Returns the offset of the first byte of the blob that is not there yet.
    pub(super) fn end(&self) -> u64 {
        self.pieces.back().map_or(self.read, |piece| piece.at + piece.chunk.len() as u64)
    }

    /// Returns the bytes from `offset` on, as far as they are there and in one piece.
    pub(super) fn at(&self, offset: u64) -> &[u8] {
        let number = self.pieces.partition_point(|piece| piece.at <= offset).saturating_sub(1);
        let Some(piece) = self.pieces.get(number) else { return &[] };
        let start = offset.checked_sub(piece.at).and_then(|start| usize::try_from(start).ok());
        start.and_then(|start| piece.chunk.get(start..)).unwrap_or(&[])
    }

    /// Returns what holds the bytes from `from` to `to`, and where.
    pub(super) fn part(&self, from: u64, to: u64) -> Vec<(Chunk, Range<usize>)> {
        let within = |piece: &Piece, offset: u64| {
            usize::try_from(offset.saturating_sub(piece.at)).unwrap_or(usize::MAX).min(piece.chunk.len())
        };
        let all = self.pieces.iter().map(|piece| (piece, within(piece, from)..within(piece, to)));
        all.filter(|(_, range)| !range.is_empty()).map(|(piece, range)| (piece.chunk.clone(), range)).collect()
    }

    /// Consumes everything before `offset`, which is not behind [`Source::end`].
    pub(super) fn skip_to(&mut self, offset: u64) {
        while self.pieces.get(1).is_some_and(|next| next.at <= offset) {
            self.pieces.pop_front();
            self.start = 0;
        }
        let ahead = offset.saturating_sub(self.position());
        self.consume(usize::try_from(ahead).unwrap_or(usize::MAX));
    }

    fn read_once(&mut self, room: &mut [u8]) -> Result<usize, Error> {
        loop {
            self.cancel.check()?;
            match self.blob.read(room) {
                Ok(n) if n <= room.len() => return Ok(n),
                Ok(n) => {
                    let what = format!("the blob's reader claims {n} bytes of {}", room.len());
                    return Err(Error::new(ErrorKind::Other, what));
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(from_io("read the blob", err)),
            }
        }
    }

    /// Hashes the rest of the blob without decoding it.
    ///
    /// # Errors
    /// Those of [`Source::refill`].
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        self.pieces.clear();
        while !self.ended() {
            self.refill()?;
        }
        Ok(())
    }

    /// Returns the digest and size of everything read; the blob's, once it ended.
    ///
    /// # Errors
    /// `Other` when a thread that computes it panicked.
    pub(super) fn digest(&self) -> Result<(Digest, u64), Error> {
        Ok((self.digest.digest()?, self.read))
    }
}

/// Checks the digest of a whole blob against the promised one.
///
/// # Errors
/// `Integrity` with both digests.
pub(super) fn check_digest(found: Digest, expected: Option<BlobDigest>) -> Result<(), Error> {
    match expected {
        Some(expected) if expected.0 != found => {
            Err(Error::new(ErrorKind::Integrity, format!("the blob's digest is {found}, expected {expected}")))
        }
        _ => Ok(()),
    }
}
