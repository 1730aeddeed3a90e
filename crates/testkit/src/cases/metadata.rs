//! Section M: modes, owners, times, xattrs, devices.

use super::{Case, Want, case, d, f, l, refused};
use crate::entry::{blk, chr, dir, fifo, file, hardlink, symlink, whiteout};
use crate::model::Options;
use crate::tree::Kind;

/// A capability of version 3 for the user namespace whose root is this user; otherwise like the one of version 2.
fn version_3(root: u32) -> Vec<u8> {
    [&[1, 0, 0, 3, 0, 4][..], &[0; 14], &root.to_le_bytes()].concat()
}

pub(super) fn cases() -> Vec<Case> {
    let capability = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    vec![
        case(
            "m01_setuid_and_capability_survive_the_owner",
            &["M1", "M16"],
            vec![vec![file("f", "x").mode(0o6755).owner(5, 6).mtime(7).xattr("security.capability", capability)]],
            vec![("f", f("x").mode(0o6755).owner(5, 6).mtime(7).xattr("security.capability", capability))],
        ),
        case(
            "m02_setuid_setgid_sticky",
            &["M2"],
            vec![vec![
                dir("tmp/").mode(0o1777),
                dir("sg/").mode(0o2755),
                file("su", "").mode(0o4755),
                file("t", "").mode(0o1644),
            ]],
            vec![
                ("tmp", d().mode(0o1777)),
                ("sg", d().mode(0o2755)),
                ("su", f("").mode(0o4755)),
                ("t", f("").mode(0o1644)),
            ],
        ),
        case(
            "m03_type_bits_in_the_mode_field",
            &["M3"],
            vec![vec![file("f", "").mode(0o100644), dir("d/").mode(0o100700), file("g", "").mode(0o40600)]],
            vec![("f", f("").mode(0o644)), ("d", d().mode(0o700)), ("g", f("").mode(0o600))],
        ),
        case(
            "m04_large_owners",
            &["M4"],
            vec![vec![file("f", "").owner(3_000_000_000, 4_294_967_294), dir("d/").owner(2_097_152, 65_534)]],
            vec![("f", f("").owner(3_000_000_000, 4_294_967_294)), ("d", d().owner(2_097_152, 65_534))],
        ),
        refused("m05_owner_minus_one", &["M5", "R-18"], vec![vec![file("f", "").owner(4_294_967_295, 0)]]),
        refused("m05_group_minus_one", &["M5", "R-18"], vec![vec![file("f", "").owner(0, 4_294_967_295)]]),
        refused("m05_owner_of_33_bits", &["M5", "R-18"], vec![vec![dir("d/").owner(4_294_967_296, 0)]]),
        refused(
            "m05_owner_of_33_bits_on_a_link",
            &["M5"],
            vec![vec![file("f", ""), hardlink("h", "f").owner(0, 4_294_967_296)]],
        ),
        case(
            "m06_largest_device_numbers",
            &["M6"],
            vec![vec![blk("b", 4095, 1_048_575), chr("c", 0, 1)]],
            vec![("b", Want::new(Kind::Block(4095, 1_048_575))), ("c", Want::new(Kind::Char(0, 1)))],
        ),
        refused("m06_major_number_too_large", &["M6", "R-18"], vec![vec![blk("b", 4096, 0)]]),
        refused("m06_minor_number_too_large", &["M6", "R-18"], vec![vec![chr("c", 0, 1_048_576)]]),
        case(
            "m06_block_device_zero_is_no_whiteout",
            &["M6", "W21"],
            vec![vec![file("a", "")], vec![blk("a", 0, 0)]],
            vec![("a", Want::new(Kind::Block(0, 0)))],
        ),
        case(
            "m08_nanoseconds",
            &["M8", "R-8"],
            vec![vec![file("f", "").mtime_nanos(1_234_567_890, 123_456_789), dir("d/").mtime_nanos(5, 999_999_999)]],
            vec![("f", f("").mtime_nanos(1_234_567_890, 123_456_789)), ("d", d().mtime_nanos(5, 999_999_999))],
        ),
        case(
            "m09_negative_times",
            &["M9", "R-8"],
            vec![vec![file("a", "").mtime(-5), file("b", "").mtime_nanos(-2, 500_000_000), file("c", "").mtime(0)]],
            vec![("a", f("").mtime(-5)), ("b", f("").mtime_nanos(-2, 500_000_000)), ("c", f("").mtime(0))],
        ),
        case(
            "m11_symlink_has_owner_and_mtime",
            &["M11"],
            vec![vec![file("t", "").mtime(9), symlink("l", "t").owner(5, 6).mtime(5)]],
            vec![("l", l("t").owner(5, 6).mtime(5)), ("t", f("").owner(0, 0).mtime(9))],
        ),
        case(
            "m12_xattrs_are_bytes",
            &["M12", "R-26"],
            vec![vec![
                file("f", "").xattr("user.bytes", b"\0\n=x\xff").xattr("user.empty", b"").xattr("user.long", [7; 2000]),
                dir("d/").xattr("user.d", "v"),
            ]],
            vec![
                ("f", f("").xattr("user.bytes", b"\0\n=x\xff").xattr("user.empty", b"").xattr("user.long", [7; 2000])),
                ("d", d().xattr("user.d", "v")),
            ],
        ),
        case(
            "m12_xattrs_of_a_replaced_file_are_gone",
            &["M12", "L8"],
            vec![vec![file("f", "1").xattr("user.a", "1")], vec![file("f", "2").xattr("user.b", "2")]],
            vec![("f", f("2").xattr("user.b", "2"))],
        ),
        case(
            "m15_selinux_label_is_dropped",
            &["M15", "R-11"],
            vec![vec![file("f", "").xattr("security.selinux", "system_u:object_r:x_t:s0\0").xattr("user.k", "v")]],
            vec![("f", f("").xattr("user.k", "v"))],
        ),
        case(
            "m15_selinux_label_is_kept_on_demand",
            &["M15", "R-11"],
            vec![
                vec![dir("d/").xattr("security.selinux", "system_u:object_r:x_t:s0\0"), file("d/f", "")],
                vec![file("f", "").xattr("security.selinux", "system_u:object_r:y_t:s0\0"), file("d/g", "")],
            ],
            vec![
                ("d", d().xattr("security.selinux", "system_u:object_r:x_t:s0\0")),
                ("d/f", f("").no_xattrs()),
                ("d/g", f("").no_xattrs()),
                ("f", f("").xattr("security.selinux", "system_u:object_r:y_t:s0\0")),
            ],
        )
        .with(Options { selinux_keep: true, ..Options::default() }),
        case(
            "m15_selinux_label_is_kept",
            &["M15", "R-11"],
            vec![
                vec![file("f", "").xattr("security.selinux", "system_u:object_r:x_t:s0\0"), dir("d/")],
                vec![hardlink("d/g", "f").xattr("security.selinux", "system_u:object_r:y_t:s0\0")],
            ],
            vec![
                ("f", f("").xattr("security.selinux", "system_u:object_r:y_t:s0\0")),
                ("d", d().no_xattrs()),
                ("d/g", f("").group("d/g").xattr("security.selinux", "system_u:object_r:y_t:s0\0")),
            ],
        )
        .with(Options { selinux_keep: true, ..Options::default() }),
        case(
            "m16_capability_for_every_namespace_and_for_one",
            &["M16"],
            vec![vec![
                file("two", "").xattr("security.capability", capability),
                file("three", "").xattr("security.capability", version_3(0)),
                file("foreign", "").xattr("security.capability", version_3(1000)).xattr("user.k", "v"),
            ]],
            vec![
                ("two", f("").xattr("security.capability", capability)),
                ("three", f("").xattr("security.capability", capability)),
                ("foreign", f("").xattr("user.k", "v")),
            ],
        ),
        refused(
            "m16_capability_of_no_known_version",
            &["M16"],
            vec![vec![file("f", "").xattr("security.capability", [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])]],
        ),
        refused(
            "m16_capability_cut_short",
            &["M16"],
            vec![vec![dir("d/").xattr("security.capability", [1, 0, 0, 2, 0])]],
        ),
        case(
            "m17_other_security_xattrs_are_kept",
            &["M17"],
            vec![vec![file("f", "").xattr("security.ima", [3, 1]).xattr("security.evm", [3, 1, 7])]],
            vec![("f", f("").xattr("security.evm", [3, 1, 7]).xattr("security.ima", [3, 1]))],
        ),
        case(
            "m21_the_largest_xattr_that_linux_stores",
            &["M21"],
            vec![vec![
                file("f", "").xattr("user.big", [7; 65_536]),
                dir("d/").xattr(format!("user.{}", "n".repeat(250)), "v"),
            ]],
            vec![
                ("f", f("").xattr("user.big", [7; 65_536])),
                ("d", d().xattr(&format!("user.{}", "n".repeat(250)), "v")),
            ],
        ),
        refused("m21_xattr_of_65537_bytes", &["M21"], vec![vec![file("f", "").xattr("user.big", [7; 65_537])]]),
        refused(
            "m21_xattr_of_70_kib_that_would_be_dropped",
            &["M21"],
            vec![vec![symlink("l", "t").xattr("user.big", [7; 70 << 10])]],
        ),
        refused(
            "m21_xattr_name_of_256_bytes",
            &["M21"],
            vec![vec![file("f", "").xattr(format!("user.{}", "n".repeat(251)), "v")]],
        ),
        case(
            "m18_user_xattrs_only_on_files_and_directories",
            &["M18"],
            vec![vec![
                symlink("l", "t").xattr("user.k", "v"),
                fifo("p").xattr("user.k", "v"),
                chr("c", 1, 3).xattr("user.k", "v"),
                blk("b", 7, 0).xattr("user.k", "v"),
                hardlink("p2", "p").xattr("user.l", "v"),
            ]],
            vec![
                ("l", l("t").no_xattrs()),
                ("p", Want::new(Kind::Fifo).no_xattrs()),
                ("p2", Want::new(Kind::Fifo).no_xattrs()),
                ("c", Want::new(Kind::Char(1, 3)).no_xattrs()),
                ("b", Want::new(Kind::Block(7, 0)).no_xattrs()),
            ],
        ),
        case(
            "m18_trusted_xattrs_on_every_type",
            &["M18", "R-9"],
            vec![vec![
                symlink("l", "t").xattr("trusted.k", "v"),
                fifo("p").xattr("trusted.k", "v"),
                dir("d/").xattr("trusted.k", "v"),
                file("f", "").xattr("trusted.overlaid", "v"),
            ]],
            vec![
                ("l", l("t").xattr("trusted.k", "v")),
                ("p", Want::new(Kind::Fifo).xattr("trusted.k", "v")),
                ("d", d().xattr("trusted.k", "v")),
                ("f", f("").xattr("trusted.overlaid", "v")),
            ],
        ),
        case(
            "x04_implied_directory_keeps_lower_xattrs",
            &["X4", "D1"],
            vec![vec![dir("d/").xattr("trusted.k", "v").xattr("user.k", "v")], vec![file("d/e/x", "")]],
            vec![("d", d().xattr("trusted.k", "v").xattr("user.k", "v")), ("d/e", d().no_xattrs()), ("d/e/x", f(""))],
        ),
        case(
            "x04_implied_directory_keeps_a_default_acl_and_its_children_do_not_get_it",
            &["X4", "D11"],
            vec![
                vec![dir("d/").mode(0o750).xattr("system.posix_acl_default", DEFAULT_ACL), file("d/a", "").mode(0o640)],
                vec![file("d/e/x", "").mode(0o644).mtime(77), whiteout("d", "a"), hardlink("d/y", "d/e/x")],
                vec![file("d/e/z", "").mode(0o600)],
            ],
            vec![
                ("d", d().mode(0o750).xattr("system.posix_acl_default", DEFAULT_ACL)),
                ("d/e", d().implied(77)),
                ("d/e/x", f("").mode(0o644).no_xattrs().group("d/e/x")),
                ("d/e/z", f("").mode(0o600).no_xattrs()),
                ("d/y", f("").group("d/e/x")),
            ],
        ),
        case(
            "x04_implied_directory_keeps_lower_xattrs_through_two_layers",
            &["X4", "X3"],
            vec![
                vec![dir("d/").xattr("user.k", "v")],
                vec![file("d/x", "")],
                vec![file("d/y", ""), whiteout("d", "x")],
            ],
            vec![("d", d().xattr("user.k", "v")), ("d/y", f(""))],
        ),
        case(
            "m20_nfs4_acl_is_dropped",
            &["M20"],
            vec![vec![file("f", "").xattr("system.nfs4_acl", b"\0\0\0\x01").xattr("user.k", "v")]],
            vec![("f", f("").xattr("user.k", "v"))],
        ),
        case(
            "o02_user_overlay_xattrs_are_data_elsewhere",
            &["O2", "R-10"],
            vec![
                vec![dir("d/"), file("d/old", "")],
                vec![dir("d/").xattr("user.overlay.opaque", "y").xattr("user.overlaid", "y")],
            ],
            vec![("d", d().xattr("user.overlay.opaque", "y").xattr("user.overlaid", "y")), ("d/old", f(""))],
        )
        .with(Options { userxattr: false, ..Options::default() }),
        case(
            "t24_names_are_bytes",
            &["T21", "T24"],
            vec![vec![
                file(b"\xff\xfe", "1"),
                file("new\nline", "2"),
                file("quote\"\\", "3"),
                dir("ü/"),
                file("ü/é", "4"),
            ]],
            vec![
                (&b"\xff\xfe"[..], f("1")),
                (b"new\nline", f("2")),
                (b"quote\"\\", f("3")),
                ("ü".as_bytes(), d()),
                ("ü/é".as_bytes(), f("4")),
            ],
        ),
        case(
            "x12_content_is_bytes_of_any_length",
            &["X12"],
            vec![vec![
                file("empty", ""),
                file("block", [0; 512]),
                file("more", [1; 513]),
                file("big", vec![2; 300_000]),
            ]],
            vec![("empty", f("")), ("block", f([0; 512])), ("more", f([1; 513])), ("big", f(vec![2; 300_000]))],
        ),
    ]
}

/// `u::rwx,u:4243:rwx,g::rwx,m::rwx,o::rwx` as the kernel keeps it.
const DEFAULT_ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 147, 16, 0, 0, 4, 0, 7, 0, 255, 255, 255, 255, 16, 0, 7, 0,
    255, 255, 255, 255, 32, 0, 7, 0, 255, 255, 255, 255,
];
