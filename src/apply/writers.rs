//! Small files of one layer, made by several threads while the archive is read on.
//!
//! Owns: the files under way, the threads that make them, in which order what came of them is told. Refuses to know: what names
//! mean, what is recorded of a file, what to do where a name is taken.
//!
//! A file is handed over with a copy of its content; files of one directory go to one thread, since the kernel lets one at a time
//! change a directory. Whoever reads the archive never waits for a place in a queue: where there is none it makes the file
//! itself.
//!
//! Invariants:
//! * No two files under way have one name ([`Crew::has`]); so a name that is taken was taken before, and in whatever order the
//!   threads work, each file comes out as if it had been made in its turn.
//! * What came of each is told in the order of the archive ([`Crew::next`]), with everything that was put in the row behind it.
//! * A thread waits for files and nothing else. Dropping a [`Crew`] joins its threads, which finish what is in their queues:
//!   [`QUEUE`] and one batches each.
//! * Memory and descriptors are bounded by [`BATCH_BYTES`], [`BATCH_FILES`], [`BATCH_DIRS`] and [`ROW`], whatever the archive.

use std::collections::hash_map::RandomState;
use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, ErrorKind, Result};
use crate::root::{Dir, Meta, meta as fdmeta};
use crate::trace::{LayerTrace, Stage};

use super::content::write_all;
use super::dirs::DirId;
use super::journal::Sum;
use super::lay::{call_failed, owner_failed};

/// Threads that one layer may have: more than that and reading the archive is what takes longest.
const MOST: usize = 3;
/// With fewer CPUs a layer has none: hashing and decompressing have use for two.
const LEAST: usize = 3;
/// Files that are handed over at a time, and bytes of their names and content.
const BATCH_FILES: usize = 32;
const BATCH_BYTES: usize = 256 << 10;
/// Directories that one batch holds open.
const BATCH_DIRS: usize = 8;
/// Batches that wait for a thread.
const QUEUE: usize = 1;
/// Files and records that wait for their turn to be told.
const ROW: usize = 1024;
const NAME: &str = "unply-write";
/// What makes a thread panic.
#[cfg(test)]
pub(super) const PANIC_UID: u32 = 0x00de_ad00;
/// Larger files are written straight from the stream.
const SMALL: u64 = 32 << 10;

/// How many threads may make small files beside those that read archives, in all layers that are laid down at once; clones
/// share the number.
#[derive(Debug, Clone)]
pub struct Writers {
    free: Arc<AtomicUsize>,
    /// Files that are handed over at a time.
    files: usize,
}

impl Default for Writers {
    /// As [`Writers::new`], with the CPUs of this process.
    fn default() -> Self {
        Writers::new(crate::sys::available_cpus())
    }
}

impl Writers {
    /// Allows what is left of `cpus` once there is one to decompress and one to hash; none below three.
    pub fn new(cpus: usize) -> Writers {
        Writers::exactly(if cpus < LEAST { 0 } else { cpus - 2 }, BATCH_FILES)
    }

    /// Allows so many threads whatever CPUs there are, and hands over `files` files at a time, at most 32: to measure, and to
    /// test.
    pub fn exactly(threads: usize, files: usize) -> Writers {
        Writers { free: Arc::new(AtomicUsize::new(threads)), files: files.clamp(1, BATCH_FILES) }
    }

    /// Returns how many threads nobody has.
    pub fn free(&self) -> usize {
        self.free.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1)).is_ok()
    }

    fn give(&self) {
        self.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a file is made with, besides its content and xattrs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain {
    /// What `open` is asked for.
    pub(super) open_mode: u32,
    /// The owner, where it is not the one that the kernel gives.
    pub(super) owner: bool,
    /// The mode is to be set, for `open` does not.
    pub(super) chmod: bool,
    pub(super) meta: Meta,
    /// A checksum of the content is wanted.
    pub(super) sum: bool,
}

impl Plain {
    /// Makes a file; `None` where the name is taken.
    pub(super) fn make(&self, dir: &Dir, name: &[u8], content: &[u8]) -> Result<Option<Option<Sum>>> {
        let Some(fd) = dir.make_file(name, self.open_mode)? else { return Ok(None) };
        write_all(&fd, content)?;
        self.finish(&fd, || Ok(()))?;
        Ok(Some(self.sum.then(|| Sum(xxhash_rust::xxh3::xxh3_64(content)))))
    }

    /// Gives an open file its owner, whatever `xattrs` sets, its mode and its times, in the order that keeps all of them (M1).
    pub(super) fn finish(&self, fd: &OwnedFd, xattrs: impl FnOnce() -> Result<()>) -> Result<()> {
        let meta = &self.meta;
        if self.owner {
            fdmeta::set_owner_fd(fd, meta.uid, meta.gid).map_err(|e| owner_failed(meta, e))?;
        }
        xattrs()?;
        if self.chmod {
            fdmeta::set_mode_fd(fd, meta.mode).map_err(|e| call_failed("fchmod", e))?;
        }
        fdmeta::set_times_fd(fd, meta).map_err(|e| call_failed("futimens", e))
    }
}

/// What came of something in the row.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The file is there.
    Made(Option<Sum>),
    /// The name was taken before; here is what the file was to hold.
    Taken(Vec<u8>),
    /// It could not be made.
    Failed(Error),
    /// It was no file.
    Noted,
}

struct Job {
    /// Its number in the row, counted from the first there ever was.
    number: u64,
    parent: DirId,
    /// Where in the batch its name and its content are.
    name: Range<usize>,
    content: Range<usize>,
    plain: Plain,
    made: Option<Result<Option<Option<Sum>>>>,
}

/// Files that are handed over together.
#[derive(Default)]
struct Batch {
    jobs: Vec<Job>,
    dirs: Vec<(DirId, Dir)>,
    bytes: Vec<u8>,
}

impl Batch {
    fn has_room(&self, files: usize, parent: DirId, bytes: usize) -> bool {
        self.jobs.len() < files
            && self.bytes.len().saturating_add(bytes) <= BATCH_BYTES
            && (self.dirs.len() < BATCH_DIRS || self.dirs.iter().any(|(id, _)| *id == parent))
    }

    fn run(&mut self) {
        for job in &mut self.jobs {
            #[cfg(test)]
            assert!(
                job.plain.meta.uid != PANIC_UID || std::thread::current().name() != Some(NAME),
                "as the test wants"
            );
            let part = |range: &Range<usize>| self.bytes.get(range.clone()).unwrap_or_default();
            // Those behind a failure are thrown away with it.
            job.made = Some(match self.dirs.iter().find(|(id, _)| *id == job.parent) {
                Some((_, dir)) => job.plain.make(dir, part(&job.name), part(&job.content)),
                None => Err(lost()),
            });
        }
    }
}

struct Hand {
    batches: SyncSender<Batch>,
    thread: JoinHandle<()>,
}

/// Gives back every batch, or tells that there will be none.
struct Returns(Sender<Option<Batch>>);

impl Drop for Returns {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(None);
        }
    }
}

struct Place<T> {
    note: T,
    outcome: Option<Outcome>,
}

/// The files of one layer that are under way; `T` is what the layer wants to be told with each.
pub(super) struct Crew<T> {
    writers: Writers,
    trace: LayerTrace,
    hands: Vec<Hand>,
    /// Batches that are filled, by directory.
    open: Vec<Batch>,
    spare: Vec<Batch>,
    row: VecDeque<Place<T>>,
    /// Number of the first in the row.
    first: u64,
    /// Hashes of directory and name of each file under way. Two that are equal by chance only cost time.
    names: HashSet<u64>,
    hash: RandomState,
    /// Batches that threads have.
    out: usize,
    returns: (Sender<Option<Batch>>, Receiver<Option<Batch>>),
    /// A thread panicked: what it had never comes back.
    lost: bool,
}

fn lost() -> Error {
    Error::new(ErrorKind::Other, "a thread that makes files panicked")
}

impl<T> Crew<T> {
    /// Starts without threads: they come with the first full batch.
    pub(super) fn new(writers: &Writers, trace: &LayerTrace) -> Crew<T> {
        Crew {
            writers: writers.clone(),
            trace: trace.clone(),
            hands: Vec::new(),
            open: (0..MOST).map(|_| Batch::default()).collect(),
            spare: Vec::new(),
            row: VecDeque::new(),
            first: 0,
            names: HashSet::new(),
            hash: RandomState::new(),
            out: 0,
            returns: channel(),
            lost: false,
        }
    }

    /// Whether a file of this size is worth handing over, and there may be somebody to take it.
    pub(super) fn wants(&self, size: u64) -> bool {
        size <= SMALL && (!self.hands.is_empty() || self.writers.free() > 0)
    }

    /// Whether nothing is in the row.
    pub(super) fn is_idle(&self) -> bool {
        self.row.is_empty()
    }

    /// Whether the row is as long as it may be.
    pub(super) fn is_full(&self) -> bool {
        self.row.len() >= ROW
    }

    /// Whether a file of this name is under way, or perhaps: then everything must be settled first.
    pub(super) fn has(&self, parent: DirId, name: &[u8]) -> bool {
        !self.names.is_empty() && self.names.contains(&self.hash.hash_one((parent, name)))
    }

    /// Puts something behind the files under way; gives it back where there are none.
    pub(super) fn put(&mut self, note: T) -> Option<T> {
        if self.row.is_empty() {
            return Some(note);
        }
        self.row.push_back(Place { note, outcome: Some(Outcome::Noted) });
        None
    }

    /// Whether the caller can hand over a file of `size` bytes in `parent`, which [`Crew::wants`]; else it makes it.
    pub(super) fn has_room(&mut self, parent: DirId, name: &[u8], size: u64) -> Result<bool> {
        self.collect()?;
        let bytes = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(name.len());
        let shard = parent.shard(MOST);
        Ok(self.open.get(shard).is_some_and(|batch| batch.has_room(self.writers.files, parent, bytes))
            || self.send(shard)?)
    }

    /// Hands over a file, for which there [is room](Crew::has_room); `fill` appends its content.
    pub(super) fn add(
        &mut self,
        (parent, dir): (DirId, Dir),
        name: &[u8],
        plain: Plain,
        note: T,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let [batch, ..] = self.open.get_mut(parent.shard(MOST)..).unwrap_or_default() else { return Err(lost()) };
        let start = batch.bytes.len();
        batch.bytes.extend_from_slice(name);
        let middle = batch.bytes.len();
        if let Err(e) = fill(&mut batch.bytes) {
            batch.bytes.truncate(start);
            return Err(e);
        }
        if !batch.dirs.iter().any(|(id, _)| *id == parent) {
            batch.dirs.push((parent, dir));
        }
        let number = self.first.saturating_add(self.row.len() as u64);
        let (name_at, content) = (start..middle, middle..batch.bytes.len());
        batch.jobs.push(Job { number, parent, name: name_at, content, plain, made: None });
        self.names.insert(self.hash.hash_one((parent, name)));
        self.row.push_back(Place { note, outcome: None });
        Ok(())
    }

    /// Takes the first of the row, where it is known what came of it.
    pub(super) fn next(&mut self) -> Option<(T, Outcome)> {
        self.row.front().filter(|place| place.outcome.is_some())?;
        let Place { note, outcome } = self.row.pop_front()?;
        self.first = self.first.saturating_add(1);
        Some((note, outcome?))
    }

    /// Waits until it is known of each in the row what came of it, making what nobody has begun.
    pub(super) fn hurry(&mut self) -> Result<()> {
        let mut open = std::mem::take(&mut self.open);
        for batch in &mut open {
            batch.run();
            self.absorb(batch);
        }
        self.open = open;
        while self.out > 0 {
            let back = self.returns.1.recv().ok().flatten();
            self.returned(back)?;
        }
        self.whole()
    }

    fn returned(&mut self, back: Option<Batch>) -> Result<()> {
        match back {
            Some(mut batch) => {
                self.absorb(&mut batch);
                self.spare.push(batch);
                debug_assert!(self.spare.len() <= MOST * (QUEUE + 2), "batches are used again");
            }
            // Whoever waits for the others would wait for ever.
            None => (self.lost, self.out) = (true, 1),
        }
        self.out = self.out.saturating_sub(1);
        self.whole()
    }

    fn whole(&self) -> Result<()> {
        if self.lost { Err(lost()) } else { Ok(()) }
    }

    /// Takes back what threads are done with.
    fn collect(&mut self) -> Result<()> {
        while self.out > 0
            && let Ok(back) = self.returns.1.try_recv()
        {
            self.returned(back)?;
        }
        self.whole()
    }

    /// Notes what came of each file of a batch, and empties it.
    fn absorb(&mut self, batch: &mut Batch) {
        for job in batch.jobs.drain(..) {
            let part = |range: &Range<usize>| batch.bytes.get(range.clone()).unwrap_or_default();
            self.names.remove(&self.hash.hash_one((job.parent, part(&job.name))));
            let outcome = match job.made {
                Some(Ok(Some(sum))) => Outcome::Made(sum),
                Some(Ok(None)) => Outcome::Taken(part(&job.content).to_vec()),
                Some(Err(e)) => Outcome::Failed(e),
                None => Outcome::Failed(lost()),
            };
            let at = usize::try_from(job.number.saturating_sub(self.first)).unwrap_or(usize::MAX);
            if let Some(place) = self.row.get_mut(at) {
                place.outcome = Some(outcome);
            }
        }
        batch.bytes.clear();
        batch.dirs.clear();
    }

    /// Gives a batch to a thread; `false` where each has enough to do.
    fn send(&mut self, shard: usize) -> Result<bool> {
        let Some(open) = self.open.get_mut(shard) else { return Ok(false) };
        let mut batch = std::mem::replace(open, self.spare.pop().unwrap_or_default());
        // The thread that has this directory, then one more.
        for _ in 0..2 {
            let count = self.hands.len();
            if let Some(hand) = self.hands.get(shard % count.max(1)) {
                match hand.batches.try_send(batch) {
                    Ok(()) => {
                        self.out += 1;
                        return Ok(true);
                    }
                    Err(TrySendError::Full(back)) => batch = back,
                    Err(TrySendError::Disconnected(_)) => return self.returned(None).map(|()| false),
                }
            }
            if !self.grow() {
                break;
            }
        }
        if let Some(open) = self.open.get_mut(shard) {
            self.spare.push(std::mem::replace(open, batch));
        }
        Ok(false)
    }

    fn grow(&mut self) -> bool {
        if self.hands.len() >= MOST || !self.writers.take() {
            return false;
        }
        let (batches, queue) = sync_channel::<Batch>(QUEUE);
        let returns = Returns(self.returns.0.clone());
        let mut recorder = self.trace.recorder(Stage::Write);
        let work = move || {
            for mut batch in queue {
                recorder.during(|| batch.run());
                if returns.0.send(Some(batch)).is_err() {
                    break;
                }
            }
        };
        match Builder::new().name(NAME.into()).spawn(work) {
            Ok(thread) => {
                self.hands.push(Hand { batches, thread });
                true
            }
            // Where threads cannot be had, there is one that reads and makes everything.
            Err(_) => {
                self.writers.give();
                false
            }
        }
    }
}

impl<T> Drop for Crew<T> {
    fn drop(&mut self) {
        for Hand { batches, thread } in self.hands.drain(..) {
            drop(batches);
            // What it panicked of was told when it was missed.
            let _ = thread.join();
            self.writers.give();
        }
    }
}
