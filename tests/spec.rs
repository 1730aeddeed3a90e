//! The rule book run on the product: every case of testkit and random images, flattened, mounted read-only and
//! read-write, against the expectation and the reference model; and the same again inside a user namespace.

mod common;

use common::*;
use testkit::cases::{self, Expect};
use testkit::model::Model;
use testkit::{Tree, compare};

#[test]
fn every_case_gives_its_tree_flat_and_mounted() {
    if !root_or_skip("every_case_gives_its_tree_flat_and_mounted") {
        return;
    }
    let lab = Lab::new();
    let mut wrong = Vec::new();
    let only = std::env::var("UNPLY_CASE").ok();
    for case in cases::all() {
        if only.as_ref().is_some_and(|o| !case.name.contains(o.as_str())) {
            continue;
        }
        if !lab.can_hold_with(&case.layers, case.options) {
            continue;
        }
        let results = lab.every_way(&case.layers, case.options);
        match (&case.expect, &results) {
            (Expect::Refused, Ok(_)) => wrong.push(format!("{}: accepted, must be refused", case.name)),
            (Expect::Refused, Err(_)) => {}
            (Expect::Tree(_), Err(e)) => wrong.push(format!("{}: refused: {e}", case.name)),
            (Expect::Tree(_), Ok(trees)) => {
                // A user namespace shows other owners, and `user.overlay.*` are marks only there.
                let marks =
                    case.layers.iter().flatten().flat_map(|e| &e.xattrs).any(|x| x.0.starts_with(b"user.overlay."));
                let meant = !lab.one_id && (!marks || case.options.userxattr == lab.in_user_namespace);
                if meant {
                    for (way, tree) in trees {
                        wrong.extend(case.mismatches(tree).into_iter().map(|m| format!("{} {way}: {m}", case.name)));
                    }
                }
            }
        }
        wrong.extend(check_image(&lab, case.name, &case.layers, case.options));
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn random_images_give_one_tree_everywhere() {
    if !root_or_skip("random_images_give_one_tree_everywhere") {
        return;
    }
    let lab = Lab::new();
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (first, count) = (number("UNPLY_SEED", 1), number("UNPLY_IMAGES", 150));
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for seed in first..first + count {
        let image = testkit::random::random_case(seed);
        if lab.can_hold_with(&image.layers, image.options) {
            checked += 1;
            let name = format!("seed {seed} ({:?})", image.options);
            wrong.extend(check_image(&lab, &name, &image.layers, image.options));
        }
        if wrong.len() > 60 {
            break;
        }
    }
    println!("{checked} of {count} random images checked, {} findings", wrong.len());
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_same_inside_a_user_namespace() {
    in_user_namespace(&["every_case_gives_its_tree_flat_and_mounted", "random_images_give_one_tree_everywhere"]);
}

/// The harness itself must be able to fail.
#[test]
fn a_wrong_tree_is_noticed() {
    let layers = vec![vec![testkit::file("a", "x")]];
    let model = Model::of_image(Default::default(), &layers).unwrap();
    assert!(!compare(&model.tree(), &Tree::default()).is_empty());
}
