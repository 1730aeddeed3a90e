//! What every test of the stream needs: building blobs, and running them inline and pipelined.

mod corpus;
mod damage;
mod formats;
mod members;
mod threads;

use std::io::{BufRead, Write};

use super::*;
use crate::digest::{BlobDigest, DiffId, Digest};

/// Bytes that compress, but not to nothing, and differ from place to place.
fn text(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 32);
    let mut state = 0x2545_f491u32;
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        out.extend_from_slice(format!("layer {} \n", state % 1000).as_bytes());
    }
    out.truncate(len);
    out
}

fn gz(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A zstd frame with a checksum.
fn zst(data: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn sha256(data: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, data)
}

/// Everything true about a blob.
fn promise(blob: &[u8], data: &[u8]) -> Expected {
    Expected {
        digest: Some(BlobDigest(sha256(blob))),
        size: Some(blob.len() as u64),
        diff_id: Some(DiffId(sha256(data))),
    }
}

/// What one run of a stream gave, in comparable form.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    bytes: Vec<u8>,
    result: Result<StreamReport, (ErrorKind, String)>,
}

impl Outcome {
    #[track_caller]
    fn kind(&self) -> ErrorKind {
        self.result.as_ref().expect_err("an error is due").0
    }

    #[track_caller]
    fn assert_fails(&self, kind: ErrorKind, text: &str) {
        let (found, message) = self.result.as_ref().expect_err("an error is due");
        assert!(*found == kind && message.contains(text), "{found:?}: {message}");
    }
}

/// Reads a stream to its end as a tar reader would, then asks for the verdict.
fn outcome(opened: Result<LayerStream, Error>) -> Outcome {
    let mut bytes = Vec::new();
    let told = |err: Error| (err.kind(), err.to_string());
    let mut stream = match opened {
        Ok(stream) => stream,
        Err(err) => return Outcome { bytes, result: Err(told(err)) },
    };
    let result = loop {
        match stream.fill_buf() {
            Ok([]) => break stream.finish(),
            Ok(data) => {
                let n = data.len();
                bytes.extend_from_slice(data);
                stream.consume(n);
            }
            Err(err) => break Err(stream.damaged(crate::error::from_io("read", err))),
        }
    };
    Outcome { bytes, result: result.map_err(told) }
}

/// A blob that comes in pieces of at most `.1` bytes.
struct Dribble(std::io::Cursor<Vec<u8>>, usize);

impl Read for Dribble {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(self.1);
        self.0.read(&mut out[..n])
    }
}

fn open(blob: &[u8], pieces: usize, options: StreamOptions) -> Result<LayerStream, Error> {
    LayerStream::open(Box::new(Dribble(std::io::Cursor::new(blob.to_vec()), pieces)), options)
}

/// Small enough that every blob of a test takes many chunks.
const TINY: Buffers = Buffers { input_bytes: 16, chunk_bytes: 7, chunks: 3 };
/// The same for blobs of which tiny pieces are too many.
const SMALL: Buffers = Buffers { input_bytes: 1009, chunk_bytes: 4093, chunks: 3 };

/// Runs a blob inline and pipelined, in big and in tiny pieces; asserts that it makes no difference.
#[track_caller]
fn both_with(blob: &[u8], options: &StreamOptions) -> Outcome {
    let run = |threads, pieces, buffers| {
        let decoders = Decoders::new(3);
        outcome(open(blob, pieces, StreamOptions { threads, buffers, decoders, ..options.clone() }))
    };
    let inline = run(Threads::Inline, usize::MAX, Buffers::default());
    assert_eq!(inline, run(Threads::Pipelined, usize::MAX, Buffers::default()));
    let (pieces, buffers) = if inline.bytes.len() < 6000 { (1, TINY) } else { (997, SMALL) };
    let tiny = run(Threads::Inline, pieces, buffers);
    assert_eq!(tiny, run(Threads::Pipelined, pieces, buffers));
    assert_eq!(tiny, run(Threads::Pipelined, pieces, Buffers { chunks: 1, ..buffers }));
    match (&inline.result, &tiny.result) {
        (Ok(_), Ok(_)) => assert_eq!(inline, tiny),
        // How much can be handed out before an error depends on the chunks; what the error is does not.
        (Err((kind, _)), Err((tiny_kind, _))) => {
            assert_eq!(kind, tiny_kind, "{:?} / {:?}", inline.result, tiny.result);
            assert!(tiny.bytes.starts_with(&inline.bytes) || inline.bytes.starts_with(&tiny.bytes));
        }
        _ => panic!("{:?} / {:?}", inline.result, tiny.result),
    }
    inline
}

/// Runs a small blob inline and pipelined, in tiny pieces only, where a test has thousands of blobs.
#[track_caller]
fn tiny(blob: &[u8], expected: Expected) -> Outcome {
    let decoders = Decoders::new(3);
    let options = StreamOptions { expected, buffers: TINY, decoders, ..StreamOptions::default() };
    let inline = outcome(open(blob, 5, StreamOptions { threads: Threads::Inline, ..options.clone() }));
    assert_eq!(inline, outcome(open(blob, 5, StreamOptions { threads: Threads::Pipelined, ..options })));
    inline
}

/// Runs a blob of which nothing is promised.
#[track_caller]
fn both(blob: &[u8]) -> Outcome {
    both_with(blob, &StreamOptions::default())
}

#[track_caller]
fn both_promised(blob: &[u8], expected: Expected) -> Outcome {
    both_with(blob, &StreamOptions { expected, ..StreamOptions::default() })
}

/// Asserts that `blob` stands for `data`, whether promised or not.
#[track_caller]
fn assert_decodes(blob: &[u8], data: &[u8], codec: Codec) {
    let bare = both(blob);
    let report = StreamReport {
        digest: BlobDigest(sha256(blob)),
        compressed_bytes: blob.len() as u64,
        diff_id: DiffId(sha256(data)),
        uncompressed_bytes: data.len() as u64,
        codec,
    };
    assert_eq!(bare.result, Ok(report));
    assert_eq!(bare.bytes, data);
    assert_eq!(both_promised(blob, promise(blob, data)), bare);
}
