//! The one decode loop, run by the caller or by a thread.
//!
//! Owns: source → decoder → room, the byte limits, what became of the stream, and rule R-29 (what damage means).
//! Refuses to know: who runs it. Invariants: an error comes after all bytes made before it. The decoder is offered the blob
//! in the pieces in which it was read, and room that ends at multiples of a chunk, whatever others decoded before it: so
//! inline and pipelined runs deliver the same bytes before the same error. A chunk is short before the end, before an
//! error, and where others decode on or did so before.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cancel::CancelToken;
use crate::digest::{BlobDigest, DiffId, Digest, Hasher};
use crate::error::{Error, ErrorKind};
use crate::policy::{Limit, Limits};
use crate::stream::chunk::{Chunk, Pool};
use crate::stream::decode::{DecodeError, Decoder};
use crate::stream::hashing::{Hashers, Running};
use crate::stream::report::{Codec, Expected, Framing, StreamReport};
use crate::stream::source::{Counters, Source, check_digest};
use crate::trace::{LayerTrace, Recorder, Stage};

/// Members and frames after which others may decode on: most blobs have one, and some an empty one behind it.
const MEMBERS: u64 = 2;

/// How far a stream came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Running,
    /// Decoded to the very end, with an intact trailer.
    Complete,
    /// Stopped by an error; `trailer` if a trailer was wrong or missing.
    Failed {
        trailer: bool,
    },
}

/// Decodes one blob.
pub(super) struct Engine {
    source: Source,
    decoder: Box<dyn Decoder>,
    codec: Codec,
    limits: Limits,
    cancel: CancelToken,
    counters: Arc<Counters>,
    produced: u64,
    fate: Fate,
    /// An error behind bytes that were handed out first.
    pending: Option<Error>,
    /// Between two members at or behind this offset the loop stops, for others to decode on.
    pause: u64,
    reading: Recorder,
    inflating: Recorder,
}

impl Engine {
    pub(super) fn new(
        source: Source,
        decoder: Box<dyn Decoder>,
        codec: Codec,
        limits: Limits,
        cancel: CancelToken,
        counters: Arc<Counters>,
        trace: &LayerTrace,
    ) -> Self {
        let fate = Fate::Running;
        let (reading, inflating) = (trace.recorder(Stage::Read), trace.recorder(Stage::Inflate));
        Engine {
            source,
            decoder,
            codec,
            limits,
            cancel,
            counters,
            produced: 0,
            fate,
            pending: None,
            pause: u64::MAX,
            reading,
            inflating,
        }
    }

    /// Fills `room` (one chunk) as far as the stream goes; 0 means that the stream is complete, or that it pauses.
    ///
    /// # Errors
    /// Whatever stops the stream, once all bytes before it were handed out.
    pub(super) fn fill(&mut self, room: &mut [u8]) -> Result<usize, Error> {
        if let Some(err) = self.pending.take() {
            return Err(err);
        }
        match self.fate {
            Fate::Running => {}
            Fate::Complete => return Ok(0),
            Fate::Failed { .. } => return Err(Error::new(ErrorKind::Malformed, "the layer stream failed before")),
        }
        let taken = self.produced % (room.len() as u64).max(1);
        // Less than the room, which is in memory.
        let left = room.len() - taken as usize;
        let room = room.get_mut(..left).unwrap_or(&mut []);
        let mut filled = 0;
        while filled < room.len() {
            match self.step(room.get_mut(filled..).unwrap_or(&mut [])) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(err) if filled == 0 => return Err(err),
                Err(err) => {
                    self.pending = Some(err);
                    break;
                }
            }
        }
        self.counters.uncompressed.store(self.produced, Ordering::Relaxed);
        Ok(filled)
    }

    /// Decodes until something was produced; 0 means that the stream is complete, or that it pauses.
    fn step(&mut self, room: &mut [u8]) -> Result<usize, Error> {
        // One byte over the limit shows that there is more, and is never handed out.
        let allowed = self.limits.max_layer_bytes.saturating_sub(self.produced);
        let most = usize::try_from(allowed.saturating_add(1)).unwrap_or(usize::MAX).min(room.len());
        let room = room.get_mut(..most).unwrap_or(&mut []);
        loop {
            self.cancel.check().map_err(|e| self.fail(e))?;
            let input = self.source.buffered();
            if !input.is_empty() && self.source.position() >= self.pause && self.pauses() {
                return Ok(0);
            }
            let step = match self.inflating.during(|| self.decoder.decode(input, room)) {
                Ok(step) => step,
                Err(err) => return Err(self.refuse(err)),
            };
            let offered = input.len();
            self.source.consume(step.consumed);
            if step.produced > 0 {
                self.produced += step.produced as u64;
                if let Err(err) = self.check_limits() {
                    return Err(self.fail(err));
                }
                return Ok(step.produced);
            }
            if step.consumed > 0 {
                continue;
            }
            if offered > 0 {
                let reason = "the decoder makes no progress".to_owned();
                return Err(self.refuse(DecodeError::Data { codec: word(self.codec), reason }));
            }
            if self.source.ended() {
                return match self.decoder.end() {
                    Ok(()) => {
                        self.fate = Fate::Complete;
                        // It is complete once.
                        let _ = self.counters.framing.set(self.decoder.framing());
                        Ok(0)
                    }
                    Err(err) => Err(self.refuse(err)),
                };
            }
            if let Err(err) = self.reading.during(|| self.source.refill()) {
                return Err(self.fail(err));
            }
        }
    }

    /// Tells whether several members were seen and another one may follow.
    fn pauses(&self) -> bool {
        let framing = self.decoder.framing();
        self.decoder.between() && framing.members.saturating_add(framing.skippable) >= MEMBERS
    }

    /// Has [`Engine::fill`] return 0 between two members at or behind `offset`.
    pub(super) fn pause_from(&mut self, offset: u64) {
        self.pause = offset;
    }

    pub(super) fn is_running(&self) -> bool {
        self.fate == Fate::Running
    }

    pub(super) fn codec(&self) -> Codec {
        self.codec
    }

    /// Gives access to what was read ahead.
    pub(super) fn source(&mut self) -> &mut Source {
        &mut self.source
    }

    /// Passes over whole members up to `offset`, which others decoded to `bytes` bytes; `false` if a limit might have
    /// stopped the serial decoder in them, which then has to see for itself.
    pub(super) fn pass(&mut self, offset: u64, bytes: u64, framing: Framing) -> bool {
        let limits = &self.limits;
        let produced = self.produced.saturating_add(bytes);
        let least = limits.max_ratio.saturating_mul(self.source.position());
        if produced > limits.max_layer_bytes || (produced > limits.ratio_floor && produced > least) {
            return false;
        }
        self.produced = produced;
        self.source.skip_to(offset);
        self.decoder.count(framing);
        self.counters.uncompressed.store(produced, Ordering::Relaxed);
        self.counters.parallel.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    fn check_limits(&self) -> Result<(), Error> {
        let limits = &self.limits;
        if self.produced > limits.max_layer_bytes {
            return Err(limits.exceeded(Limit::LayerBytes, format_args!("{} or more", self.produced)));
        }
        let consumed = self.source.position();
        if self.produced > limits.ratio_floor && self.produced > limits.max_ratio.saturating_mul(consumed) {
            let ratio = self.produced / consumed.max(1);
            let found = format_args!("{ratio} ({} from {consumed})", self.produced);
            return Err(limits.exceeded(Limit::Ratio, found));
        }
        Ok(())
    }

    fn refuse(&mut self, err: DecodeError) -> Error {
        self.fate = Fate::Failed { trailer: err.is_trailer() };
        err.at(self.source.position())
    }

    fn fail(&mut self, err: Error) -> Error {
        self.fate = Fate::Failed { trailer: false };
        err
    }
}

/// Names a codec in a message.
fn word(codec: Codec) -> &'static str {
    match codec {
        Codec::Plain => "plain",
        Codec::Gzip => "gzip",
        Codec::Zstd => "zstd",
    }
}

/// Who computes the diff_id.
pub(super) enum DiffHash {
    /// A hash over the decompressed bytes.
    Own(Running),
    /// Nobody has to: the blob is not compressed and its own digest uses the same algorithm.
    Blob,
}

impl DiffHash {
    pub(super) fn own(hasher: Hasher, trace: &LayerTrace) -> DiffHash {
        DiffHash::Own(Running::new(hasher, trace.recorder(Stage::Hash)))
    }

    pub(super) fn push(&mut self, chunk: &Chunk) {
        if let DiffHash::Own(running) = self {
            running.push(chunk);
        }
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            DiffHash::Own(running) => running.add(bytes),
            DiffHash::Blob => Ok(()),
        }
    }

    /// Has threads compute it; `held` chunks at most will wait for them.
    pub(super) fn hand_over(self, hashers: &Hashers, held: usize) -> DiffHash {
        match self {
            DiffHash::Own(running) => DiffHash::Own(running.hand_over(hashers, held)),
            DiffHash::Blob => DiffHash::Blob,
        }
    }
}

/// Everything a stream is made of, in one pair of hands: what runs inline, and what threads give back when they stop.
pub(super) struct Parts {
    pub(super) engine: Engine,
    pub(super) diff: DiffHash,
    pub(super) pool: Arc<Pool>,
}

impl Parts {
    /// Decodes and hashes the next chunk; `None` at the end.
    ///
    /// # Errors
    /// Those of [`Engine::fill`].
    pub(super) fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let Some(mut chunk) = self.pool.acquire() else {
            return Err(Error::new(ErrorKind::Other, "the layer stream was stopped"));
        };
        let n = self.engine.fill(chunk.space())?;
        if n == 0 {
            return Ok(None);
        }
        let chunk = chunk.freeze(n);
        self.diff.push(&chunk);
        Ok(Some(chunk))
    }

    /// Tells whether there is anything left to decode.
    pub(super) fn running(&self) -> bool {
        self.engine.is_running()
    }

    /// Keeps an error for the next call of [`Parts::next`]: one that a thread met before anybody asked for it.
    pub(super) fn put_back(&mut self, err: Error) {
        self.engine.pending = Some(err);
    }

    /// Gives the proof of a stream that was decoded to its end.
    ///
    /// # Errors
    /// `Integrity` when digest or diff_id is not the promised one.
    pub(super) fn prove(self, expected: &Expected) -> Result<StreamReport, Error> {
        if self.engine.fate != Fate::Complete {
            return Err(Error::new(ErrorKind::Other, "the layer stream was not read to its end"));
        }
        let (digest, compressed_bytes) = self.engine.source.digest()?;
        let diff_id = self.diff_id(digest)?;
        check_digest(digest, expected.digest)?;
        check_diff_id(diff_id, expected.diff_id)?;
        Ok(StreamReport {
            digest: BlobDigest(digest),
            compressed_bytes,
            diff_id,
            uncompressed_bytes: self.engine.produced,
            codec: self.engine.codec,
        })
    }

    /// Decides what damage means: a blob that is not the promised one is a matter of integrity, whoever
    /// stumbled over it; the promised blob is malformed.
    pub(super) fn judge(mut self, expected: &Expected, err: Error) -> Error {
        if err.kind() != ErrorKind::Malformed {
            return err;
        }
        if expected.digest.is_none()
            && let Err(later) = self.decode_on()
        {
            return overrule(err, later);
        }
        if let Err(later) = self.engine.source.drain() {
            return overrule(err, later);
        }
        let digest = match self.engine.source.digest() {
            Ok((digest, _)) => digest,
            Err(later) => return overrule(err, later),
        };
        if let Err(later) = check_digest(digest, expected.digest) {
            return overrule(err, later);
        }
        if expected.digest.is_some() {
            return err;
        }
        // Nobody promised a digest: the trailer and the diff_id are the witnesses that are left.
        match self.engine.fate {
            Fate::Failed { trailer: true } => {
                err.reclassified(ErrorKind::Integrity, "the blob has no promised digest and no valid trailer")
            }
            Fate::Complete => match self.diff_id(digest).and_then(|found| check_diff_id(found, expected.diff_id)) {
                Err(later) => overrule(err, later),
                Ok(()) => err,
            },
            _ => err,
        }
    }

    /// Decodes to the end or to the first damage, for what the trailer and the diff_id say.
    fn decode_on(&mut self) -> Result<(), Error> {
        let mut room = vec![0; self.pool.chunk_bytes()];
        while self.engine.fate == Fate::Running || self.engine.pending.is_some() {
            match self.engine.fill(&mut room) {
                Ok(n) => self.diff.add(room.get(..n).unwrap_or(&[]))?,
                // Further damage adds nothing but what `fate` keeps.
                Err(err) if err.kind() == ErrorKind::Malformed => break,
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    fn diff_id(&self, blob: Digest) -> Result<DiffId, Error> {
        Ok(DiffId(match &self.diff {
            DiffHash::Own(running) => running.digest()?,
            DiffHash::Blob => blob,
        }))
    }

    /// Has threads compute both digests.
    pub(super) fn hand_over(self, hashers: &Hashers) -> Parts {
        let Parts { mut engine, diff, pool } = self;
        engine.source = engine.source.hand_over(hashers);
        let diff = diff.hand_over(hashers, pool.max_chunks());
        Parts { engine, diff, pool }
    }
}

/// Chooses between damage that was found and what came up while the blob was examined for it.
fn overrule(damage: Error, later: Error) -> Error {
    match later.kind() {
        // Both say "refused", and the first one says where.
        ErrorKind::Limit | ErrorKind::Malformed => damage,
        ErrorKind::Cancelled => later,
        kind => damage.reclassified(kind, later.message()),
    }
}

fn check_diff_id(found: DiffId, expected: Option<DiffId>) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != found => {
            Err(Error::new(ErrorKind::Integrity, format!("the layer's diff_id is {found}, expected {expected}")))
        }
        _ => Ok(()),
    }
}
