//! Members and frames decoded side by side: the results are those of the serial decoder, and it did happen.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::error::from_io;
use crate::stream::decode::{DecodeError, Decoder, Step};
use crate::trace::Trace;

/// Batches of 2 KiB of a blob or 4 KiB of what it stands for, members up to 16 KiB.
const PARTS: Buffers = Buffers { input_bytes: 1024, chunk_bytes: 1024, chunks: 4 };

fn options(threads: Threads, buffers: Buffers, expected: Expected) -> StreamOptions {
    StreamOptions { threads, buffers, expected, decoders: Decoders::new(3), ..StreamOptions::default() }
}

/// Runs a stream to its end; returns the outcome, how the blob was packed and how much of it was decoded side by side.
fn run(blob: &[u8], pieces: usize, options: StreamOptions) -> (Outcome, Option<Framing>, u64) {
    let opened = open(blob, pieces, options);
    let progress = opened.as_ref().ok().map(LayerStream::progress);
    let outcome = outcome(opened);
    let (framing, parallel) = progress.map_or((None, 0), |p| (p.framing(), p.parallel_bytes()));
    (outcome, framing, parallel)
}

/// Asserts that a run with several decoders is the serial one; returns it and what was decoded side by side.
#[track_caller]
fn same_with(blob: &[u8], pieces: usize, options: &StreamOptions) -> (Outcome, u64) {
    let of = |threads| run(blob, pieces, StreamOptions { threads, decoders: Decoders::new(3), ..options.clone() });
    let (inline, framing, none) = of(Threads::Inline);
    let (piped, piped_framing, parallel) = of(Threads::Pipelined);
    assert!(inline == piped, "{:?} / {:?}", inline.result, piped.result);
    assert_eq!((framing, none), (piped_framing, 0));
    (inline, parallel)
}

#[track_caller]
fn same(blob: &[u8]) -> (Outcome, u64) {
    same_with(blob, usize::MAX, &options(Threads::Inline, PARTS, Expected::default()))
}

/// Asserts that `blob` stands for `data`, and that most of it was decoded side by side.
#[track_caller]
fn assert_shared(blob: &[u8], data: &[u8]) {
    for pieces in [usize::MAX, 700] {
        let (out, parallel) = same_with(blob, pieces, &options(Threads::Inline, PARTS, promise(blob, data)));
        assert!(out.bytes == data && out.result.is_ok(), "{:?}", out.result);
        assert!(parallel as usize > data.len() / 2, "{parallel} of {} bytes, pieces of {pieces}", data.len());
    }
}

fn in_members(data: &[u8], each: usize, pack: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    data.chunks(each).flat_map(pack).collect()
}

/// A member of bgzf: its size is in its header.
fn bgzf(data: &[u8]) -> Vec<u8> {
    let plain = gz(data);
    let mut out = plain[..10].to_vec();
    out[3] |= 4;
    out.extend([6, 0, b'B', b'C', 2, 0]);
    out.extend(((plain.len() + 8 - 1) as u16).to_le_bytes());
    out.extend_from_slice(&plain[10..]);
    out
}

/// A zstd frame that does not say what it stands for, as streaming encoders write it.
fn zst_streamed(data: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zst_sized(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 3).unwrap()
}

fn skippable(data: &[u8]) -> Vec<u8> {
    [&[0x51, 0x2a, 0x4d, 0x18][..], &(data.len() as u32).to_le_bytes(), data].concat()
}

/// A gzip member that holds `data` as it is.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn blobs_of_many_members_are_shared_whatever_their_kind() {
    let data = text(300_000);
    assert_shared(&in_members(&data, 900, gz), &data);
    assert_shared(&in_members(&data, 9_000, gz), &data);
    assert_shared(&in_members(&data, 900, bgzf), &data);
    assert_shared(&in_members(&data, 15_000, bgzf), &data);
    assert_shared(&in_members(&data, 900, stored), &data);
    assert_shared(&in_members(&data, 900, zst), &data);
    assert_shared(&in_members(&data, 16_384, zst_sized), &data);
    assert_shared(&in_members(&data, 900, zst_streamed), &data);
    assert_shared(&in_members(&data, 5_000, |part| [skippable(&[7; 12]), zst(part)].concat()), &data);
    assert_shared(&in_members(&data, 5_000, |part| [zst(part), zst(b""), skippable(b"")].concat()), &data);
    assert_shared(&[in_members(&data, 5_000, zst), vec![0; 5000]].concat(), &data);
    assert_shared(&[in_members(&data, 5_000, gz), vec![0; 5000]].concat(), &data);
}

/// As eStargz does: the header of a file in the member before, unlike members, a footer with an extra field at the end.
#[test]
fn estargz_is_shared() {
    let data = text(400_000);
    let mut blob = Vec::new();
    let (mut at, mut n) = (0, 0);
    while at < data.len() {
        let len = [512, 37, 2_900, 1_536, 14_000, 1][n % 6].min(data.len() - at);
        blob.extend(gz(&data[at..at + len]));
        (at, n) = (at + len, n + 1);
    }
    let footer = flate2::GzBuilder::new().extra(&b"SG\x16\x000000000000000000STARGZ"[..]);
    let mut footer = footer.write(Vec::new(), flate2::Compression::none());
    footer.write_all(b"").unwrap();
    blob.extend(footer.finish().unwrap());
    assert_shared(&blob, &data);
}

#[test]
fn a_single_member_pays_nothing() {
    let data = text(300_000);
    for blob in [gz(&data), zst(&data), [gz(&data), vec![0; 9999]].concat(), [zst(&data), skippable(b"x")].concat()] {
        let (out, parallel) = same(&blob);
        assert!(out.bytes == data && parallel == 0, "{parallel}");
    }
    let (out, parallel) = same(&data);
    assert!(out.bytes == data && parallel == 0);
}

#[test]
fn large_members_are_left_to_the_serial_decoder_and_small_ones_shared_again() {
    let data = text(600_000);
    for pack in [gz, zst, zst_streamed] {
        let mut blob = Vec::new();
        for part in data.chunks(100_000) {
            blob.extend(in_members(&part[..70_000], 2_000, pack));
            blob.extend(pack(&part[70_000..]));
        }
        let (out, parallel) = same(&blob);
        assert!(out.bytes == data);
        assert!((200_000..=420_000).contains(&parallel), "{parallel}");
    }
    // Windows over 8 MiB have a budget.
    let long = |part: &[u8]| {
        let mut frame = zst_streamed(part);
        frame[5] = 14 << 3;
        frame
    };
    let blob: Vec<u8> = data
        .chunks(4_000)
        .enumerate()
        .flat_map(|(n, part)| if n % 40 == 20 { long(part) } else { zst_streamed(part) })
        .collect();
    let (out, parallel) = same(&blob);
    assert!(out.bytes == data);
    assert!((100_000..600_000).contains(&parallel), "{parallel}");
}

#[test]
fn empty_members_and_bombs_are_taken_in_their_stride() {
    let data = text(20_000);
    for (pack, stands) in
        [(gz as fn(&[u8]) -> Vec<u8>, gz(b"")), (zst, zst(b"")), (zst, skippable(b"")), (bgzf, bgzf(b""))]
    {
        let blob =
            [in_members(&data[..10_000], 1000, pack), stands.repeat(10_000), in_members(&data[10_000..], 500, pack)];
        let (out, parallel) = same(&blob.concat());
        assert!(out.bytes == data && parallel > 8_000, "{parallel}");
    }
    // Each member a thousand times what it seems.
    let zeros = vec![0; 200_000];
    for pack in [gz, zst_streamed] {
        let blob = [
            in_members(&data, 1000, pack),
            in_members(&zeros.repeat(20), 200_000, pack),
            in_members(&data, 1000, pack),
        ];
        let (out, _) = same(&blob.concat());
        assert_eq!(out.bytes.len(), 4_040_000);
    }
}

/// Every byte of blobs that several decoders work on.
#[test]
fn truncation_anywhere_gives_the_serial_verdict() {
    let data = text(5_000);
    let mut shared = 0;
    for pack in [gz as fn(&[u8]) -> Vec<u8>, bgzf, zst] {
        let blob = [in_members(&data, 350, pack), vec![0; 3]].concat();
        for n in 0..blob.len() {
            let (out, parallel) = same(&blob[..n]);
            assert!(n < 4 || out.result.is_err() || out.bytes.len() % 350 == 0 || out.bytes == data);
            shared += u64::from(parallel > 0);
        }
    }
    assert!(shared > 1000, "{shared}");
}

#[test]
fn flipped_bits_give_the_serial_verdict() {
    let data = text(5_000);
    for pack in [gz as fn(&[u8]) -> Vec<u8>, bgzf, zst, zst_streamed] {
        let blob = [in_members(&data, 350, pack), vec![0; 3]].concat();
        for bit in (0..blob.len() * 8).step_by(7) {
            let mut bad = blob.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit % 2 == 0 { Expected::default() } else { promise(&blob, &data) };
            same_with(&bad, if bit % 3 == 0 { 333 } else { usize::MAX }, &options(Threads::Inline, PARTS, expected));
        }
    }
}

/// libzstd keeps buffers from frame to frame: what it says of a frame that stands for more than it states must not
/// depend on which frames it saw before.
#[test]
fn a_frame_that_lies_gives_the_serial_verdict_whatever_came_before() {
    let data = text(60_000);
    for (before, lying) in [(9_000, 700), (700, 9_000), (16_000, 300), (300, 300)] {
        let mut frame = zst_sized(&data[..lying]);
        // Two bytes of content size behind the descriptor, of a single segment.
        assert_eq!(frame[4] >> 5, 0b011);
        frame[5..7].copy_from_slice(&[7, 0]);
        for count in [1, 5, 20, 150] {
            let first = in_members(&data.repeat(1 + before * count / data.len())[..before * count], before, zst_sized);
            let (out, _) = same(&[first, frame.clone(), zst_sized(&data[..900])].concat());
            out.assert_fails(ErrorKind::Malformed, "zstd data is damaged");
        }
    }
}

#[test]
fn garbage_after_members_is_found_where_the_serial_decoder_finds_it() {
    let data = text(50_000);
    for pack in [gz as fn(&[u8]) -> Vec<u8>, bgzf, zst] {
        let blob = in_members(&data, 700, pack);
        for tail in [
            &b"garbage"[..],
            b"\x1f",
            b"\x1f\x8b",
            b"\x28\xb5\x2f\xfd",
            b"\0\0\0x",
            b"\0\x1f\x8b\x08",
            &pack(b"x")[..9],
        ] {
            let (out, parallel) = same(&[&blob, tail].concat());
            assert!(out.result.is_err() && parallel > 20_000, "{tail:?} {parallel}");
            let more = [&blob, tail, &blob].concat();
            assert!(same(&more).0.result.is_err(), "{tail:?}");
        }
        // Padding inside is none.
        same(&[&blob, &[0; 9][..], &blob].concat());
    }
}

/// Stored data with whole members in it, and lengths in front of their headers that fit: a search takes their
/// headers for those of members.
#[test]
fn false_headers_cost_time_and_nothing_else() {
    let data = text(300_000);
    let inner = in_members(&data, 500, stored);
    let blob =
        [in_members(&data, 700, stored), in_members(&inner, 60_000, stored), in_members(&data, 700, stored)].concat();
    let (out, parallel) = same(&blob);
    assert!(out.bytes == [&data[..], &inner, &data].concat());
    assert!(parallel > 100_000, "the honest part is shared: {parallel}");
    assert!(parallel < 600_000, "after a wrong cut there are no more: {parallel}");
    // And damage behind a false header is found in its place.
    for at in [250_000, 320_000, 400_000, blob.len() - 4] {
        let mut bad = blob.clone();
        bad[at] ^= 0x40;
        assert!(same(&bad).0.result.is_err());
    }
}

#[test]
fn limits_in_the_middle_stop_where_the_serial_decoder_stops() {
    let data = text(100_000);
    let zeros = vec![0; 3_000];
    for pack in [gz as fn(&[u8]) -> Vec<u8>, bgzf, zst] {
        let blob = in_members(&data, 700, pack);
        for max_layer_bytes in (0..100_001).step_by(9_973).chain([99_999, 100_000]) {
            let limits = Limits { max_layer_bytes, ..Limits::default() };
            let (out, _) = same_with(
                &blob,
                usize::MAX,
                &StreamOptions { limits, ..options(Threads::Inline, PARTS, Expected::default()) },
            );
            assert_eq!(out.result.is_ok(), max_layer_bytes >= 100_000);
            assert!(out.bytes.len() as u64 <= max_layer_bytes);
        }
        let blob = [in_members(&data[..30_000], 700, pack), pack(&zeros).repeat(200)].concat();
        for (max_ratio, ratio_floor) in [(2, 0), (4, 40_000), (20, 100_000), (2000, 0)] {
            let limits = Limits { max_ratio, ratio_floor, ..Limits::default() };
            same_with(
                &blob,
                usize::MAX,
                &StreamOptions { limits, ..options(Threads::Inline, PARTS, Expected::default()) },
            );
        }
    }
    // A window that the limit forbids, behind frames that it does not.
    let mut frame = zst_streamed(b"x");
    frame[5] = 12 << 3;
    let blob = [in_members(&data, 700, zst_sized), frame, in_members(&data, 700, zst_sized)].concat();
    let limits = Limits { max_zstd_window_log: 20, ..Limits::default() };
    let (out, parallel) =
        same_with(&blob, usize::MAX, &StreamOptions { limits, ..options(Threads::Inline, PARTS, Expected::default()) });
    out.assert_fails(ErrorKind::Limit, "the limit is 1048576");
    assert!(parallel > 90_000);
}

#[test]
fn sizes_that_are_not_the_promised_ones_are_found_while_looking_ahead() {
    let data = text(60_000);
    for pack in [gz as fn(&[u8]) -> Vec<u8>, bgzf, zst] {
        let blob = in_members(&data, 700, pack);
        for size in [0, 1, 2_000, blob.len() / 2, blob.len() - 1, blob.len() + 1, blob.len() * 2] {
            let expected = Expected { size: Some(size as u64), ..promise(&blob, &data) };
            let (out, _) = same_with(&blob, usize::MAX, &options(Threads::Inline, PARTS, expected));
            out.assert_fails(ErrorKind::Integrity, "descriptor says");
        }
        let wrong = Some(BlobDigest(sha256(b"other")));
        let expected = Expected { digest: wrong, ..promise(&blob, &data) };
        let (out, _) = same_with(&blob, usize::MAX, &options(Threads::Inline, PARTS, expected));
        out.assert_fails(ErrorKind::Integrity, "the blob's digest is");
    }
}

/// Damage that the reader of the bytes finds, at any place, while decoders are ahead of it.
#[test]
fn r29_the_verdict_in_the_middle_is_the_serial_one() {
    let data = text(60_000);
    for pack in [gz as fn(&[u8]) -> Vec<u8>, bgzf, zst] {
        let blob = in_members(&data, 700, pack);
        let mut bad = blob.clone();
        *bad.last_mut().unwrap() ^= 1;
        let other = Some(BlobDigest(sha256(b"other")));
        for (blob, expected) in [
            (&blob, promise(&blob, &data)),
            (&blob, Expected::default()),
            (&blob, Expected { digest: other, ..Expected::default() }),
            (&blob, Expected { size: Some(blob.len() as u64 - 5), ..Expected::default() }),
            (&blob, Expected { size: Some(blob.len() as u64 + 5), ..Expected::default() }),
            (&blob, Expected { diff_id: Some(DiffId(sha256(b"other"))), ..Expected::default() }),
            (&bad, Expected::default()),
        ] {
            for read in (1..60_000).step_by(4_999) {
                let verdict = |threads| {
                    let mut stream = open(blob, 900, options(threads, PARTS, expected.clone())).unwrap();
                    if let Err(err) = stream.read_exact(&mut vec![0; read]) {
                        return (stream.damaged(from_io("read", err)).to_string(), 0);
                    }
                    let progress = stream.progress();
                    let error = stream.damaged(Error::new(ErrorKind::Malformed, "bad tar header").with_offset(512));
                    (format!("{:?} {error}", error.kind()), progress.compressed_bytes())
                };
                assert_eq!(verdict(Threads::Inline), verdict(Threads::Pipelined), "after {read} bytes");
            }
        }
    }
}

/// Calls `at` before each read, which gives a little.
struct Watched<F>(io::Cursor<Vec<u8>>, F, u32, #[allow(dead_code)] Arc<()>);

impl<F: FnMut(u32) -> io::Result<()>> Read for Watched<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.2 += 1;
        (self.1)(self.2)?;
        let n = out.len().min(500);
        self.0.read(&mut out[..n])
    }
}

#[test]
fn a_read_error_while_looking_ahead_comes_in_its_place() {
    let data = text(200_000);
    for pack in [gz as fn(&[u8]) -> Vec<u8>, bgzf, zst] {
        let blob = in_members(&data, 700, pack);
        for fails in (2..blob.len() as u32 / 500).step_by(41) {
            let of = |threads| {
                let at = move |n| match n {
                    n if n >= fails => Err(io::Error::other("the disk is gone")),
                    n if n % 5 == 0 => Err(io::ErrorKind::Interrupted.into()),
                    _ => Ok(()),
                };
                let reader = Watched(io::Cursor::new(blob.clone()), at, 0, Arc::new(()));
                outcome(LayerStream::open(Box::new(reader), options(threads, PARTS, Expected::default())))
            };
            assert!(of(Threads::Inline) == of(Threads::Pipelined), "{fails}");
        }
    }
}

#[test]
fn dropping_stopping_and_cancelling_end_all_threads() {
    let data = text(2_000_000);
    for pack in [gz as fn(&[u8]) -> Vec<u8>, zst] {
        let blob = in_members(&data, 3_000, pack);
        for read in [0, 5_000, 30_000, 500_000, 1_900_000] {
            for way in 0..4 {
                let held = Arc::new(());
                let cancel = CancelToken::new();
                let reader = Watched(io::Cursor::new(blob.clone()), |_| Ok(()), 0, Arc::clone(&held));
                let options =
                    StreamOptions { cancel: cancel.clone(), ..options(Threads::Pipelined, PARTS, Expected::default()) };
                let decoders = options.decoders.clone();
                let mut stream = LayerStream::open(Box::new(reader), options).unwrap();
                stream.read_exact(&mut vec![0; read]).unwrap();
                // Sometimes all of them are full by now.
                if read % 2 == 0 && way > 0 {
                    std::thread::sleep(std::time::Duration::from_millis(3));
                }
                match way {
                    0 => drop(stream),
                    1 => {
                        let err = stream.damaged(Error::new(ErrorKind::Other, "no space"));
                        assert_eq!(err.to_string(), "no space");
                    }
                    2 => {
                        cancel.cancel();
                        let err = from_io("read", io::copy(&mut stream, &mut io::sink()).unwrap_err());
                        assert_eq!(err.kind(), ErrorKind::Cancelled);
                        assert_eq!(stream.finish().unwrap_err().kind(), ErrorKind::Cancelled);
                    }
                    _ => {
                        assert_eq!(stream.finish().unwrap().diff_id, DiffId(sha256(&data)));
                    }
                }
                assert_eq!(Arc::strong_count(&held), 1);
                assert_eq!(decoders.free(), 3, "all were given back");
            }
        }
    }
}

#[test]
fn memory_is_bounded_however_slow_the_consumer() {
    let data = text(3 << 20);
    let blob = in_members(&data, 3_000, gz);
    let mut stream = open(&blob, usize::MAX, options(Threads::Pipelined, PARTS, Expected::default())).unwrap();
    let State::Inline(parts) = &stream.state else { panic!() };
    let pool = Arc::clone(&parts.pool);
    let progress = stream.progress();
    let mut most = 0;
    for n in 0.. {
        if n % 64 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let len = stream.fill_buf().unwrap().len();
        if len == 0 {
            break;
        }
        stream.consume(len);
        most = most.max(pool.made());
    }
    assert!(progress.parallel_bytes() > 2 << 20);
    // Three decoders with 17 each, and the stream's own four.
    assert!(most <= 55, "{most} chunks");
    assert_eq!(stream.finish().unwrap().diff_id, DiffId(sha256(&data)));
}

#[test]
fn the_decoders_of_a_run_are_shared_by_its_streams() {
    let data = text(1_000_000);
    let blob = in_members(&data, 3_000, gz);
    let decoders = Decoders::new(5);
    let open = || {
        let options =
            StreamOptions { decoders: decoders.clone(), ..options(Threads::Pipelined, PARTS, promise(&blob, &data)) };
        open(&blob, usize::MAX, options).unwrap()
    };
    let (mut first, mut second) = (open(), open());
    first.read_exact(&mut [0; 100_000]).unwrap();
    assert_eq!(decoders.free(), 1, "four for one stream");
    second.read_exact(&mut [0; 100_000]).unwrap();
    assert_eq!((decoders.free(), second.progress().parallel_bytes()), (1, 0), "one would be of no use");
    first.finish().unwrap();
    assert_eq!(decoders.free(), 5);
    let progress = second.progress();
    second.finish().unwrap();
    assert!(progress.parallel_bytes() > 0, "it takes what the first one gave back");
    // Where there are few CPUs the serial decoder keeps up.
    for few in 0..3 {
        let decoders = Decoders::new(few);
        let options = StreamOptions { decoders, ..options(Threads::Pipelined, PARTS, promise(&blob, &data)) };
        assert_eq!(run(&blob, usize::MAX, options).2, 0);
    }
}

#[test]
fn without_threads_the_serial_decoder_goes_on() {
    let data = text(200_000);
    let blob = in_members(&data, 900, gz);
    // No thread at all, then only the first.
    for there in [0, 1] {
        let mut stream = open(&blob, usize::MAX, options(Threads::Pipelined, PARTS, promise(&blob, &data))).unwrap();
        let asked = AtomicUsize::new(0);
        let threads = Box::new(move |name: &str| {
            assert_eq!(name, "inflate");
            let builder = pipeline::named(name);
            // No process has a stack that big.
            if asked.fetch_add(1, Ordering::SeqCst) < there { builder } else { builder.stack_size(usize::MAX / 4) }
        });
        stream.parallel.as_mut().unwrap().tools().threads = threads;
        let progress = stream.progress();
        let out = outcome(Ok(stream));
        assert!(out.bytes == data && out.result.is_ok());
        assert_eq!(progress.parallel_bytes() > 0, there > 0);
    }
}

/// A decoder that breaks after some batches.
struct Broken(Box<dyn Decoder>, Arc<AtomicUsize>);

impl Decoder for Broken {
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, DecodeError> {
        self.0.decode(input, output)
    }

    fn end(&self) -> Result<(), DecodeError> {
        self.0.end()
    }

    fn between(&self) -> bool {
        self.0.between()
    }

    fn restart(&mut self) -> Result<(), DecodeError> {
        assert!(self.1.fetch_add(1, Ordering::SeqCst) < 5, "the decoder broke");
        self.0.restart()
    }
}

#[test]
fn a_panic_of_a_decoder_is_an_error_and_not_a_hang() {
    let data = text(200_000);
    let blob = in_members(&data, 900, gz);
    let mut stream = open(&blob, usize::MAX, options(Threads::Pipelined, PARTS, promise(&blob, &data))).unwrap();
    let batches = Arc::<AtomicUsize>::default();
    stream.parallel.as_mut().unwrap().tools().make = Arc::new(move || {
        let decoder = decode::beside(Codec::Gzip, 20)?;
        Ok(Box::new(Broken(decoder, Arc::clone(&batches))))
    });
    let out = outcome(Ok(stream));
    out.assert_fails(ErrorKind::Other, "the decoder broke");
    assert!(data.starts_with(&out.bytes) && out.bytes.len() < data.len());
}

#[test]
fn decoders_are_in_the_trace() {
    let data = text(2_000_000);
    let blob = in_members(&data, 3_000, gz);
    let trace = Trace::begin();
    let mut options = options(Threads::Pipelined, PARTS, Expected::default());
    options.trace = trace.layer(0);
    let (out, _, parallel) = run(&blob, usize::MAX, options);
    assert!(out.result.is_ok() && parallel > 1_000_000);
    let spans = trace.spans();
    assert!(spans.iter().filter(|span| span.stage == Stage::Inflate).count() >= 2, "{spans:?}");
}
