//! Members and frames decoded side by side.
//!
//! Owns: the threads that decode parts of one stream, the batches they get, the order of what they give. Refuses to know:
//! codecs, digests, limits, who takes the bytes.
//!
//! ```text
//! source ─ look ahead, cut into batches → decoders, each a batch → in order: whole batches → chunks
//!    └──── the serial decoder goes on where the last good batch ends, with whatever was not plainly right
//! ```
//!
//! The thread that decodes the stream looks ahead, cuts and collects; what it hands on of a batch is all of it, once it
//! was decoded to exactly its end with intact trailers. Nothing is consumed of the blob before that, so any doubt (damage,
//! a limit, an end that was none, a batch larger than it seemed) is settled by dropping what is in flight: the serial
//! decoder then makes the very steps it would have made alone.
//!
//! Invariants:
//! * Bytes, errors and reports are those of the serial decoder.
//! * Decoders wait for work and nothing else: each batch comes with its input and room for its output. They end with the
//!   stream, and look between steps whether anybody still wants what they make.
//! * Each decoder adds a fixed number of chunks to the pools of the stream. All streams of a run have
//!   no more decoders than their [`Decoders`] allow.
//! * A batch that was cut wrong ends the splitting of its stream; others cost at most a fraction of what went well.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind};
use crate::stream::chunk::{Chunk, ChunkMut, Pool};
use crate::stream::cut::{Cutter, Found};
use crate::stream::decode::{DecodeError, Decoder};
use crate::stream::engine::Engine;
use crate::stream::pipeline::panic_error;
use crate::stream::report::Framing;
use crate::stream::source::Ahead;
use crate::stream::window;
use crate::trace::{LayerTrace, Recorder, Stage};

/// Decoders that one stream may have.
const MOST: usize = 4;
/// With fewer the serial decoder keeps up: on two CPUs hashing and writing have use for the second one, and splitting was
/// measured to cost what it brings (`docs/benchmarks.md`).
const LEAST: usize = 3;
/// Pieces of the blob that each of them may have read ahead.
const PIECES: usize = 20;
/// Batches that wait for a decoder, so that none waits for a batch.
const WAITING: usize = 2;
/// Room for one batch, in multiples of the chunks that the stream has anyway: 4 MiB, which is what pzstd and eStargz cut
/// files into.
const ROOM: u64 = 4;

/// How many decoders the streams of a run may have beside the serial one of each; clones share the number.
#[derive(Debug, Clone)]
pub struct Decoders(Arc<AtomicUsize>);

impl Default for Decoders {
    /// As many as this process has CPUs.
    fn default() -> Self {
        Decoders::new(crate::sys::available_cpus())
    }
}

impl Decoders {
    /// Allows `threads`; below three no stream is split.
    pub fn new(threads: usize) -> Decoders {
        Decoders(Arc::new(AtomicUsize::new(threads)))
    }

    /// Returns how many nobody has.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes what is there, [`MOST`] at most.
    fn take(&self) -> Option<Permits> {
        let take = |free: usize| (free >= LEAST).then(|| free - free.min(MOST));
        let free = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Permits { decoders: self.clone(), count: free.min(MOST) })
    }
}

struct Permits {
    decoders: Decoders,
    count: usize,
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.decoders.0.fetch_add(self.count, Ordering::Relaxed);
    }
}

/// Makes a decoder that is to decode batches.
pub(super) type Make = Arc<dyn Fn() -> Result<Box<dyn Decoder>, DecodeError> + Send + Sync>;

/// What the decoders of one stream are made of.
pub(super) struct Tools {
    pub(super) make: Make,
    /// Makes a thread from the name of its stage.
    pub(super) threads: Box<dyn Fn(&str) -> Builder + Send>,
    pub(super) cancel: CancelToken,
    pub(super) trace: LayerTrace,
}

/// The decoders of one stream, and how it went so far.
pub(super) struct Parallel {
    decoders: Decoders,
    tools: Tools,
    team: Option<Team>,
    sizes: Sizes,
    /// Batches that were right, and such as were not.
    good: u64,
    missed: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sizes {
    /// A batch has so many bytes of the blob or of what it stands for, or the member that makes it more.
    input: u64,
    output: u64,
    /// A member that stands for more is none of ours.
    room: u64,
    chunk: u64,
}

/// Whole members in a row.
struct Batch {
    start: u64,
    end: u64,
    /// What they stand for, as far as one can tell.
    bytes: u64,
}

/// What a decoder made of a batch.
struct Part {
    chunks: Vec<Chunk>,
    bytes: u64,
    framing: Framing,
}

/// Why a batch is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Miss {
    /// It stands for more than there was room for.
    Room,
    /// It is damaged, or was cut where no member ends.
    Wrong,
    /// Nobody wants it any more.
    Unwanted,
}

/// A batch in the hands of a decoder.
struct Job {
    input: Vec<(Chunk, Range<usize>)>,
    room: Vec<ChunkMut>,
    pool: Arc<Pool>,
    wanted: Arc<AtomicBool>,
    done: SyncSender<Result<Part, Miss>>,
}

struct Flight {
    end: u64,
    done: Receiver<Result<Part, Miss>>,
}

/// Why decoding side by side does not go on.
enum Stop {
    /// The serial decoder takes over, up to this offset at least.
    Over(u64),
    /// A thread panicked.
    Lost(Error),
}

impl Parallel {
    pub(super) fn new(decoders: Decoders, tools: Tools) -> Parallel {
        Parallel { decoders, tools, team: None, sizes: Sizes::default(), good: 0, missed: 0 }
    }

    #[cfg(test)]
    pub(super) fn tools(&mut self) -> &mut Tools {
        &mut self.tools
    }

    /// Has `engine` pause for [`Parallel::run`], where that may ever come to something.
    pub(super) fn begin(&self, engine: &mut Engine, pool: &Pool) {
        // With one chunk the stages take turns.
        let may = pool.max_chunks() > 1 && Cutter::new(engine.codec(), 0, 0).is_some();
        engine.pause_from(if may { 0 } else { u64::MAX });
    }

    /// Decodes on from between two members, as far as members are found and decoded well; `forward` gets the chunks and
    /// says whether more are wanted. Afterwards `engine` is where the serial decoder goes on, and knows where to pause again.
    ///
    /// # Errors
    /// `Other` when a thread panicked.
    pub(super) fn run(
        &mut self,
        engine: &mut Engine,
        pool: &Arc<Pool>,
        forward: &mut dyn FnMut(Chunk) -> bool,
    ) -> Result<(), Error> {
        let mut resume = 0;
        // Where there are none others may give theirs back.
        if self.gather(engine, pool) {
            let wanted = Arc::new(AtomicBool::new(true));
            let mut run = Run { parallel: self, engine, pool, forward, flights: VecDeque::new(), wanted };
            let stop = run.decode();
            run.wanted.store(false, Ordering::Relaxed);
            resume = match stop {
                Ok(at) | Err(Stop::Over(at)) => at,
                Err(Stop::Lost(err)) => return Err(err),
            };
        }
        // A stop for each small member that is none of ours would cost more than the member.
        let least = engine.source().position().saturating_add(self.sizes.input);
        engine.pause_from(resume.max(least));
        Ok(())
    }

    /// Makes sure that there are decoders.
    fn gather(&mut self, engine: &mut Engine, pool: &Pool) -> bool {
        if self.sizes.input == 0 {
            let (chunk, chunks) = (pool.chunk_bytes() as u64, pool.max_chunks() as u64);
            let (output, input) = (chunk.saturating_mul(chunks), engine.source().piece_bytes() as u64 * 2);
            self.sizes = Sizes { input, output, room: output.saturating_mul(ROOM), chunk };
        }
        if self.team.is_none()
            && let Some(permits) = self.decoders.take()
        {
            // One chunk more: a decoder is always offered some room.
            let chunks = usize::try_from(self.sizes.room / self.sizes.chunk).unwrap_or(0) + 1;
            pool.grow(permits.count.saturating_mul(chunks));
            engine.source().grow(permits.count.saturating_mul(PIECES));
            self.team = Some(Team::new(permits));
        }
        self.team.is_some()
    }
}

/// One turn of decoding side by side.
struct Run<'a> {
    parallel: &'a mut Parallel,
    engine: &'a mut Engine,
    pool: &'a Arc<Pool>,
    forward: &'a mut dyn FnMut(Chunk) -> bool,
    flights: VecDeque<Flight>,
    wanted: Arc<AtomicBool>,
}

impl Run<'_> {
    /// Decodes until the serial decoder has to go on; returns the offset before which there is nothing to try.
    fn decode(&mut self) -> Result<u64, Stop> {
        let sizes = self.parallel.sizes;
        let start = self.engine.source().position();
        let Some(mut cutter) = Cutter::new(self.engine.codec(), start, window::FREE) else { return Ok(u64::MAX) };
        let mut batch = Batch { start, end: start, bytes: 0 };
        let resume = loop {
            self.collect_ready()?;
            match cutter.next(self.engine.source()) {
                Found::End { at, bytes } if bytes > sizes.room => break at,
                Found::End { at, bytes } => {
                    if batch.bytes.saturating_add(bytes) > sizes.room {
                        self.send(&mut batch)?;
                    }
                    batch.end = at;
                    batch.bytes = batch.bytes.saturating_add(bytes);
                    if batch.end.saturating_sub(batch.start) >= sizes.input || batch.bytes >= sizes.output {
                        self.send(&mut batch)?;
                    }
                }
                Found::Never => break 0,
                Found::More => match self.engine.source().look_ahead() {
                    Ahead::Read => {}
                    Ahead::Ended => break u64::MAX,
                    Ahead::Full if batch.end > batch.start => self.send(&mut batch)?,
                    Ahead::Full if !self.flights.is_empty() => self.collect()?,
                    Ahead::Full => break cutter.seen(),
                },
            }
        };
        self.send(&mut batch)?;
        while !self.flights.is_empty() {
            self.collect()?;
        }
        Ok(resume)
    }

    /// Gives a batch to a decoder, with room for what it stands for; the next one begins where it ends.
    fn send(&mut self, batch: &mut Batch) -> Result<(), Stop> {
        if batch.end <= batch.start {
            return Ok(());
        }
        let chunks = batch.bytes / self.parallel.sizes.chunk.max(1) + 1;
        let most = self.parallel.team.as_ref().map_or(0, |team| team.permits.count + WAITING);
        while self.flights.len() >= most.max(1) {
            self.collect()?;
        }
        // No more than are needed: somebody may keep the last ones for want of more.
        let mut room = Vec::new();
        while (room.len() as u64) < chunks {
            match self.pool.try_acquire() {
                Some(chunk) => room.push(chunk),
                // Chunks come back once batches are handed on, and then used up.
                None if !self.flights.is_empty() => self.collect()?,
                None => room.push(self.pool.acquire().ok_or(Stop::Over(u64::MAX))?),
            }
        }
        let (done, take) = sync_channel(1);
        let input = self.engine.source().part(batch.start, batch.end);
        let job = Job { input, room, pool: Arc::clone(self.pool), wanted: Arc::clone(&self.wanted), done };
        let busy = self.flights.len();
        let Parallel { team, tools, .. } = &mut *self.parallel;
        let sent = team.as_mut().is_some_and(|team| team.send(job, busy, tools));
        if !sent {
            return Err(Stop::Over(u64::MAX));
        }
        self.flights.push_back(Flight { end: batch.end, done: take });
        *batch = Batch { start: batch.end, end: batch.end, bytes: 0 };
        Ok(())
    }

    /// Hands on the batches that are done.
    fn collect_ready(&mut self) -> Result<(), Stop> {
        while let Some(flight) = self.flights.front() {
            let end = flight.end;
            let done = match flight.done.try_recv() {
                Err(TryRecvError::Empty) => break,
                Ok(done) => Some(done),
                Err(TryRecvError::Disconnected) => None,
            };
            self.hand_on(end, done)?;
        }
        Ok(())
    }

    /// Waits for the first batch in flight and hands it on.
    fn collect(&mut self) -> Result<(), Stop> {
        match self.flights.front() {
            Some(flight) => {
                let (end, done) = (flight.end, flight.done.recv().ok());
                self.hand_on(end, done)
            }
            None => Ok(()),
        }
    }

    /// Hands on what became of the first batch in flight; `None` if its decoder is gone.
    fn hand_on(&mut self, end: u64, done: Option<Result<Part, Miss>>) -> Result<(), Stop> {
        let never = Stop::Over(u64::MAX);
        self.flights.pop_front();
        match done {
            None => {
                let panic = self.parallel.team.take().and_then(Team::panicked);
                let gone = || Error::new(ErrorKind::Other, "a thread of the layer stream is gone");
                Err(Stop::Lost(panic.unwrap_or_else(gone)))
            }
            Some(Err(Miss::Wrong | Miss::Unwanted)) => Err(never),
            Some(Err(Miss::Room)) => {
                self.parallel.missed = self.parallel.missed.saturating_add(1);
                let often = self.parallel.missed > 1 + self.parallel.good / 8;
                Err(if often { never } else { Stop::Over(end) })
            }
            Some(Ok(Part { chunks, bytes, framing })) => {
                if !self.engine.pass(end, bytes, framing) {
                    return Err(never);
                }
                self.parallel.good = self.parallel.good.saturating_add(1);
                for chunk in chunks {
                    if !(self.forward)(chunk) {
                        return Err(never);
                    }
                }
                if self.pool.is_closed() { Err(never) } else { Ok(()) }
            }
        }
    }
}

/// The threads of one stream; joined when dropped.
struct Team {
    /// `None` only while being dropped.
    jobs: Option<Sender<Job>>,
    queue: Arc<Mutex<Receiver<Job>>>,
    threads: Vec<JoinHandle<()>>,
    permits: Permits,
}

impl Team {
    fn new(permits: Permits) -> Team {
        let (jobs, queue) = channel();
        Team { jobs: Some(jobs), queue: Arc::new(Mutex::new(queue)), threads: Vec::new(), permits }
    }

    /// Has somebody do `job`, while `busy` others are not done; `false` where no thread can be had at all.
    fn send(&mut self, job: Job, busy: usize, tools: &Tools) -> bool {
        if busy >= self.threads.len() && self.threads.len() < self.permits.count {
            let (queue, make, cancel) = (Arc::clone(&self.queue), Arc::clone(&tools.make), tools.cancel.clone());
            let recorder = tools.trace.recorder(Stage::Inflate);
            // Where there can be no more, those that are there do the work.
            self.threads.extend((tools.threads)("inflate").spawn(move || work(&queue, &make, &cancel, recorder)));
        }
        !self.threads.is_empty() && self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// Joins the threads and says what one of them panicked about.
    fn panicked(mut self) -> Option<Error> {
        self.jobs = None;
        let ends: Vec<_> = std::mem::take(&mut self.threads).into_iter().map(JoinHandle::join).collect();
        let panic = ends.into_iter().find_map(Result::err)?;
        Some(panic_error(&*panic))
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The life of a decoder.
fn work(queue: &Mutex<Receiver<Job>>, make: &Make, cancel: &CancelToken, mut recorder: Recorder) {
    let mut decoder = None;
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { input, room, pool, wanted, done }) = job else { return };
        let unwanted = || cancel.is_cancelled() || !wanted.load(Ordering::Relaxed) || pool.is_closed();
        let result = recorder.during(|| decode(&mut decoder, make, &input, room, &pool, unwanted));
        // The reader may wait for them.
        drop(input);
        let _ = done.send(result);
    }
}

/// Decodes a batch from its first byte to exactly its last.
fn decode(
    decoder: &mut Option<Box<dyn Decoder>>,
    make: &Make,
    input: &[(Chunk, Range<usize>)],
    room: Vec<ChunkMut>,
    pool: &Arc<Pool>,
    unwanted: impl Fn() -> bool,
) -> Result<Part, Miss> {
    let decoder = match decoder {
        Some(decoder) => decoder,
        None => decoder.insert(make().map_err(|_| Miss::Wrong)?),
    };
    decoder.restart().map_err(|_| Miss::Wrong)?;
    let mut room = room.into_iter();
    let mut part = Part { chunks: Vec::new(), bytes: 0, framing: Framing::default() };
    let mut current: Option<(ChunkMut, usize)> = None;
    // An empty piece at the end: what the decoder still holds back.
    let pieces = input.iter().map(|(chunk, range)| chunk.get(range.clone()).unwrap_or(&[]));
    for mut piece in pieces.chain(std::iter::once(&[][..])) {
        loop {
            if unwanted() {
                return Err(Miss::Unwanted);
            }
            let (mut chunk, filled) = match current.take() {
                Some(current) => current,
                None => (room.next().or_else(|| pool.try_acquire()).ok_or(Miss::Room)?, 0),
            };
            let space = chunk.space().get_mut(filled..).unwrap_or(&mut []);
            let left = space.len();
            let step = decoder.decode(piece, space).map_err(|_| Miss::Wrong)?;
            piece = piece.get(step.consumed..).unwrap_or(&[]);
            part.bytes = part.bytes.saturating_add(step.produced as u64);
            if step.produced < left {
                current = Some((chunk, filled + step.produced));
            } else {
                part.chunks.push(chunk.freeze(filled + step.produced));
            }
            if step.consumed == 0 && step.produced == 0 {
                break;
            }
        }
        if !piece.is_empty() {
            return Err(Miss::Wrong);
        }
    }
    if !decoder.between() {
        return Err(Miss::Wrong);
    }
    if let Some((chunk, filled)) = current
        && filled > 0
    {
        part.chunks.push(chunk.freeze(filled));
    }
    part.framing = decoder.framing();
    Ok(part)
}
