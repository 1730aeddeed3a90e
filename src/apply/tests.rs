//! Layers laid down alone: what a layer directory holds, marks of overlayfs included.

use std::fs::File;
use std::path::Path;

use testkit::{DescribeOptions, EntrySpec, Tree, describe, dir, file, whiteout};

use super::{ApplyOptions, LayerFacts, PlanOptions, Target, Writers, apply_layer};
use crate::policy::{Limits, Ownership, TreeOptions, WhiteoutForm, XattrFlavour};
use crate::root::Dir;
use crate::trace::LayerTrace;

/// Lays a layer down and returns its directory as it stands on the disk; `None` where the tests cannot run.
fn laid(layer: &[EntrySpec]) -> Option<(Tree, LayerFacts)> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "root is needed to write whiteouts");
        println!("SKIP: root is needed to write whiteouts");
        return None;
    }
    let place = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        std::fs::create_dir(place.path().join(name)).unwrap();
        Dir::open(&place.path().join(name)).unwrap()
    };
    let journal = place.path().join("journal");
    let target = Target {
        tree: open("tree"),
        stash: open("stash"),
        journal: File::options().read(true).write(true).create_new(true).open(journal).unwrap(),
    };
    let options = ApplyOptions {
        plan: PlanOptions { tree: TreeOptions::default(), flavour: XattrFlavour::Trusted, limits: Limits::default() },
        whiteouts: WhiteoutForm::CharDevice,
        ownership: Ownership::Keep,
        skip_devices: false,
        sums: false,
        writers: Writers::default(),
        trace: LayerTrace::default(),
        tolerate_xattrs: false,
    };
    let tar = testkit::layer(layer);
    let applied = apply_layer(&mut &tar[..], target, &options, &mut |_| {}, &|| Ok(())).unwrap();
    Some((raw(&place.path().join("tree")), applied.facts))
}

pub(super) fn raw(path: &Path) -> Tree {
    let everything = DescribeOptions { ignore_xattr: Box::new(|_| false), ..DescribeOptions::default() };
    describe(path, &everything).unwrap()
}

/// Found by `whiteout_plan`: a whiteout that makes a directory opaque stood behind whiteouts below that directory.
#[test]
fn w09_no_whiteout_below_a_directory_that_a_later_whiteout_makes_opaque() {
    let (outer, inner) = (whiteout("", "d"), whiteout("d", "x"));
    let (directory, content) = (dir("d/"), file("d/f", "1"));
    let orders = [
        [outer.clone(), directory.clone(), content.clone(), inner.clone()],
        [inner.clone(), directory.clone(), content.clone(), outer.clone()],
        [directory, inner, outer, content],
    ];
    for order in orders {
        let Some((tree, facts)) = laid(&order) else { return };
        let names: Vec<_> = tree.0.keys().map(|path| testkit::tree::text(path)).collect();
        assert_eq!(names, ["", "d", "d/f"], "{order:?}");
        assert_eq!((facts.whiteouts, facts.opaques), (0, 1), "{order:?}");
        assert_eq!(tree.get("d").unwrap().xattrs.keys().collect::<Vec<_>>(), [b"trusted.overlay.opaque"]);
    }
}
