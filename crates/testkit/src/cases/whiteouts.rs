//! Section W: whiteouts.

use super::{Case, Want, case, d, f, l, nothing, refused};
use crate::entry::{chr, dir, fifo, file, hardlink, opaque, symlink, whiteout};
use crate::tree::Kind;

pub(super) fn cases() -> Vec<Case> {
    let long = |n| "n".repeat(n);
    vec![
        case("w01_whiteout_hides_a_file", &["W1"], vec![vec![file("a", "old")], vec![whiteout("", "a")]], nothing()),
        case(
            "w01_whiteout_hides_a_directory_with_everything_below",
            &["W1"],
            vec![
                vec![dir("d/"), file("d/x", "1"), dir("d/e/"), file("d/e/y", "2"), file("k", "")],
                vec![whiteout("", "d")],
            ],
            vec![("k", f(""))],
        ),
        case(
            "w01_whiteout_hides_symlink_fifo_and_device",
            &["W1"],
            vec![
                vec![symlink("s", "k"), fifo("p"), chr("c", 1, 3), file("k", "kept")],
                vec![whiteout("", "s"), whiteout("", "p"), whiteout("", "c")],
            ],
            vec![("k", f("kept"))],
        ),
        case(
            "w01_whiteout_of_one_name_of_a_link_group",
            &["W1", "X12"],
            vec![vec![file("a", "1"), hardlink("b", "a"), hardlink("c", "a")], vec![whiteout("", "a")]],
            vec![("b", f("1").group("b")), ("c", f("1").group("b"))],
        ),
        case(
            "w01_whiteout_leaves_the_parents_metadata",
            &["W1", "D1", "X1"],
            vec![vec![dir("d/").mode(0o700).owner(5, 6).mtime(77), file("d/f", "")], vec![whiteout("d", "f")]],
            vec![("d", d().mode(0o700).owner(5, 6).mtime(77))],
        ),
        case(
            "w02_whiteout_after_the_entry",
            &["W2"],
            vec![vec![file("a", "old")], vec![file("a", "new"), whiteout("", "a")]],
            vec![("a", f("new"))],
        ),
        case(
            "w02_whiteout_after_the_directory",
            &["W2"],
            vec![vec![dir("d/"), file("d/old", "")], vec![dir("d/"), file("d/new", ""), whiteout("", "d")]],
            vec![("d", d()), ("d/new", f(""))],
        ),
        case(
            "w02_whiteout_between_directory_and_child",
            &["W2"],
            vec![vec![dir("d/"), file("d/old", "")], vec![dir("d/"), whiteout("", "d"), file("d/new", "")]],
            vec![("d", d()), ("d/new", f(""))],
        ),
        case(
            "w02_whiteout_in_the_layer_that_makes_the_name",
            &["W2"],
            vec![vec![file("a", "new"), whiteout("", "a")]],
            vec![("a", f("new"))],
        ),
        case(
            "w03_whiteout_before_the_entry",
            &["W3"],
            vec![vec![file("a", "old")], vec![whiteout("", "a"), file("a", "new")]],
            vec![("a", f("new"))],
        ),
        case(
            "w04_whiteout_then_directory",
            &["W4"],
            vec![vec![dir("d/"), file("d/old", "")], vec![whiteout("", "d"), dir("d/"), file("d/new", "")]],
            vec![("d", d()), ("d/new", f(""))],
        ),
        case(
            "w04_whiteout_then_empty_directory",
            &["W4"],
            vec![vec![dir("d/"), dir("d/e/"), file("d/e/old", "")], vec![whiteout("", "d"), dir("d/").mode(0o711)]],
            vec![("d", d().mode(0o711))],
        ),
        case(
            "w05_whiteout_then_child_without_directory_entry",
            &["W5"],
            vec![
                vec![dir("d/").mode(0o700).owner(5, 6), file("d/old", "")],
                vec![whiteout("", "d"), file("d/new", "").mtime(77)],
            ],
            vec![("d", d().implied(77)), ("d/new", f(""))],
        ),
        case(
            "w05_child_then_whiteout_without_directory_entry",
            &["W5", "R-24"],
            vec![
                vec![dir("d/").mode(0o700).owner(5, 6), file("d/old", "")],
                vec![file("d/new", "").mtime(77), whiteout("", "d")],
            ],
            vec![("d", d().implied(77)), ("d/new", f(""))],
        ),
        case(
            "w06_whiteout_below_a_whiteout",
            &["W6"],
            vec![vec![dir("foo/"), file("foo/bar", "")], vec![whiteout("", "foo"), whiteout("foo", "bar")]],
            nothing(),
        ),
        case(
            "w06_whiteout_below_a_later_whiteout",
            &["W6"],
            vec![vec![dir("foo/"), file("foo/bar", "")], vec![whiteout("foo", "bar"), whiteout("", "foo")]],
            nothing(),
        ),
        case(
            "w10_whiteout_of_nothing_makes_nothing",
            &["W10", "R-4"],
            vec![vec![file("k", "")], vec![whiteout("", "nope"), whiteout("x/y", "z")]],
            vec![("k", f(""))],
        ),
        case(
            "w10_whiteout_in_a_directory_of_this_layer_only",
            &["W10"],
            vec![vec![file("k", "")], vec![dir("d/"), file("d/keep", ""), whiteout("d", "gone")]],
            vec![("k", f("")), ("d", d()), ("d/keep", f(""))],
        ),
        case(
            "w10_whiteout_of_nothing_in_a_lower_directory",
            &["W10"],
            vec![vec![dir("d/").mtime(5)], vec![whiteout("d", "gone").mtime(99)]],
            vec![("d", d().mtime(5))],
        ),
        refused("w11_bare_whiteout_name", &["W11"], vec![vec![dir("d/"), file("d/.wh.", "")]]),
        refused("w11_whiteout_of_dot", &["W11"], vec![vec![dir("d/"), file("d/.wh..", "")]]),
        refused("w11_whiteout_of_dot_dot", &["W11"], vec![vec![dir("d/"), file("d/.wh...", "")]]),
        refused("w11_bare_whiteout_name_at_the_root", &["W11"], vec![vec![file(".wh.", "")]]),
        refused("w11_whiteout_of_dot_at_the_root", &["W11"], vec![vec![file("./.wh..", "")]]),
        refused("w11_whiteout_of_dot_dot_at_the_root", &["W11"], vec![vec![file(".wh...", "")]]),
        refused("w11_bare_whiteout_as_directory", &["W11"], vec![vec![dir("d/.wh./")]]),
        case(
            "w12_other_spelling_of_the_opaque_marker",
            &["W12"],
            vec![vec![dir("d/"), file("d/old", "")], vec![dir("d/"), file("d/.wh..wh..OPQ", "")]],
            vec![("d", d()), ("d/old", f(""))],
        ),
        case(
            "w12_whiteout_of_a_whiteout_name",
            &["W12"],
            vec![
                vec![dir("d/"), file("d/old", "")],
                vec![dir("d/"), file("d/.wh..wh.", ""), file("d/.wh..wh.old", "")],
            ],
            vec![("d", d()), ("d/old", f(""))],
        ),
        case(
            "w13_aufs_names_and_a_link_into_plnk",
            &["W13", "R-32"],
            vec![vec![
                file(".wh..wh.aufs", ""),
                dir(".wh..wh.orph/"),
                dir(".wh..wh.plnk/"),
                file(".wh..wh.plnk/1.2", "data").mode(0o600).xattr("user.stored", "1"),
                hardlink("f", ".wh..wh.plnk/1.2").mode(0o640).owner(1, 2).mtime(7),
            ]],
            vec![("f", f("data").mode(0o640).owner(1, 2).mtime(7).no_xattrs().alone())],
        ),
        case(
            "w13_two_links_into_plnk_share_an_inode",
            &["W13", "R-32", "R-7"],
            vec![vec![
                file(".wh..wh.plnk/1.2", "data"),
                hardlink("f", ".wh..wh.plnk/1.2").mode(0o640),
                hardlink("d/g", "/.wh..wh.plnk/1.2").mode(0o600),
                hardlink("h", ".wh..wh.plnk/1.2").mode(0o604),
            ]],
            vec![
                ("d", d()),
                ("d/g", f("data").group("d/g")),
                ("f", f("data").group("d/g").mode(0o604)),
                ("h", f("data").group("d/g")),
            ],
        ),
        case(
            "w13_link_into_plnk_after_the_first_name_became_a_directory",
            &["W13", "R-32", "L7"],
            vec![
                vec![file("k", "")],
                vec![
                    file(".wh..wh.plnk/1", "data"),
                    hardlink("b", ".wh..wh.plnk/1").xattr("user.k", "v"),
                    file("b", "other"),
                    hardlink("b/a", ".wh..wh.plnk/1").mtime(7),
                    hardlink("i/d", "b/a").mtime(8),
                ],
            ],
            vec![
                ("k", f("")),
                ("b", d().implied(7)),
                ("b/a", f("data").group("b/a").mtime(8).xattr("user.k", "v")),
                ("i", d().implied(8)),
                ("i/d", f("data").group("b/a")),
            ],
        ),
        case(
            "w13_name_in_plnk_used_again",
            &["W13", "R-32"],
            vec![
                vec![
                    file(".wh..wh.plnk/1", "one"),
                    hardlink("a/x", ".wh..wh.plnk/1"),
                    file(".wh..wh.plnk/1", "two"),
                    hardlink("b", ".wh..wh.plnk/1"),
                    hardlink("c", ".wh..wh.plnk/1"),
                ],
                vec![hardlink("e", "c"), hardlink("g", "a/x")],
            ],
            vec![
                ("a", d()),
                ("a/x", f("one").group("a/x")),
                ("g", f("one").group("a/x")),
                ("b", f("two").group("b")),
                ("c", f("two").group("b")),
                ("e", f("two").group("b")),
            ],
        ),
        refused(
            "w13_plnk_is_forgotten_after_its_layer",
            &["W13"],
            vec![vec![file(".wh..wh.plnk/1.2", "data")], vec![hardlink("f", ".wh..wh.plnk/1.2")]],
        ),
        case(
            "w13_aufs_names_below_the_root_are_whiteouts_of_nothing",
            &["W13"],
            vec![vec![dir("d/"), file("d/aufs", "")], vec![file("d/.wh..wh.aufs", ""), file("d/.wh..wh.plnk", "")]],
            vec![("d", d()), ("d/aufs", f(""))],
        ),
        case(
            "w14_whiteout_with_data",
            &["W14"],
            vec![vec![file("a", "old")], vec![file(".wh.a", "7 bytes"), file("b", "next")]],
            vec![("b", f("next"))],
        ),
        case(
            "w14_whiteout_of_every_other_type",
            &["W14"],
            vec![
                vec![file("a", ""), file("b", ""), file("c", ""), file("e", ""), file("g", "")],
                vec![
                    dir(".wh.a/"),
                    symlink(".wh.b", "anything"),
                    hardlink(".wh.c", "missing"),
                    chr(".wh.e", 0, 0),
                    fifo(".wh.g"),
                ],
            ],
            nothing(),
        ),
        case(
            "w15_entry_below_a_whiteout_name",
            &["W15", "R-15"],
            vec![vec![file("a", "old")], vec![file(".wh.x/b", ""), dir(".wh.y/c/"), file("d/.wh.z/e", "")]],
            vec![("a", f("old"))],
        ),
        refused("w15_strict_refuses_an_entry_below_a_whiteout_name", &["W15", "R-15"], vec![vec![file(".wh.x/b", "")]])
            .strict(),
        case(
            "w16_whiteout_of_a_name_of_255_bytes",
            &["W16"],
            vec![vec![file(long(255), "old"), file("k", "")], vec![whiteout("", long(255))]],
            vec![("k", f(""))],
        ),
        refused("w16_whiteout_of_a_name_of_256_bytes", &["W16", "S11"], vec![vec![whiteout("", long(256))]]),
        case(
            "w18_whiteout_of_a_symlink_leaves_its_target",
            &["W18"],
            vec![vec![dir("r/"), file("r/x", ""), symlink("l", "r")], vec![whiteout("", "l")]],
            vec![("r", d()), ("r/x", f(""))],
        ),
        case(
            "w18_whiteout_through_a_dangling_symlink",
            &["W18"],
            vec![vec![symlink("l", "/tmp/victim")], vec![whiteout("l", "file")]],
            vec![("l", l("/tmp/victim"))],
        ),
        case(
            "w18_whiteout_through_a_symlink_out_of_the_root_is_clamped",
            &["W18"],
            vec![
                vec![symlink("d/l", "../../../t"), dir("t/"), file("t/file", ""), file("t/k", "")],
                vec![whiteout("d/l", "file")],
            ],
            vec![("d", d()), ("d/l", l("../../../t")), ("t", d()), ("t/k", f(""))],
        ),
        case(
            "w19_whiteout_under_a_lower_file",
            &["W19", "R-25"],
            vec![vec![file("a", "file")], vec![whiteout("a", "b")]],
            vec![("a", f("file"))],
        ),
        case(
            "w20_deleted_directory_does_not_come_back",
            &["W20"],
            vec![
                vec![dir("d/").mode(0o700).owner(5, 6).xattr("user.k", "v"), file("d/x", "")],
                vec![whiteout("", "d")],
                vec![file("d/y", "").mtime(77)],
            ],
            vec![("d", d().implied(77)), ("d/y", f(""))],
        ),
        case(
            "w20_directory_then_file_then_directory",
            &["W20", "O5"],
            vec![
                vec![dir("d/").mode(0o700), file("d/x", "")],
                vec![file("d", "file")],
                vec![file("d/y", "").mtime(77)],
            ],
            vec![("d", d().implied(77)), ("d/y", f(""))],
        ),
        case(
            "w20_name_deleted_and_made_again_two_layers_later",
            &["W20"],
            vec![vec![file("a", "1")], vec![whiteout("", "a")], vec![file("k", "")], vec![file("a", "4")]],
            vec![("a", f("4")), ("k", f(""))],
        ),
        case(
            "w21_device_zero_removes_nothing",
            &["W21", "R-14"],
            vec![vec![file("a", "kept")], vec![chr("a", 0, 0), chr("d/b", 0, 0)]],
            vec![("a", f("kept"))],
        ),
        refused("w21_strict_refuses_device_zero", &["W21", "R-14"], vec![vec![chr("a", 0, 0)]]).strict(),
        case(
            "w22_whiteout_metadata_means_nothing",
            &["W22"],
            vec![vec![dir("d/").mtime(5), file("d/a", "")], vec![whiteout("d", "a").mode(0).owner(9, 9).mtime(99)]],
            vec![("d", d().owner(0, 0).mode(0o755).mtime(5))],
        ),
        case(
            "w23_whiteouts_in_the_only_layer",
            &["W23"],
            vec![vec![dir("d/"), whiteout("d", "x"), whiteout("", "y"), file("d/k", "")]],
            vec![("d", d()), ("d/k", f(""))],
        ),
        case(
            "w01_whiteout_spelled_with_dots",
            &["W1", "S8", "X9"],
            vec![vec![file("b", ""), dir("a/"), file("a/b", "kept")], vec![file("a/../.wh.b", "")]],
            vec![("a", d()), ("a/b", f("kept"))],
        ),
        case(
            "w06_parents_are_hidden_before_children",
            &["R-24", "W6"],
            vec![vec![symlink("a", "t"), dir("t/"), file("t/x", "kept")], vec![whiteout("a", "x"), whiteout("", "a")]],
            vec![("t", d()), ("t/x", f("kept"))],
        ),
        case(
            "r24_whiteouts_of_one_depth_in_byte_order",
            &["R-24"],
            vec![
                vec![symlink("a/s", "../t"), symlink("b", "a/s"), dir("t/"), file("t/y", "kept")],
                vec![whiteout("b", "y"), whiteout("a", "s")],
            ],
            vec![("a", d()), ("b", l("a/s")), ("t", d()), ("t/y", f("kept"))],
        ),
        case(
            "r24_shallow_names_are_hidden_before_deep_ones_whatever_their_bytes",
            &["R-24"],
            vec![
                vec![symlink("z", "t"), symlink("a/b", "../z"), dir("t/"), file("t/x", "kept")],
                vec![whiteout("a/b", "x"), whiteout("", "z")],
            ],
            vec![("a", d()), ("a/b", l("../z")), ("t", d()), ("t/x", f("kept"))],
        ),
        case(
            "r24_what_an_opaque_directory_hides_counts_as_one_deeper",
            &["R-24"],
            vec![
                vec![symlink("a", "l/s"), symlink("l/s", "../t"), dir("t/"), file("t/x", "kept")],
                vec![opaque("a"), whiteout("", "l")],
            ],
            vec![("a", l("l/s")), ("t", d()), ("t/x", f("kept"))],
        ),
        refused(
            "w13_links_into_plnk_find_only_what_was_kept_there",
            &["W13", "R-32"],
            vec![vec![file(".wh..wh.orph/x", "data"), hardlink("a", ".wh..wh.plnk/x")]],
        ),
        case(
            "w21_real_device_is_hidden_and_made_again",
            &["W1", "W21"],
            vec![vec![chr("c", 1, 3)], vec![whiteout("", "c"), chr("c", 1, 5)]],
            vec![("c", Want::new(Kind::Char(1, 5)))],
        ),
    ]
}
