//! Whole stacks: repeated layers, empty layers, and what later layers do to what a fix-up placed (X2, X3, X11).

use super::{Case, case, d, f, l, nothing};
use crate::entry::{EntrySpec, dir, file, hardlink, opaque, symlink, whiteout};

pub(super) fn cases() -> Vec<Case> {
    let a = || vec![file("a", "A"), file("shared", "A"), dir("d/").mode(0o700), file("d/a", "A")];
    let b = || vec![file("b", "B"), file("shared", "B"), whiteout("", "a"), file("d/b", "B")];
    let c = || vec![file("c", "C"), dir("d/").mode(0o711)];
    let usr = || -> Vec<EntrySpec> { vec![dir("usr/lib/").mtime(5), symlink("lib", "usr/lib")] };
    vec![
        case("i19_no_layers", &["I19", "R-21"], vec![], nothing()),
        case("t31_empty_layers", &["T31"], vec![vec![], vec![file("a", "1")], vec![], vec![]], vec![("a", f("1"))]),
        case(
            "n05_layer_repeated_above_another",
            &["N5", "X2"],
            vec![c(), a(), b(), a()],
            vec![
                ("a", f("A")),
                ("b", f("B")),
                ("c", f("C")),
                ("d", d().mode(0o700)),
                ("d/a", f("A")),
                ("d/b", f("B")),
                ("shared", f("A")),
            ],
        ),
        case(
            "n05_layer_repeated_at_once",
            &["N5"],
            vec![a(), a(), b(), b()],
            vec![("b", f("B")), ("d", d().mode(0o700)), ("d/a", f("A")), ("d/b", f("B")), ("shared", f("B"))],
        ),
        case(
            "n05_repeated_layer_of_whiteouts",
            &["N5"],
            vec![
                vec![file("a", "1")],
                vec![whiteout("", "a")],
                vec![file("a", "2"), file("k", "")],
                vec![whiteout("", "a")],
            ],
            vec![("k", f(""))],
        ),
        case(
            "n05_repeated_opaque_layer",
            &["N5", "W7"],
            vec![
                vec![dir("d/"), opaque("d"), file("d/x", "1")],
                vec![file("d/y", "2"), file("d/x", "2")],
                vec![dir("d/"), opaque("d"), file("d/x", "1")],
            ],
            vec![("d", d()), ("d/x", f("1"))],
        ),
        case(
            "n05_repeated_layer_with_a_link_into_what_lies_below",
            &["N5", "X2", "L2"],
            vec![vec![file("f", "1")], vec![hardlink("g", "f")], vec![file("f", "2")], vec![hardlink("g", "f")]],
            vec![("f", f("2").group("f")), ("g", f("2").group("f"))],
        ),
        case(
            "n05_repeated_layer_through_a_symlink_that_moved",
            &["N5", "X2", "S6"],
            vec![usr(), vec![file("lib/x", "x")], vec![symlink("lib", "opt")], vec![file("lib/x", "x")]],
            vec![
                ("lib", l("opt")),
                ("opt", d()),
                ("opt/x", f("x")),
                ("usr", d()),
                ("usr/lib", d().mtime(5)),
                ("usr/lib/x", f("x")),
            ],
        ),
        case(
            "n05_repeated_layer_that_implies_a_directory",
            &["N5", "X2", "X3"],
            vec![
                vec![dir("d/").mode(0o700).owner(5, 6).mtime(5)],
                vec![file("d/x", "").mtime(77)],
                vec![dir("d/").mode(0o711).owner(7, 8).mtime(7)],
                vec![file("d/x", "").mtime(77)],
            ],
            vec![("d", d().mode(0o711).owner(7, 8).mtime(7)), ("d/x", f("").mtime(77))],
        ),
        case(
            "x02_same_layer_above_different_ones",
            &["X2", "X3"],
            vec![vec![file("d", "file")], vec![file("d/x", "").mtime(77)], vec![whiteout("d", "x")]],
            vec![("d", d().implied(77))],
        ),
        case(
            "l02_deleted_then_linked_elsewhere_then_deleted",
            &["L2", "X11"],
            vec![
                vec![file("f", "1")],
                vec![hardlink("g", "f"), hardlink("h", "f")],
                vec![whiteout("", "f")],
                vec![hardlink("i", "h").mode(0o600), whiteout("", "g")],
            ],
            vec![("h", f("1").group("h").mode(0o600)), ("i", f("1").group("h"))],
        ),
        case(
            "l02_link_made_by_a_fix_up_is_replaced_by_a_directory",
            &["L2", "X2"],
            vec![vec![file("f", "1")], vec![hardlink("g", "f").owner(5, 6)], vec![dir("g/"), file("g/x", "")]],
            vec![("f", f("1").alone().owner(5, 6)), ("g", d()), ("g/x", f(""))],
        ),
        case(
            "l02_link_through_a_symlink_then_metadata_from_a_later_link",
            &["L2", "S6", "R-7"],
            vec![
                usr(),
                vec![file("lib/x", "1").mode(0o600)],
                vec![hardlink("lib/y", "lib/x").mode(0o640).owner(5, 6)],
                vec![hardlink("z", "usr/lib/y").mode(0o4711)],
            ],
            vec![
                ("lib", l("usr/lib")),
                ("usr", d()),
                ("usr/lib", d().mtime(5)),
                ("usr/lib/x", f("1").group("usr/lib/x").mode(0o4711).owner(0, 0)),
                ("usr/lib/y", f("1").group("usr/lib/x")),
                ("z", f("1").group("usr/lib/x")),
            ],
        ),
        case(
            "s06_opaque_above_a_directory_made_through_a_symlink",
            &["S6", "W7"],
            vec![usr(), vec![file("lib/m/x", "1")], vec![opaque("lib/m")], vec![file("lib/m/y", "2")]],
            vec![
                ("lib", l("usr/lib")),
                ("usr", d()),
                ("usr/lib", d().mtime(5)),
                ("usr/lib/m", d()),
                ("usr/lib/m/y", f("2")),
            ],
        ),
        case(
            "s06_whiteout_and_remake_of_the_symlinks_target",
            &["S6", "W5", "R-24"],
            vec![usr(), vec![file("lib/x", "1")], vec![whiteout("usr", "lib"), file("lib/y", "2").mtime(77)]],
            vec![("lib", l("usr/lib")), ("usr", d()), ("usr/lib", d().implied(77)), ("usr/lib/y", f("2"))],
        ),
        case(
            "w08_opaque_root_over_everything",
            &["W8", "S6"],
            vec![usr(), vec![file("lib/x", "1")], vec![opaque(""), file("lib/y", "2").mtime(77)]],
            vec![("lib", d().implied(77)), ("lib/y", f("2"))],
        ),
        case(
            "o05_file_and_directory_take_turns",
            &["O5", "D1"],
            vec![
                vec![file("p", "1")],
                vec![file("p/q", "2").mtime(2)],
                vec![file("p", "3")],
                vec![file("p/r/s", "4").mtime(4)],
                vec![whiteout("p/r", "s")],
            ],
            vec![("p", d().implied(4)), ("p/r", d().implied(4))],
        ),
        case("i19_an_image_without_layers_is_an_empty_root", &["I19", "R-21"], vec![], nothing()),
    ]
}
