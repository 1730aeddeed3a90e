//! Random images run on the product: flattened, mounted read-only and read-write, against the reference model; and the
//! same again inside user namespaces. `tests/conformance/` does so with every case of the rule book.

mod common;

use common::*;
use testkit::model::Model;
use testkit::{Tree, compare};

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
            wrong.extend(check_every_way(&lab, &name, &image.layers, image.options));
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
    in_user_namespace(&["random_images_give_one_tree_everywhere"]);
}

/// The harness itself must be able to fail.
#[test]
fn a_wrong_tree_is_noticed() {
    let layers = vec![vec![testkit::file("a", "x")]];
    let model = Model::of_image(Default::default(), &layers).unwrap();
    assert!(!compare(&model.tree(), &Tree::default()).is_empty());
}
