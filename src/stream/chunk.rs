//! Recycled, reference-counted buffers.
//!
//! Owns: a bounded pool of equally large chunks. Invariants: a pool never holds more buffers than it was
//! allowed, in whatever hands they are; a buffer is written only while nobody else holds it; in steady state handing one over
//! allocates nothing. A fresh buffer per chunk would cost a third of the inflate time in page faults.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
}

#[derive(Default)]
struct State {
    /// Used as a stack: the chunk that came back last is the one still in the cache.
    free: Vec<Arc<Buffer>>,
    made: usize,
    /// How many may be made.
    most: usize,
    closed: bool,
}

/// A bounded set of buffers; the only place where a producing thread waits for its consumers.
pub(super) struct Pool {
    state: Mutex<State>,
    returned: Condvar,
    chunk_bytes: usize,
}

impl Pool {
    pub(super) fn new(chunk_bytes: usize, max_chunks: usize) -> Arc<Pool> {
        let state = State { free: Vec::with_capacity(max_chunks), most: max_chunks, ..State::default() };
        Arc::new(Pool { state: Mutex::new(state), returned: Condvar::new(), chunk_bytes })
    }

    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    pub(super) fn max_chunks(&self) -> usize {
        self.lock().most
    }

    /// Allows `more` buffers than before.
    pub(super) fn grow(&self, more: usize) {
        let mut state = self.lock();
        state.most = state.most.saturating_add(more);
        drop(state);
        self.returned.notify_all();
    }

    /// Waits for a buffer that nobody else holds; `None` once the pool is closed.
    pub(super) fn acquire(self: &Arc<Self>) -> Option<ChunkMut> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(chunk) = self.take(&mut state) {
                return Some(chunk);
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns a buffer that nobody else holds, if there is one now.
    pub(super) fn try_acquire(self: &Arc<Self>) -> Option<ChunkMut> {
        let mut state = self.lock();
        if state.closed { None } else { self.take(&mut state) }
    }

    fn take(self: &Arc<Self>, state: &mut State) -> Option<ChunkMut> {
        let buffer = match state.free.pop() {
            Some(buffer) => buffer,
            None if state.made < state.most => {
                state.made += 1;
                Arc::new(Buffer { bytes: vec![0; self.chunk_bytes].into_boxed_slice(), len: 0 })
            }
            None => return None,
        };
        Some(ChunkMut(Chunk { buffer: Some(buffer), pool: Arc::clone(self) }))
    }

    /// Wakes and refuses everyone who waits for a buffer, until [`Pool::reopen`].
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.returned.notify_all();
    }

    pub(super) fn reopen(&self) {
        self.lock().closed = false;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Returns how many buffers were ever allocated.
    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.lock().made
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid between any two statements, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, buffer: Arc<Buffer>) {
        let mut state = self.lock();
        // All handles die under this lock, so exactly one of them sees itself as the last.
        if Arc::strong_count(&buffer) == 1 {
            state.free.push(buffer);
            drop(state);
            self.returned.notify_one();
        } else {
            drop(buffer);
        }
    }
}

/// A filled chunk; clones share the bytes, the last one returns the buffer to its pool.
#[derive(Clone)]
pub(super) struct Chunk {
    /// `None` only while being dropped.
    buffer: Option<Arc<Buffer>>,
    pool: Arc<Pool>,
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_ref().and_then(|b| b.bytes.get(..b.len)).unwrap_or(&[])
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.give_back(buffer);
        }
    }
}

/// A chunk in one pair of hands, to be filled.
pub(super) struct ChunkMut(Chunk);

impl ChunkMut {
    /// Returns the whole buffer, whose old content is of no meaning.
    pub(super) fn space(&mut self) -> &mut [u8] {
        // Never empty: a `ChunkMut` is not cloned, so its buffer has one owner.
        self.0.buffer.as_mut().and_then(Arc::get_mut).map_or(&mut [], |b| &mut b.bytes)
    }

    /// Ends writing; the first `len` bytes are the content.
    pub(super) fn freeze(mut self, len: usize) -> Chunk {
        if let Some(buffer) = self.0.buffer.as_mut().and_then(Arc::get_mut) {
            buffer.len = len.min(buffer.bytes.len());
        }
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_returns_when_its_last_clone_dies_and_keeps_its_memory() {
        let pool = Pool::new(16, 1);
        let mut chunk = pool.acquire().unwrap();
        chunk.space()[..3].copy_from_slice(b"abc");
        let address = chunk.space().as_ptr();
        let chunk = chunk.freeze(3);
        let clone = chunk.clone();
        drop(chunk);
        assert_eq!(&*clone, b"abc");
        assert_eq!(pool.lock().free.len(), 0);
        drop(clone);
        assert_eq!(pool.acquire().unwrap().space().as_ptr(), address);
        assert_eq!(pool.made(), 1);
    }

    #[test]
    fn a_waiter_gets_the_returned_chunk_or_the_close() {
        let pool = Pool::new(16, 1);
        let wait = || {
            let pool = Arc::clone(&pool);
            std::thread::spawn(move || pool.acquire().is_some())
        };
        let held = pool.acquire().unwrap();
        let waiter = wait();
        drop(held);
        assert!(waiter.join().unwrap());

        let held_again = pool.acquire().unwrap();
        let waiter = wait();
        pool.close();
        assert!(!waiter.join().unwrap());
        assert!(pool.acquire().is_none());
        pool.reopen();
        drop(held_again);
        assert!(pool.acquire().is_some());
    }

    /// Many handles dropped at once from two threads: no buffer is lost, none is handed out twice.
    #[test]
    fn racing_drops_lose_no_buffer() {
        let pool = Pool::new(8, 2);
        let (send, receive) = std::sync::mpsc::channel::<Chunk>();
        let other = std::thread::spawn(move || receive.into_iter().map(|c| u64::from(c[0])).sum::<u64>());
        let mut sum = 0;
        for i in 0..20_000u64 {
            let mut chunk = pool.acquire().unwrap();
            chunk.space()[0] = i as u8;
            let chunk = chunk.freeze(1);
            send.send(chunk.clone()).unwrap();
            sum += u64::from(chunk[0]);
        }
        drop(send);
        assert_eq!(other.join().unwrap(), sum);
        assert_eq!((pool.made(), pool.lock().free.len()), (2, 2));
    }
}
