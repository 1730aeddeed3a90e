//! A blob decoded by the caller and decoded by threads gives the same bytes, the same error and the same report.
#![no_main]

use std::io::{self, Read};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unply::cancel::CancelToken;
use unply::digest::{Algorithm, BlobDigest, DiffId, Digest};
use unply::error::{ErrorKind, from_io};
use unply::policy::Limits;
use unply::stream::{Buffers, Decoders, Expected, LayerStream, StreamOptions, StreamReport, Threads};

/// One part of a blob.
#[derive(Debug, Arbitrary)]
enum Piece {
    Raw(Vec<u8>),
    /// A gzip member of this text, repeated.
    Gzip(Vec<u8>, u8),
    /// A gzip member with the optional fields of its header: extra, name, comment, whether there is a checksum of the header and whether
    /// it is right.
    GzipFields(Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>, Option<bool>),
    /// A zstd frame of this text, repeated.
    Zstd(Vec<u8>, u8),
    /// A zstd frame made by hand: descriptor, window, dictionary, a content size that may lie, blocks.
    ZstdFrame(u8, u8, u8, i8, Vec<Block>),
    /// A skippable zstd frame.
    Skippable(Vec<u8>),
    Zeros(u8),
    /// Something else that layers were compressed with.
    Foreign(bool),
}

#[derive(Debug, Arbitrary)]
enum Block {
    Raw(Vec<u8>),
    Repeat(u8, u16),
}

/// What a digest or diff_id is promised to be.
#[derive(Debug, Arbitrary, Clone, Copy, PartialEq)]
enum Promise {
    None,
    Right,
    Wrong,
}

/// How reading the blob goes.
#[derive(Debug, Arbitrary, Clone, Copy)]
enum Reading {
    Whole,
    /// At most this many bytes at a time, interrupted now and then.
    Slow(u8),
    /// An error at this offset.
    Fails(u16),
    /// More bytes claimed than there was room for, at this offset.
    Lies(u16),
}

#[derive(Debug, Arbitrary)]
struct Input {
    pieces: Vec<Piece>,
    /// Bytes changed after the blob was built: position, new value.
    flips: Vec<(u16, u8)>,
    cut: Option<u16>,
    promise_size: Option<u16>,
    digest: Promise,
    diff_id: Promise,
    long_digest: bool,
    chunk_bytes: u8,
    chunks: u8,
    max_layer_bytes: Option<u16>,
    ratio: Option<u8>,
    window_log: Option<u8>,
    /// Bytes of the caller's reads.
    read: u8,
    /// Reads before `finish` is called.
    reads: u8,
    /// Cancelled after this many reads.
    cancel: Option<u8>,
    reading: Reading,
}

/// The blob as somebody else reads it.
struct Reader {
    blob: Vec<u8>,
    at: usize,
    calls: usize,
    reading: Reading,
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        let rest = &self.blob[self.at..];
        let most = match self.reading {
            Reading::Whole => rest.len(),
            Reading::Slow(_) if self.calls.is_multiple_of(3) => return Err(io::ErrorKind::Interrupted.into()),
            Reading::Slow(n) => usize::from(n).max(1),
            Reading::Fails(end) if self.at >= usize::from(end) => return Err(io::Error::other("the disk is gone")),
            Reading::Lies(end) if self.at >= usize::from(end) => return Ok(out.len() + 1),
            Reading::Fails(end) | Reading::Lies(end) => usize::from(end) - self.at,
        };
        let n = rest.len().min(most).min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}

fn gzip_with_fields(text: &[u8], extra: Option<&[u8]>, strings: [Option<&[u8]>; 2], checksum: Option<bool>) -> Vec<u8> {
    let plain = testkit::gzip(text);
    let mut blob = plain[..10].to_vec();
    if let Some(extra) = extra {
        blob[3] |= 4;
        let extra = &extra[..extra.len().min(usize::from(u16::MAX))];
        blob.extend((extra.len() as u16).to_le_bytes());
        blob.extend_from_slice(extra);
    }
    for (flag, string) in [8, 16].into_iter().zip(strings) {
        if let Some(string) = string {
            blob[3] |= flag;
            blob.extend(string.iter().filter(|b| **b != 0));
            blob.push(0);
        }
    }
    if let Some(right) = checksum {
        blob[3] |= 2;
        let sum = crc32(&blob) as u16;
        blob.extend(sum.wrapping_add(u16::from(!right)).to_le_bytes());
    }
    blob.extend_from_slice(&plain[10..]);
    blob
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

/// RFC 8878, section 3.1.1: the fields that the descriptor asks for, then raw and run-length blocks.
fn zstd_frame(descriptor: u8, window: u8, dictionary: u8, lie: i8, blocks: &[Block]) -> Vec<u8> {
    // No checksum, and the reserved bit stays clear.
    let descriptor = descriptor & 0b1110_0011;
    let single = descriptor & 0x20 != 0;
    let mut body = Vec::new();
    let mut content = 0u64;
    for (n, block) in blocks.iter().take(8).enumerate() {
        let last = u32::from(n + 1 == blocks.len().min(8));
        let (kind, length, bytes) = match block {
            Block::Raw(bytes) => (0, bytes.len().min(1000), &bytes[..bytes.len().min(1000)]),
            Block::Repeat(byte, times) => (1, usize::from(*times), std::slice::from_ref(byte)),
        };
        body.extend_from_slice(&(last | kind << 1 | (length as u32) << 3).to_le_bytes()[..3]);
        body.extend_from_slice(bytes);
        content += length as u64;
    }
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, descriptor];
    if !single {
        frame.push(window);
    }
    frame.extend([dictionary, 0, 0, 0].iter().take([0, 1, 2, 4][usize::from(descriptor & 3)]));
    let size = content.wrapping_add_signed(lie.into());
    match descriptor >> 6 {
        0 if single => frame.push(size as u8),
        0 => {}
        // Two bytes count from 256.
        1 => frame.extend((size.wrapping_sub(256) as u16).to_le_bytes()),
        2 => frame.extend((size as u32).to_le_bytes()),
        _ => frame.extend(size.to_le_bytes()),
    }
    frame.extend(body);
    frame
}

impl Input {
    fn blob(&self) -> Vec<u8> {
        let repeated = |text: &[u8], n: u8| text.repeat(usize::from(n).min(1 + 20_000 / text.len().max(1)));
        let mut blob = Vec::new();
        for piece in self.pieces.iter().take(12) {
            match piece {
                Piece::Raw(bytes) => blob.extend_from_slice(bytes),
                Piece::Gzip(text, n) => blob.extend(testkit::gzip(&repeated(text, *n))),
                Piece::GzipFields(text, extra, name, comment, checksum) => {
                    let strings = [name.as_deref(), comment.as_deref()];
                    blob.extend(gzip_with_fields(text, extra.as_deref(), strings, *checksum));
                }
                Piece::Zstd(text, n) => blob.extend(testkit::zstd(&repeated(text, *n))),
                Piece::ZstdFrame(descriptor, window, dictionary, lie, blocks) => {
                    blob.extend(zstd_frame(*descriptor, *window, *dictionary, *lie, blocks));
                }
                Piece::Skippable(bytes) => {
                    blob.extend([0x50, 0x2a, 0x4d, 0x18]);
                    blob.extend((bytes.len() as u32).to_le_bytes());
                    blob.extend_from_slice(bytes);
                }
                Piece::Zeros(n) => blob.resize(blob.len() + usize::from(*n), 0),
                Piece::Foreign(false) => blob.extend(b"\xfd7zXZ\0\0\x04\xe6\xd6"),
                Piece::Foreign(true) => blob.extend(b"BZh91AY&SY"),
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

fn run(input: &Input, blob: &[u8], diff_id: Option<DiffId>, threads: Threads) -> Outcome {
    let algorithm = if input.long_digest { Algorithm::Sha512 } else { Algorithm::Sha256 };
    let cancel = CancelToken::new();
    let options = StreamOptions {
        limits: Limits {
            max_layer_bytes: input.max_layer_bytes.map_or(u64::MAX, u64::from),
            max_ratio: input.ratio.map_or(2000, u64::from),
            ratio_floor: if input.ratio.is_some() { 100 } else { 256 << 20 },
            // What a frame may ask for, this process would have to give.
            max_zstd_window_log: input.window_log.map_or(20, |n| u32::from(n % 24)),
            ..Limits::default()
        },
        expected: Expected {
            digest: match input.digest {
                Promise::None => None,
                Promise::Right => Some(BlobDigest(Digest::of(algorithm, blob))),
                Promise::Wrong => Some(BlobDigest(Digest::of(algorithm, b"another blob"))),
            },
            size: input.promise_size.map(u64::from),
            diff_id,
        },
        threads,
        cancel: cancel.clone(),
        buffers: Buffers {
            input_bytes: 64,
            // Smaller chunks are handed over for seconds without reaching anything else.
            chunk_bytes: usize::from(input.chunk_bytes).max(16),
            chunks: usize::from(input.chunks % 9),
        },
        // With such buffers batches have 128 bytes of the blob, from the third member on.
        decoders: Decoders::new(3),
        ..StreamOptions::default()
    };
    let failed = |e: unply::error::Error| (e.kind(), e.to_string());
    let mut bytes = Vec::new();
    let reader = Reader { blob: blob.to_vec(), at: 0, calls: 0, reading: input.reading };
    let mut stream = match LayerStream::open(Box::new(reader), options) {
        Ok(stream) => stream,
        Err(e) => return (bytes, Err(failed(e))),
    };
    let progress = stream.progress();
    let mut buf = vec![0; usize::from(input.read).max(1)];
    // Every stream is read to its end by half of the inputs.
    let reads = if input.reads < 128 { usize::MAX } else { usize::from(input.reads - 128) };
    'reads: for n in 0..reads {
        if input.cancel.is_some_and(|at| usize::from(at) == n) {
            cancel.cancel();
        }
        // Filled up: one read stops where a chunk ends, and chunks end where threads like.
        let mut filled = 0;
        while filled < buf.len() {
            match stream.read(&mut buf[filled..]) {
                Ok(0) => break 'reads,
                Ok(n) => {
                    bytes.extend_from_slice(&buf[filled..filled + n]);
                    filled += n;
                }
                Err(e) => {
                    let error = from_io("read", e);
                    let again = from_io("read", stream.read(&mut buf).expect_err("an error must stick"));
                    assert_eq!((error.kind(), error.to_string()), (again.kind(), again.to_string()));
                    return (bytes, Err(failed(stream.damaged(error))));
                }
            }
        }
    }
    let codec = stream.codec();
    let result = stream.finish().map_err(failed);
    assert!(progress.compressed_bytes() <= blob.len() as u64);
    if let Ok(report) = &result {
        assert_eq!(report.codec, codec);
        assert_eq!(progress.compressed_bytes(), report.compressed_bytes);
        assert!(progress.framing().is_some(), "a blob that was read to its end is packed somehow");
    }
    (bytes, result)
}

fn assert_alike(inline: &Outcome, piped: &Outcome) {
    let cancelled = |outcome: &Outcome| matches!(outcome.1, Err((ErrorKind::Cancelled, _)));
    if cancelled(inline) && cancelled(piped) {
        // How far a reader comes after it was cancelled depends on where chunks end.
        let least = inline.0.len().min(piped.0.len());
        assert_eq!(inline.0[..least], piped.0[..least], "inline and pipelined differ");
    } else {
        assert_eq!(inline, piped, "inline and pipelined differ");
    }
}

fuzz_target!(|input: Input| {
    let blob = input.blob();
    let first = run(&input, &blob, None, Threads::Inline);
    assert_alike(&first, &run(&input, &blob, None, Threads::Pipelined));
    let (bytes, inline) = first;
    if let Ok(report) = &inline {
        let sha256 = |data: &[u8]| format!("sha256:{}", testkit::sha256_hex(data));
        assert_eq!(report.compressed_bytes, blob.len() as u64);
        let long = input.long_digest && input.digest == Promise::Right;
        assert!(long || report.digest.to_string() == sha256(&blob));
        assert_ne!(input.digest, Promise::Wrong);
        if bytes.len() as u64 == report.uncompressed_bytes {
            assert_eq!(report.diff_id.to_string(), sha256(&bytes));
        }
    }
    // A promised diff_id changes nothing but the verdict on it.
    let promised = match (input.diff_id, &inline) {
        (Promise::Right, Ok(report)) => report.diff_id,
        (Promise::Wrong, _) => DiffId(Digest::of(Algorithm::Sha256, b"another layer")),
        _ => return,
    };
    let with = run(&input, &blob, Some(promised), Threads::Inline);
    assert_alike(&with, &run(&input, &blob, Some(promised), Threads::Pipelined));
    match (&inline, &with.1) {
        (Ok(a), Ok(b)) => assert!(a == b && input.diff_id == Promise::Right),
        (Ok(_), Err((kind, _))) => assert!(*kind == ErrorKind::Integrity && input.diff_id == Promise::Wrong),
        (Err(_), Ok(_)) => panic!("a promise mends a stream"),
        (Err((a, _)), Err((b, _))) => {
            assert!(a == b || (*a == ErrorKind::Malformed && *b == ErrorKind::Integrity), "{a:?} becomes {b:?}");
        }
    }
});
