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
            let findings = check_every_way(&lab, &name, &image.layers, image.options);
            if !findings.is_empty() {
                wrong.extend(findings);
                wrong.push(shrunk(&lab, image));
            }
        }
        if wrong.len() > 60 {
            break;
        }
    }
    println!("{checked} of {count} random images checked, {} findings", wrong.len());
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

/// Leaves out layers and entries as long as something is wrong, and prints what is left.
fn shrunk(lab: &Lab, mut image: testkit::random::RandomImage) -> String {
    let fails = |layers: &[Vec<testkit::EntrySpec>]| !check_every_way(lab, "", layers, image.options).is_empty();
    let mut again = true;
    while again {
        again = false;
        for layer in (0..image.layers.len()).rev() {
            let mut smaller = image.layers.clone();
            smaller.remove(layer);
            if fails(&smaller) {
                (image.layers, again) = (smaller, true);
                continue;
            }
            for entry in (0..image.layers[layer].len()).rev() {
                let mut smaller = image.layers.clone();
                smaller[layer].remove(entry);
                if fails(&smaller) {
                    (image.layers, again) = (smaller, true);
                }
            }
        }
    }
    let mut out = "  the smallest image that does so:".to_string();
    for (n, layer) in image.layers.iter().enumerate() {
        out += &format!("\n    layer {n}");
        for entry in layer {
            out += &format!("\n      {:<24} {:?}", testkit::tree::text(&entry.path), entry.kind);
        }
    }
    out
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
