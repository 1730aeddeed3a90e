//! Digests computed beside the work, by threads that all streams of a run share.
//!
//! Owns: the queues of chunks that wait to be hashed, the threads that do it, which streams move on together. Refuses to
//! know: which of a layer's digests it computes, what it should be.
//!
//! A thread takes the next chunks of several streams at once where the CPU computes several digests in about the time of one
//! ([`crate::digest::update_together`]), and gathers them a little for that; elsewhere it takes one.
//!
//! Invariants:
//! * A stream's chunks are hashed in their order, by one thread at a time.
//! * A thread waits for nothing but chunks, and never while half of what a stream may hold back is there: whoever waits for
//!   a chunk to come back gets it.
//! * Threads start with the first chunk, end when no stream is left, and are joined with the last handle of a [`Hashers`].
//!   Where none can be had the caller hashes.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::digest::{self, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::stream::chunk::Chunk;
use crate::trace::Recorder;

/// The threads that hash for the streams of one run; clones share them.
#[derive(Clone)]
pub struct Hashers(Arc<Owner>);

impl std::fmt::Debug for Hashers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hashers({} at most)", self.0.shared.most)
    }
}

impl Default for Hashers {
    /// As many threads as this process has CPUs.
    fn default() -> Self {
        Hashers::new(crate::sys::available_cpus())
    }
}

impl Hashers {
    /// Will start `threads` threads at most, at least one.
    pub fn new(threads: usize) -> Hashers {
        Hashers::with(threads.max(1), digest::side_by_side())
    }

    /// As [`Hashers::new`], with the number of streams that a thread takes at once.
    pub(super) fn with(threads: usize, width: usize) -> Hashers {
        // Where one thread does the work of several, several threads would only take streams from each other.
        let most = if width > 1 { threads.div_ceil(2) } else { threads };
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), done: Condvar::new(), most, width };
        Hashers(Arc::new(Owner { shared: Arc::new(shared) }))
    }

    /// Takes over a digest: chunks are hashed by the threads from now on. `held` is how many chunks the stream may keep
    /// from its producer.
    fn open(&self, hasher: Hasher, recorder: Recorder, held: usize) -> Slot {
        let mut state = self.0.shared.lock();
        let queue = Queue {
            hasher: Some(hasher),
            recorder: Some(recorder),
            pending: VecDeque::with_capacity(held),
            offset: 0,
            enough: (held / 2).max(1),
            awaited: false,
        };
        let number = match state.queues.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                state.queues.push(None);
                state.queues.len() - 1
            }
        };
        if let Some(slot) = state.queues.get_mut(number) {
            *slot = Some(queue);
        }
        Slot { hashers: self.clone(), number }
    }
}

struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        // No stream is left, for each has a handle: the threads are ending.
        let threads = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.work.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

struct Shared {
    state: Mutex<State>,
    /// There may be something to hash.
    work: Condvar,
    /// Something was hashed.
    done: Condvar,
    /// Threads.
    most: usize,
    /// Streams that one thread takes at once.
    width: usize,
}

#[derive(Default)]
struct State {
    queues: Vec<Option<Queue>>,
    threads: Vec<JoinHandle<()>>,
    running: usize,
    idle: usize,
    closed: bool,
    /// A thread panicked and took hashers along.
    lost: bool,
    /// Where the search for streams begins, so that none is forgotten.
    turn: usize,
}

struct Queue {
    /// `None` while a thread has it.
    hasher: Option<Hasher>,
    recorder: Option<Recorder>,
    pending: VecDeque<Chunk>,
    /// Bytes of the first chunk that were hashed.
    offset: usize,
    /// With so many chunks there is no more waiting for other streams.
    enough: usize,
    awaited: bool,
}

impl Queue {
    fn ready(&self) -> bool {
        self.hasher.is_some() && !self.pending.is_empty()
    }

    fn urgent(&self) -> bool {
        self.ready() && (self.awaited || self.pending.len() >= self.enough)
    }
}

/// What one thread takes at a time.
struct Task {
    number: usize,
    hasher: Hasher,
    recorder: Recorder,
    chunk: Chunk,
    offset: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Between any two statements under the lock the state is whole; what a panic loses, `lost` says.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread.
    fn work(&self) {
        let guard = Guard(self);
        let mut tasks = Vec::with_capacity(self.width);
        let mut state = self.lock();
        while !state.closed {
            if !state.take(self.width, &mut tasks) {
                if state.queues.iter().all(Option::is_none) {
                    break;
                }
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle = state.idle.saturating_sub(1);
                continue;
            }
            drop(state);
            run(&mut tasks);
            state = self.lock();
            for Task { number, hasher, recorder, chunk, offset } in tasks.drain(..) {
                // A stream that is gone wants nothing back.
                if let Some(queue) = state.queues.get_mut(number).and_then(Option::as_mut) {
                    queue.hasher = Some(hasher);
                    queue.recorder = Some(recorder);
                    queue.offset = offset;
                    if offset >= chunk.len() {
                        queue.offset = 0;
                        queue.pending.pop_front();
                    }
                }
            }
            self.done.notify_all();
        }
        state.running -= 1;
        drop(state);
        std::mem::forget(guard);
    }
}

impl State {
    /// Takes what one thread hashes next; `false` when it should wait.
    fn take(&mut self, width: usize, tasks: &mut Vec<Task>) -> bool {
        let (mut open, mut ready, mut urgent) = (0, 0, false);
        for queue in self.queues.iter().flatten() {
            open += 1;
            ready += usize::from(queue.ready());
            urgent |= queue.urgent();
        }
        if ready == 0 || !(urgent || ready >= width.min(open)) {
            return false;
        }
        let count = self.queues.len();
        let from = self.turn;
        for number in (0..count).map(|n| (from + n) % count) {
            let Some(queue) = self.queues.get_mut(number).and_then(Option::as_mut).filter(|queue| queue.ready()) else {
                continue;
            };
            if let (Some(chunk), Some(hasher), Some(recorder)) =
                (queue.pending.front().cloned(), queue.hasher.take(), queue.recorder.take())
            {
                tasks.push(Task { number, hasher, recorder, chunk, offset: queue.offset });
                self.turn = number + 1;
            }
            if tasks.len() >= width {
                break;
            }
        }
        !tasks.is_empty()
    }
}

/// Hashes of each task as much as the shortest has.
fn run(tasks: &mut [Task]) {
    let left = |task: &Task| task.chunk.len().saturating_sub(task.offset);
    let most = tasks.iter().map(left).min().unwrap_or(0);
    let starts: Vec<_> = tasks.iter().map(|task| task.recorder.start()).collect();
    let mut all: Vec<(&mut Hasher, &[u8])> = tasks
        .iter_mut()
        .map(|task| (&mut task.hasher, task.chunk.get(task.offset..task.offset + most).unwrap_or(&[])))
        .collect();
    digest::update_together(&mut all);
    for (task, start) in tasks.iter_mut().zip(starts) {
        task.offset += most;
        task.recorder.stop(start);
    }
}

/// Tells everybody when a thread panics.
struct Guard<'a>(&'a Shared);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        state.lost = true;
        self.0.done.notify_all();
    }
}

/// The place of one digest among the queues; gone when dropped.
pub(super) struct Slot {
    hashers: Hashers,
    number: usize,
}

impl Slot {
    fn push(&self, chunk: Chunk) {
        let shared = &self.hashers.0.shared;
        let mut state = shared.lock();
        if let Some(queue) = state.queues.get_mut(self.number).and_then(Option::as_mut) {
            queue.pending.push_back(chunk);
        }
        if state.idle == 0 && state.running < shared.most {
            let worker = Arc::clone(shared);
            // Where there can be no more, those that are there do the work.
            if let Ok(thread) = Builder::new().name("unply-hash".into()).spawn(move || worker.work()) {
                state.running += 1;
                // Those that ended meanwhile need no join.
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(thread);
            }
        }
        let nobody = state.running == 0;
        drop(state);
        match nobody {
            true => self.by_hand(),
            false => shared.work.notify_one(),
        }
    }

    /// Hashes what waits, where there is no thread for it.
    fn by_hand(&self) {
        let shared = &self.hashers.0.shared;
        loop {
            let mut state = shared.lock();
            let Some(queue) = state.queues.get_mut(self.number).and_then(Option::as_mut) else { return };
            let Some(hasher) = &mut queue.hasher else { return };
            let Some(chunk) = queue.pending.pop_front() else { return };
            hasher.update(chunk.get(std::mem::take(&mut queue.offset)..).unwrap_or(&[]));
            drop(state);
        }
    }

    /// Waits until everything was hashed and returns the hasher as it is then.
    fn settled(&self) -> Result<Hasher> {
        let shared = &self.hashers.0.shared;
        let mut state = shared.lock();
        loop {
            let lost = state.lost;
            let Some(queue) = state.queues.get_mut(self.number).and_then(Option::as_mut) else { return Err(gone()) };
            match &queue.hasher {
                Some(hasher) if queue.pending.is_empty() => {
                    let hasher = hasher.clone();
                    queue.awaited = false;
                    return Ok(hasher);
                }
                _ if lost => return Err(gone()),
                _ => queue.awaited = true,
            }
            shared.work.notify_one();
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let shared = &self.hashers.0.shared;
        let mut state = shared.lock();
        let queue = state.queues.get_mut(self.number).and_then(Option::take);
        let last = state.queues.iter().all(Option::is_none);
        drop(state);
        // Chunks go back to their pool without the lock.
        drop(queue);
        if last {
            shared.work.notify_all();
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Other, "a thread that computes digests panicked")
}

/// One digest of a stream, computed by whoever adds to it until [`Running::hand_over`], by threads from then on.
pub(super) struct Running(Where);

enum Where {
    Here(Box<Hasher>, Recorder),
    Threads(Slot),
}

impl Running {
    pub(super) fn new(hasher: Hasher, recorder: Recorder) -> Running {
        Running(Where::Here(Box::new(hasher), recorder))
    }

    /// Has threads compute it; `held` chunks at most will wait for them.
    pub(super) fn hand_over(self, hashers: &Hashers, held: usize) -> Running {
        match self.0 {
            Where::Here(hasher, recorder) => Running(Where::Threads(hashers.open(*hasher, recorder, held))),
            there => Running(there),
        }
    }

    pub(super) fn push(&mut self, chunk: &Chunk) {
        match &mut self.0 {
            Where::Here(hasher, recorder) => recorder.during(|| hasher.update(chunk)),
            Where::Threads(slot) => slot.push(chunk.clone()),
        }
    }

    /// Adds bytes that are in no chunk; everything before was hashed when it returns.
    ///
    /// # Errors
    /// As [`Running::digest`].
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        if let Where::Threads(slot) = &self.0 {
            let hasher = slot.settled()?;
            let recorder = crate::trace::LayerTrace::default().recorder(crate::trace::Stage::Hash);
            self.0 = Where::Here(Box::new(hasher), recorder);
        }
        if let Where::Here(hasher, recorder) = &mut self.0 {
            recorder.during(|| hasher.update(bytes));
        }
        Ok(())
    }

    /// Waits for everything that was added and returns the digest of it; more may be added.
    ///
    /// # Errors
    /// `Other` when a thread panicked.
    pub(super) fn digest(&self) -> Result<Digest> {
        match &self.0 {
            Where::Here(hasher, _) => Ok((**hasher).clone().finish()),
            Where::Threads(slot) => Ok(slot.settled()?.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::stream::chunk::Pool;
    use crate::trace::{LayerTrace, Stage};

    fn running() -> Running {
        Running::new(Hasher::new(Algorithm::Sha256), LayerTrace::default().recorder(Stage::Hash))
    }

    /// Streams of unlike lengths in unlike chunks, from threads of their own, over few buffers.
    fn check(hashers: &Hashers, streams: usize) {
        std::thread::scope(|scope| {
            for number in 0..streams {
                scope.spawn(move || {
                    let pool = Pool::new(1000 + number * 700, 1 + number % 3);
                    let mut digest = running().hand_over(hashers, pool.max_chunks());
                    let mut all = Vec::new();
                    for n in 0..40 + number * 9 {
                        let mut chunk = pool.acquire().unwrap();
                        let len = chunk.space().len() - n % 5;
                        chunk.space()[..len].fill((n * 3 + number) as u8);
                        let chunk = chunk.freeze(len);
                        all.extend_from_slice(&chunk);
                        digest.push(&chunk);
                        if n == 20 {
                            assert_eq!(digest.digest().unwrap(), Digest::of(Algorithm::Sha256, &all));
                        }
                    }
                    assert_eq!(digest.digest().unwrap(), Digest::of(Algorithm::Sha256, &all));
                    digest.add(b"rest").unwrap();
                    all.extend_from_slice(b"rest");
                    assert_eq!(digest.digest().unwrap(), Digest::of(Algorithm::Sha256, &all));
                });
            }
        });
    }

    #[test]
    fn streams_get_their_own_digests_whoever_computes_them() {
        for width in [1, 2, 8] {
            // With none the producers hash.
            for threads in [0, 1, 2, 5] {
                check(&Hashers::with(threads, width), 7);
            }
        }
    }

    #[test]
    fn threads_end_with_the_streams_and_start_again() {
        let hashers = Hashers::with(3, 1);
        for _ in 0..50 {
            check(&hashers, 2);
        }
        let shared = Arc::clone(&hashers.0.shared);
        drop(hashers);
        assert_eq!(shared.lock().running, 0);
        assert!(!shared.lock().lost);
    }

    #[test]
    fn a_stream_that_is_dropped_gives_its_chunks_back() {
        let hashers = Hashers::with(1, 8);
        let pool = Pool::new(64, 2);
        for _ in 0..100 {
            let mut digest = running().hand_over(&hashers, 2);
            for _ in 0..2 {
                digest.push(&pool.acquire().unwrap().freeze(64));
            }
        }
        drop(hashers);
        assert_eq!(pool.made(), 2);
        assert!(pool.acquire().is_some());
    }
}
