//! Section D: directories, the root, duplicates, implied parents.

use super::{Case, case, d, f, l, nothing, refused};
use crate::entry::{EntrySpec, blk, chr, dir, fifo, file, hardlink, opaque, symlink, whiteout};

pub(super) fn cases() -> Vec<Case> {
    let owned = || dir("d/").mode(0o700).owner(5, 6).mtime(5).xattr("user.k", "v");
    let kept = || d().mode(0o700).owner(5, 6).mtime(5).xattr("user.k", "v");
    let root = |entry: EntrySpec| vec![vec![entry, file("file", "")]];
    vec![
        case(
            "d01_directory_passed_through_keeps_its_metadata",
            &["D1", "R-19", "X3", "X4"],
            vec![vec![owned()], vec![file("d/sub/f", "").mtime(77)]],
            vec![("d", kept()), ("d/sub", d().implied(77)), ("d/sub/f", f(""))],
        ),
        case(
            "d01_parent_of_a_whiteout_keeps_its_metadata",
            &["D1", "X1"],
            vec![vec![owned(), file("d/f", "")], vec![whiteout("d", "f").mtime(77)]],
            vec![("d", kept())],
        ),
        case(
            "d01_opaque_directory_keeps_its_metadata",
            &["D1", "X1"],
            vec![vec![owned(), file("d/f", "")], vec![opaque("d").mtime(77)]],
            vec![("d", kept())],
        ),
        case(
            "d01_implied_directory_of_the_bottom_layer",
            &["D1", "R-19"],
            vec![vec![
                file("a/b/f", "").mtime(77).owner(5, 6).mode(0o600).xattr("user.k", "v"),
                file("a/g", "").mtime(78),
            ]],
            vec![("a", d().implied(77)), ("a/b", d().implied(77)), ("a/b/f", f("")), ("a/g", f(""))],
        ),
        case(
            "d01_implied_directory_gets_nanoseconds",
            &["D1", "R-19", "M8"],
            vec![vec![file("a/f", "").mtime_nanos(77, 5)]],
            vec![("a", d().mtime_nanos(77, 5)), ("a/f", f(""))],
        ),
        case(
            "d01_implied_directory_is_described_later",
            &["D1", "D5"],
            vec![vec![file("a/f", "").mtime(77), dir("a/").mode(0o711).owner(5, 6).mtime(78)]],
            vec![("a", d().mode(0o711).owner(5, 6).mtime(78)), ("a/f", f(""))],
        ),
        case(
            "d01_implied_directory_keeps_its_mtime_in_later_layers",
            &["D1", "R-19"],
            vec![vec![file("a/f", "").mtime(77)], vec![file("a/g", "").mtime(78)]],
            vec![("a", d().implied(77)), ("a/f", f("")), ("a/g", f(""))],
        ),
        case(
            "d01_metadata_from_the_middle_layer",
            &["D1", "X3"],
            vec![vec![owned()], vec![dir("d/").mode(0o711).owner(7, 8).mtime(7)], vec![file("d/f", "")]],
            vec![("d", d().mode(0o711).owner(7, 8).mtime(7).no_xattrs()), ("d/f", f(""))],
        ),
        case(
            "d01_metadata_from_three_layers_down",
            &["D1", "X3"],
            vec![vec![owned()], vec![file("k", "")], vec![file("d/e/f", "").mtime(77)], vec![file("d/e/g", "")]],
            vec![("d", kept()), ("d/e", d().implied(77)), ("d/e/f", f("")), ("d/e/g", f("")), ("k", f(""))],
        ),
        case(
            "d01_no_metadata_from_below_an_opaque_ancestor",
            &["D1", "X3"],
            vec![
                vec![dir("d/"), dir("d/s/").mode(0o700).owner(5, 6)],
                vec![dir("d/"), opaque("d")],
                vec![file("d/s/f", "").mtime(77)],
            ],
            vec![("d", d()), ("d/s", d().implied(77)), ("d/s/f", f(""))],
        ),
        case(
            "d01_no_metadata_from_below_a_whiteout_of_an_ancestor",
            &["D1", "X3", "W20"],
            vec![
                vec![dir("d/"), dir("d/s/").mode(0o700).owner(5, 6)],
                vec![whiteout("", "d")],
                vec![dir("d/")],
                vec![file("d/s/f", "").mtime(77)],
            ],
            vec![("d", d()), ("d/s", d().implied(77)), ("d/s/f", f(""))],
        ),
        case(
            "d02_implied_parents_of_a_directory_entry",
            &["D2"],
            vec![vec![file("k", "")], vec![dir("etc/dnf/").mode(0o700).mtime(77), file("etc/dnf/dnf.conf", "c")]],
            vec![
                ("etc", d().implied(77)),
                ("etc/dnf", d().mode(0o700).mtime(77)),
                ("etc/dnf/dnf.conf", f("c")),
                ("k", f("")),
            ],
        ),
        case(
            "d02_directory_entry_below_a_lower_directory",
            &["D2", "D1"],
            vec![vec![owned()], vec![dir("d/e/").mode(0o711)]],
            vec![("d", kept()), ("d/e", d().mode(0o711))],
        ),
        case(
            "d03_root_entry_is_not_applied",
            &["D3", "R-2"],
            vec![
                vec![dir("./").mode(0o700).owner(7, 8).xattr("user.k", "v"), file("a", "")],
                vec![dir("/").mode(0o750)],
            ],
            vec![("", d().mode(0o755).owner(0, 0).mtime(0).no_xattrs()), ("a", f(""))],
        ),
        case(
            "d03_root_entry_applied",
            &["D3", "R-2"],
            vec![
                vec![dir("./").mode(0o700).owner(7, 8).mtime(5).xattr("user.a", "1")],
                vec![dir("./").mode(0o750).owner(9, 9).mtime(6).xattr("user.b", "2")],
                vec![file("a", "")],
            ],
            vec![("", d().mode(0o750).owner(9, 9).mtime(6).xattr("user.b", "2")), ("a", f(""))],
        )
        .root_applied(),
        case(
            "d03_root_entry_applied_stays_under_an_opaque_root",
            &["D3", "R-2", "W8"],
            vec![vec![dir(".").mode(0o700).mtime(5), file("a", "")], vec![opaque("")]],
            vec![("", d().mode(0o700).mtime(5))],
        )
        .root_applied(),
        case(
            "d03_without_a_root_entry",
            &["D3", "R-2", "R-27"],
            vec![vec![file("a", "").mtime(99)]],
            vec![("", d().mode(0o755).owner(0, 0).mtime(0).no_xattrs()), ("a", f(""))],
        ),
        case(
            "d03_names_that_mean_the_root",
            &["D3"],
            vec![vec![dir("./"), dir("/"), dir("."), dir("a/..")]],
            nothing(),
        ),
        refused("d04_root_as_symlink", &["D4"], root(symlink(".", "/tmp/victim"))),
        refused("d04_root_as_file", &["D4"], root(file("./", "x"))),
        refused("d04_root_as_fifo", &["D4"], root(fifo("/"))),
        refused("d04_root_as_device", &["D4"], root(blk("/", 8, 1))),
        refused("d04_root_as_device_zero", &["D4", "W21"], root(chr("/", 0, 0))),
        refused("d04_root_as_hard_link_to_a_file", &["D4"], vec![vec![file("file", ""), hardlink(".", "file")]]),
        case("d04_root_as_hard_link_to_itself", &["D4"], root(hardlink("/", ".")), vec![("file", f(""))]),
        case(
            "d05_directory_over_directory_replaces_all_metadata",
            &["D5"],
            vec![
                vec![dir("d/").mode(0o700).owner(5, 6).mtime(5).xattr("user.a", "1"), file("d/x", "")],
                vec![dir("d/").mode(0o2755).owner(7, 8).mtime(7).xattr("user.b", "2")],
            ],
            vec![("d", d().mode(0o2755).owner(7, 8).mtime(7).xattr("user.b", "2")), ("d/x", f(""))],
        ),
        case(
            "d05_directory_over_directory_without_xattrs",
            &["D5"],
            vec![vec![dir("d/").xattr("user.a", "1")], vec![dir("d/")]],
            vec![("d", d().no_xattrs())],
        ),
        case(
            "d06_duplicate_file",
            &["D6", "R-6"],
            vec![vec![file("a", "1"), file("a", "22")]],
            vec![("a", f("22").alone())],
        ),
        case(
            "d06_duplicate_directory_keeps_its_children",
            &["D6", "R-6"],
            vec![vec![dir("d/").mode(0o700).xattr("user.a", "1"), file("d/x", ""), dir("./d").mode(0o755)]],
            vec![("d", d().mode(0o755).no_xattrs()), ("d/x", f(""))],
        ),
        case(
            "d06_file_then_directory_hides_the_lower_directory",
            &["D6", "R-6"],
            vec![
                vec![dir("d/"), file("d/old", ""), dir("e/"), dir("e/s/"), file("e/s/old", "")],
                vec![
                    file("d", ""),
                    dir("d/").mode(0o711),
                    dir("e/s/"),
                    file("e/s", ""),
                    dir("e/s/"),
                    file("e/s/new", ""),
                ],
            ],
            vec![("d", d().mode(0o711)), ("e", d()), ("e/s", d()), ("e/s/new", f(""))],
        ),
        case(
            "d06_symlink_or_link_then_directory_hides_the_lower_directory",
            &["D6", "R-6", "S5"],
            vec![
                vec![dir("d/"), file("d/old", ""), dir("e/"), file("e/old", ""), dir("t/"), file("t/k", "")],
                vec![symlink("d", "t"), dir("d/"), file("f", ""), hardlink("e", "f"), dir("e/")],
                vec![dir("d/"), file("d/later", "")],
            ],
            vec![("d", d()), ("d/later", f("")), ("e", d()), ("f", f("").alone()), ("t", d()), ("t/k", f(""))],
        ),
        case(
            "d06_directory_after_a_file_hides_the_lower_directory",
            &["D6", "R-6"],
            vec![
                vec![file("d/old", ""), file("e/old", "")],
                vec![file("d", "1"), dir("d/"), symlink("e", "d"), dir("e/")],
            ],
            vec![("d", d()), ("e", d())],
        ),
        case(
            "d06_every_type_replaces_every_other",
            &["D6", "O5"],
            vec![vec![
                file("a", "1"),
                symlink("a", "t"),
                fifo("a"),
                dir("a/"),
                file("a/x", ""),
                symlink("a", "t"),
                dir("a/"),
                file("b", ""),
                dir("b/"),
                file("b/x", ""),
                file("b", "last"),
            ]],
            vec![("a", d()), ("b", f("last"))],
        ),
        case(
            "x09_spellings_of_one_name_are_one_name",
            &["X9", "D6"],
            vec![
                vec![file("a", "0"), dir("d/"), file("d/x", "0"), file("d/y", "0")],
                vec![
                    file("./a", "1"),
                    file("/a", "2"),
                    file("d//x", "3"),
                    file("d/./e/../x", "4"),
                    file("./d/.wh.y", ""),
                ],
            ],
            vec![("a", f("2").alone()), ("d", d()), ("d/x", f("4"))],
        ),
        refused("x09_strict_sees_one_name_in_two_spellings", &["X9", "D6"], vec![vec![dir("d/"), dir("./d//")]])
            .strict(),
        refused("d06_strict_refuses_duplicates", &["D6", "R-6"], vec![vec![file("a", "1"), file("./a", "22")]])
            .strict(),
        case(
            "d06_strict_takes_a_whiteout_beside_its_entry",
            &["D6", "W2"],
            vec![vec![file("a", "1")], vec![file("a", "2"), whiteout("", "a")]],
            vec![("a", f("2"))],
        )
        .strict(),
        case(
            "d07_directory_mtime_after_its_children",
            &["D7"],
            vec![
                vec![dir("d/").mtime(77), file("d/x", ""), dir("e/").mtime(78), file("d/y", ""), file("e/z", "")],
                vec![whiteout("d", "x"), file("e/w", ""), symlink("e/z", "w")],
            ],
            vec![("d", d().mtime(77)), ("d/y", f("")), ("e", d().mtime(78)), ("e/w", f("")), ("e/z", l("w"))],
        ),
        case(
            "d07_directory_mtime_when_a_later_layer_replaces_it",
            &["D7"],
            vec![
                vec![dir("d/").mtime(77), file("d/x", "")],
                vec![file("d/y", ""), dir("d/").mtime(99)],
                vec![hardlink("d/z", "d/x")],
            ],
            vec![("d", d().mtime(99)), ("d/x", f("").group("d/x")), ("d/y", f("")), ("d/z", f("").group("d/x"))],
        ),
        case(
            "d08_directories_without_permissions_before_their_children",
            &["D8"],
            vec![
                vec![dir("r/").mode(0o555), dir("r/s/").mode(0), file("r/s/x", "1"), file("r/y", "2").mode(0)],
                vec![file("r/s/z", "3"), whiteout("r", "y")],
            ],
            vec![("r", d().mode(0o555)), ("r/s", d().mode(0)), ("r/s/x", f("1")), ("r/s/z", f("3"))],
        ),
        case(
            "d09_setgid_parent_gives_nothing_to_children",
            &["D9", "D10"],
            vec![vec![dir("g/").mode(0o2775).owner(5, 6), dir("g/s/"), file("g/x", ""), file("g/i/y", "").mtime(77)]],
            vec![
                ("g", d().mode(0o2775).owner(5, 6)),
                ("g/s", d().mode(0o755).owner(0, 0)),
                ("g/x", f("").mode(0o644).owner(0, 0)),
                ("g/i", d().implied(77)),
                ("g/i/y", f("")),
            ],
        ),
        case(
            "d10_modes_wider_than_any_umask",
            &["D10"],
            vec![vec![dir("w/").mode(0o777), file("w/x", "").mode(0o666), fifo("w/p").mode(0o622)]],
            vec![
                ("w", d().mode(0o777)),
                ("w/x", f("").mode(0o666)),
                ("w/p", super::Want::new(crate::tree::Kind::Fifo).mode(0o622)),
            ],
        ),
    ]
}
