//! The escape catalogue: whatever an archive says, nothing outside the target changes; the result is the model's tree or a refusal.

mod common;

use std::path::Path;

use common::*;
use testkit::model::{Model, Options as ModelOptions};
use testkit::{DescribeOptions, EntrySpec, Tree, compare, describe, dir, file, hardlink, opaque, symlink, whiteout};
use unply::root::Resolver;

/// Things beside the target that hostile images reach for.
struct Canary(std::path::PathBuf);

impl Canary {
    fn plant(at: &Path) -> Canary {
        std::fs::create_dir_all(at.join("VICTIM/sub")).unwrap();
        for name in ["VICTIM/file", "VICTIM/sub/deep", "passwd"] {
            std::fs::write(at.join(name), name).unwrap();
        }
        Canary(at.to_path_buf())
    }

    fn look(&self) -> Tree {
        describe(&self.0, &DescribeOptions::default()).unwrap().without_root_meta()
    }
}

/// Layers that try to leave the root; `victim` is an absolute path outside it and `up` climbs out of it.
fn catalogue(victim: &str, up: &str) -> Vec<(&'static str, Vec<Vec<EntrySpec>>)> {
    let v = |rest: &str| format!("{victim}{rest}");
    let one = |entries: Vec<EntrySpec>| vec![entries];
    vec![
        ("dot_dot_name", one(vec![file(format!("{up}VICTIM/file"), "x"), file("x/../../../../evil", "x")])),
        ("absolute_name", one(vec![file(v("/file"), "x")])),
        ("s04_symlink_out_then_through_it", one(vec![symlink("l", victim), file("l/file", "x")])),
        ("relative_symlink_out_then_through_it", one(vec![symlink("l", format!("{up}VICTIM")), file("l/file", "x")])),
        (
            "symlink_chain_out",
            one(vec![
                symlink("a", ".."),
                symlink("b", "a/.."),
                symlink("c", format!("b/{up}")),
                file("c/VICTIM/file", "x"),
            ]),
        ),
        ("cve_2018_20990_hard_link_out_then_write", one(vec![hardlink("h", v("/file")), file("h", "x")])),
        ("hard_link_through_a_symlink_out", one(vec![symlink("l", victim), hardlink("h", "l/file"), file("h", "x")])),
        ("hard_link_dot_dot", one(vec![hardlink("h", format!("{up}VICTIM/file"))])),
        (
            "cve_2021_32760_hard_link_to_a_symlink_out_then_chmod",
            one(vec![symlink("l", v("/file")), hardlink("h", "l").mode(0o777).owner(7, 7)]),
        ),
        (
            "cve_2026_33056_symlink_then_directory_of_the_same_name",
            one(vec![symlink("s", victim), dir("s/").mode(0o777)]),
        ),
        ("s05_directory_then_symlink_of_the_same_name", one(vec![dir("d/").mode(0o777), symlink("d", victim)])),
        (
            "x13_directory_whiteout_symlink_over_layers",
            vec![vec![dir("d/").mode(0o777)], vec![whiteout("", "d")], vec![symlink("d", victim)]],
        ),
        (
            "s13_directory_replaced_between_two_entries",
            one(vec![dir("a/"), file("a/x", "1"), symlink("a", victim), file("a/file", "2")]),
        ),
        ("lower_symlink_out_then_through_it", vec![vec![symlink("l", victim)], vec![file("l/file", "x")]]),
        (
            "w18_whiteout_through_a_symlink_out",
            vec![vec![symlink("l", victim)], vec![whiteout("l", "file"), whiteout("l", "sub")]],
        ),
        ("w18_opaque_through_a_symlink_out", vec![vec![symlink("l", victim)], vec![opaque("l")]]),
        ("w18_same_layer_opaque_through_a_symlink_out", one(vec![symlink("l", victim), opaque("l"), file("l/n", "x")])),
        ("w11_whiteout_of_dot_dot", vec![vec![file("a", "x")], vec![file(".wh...", "")]]),
        ("w11_whiteout_of_dot", vec![vec![file("a", "x")], vec![file(".wh..", "")]]),
        ("w11_whiteout_of_nothing_below", vec![vec![file("d/a", "x")], vec![file("d/.wh.", "")]]),
        ("w11_whiteout_of_dot_dot_below", vec![vec![file("d/a", "x")], vec![file("d/.wh...", "")]]),
        ("whiteout_with_dot_dot_in_its_way", vec![vec![file("a", "x")], vec![file(format!("{up}.wh.VICTIM"), "")]]),
        ("cve_2021_29136_root_as_a_symlink", one(vec![symlink(".", victim), file("file", "x")])),
        ("root_as_a_symlink_by_slash", one(vec![symlink("/", victim), file("file", "x")])),
        ("s14_magic_link", one(vec![symlink("l", "/proc/self/root"), file("l/tmp/unply-magic", "x")])),
        ("magic_link_by_descriptor", one(vec![symlink("l", "/proc/self/fd/3"), file("l/x", "x")])),
        ("s11_symlink_to_a_name_that_is_too_long", one(vec![symlink("l", "n".repeat(256)), file("l/x", "x")])),
        ("l06_hard_link_below_its_own_target", one(vec![file("f", "x"), hardlink("f/h", "f")])),
        ("s12_symlink_loop", one(vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "x")])),
        ("file_over_a_symlink_out", one(vec![symlink("f", v("/file")), file("f", "x").mode(0o777)])),
        ("file_over_a_lower_symlink_out", vec![vec![symlink("f", v("/file"))], vec![file("f", "x")]]),
        ("xattr_through_a_symlink_out", one(vec![symlink("f", v("/file")), hardlink("g", "f").xattr("user.k", "v")])),
        (
            "two_step_parent_swap_over_layers",
            vec![
                vec![dir("d/"), file("d/file", "1")],
                vec![symlink("d", victim)],
                vec![file("d/file", "2"), whiteout("d", "sub")],
            ],
        ),
        (
            "lower_hard_link_target_through_a_symlink_out",
            vec![vec![symlink("l", victim)], vec![hardlink("h", "l/file")]],
        ),
    ]
}

fn run_catalogue(lab: &Lab) -> Vec<String> {
    let mut wrong = Vec::new();
    let outside = lab.path().join("outside");
    let canary = Canary::plant(&outside);
    let before = canary.look();
    let victim = outside.join("VICTIM");
    let up = "../".repeat(24);
    let climb = format!("{up}{}/", outside.strip_prefix("/").unwrap().display());
    for (name, layers) in catalogue(victim.to_str().unwrap(), &climb) {
        if !lab.can_hold(&layers) {
            continue;
        }
        let model = Model::of_image(ModelOptions::default(), &layers);
        match (model, lab.every_way(&layers, ModelOptions::default())) {
            (Err(_), Err(_)) => {}
            (Ok(model), Ok(trees)) => {
                let expected = lab.comparable(model.tree());
                for (way, tree) in trees {
                    let differences = compare(&expected, &lab.comparable(tree));
                    wrong.extend(differences.iter().take(5).map(|d| format!("{name} {way}: {d}")));
                }
            }
            (model, ours) => wrong.push(format!(
                "{name}: model {:?}, product {:?}",
                model.err(),
                ours.map(|_| "accepts").map_err(|e| e.to_string())
            )),
        }
        for d in compare(&before, &canary.look()) {
            wrong.push(format!("{name}: ESCAPED: {d}"));
        }
    }
    wrong
}

#[test]
fn nothing_escapes() {
    if !root_or_skip("nothing_escapes") {
        return;
    }
    let mut lab = Lab::new();
    for resolver in [Resolver::Openat2, Resolver::Steps] {
        lab.resolver = Some(resolver);
        let wrong = run_catalogue(&lab);
        assert!(wrong.is_empty(), "{resolver:?}: {} findings:\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[test]
fn nothing_escapes_from_a_user_namespace_either() {
    in_user_namespace(&["nothing_escapes"]);
}

/// The canary itself must notice a write.
#[test]
fn the_canary_notices() {
    let dir = tempfile::tempdir().unwrap();
    let canary = Canary::plant(dir.path());
    let before = canary.look();
    std::fs::write(dir.path().join("VICTIM/file"), "VICTIM/filf").unwrap();
    assert!(!compare(&before, &canary.look()).is_empty());
}
