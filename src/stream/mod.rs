//! From a blob to verified, decompressed, hashed bytes.
//!
//! Owns: telling the codec, decompression, both digests, byte limits, the hand-over between threads, and the verdict
//! on damage (R-29). Refuses to know: tar, the file system, where blobs come from.
//!
//! ```text
//! blob → source ─ hash (blob digest), count → decoder → chunk ┬→ hash (diff_id)
//!                                                             └→ the caller, through `BufRead`
//! ```
//!
//! [`Threads`] says whether the caller runs these stages or threads do; they are the same stages, and give the same
//! bytes, errors and reports. Where a blob has many members or frames several threads decode them side by side, with the
//! same results again. Memory is bounded by [`Buffers`] and [`Decoders`] plus the codec's own state (32 KiB for gzip, the
//! window for zstd, which streams can share a budget for), whatever the blob says.
//!
//! Invariant: a [`StreamReport`] exists only of a blob that was read to its very end, with an intact trailer, within
//! all limits, and with every promised digest and size. Bytes read before that are not yet verified: whoever uses
//! them must be able to undo it.

mod chunk;
mod cut;
mod decode;
mod engine;
mod gzip;
mod hashing;
mod inflate;
mod parallel;
mod pipeline;
pub mod report;
mod source;
mod window;
mod zstandard;

#[cfg(test)]
mod tests;

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub use hashing::Hashers;
pub use inflate::INFLATED_BY;
pub(crate) use inflate::Inflate;
pub use parallel::Decoders;
pub use report::{Codec, Expected, Framing, StreamReport};
pub use window::WindowMemory;

use crate::cancel::CancelToken;
use crate::digest::{Algorithm, Hasher};
use crate::error::{Error, ErrorKind};
use crate::policy::Limits;
use crate::trace::{LayerTrace, Recorder, Stage};
use chunk::{Chunk, Pool};
use engine::{DiffHash, Engine, Parts};
use hashing::Running;
use parallel::{Parallel, Tools};
use pipeline::Pipeline;
use source::{Counters, Source};

/// Who runs the stages of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Threads {
    /// The caller, as it reads.
    Inline,
    /// One thread reads and decompresses, those of [`StreamOptions::hashers`] compute both digests. They start with the
    /// second chunk, so that a small layer costs none; where threads cannot be had the caller runs the stages. From the
    /// third member of a blob on [`StreamOptions::decoders`] decompress.
    #[default]
    Pipelined,
}

/// The memory of one stream. Each of its [`Decoders`] may have as much as 20 times `input_bytes` and `4 * chunks + 1` times
/// `chunk_bytes` more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// Bytes read of the blob at a time, of which six may be in hands. Default 128 KiB.
    pub input_bytes: usize,
    /// Bytes in one decompressed chunk. Default 128 KiB.
    pub chunk_bytes: usize,
    /// Chunks that may exist at a time; with 1 the stages take turns. Default 8.
    pub chunks: usize,
}

impl Default for Buffers {
    fn default() -> Self {
        Buffers { input_bytes: 128 << 10, chunk_bytes: 128 << 10, chunks: 8 }
    }
}

/// How to read a blob.
#[derive(Debug, Clone, Default)]
pub struct StreamOptions {
    /// Byte limits; only those about sizes, ratio and windows matter here.
    pub limits: Limits,
    /// What the blob was promised to be. The digests' algorithms decide what is computed, SHA-256 by default.
    pub expected: Expected,
    /// Who runs the stages.
    pub threads: Threads,
    /// Stops the stream from outside.
    pub cancel: CancelToken,
    /// The memory to use.
    pub buffers: Buffers,
    /// What streams that run at once may use for zstd windows; without bounds by default.
    pub windows: WindowMemory,
    /// The threads that compute digests, shared by the streams that run at once.
    pub hashers: Hashers,
    /// How many threads may decompress members and frames side by side, in all streams that run at once.
    pub decoders: Decoders,
    /// Records when which stage worked.
    pub trace: LayerTrace,
}

/// Reads the compressed and decompressed byte counts of a [`LayerStream`], also while another thread reads it.
#[derive(Debug, Clone)]
pub struct StreamProgress(Arc<Counters>);

impl StreamProgress {
    /// Returns how many bytes of the blob were read so far.
    pub fn compressed_bytes(&self) -> u64 {
        self.0.compressed.load(Ordering::Relaxed)
    }

    /// Returns how many bytes were decompressed so far; the consumer may be behind.
    pub fn uncompressed_bytes(&self) -> u64 {
        self.0.uncompressed.load(Ordering::Relaxed)
    }

    /// Returns how many of these bytes several threads decompressed side by side.
    pub fn parallel_bytes(&self) -> u64 {
        self.0.parallel.load(Ordering::Relaxed)
    }

    /// Returns how the blob was packed, once it was decoded to its end.
    pub fn framing(&self) -> Option<Framing> {
        self.0.framing.get().copied()
    }
}

/// The decompressed bytes of a layer blob, and at its end the proof that they are the promised ones.
///
/// Read it as far as needed, then call [`LayerStream::finish`] — or [`LayerStream::damaged`] with the error found in
/// the bytes. Dropping it proves nothing and stops its threads, which takes one `read` of the blob at most.
///
/// ```
/// use std::io::Read;
/// use unply::stream::{LayerStream, StreamOptions};
///
/// let mut stream = LayerStream::open(Box::new(&b"bytes of a tar"[..]), StreamOptions::default())?;
/// let mut head = [0; 5];
/// stream.read_exact(&mut head)?;
/// let report = stream.finish()?; // reads the rest
/// assert_eq!(report.uncompressed_bytes, 14);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Errors of its `Read` and `BufRead` carry a [`crate::error::Error`], which [`crate::error::from_io`] takes out.
pub struct LayerStream {
    state: State,
    /// Not to be started again once it was stopped.
    threads: Threads,
    hashers: Hashers,
    /// Goes to the threads.
    parallel: Option<Parallel>,
    current: Option<Chunk>,
    position: usize,
    codec: Codec,
    expected: Expected,
    cancel: CancelToken,
    progress: StreamProgress,
    /// What a reader was told already.
    failed: Option<Failure>,
    /// Whoever takes the bytes makes files of them, from one chunk to asking for the next.
    consuming: Recorder,
    since: Option<Instant>,
}

struct Failure {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

enum State {
    Inline(Box<Parts>),
    Piped(Pipeline),
    /// A thread panicked and took everything along.
    Lost,
}

impl LayerStream {
    /// Opens a blob: reads its first bytes to tell the codec.
    ///
    /// # Errors
    /// `Unsupported` for xz and bzip2, `Integrity` when the blob is shorter than promised, or what reading gave.
    pub fn open(blob: Box<dyn Read + Send>, options: StreamOptions) -> Result<LayerStream, Error> {
        let StreamOptions { limits, expected, threads, cancel, buffers, windows, hashers, decoders, trace } = options;
        let counters = Arc::<Counters>::default();
        let blob_algorithm = expected.digest.map_or(Algorithm::Sha256, |d| d.0.algorithm());
        let diff_algorithm = expected.diff_id.map_or(Algorithm::Sha256, |d| d.0.algorithm());

        let input_bytes = buffers.input_bytes.max(decode::SNIFF_BYTES);
        let digest = Running::new(Hasher::new(blob_algorithm), trace.recorder(Stage::Read));
        let mut source = Source::new(blob, input_bytes, digest, expected.size, cancel.clone(), Arc::clone(&counters));
        source.fill(decode::SNIFF_BYTES)?;
        let codec = decode::sniff(source.buffered())?;
        let decoder = decode::decoder(codec, limits.max_zstd_window_log, windows, &cancel)?;
        let diff = match codec {
            Codec::Plain if blob_algorithm == diff_algorithm => DiffHash::Blob,
            _ => DiffHash::own(Hasher::new(diff_algorithm), &trace),
        };
        let window_log = limits.max_zstd_window_log;
        let engine = Engine::new(source, decoder, codec, limits, cancel.clone(), Arc::clone(&counters), &trace);
        let tools = Tools {
            make: Arc::new(move || decode::beside(codec, window_log)),
            threads: Box::new(pipeline::named),
            cancel: cancel.clone(),
            trace: trace.clone(),
        };
        let pool = Pool::new(buffers.chunk_bytes.max(1), buffers.chunks.max(1));
        Ok(LayerStream {
            state: State::Inline(Box::new(Parts { engine, diff, pool })),
            threads,
            hashers,
            parallel: Some(Parallel::new(decoders, tools)),
            current: None,
            position: 0,
            codec,
            expected,
            cancel,
            progress: StreamProgress(counters),
            failed: None,
            consuming: trace.recorder(Stage::Write),
            since: None,
        })
    }

    /// Returns how the blob is compressed, by its magic bytes; a media type may say otherwise (rules Z8, Z9).
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns a handle that tells how far the stream is.
    pub fn progress(&self) -> StreamProgress {
        self.progress.clone()
    }

    /// Reads to the very end, past whatever the reader left, and gives the proof.
    ///
    /// # Errors
    /// `Integrity` when digest, size or diff_id is not the promised one, or nothing was promised and the trailer
    /// is wrong; `Malformed` when the promised blob cannot be decoded; `Limit`, `Cancelled`, or what reading gave. An
    /// error that a read returned before comes again.
    pub fn finish(mut self) -> Result<StreamReport, Error> {
        loop {
            self.current = None;
            match self.next_chunk() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(err) => return Err(self.damaged(err)),
            }
        }
        let expected = std::mem::take(&mut self.expected);
        self.into_parts()?.prove(&expected)
    }

    /// Decides which error to report when reading or using the bytes ended with `error` (R-29).
    ///
    /// Damage (`Malformed`) may only be the sign of a blob that is not the promised one: the rest of the blob is
    /// hashed, up to its stated size. A wrong digest, size or diff_id makes it `Integrity`, and so does a wrong or
    /// missing trailer of a blob without a promised digest. Any other error returns unchanged and at once.
    pub fn damaged(mut self, error: Error) -> Error {
        if error.kind() != ErrorKind::Malformed {
            return error;
        }
        self.current = None;
        let expected = std::mem::take(&mut self.expected);
        match self.into_parts() {
            Ok(parts) => parts.judge(&expected, error),
            // A panic says nothing about the blob; the damage stands.
            Err(_) => error,
        }
    }

    fn into_parts(self) -> Result<Parts, Error> {
        match self.state {
            State::Inline(parts) => Ok(*parts),
            State::Piped(pipeline) => pipeline.stop(),
            State::Lost => Err(lost()),
        }
    }

    /// Gets the next chunk from whoever makes it; `None` at the end of an intact stream.
    fn next_chunk(&mut self) -> Result<Option<Chunk>, Error> {
        if let Some(Failure { kind, message, hint }) = &self.failed {
            let error = Error::new(*kind, message.clone());
            return Err(match hint {
                Some(hint) => error.with_hint(hint.clone()),
                None => error,
            });
        }
        let result = self.cancel.check().and_then(|()| self.advance());
        if let Err(err) = &result {
            let hint = err.hint().map(str::to_owned);
            self.failed = Some(Failure { kind: err.kind(), message: err.message(), hint });
        }
        result
    }

    fn advance(&mut self) -> Result<Option<Chunk>, Error> {
        let first = self.progress.uncompressed_bytes() == 0;
        let running = matches!(&self.state, State::Inline(parts) if parts.running());
        if self.threads == Threads::Pipelined
            && running
            && !first
            && let Some(parallel) = self.parallel.take()
        {
            self.threads = Threads::Inline;
            self.state = match std::mem::replace(&mut self.state, State::Lost) {
                State::Inline(parts) => match Pipeline::start(*parts, &self.hashers, parallel, pipeline::named) {
                    Ok(pipeline) => State::Piped(pipeline),
                    Err(parts) => State::Inline(parts),
                },
                other => other,
            };
        }
        if let State::Piped(pipeline) = &self.state {
            if let Some(chunk) = pipeline.next() {
                return Ok(Some(chunk));
            }
            // The threads are at the end, or at an error: the parts know which.
            if let State::Piped(pipeline) = std::mem::replace(&mut self.state, State::Lost) {
                self.state = State::Inline(Box::new(pipeline.stop()?));
            }
        }
        match &mut self.state {
            State::Inline(parts) => parts.next(),
            _ => Err(lost()),
        }
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Other, "a thread of the layer stream panicked before")
}

impl BufRead for LayerStream {
    /// Returns the rest of the current chunk, or waits for the next one; empty at the end, which proves nothing yet.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.as_ref().is_none_or(|chunk| self.position >= chunk.len()) {
            // The chunk must be back in its pool before waiting for another one.
            self.current = None;
            self.position = 0;
            self.consuming.stop(self.since.take());
            self.current = self.next_chunk()?;
            self.since = self.consuming.start();
        }
        Ok(self.current.as_ref().and_then(|chunk| chunk.get(self.position..)).unwrap_or(&[]))
    }

    fn consume(&mut self, n: usize) {
        self.position = self.position.saturating_add(n);
    }
}

impl Read for LayerStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}
