//! Sparse files (T25, T26, B6): four spellings of one file, and maps that do not add up.

use super::{Archive, bad, file, gnu, header, new, same};
use crate::tar::{BLOCK, Header, TarBuilder, field};

/// 20 bytes of which two regions hold data: 4 bytes at 2, 3 bytes at 10.
const EXPANDED: &[u8] = b"\0\0abcd\0\0\0\0efg\0\0\0\0\0\0\0";
const STORED: &[u8] = b"abcdefg";

/// An old GNU header of a file of `size` bytes with these regions.
fn old(size: u64, regions: &[(u64, u64)]) -> Header {
    let mut out = gnu(header(b'S', "f")).octal((483, 12), size);
    for (i, (offset, length)) in regions.iter().enumerate() {
        out = out.octal((386 + 24 * i, 12), *offset).octal((398 + 24 * i, 12), *length);
    }
    out
}

/// A format 0.1 file whose map is this text.
fn mapped(size: &str, map: &str, stored: &[u8]) -> TarBuilder {
    new()
        .pax(&[("GNU.sparse.size", size), ("GNU.sparse.name", "f"), ("GNU.sparse.map", map)])
        .member(header(b'0', "GNUSparseFile.1/f"), stored)
}

/// A format 1.0 file that begins with this map.
fn leading(size: &str, map: &str, stored: &[u8]) -> TarBuilder {
    let mut data = map.as_bytes().to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data.extend_from_slice(stored);
    new()
        .pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "f"),
            ("GNU.sparse.realsize", size),
        ])
        .member(header(b'0', "GNUSparseFile.1/f"), data)
}

pub(super) fn archives() -> Vec<Archive> {
    let expanded = || [file("f", EXPANDED), file("after", "2")];
    let after = |tar: TarBuilder| tar.member(header(b'0', "after"), "2").finish();
    let mut extension = [0; BLOCK];
    extension[..12].copy_from_slice(b"00000000012\0");
    extension[12..24].copy_from_slice(b"00000000003\0");
    let pairs = [
        ("GNU.sparse.size", "20"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "2"),
        ("GNU.sparse.numbytes", "4"),
        ("GNU.sparse.offset", "10"),
        ("GNU.sparse.numbytes", "3"),
    ];
    let mebibyte = || file("f", vec![0; 1 << 20]);
    vec![
        same("t25_old_gnu_sparse_file", &["T25"], after(new().member(old(20, &[(2, 4), (10, 3)]), STORED)), expanded()),
        same(
            "t25_old_gnu_sparse_file_with_an_extension_block",
            &["T25"],
            after(new().header(&old(20, &[(2, 4)]).size(7).raw((482, 1), [1])).raw(extension).data(STORED)),
            expanded(),
        ),
        same("t25_pax_sparse_0_0", &["T25"], after(new().pax(&pairs).member(header(b'0', "f"), STORED)), expanded()),
        same("t25_pax_sparse_0_1", &["T25"], after(mapped("20", "2,4,10,3", STORED)), expanded()),
        same("t25_pax_sparse_1_0", &["T25"], after(leading("20", "2\n2\n4\n10\n3\n", STORED)), expanded()),
        same("t25_a_file_that_is_one_hole", &["T25"], mapped("1048576", "1048576,0", b"").finish(), [mebibyte()]),
        bad("t26_regions_that_overlap", &["T26"], mapped("20", "0,5,4,5", &[1; 10]).finish()),
        bad("t26_regions_in_disorder", &["T26"], mapped("20", "5,5,0,5", &[1; 10]).finish()),
        bad("t26_a_region_beyond_the_end", &["T26"], mapped("20", "18,5", &[1; 5]).finish()),
        bad("t26_regions_that_do_not_add_up", &["T26"], mapped("20", "0,5", &[1; 6]).finish()),
        bad("t26_a_negative_region", &["T26"], mapped("20", "-1,5", &[1; 5]).finish()),
        bad("t26_old_gnu_region_beyond_the_end", &["T26"], new().member(old(4, &[(0, 5)]), "12345").finish()),
        bad("t26_a_map_of_more_regions_than_it_has", &["T26"], leading("20", "3\n2\n4\n10\n3\n", STORED).finish()),
        bad("b06_a_map_of_a_million_regions", &["B6", "T26"], leading("20", "1000000\n", &[0; 1024]).finish()),
        bad(
            "t30_a_sparse_map_on_a_directory",
            &["T30"],
            new().pax(&[("GNU.sparse.size", "0"), ("GNU.sparse.map", "0,0")]).header(&header(b'5', "d/")).finish(),
        ),
        bad(
            "t27_a_negative_real_size",
            &["T27", "T26"],
            new().header(&gnu(header(b'S', "f")).base256((483, 12), -1).raw(field::SIZE, "0")).finish(),
        ),
    ]
}
