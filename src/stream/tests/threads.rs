//! Threads end, memory is bounded, cancellation works, whatever happens.

use std::sync::Arc;
use std::thread::Builder;

use super::*;
use crate::error::from_io;

/// A blob without an end that shows whether it still lives, and calls `at` with the number of each read.
struct Endless<F> {
    _held: Arc<()>,
    at: F,
    reads: u32,
}

fn endless<F: FnMut(u32) + Send + 'static>(held: &Arc<()>, at: F) -> Box<dyn Read + Send> {
    Box::new(Endless { _held: Arc::clone(held), at, reads: 0 })
}

impl<F: FnMut(u32)> Read for Endless<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        (self.at)(self.reads);
        out.fill(b'e');
        Ok(out.len())
    }
}

fn piped() -> StreamOptions {
    // A digest of another algorithm than the diff_id's, so that plain blobs have a hashing thread too.
    let expected = Expected { digest: Some(BlobDigest(Digest::of(Algorithm::Sha512, b""))), ..Expected::default() };
    StreamOptions { threads: Threads::Pipelined, expected, ..StreamOptions::default() }
}

fn pool_of(stream: &LayerStream) -> Arc<Pool> {
    match &stream.state {
        State::Inline(parts) => Arc::clone(&parts.pool),
        _ => panic!("started"),
    }
}

#[test]
fn dropping_a_stream_early_ends_its_threads() {
    for reads in [0, 1, 2, 3, 20] {
        let held = Arc::new(());
        let blob = endless(&held, |_| {});
        let mut stream = LayerStream::open(blob, piped()).unwrap();
        for _ in 0..reads {
            let n = stream.fill_buf().unwrap().len();
            stream.consume(n);
        }
        assert_eq!(matches!(stream.state, State::Piped(_)), reads >= 2);
        drop(stream);
        assert_eq!(Arc::strong_count(&held), 1, "the decoding thread is gone, and the blob with it");
    }
}

#[test]
fn memory_is_bounded_by_the_pool_however_slow_the_consumer() {
    let data = text(3 << 20);
    let blob = gz(&data);
    for chunks in [1, 2, 8] {
        let buffers = Buffers { chunk_bytes: 16 << 10, chunks, ..Buffers::default() };
        let options = StreamOptions { threads: Threads::Pipelined, buffers, ..StreamOptions::default() };
        let mut stream = open(&blob, usize::MAX, options).unwrap();
        let pool = pool_of(&stream);
        let progress = stream.progress();
        let mut consumed = 0u64;
        while let Ok(data @ [_, ..]) = stream.fill_buf() {
            let n = data.len();
            consumed += n as u64;
            assert!(progress.uncompressed_bytes() - consumed <= (chunks as u64) * (16 << 10));
            stream.consume(n);
        }
        assert_eq!(consumed, data.len() as u64);
        assert!(pool.made() <= chunks, "{}", pool.made());
        assert_eq!(stream.finish().unwrap().diff_id, DiffId(sha256(&data)));
    }
}

#[test]
fn small_layers_start_no_threads() {
    for blob in [gz(&text(1000)), text(1000)] {
        let options = StreamOptions { threads: Threads::Pipelined, ..StreamOptions::default() };
        let mut stream = open(&blob, usize::MAX, options).unwrap();
        io::copy(&mut stream, &mut io::sink()).unwrap();
        assert!(matches!(stream.state, State::Inline(_)) && stream.threads == Threads::Pipelined);
        stream.finish().unwrap();
    }
}

#[test]
fn cancellation_stops_both_kinds_of_stream() {
    for threads in [Threads::Inline, Threads::Pipelined] {
        let cancel = CancelToken::new();
        let held = Arc::new(());
        let trigger = cancel.clone();
        let at = move |n| {
            if n == 30 {
                trigger.cancel();
            }
        };
        let blob = endless(&held, at);
        let mut stream = LayerStream::open(blob, StreamOptions { threads, cancel, ..piped() }).unwrap();
        let err = from_io("read", io::copy(&mut stream, &mut io::sink()).unwrap_err());
        assert_eq!(err.kind(), ErrorKind::Cancelled);
        assert_eq!(stream.finish().unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}

#[test]
fn cancellation_interrupts_the_search_for_a_wrong_digest() {
    for threads in [Threads::Inline, Threads::Pipelined] {
        let cancel = CancelToken::new();
        let trigger = cancel.clone();
        let at = move |n| {
            if n == 100 {
                trigger.cancel();
            }
        };
        let blob = endless(&Arc::new(()), at);
        let mut stream = LayerStream::open(blob, StreamOptions { threads, cancel, ..piped() }).unwrap();
        stream.fill_buf().unwrap();
        let err = stream.damaged(Error::new(ErrorKind::Malformed, "bad tar header"));
        assert_eq!(err.kind(), ErrorKind::Cancelled);
    }
}

#[test]
fn a_read_error_ends_the_stream_with_its_own_kind() {
    struct Full(u32);
    impl Read for Full {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            match self.0 {
                5 => Err(io::ErrorKind::Interrupted.into()),
                9 => Err(Error::new(ErrorKind::Network, "registry hung up").into()),
                _ => {
                    out.fill(1);
                    Ok(out.len())
                }
            }
        }
    }
    for threads in [Threads::Inline, Threads::Pipelined] {
        let stream = LayerStream::open(Box::new(Full(0)), StreamOptions { threads, ..piped() }).unwrap();
        let err = stream.finish().unwrap_err();
        assert_eq!((err.kind(), err.to_string().as_str()), (ErrorKind::Network, "registry hung up"));
    }
}

#[test]
fn a_panic_on_a_thread_is_an_error_and_not_a_hang() {
    let at = |n| assert!(n < 10, "the reader broke");
    let held = Arc::new(());
    let blob = endless(&held, at);
    let mut stream = LayerStream::open(blob, piped()).unwrap();
    let err = from_io("read", io::copy(&mut stream, &mut io::sink()).unwrap_err());
    assert_eq!(err.kind(), ErrorKind::Other);
    assert!(err.to_string().contains("the reader broke"), "{err}");
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(stream.finish().unwrap_err().kind(), ErrorKind::Other);
}

#[test]
fn a_reader_that_lies_about_its_length_is_an_error() {
    struct Liar;
    impl Read for Liar {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            Ok(out.len() + 1)
        }
    }
    let err = LayerStream::open(Box::new(Liar), StreamOptions::default()).err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Other);
}

/// No process has a stack that big, so the thread cannot be had.
fn without(stage: &'static str) -> impl Fn(&str) -> Builder {
    move |name| {
        let builder = pipeline::named(name);
        if name == stage { builder.stack_size(usize::MAX / 4) } else { builder }
    }
}

#[test]
fn without_threads_the_caller_runs_the_stages() {
    let data = text(200_000);
    let blob = gz(&data);
    let mut stream = open(&blob, usize::MAX, StreamOptions::default()).unwrap();
    let State::Inline(parts) = std::mem::replace(&mut stream.state, State::Lost) else { panic!() };
    let parallel = stream.parallel.take().unwrap();
    let Err(parts) = Pipeline::start(*parts, &Hashers::new(1), parallel, without("decode")) else {
        panic!("it started")
    };
    stream.state = State::Inline(parts);
    stream.threads = Threads::Inline;
    assert_eq!(outcome(Ok(stream)).bytes, data);
}

/// Streams inside of a worker pool's jobs: their threads are their own, so even one worker finishes.
#[test]
fn streams_finish_inside_a_pool_of_one_worker() {
    let data = text(1 << 20);
    let blob = gz(&data);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|_| {
                let stream = open(&blob, 9999, StreamOptions::default()).unwrap();
                assert_eq!(stream.finish().unwrap().diff_id, DiffId(sha256(&data)));
            });
        }
    });
}

/// Prints MB/s of decompressed bytes; run it by name with `--ignored --nocapture` in a release build.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let data = text(256 << 20);
    for blob in [gz(&data), zst(&data), data.clone()] {
        for threads in [Threads::Inline, Threads::Pipelined] {
            let options = StreamOptions { threads, ..StreamOptions::default() };
            let blob: Box<dyn Read + Send> = Box::new(io::Cursor::new(blob.clone()));
            let start = std::time::Instant::now();
            let report = LayerStream::open(blob, options).unwrap().finish().unwrap();
            let rate = report.uncompressed_bytes as f64 / start.elapsed().as_secs_f64() / 1e6;
            println!("{:?} {threads:?}: {rate:.0} MB/s", report.codec);
        }
    }
}
