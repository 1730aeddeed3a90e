//! Sections T, Z and M as bytes: one layer whose archive or compression is odd, and the plain entries that it stands for.
//!
//! Owns: which odd bytes mean what. Refuses to know: how a reader finds out.

mod codecs;
mod sparse;

use crate::entry::{DEFAULT_MTIME, EntrySpec, dir, file, hardlink, symlink};
use crate::image::{Compression, LayerSpec};
use crate::tar::{BLOCK, Header, MAGIC_GNU, MAGIC_V7, TarBuilder, field, pax_records};

/// A layer as its exact bytes.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Rule, then what happens, such as `t06_a_zero_block_then_an_entry`.
    pub name: &'static str,
    /// Rules of the rule book that it guards.
    pub rules: &'static [&'static str],
    /// The layer; the image that holds it promises the right digests.
    pub layer: LayerSpec,
    /// What it stands for.
    pub means: Means,
    /// The kinds of warnings that reading it gives, each at least once, and no other kind.
    pub warns: &'static [&'static str],
}

/// What an archive stands for.
#[derive(Debug, Clone)]
pub enum Means {
    /// The same as these entries.
    Entries(Vec<EntrySpec>),
    /// The image is refused with this exit code.
    Refused(u8),
}

impl Archive {
    fn warns(mut self, kinds: &'static [&'static str]) -> Archive {
        self.warns = kinds;
        self
    }
}

/// Returns every archive, in the order of the rule book's sections.
pub fn archives() -> Vec<Archive> {
    [framing(), types(), names(), pax(), numbers(), metadata(), sparse::archives(), codecs::archives()].concat()
}

/// An archive that means these entries.
fn same(
    name: &'static str,
    rules: &'static [&'static str],
    tar: impl Into<Vec<u8>>,
    entries: impl Into<Vec<EntrySpec>>,
) -> Archive {
    let layer = LayerSpec::new(tar).compression(Compression::Gzip);
    Archive { name, rules, layer, means: Means::Entries(entries.into()), warns: &[] }
}

/// An archive that is malformed: exit 5.
fn bad(name: &'static str, rules: &'static [&'static str], tar: impl Into<Vec<u8>>) -> Archive {
    Archive { name, rules, layer: LayerSpec::new(tar), means: Means::Refused(5), warns: &[] }
}

/// A header with the defaults of [`EntrySpec`].
fn header(kind: u8, name: impl AsRef<[u8]>) -> Header {
    let mode = if matches!(kind, b'5' | b'D') { 0o755 } else { 0o644 };
    Header::new(kind, name).octal(field::MODE, mode).octal(field::MTIME, DEFAULT_MTIME as u64)
}

fn gnu(header: Header) -> Header {
    header.raw(field::MAGIC, MAGIC_GNU)
}

fn v7(header: Header) -> Header {
    header.raw(field::MAGIC, MAGIC_V7)
}

fn new() -> TarBuilder {
    TarBuilder::new()
}

/// An archive so far: the file `a` that holds `1`.
fn a() -> TarBuilder {
    new().member(header(b'0', "a"), "1")
}

fn file_a() -> Vec<EntrySpec> {
    vec![file("a", "1")]
}

/// A block that would be the entry `hidden` if a reader took it for one.
fn hidden() -> [u8; BLOCK] {
    header(b'0', "hidden").block()
}

fn framing() -> Vec<Archive> {
    let b = || new().member(header(b'0', "b"), "2").unfinished();
    let ended = || a().zeros(2 * BLOCK);
    let cut = |length: usize| a().unfinished()[..length].to_vec();
    let mut wrong_sum = header(b'0', "b").block();
    wrong_sum[0] = b'c';
    let odd = header(b'0', b"\xe9\xe8");
    vec![
        same("t01_one_zero_block", &["T1"], a().zeros(BLOCK).unfinished(), file_a()),
        same("t02_no_zero_blocks", &["T2", "Z6"], a().unfinished(), file_a()),
        same("t02_not_even_the_padding_of_the_last_entry", &["T2"], cut(BLOCK + 1), file_a()),
        same("t02_half_of_the_padding_of_the_last_entry", &["T2"], cut(BLOCK + 100), file_a()),
        bad("t03_cut_in_a_header", &["T3"], a().raw(&hidden()[..100]).unfinished()),
        bad("t03_cut_in_the_data", &["T3"], new().header(&header(b'0', "a").size(600)).raw([7; 512]).unfinished()),
        bad("t03_cut_before_the_data", &["T3"], cut(BLOCK)),
        bad("t03_cut_in_an_extension_header", &["T3"], new().pax(&[("path", "x")]).unfinished()[..700].to_vec()),
        same("t04_bytes_behind_the_end", &["T4", "Z6"], ended().raw("garbage").unfinished(), file_a())
            .warns(&["data-after-end"]),
        same(
            "t04_blocks_behind_the_end",
            &["T4", "Z6"],
            ended().zeros(9 * BLOCK).raw([7; 2000]).unfinished(),
            file_a(),
        )
        .warns(&["data-after-end"]),
        same("t05_a_second_archive", &["T5"], ended().raw(b()).finish(), file_a()).warns(&["data-after-end"]),
        same("t05_a_second_archive_behind_padding", &["T5"], ended().zeros(10240).raw(b()).finish(), file_a())
            .warns(&["data-after-end"]),
        bad("t06_a_zero_block_then_an_entry", &["T6"], a().zeros(BLOCK).raw(b()).finish()),
        bad("t06_a_zero_block_then_garbage", &["T6"], a().zeros(BLOCK).raw([7; 512]).finish()),
        same(
            "t07_signed_checksum",
            &["T7"],
            new().header(&odd.clone().checksum(format!("{:06o}\0 ", odd.sum(true)))).finish(),
            [file(b"\xe9\xe8", "")],
        ),
        same(
            "t07_checksum_between_spaces",
            &["T7"],
            new().header(&odd.clone().checksum(format!("  {:o} ", odd.sum(false)))).finish(),
            [file(b"\xe9\xe8", "")],
        ),
        same(
            "t07_checksum_without_an_end",
            &["T7"],
            new().header(&odd.clone().checksum(format!("{:08o}", odd.sum(false)))).finish(),
            [file(b"\xe9\xe8", "")],
        ),
        bad("t08_wrong_checksum_in_the_middle", &["T8"], a().raw(wrong_sum).raw(b()).finish()),
        bad("t08_wrong_checksum_at_the_start", &["T8"], new().raw(wrong_sum).raw(b()).finish()),
        same("t31_no_bytes", &["T31"], [], []),
        same("t31_one_zero_block_alone", &["T31"], [0; 512], []),
        same("t31_two_zero_blocks", &["T31"], [0; 1024], []),
        same("t31_twenty_zero_blocks", &["T31"], [0; 10240], []),
        same("t32_padded_to_a_record", &["T32", "Z6"], a().zeros(10240 - 2 * BLOCK).unfinished(), file_a()),
        same("t32_padded_to_a_megabyte", &["T32", "Z6"], a().zeros((1 << 20) - 2 * BLOCK).unfinished(), file_a()),
    ]
}

fn types() -> Vec<Archive> {
    let of_type = |kind: u8| new().header(&gnu(header(kind, "u"))).finish();
    vec![
        same(
            "t09_a_trailing_slash_is_a_directory",
            &["T9"],
            new()
                .header(&v7(header(0, "d/")))
                .member(header(b'0', "d/x"), "x")
                .header(&header(b'0', "e/"))
                .header(&header(0, "g/"))
                .finish(),
            [dir("d/").mode(0o644), file("d/x", "x"), dir("e/").mode(0o644), dir("g/").mode(0o644)],
        ),
        same(
            "t09_a_trailing_slash_with_data_is_a_file",
            &["T9"],
            new().member(header(b'0', "f/"), "x").finish(),
            [file("f", "x")],
        ),
        same("t09_a_v7_file_without_a_type", &["T9"], new().member(v7(header(0, "f")), "x").finish(), [file("f", "x")]),
        same(
            "t10_contiguous_file",
            &["T10", "R-12"],
            new().member(header(b'7', "c"), "abc").finish(),
            [file("c", "abc")],
        ),
        bad("t11_unknown_type", &["T11", "R-12"], of_type(b'Z')),
        bad("t11_socket", &["T11", "R-12"], of_type(b's')),
        bad("t11_type_space", &["T11", "R-12"], of_type(b' ')),
        same(
            "t12_volume_label",
            &["T12", "R-12"],
            new().header(&gnu(header(b'V', "label"))).raw(a().unfinished()).finish(),
            file_a(),
        )
        .warns(&["volume-label"]),
        same(
            "t12_dumped_directory",
            &["T12", "R-12"],
            new().member(gnu(header(b'D', "d")), [b'Y'; 600]).raw(a().unfinished()).finish(),
            [dir("d"), file("a", "1")],
        ),
        same(
            "t12_solaris_header",
            &["T12", "R-12"],
            new().pax_of_type(b'X', pax_records(&[("path", "from-x")])).member(header(b'0', "short"), "1").finish(),
            [file("from-x", "1")],
        ),
        bad("t12_multi_volume", &["T12", "R-12"], of_type(b'M')),
        bad("t12_old_long_name", &["T12", "R-12"], of_type(b'N')),
        bad("t12_solaris_acl", &["T12", "R-12"], of_type(b'A')),
        same(
            "l10_hard_link_with_a_size_and_no_data",
            &["L10"],
            a().header(&header(b'1', "h").raw(field::LINKNAME, "a").size(5)).member(header(b'0', "b"), "2").finish(),
            [file("a", "1"), hardlink("h", "a"), file("b", "2")],
        ),
        bad(
            "l10_hard_link_with_a_pax_size",
            &["L10"],
            a().pax(&[("size", "5")]).member(header(b'1', "h").raw(field::LINKNAME, "a"), "12345").finish(),
        ),
    ]
}

fn names() -> Vec<Archive> {
    let long = "n".repeat(150);
    let target = "t/".repeat(150);
    vec![
        same(
            "t13_the_last_long_name_wins_and_ends_at_nul",
            &["T13"],
            new()
                .gnu_long_name("first")
                .gnu_long_link(&target)
                .gnu_long_name(format!("{long}\0rest"))
                .header(&gnu(header(b'2', "short").octal(field::MODE, 0o777)).raw(field::LINKNAME, "s"))
                .member(header(b'0', "next"), "2")
                .finish(),
            [symlink(&long, &target), file("next", "2")],
        ),
        bad(
            "t16_pax_path_then_long_name",
            &["T16", "R-16"],
            new().pax(&[("path", "p")]).gnu_long_name("l").raw(a().unfinished()).finish(),
        ),
        bad(
            "t16_long_name_then_pax_path",
            &["T16", "R-16"],
            new().gnu_long_name("l").pax(&[("path", "p")]).raw(a().unfinished()).finish(),
        ),
        bad(
            "t16_pax_linkpath_and_long_link",
            &["T16", "R-16"],
            new().pax(&[("linkpath", "p")]).gnu_long_link("l").header(&header(b'2', "s")).finish(),
        ),
        bad("t20_nul_in_a_path", &["T20"], new().pax(&[("path", "a\0b")]).raw(a().unfinished()).finish()),
        bad("t20_nul_in_a_link_path", &["T20"], new().pax(&[("linkpath", "a\0b")]).header(&header(b'2', "s")).finish()),
        bad("t20_nul_in_a_key", &["T20"], new().pax(&[("SCHILY.xattr.user.a\0b", "v")]).raw(a().unfinished()).finish()),
        same(
            "t21_newline_in_a_path",
            &["T21"],
            new().pax(&[("path", "new\nline")]).raw(a().unfinished()).finish(),
            [file("new\nline", "1")],
        ),
        same(
            "t24_a_path_is_bytes_whatever_its_charset",
            &["T24"],
            new()
                .pax(&[(&b"hdrcharset"[..], &b"BINARY"[..]), (b"charset", b"x"), (b"path", b"\xff\xfe")])
                .raw(a().unfinished())
                .finish(),
            [file(b"\xff\xfe", "1")],
        ),
        same(
            "t28_an_empty_name_is_the_root",
            &["T28", "D3"],
            new().header(&header(b'5', "")).raw(a().finish()).finish(),
            [file("a", "1")],
        ),
        bad("t28_a_file_without_a_name", &["T28", "D4"], new().member(header(b'0', ""), "x").finish()),
        same(
            "t29_only_posix_headers_have_a_prefix",
            &["T29"],
            new()
                .member(header(b'0', "f").raw(field::PREFIX, "posix"), "1")
                .member(v7(header(b'0', "v").raw(field::PREFIX, "no")), "2")
                .member(gnu(header(b'0', "g").raw((345, 12), "00000000115").raw((357, 12), "00000000116")), "3")
                .finish(),
            [file("posix/f", "1"), file("v", "2"), file("g", "3")],
        ),
        same(
            "t29_the_prefix_of_an_early_go",
            &["T29"],
            new().member(gnu(header(b'0', "g").raw(field::PREFIX, "some/quite/long/directory")), "3").finish(),
            [file("some/quite/long/directory/g", "3")],
        ),
        bad("t30_pax_header_at_the_end", &["T30"], a().pax(&[("path", "p")]).finish()),
        bad("t30_pax_header_at_the_end_of_the_stream", &["T30"], a().pax(&[("path", "p")]).unfinished()),
        bad("t30_long_name_at_the_end", &["T30"], a().gnu_long_name("l").finish()),
    ]
}

fn pax() -> Vec<Archive> {
    let data = [&hidden()[..], &[7; 88]].concat();
    let sized = |size: u64| {
        new()
            .pax(&[("size", "512")])
            .header(&header(b'0', "f").size(size))
            .data(hidden())
            .member(header(b'0', "after"), "2")
            .finish()
    };
    let outer = |between: TarBuilder| {
        new()
            .pax(&[("size", "600")])
            .raw(between.unfinished())
            .header(&header(b'0', "f"))
            .data(&data)
            .member(header(b'0', "after"), "2")
            .finish()
    };
    vec![
        same(
            "t14_pax_size_before_a_long_name",
            &["T14"],
            outer(new().gnu_long_name("long")),
            [file("long", &data), file("after", "2")],
        ),
        same(
            "t14_pax_size_before_a_global_header",
            &["T14"],
            outer(new().pax_global(&[("comment", "c")])),
            [file("f", &data), file("after", "2")],
        ),
        same("t15_pax_size_over_a_size_of_0", &["T15"], sized(0), [file("f", hidden()), file("after", "2")]),
        same("t15_pax_size_over_a_smaller_size", &["T15"], sized(1), [file("f", hidden()), file("after", "2")]),
        same("t15_pax_size_over_a_larger_size", &["T15"], sized(4096), [file("f", hidden()), file("after", "2")]),
        same(
            "t15_pax_size_0_over_a_size",
            &["T15"],
            new().pax(&[("size", "0")]).header(&header(b'0', "f").size(512)).raw(a().unfinished()).finish(),
            [file("f", ""), file("a", "1")],
        ),
        bad(
            "t17_two_pax_headers",
            &["T17", "R-16"],
            new().pax(&[("path", "p")]).pax(&[("mtime", "1")]).raw(a().unfinished()).finish(),
        ),
        same(
            "t18_the_last_record_of_a_key",
            &["T18"],
            new().pax(&[("path", "one"), ("path", "two")]).raw(a().unfinished()).finish(),
            [file("two", "1")],
        ),
        bad("t19_a_record_too_long", &["T19"], new().pax_of_type(b'x', "13 path=name").raw(a().unfinished()).finish()),
        bad(
            "t19_a_record_too_short",
            &["T19"],
            new().pax_of_type(b'x', "11 path=name\n").raw(a().unfinished()).finish(),
        ),
        bad("t19_no_equals_sign", &["T19"], new().pax_of_type(b'x', "12 path:name\n").raw(a().unfinished()).finish()),
        bad("t19_no_newline", &["T19"], new().pax_of_type(b'x', "12 path=name ").raw(a().unfinished()).finish()),
        same(
            "t22_an_empty_value_takes_the_override_back",
            &["T22", "R-26"],
            new()
                .pax(&[("path", "p"), ("mtime", "9"), ("uid", "7"), ("path", ""), ("mtime", ""), ("uid", "")])
                .raw(a().unfinished())
                .finish(),
            file_a(),
        ),
        same(
            "t23_global_headers_are_not_applied",
            &["T23", "R-13"],
            new().pax_global(&[("path", "zz"), ("uid", "7"), ("mtime", "9")]).raw(a().unfinished()).finish(),
            file_a(),
        )
        .warns(&["global-pax-header"]),
        same(
            "t23_a_global_header_makes_no_parents",
            &["T23", "R-13"],
            new()
                .member(Header::new(b'g', "no/such/place"), pax_records(&[("comment", "c")]))
                .raw(a().unfinished())
                .finish(),
            file_a(),
        ),
    ]
}

fn numbers() -> Vec<Archive> {
    let sized = |header: Header, size: i128| new().header(&header.base256(field::SIZE, size)).finish();
    let link = header(b'2', "s").octal(field::MODE, 0o777).raw(field::LINKNAME, "t");
    let owner = |uid: i128| header(b'0', "a").base256(field::UID, uid).base256(field::GID, uid);
    vec![
        bad("t27_negative_size", &["T27"], sized(header(b'0', "a"), -1)),
        bad("t27_negative_size_of_a_directory", &["T27"], sized(header(b'5', "a"), -1)),
        bad("t27_size_of_64_bits", &["T27"], sized(header(b'0', "a"), 1 << 63)),
        same(
            "t27_a_size_between_spaces",
            &["T27"],
            new().header(&header(b'0', "a").raw(field::SIZE, "         1 ")).data("1").finish(),
            file_a(),
        ),
        same(
            "t27_a_size_in_base_256",
            &["T27"],
            new().header(&header(b'0', "a").base256(field::SIZE, 1)).data("1").finish(),
            file_a(),
        ),
        same(
            "t27_a_size_where_no_data_can_be",
            &["T27"],
            new()
                .header(&link.size(5))
                .header(&header(b'5', "d/").size(5))
                .header(&header(b'6', "p").size(5))
                .raw(a().unfinished())
                .finish(),
            [symlink("s", "t"), dir("d/"), crate::fifo("p"), file("a", "1")],
        )
        .warns(&["size-ignored"]),
        bad("b09_a_size_of_8_eib_and_a_kibibyte_of_data", &["B9"], {
            new().header(&header(b'0', "a").base256(field::SIZE, i64::MAX.into())).raw([7; 1024]).unfinished()
        }),
        same(
            "m04_owners_in_base_256",
            &["M4"],
            new().member(owner(4_294_967_294), "1").finish(),
            [file("a", "1").owner(4_294_967_294, 4_294_967_294)],
        ),
        bad("m05_owner_minus_one_in_base_256", &["M5", "R-18"], new().header(&owner(-1)).finish()),
        bad("m05_owner_of_33_bits_in_base_256", &["M5", "R-18"], new().header(&owner(1 << 32)).finish()),
        bad(
            "m06_device_number_of_33_bits",
            &["M6", "R-18"],
            new().header(&header(b'3', "c").base256(field::DEVMAJOR, 1 << 32)).finish(),
        ),
    ]
}

fn metadata() -> Vec<Archive> {
    let with = |records: &[(&str, &str)]| new().pax(records).raw(a().unfinished()).finish();
    vec![
        same(
            "m07_names_of_owners_mean_nothing",
            &["M7"],
            new()
                .pax(&[("uname", "daemon"), ("gname", "daemon")])
                .member(header(b'0', "a").octal(field::UID, 5).octal(field::GID, 6).raw(field::UNAME, "root"), "1")
                .member(header(b'0', "b").raw(field::UNAME, "daemon").raw(field::GNAME, "daemon"), "2")
                .finish(),
            [file("a", "1").owner(5, 6), file("b", "2")],
        ),
        same(
            "m09_time_before_1970",
            &["M9", "R-8"],
            with(&[("mtime", "-1.5")]),
            [file("a", "1").mtime_nanos(-2, 500_000_000)],
        ),
        same(
            "m09_time_beyond_32_bits",
            &["M9", "R-8"],
            with(&[("mtime", "5000000000.25")]),
            [file("a", "1").mtime_nanos(5_000_000_000, 250_000_000)],
        ),
        same(
            "m13_xattrs_of_libarchive",
            &["M13", "R-17"],
            with(&[
                ("LIBARCHIVE.xattr.user.both", "bGliYXJjaGl2ZQ"),
                ("SCHILY.xattr.user.both", "schily"),
                ("LIBARCHIVE.xattr.user.one%3Done", "AAEC"),
            ]),
            [file("a", "1").xattr("user.both", "schily").xattr("user.one=one", [0, 1, 2])],
        ),
        same(
            "m14_acl_texts_and_labels_of_star_are_not_applied",
            &["M14"],
            with(&[
                ("SCHILY.acl.access", "user::rw-,user:lp:rwx,group::r--,mask::rwx,other::r--"),
                ("RHT.security.selinux", "system_u:object_r:x_t:s0"),
            ]),
            file_a(),
        )
        .warns(&["pax-key-not-applied"]),
        same(
            "m22_file_flags_are_never_set",
            &["M22", "M14"],
            with(&[("SCHILY.fflags", "immutable,nodump,append")]),
            file_a(),
        )
        .warns(&["pax-key-not-applied"]),
    ]
}
