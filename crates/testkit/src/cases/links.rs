//! Section L: hard links.

use super::{Case, Want, case, d, f, l, refused};
use crate::entry::{chr, dir, fifo, file, hardlink, opaque, symlink, whiteout};
use crate::tree::Kind;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "l01_target_earlier_in_the_layer",
            &["L1"],
            vec![vec![file("f", "1"), hardlink("h", "f")]],
            vec![("f", f("1").group("f")), ("h", f("1").group("f"))],
        ),
        case(
            "l02_target_in_a_lower_layer",
            &["L2"],
            vec![vec![file("f", "1").mode(0o640).owner(5, 6)], vec![hardlink("g", "f").mode(0o640).owner(5, 6)]],
            vec![("f", f("1").group("f").mode(0o640).owner(5, 6)), ("g", f("1").group("f").owner(5, 6))],
        ),
        case(
            "l02_target_three_layers_down",
            &["L2"],
            vec![
                vec![file("d/f", "1")],
                vec![file("k", "")],
                vec![dir("d/").mode(0o700)],
                vec![hardlink("e/g", "d/f")],
            ],
            vec![
                ("d", d().mode(0o700)),
                ("d/f", f("1").group("d/f")),
                ("e", d()),
                ("e/g", f("1").group("d/f")),
                ("k", f("")),
            ],
        ),
        case(
            "l02_lower_target_replaced_in_the_same_layer_later",
            &["L2", "L7"],
            vec![vec![file("f", "1")], vec![hardlink("g", "f"), file("f", "2")]],
            vec![("f", f("2").alone()), ("g", f("1").alone())],
        ),
        case(
            "l02_lower_group_gets_a_third_name",
            &["L2", "R-22", "R-7"],
            vec![vec![file("e", "1"), hardlink("f", "e")], vec![hardlink("g", "f").mode(0o4600).owner(7, 8).mtime(77)]],
            vec![
                ("e", f("1").group("e").mode(0o4600).owner(7, 8).mtime(77)),
                ("f", f("1").group("e").mode(0o4600).owner(7, 8).mtime(77)),
                ("g", f("1").group("e").mode(0o4600).owner(7, 8).mtime(77)),
            ],
        ),
        case(
            "l02_lower_group_with_one_name_hidden",
            &["L2", "R-22", "X11"],
            vec![vec![file("e", "1"), hardlink("f", "e")], vec![whiteout("", "e"), hardlink("g", "f")]],
            vec![("f", f("1").group("f")), ("g", f("1").group("f"))],
        ),
        case(
            "l02_link_chain_over_three_layers",
            &["L2", "R-22"],
            vec![vec![file("a", "1")], vec![hardlink("b", "a")], vec![hardlink("c", "b").mode(0o600)]],
            vec![("a", f("1").group("a").mode(0o600)), ("b", f("1").group("a")), ("c", f("1").group("a"))],
        ),
        case(
            "l02_link_over_layers_then_the_lower_name_is_replaced",
            &["L2"],
            vec![vec![file("a", "1")], vec![hardlink("b", "a")], vec![file("a", "3")]],
            vec![("a", f("3").alone()), ("b", f("1").alone())],
        ),
        case(
            "l03_spellings_of_the_target",
            &["L3"],
            vec![vec![
                dir("d/"),
                file("f", "1"),
                hardlink("d/a", "/f"),
                hardlink("d/b", "./f"),
                hardlink("d/c", "../f"),
                hardlink("d/e", "d/..//f"),
            ]],
            vec![
                ("d", d()),
                ("d/a", f("1").group("d/a")),
                ("d/b", f("1").group("d/a")),
                ("d/c", f("1").group("d/a")),
                ("d/e", f("1").group("d/a")),
                ("f", f("1").group("d/a")),
            ],
        ),
        refused(
            "l03_strict_refuses_a_target_above_the_root",
            &["L3", "R-5"],
            vec![vec![file("f", ""), hardlink("h", "../f")]],
        )
        .strict(),
        case(
            "l04_target_is_a_symlink",
            &["L4", "R-23"],
            vec![vec![
                file("x", "").mode(0o600).mtime(5),
                symlink("sl", "x").mtime(6),
                hardlink("h", "sl").mode(0o4777).owner(7, 8).mtime(9),
            ]],
            vec![
                ("h", l("x").group("h").owner(0, 0).mtime(6)),
                ("sl", l("x").group("h").owner(0, 0).mtime(6)),
                ("x", f("").alone().mode(0o600).mtime(5)),
            ],
        ),
        case(
            "l04_target_is_a_lower_symlink",
            &["L4", "L2"],
            vec![vec![symlink("sl", "/etc/x").mtime(6)], vec![hardlink("h", "sl").owner(7, 8)]],
            vec![("h", l("/etc/x").group("h").owner(0, 0).mtime(6)), ("sl", l("/etc/x").group("h"))],
        ),
        case(
            "l05_targets_parent_is_a_symlink",
            &["L5"],
            vec![vec![dir("r/"), file("r/x", "1"), symlink("l", "/r"), hardlink("h", "l/x")]],
            vec![("h", f("1").group("h")), ("l", l("/r")), ("r", d()), ("r/x", f("1").group("h"))],
        ),
        case(
            "l05_targets_parent_leaves_the_root",
            &["L5"],
            vec![vec![file("r/x", "1"), symlink("d/l", "../../../r"), hardlink("h", "d/l/x")]],
            vec![
                ("d", d()),
                ("d/l", l("../../../r")),
                ("h", f("1").group("h")),
                ("r", d()),
                ("r/x", f("1").group("h")),
            ],
        ),
        case(
            "l06_forward_reference",
            &["L6"],
            vec![vec![hardlink("h", "f").mode(0o600), file("f", "1").mode(0o644)]],
            vec![("f", f("1").group("f").mode(0o600)), ("h", f("1").group("f"))],
        ),
        case(
            "l06_forward_reference_looks_at_lower_layers_first",
            &["L6", "L2"],
            vec![vec![file("f", "old")], vec![hardlink("h", "f"), file("f", "new")]],
            vec![("f", f("new").alone()), ("h", f("old").alone())],
        ),
        case(
            "l06_forward_reference_makes_its_parents_at_once",
            &["L6", "D1"],
            vec![vec![hardlink("d/h", "f").mtime(5), file("d/x", "").mtime(7), file("f", "1")]],
            vec![("d", d().implied(5)), ("d/h", f("1").group("d/h")), ("d/x", f("")), ("f", f("1").group("d/h"))],
        ),
        case(
            "l06_late_link_replaces_what_came_meanwhile",
            &["L6"],
            vec![vec![hardlink("h", "f"), file("h", "2"), file("f", "1")]],
            vec![("f", f("1").group("f")), ("h", f("1").group("f"))],
        ),
        case(
            "l06_late_links_in_archive_order",
            &["L6"],
            vec![vec![hardlink("b", "c"), hardlink("a", "b"), file("c", "1")]],
            vec![("a", f("1").group("a")), ("b", f("1").group("a")), ("c", f("1").group("a"))],
        ),
        refused(
            "l06_late_link_to_a_later_late_link",
            &["L6"],
            vec![vec![hardlink("a", "b"), hardlink("b", "c"), file("c", "1")]],
        ),
        case(
            "l06_link_to_itself",
            &["L6"],
            vec![vec![file("f", "1").mode(0o644), hardlink("f", "f").mode(0o600)]],
            vec![("f", f("1").alone().mode(0o600))],
        ),
        case(
            "l06_lower_file_linked_to_itself",
            &["L6", "L2"],
            vec![
                vec![file("f", "1").mode(0o644).xattr("user.k", "v")],
                vec![hardlink("f", "./f").mode(0o600).mtime(9)],
            ],
            vec![("f", f("1").alone().mode(0o600).mtime(9).xattr("user.k", "v"))],
        ),
        case(
            "l06_link_between_names_of_one_inode",
            &["L6"],
            vec![vec![file("a", "1"), hardlink("b", "a"), hardlink("a", "b")]],
            vec![("a", f("1").group("a")), ("b", f("1").group("a"))],
        ),
        refused("l06_link_to_itself_without_a_file", &["L6"], vec![vec![hardlink("f", "f")]]),
        refused("l06_target_missing", &["L6"], vec![vec![file("k", ""), hardlink("h", "nope/x")]]),
        case(
            "l07_target_replaced_later",
            &["L7", "L8", "R-6"],
            vec![vec![file("f", "one"), hardlink("h", "f"), file("f", "two")]],
            vec![("f", f("two").alone()), ("h", f("one").alone())],
        ),
        case(
            "l07_target_replaced_by_a_directory_and_by_a_symlink",
            &["L7", "L14"],
            vec![vec![
                file("f", "one"),
                hardlink("h", "f"),
                dir("f/"),
                file("g", "two"),
                hardlink("i", "g"),
                symlink("g", "/outside"),
            ]],
            vec![("f", d()), ("g", l("/outside")), ("h", f("one").alone()), ("i", f("two").alone())],
        ),
        case(
            "l09_link_header_changes_the_inode",
            &["L9", "R-7", "R-23"],
            vec![vec![
                file("f", "").mode(0o644).xattr("user.a", "1").xattr("user.b", "1"),
                hardlink("h", "f").mode(0o4600).owner(7, 8).mtime(9).xattr("user.b", "2").xattr("user.c", "2"),
            ]],
            vec![
                (
                    "f",
                    f("")
                        .mode(0o4600)
                        .owner(7, 8)
                        .mtime(9)
                        .xattr("user.a", "1")
                        .xattr("user.b", "2")
                        .xattr("user.c", "2"),
                ),
                ("h", f("").group("f")),
            ],
        ),
        case(
            "l09_capability_stays_when_the_link_does_not_repeat_it",
            &["L9", "R-23", "M1"],
            vec![
                vec![file("f", "").owner(5, 5).xattr("security.capability", CAPABILITY)],
                vec![hardlink("h", "f").owner(6, 6)],
            ],
            vec![
                ("f", f("").group("f").owner(6, 6).xattr("security.capability", CAPABILITY)),
                ("h", f("").group("f").xattr("security.capability", CAPABILITY)),
            ],
        ),
        refused("l11_link_to_a_directory", &["L11"], vec![vec![dir("d/"), hardlink("h", "d")]]),
        refused("l11_link_to_a_lower_directory", &["L11"], vec![vec![dir("d/")], vec![hardlink("h", "d")]]),
        refused("l11_link_to_the_root", &["L11"], vec![vec![hardlink("h", "/")]]),
        refused("l11_late_link_to_a_directory", &["L11", "L6"], vec![vec![hardlink("h", "d"), dir("d/")]]),
        case(
            "l12_chain_of_links",
            &["L12"],
            vec![vec![file("a", "1"), hardlink("b", "a"), hardlink("c", "b"), hardlink("d", "c")]],
            vec![
                ("a", f("1").group("a")),
                ("b", f("1").group("a")),
                ("c", f("1").group("a")),
                ("d", f("1").group("a")),
            ],
        ),
        case(
            "l13_link_to_device_and_fifo",
            &["L13"],
            vec![vec![chr("c", 1, 3), fifo("p")], vec![hardlink("c2", "c").mode(0o600), hardlink("p2", "p")]],
            vec![
                ("c", Want::new(Kind::Char(1, 3)).group("c").mode(0o600)),
                ("c2", Want::new(Kind::Char(1, 3)).group("c")),
                ("p", Want::new(Kind::Fifo).group("p")),
                ("p2", Want::new(Kind::Fifo).group("p")),
            ],
        ),
        refused(
            "l13_target_is_whited_out",
            &["L13", "X11"],
            vec![vec![file("f", "")], vec![whiteout("", "f"), hardlink("h", "f")]],
        ),
        refused(
            "l13_target_is_whited_out_later",
            &["L13", "X11", "R-24"],
            vec![vec![file("f", "")], vec![hardlink("h", "f"), whiteout("", "f")]],
        ),
        refused(
            "x11_target_hidden_by_an_opaque_marker",
            &["X11"],
            vec![vec![file("d/f", "")], vec![hardlink("d/h", "d/f"), opaque("d")]],
        ),
        case(
            "x11_target_hidden_and_made_again",
            &["X11", "L6"],
            vec![vec![file("f", "old")], vec![whiteout("", "f"), hardlink("h", "f"), file("f", "new")]],
            vec![("f", f("new").group("f")), ("h", f("new").group("f"))],
        ),
        refused(
            "l06_link_over_the_directory_of_its_target",
            &["L6"],
            vec![vec![file("d/f", ""), hardlink("d", "d/f")]],
        ),
        refused("s10_link_whose_parent_is_its_target", &["S10"], vec![vec![file("f", ""), hardlink("f/h", "f")]]),
        case(
            "l14_target_replaced_by_a_symlink_out_of_the_root",
            &["L14"],
            vec![
                vec![file("f", "1").mode(0o644), hardlink("h", "f"), symlink("f", "/../../victim")],
                vec![hardlink("g", "f").mode(0o4777).owner(7, 8), hardlink("h", "f"), file("f/x", "2").mtime(77)],
            ],
            vec![
                ("f", l("/../../victim").group("f").owner(0, 0)),
                ("g", l("/../../victim").group("f")),
                ("h", l("/../../victim").group("f")),
                ("victim", d().implied(77)),
                ("victim/x", f("2")),
            ],
        ),
        case(
            "l06_link_over_an_implied_directory_that_is_a_symlink_below",
            &["L6", "S6"],
            vec![vec![dir("r/"), symlink("d", "r")], vec![file("d/f", "1"), hardlink("d", "d/f")]],
            vec![("r", d()), ("r/f", f("1").group("d")), ("d", f("1").group("d"))],
        ),
        case(
            "l01_link_replaces_a_directory",
            &["L1"],
            vec![vec![file("f", "1"), dir("d/"), file("d/x", "")], vec![hardlink("d", "f")]],
            vec![("d", f("1").group("d")), ("f", f("1").group("d"))],
        ),
        case(
            "l05_link_replaces_the_symlink_its_target_is_reached_through",
            &["L5", "L6"],
            vec![vec![file("r/f", "1"), symlink("s", "r"), hardlink("s", "s/f")]],
            vec![("r", d()), ("r/f", f("1").group("r/f")), ("s", f("1").group("r/f"))],
        ),
    ]
}

/// A version 2 capability set: `cap_net_bind_service=ep`.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
