//! Names below a symlink of a lower layer (S6, W17, R-3, R-24): the image of a distribution with a merged `/usr`.

use super::{Case, Want, case, d, f, l, refused};
use crate::entry::{EntrySpec, dir, file, hardlink, opaque, symlink, whiteout};

/// `usr/lib` with metadata of its own, `lib -> usr/lib`.
fn merged() -> Vec<EntrySpec> {
    vec![
        dir("usr/"),
        dir("usr/lib/").mode(0o750).owner(5, 6).mtime(5),
        file("usr/lib/libc", "libc"),
        file("usr/lib/y", "y"),
        symlink("lib", "usr/lib"),
    ]
}

/// What stays of it in every case that leaves `libc` alone.
fn base(lib: Want) -> Vec<(&'static str, Want)> {
    vec![("usr", d()), ("usr/lib", d().mode(0o750).owner(5, 6).mtime(5)), ("usr/lib/libc", f("libc")), ("lib", lib)]
}

fn with(mut tree: Vec<(&'static str, Want)>, more: Vec<(&'static str, Want)>) -> Vec<(&'static str, Want)> {
    tree.extend(more);
    tree
}

pub(super) fn cases() -> Vec<Case> {
    let kept = || base(l("usr/lib"));
    let y = || ("usr/lib/y", f("y"));
    vec![
        case(
            "s06_file_through_a_lower_symlink",
            &["S6", "R-3", "D1"],
            vec![merged(), vec![file("lib/x", "x")]],
            with(kept(), vec![y(), ("usr/lib/x", f("x"))]),
        ),
        case(
            "s06_file_through_a_lower_symlink_shadowed",
            &["S6", "R-3"],
            vec![merged(), vec![file("lib/x", "x").mtime(77)]],
            with(base(d().implied(77)), vec![y(), ("lib/x", f("x"))]),
        )
        .shadow(),
        case(
            "s06_file_replaces_one_through_a_lower_symlink",
            &["S6"],
            vec![merged(), vec![file("lib/y", "new")]],
            with(kept(), vec![("usr/lib/y", f("new"))]),
        ),
        case(
            "s06_directories_through_a_lower_symlink",
            &["S6", "D2"],
            vec![merged(), vec![dir("lib/m/k/").mode(0o700), file("lib/m/k/x", "x"), file("lib/i/x", "x").mtime(77)]],
            with(
                kept(),
                vec![
                    y(),
                    ("usr/lib/i", d().implied(77)),
                    ("usr/lib/i/x", f("x")),
                    ("usr/lib/m", d()),
                    ("usr/lib/m/k", d().mode(0o700)),
                    ("usr/lib/m/k/x", f("x")),
                ],
            ),
        ),
        case(
            "s06_absolute_lower_symlink",
            &["S6", "S3"],
            vec![vec![dir("run/"), symlink("var/run", "/run")], vec![file("var/run/x", "x")]],
            vec![("run", d()), ("run/x", f("x")), ("var", d()), ("var/run", l("/run"))],
        ),
        case(
            "s06_dangling_lower_symlink",
            &["S6", "S4"],
            vec![vec![symlink("lib", "usr/lib")], vec![file("lib/x", "x").mtime(77)]],
            vec![("lib", l("usr/lib")), ("usr", d().implied(77)), ("usr/lib", d().implied(77)), ("usr/lib/x", f("x"))],
        ),
        case(
            "s06_two_lower_symlinks_in_a_row",
            &["S6"],
            vec![merged(), vec![symlink("lib64", "lib")], vec![file("lib64/x", "x")]],
            with(kept(), vec![y(), ("lib64", l("lib")), ("usr/lib/x", f("x"))]),
        ),
        case(
            "s06_lower_symlink_retargeted_in_the_middle_of_the_layer",
            &["S6", "S13"],
            vec![merged(), vec![file("lib/x", "1"), symlink("lib", "usr/lib2"), file("lib/x", "2")]],
            with(base(l("usr/lib2")), vec![y(), ("usr/lib/x", f("1")), ("usr/lib2", d()), ("usr/lib2/x", f("2"))]),
        ),
        case(
            "s06_lower_directory_becomes_a_symlink_and_is_written_through",
            &["S6", "X10"],
            vec![
                vec![dir("lib/"), file("lib/old", ""), dir("usr/lib/")],
                vec![symlink("lib", "usr/lib")],
                vec![file("lib/x", "x")],
            ],
            vec![("lib", l("usr/lib")), ("usr", d()), ("usr/lib", d()), ("usr/lib/x", f("x"))],
        ),
        case(
            "s06_own_symlink_is_followed_under_shadow",
            &["S6", "S2"],
            vec![merged(), vec![symlink("lib2", "usr/lib"), file("lib2/x", "x")]],
            with(kept(), vec![y(), ("lib2", l("usr/lib")), ("usr/lib/x", f("x"))]),
        )
        .shadow(),
        case(
            "s06_sequence_entry_through_the_symlink_then_a_directory_entry",
            &["S6", "S7", "R-24"],
            vec![merged(), vec![file("lib/x", "x"), dir("lib/").mode(0o711)]],
            with(base(d().mode(0o711)), vec![y(), ("usr/lib/x", f("x"))]),
        ),
        case(
            "s06_directory_entry_then_child",
            &["S6", "S7"],
            vec![merged(), vec![dir("lib/").mode(0o711), file("lib/x", "x")]],
            with(base(d().mode(0o711)), vec![y(), ("lib/x", f("x"))]),
        ),
        case(
            "s06_whiteout_of_the_symlink_then_child",
            &["S6", "R-24", "W5"],
            vec![merged(), vec![whiteout("", "lib"), file("lib/x", "x").mtime(77)]],
            with(base(d().implied(77)), vec![y(), ("lib/x", f("x"))]),
        ),
        case(
            "s06_child_then_whiteout_of_the_symlink",
            &["S6", "R-24"],
            vec![merged(), vec![file("lib/x", "x").mtime(77), whiteout("", "lib")]],
            with(base(d().implied(77)), vec![y(), ("lib/x", f("x"))]),
        ),
        case(
            "s06_hard_link_through_a_lower_symlink",
            &["S6", "L5", "L2"],
            vec![merged(), vec![hardlink("lib/h", "lib/y"), hardlink("g", "usr/lib/y")]],
            with(
                kept(),
                vec![("usr/lib/y", f("y").group("g")), ("usr/lib/h", f("y").group("g")), ("g", f("y").group("g"))],
            ),
        ),
        refused(
            "s06_link_target_through_a_lower_symlink_is_missing_under_shadow",
            &["S6", "L5"],
            vec![merged(), vec![hardlink("g", "lib/y")]],
        )
        .shadow(),
        case(
            "s06_link_group_of_this_layer_through_a_lower_symlink",
            &["S6", "L1"],
            vec![merged(), vec![file("lib/a", "a"), hardlink("usr/lib/b", "lib/a"), hardlink("c", "usr/lib/a")]],
            with(
                kept(),
                vec![y(), ("usr/lib/a", f("a").group("c")), ("usr/lib/b", f("a").group("c")), ("c", f("a").group("c"))],
            ),
        ),
        case(
            "s06_same_place_written_by_both_names",
            &["S6", "R-6"],
            vec![
                merged(),
                vec![file("usr/lib/x", "1"), file("lib/x", "2"), file("lib/z", "3"), file("usr/lib/z", "4")],
            ],
            with(kept(), vec![y(), ("usr/lib/x", f("2")), ("usr/lib/z", f("4"))]),
        ),
        case(
            "s06_directory_entry_through_the_symlink_describes_its_target",
            &["S6", "D5"],
            vec![
                merged(),
                vec![dir("lib/./"), file("k", "")],
                vec![symlink("bin", "usr"), dir("bin/lib/").mode(0o511).mtime(9)],
            ],
            vec![
                ("usr", d()),
                ("usr/lib", d().mode(0o511).mtime(9).owner(0, 0)),
                ("usr/lib/libc", f("libc")),
                ("usr/lib/y", f("y")),
                ("lib", d()),
                ("bin", l("usr")),
                ("k", f("")),
            ],
        ),
        case(
            "w17_whiteout_through_a_lower_symlink",
            &["W17", "R-3"],
            vec![merged(), vec![whiteout("lib", "y")]],
            kept(),
        ),
        case(
            "w17_whiteout_through_a_lower_symlink_shadowed",
            &["W17", "R-3"],
            vec![merged(), vec![whiteout("lib", "y")]],
            with(kept(), vec![y()]),
        )
        .shadow(),
        case(
            "w17_whiteout_below_a_directory_the_layer_describes",
            &["W17", "R-24"],
            vec![merged(), vec![whiteout("lib", "y"), dir("lib/"), file("lib/x", "")]],
            with(base(d()), vec![y(), ("lib/x", f(""))]),
        ),
        case(
            "w17_opaque_through_a_lower_symlink",
            &["W17", "R-3"],
            vec![merged(), vec![opaque("lib"), file("lib/x", "x")]],
            vec![
                ("usr", d()),
                ("usr/lib", d().mode(0o750).owner(5, 6).mtime(5)),
                ("usr/lib/x", f("x")),
                ("lib", l("usr/lib")),
            ],
        ),
        case(
            "w17_opaque_of_a_directory_that_replaces_the_symlink",
            &["W17", "R-24"],
            vec![merged(), vec![dir("lib/"), opaque("lib"), file("lib/x", "x")]],
            with(base(d()), vec![y(), ("lib/x", f("x"))]),
        ),
        case(
            "w17_marker_stands_before_the_directory_entry",
            &["W17", "R-24"],
            vec![merged(), vec![opaque("lib"), dir("lib/"), file("lib/x", "x")]],
            with(base(d()), vec![y(), ("lib/x", f("x"))]),
        ),
        case(
            "w17_opaque_through_a_lower_symlink_shadowed",
            &["W17", "R-3"],
            vec![merged(), vec![opaque("lib"), file("lib/x", "x")]],
            with(base(d()), vec![y(), ("lib/x", f("x"))]),
        )
        .shadow(),
        case(
            "w17_whiteout_deep_through_a_lower_symlink",
            &["W17"],
            vec![
                vec![file("usr/lib/m/a", ""), file("usr/lib/m/b", ""), symlink("lib", "usr/lib")],
                vec![whiteout("lib/m", "a")],
            ],
            vec![("usr", d()), ("usr/lib", d()), ("usr/lib/m", d()), ("usr/lib/m/b", f("")), ("lib", l("usr/lib"))],
        ),
        case(
            "w17_described_by_its_resolved_path",
            &["W17", "R-24"],
            vec![merged(), vec![dir("usr/lib/").mode(0o700), whiteout("lib", "y")]],
            vec![("usr", d()), ("usr/lib", d().mode(0o700)), ("usr/lib/libc", f("libc")), ("lib", l("usr/lib"))],
        ),
        case(
            "w17_whiteout_of_the_lower_target_and_an_entry_through_the_symlink",
            &["W17", "R-24", "W5"],
            vec![merged(), vec![file("lib/x", "x").mtime(77), whiteout("usr", "lib")]],
            vec![("usr", d()), ("usr/lib", d().implied(77)), ("usr/lib/x", f("x")), ("lib", l("usr/lib"))],
        ),
        case(
            "s06_later_layer_replaces_what_went_through_the_symlink",
            &["S6", "X2"],
            vec![merged(), vec![file("lib/x", "2")], vec![file("usr/lib/x", "3")]],
            with(kept(), vec![y(), ("usr/lib/x", f("3"))]),
        ),
        case(
            "s06_later_layer_deletes_what_went_through_the_symlink",
            &["S6", "X2"],
            vec![
                merged(),
                vec![file("lib/x", "2"), file("lib/z", "2")],
                vec![whiteout("usr/lib", "x"), whiteout("lib", "z")],
            ],
            with(kept(), vec![y()]),
        ),
        case(
            "s06_later_layer_links_what_went_through_the_symlink",
            &["S6", "L2", "X2"],
            vec![merged(), vec![file("lib/x", "2").mode(0o600)], vec![hardlink("g", "usr/lib/x").mode(0o640)]],
            with(kept(), vec![y(), ("usr/lib/x", f("2").group("g").mode(0o640)), ("g", f("2").group("g"))]),
        ),
        case(
            "s06_later_layer_makes_the_symlink_a_directory",
            &["S6", "S7", "X2"],
            vec![merged(), vec![file("lib/x", "2")], vec![dir("lib/"), file("lib/z", "3")]],
            with(base(d()), vec![y(), ("usr/lib/x", f("2")), ("lib/z", f("3"))]),
        ),
        case(
            "s06_later_layer_hides_the_target_directory",
            &["S6", "X2"],
            vec![merged(), vec![file("lib/x", "2")], vec![whiteout("", "usr")]],
            vec![("lib", l("usr/lib"))],
        ),
        case(
            "s06_later_layer_makes_the_target_opaque",
            &["S6", "W7", "X2"],
            vec![merged(), vec![file("lib/x", "2")], vec![dir("usr/lib/"), opaque("usr/lib"), file("lib/z", "3")]],
            vec![("usr", d()), ("usr/lib", d().mode(0o755)), ("usr/lib/z", f("3")), ("lib", l("usr/lib"))],
        ),
        case(
            "s06_later_layer_adds_beside_it_through_the_symlink",
            &["S6", "X2"],
            vec![
                merged(),
                vec![file("lib/x", "2")],
                vec![file("lib/x", "3"), file("lib/z", "3")],
                vec![file("usr/lib/z", "4")],
            ],
            with(kept(), vec![y(), ("usr/lib/x", f("3")), ("usr/lib/z", f("4"))]),
        ),
    ]
}
