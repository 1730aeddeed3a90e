//! Layers that try to leave the root by names, links, order and layering.

use testkit::{EntrySpec, dir, file, hardlink, opaque, symlink, whiteout};

fn one(entries: Vec<EntrySpec>) -> Vec<Vec<EntrySpec>> {
    vec![entries]
}

crate::cases! {
    // Names.
    s08_dot_dot_names: |at| one(vec![file(format!("{}/file", at.climb), "x"), file("x/../../../../evil", "x")]);
    s09_absolute_name: |at| one(vec![file(at.v("/file"), "x"), file(format!("//{}/sub/deep", at.victim), "x")]);
    s11_name_of_255_bytes: |at| vec![
        vec![file("n".repeat(255), "1"), symlink(format!("d{}", "n".repeat(254)), &at.victim)],
        vec![whiteout("", "n".repeat(255)), file(format!("d{}/file", "n".repeat(254)), "x")],
    ];
    s11_name_of_256_bytes: |_| one(vec![file("n".repeat(256), "1")]);
    s11_symlink_to_a_name_that_is_too_long: |_| one(vec![symlink("l", "n".repeat(256)), file("l/x", "x")]);
    cve_2025_4517_path_longer_than_path_max_then_out: |at| {
        // Python's realpath() gave up beyond PATH_MAX and let the rest of the way through unresolved.
        let deep = vec!["d".repeat(240); 20].join("/");
        one(vec![
            file(format!("{deep}/x"), "x"),
            symlink("a", &deep),
            symlink(format!("{deep}/b"), format!("{}{}", "../".repeat(40), &at.victim[1..])),
            file("a/b/file", "x"),
        ])
    };
    cve_2025_4138_symlink_to_a_path_longer_than_path_max: |at| {
        let step = "s".repeat(247);
        let mut entries = Vec::new();
        let mut long = String::new();
        for n in 0..16 {
            entries.push(dir(format!("{long}{step}/")));
            entries.push(symlink(format!("{long}{n:x}"), &step));
            long = format!("{long}{step}/");
        }
        let short: Vec<String> = (0..16).map(|n| format!("{n:x}")).collect();
        entries.push(symlink(format!("{}/out", short.join("/")), format!("{}{}", "../".repeat(30), &at.victim[1..])));
        entries.push(file(format!("{}/out/file", short.join("/")), "x"));
        one(entries)
    };

    // Symlinks, and what goes through them.
    cve_2014_6407_s04_symlink_out_then_through_it: |at| one(vec![symlink("l", &at.victim), file("l/file", "x")]);
    cve_2020_10696_absolute_symlink_of_a_lower_layer: |at| vec![
        vec![dir("etc/"), symlink("etc/l", at.v("/sub"))],
        vec![file("etc/l/deep", "x"), dir("etc/l/new/")],
    ];
    cve_2026_42574_symlink_entry_with_dot_dot_then_through_it: |at| one(vec![symlink("l", &at.climb), file("l/file", "x")]);
    cve_2025_45582_two_step_symlinks: |at| vec![
        vec![symlink("a", ".."), symlink("b", "a/.."), symlink("c", format!("b/{}", at.climb))],
        vec![file("c/file", "x")],
        vec![file("c/sub/deep", "y").mode(0o777)],
    ];
    symlink_chain_out: |at| one(vec![
        symlink("a", ".."), symlink("b", "a/.."), symlink("c", format!("b/{}", at.climb)), file("c/file", "x"),
    ]);
    symlink_chain_over_four_layers: |at| vec![
        vec![symlink("a", "b")], vec![symlink("b", "c")], vec![symlink("c", &at.victim)], vec![file("a/file", "x")],
    ];
    s12_symlink_loop: |_| one(vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "x")]);
    s12_symlink_loop_of_lower_layers: |_| vec![vec![symlink("a", "b")], vec![symlink("b", "a")], vec![file("a/x", "x")]];
    s14_magic_link: |_| one(vec![symlink("l", "/proc/self/root"), file("l/tmp/unply-magic", "x")]);
    s14_magic_link_to_the_working_directory: |_| vec![vec![symlink("l", "/proc/self/cwd")], vec![file("l/unply-magic", "x")]];
    s14_magic_link_by_descriptor: |_| one(vec![
        symlink("l", "/proc/self/fd/3"), file("l/x", "x"), symlink("m", "/dev/fd/4"), file("m/x", "x"),
    ]);
    s14_magic_link_of_the_first_process: |_| one(vec![symlink("l", "/proc/1/root"), file("l/unply-magic", "x")]);
    moby_53258_podman_29805_absolute_symlink_parent: |_| vec![
        vec![dir("run/"), dir("var/"), symlink("var/run", "/run"), file("var/run/same-layer", "x")],
        vec![file("var/run/x", "x"), dir("var/run/d/")],
    ];
    moby_53257_implied_parent_of_a_directory: |_| vec![
        vec![dir("etc/").mode(0o750).owner(5, 6)],
        vec![dir("etc/dnf/"), file("etc/dnf/dnf.conf", "x"), dir("new/dnf/")],
    ];

    // A name that is first one thing and then another.
    cve_2026_33056_symlink_then_directory_of_the_same_name: |at| one(vec![symlink("s", &at.victim), dir("s/").mode(0o777)]);
    rustsec_2026_0113_directory_then_symlink_then_deferred_mode: |at| one(vec![
        dir("d/").mode(0o777).owner(7, 7).xattr("user.k", "v"), symlink("d", &at.victim),
    ]);
    cve_2021_31566_directory_then_symlink_with_times: |at| one(vec![
        dir("d/").mode(0o777).mtime(77), dir("d/sub/").mode(0o700).mtime(77), symlink("d", &at.victim),
    ]);
    cve_2021_23177_mode_and_acl_of_a_file_that_became_a_symlink: |at| one(vec![
        file("f", "x").mode(0o777).xattr("user.k", "v"), symlink("f", at.v("/file")),
        hardlink("g", "f").mode(0o777).owner(7, 7).xattr("user.k", "v"),
    ]);
    s05_symlink_then_file: |at| one(vec![symlink("f", at.v("/file")), file("f", "x").mode(0o777)]);
    s05_lower_symlink_then_file: |at| vec![vec![symlink("f", at.v("/file"))], vec![file("f", "x")]];
    s05_lower_symlink_then_directory_with_metadata: |at| vec![
        vec![symlink("d", &at.victim)], vec![dir("d/").mode(0o777).owner(7, 7).mtime(77), file("d/file", "x")],
    ];
    x13_directory_whiteout_symlink_over_layers: |at| vec![
        vec![dir("d/").mode(0o777)], vec![whiteout("", "d")], vec![symlink("d", &at.victim)],
    ];
    ghsa_3wgq_wrwc_vqmv_s13_directory_replaced_under_a_cached_handle: |at| one(vec![
        dir("a/"), file("a/file", "1"), symlink("a", &at.victim), file("a/file", "2"),
    ]);
    s13_deep_directory_replaced_under_a_cached_handle: |at| one(vec![
        dir("a/b/c/"), file("a/b/c/file", "1"), file("a/b/c/d/file", "1"), symlink("a/b", &at.victim),
        file("a/b/c/file", "2"), file("a/b/sub/deep", "2"), dir("a/b/c/d/").mode(0o711),
    ]);
    s13_directory_replaced_and_made_again: |at| one(vec![
        dir("a/"), file("a/x", "1"), symlink("a", &at.victim), file("a/file", "2"), dir("a/"), file("a/file", "3"),
    ]);
    s13_more_directories_than_handles_then_all_replaced: |at| {
        let mut entries = Vec::new();
        for n in 0..150 {
            entries.push(file(format!("d{n}/sub/x"), "1"));
        }
        for n in 0..150 {
            entries.push(symlink(format!("d{n}"), &at.victim));
            entries.push(file(format!("d{n}/sub/deep"), "2"));
        }
        one(entries)
    };
    two_step_parent_swap_over_layers: |at| vec![
        vec![dir("d/"), file("d/file", "1")],
        vec![symlink("d", &at.victim)],
        vec![file("d/file", "2"), whiteout("d", "sub")],
    ];

    // Hard links.
    cve_2014_9356_hard_link_out: |at| one(vec![hardlink("h", at.v("/file"))]);
    cve_2018_20990_hard_link_out_then_write: |at| one(vec![hardlink("h", at.v("/file")), file("h", "x")]);
    cve_2021_38511_hard_link_below_a_symlink_out: |at| one(vec![symlink("l", &at.victim), file("x", "1"), hardlink("l/new/h", "x")]);
    hard_link_through_a_symlink_out: |at| one(vec![symlink("l", &at.victim), hardlink("h", "l/file"), file("h", "x")]);
    hard_link_dot_dot: |at| one(vec![hardlink("h", format!("{}/file", at.climb))]);
    hard_link_chain_to_a_symlink_out: |at| one(vec![
        symlink("l", at.v("/file")), hardlink("h", "l"), hardlink("i", "h"), hardlink("j", "i").mode(0o777).owner(7, 7), file("k", "x"),
    ]);
    cve_2021_32760_hard_link_to_a_symlink_out_then_chmod: |at| one(vec![
        symlink("l", at.v("/file")), hardlink("h", "l").mode(0o777).owner(7, 7),
    ]);
    cve_2021_32760_in_a_fixup: |at| vec![
        vec![symlink("l", at.v("/file"))], vec![hardlink("h", "l").mode(0o777).owner(7, 7).mtime(77)],
    ];
    kaniko_959_go_archive_100_absolute_hard_link_target: |_| vec![
        vec![dir("usr/bin/"), file("usr/bin/a", "x"), hardlink("usr/bin/b", "/usr/bin/a")],
        vec![hardlink("c", "/usr/bin/a"), hardlink("usr/bin/d", "//usr/./bin/b")],
    ];
    lower_hard_link_target_through_a_symlink_out: |at| vec![vec![symlink("l", &at.victim)], vec![hardlink("h", "l/file")]];
    lower_hard_link_target_by_a_chain_out: |at| vec![
        vec![symlink("a", "b/sub"), symlink("b", &at.victim)], vec![hardlink("h", "a/deep").mode(0o777)],
    ];
    l06_hard_link_below_its_own_target: |_| one(vec![file("f", "x"), hardlink("f/h", "f")]);
    l14_target_of_a_hard_link_replaced_by_a_symlink_out: |at| vec![
        vec![file("f", "1"), hardlink("h", "f"), symlink("f", at.v("/file")), file("h", "2").mode(0o777)],
        vec![hardlink("g", "f").mode(0o666), file("f", "3")],
    ];
    xattr_through_a_symlink_out: |at| one(vec![symlink("f", at.v("/file")), hardlink("g", "f").xattr("user.k", "v")]);

    // Whiteouts.
    w18_whiteout_through_a_symlink_out: |at| vec![
        vec![symlink("l", &at.victim)], vec![whiteout("l", "file"), whiteout("l", "sub")],
    ];
    w18_whiteout_through_a_chain_out: |at| vec![
        vec![symlink("a", "b"), symlink("b", &at.climb)], vec![whiteout("a", "file"), opaque("a/sub"), whiteout("a/sub", "deep")],
    ];
    w18_opaque_through_a_symlink_out: |at| vec![vec![symlink("l", &at.victim)], vec![opaque("l")]];
    w18_same_layer_opaque_through_a_symlink_out: |at| one(vec![symlink("l", &at.victim), opaque("l"), file("l/n", "x")]);
    w18_whiteout_of_the_symlink_itself: |at| vec![vec![symlink("l", &at.victim)], vec![whiteout("", "l")]];
    w11_whiteout_of_dot_dot: |_| vec![vec![file("a", "x")], vec![file(".wh...", "")]];
    w11_whiteout_of_dot: |_| vec![vec![file("a", "x")], vec![file(".wh..", "")]];
    w11_whiteout_of_nothing: |_| vec![vec![file("d/a", "x")], vec![file("d/.wh.", "")]];
    w11_whiteout_of_dot_dot_below: |_| vec![vec![file("d/a", "x")], vec![file("d/.wh...", "")]];
    w11_whiteout_of_a_way_out: |at| vec![vec![file("a", "x")], vec![file(format!("{}/../.wh.VICTIM", at.climb), "")]];
    r15_symlink_to_a_whiteout_name_then_through_it: |_| vec![vec![file("a", "1")], vec![symlink("l", ".wh.a"), file("l/x", "x")]];

    // The root.
    cve_2021_29136_root_as_a_symlink: |at| one(vec![symlink(".", &at.victim), file("file", "x")]);
    cve_2021_29136_root_as_a_symlink_by_slash: |at| one(vec![symlink("/", &at.victim), file("file", "x")]);
    d04_root_as_a_hard_link: |at| one(vec![hardlink("/", at.v("/file")), file("file", "x")]);

    // What a fix-up writes.
    fixup_implied_directories_through_a_symlink_out: |at| vec![
        vec![symlink("l", &at.victim), symlink("m", "l/sub")],
        vec![file("l/new/x", "x"), file("m/new/y", "y"), dir("m/").mode(0o700)],
    ];
    fixup_link_group_of_a_lower_layer_beside_a_symlink_out: |at| vec![
        vec![file("e", "1"), hardlink("f", "e"), symlink("out", at.v("/file"))],
        vec![hardlink("g", "e").mode(0o600).owner(7, 7), hardlink("out2", "out")],
    ];
    fixup_places_then_a_later_layer_replaces: |at| vec![
        vec![dir("usr/lib/"), symlink("lib", "usr/lib")],
        vec![file("lib/x", "1")],
        vec![symlink("usr/lib", &at.victim), file("lib/file", "2")],
        vec![whiteout("lib", "sub"), hardlink("h", "usr/lib/file")],
    ];
    // What the file or the symlink hid stays hidden when a directory takes its place.
    d06_w04_file_then_directory_over_a_lower_directory: |at| vec![
        vec![
            dir("d/"), file("d/old", "1"), dir("e/f/"), file("e/f/old", "1"), dir("g/"), file("g/old", "1"),
            dir("h/"), file("h/old", "1"),
        ],
        vec![
            file("d", "x"), dir("d/"), file("d/new", "2"), dir("e/"), file("e/f", "x"), file("e/f/new", "2"),
            symlink("g", &at.victim), dir("g/"), file("g/new", "2"), dir("h/"), file("h", "x"), dir("h/"),
        ],
    ];
    w04_whiteout_then_symlink_then_through_it: |at| vec![
        vec![dir("d/"), file("d/file", "1")], vec![whiteout("", "d"), symlink("d", &at.victim), file("d/file", "2")],
    ];
}
