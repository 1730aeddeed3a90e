//! Section S: symlinks, names and path resolution within layers.

use super::{Case, case, d, f, l, nothing, refused};
use crate::entry::{dir, file, hardlink, opaque, symlink, whiteout};

pub(super) fn cases() -> Vec<Case> {
    let long = |n| "n".repeat(n);
    vec![
        case(
            "s01_targets_are_kept_verbatim",
            &["S1"],
            vec![vec![
                symlink("abs", "/etc/../x"),
                symlink("up", "../../.././y"),
                symlink("dangling", "no//where/"),
                symlink("bytes", b"\xff\xfe\n"),
                symlink("long", long(4095)),
            ]],
            vec![
                ("abs", l("/etc/../x")),
                ("up", l("../../.././y")),
                ("dangling", l("no//where/")),
                ("bytes", l(b"\xff\xfe\n")),
                ("long", l(long(4095))),
            ],
        ),
        refused("s01_empty_target", &["S1"], vec![vec![symlink("l", "")]]),
        refused("s01_target_of_4096_bytes", &["S1"], vec![vec![symlink("l", long(4096))]]),
        case(
            "s02_entry_below_a_symlink_of_the_same_layer",
            &["S2"],
            vec![vec![dir("real/"), symlink("l", "real"), file("l/x", "1")]],
            vec![("real", d()), ("real/x", f("1")), ("l", l("real"))],
        ),
        case(
            "s02_directory_entry_below_a_symlink",
            &["S2"],
            vec![vec![dir("real/"), symlink("l", "real"), dir("l/e/").mode(0o700), file("l/e/x", "1")]],
            vec![("real", d()), ("real/e", d().mode(0o700)), ("real/e/x", f("1")), ("l", l("real"))],
        ),
        case(
            "s03_absolute_target",
            &["S3"],
            vec![vec![dir("run/"), dir("var/"), symlink("var/run", "/run"), file("var/run/x", "1")]],
            vec![("run", d()), ("run/x", f("1")), ("var", d()), ("var/run", l("/run"))],
        ),
        case(
            "s04_target_outside_is_clamped_and_made",
            &["S4", "D1"],
            vec![vec![symlink("l", "../../../tmp/X"), file("l/x", "1").mtime(77)]],
            vec![("l", l("../../../tmp/X")), ("tmp", d().implied(77)), ("tmp/X", d().implied(77)), ("tmp/X/x", f("1"))],
        ),
        case(
            "s04_missing_component_before_dot_dot_is_made",
            &["S4"],
            vec![vec![symlink("l", "a/../b"), file("l/x", "1").mtime(77)]],
            vec![("a", d().implied(77)), ("b", d().implied(77)), ("b/x", f("1")), ("l", l("a/../b"))],
        ),
        case(
            "s04_dot_dot_goes_to_the_parent_of_the_directory_reached",
            &["S4"],
            vec![vec![dir("t/"), dir("t/u/"), symlink("s", "t/u"), symlink("l", "s/../v"), file("l/x", "1")]],
            vec![("l", l("s/../v")), ("s", l("t/u")), ("t", d()), ("t/u", d()), ("t/v", d()), ("t/v/x", f("1"))],
        ),
        case(
            "s04_target_through_a_file_replaces_it",
            &["S4", "S10"],
            vec![vec![file("a", "file"), symlink("l", "a/b"), file("l/x", "1")]],
            vec![("a", d()), ("a/b", d()), ("a/b/x", f("1")), ("l", l("a/b"))],
        ),
        case(
            "s05_symlink_then_directory",
            &["S5"],
            vec![vec![dir("t/").mode(0o711), symlink("s", "/t"), dir("s/").mode(0o777), file("s/x", "")]],
            vec![("t", d().mode(0o711)), ("s", d().mode(0o777)), ("s/x", f(""))],
        ),
        case(
            "s05_directory_then_symlink",
            &["S5"],
            vec![vec![
                dir("t/").mode(0o711).mtime(5),
                dir("d/").mode(0o777).mtime(6),
                file("d/x", ""),
                symlink("d", "/t"),
            ]],
            vec![("t", d().mode(0o711).mtime(5)), ("d", l("/t"))],
        ),
        case(
            "s05_deleted_directory_becomes_a_symlink_two_layers_later",
            &["S5", "X13"],
            vec![
                vec![dir("t/").mode(0o711).mtime(5), dir("d/").mode(0o777).mtime(6)],
                vec![whiteout("", "d")],
                vec![symlink("d", "t")],
            ],
            vec![("t", d().mode(0o711).mtime(5)), ("d", l("t"))],
        ),
        case(
            "s07_directory_entry_over_a_lower_symlink",
            &["S7"],
            vec![vec![dir("r/"), file("r/x", ""), symlink("l", "r")], vec![dir("l/").mode(0o700), file("l/y", "")]],
            vec![("r", d()), ("r/x", f("")), ("l", d().mode(0o700)), ("l/y", f(""))],
        ),
        case(
            "s08_dot_dot_is_clamped_at_the_root",
            &["S8", "R-5"],
            vec![vec![file("x/../../evil", "1"), file("../up/../a", "2"), dir("d/"), file("d/e/../f", "3")]],
            vec![("evil", f("1")), ("a", f("2")), ("d", d()), ("d/f", f("3"))],
        ),
        case(
            "s08_cleaning_comes_before_symlinks",
            &["S8"],
            vec![vec![dir("t/"), dir("t/u/"), symlink("s", "t/u"), file("s/../x", "1")]],
            vec![("s", l("t/u")), ("t", d()), ("t/u", d()), ("x", f("1"))],
        ),
        refused("s08_strict_refuses_dot_dot_at_the_root", &["S8", "R-5"], vec![vec![file("x/../../evil", "")]])
            .strict(),
        case(
            "s09_spellings_of_one_name",
            &["S9", "X9"],
            vec![vec![
                file("/abs", "1"),
                file("//slashes", "2"),
                file("./dot", "3"),
                file("a//b", "4"),
                file("a/./c", "5"),
                dir("e//./"),
            ]],
            vec![
                ("a", d()),
                ("a/b", f("4")),
                ("a/c", f("5")),
                ("abs", f("1")),
                ("dot", f("3")),
                ("e", d()),
                ("slashes", f("2")),
            ],
        ),
        case(
            "s10_file_becomes_a_directory_within_a_layer",
            &["S10"],
            vec![vec![file("a", "file"), file("a/b", "1").mtime(77)]],
            vec![("a", d().implied(77)), ("a/b", f("1"))],
        ),
        case(
            "s10_lower_file_becomes_a_directory",
            &["S10"],
            vec![vec![file("a", "file").mode(0o600).owner(5, 6)], vec![file("a/b/c", "1").mtime(77)]],
            vec![("a", d().implied(77)), ("a/b", d().implied(77)), ("a/b/c", f("1"))],
        ),
        case(
            "s10_name_of_a_file_that_keeps_another_name",
            &["S10", "L7"],
            vec![vec![file("a", "1"), hardlink("k", "a")], vec![file("a/b", "2")]],
            vec![("a", d()), ("a/b", f("2")), ("k", f("1").alone())],
        ),
        case("s11_name_of_255_bytes", &["S11"], vec![vec![file(long(255), "1")]], vec![(long(255), f("1"))]),
        refused("s11_name_of_256_bytes", &["S11"], vec![vec![file(long(256), "1")]]),
        refused("s11_directory_name_of_256_bytes", &["S11"], vec![vec![file(format!("{}/x", long(256)), "1")]]),
        case(
            "s11_path_longer_than_path_max",
            &["S11"],
            vec![vec![file([vec![long(100); 50].join("/"), "x".into()].join("/"), "deep")]],
            (1..=50)
                .map(|n| (vec![long(100); n].join("/"), d()))
                .chain([([vec![long(100); 50].join("/"), "x".into()].join("/"), f("deep"))])
                .collect(),
        ),
        case(
            "s11_1024_levels",
            &["S11", "B5"],
            vec![
                vec![dir(levels(1023)), file(levels(1023) + "/x", "1")],
                vec![file(levels(1023) + "/y", "2").mtime(77)],
                vec![hardlink("h", levels(1023) + "/y"), whiteout(levels(1023), "x")],
            ],
            (1..=1023)
                .map(|n| (levels(n), d()))
                .chain([(levels(1023) + "/y", f("2").group(&(levels(1023) + "/y"))), ("h".into(), f("2"))])
                .collect(),
        ),
        refused("s11_1025_levels", &["S11", "B5"], vec![vec![file(levels(1024) + "/x", "")]]),
        refused(
            "s11_symlinks_to_1025_levels",
            &["S11", "S4"],
            vec![vec![symlink("l", levels(600)), symlink("l/m", levels(424)), file("l/m/x", "")]],
        ),
        refused(
            "s11_lower_symlinks_to_1025_levels",
            &["S11", "S6"],
            vec![
                vec![dir(levels(600)), symlink("l", levels(600))],
                vec![file("l/".to_string() + &levels(424) + "/x", "")],
            ],
        ),
        refused("s12_loop", &["S12"], vec![vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")]]),
        refused("s12_symlink_to_itself", &["S12"], vec![vec![symlink("a", "a"), file("a/x", "")]]),
        refused(
            "s12_loop_of_a_lower_layer",
            &["S12"],
            vec![vec![symlink("a", "b"), symlink("b", "a")], vec![file("a/x", "")]],
        ),
        refused(
            "s12_loop_in_a_link_target",
            &["S12"],
            vec![vec![symlink("a", "b"), symlink("b", "a"), hardlink("h", "a/x")]],
        ),
        case(
            "s12_loop_itself_may_be_replaced",
            &["S12"],
            vec![vec![symlink("a", "b"), symlink("b", "a")], vec![dir("a/"), file("a/x", "")]],
            vec![("a", d()), ("a/x", f("")), ("b", l("a"))],
        ),
        case(
            "s12_whiteout_below_a_loop",
            &["S12"],
            vec![vec![symlink("a", "b"), symlink("b", "a")], vec![whiteout("a", "x"), opaque("b")]],
            vec![("a", l("b")), ("b", l("a"))],
        ),
        chain_of_symlinks("s12_forty_symlinks", 40, false),
        chain_of_symlinks("s12_forty_one_symlinks", 41, true),
        case(
            "s13_directory_replaced_by_a_symlink_between_children",
            &["S13"],
            vec![vec![file("a/x", "1"), dir("t/"), symlink("a", "/t"), file("a/y", "2")]],
            vec![("a", l("/t")), ("t", d()), ("t/y", f("2"))],
        ),
        case(
            "s14_magic_link_is_a_path_in_the_image",
            &["S14"],
            vec![vec![
                symlink("l", "/proc/self/root/tmp"),
                file("l/x", "1"),
                symlink("m", "/dev/fd/0"),
                dir("m/d/"),
                hardlink("h", "/proc/self/root/tmp/x"),
            ]],
            vec![
                ("l", l("/proc/self/root/tmp")),
                ("m", l("/dev/fd/0")),
                ("dev", d()),
                ("dev/fd", d()),
                ("dev/fd/0", d()),
                ("dev/fd/0/d", d()),
                ("proc", d()),
                ("proc/self", d()),
                ("proc/self/root", d()),
                ("proc/self/root/tmp", d()),
                ("proc/self/root/tmp/x", f("1").group("h")),
                ("h", f("1").group("h")),
            ],
        ),
        case(
            "s13_symlink_retargeted_between_children",
            &["S13"],
            vec![vec![symlink("s", "a"), file("s/x", "1"), symlink("s", "b"), file("s/x", "2")]],
            vec![("a", d()), ("a/x", f("1")), ("b", d()), ("b/x", f("2")), ("s", l("b"))],
        ),
        refused(
            "s04_symlink_would_make_a_whiteout_name",
            &["R-15", "S4"],
            vec![vec![symlink("l", ".wh.a"), file("l/x", "")]],
        ),
        refused(
            "s11_symlink_would_make_a_name_of_256_bytes",
            &["S11", "S4"],
            vec![vec![symlink("l", long(256)), file("l/x", "")]],
        ),
        case(
            "s04_symlink_to_the_root",
            &["S4"],
            vec![vec![symlink("l", "/"), file("l/x", "1"), dir("l/l2/"), symlink("m", ".."), file("m/y", "2")]],
            vec![("l", l("/")), ("l2", d()), ("m", l("..")), ("x", f("1")), ("y", f("2"))],
        ),
        case(
            "w10_nothing_but_markers",
            &["W10", "R-25"],
            vec![vec![], vec![whiteout("", "a")], vec![opaque("")]],
            nothing(),
        ),
        case(
            "x10_own_symlink_over_a_lower_directory_with_an_entry_below",
            &["X10"],
            vec![vec![dir("d/"), file("d/old", "")], vec![dir("t/"), symlink("d", "t"), file("d/x", "1")]],
            vec![("d", l("t")), ("t", d()), ("t/x", f("1"))],
        ),
        case(
            "x10_own_symlink_comes_after_the_entry_below",
            &["X10"],
            vec![vec![dir("d/"), file("d/old", "")], vec![dir("t/"), file("d/x", "1"), symlink("d", "t")]],
            vec![("d", l("t")), ("t", d())],
        ),
    ]
}

/// A path of so many components.
fn levels(n: usize) -> String {
    vec!["a"; n].join("/")
}

/// `s0 -> t`, `s1 -> s0`, ... and a file below the last.
fn chain_of_symlinks(name: &'static str, length: usize, too_many: bool) -> Case {
    let target = |i: usize| if i == 0 { "t".to_string() } else { format!("s{}", i - 1) };
    let mut layer = vec![dir("t/")];
    layer.extend((0..length).map(|i| symlink(format!("s{i}"), target(i))));
    layer.push(file(format!("s{}/x", length - 1), "1"));
    if too_many {
        return refused(name, &["S12"], vec![layer]);
    }
    let mut tree: Vec<_> = (0..length).map(|i| (format!("s{i}"), l(target(i)))).collect();
    tree.extend([("t".to_string(), d()), ("t/x".to_string(), f("1"))]);
    case(name, &["S12"], vec![layer], tree)
}
