//! A blob decoded by the caller and decoded by threads gives the same bytes, the same error and the same report.
#![no_main]

use std::io::Read;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unply::error::{ErrorKind, from_io};
use unply::policy::Limits;
use unply::stream::{Buffers, Expected, LayerStream, StreamOptions, StreamReport, Threads};

/// One part of a blob.
#[derive(Debug, Arbitrary)]
enum Piece {
    Raw(Vec<u8>),
    /// A gzip member of this text, repeated.
    Gzip(Vec<u8>, u8),
    /// A zstd frame of this text, repeated.
    Zstd(Vec<u8>, u8),
    /// A skippable zstd frame.
    Skippable(Vec<u8>),
    Zeros(u8),
}

#[derive(Debug, Arbitrary)]
struct Input {
    pieces: Vec<Piece>,
    /// Bytes changed after the blob was built: position, new value.
    flips: Vec<(u16, u8)>,
    cut: Option<u16>,
    promise_size: Option<u16>,
    promise_digest: bool,
    chunk_bytes: u8,
    chunks: u8,
    max_layer_bytes: Option<u16>,
    ratio: Option<u8>,
    /// Bytes of the caller's reads.
    read: u8,
    /// Reads before `finish` is called.
    reads: u8,
}

impl Input {
    fn blob(&self) -> Vec<u8> {
        let repeated = |text: &[u8], n: u8| text.repeat(usize::from(n).min(1 + 20_000 / text.len().max(1)));
        let mut blob = Vec::new();
        for piece in self.pieces.iter().take(6) {
            match piece {
                Piece::Raw(bytes) => blob.extend_from_slice(bytes),
                Piece::Gzip(text, n) => blob.extend(testkit::gzip(&repeated(text, *n))),
                Piece::Zstd(text, n) => blob.extend(testkit::zstd(&repeated(text, *n))),
                Piece::Skippable(bytes) => {
                    blob.extend([0x50, 0x2a, 0x4d, 0x18]);
                    blob.extend((bytes.len() as u32).to_le_bytes());
                    blob.extend_from_slice(bytes);
                }
                Piece::Zeros(n) => blob.resize(blob.len() + usize::from(*n), 0),
            }
        }
        for (at, value) in &self.flips {
            let at = usize::from(*at);
            if let Some(byte) = blob.get_mut(at) {
                *byte = *value;
            }
        }
        blob.truncate(self.cut.map_or(usize::MAX, usize::from));
        blob
    }
}

type Outcome = (Vec<u8>, Result<StreamReport, (ErrorKind, String)>);

fn run(input: &Input, blob: &[u8], threads: Threads) -> Outcome {
    let digest = unply::digest::Digest::of(unply::digest::Algorithm::Sha256, blob);
    let options = StreamOptions {
        limits: Limits {
            max_layer_bytes: input.max_layer_bytes.map_or(u64::MAX, u64::from),
            max_ratio: input.ratio.map_or(2000, u64::from),
            ratio_floor: if input.ratio.is_some() { 100 } else { 256 << 20 },
            ..Limits::default()
        },
        expected: Expected {
            digest: input.promise_digest.then_some(unply::digest::BlobDigest(digest)),
            size: input.promise_size.map(u64::from),
            diff_id: None,
        },
        threads,
        buffers: Buffers {
            input_bytes: 64,
            chunk_bytes: usize::from(input.chunk_bytes).max(1),
            chunks: usize::from(input.chunks % 9),
        },
        ..StreamOptions::default()
    };
    let failed = |e: unply::error::Error| (e.kind(), e.to_string());
    let mut bytes = Vec::new();
    let mut stream = match LayerStream::open(Box::new(std::io::Cursor::new(blob.to_vec())), options) {
        Ok(stream) => stream,
        Err(e) => return (bytes, Err(failed(e))),
    };
    let mut buf = vec![0; usize::from(input.read).max(1)];
    // Every stream is read to its end by half of the inputs.
    let reads = if input.reads < 128 { usize::MAX } else { usize::from(input.reads - 128) };
    for _ in 0..reads {
        match stream.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buf[..n]),
            Err(e) => {
                let error = from_io("read", e);
                return (bytes, Err(failed(stream.damaged(error))));
            }
        }
    }
    (bytes, stream.finish().map_err(failed))
}

fuzz_target!(|input: Input| {
    let blob = input.blob();
    let inline = run(&input, &blob, Threads::Inline);
    let piped = run(&input, &blob, Threads::Pipelined);
    assert_eq!(inline, piped, "inline and pipelined differ");
    if let (bytes, Ok(report)) = inline {
        let sha256 = |data: &[u8]| format!("sha256:{}", testkit::sha256_hex(data));
        assert_eq!(report.compressed_bytes, blob.len() as u64);
        assert_eq!(report.digest.to_string(), sha256(&blob));
        if bytes.len() as u64 == report.uncompressed_bytes {
            assert_eq!(report.diff_id.to_string(), sha256(&bytes));
        }
    }
});
