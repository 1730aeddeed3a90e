//! The compressed side: reads a blob, hashes and counts it.
//!
//! Owns: the read buffer, the blob's digest and size, the promise about both. Invariant: of a blob whose size was
//! promised at most one byte more is read (rule Z13).

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::cancel::CancelToken;
use crate::digest::{BlobDigest, Digest, Hasher};
use crate::error::{Error, ErrorKind, from_io};
use crate::stream::report::Framing;

/// Bytes read and bytes made so far, readable from any thread.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) compressed: AtomicU64,
    pub(super) uncompressed: AtomicU64,
    /// Set once the blob was decoded to its end.
    pub(super) framing: OnceLock<Framing>,
}

/// A blob on its way into a decoder.
pub(super) struct Source {
    blob: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    ended: bool,
    hasher: Hasher,
    read: u64,
    expected_size: Option<u64>,
    cancel: CancelToken,
    counters: Arc<Counters>,
}

impl Source {
    pub(super) fn new(
        blob: Box<dyn Read + Send>,
        buffer_bytes: usize,
        hasher: Hasher,
        expected_size: Option<u64>,
        cancel: CancelToken,
        counters: Arc<Counters>,
    ) -> Self {
        let buffer = vec![0; buffer_bytes].into_boxed_slice();
        Source { blob, buffer, start: 0, end: 0, ended: false, hasher, read: 0, expected_size, cancel, counters }
    }

    /// Returns what was read and not yet consumed.
    pub(super) fn buffered(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or(&[])
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
    }

    /// Tells whether the blob's end was seen.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Returns the offset in the blob of the first byte that was not consumed.
    pub(super) fn position(&self) -> u64 {
        self.read - self.buffered().len() as u64
    }

    /// Reads on, behind what is buffered if `keep`, else in its place.
    ///
    /// # Errors
    /// `Integrity` when the blob turns out shorter or longer than promised, `Cancelled`, or what reading gave.
    pub(super) fn refill(&mut self, keep: bool) -> Result<(), Error> {
        if !keep {
            (self.start, self.end) = (0, 0);
        }
        let most = match self.expected_size {
            // One byte more than promised shows that there is more.
            Some(size) => usize::try_from(size.saturating_add(1).saturating_sub(self.read)).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let end = self.end.saturating_add(most).min(self.buffer.len());
        let room = self.buffer.get_mut(self.end..end).unwrap_or(&mut []);
        let n = loop {
            self.cancel.check()?;
            match self.blob.read(room) {
                Ok(n) if n <= room.len() => break n,
                Ok(n) => {
                    let what = format!("the blob's reader claims {n} bytes of {}", room.len());
                    return Err(Error::new(ErrorKind::Other, what));
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(from_io("read the blob", err)),
            }
        };
        let (new, _) = room.split_at(n);
        self.hasher.update(new);
        self.end += n;
        self.read += n as u64;
        self.counters.compressed.store(self.read, Ordering::Relaxed);
        self.ended = n == 0;
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

    /// Hashes the rest of the blob without decoding it.
    ///
    /// # Errors
    /// Those of [`Source::refill`].
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        while !self.ended {
            self.refill(false)?;
        }
        Ok(())
    }

    /// Returns the digest and size of everything read; the blob's, once it ended.
    pub(super) fn digest(&self) -> (Digest, u64) {
        (self.hasher.clone().finish(), self.read)
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
