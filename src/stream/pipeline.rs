//! Hand-over between threads.
//!
//! Owns: the thread of one stream and its queue. It reads and decodes the blob and hands each chunk to those that compute digests
//! ([`super::hashing`]) and to the consumer, who is the caller. The stages are the ones that run inline, and share each chunk.
//! Where a blob has many members or frames it has others decode them, and puts in order what they give ([`super::parallel`]).
//!
//! Invariants:
//! * Sending never blocks, and the queue is no longer than the pool has chunks; the only waits of the thread are for a chunk
//!   from the pool, which closing it ends, for a chunk of the blob that is being hashed, and for a batch that another thread
//!   decodes, which waits for nobody. It belongs to no worker pool and waits for nothing that a worker pool runs.
//! * Stopping joins it and those that help it, whatever they are at. It takes as long as one `read` of the blob at most.
//! * A panic closes the queue, so it ends the stream with an error and never with silence.

use std::any::Any;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, ErrorKind};
use crate::stream::chunk::{Chunk, Pool};
use crate::stream::engine::{DiffHash, Engine, Parts};
use crate::stream::hashing::Hashers;
use crate::stream::parallel::Parallel;

/// What the decoding thread worked on, and why it ended.
type Decoded = (Engine, DiffHash, Result<(), Error>);

/// A running stream.
pub(super) struct Pipeline {
    /// Closed by the decoding thread when it ends, for whatever reason.
    chunks: Receiver<Chunk>,
    pool: Arc<Pool>,
    /// Returns what it was given, unless it was given nothing. `None` here once joined.
    decode: Option<JoinHandle<Option<Decoded>>>,
}

/// Names a thread; the kernel shows 15 characters.
pub(super) fn named(stage: &str) -> Builder {
    Builder::new().name(format!("unply-{stage}"))
}

impl Pipeline {
    /// Starts the thread, made by `builder` from the stage's name.
    ///
    /// # Errors
    /// When it cannot be had, the parts come back to be run inline.
    pub(super) fn start(
        parts: Parts,
        hashers: &Hashers,
        mut parallel: Parallel,
        builder: impl Fn(&str) -> Builder,
    ) -> Result<Pipeline, Box<Parts>> {
        let pool = Arc::clone(&parts.pool);
        let (chunk_sender, chunks) = channel();
        // State follows once the thread exists: a closure that is never run would take it along.
        let (give, take) = sync_channel::<(Engine, DiffHash)>(1);
        let decode = {
            let pool = Arc::clone(&pool);
            builder("decode").spawn(move || {
                let (mut engine, mut diff) = take.recv().ok()?;
                parallel.begin(&mut engine, &pool);
                let outcome = decode_chunks(&mut engine, &mut diff, &pool, &chunk_sender, &mut parallel);
                // From here on the engine is alone.
                engine.pause_from(u64::MAX);
                Some((engine, diff, outcome))
            })
        };
        let Ok(decode) = decode else { return Err(Box::new(parts)) };
        let Parts { engine, diff, .. } = parts.hand_over(hashers);
        // The thread waits for these, so sending neither fails nor blocks; if it died all the same, `stop` says so.
        let _ = give.send((engine, diff));
        Ok(Pipeline { chunks, pool, decode: Some(decode) })
    }

    /// Waits for the next chunk; `None` when the decoding thread has ended, which [`Pipeline::stop`] explains.
    pub(super) fn next(&self) -> Option<Chunk> {
        self.chunks.recv().ok()
    }

    /// Stops the thread where it is and returns what it worked on; an error that decoding met comes with
    /// the next call of [`Parts::next`]. Chunks that were decoded and not taken are hashed and lost.
    ///
    /// # Errors
    /// `Other` when a thread panicked.
    pub(super) fn stop(mut self) -> Result<Parts, Error> {
        self.pool.close();
        let Some((engine, diff, outcome)) = join(self.decode.take())? else {
            return Err(Error::new(ErrorKind::Other, "the thread of the layer stream never started"));
        };
        self.pool.reopen();
        let mut parts = Parts { engine, diff, pool: Arc::clone(&self.pool) };
        if let Err(err) = outcome {
            parts.put_back(err);
        }
        Ok(parts)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.pool.close();
        // An abandoned stream has nobody to tell about a panic.
        let _ = self.decode.take().map(JoinHandle::join);
        self.pool.reopen();
    }
}

fn decode_chunks(
    engine: &mut Engine,
    diff: &mut DiffHash,
    pool: &Arc<Pool>,
    consumer: &Sender<Chunk>,
    parallel: &mut Parallel,
) -> Result<(), Error> {
    // No receiver: nobody wants more.
    let mut forward = |chunk: Chunk| {
        diff.push(&chunk);
        consumer.send(chunk).is_ok()
    };
    // No chunk: as well.
    while let Some(mut chunk) = pool.acquire() {
        let n = engine.fill(chunk.space())?;
        if n > 0 {
            if !forward(chunk.freeze(n)) {
                break;
            }
            continue;
        }
        drop(chunk);
        if !engine.is_running() {
            break;
        }
        parallel.run(engine, pool, &mut forward)?;
    }
    Ok(())
}

fn join<T>(thread: Option<JoinHandle<Option<T>>>) -> Result<Option<T>, Error> {
    match thread.map(JoinHandle::join) {
        None => Ok(None),
        Some(Ok(value)) => Ok(value),
        Some(Err(panic)) => Err(panic_error(&*panic)),
    }
}

/// Makes an error of what a thread panicked about.
pub(super) fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::new(ErrorKind::Other, format!("a thread of the layer stream panicked: {text}"))
}
