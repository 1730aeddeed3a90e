//! Hand-over between threads.
//!
//! Owns: the threads of one stream and their queues. One thread reads, hashes and decodes the blob, another
//! hashes what was decoded, the consumer is the caller. The stages are the ones that run inline, and share each chunk.
//!
//! Invariants:
//! * A queue has room for every chunk of the pool, so sending never blocks; the only wait of a producer is for a
//!   chunk from the pool, and closing the pool ends it. The threads belong to no worker pool and wait for nothing
//!   that a worker pool runs.
//! * Stopping joins both threads, whatever they are at. It takes as long as one `read` of the blob at most.
//! * A panic on a thread closes its queues, so it ends the stream with an error and never with silence.

use std::any::Any;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, ErrorKind};
use crate::stream::chunk::{Chunk, Pool};
use crate::stream::engine::{DiffHash, Engine, Parts};

/// What the decoding thread worked on, and why it ended.
type Decoded = (Engine, Result<(), Error>);

/// A running stream.
pub(super) struct Pipeline {
    /// Closed by the decoding thread when it ends, for whatever reason.
    chunks: Receiver<Chunk>,
    pool: Arc<Pool>,
    // Each returns what it was given, unless it was given nothing. `None` here once joined.
    decode: Option<JoinHandle<Option<Decoded>>>,
    hash: Option<JoinHandle<Option<DiffHash>>>,
    /// The diff_id is hashed by nobody, so there is no thread for it.
    unhashed: bool,
}

/// Names a thread; the kernel shows 15 characters.
pub(super) fn named(stage: &str) -> Builder {
    Builder::new().name(format!("unply-{stage}"))
}

impl Pipeline {
    /// Starts the threads, made by `builder` from the stage's name.
    ///
    /// # Errors
    /// When a thread cannot be had, the parts come back to be run inline.
    pub(super) fn start(parts: Parts, builder: impl Fn(&str) -> Builder) -> Result<Pipeline, Box<Parts>> {
        let pool = Arc::clone(&parts.pool);
        let (chunk_sender, chunks) = sync_channel(pool.max_chunks());
        let (hash_sender, to_hash) = sync_channel(pool.max_chunks());
        // State follows once both threads exist: a closure that is never run would take it along.
        let (give_diff, take_diff) = sync_channel(1);
        let (give_engine, take_engine) = sync_channel::<Engine>(1);

        let unhashed = matches!(parts.diff, DiffHash::Blob);
        let hash = if unhashed {
            None
        } else {
            let thread = builder("hash").spawn(move || {
                let diff = take_diff.recv().ok()?;
                Some(hash_chunks(diff, &to_hash))
            });
            let Ok(thread) = thread else { return Err(Box::new(parts)) };
            Some(thread)
        };
        let hash_sender = (!unhashed).then_some(hash_sender);
        let decode = {
            let pool = Arc::clone(&pool);
            builder("decode").spawn(move || {
                let mut engine = take_engine.recv().ok()?;
                let outcome = decode_chunks(&mut engine, &pool, &chunk_sender, hash_sender.as_ref());
                Some((engine, outcome))
            })
        };
        let mut running = Pipeline { chunks, pool, decode: decode.ok(), hash, unhashed };
        if running.decode.is_none() {
            drop(give_diff);
            running.join_all();
            return Err(Box::new(parts));
        }
        let Parts { engine, diff, .. } = parts;
        // The threads wait for these, so sending neither fails nor blocks; if one died all the same, `stop` says so.
        let _ = give_engine.send(engine);
        if !unhashed {
            let _ = give_diff.send(diff);
        }
        Ok(running)
    }

    /// Waits for the next chunk; `None` when the decoding thread has ended, which [`Pipeline::stop`] explains.
    pub(super) fn next(&self) -> Option<Chunk> {
        self.chunks.recv().ok()
    }

    /// Stops both threads where they are and returns what they worked on; an error that decoding met comes with
    /// the next call of [`Parts::next`]. Chunks that were decoded and not taken are hashed and lost.
    ///
    /// # Errors
    /// `Other` when a thread panicked.
    pub(super) fn stop(mut self) -> Result<Parts, Error> {
        self.pool.close();
        let decoded = join(self.decode.take())?;
        let hashed = if self.unhashed { Some(DiffHash::Blob) } else { join(self.hash.take())? };
        let (Some((engine, outcome)), Some(diff)) = (decoded, hashed) else {
            return Err(Error::new(ErrorKind::Other, "a thread of the layer stream never started"));
        };
        self.pool.reopen();
        let mut parts = Parts { engine, diff, pool: Arc::clone(&self.pool) };
        if let Err(err) = outcome {
            parts.put_back(err);
        }
        Ok(parts)
    }

    fn join_all(&mut self) {
        self.pool.close();
        // An abandoned stream has nobody to tell about a panic.
        let _ = self.decode.take().map(JoinHandle::join);
        let _ = self.hash.take().map(JoinHandle::join);
        self.pool.reopen();
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.join_all();
    }
}

fn decode_chunks(
    engine: &mut Engine,
    pool: &Arc<Pool>,
    consumer: &SyncSender<Chunk>,
    hasher: Option<&SyncSender<Chunk>>,
) -> Result<(), Error> {
    // No chunk or no receiver: nobody wants more.
    while let Some(mut chunk) = pool.acquire() {
        let n = engine.fill(chunk.space())?;
        if n == 0 {
            break;
        }
        let chunk = chunk.freeze(n);
        if let Some(hasher) = hasher
            && hasher.send(chunk.clone()).is_err()
        {
            break;
        }
        if consumer.send(chunk).is_err() {
            break;
        }
    }
    Ok(())
}

fn hash_chunks(mut diff: DiffHash, chunks: &Receiver<Chunk>) -> DiffHash {
    for chunk in chunks {
        diff.update(&chunk);
    }
    diff
}

fn join<T>(thread: Option<JoinHandle<Option<T>>>) -> Result<Option<T>, Error> {
    match thread.map(JoinHandle::join) {
        None => Ok(None),
        Some(Ok(value)) => Ok(value),
        Some(Err(panic)) => {
            let what = format!("a thread of the layer stream panicked: {}", panic_text(&*panic));
            Err(Error::new(ErrorKind::Other, what))
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
