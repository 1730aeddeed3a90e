//! What damage means, and that no flipped bit passes.

use super::*;

fn malformed() -> Error {
    Error::new(ErrorKind::Malformed, "bad tar header").with_entry(b"etc/passwd").with_offset(512)
}

/// Reads a little, then reports damage; returns the verdict and how much of the blob was read for it.
fn verdict(blob: &[u8], expected: Expected, threads: Threads, error: Error) -> (Error, u64) {
    let options = StreamOptions { expected, threads, buffers: TINY, ..StreamOptions::default() };
    let mut stream = open(blob, 64, options).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    let progress = stream.progress();
    let error = stream.damaged(error);
    (error, progress.compressed_bytes())
}

#[track_caller]
fn assert_verdict(blob: &[u8], expected: &Expected, kind: ErrorKind, text: &str) {
    for threads in [Threads::Inline, Threads::Pipelined] {
        let (err, read) = verdict(blob, expected.clone(), threads, malformed());
        assert!(err.kind() == kind && err.to_string().contains(text), "{threads:?} {err}");
        assert!(err.to_string().contains("bad tar header"), "{err}");
        assert!(err.to_string().contains("entry \"etc/passwd\" at offset 512: bad tar header"), "{err}");
        // A blob that is wrong as a whole is not wrong at a place.
        assert_eq!(err.offset().is_some(), kind == ErrorKind::Malformed, "{err}");
        assert_eq!(read, blob.len() as u64, "all of the blob decides");
    }
}

#[test]
fn r29_damage_in_the_promised_blob_is_malformed_in_another_one_integrity() {
    let data = text(5000);
    // A first frame alone: zstd reads a whole block ahead of what it gives.
    for blob in [data.clone(), gz(&data), [zst(&data[..100]), zst(&data[100..])].concat()] {
        let good = promise(&blob, &data);
        assert_verdict(&blob, &good, ErrorKind::Malformed, "bad tar header");
        let digest = Some(BlobDigest(sha256(b"other")));
        assert_verdict(&blob, &Expected { digest, ..good.clone() }, ErrorKind::Integrity, "the blob's digest is");
        let size = Some(blob.len() as u64 + 1);
        assert_verdict(&blob, &Expected { size, ..good.clone() }, ErrorKind::Integrity, "descriptor says");
        // One byte more than stated is read, no more.
        let size = Some(blob.len() as u64 - 1);
        assert_verdict(&blob, &Expected { size, ..good.clone() }, ErrorKind::Integrity, "longer than");
    }
}

#[test]
fn r29_without_a_digest_diff_id_and_trailer_are_the_witnesses() {
    let data = text(5000);
    for blob in [data.clone(), gz(&data), zst(&data)] {
        assert_verdict(&blob, &Expected::default(), ErrorKind::Malformed, "bad tar header");
        let diff_id = Some(DiffId(sha256(&data)));
        assert_verdict(&blob, &Expected { diff_id, ..Expected::default() }, ErrorKind::Malformed, "bad tar header");
        let diff_id = Some(DiffId(sha256(b"other")));
        assert_verdict(&blob, &Expected { diff_id, ..Expected::default() }, ErrorKind::Integrity, "diff_id");
    }
    for mut blob in [gz(&data), zst(&data)] {
        let good = blob.clone();
        *blob.last_mut().unwrap() ^= 1;
        assert_verdict(&blob, &Expected::default(), ErrorKind::Integrity, "no valid trailer");
        blob.truncate(good.len() - 3);
        assert_verdict(&blob, &Expected::default(), ErrorKind::Integrity, "no valid trailer");
        let garbage = [&good[..], b"garbage"].concat();
        assert_verdict(&garbage, &Expected::default(), ErrorKind::Malformed, "bad tar header");
    }
}

#[test]
fn r29_other_errors_return_unchanged_and_at_once() {
    let data = text(50_000);
    let blob = gz(&data);
    let wrong = Expected { digest: Some(BlobDigest(sha256(b"other"))), ..Expected::default() };
    for kind in [ErrorKind::Limit, ErrorKind::Cancelled, ErrorKind::NoSpace, ErrorKind::Other, ErrorKind::NotPermitted]
    {
        for threads in [Threads::Inline, Threads::Pipelined] {
            let (err, read) = verdict(&blob, wrong.clone(), threads, Error::new(kind, "as it is"));
            assert_eq!((err.kind(), err.to_string().as_str()), (kind, "as it is"));
            assert!(read < blob.len() as u64 / 2, "{read}");
        }
    }
}

#[test]
fn r29_an_unreadable_rest_is_reported_with_the_damage() {
    struct Broken(u32);
    impl Read for Broken {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 > 3 {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            out.fill(b'a');
            Ok(out.len())
        }
    }
    for expected in [Expected::default(), Expected { digest: Some(BlobDigest(sha256(b"x"))), ..Expected::default() }] {
        for threads in [Threads::Inline, Threads::Pipelined] {
            let options = StreamOptions { expected: expected.clone(), threads, buffers: TINY, ..Default::default() };
            let mut stream = LayerStream::open(Box::new(Broken(0)), options).unwrap();
            stream.read_exact(&mut [0; 20]).unwrap();
            let err = stream.damaged(malformed());
            assert_eq!(err.kind(), ErrorKind::Other);
            assert!(err.to_string().contains("read the blob") && err.to_string().contains("bad tar header"), "{err}");
        }
    }
}

/// Every single bit: the promised digest always finds it, and without one either the stream refuses it, or
/// it changed nothing but the header's remarks.
#[test]
fn every_flipped_bit_gives_one_verdict_inline_and_pipelined() {
    let data = text(60);
    let (a, b) = data.split_at(25);
    let named = |data: &[u8]| {
        let builder = flate2::GzBuilder::new().filename("n").extra(*b"xyz");
        let mut encoder = builder.write(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    for blob in [[named(a), gz(b), vec![0; 3]].concat(), [zst(a), zst(b), vec![0; 3]].concat()] {
        assert_decodes(&blob, &data, if blob[0] == 0x1f { Codec::Gzip } else { Codec::Zstd });
        for bit in 0..blob.len() * 8 {
            let mut bad = blob.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let bare = tiny(&bad, Expected::default());
            match &bare.result {
                Ok(report) if report.codec == Codec::Plain => assert!(bit < 32, "{bit}"),
                Ok(_) => assert!(bare.bytes == data, "bit {bit} changes the data"),
                Err((ErrorKind::Integrity | ErrorKind::Malformed | ErrorKind::Limit, _)) => {}
                Err(other) => panic!("bit {bit}: {other:?}"),
            }
            let promised = tiny(&bad, promise(&blob, &data));
            assert!(matches!(promised.kind(), ErrorKind::Integrity | ErrorKind::Limit), "bit {bit}: {promised:?}");
        }
    }
}

#[test]
fn an_error_that_was_read_comes_again_from_finish() {
    let data = text(3000);
    let mut blob = gz(&data);
    let n = blob.len();
    blob[n - 1] ^= 1;
    for threads in [Threads::Inline, Threads::Pipelined] {
        for (expected, kind) in [
            (Expected::default(), ErrorKind::Integrity),
            (promise(&blob, &data), ErrorKind::Malformed),
            (promise(&gz(&data), &data), ErrorKind::Integrity),
        ] {
            let options = StreamOptions { expected, threads, buffers: TINY, ..StreamOptions::default() };
            let mut stream = open(&blob, 100, options).unwrap();
            let first = io::copy(&mut stream, &mut io::sink()).unwrap_err().to_string();
            let again = stream.fill_buf().unwrap_err().to_string();
            assert_eq!(first, again);
            let err = stream.finish().unwrap_err();
            assert_eq!(err.kind(), kind);
            assert!(err.to_string().contains("length of the data"), "{err}");
        }
    }
}
