//! gzip, zstd and plain framing (rules Z1–Z11, Z15, Z16), limits (B1, B7).

use super::*;
use crate::policy::Limits;

/// Deflates without any framing.
fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn crc(data: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    crc.sum()
}

/// A gzip member whose header has `flags` and the bytes of the optional fields.
fn member(flags: u8, fields: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255];
    out.extend_from_slice(fields);
    out.extend(deflate(data));
    out.extend(crc(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

fn skippable(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x5a, 0x2a, 0x4d, 0x18];
    out.extend((content.len() as u32).to_le_bytes());
    out.extend_from_slice(content);
    out
}

#[test]
fn z07_empty_blobs_are_empty_layers() {
    assert_decodes(b"", b"", Codec::Plain);
    assert_decodes(&gz(b""), b"", Codec::Gzip);
    assert_decodes(&zst(b""), b"", Codec::Zstd);
    assert_decodes(&[0; 1024], &[0; 1024], Codec::Plain);
}

#[test]
fn z09_plain_bytes_pass_through_and_short_heads_are_plain() {
    let data = text(300_000);
    assert_decodes(&data, &data, Codec::Plain);
    for head in [&[0x1f][..], &[0x28, 0xb5, 0x2f], b"BZh9", b"BZhang/file", b"\xfd7zX"] {
        assert_decodes(head, head, Codec::Plain);
    }
}

#[test]
fn z09_xz_and_bzip2_are_named_and_refused() {
    let bzip2 = both(b"BZh91AY&SY....");
    bzip2.assert_fails(ErrorKind::Unsupported, "bzip2");
    both(b"\xfd7zXZ\0\0\x04").assert_fails(ErrorKind::Unsupported, "xz; recompress it with gzip or zstd");
    both(b"BZh9\x17rE8P\x90\0\0\0\0").assert_fails(ErrorKind::Unsupported, "bzip2");
}

#[test]
fn z01_members_follow_each_other_and_may_be_empty() {
    let data = text(40_000);
    let (a, b) = data.split_at(12_345);
    let mut blob = gz(b"");
    for part in [a, b"", b"", b] {
        blob.extend(gz(part));
    }
    blob.extend(gz(b""));
    assert_decodes(&blob, &data, Codec::Gzip);
}

#[test]
fn z01_ten_thousand_empty_members_give_nothing() {
    let blob = gz(b"").repeat(10_000);
    let out = outcome(open(&blob, 4096, StreamOptions::default()));
    assert_eq!(out.result.unwrap().uncompressed_bytes, 0);
}

#[test]
fn z01_chunks_that_end_with_a_member_are_no_special_case() {
    for len in [7, 14, 128 << 10, 256 << 10] {
        let data = text(len);
        assert_decodes(&gz(&data), &data, Codec::Gzip);
        assert_decodes(&gz(&data).repeat(2), &data.repeat(2), Codec::Gzip);
        assert_decodes(&zst(&data).repeat(2), &data.repeat(2), Codec::Zstd);
    }
}

#[test]
fn z16_every_optional_header_field_is_read() {
    let data = text(1000);
    let extra = [&[4, 0][..], b"BC\x01\x02"].concat();
    assert_decodes(&member(0x01, b"", &data), &data, Codec::Gzip); // FTEXT
    assert_decodes(&member(0x04, &extra, &data), &data, Codec::Gzip);
    assert_decodes(&member(0x04, &[0, 0], &data), &data, Codec::Gzip);
    assert_decodes(&member(0x08, b"layer.tar\0", &data), &data, Codec::Gzip);
    assert_decodes(&member(0x08, b"\0", &data), &data, Codec::Gzip);
    assert_decodes(&member(0x10, b"made by hand\0", &data), &data, Codec::Gzip);
    let all = [&extra[..], b"name\0comment\0"].concat();
    assert_decodes(&member(0x1c, &all, &data), &data, Codec::Gzip);
    let long = [vec![b'n'; 70_000], vec![0]].concat();
    assert_decodes(&member(0x08, &long, &data), &data, Codec::Gzip);
    let extra = [vec![0xff, 0xff], vec![1; 0xffff]].concat();
    assert_decodes(&member(0x04, &extra, &data), &data, Codec::Gzip);
}

#[test]
fn z16_the_header_checksum_is_verified() {
    let data = text(100);
    let fields = b"\x02\0ab\
                   name\0comment\0";
    let header = [&[0x1f, 0x8b, 8, 0x1e, 1, 2, 3, 4, 0, 255][..], fields].concat();
    let sum = (crc(&header) as u16).to_le_bytes();
    let good = member(0x1e, &[&fields[..], &sum].concat(), &data);
    assert_decodes(&good, &data, Codec::Gzip);
    // Also in a second member, where the sum starts anew.
    assert_decodes(&good.repeat(2), &data.repeat(2), Codec::Gzip);
    for i in [4, 8, 10, 13, 20, header.len()] {
        let mut bad = good.clone();
        bad[i] ^= 1;
        let bad = both(&bad);
        assert!(bad.result.is_err() && bad.bytes.is_empty(), "{i}");
    }
    let mut bad = good;
    bad[header.len()] ^= 1;
    both(&bad).assert_fails(ErrorKind::Malformed, "crc16 of the gzip header");
}

#[test]
fn z16_reserved_flags_and_other_methods_are_refused() {
    both(&member(0x20, b"", b"x")).assert_fails(ErrorKind::Malformed, "reserved flags");
    let mut blob = member(0, b"", b"x");
    blob[2] = 7;
    both(&blob).assert_fails(ErrorKind::Malformed, "compression method 7");
}

#[test]
fn z02_zero_padding_is_accepted_and_part_of_the_digest() {
    let data = text(5000);
    for padding in [1, 7, 512, 300_000] {
        for blob in [gz(&data), zst(&data), gz(b"").repeat(3), zst(b"")] {
            let data = if blob.len() < 100 { &b""[..] } else { &data };
            let codec = if blob[0] == 0x1f { Codec::Gzip } else { Codec::Zstd };
            assert_decodes(&[blob, vec![0; padding]].concat(), data, codec);
        }
    }
}

#[test]
fn z03_other_bytes_after_the_last_member_or_frame_are_refused() {
    let data = text(500);
    for blob in [gz(&data), zst(&data)] {
        let tails: [&[u8]; 8] = [
            b"x",
            b"\x1f",
            b"\x1fx",
            b"\0x",
            b"\0\0\0\0\0\0x",
            b"\x28",
            b"\x28\xb5\x2f\xfe....",
            b"\0\0\x28\xb5\x2f\xfd",
        ];
        for tail in tails {
            let out = both(&[&blob[..], tail].concat());
            out.assert_fails(ErrorKind::Malformed, "zero padding");
            assert_eq!(out.bytes.len() / 500, 1, "the data before comes first");
        }
        // Another member or frame after padding is no padding.
        let again = [&blob[..], &[0; 512], &blob].concat();
        both(&again).assert_fails(ErrorKind::Malformed, "zero padding");
    }
}

#[test]
fn z04_the_trailer_is_checked() {
    let data = text(3000);
    let good = gz(&data);
    let n = good.len();
    for (i, what) in [(n - 8, "crc32"), (n - 5, "crc32"), (n - 4, "length"), (n - 1, "length")] {
        let mut bad = good.clone();
        bad[i] ^= 0x10;
        let out = both(&bad);
        // nobody promised a digest, so the trailer is the witness.
        out.assert_fails(ErrorKind::Integrity, what);
        // Promised like this, the blob is simply malformed.
        both_promised(&bad, promise(&bad, &data)).assert_fails(ErrorKind::Malformed, what);
        both_promised(&bad, promise(&good, &data)).assert_fails(ErrorKind::Integrity, "digest");
    }
    let mut bad = zst(&data);
    *bad.last_mut().unwrap() ^= 1;
    both(&bad).assert_fails(ErrorKind::Integrity, "checksum");
    both_promised(&bad, promise(&bad, &data)).assert_fails(ErrorKind::Malformed, "checksum");
}

/// The tar inside may be complete long before: only the last byte of the blob ends the stream.
#[test]
fn z04_z11_every_truncation_is_an_error() {
    let data = text(600);
    let (a, b) = data.split_at(200);
    for blob in [
        member(0x1c, b"\x02\0ABname\0comment\0", &data),
        [gz(a), gz(b)].concat(),
        zst(&data),
        [skippable(b"first"), zst(a), skippable(b"between"), zst(b), skippable(b"last")].concat(),
    ] {
        let ends: Vec<usize> =
            (0..=blob.len()).filter(|&n| tiny(&blob[..n], Expected::default()).result.is_ok()).collect();
        for &n in &ends {
            // Short enough to have no magic, or a whole number of members and frames.
            let whole = outcome(open(&blob[..n], 9, StreamOptions::default()));
            assert!(whole.bytes.len() < 4 || data.starts_with(&whole.bytes), "{n}");
            assert!(n < 4 || whole.result.unwrap().codec != Codec::Plain);
        }
        assert!(ends.len() <= 9, "{ends:?}");
        for n in (0..blob.len()).filter(|n| !ends.contains(n)) {
            let kind = tiny(&blob[..n], Expected::default()).kind();
            assert!(matches!(kind, ErrorKind::Integrity | ErrorKind::Malformed));
        }
        for n in 0..blob.len() {
            let out = tiny(&blob[..n], promise(&blob, &data));
            out.assert_fails(
                ErrorKind::Integrity,
                &format!("the blob has {n} bytes, its descriptor says {}", blob.len()),
            );
        }
    }
}

#[test]
fn z05_a_corrupt_second_member_is_found_by_finish() {
    let tar_like = text(2000);
    let mut blob = [gz(&tar_like), gz(&text(500))].concat();
    let n = blob.len();
    blob[n - 6] ^= 1;
    for threads in [Threads::Inline, Threads::Pipelined] {
        let options = StreamOptions { threads, buffers: TINY, ..StreamOptions::default() };
        let mut stream = open(&blob, 64, options).unwrap();
        let mut seen = vec![0; tar_like.len()];
        stream.read_exact(&mut seen).unwrap();
        assert_eq!(seen, tar_like);
        assert_eq!(stream.finish().unwrap_err().kind(), ErrorKind::Integrity);
    }
}

#[test]
fn z10_frames_and_skippable_frames_stand_in_any_order() {
    let data = text(30_000);
    let (a, b) = data.split_at(1234);
    let mut long_skip = skippable(&[7; 100_000]);
    for blob in [
        [skippable(b"toc"), zst(&data)].concat(),
        [zst(&data), skippable(b"footer")].concat(),
        [skippable(b""), zst(a), skippable(b"x"), skippable(b""), zst(b""), zst(b), skippable(b"y")].concat(),
        [zst(a), long_skip.clone(), zst(b), vec![0; 100]].concat(),
    ] {
        assert_decodes(&blob, &data, Codec::Zstd);
    }
    assert_decodes(&skippable(b"nothing else"), b"", Codec::Zstd);
    for magic in 0x50..=0x5f {
        long_skip[0] = magic;
        assert_decodes(&[&long_skip[..], &zst(a)].concat(), a, Codec::Zstd);
    }
    // A skippable frame that claims 4 GiB costs neither memory nor time.
    let huge = [&[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff][..], &[0; 1000]].concat();
    both(&huge).assert_fails(ErrorKind::Integrity, "skippable");
}

/// A frame of one raw block `x`, with a window descriptor.
fn windowed(descriptor: u8) -> Vec<u8> {
    vec![0x28, 0xb5, 0x2f, 0xfd, 0, descriptor, 9, 0, 0, b'x']
}

#[test]
fn b07_windows_over_the_limit_are_refused_before_memory_is_taken() {
    // Exponents from 2^10; mantissa in eighths.
    assert_decodes(&windowed(17 << 3), b"x", Codec::Zstd); // 2^27, as by --long=27
    for (descriptor, needed) in [(17 << 3 | 1, 150_994_944u64), (21 << 3, 1 << 31), (31 << 3 | 7, 4_123_168_604_160)] {
        let out = both(&windowed(descriptor));
        out.assert_fails(ErrorKind::Limit, &format!("window: {needed}, the limit is 134217728"));
        out.assert_fails(ErrorKind::Limit, "--max-zstd-window");
    }
    // A single segment is its own window.
    let single = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &(1u64 << 40).to_le_bytes(), &[9, 0, 0, b'x']].concat();
    both(&single).assert_fails(ErrorKind::Limit, "window: 1099511627776,");
    // The limit is a choice, in both directions.
    let limits = |log| StreamOptions {
        limits: Limits { max_zstd_window_log: log, ..Limits::default() },
        ..StreamOptions::default()
    };
    both_with(&windowed(10 << 3), &limits(19)).assert_fails(ErrorKind::Limit, "the limit is 524288");
    assert!(both_with(&windowed(9 << 3), &limits(19)).result.is_ok());
    assert!(outcome(open(&windowed(18 << 3), 9, limits(28))).result.is_ok());
}

#[test]
fn z10_frames_with_a_dictionary_are_refused() {
    let blob = [0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x00, 0x2a, 9, 0, 0, b'x'];
    both(&blob).assert_fails(ErrorKind::Malformed, "dictionary 42");
}

#[test]
fn z13_size_is_checked_and_one_byte_more_is_read_at_most() {
    for (blob, data) in [(gz(b"data"), &b"data"[..]), (b"plain".to_vec(), b"plain")] {
        let mut expected = promise(&blob, data);
        expected.size = Some(blob.len() as u64 - 1);
        both_promised(&blob, expected.clone()).assert_fails(ErrorKind::Integrity, "longer than");
        expected.size = Some(blob.len() as u64 + 1);
        both_promised(&blob, expected.clone()).assert_fails(ErrorKind::Integrity, "its descriptor says");
        expected.size = Some(u64::MAX);
        both_promised(&blob, expected).assert_fails(ErrorKind::Integrity, "its descriptor says");
    }
    let expected = Expected { size: Some(1000), ..Expected::default() };
    let options = StreamOptions { expected, threads: Threads::Inline, buffers: TINY, ..StreamOptions::default() };
    let mut endless = LayerStream::open(Box::new(io::repeat(b'a')), options).unwrap();
    let err = io::copy(&mut endless, &mut io::sink()).unwrap_err();
    assert_eq!(crate::error::from_io("", err).kind(), ErrorKind::Integrity);
    assert_eq!(endless.progress().compressed_bytes(), 1001);
}

#[test]
fn z12_z14_digests_of_both_algorithms_are_compared() {
    let data = text(100_000);
    for blob in [data.clone(), gz(&data), zst(&data)] {
        let good = promise(&blob, &data);
        let wrong = sha256(b"something else");
        let bad = Expected { digest: Some(BlobDigest(wrong)), ..good.clone() };
        both_promised(&blob, bad).assert_fails(ErrorKind::Integrity, &format!("expected {wrong}"));
        let bad = Expected { diff_id: Some(DiffId(wrong)), ..good.clone() };
        both_promised(&blob, bad).assert_fails(ErrorKind::Integrity, &format!("expected {wrong}"));
        // The algorithms of the two digests are independent of each other.
        let (blob512, diff512) = (Digest::of(Algorithm::Sha512, &blob), Digest::of(Algorithm::Sha512, &data));
        for (digest, diff_id) in [(blob512, sha256(&data)), (sha256(&blob), diff512), (blob512, diff512)] {
            let expected =
                Expected { digest: Some(BlobDigest(digest)), diff_id: Some(DiffId(diff_id)), ..good.clone() };
            let report = both_promised(&blob, expected).result.unwrap();
            assert_eq!((report.digest.0, report.diff_id.0), (digest, diff_id));
        }
    }
}

#[test]
fn b01_layers_over_the_byte_limit_stop_there() {
    let data = text(1000);
    let limit = |max_layer_bytes| StreamOptions {
        limits: Limits { max_layer_bytes, ..Limits::default() },
        ..StreamOptions::default()
    };
    for blob in [data.clone(), gz(&data), zst(&data)] {
        assert!(both_with(&blob, &limit(1000)).result.is_ok());
        for max in [0, 1, 999] {
            let out = both_with(&blob, &limit(max));
            out.assert_fails(
                ErrorKind::Limit,
                &format!("{} or more, the limit is {max}; raise --max-layer-bytes", max + 1),
            );
            assert!(out.bytes.len() as u64 <= max);
        }
    }
}

#[test]
fn b01_the_ratio_limit_stops_bombs_but_not_legal_zeros() {
    let zeros = vec![0; 4 << 20];
    let limits = Limits { ratio_floor: 1 << 20, max_ratio: 500, ..Limits::default() };
    let options = StreamOptions { limits: limits.clone(), ..StreamOptions::default() };
    for blob in [gz(&zeros), zst(&zeros)] {
        // 1,030 : 1 and more.
        let out = outcome(open(&blob, 4096, options.clone()));
        out.assert_fails(ErrorKind::Limit, "the limit is 500");
        out.assert_fails(ErrorKind::Limit, "--max-ratio");
        assert!(out.bytes.len() <= 2 << 20);
        // A wrong digest does not matter: limits stop at once.
        let expected = Expected { digest: Some(BlobDigest(sha256(b""))), ..Expected::default() };
        let promised = outcome(open(&blob, 4096, StreamOptions { expected, ..options.clone() }));
        assert_eq!(promised.kind(), ErrorKind::Limit);
    }
    let limits = Limits { max_ratio: 2000, ..limits };
    let options = StreamOptions { limits, ..StreamOptions::default() };
    assert!(outcome(open(&gz(&zeros), 4096, options.clone())).result.is_ok());
    assert!(outcome(open(&zeros, 4096, options)).result.is_ok());
}
