//! The compressed side: reads a blob, hashes and counts it.
//!
//! Owns: the read buffers, the blob's digest and size, the promise about both. Invariant: of a blob whose size was
//! promised at most one byte more is read (rule Z13).

use std::io::{self, Read};
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
    /// Set once the blob was decoded to its end.
    pub(super) framing: OnceLock<Framing>,
}

/// Chunks of a blob that may be in hands at a time: one being decoded, the others being hashed.
const CHUNKS: usize = 6;

/// A blob on its way into a decoder.
pub(super) struct Source {
    blob: Box<dyn Read + Send>,
    pool: Arc<Pool>,
    /// What was read last.
    current: Option<Chunk>,
    /// Where in it the first byte is that was not consumed.
    start: usize,
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
        Source { blob, pool, current: None, start: 0, ended: false, digest, read: 0, expected_size, cancel, counters }
    }

    /// Has threads compute the digest from now on.
    pub(super) fn hand_over(mut self, hashers: &Hashers) -> Source {
        self.digest = self.digest.hand_over(hashers, CHUNKS - 1);
        self
    }

    /// Returns what was read and not yet consumed.
    pub(super) fn buffered(&self) -> &[u8] {
        self.current.as_ref().and_then(|chunk| chunk.get(self.start..)).unwrap_or(&[])
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.current.as_ref().map_or(0, |chunk| chunk.len()));
    }

    /// Tells whether the blob's end was seen.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Returns the offset in the blob of the first byte that was not consumed.
    pub(super) fn position(&self) -> u64 {
        self.read - self.buffered().len() as u64
    }

    /// Reads on, in place of what is buffered.
    ///
    /// # Errors
    /// `Integrity` when the blob turns out shorter or longer than promised, `Cancelled`, or what reading gave.
    pub(super) fn refill(&mut self) -> Result<(), Error> {
        self.fill(1)
    }

    /// As [`Source::refill`], until `least` bytes are there or the blob ends.
    pub(super) fn fill(&mut self, least: usize) -> Result<(), Error> {
        self.current = None;
        self.start = 0;
        let Some(mut chunk) = self.pool.acquire() else {
            return Err(Error::new(ErrorKind::Other, "the layer stream was stopped"));
        };
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
        self.current = Some(chunk);
        match self.expected_size {
            Some(size) if self.read > size => {
                let what = format!("the blob is longer than the {size} bytes its descriptor says");
                Err(Error::new(ErrorKind::Integrity, what))
            }
            Some(size) if self.ended && self.read < size => {
                let what = format!("the blob has {} bytes, its descriptor says {size}", self.read);
                Err(Error::new(ErrorKind::Integrity, what))
            }
            _ => Ok(()),
        }
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
        while !self.ended {
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
