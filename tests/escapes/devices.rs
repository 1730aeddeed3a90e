//! Nodes that must not be opened: a pipe's open blocks, a device's open has effects.

use testkit::{blk, chr, dir, fifo, file, hardlink, opaque, symlink, whiteout};

crate::cases! {
    // A reader would wait for a writer that never comes.
    moby_53298_a_fifo_never_blocks: |_| vec![
        vec![fifo("p").mode(0o640).owner(7, 7).mtime(77), hardlink("q", "p").mode(0o600), dir("d/"), fifo("d/p")],
        vec![hardlink("r", "p").mode(0o777), hardlink("d/s", "d/p"), file("t", "x")],
        vec![file("p", "now a file"), whiteout("d", "p"), fifo("t")],
    ];
    // Drivers that are not there: whoever opens one of these fails.
    moby_53299_go_archive_98_103_devices_get_their_mode_unopened: |_| vec![
        vec![
            dir("dev/"), chr("dev/ptmx", 5, 2).mode(0o666), chr("dev/none", 240, 77).mode(0o620).owner(0, 5),
            blk("dev/disk", 252, 77).mode(0o660).owner(0, 6).mtime(77), hardlink("dev/same", "dev/none").mode(0o600),
        ],
        vec![hardlink("dev/lower", "dev/none").mode(0o666), chr("dev/ptmx", 5, 2).mode(0o600)],
    ];
    go_archive_106_files_of_mode_000: |_| vec![
        vec![file("f", "x").mode(0o000), dir("d/").mode(0o000), file("d/f", "x").mode(0o000).owner(7, 7)],
        vec![hardlink("g", "f").mode(0o000), file("d/g", "y").mode(0o000), hardlink("h", "d/f").mode(0o044)],
    ];
    go_archive_105_109_xattrs_of_what_cannot_be_opened: |_| vec![
        vec![
            file("f", "x").mode(0o000).xattr("user.k", "v"), dir("d/").mode(0o000).xattr("user.k", "v"),
            hardlink("g", "f").xattr("user.l", "w").mode(0o000),
        ],
        vec![hardlink("h", "f").xattr("user.m", "x").mode(0o000), file("d/x", "x")],
    ];
    a_device_through_a_symlink_out: |at| vec![
        vec![symlink("l", &at.victim), chr("l/null", 1, 3), fifo("l/p")], vec![chr("l/zero", 1, 5), fifo("l/file")],
    ];
    // Where devices cannot be made, the older file of that name must not show instead.
    a_device_that_cannot_be_made_replaces_what_is_below: |_| vec![
        vec![file("a", "1"), dir("d/"), file("d/f", "1"), dir("e/"), file("e/f", "1"), symlink("usr", "e"), dir("o/"), file("o/f", "1"), dir("p/"), file("p/old", "1")],
        vec![
            chr("a", 1, 3), blk("d", 8, 0), chr("new/c", 1, 5), file("x", "1"), hardlink("y", "x"), chr("x", 1, 3),
            chr("usr/f", 1, 3), chr("e/g", 1, 3), file("e/g", "now a file"), chr("h", 1, 3), dir("h/"), file("h/f", "x"),
            hardlink("e/f", "a"), hardlink("i", "k"), chr("k", 1, 3), chr("o", 1, 3), opaque("o"), chr("p", 1, 3), file("p/f", "x"),
        ],
        vec![file("d/g", "2"), file("p/g", "2")],
    ];
    a_device_that_cannot_be_made_then_a_directory: |_| vec![
        vec![dir("d/"), file("d/old", "1")], vec![chr("d", 1, 3), dir("d/"), file("d/new", "2")],
    ];
    w21_a_character_device_0_0_hides_nothing: |_| vec![
        vec![file("a", "1"), dir("d/"), file("d/f", "1")],
        vec![chr("a", 0, 0), chr("d", 0, 0), chr("new", 0, 0), chr("d/f", 0, 0)],
    ];
    m06_device_numbers_that_could_be_cut_to_0_0: |_| vec![vec![file("a", "1")], vec![chr("a", 4096, 1_048_576)]];
}
