//! Compression (section Z): one tar in blobs of every shape.

use super::{Archive, Means, a, file, file_a, header};
use crate::image::{Compression, LayerSpec};
use crate::tar::{gzip, layer, zstd};
use Compression::{Gzip, None as Plain, Zstd};

/// A layer of this tar whose blob is these bytes, under the media type of `promised`.
fn blob(
    name: &'static str,
    rules: &'static [&'static str],
    promised: Compression,
    tar: &[u8],
    bytes: impl Into<Vec<u8>>,
) -> Archive {
    let layer = LayerSpec::new(tar).compression(promised).blob(bytes);
    Archive { name, rules, layer, means: Means::Entries(file_a()), warns: &[] }
}

fn refused(archive: Archive, code: u8) -> Archive {
    Archive { means: Means::Refused(code), ..archive }
}

/// A gzip member with these header flags and optional fields.
fn member(flags: u8, fields: &[u8], data: &[u8]) -> Vec<u8> {
    let plain = gzip(data);
    // The ten fixed bytes, with other flags; then the fields, then data and trailer as they were.
    [&plain[..3], &[flags], &plain[4..10], fields, &plain[10..]].concat()
}

/// A zstd frame that decoders skip.
fn skippable(content: &[u8]) -> Vec<u8> {
    [&[0x5a, 0x2a, 0x4d, 0x18][..], &(content.len() as u32).to_le_bytes(), content].concat()
}

fn flipped(mut bytes: Vec<u8>, from_the_end: usize) -> Vec<u8> {
    let at = bytes.len() - from_the_end;
    bytes[at] ^= 1;
    bytes
}

pub(super) fn archives() -> Vec<Archive> {
    let tar = a().finish();
    let (gz, zst) = (gzip(&tar), zstd(&tar));
    let (one, two) = tar.split_at(700);
    let with_tail = a().zeros(10240).raw("behind").unfinished();
    let cut = |bytes: &[u8]| bytes[..bytes.len() - 1].to_vec();
    let extra = [&[4, 0][..], b"BC\x01\x02"].concat();
    let all_fields = {
        let fields = [&extra[..], b"name\0comment\0"].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&[&gz[..3], &[0x1e], &gz[4..10], &fields].concat());
        [&fields[..], &(crc.sum() as u16).to_le_bytes()].concat()
    };
    let again = gzip(b"more");
    let mut stargz = a()
        .member(header(b'0', ".prefetch.landmark"), [0x0f])
        .member(header(b'0', "stargz.index.json"), "{\"version\":1,\"entries\":[]}");
    let stargz_entries = [
        file_a(),
        vec![file(".prefetch.landmark", [0x0f]), file("stargz.index.json", "{\"version\":1,\"entries\":[]}")],
    ]
    .concat();
    let at = stargz.offset() as usize;
    stargz = stargz.zeros(1024);
    let stargz = stargz.unfinished();
    // A member an entry, and at last an empty one whose extra field says where the index is.
    let footer = member(0x04, &[&[26, 0][..], b"SG\x16\x00", b"0000000000000400STARGZ"].concat(), b"");
    let parts = [&stargz[..1024], &stargz[1024..2048], &stargz[2048..at], &stargz[at..]];
    let estargz = parts.iter().flat_map(|part| gzip(part)).chain(footer).collect::<Vec<u8>>();
    let chunked = [zstd(one), zstd(two), skippable(b"{\"version\":1}"), skippable(&[7; 40])].concat();

    vec![
        blob("z01_members_and_an_empty_one_between", &["Z1"], Gzip, &tar, [gzip(one), gzip(b""), gzip(two)].concat()),
        blob("z01_an_empty_member_first_and_last", &["Z1"], Gzip, &tar, [gzip(b""), gz.clone(), gzip(b"")].concat()),
        blob("z02_zero_bytes_behind_gzip", &["Z2", "R-20"], Gzip, &tar, [&gz[..], &[0; 700]].concat()),
        blob("z02_zero_bytes_behind_zstd", &["Z2", "R-30"], Zstd, &tar, [&zst[..], &[0; 700]].concat()),
        refused(blob("z03_garbage_behind_gzip", &["Z3", "R-20"], Gzip, &tar, [&gz[..], b"garbage"].concat()), 5),
        refused(blob("z03_garbage_behind_zstd", &["Z3", "R-30"], Zstd, &tar, [&zst[..], b"garbage"].concat()), 5),
        refused(blob("z03_a_member_behind_zero_bytes", &["Z3"], Gzip, &tar, [&gz[..], &[0; 9], &again].concat()), 5),
        refused(blob("z04_wrong_crc", &["Z4", "R-29"], Gzip, &tar, flipped(gz.clone(), 5)), 5),
        refused(blob("z04_wrong_length", &["Z4", "R-29"], Gzip, &tar, flipped(gz.clone(), 1)), 5),
        refused(blob("z04_trailer_cut_off", &["Z4", "R-29"], Gzip, &tar, cut(&gz)), 5),
        refused(
            blob("z05_a_corrupt_member_behind_the_end_of_the_archive", &["Z5"], Gzip, &tar, {
                [gz.clone(), flipped(again.clone(), 5)].concat()
            }),
            5,
        ),
        blob("z06_every_byte_behind_the_archive_counts", &["Z6", "T4"], Gzip, &with_tail, gzip(&with_tail))
            .warns(&["data-after-end"]),
        blob("z07_a_blob_of_no_bytes", &["Z7"], Gzip, b"", b"").empty(),
        blob("z07_a_plain_blob_of_no_bytes", &["Z7"], Plain, b"", b"").empty(),
        blob("z07_an_empty_gzip_member", &["Z7"], Gzip, b"", gzip(b"")).empty(),
        blob("z07_an_empty_zstd_frame", &["Z7"], Zstd, b"", zstd(b"")).empty(),
        blob("z07_zeros_in_gzip", &["Z7"], Gzip, &[0; 1024], gzip(&[0; 1024])).empty(),
        blob("z08_gzip_promised_and_plain_there", &["Z8"], Gzip, &tar, &tar[..]).warns(&["media-type-mismatch"]),
        blob("z08_gzip_promised_and_zstd_there", &["Z8"], Gzip, &tar, &zst[..]).warns(&["media-type-mismatch"]),
        blob("z08_zstd_promised_and_gzip_there", &["Z8"], Zstd, &tar, &gz[..]).warns(&["media-type-mismatch"]),
        blob("z09_plain_promised_and_gzip_there", &["Z9"], Plain, &tar, &gz[..]).warns(&["media-type-mismatch"]),
        blob("z09_plain_promised_and_zstd_there", &["Z9"], Plain, &tar, &zst[..]).warns(&["media-type-mismatch"]),
        refused(blob("z09_xz", &["Z9"], Plain, &tar, b"\xfd7zXZ\0\0\x04rest"), 6),
        refused(blob("z09_bzip2", &["Z9"], Gzip, &tar, b"BZh91AY&SYrest"), 6),
        blob("z10_a_skippable_frame_first", &["Z10"], Zstd, &tar, [skippable(b"first"), zst.clone()].concat()),
        blob("z10_a_skippable_frame_last", &["Z10"], Zstd, &tar, [zst.clone(), skippable(b"")].concat()),
        blob("z10_frames_and_skippable_ones_between", &["Z10"], Zstd, &tar, {
            [zstd(one), skippable(&[9; 3000]), zstd(b""), zstd(two)].concat()
        }),
        refused(blob("z11_zstd_cut_off", &["Z11"], Zstd, &tar, cut(&zst)), 5),
        refused(blob("z11_wrong_checksum_of_a_frame", &["Z11"], Zstd, &tar, flipped(zst, 1)), 5),
        Archive {
            means: Means::Entries(stargz_entries),
            ..blob("z15_estargz_index_and_landmark_are_files", &["Z15"], Gzip, &stargz, estargz)
        },
        blob("z15_zstd_chunked", &["Z15"], Zstd, &tar, chunked),
        blob("z16_every_header_field", &["Z16"], Gzip, &tar, member(0x1e, &all_fields, &tar)),
        refused(
            blob("z16_wrong_header_checksum", &["Z16"], Gzip, &tar, {
                member(0x1e, &flipped(all_fields.clone(), 1), &tar)
            }),
            5,
        ),
        // Two equal layers would be one: this one is like no other, and larger than every buffer.
        Archive {
            means: Means::Entries(vec![file("big", vec![3; 3 << 20])]),
            ..blob("z17_a_layer_of_many_chunks", &["Z17"], Gzip, &many(), gzip(&many()))
        },
    ]
}

fn many() -> Vec<u8> {
    layer(&[file("big", vec![3; 3 << 20])])
}

impl Archive {
    /// It means nothing at all.
    fn empty(self) -> Archive {
        Archive { means: Means::Entries(Vec::new()), ..self }
    }
}
