//! Opaque markers (W7–W9, R-24, R-25, X8) and section O.

use super::{Case, case, d, f, l, nothing};
use crate::entry::{chr, dir, file, hardlink, opaque, symlink, whiteout};
use crate::model::Options;

pub(super) fn cases() -> Vec<Case> {
    let lower = || {
        vec![dir("d/").mode(0o700).owner(5, 6).mtime(5), file("d/old", ""), dir("d/s/").mode(0o711), file("d/s/o2", "")]
    };
    let new = || vec![("d", d()), ("d/new", f("")), ("d/s", d().mode(0o755)), ("d/s/n2", f(""))];
    vec![
        case(
            "w07_opaque_last",
            &["W7"],
            vec![lower(), vec![dir("d/"), file("d/new", ""), dir("d/s/"), file("d/s/n2", ""), opaque("d")]],
            new(),
        ),
        case(
            "w07_opaque_first",
            &["W7"],
            vec![lower(), vec![opaque("d"), dir("d/"), file("d/new", ""), dir("d/s/"), file("d/s/n2", "")]],
            new(),
        ),
        case(
            "w07_opaque_between",
            &["W7"],
            vec![lower(), vec![dir("d/"), file("d/new", ""), opaque("d"), dir("d/s/"), file("d/s/n2", "")]],
            new(),
        ),
        case(
            "w07_opaque_below_an_implied_directory_keeps_nothing_of_the_lower_one",
            &["W7", "R-24", "X3"],
            vec![lower(), vec![opaque("d"), file("d/s/n", "").mtime(77)]],
            vec![("d", d().mode(0o700).owner(5, 6).mtime(5)), ("d/s", d().implied(77)), ("d/s/n", f(""))],
        ),
        case(
            "w07_opaque_after_the_implied_directory",
            &["W7", "R-24"],
            vec![lower(), vec![file("d/s/n", "").mtime(77), opaque("d")]],
            vec![("d", d().mode(0o700).owner(5, 6).mtime(5)), ("d/s", d().implied(77)), ("d/s/n", f(""))],
        ),
        case(
            "w07_opaque_alone_keeps_the_directory",
            &["W7", "D1", "X1"],
            vec![lower(), vec![opaque("d")]],
            vec![("d", d().mode(0o700).owner(5, 6).mtime(5))],
        ),
        case(
            "w07_opaque_in_a_subdirectory",
            &["W7"],
            vec![lower(), vec![dir("d/s/"), opaque("d/s"), file("d/s/n2", "")]],
            vec![("d", d().mode(0o700)), ("d/old", f("")), ("d/s", d().mode(0o755)), ("d/s/n2", f(""))],
        ),
        case(
            "w08_opaque_root",
            &["W8"],
            vec![vec![file("a", ""), file("d/b", "")], vec![opaque(""), file("n", "")]],
            vec![("n", f(""))],
        ),
        case(
            "w08_opaque_root_last",
            &["W8"],
            vec![vec![file("a", ""), dir("d/"), file("d/b", "")], vec![file("d/n", "").mtime(77), opaque("")]],
            vec![("d", d().implied(77)), ("d/n", f(""))],
        ),
        case("w08_opaque_root_of_an_empty_layer", &["W8"], vec![vec![file("a", "")], vec![opaque("./")]], nothing()),
        case(
            "w08_opaque_root_in_the_middle",
            &["W8", "O8"],
            vec![vec![file("a", "1"), file("b", "1")], vec![opaque(""), file("c", "2")], vec![file("b", "3")]],
            vec![("b", f("3")), ("c", f("2"))],
        ),
        case("w08_opaque_root_of_the_bottom_layer", &["W8"], vec![vec![file("a", ""), opaque("")]], vec![("a", f(""))]),
        case(
            "w09_whiteout_in_an_opaque_directory",
            &["W9"],
            vec![lower(), vec![dir("d/"), whiteout("d", "old"), opaque("d"), file("d/n", "")]],
            vec![("d", d()), ("d/n", f(""))],
        ),
        case(
            "w09_whiteout_in_an_opaque_directory_after_the_marker",
            &["W9"],
            vec![lower(), vec![dir("d/"), opaque("d"), whiteout("d", "old"), whiteout("d/s", "o2"), file("d/n", "")]],
            vec![("d", d()), ("d/n", f(""))],
        ),
        case(
            "w09_whiteout_deep_in_an_opaque_directory",
            &["W9"],
            vec![lower(), vec![whiteout("d/s", "o2"), dir("d/s/"), opaque("d")]],
            vec![("d", d().mode(0o700)), ("d/s", d().mode(0o755))],
        ),
        case(
            "w09_whiteout_and_opaque_of_one_directory",
            &["W9", "W4"],
            vec![lower(), vec![whiteout("", "d"), opaque("d"), file("d/n", "").mtime(77)]],
            vec![("d", d().implied(77)), ("d/n", f(""))],
        ),
        case(
            "r25_opaque_below_a_lower_file",
            &["R-25", "W19"],
            vec![vec![file("a", "file")], vec![opaque("a")]],
            vec![("a", f("file"))],
        ),
        case(
            "r25_opaque_of_a_directory_nobody_has",
            &["R-25"],
            vec![vec![file("k", "")], vec![opaque("x/y")]],
            vec![("k", f(""))],
        ),
        case(
            "o01_trusted_overlay_xattrs_are_dropped",
            &["O1", "R-9"],
            vec![
                vec![dir("d/"), file("d/old", ""), dir("secret/"), file("secret/s", "")],
                vec![
                    dir("d/").xattr("trusted.overlay.opaque", "y").xattr("user.k", "v"),
                    dir("alias/").xattr("trusted.overlay.redirect", "/secret"),
                    file("m", "")
                        .mode(0o4755)
                        .xattr("trusted.overlay.metacopy", "")
                        .xattr("trusted.overlay.overlay.opaque", "y"),
                ],
            ],
            vec![
                ("d", d().xattr("user.k", "v")),
                ("d/old", f("")),
                ("secret", d()),
                ("secret/s", f("")),
                ("alias", d().no_xattrs()),
                ("m", f("").mode(0o4755).no_xattrs()),
            ],
        ),
        case(
            "o02_user_overlay_xattrs_are_dropped_where_the_mount_reads_them",
            &["O2", "R-10"],
            vec![
                vec![dir("d/"), file("d/old", "")],
                vec![dir("d/").xattr("user.overlay.opaque", "y").xattr("user.overlaid", "v")],
            ],
            vec![("d", d().xattr("user.overlaid", "v")), ("d/old", f(""))],
        )
        .with(Options { userxattr: true, ..Options::default() }),
        case(
            "o04_opaque_over_this_layers_own_file",
            &["O4"],
            vec![vec![file("k", "")], vec![file("x", ""), opaque("x").mtime(77)]],
            vec![("k", f("")), ("x", d().implied(77))],
        ),
        case(
            "o04_opaque_before_this_layers_own_file",
            &["O4"],
            vec![vec![dir("x/"), file("x/old", "")], vec![opaque("x"), file("x", "file")]],
            vec![("x", f("file"))],
        ),
        case(
            "o04_opaque_over_this_layers_own_symlink",
            &["O4"],
            vec![vec![dir("r/"), file("r/old", "")], vec![symlink("x", "r"), opaque("x")]],
            vec![("r", d()), ("r/old", f("")), ("x", l("r"))],
        ),
        case(
            "o04_opaque_over_this_layers_own_hard_link",
            &["O4"],
            vec![vec![file("a", "1")], vec![hardlink("x", "a"), opaque("x").mtime(77)]],
            vec![("a", f("1").alone()), ("x", d().implied(77))],
        ),
        case(
            "o05_directory_over_file_over_directory",
            &["O5"],
            vec![
                vec![dir("d/"), file("d/x", "1")],
                vec![file("d", "2")],
                vec![dir("d/").mode(0o711), file("d/y", "3")],
            ],
            vec![("d", d().mode(0o711)), ("d/y", f("3"))],
        ),
        case(
            "o05_symlink_over_directory_over_symlink",
            &["O5", "S7"],
            vec![
                vec![dir("r/"), file("r/x", "1"), symlink("d", "r")],
                vec![dir("d/"), file("d/y", "2")],
                vec![symlink("d", "r")],
            ],
            vec![("r", d()), ("r/x", f("1")), ("d", l("r"))],
        ),
        case(
            "o05_file_over_symlink_over_file",
            &["O5"],
            vec![vec![file("d", "1"), file("t", "t")], vec![symlink("d", "t")], vec![file("d", "3")]],
            vec![("d", f("3").alone()), ("t", f("t"))],
        ),
        case(
            "o08_last_layer_is_on_top",
            &["O8"],
            vec![vec![file("a", "1"), file("b", "1")], vec![file("a", "2"), file("b", "2")], vec![file("a", "3")]],
            vec![("a", f("3")), ("b", f("2"))],
        ),
        case(
            "x08_opaque_marker_as_directory",
            &["X8", "W14"],
            vec![vec![dir("d/"), file("d/old", "")], vec![dir("d/"), dir("d/.wh..wh..opq/"), file("d/n", "")]],
            vec![("d", d()), ("d/n", f(""))],
        ),
        case(
            "x08_opaque_marker_with_a_trailing_slash_and_dots",
            &["X8", "X9"],
            vec![
                vec![dir("d/"), file("d/old", ""), dir("e/"), file("e/old", ""), dir("g/"), file("g/old", "")],
                vec![
                    file("./d/./.wh..wh..opq/", ""),
                    symlink("e//.wh..wh..opq", "anywhere"),
                    hardlink("g/h/../.wh..wh..opq", "nowhere"),
                ],
            ],
            vec![("d", d()), ("e", d()), ("g", d())],
        ),
        case(
            "x08_opaque_marker_as_device",
            &["X8", "W14"],
            vec![vec![dir("d/"), file("d/old", "")], vec![chr("./d//.wh..wh..opq", 0, 0)]],
            vec![("d", d())],
        ),
    ]
}
