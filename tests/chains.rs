//! Chains: a layer directory belongs to no chain, a fix-up to exactly one. Images that share a layer, layers that come
//! twice, what later layers do to what a fix-up placed, and fix-ups that get lost.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::*;
use testkit::image::{ImageSpec, OciLayout};
use testkit::model::{Model, Options as ModelOptions};
use testkit::{
    DescribeOptions, EntrySpec, Tree, assert_same, describe, dir, file, hardlink, opaque, symlink, whiteout,
};
use unply::image::Reference;
use unply::store::{Lower, Store};
use unply::unpack::{self, Options, Pulled};

type Layer = Vec<EntrySpec>;

fn quick() -> Options {
    Options { durable: false, jobs: 2, ..Options::default() }
}

fn image(at: &Path, layers: &[Layer]) -> Reference {
    OciLayout::new(at).unwrap().add(&ImageSpec::new(layers.iter().map(testkit::layer)).tag("t")).unwrap();
    format!("oci:{}:t", at.display()).parse().unwrap()
}

/// A directory with every xattr, overlayfs's own included.
fn raw(path: &Path) -> Tree {
    let options = DescribeOptions { ignore_xattr: Box::new(|_| false), ..DescribeOptions::default() };
    describe(path, &options).unwrap_or_else(|e| panic!("describe {}: {e}", path.display()))
}

/// The trees of every published layer, by diff_id.
fn layers_of(store: &Store) -> BTreeMap<String, Tree> {
    store.layers().unwrap().iter().map(|l| (l.diff_id().to_string(), raw(l.tree_path()))).collect()
}

/// Mounts several chains at the same time, compares each with its model, then empties each through a writable mount.
fn all_at_once(lab: &Lab, store: &Store, chains: &[(&str, &Pulled, Tree)]) {
    let work = tempfile::tempdir_in(lab.path()).unwrap();
    let point = |name: &str| {
        let path = work.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let mut mounted = Vec::new();
    for (n, (_, pulled, _)) in chains.iter().enumerate() {
        let at = point(&format!("view{n}"));
        mounted.push((pulled.chain.view().attach(&at).unwrap(), at));
    }
    for ((name, _, want), (_, at)) in chains.iter().zip(&mounted) {
        assert_same(&format!("{name}, read-only"), want, &lab.comparable(lab.describe(at)));
    }
    let mut writable = Vec::new();
    for (n, (_, pulled, _)) in chains.iter().enumerate() {
        let (at, key) = (point(&format!("rw{n}")), format!("rw{n}"));
        let snapshot = pulled.chain.snapshot(&key).unwrap();
        let attached = snapshot.mount(&at).unwrap();
        writable.push((key, at, attached, snapshot));
    }
    for ((name, _, want), (_, at, _, _)) in chains.iter().zip(&writable) {
        assert_same(&format!("{name}, read-write"), want, &lab.comparable(lab.describe(at)));
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let dir = path.symlink_metadata().unwrap().is_dir();
            let gone = if dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            gone.unwrap_or_else(|e| panic!("{name}: remove {}: {e}", path.display()));
        }
    }
    for (key, _, attached, snapshot) in writable {
        attached.detach().unwrap();
        drop(snapshot);
        // A process that another test starts holds our locks between its fork and its exec.
        while let Err(e) = store.remove_snapshot(&key) {
            assert_eq!(e.kind(), unply::error::ErrorKind::Busy, "{e}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    for (attached, at) in mounted {
        attached.detach().unwrap();
        std::fs::remove_dir(at).unwrap();
    }
}

/// Two lower stacks and a layer that stands on both, with what comes above it.
struct Shared {
    name: &'static str,
    lower: [Vec<Layer>; 2],
    shared: Layer,
    above: Vec<Layer>,
}

fn shared_layers() -> Vec<Shared> {
    let owned = |mode, id, t| dir("d/").mode(mode).owner(id, id).mtime(t).xattr("user.k", id.to_string());
    let usr = |target: &str| {
        vec![dir(format!("{target}/")).mtime(5), file(format!("{target}/y"), "y"), symlink("lib", target)]
    };
    let group = || vec![file("e", "1"), hardlink("f", "e"), dir("d/"), hardlink("d/g", "e")];
    vec![
        Shared {
            name: "d01_implied_directories",
            lower: [vec![vec![owned(0o700, 5, 5)]], vec![vec![owned(0o711, 7, 7), dir("d/s/").mode(0o500)]]],
            shared: vec![file("d/s/f", "").mtime(77)],
            above: vec![],
        },
        Shared {
            name: "d01_implied_directory_over_nothing_and_over_a_file",
            lower: [vec![vec![file("k", "")]], vec![vec![file("d", "file"), file("k", "")]]],
            shared: vec![file("d/s/f", "").mtime(77)],
            above: vec![vec![whiteout("d/s", "f")]],
        },
        Shared {
            name: "s06_symlinks_to_different_places",
            lower: [vec![usr("usr/lib")], vec![usr("opt"), vec![dir("lib64/")]]],
            shared: vec![file("lib/x", "x"), hardlink("lib/h", "lib/y"), dir("lib/m/").mode(0o700)],
            above: vec![],
        },
        Shared {
            name: "s06_a_symlink_and_a_directory",
            lower: [vec![usr("usr/lib")], vec![vec![dir("lib/").mode(0o700).mtime(9), file("lib/old", "")]]],
            shared: vec![file("lib/x", "x"), whiteout("lib", "old"), whiteout("lib", "y")],
            above: vec![vec![file("lib/x", "later"), hardlink("z", "lib/x")]],
        },
        Shared {
            name: "l02_links_to_different_files",
            lower: [
                vec![vec![file("f", "one").mode(0o600)]],
                vec![vec![file("f", "two").xattr("user.a", "1")], vec![file("k", "")]],
            ],
            shared: vec![hardlink("g", "f").mode(0o640).owner(5, 6).mtime(77)],
            above: vec![],
        },
        Shared {
            name: "l02_a_group_and_a_lonely_file",
            lower: [vec![group()], vec![vec![file("f", "alone"), dir("d/").mode(0o700)]]],
            shared: vec![hardlink("d/n", "f").mode(0o4711)],
            above: vec![vec![whiteout("", "e"), hardlink("late", "d/n").mode(0o600)]],
        },
        Shared {
            name: "l02_what_was_linked_is_replaced_deleted_and_linked",
            lower: [vec![group()], vec![vec![file("f", "b"), symlink("e", "f")]]],
            shared: vec![hardlink("g", "f"), hardlink("h", "f"), hardlink("i", "f")],
            above: vec![
                vec![file("g", "new"), whiteout("", "h"), hardlink("j", "i").mode(0o640)],
                vec![dir("i/"), file("i/x", "")],
            ],
        },
        Shared {
            name: "w17_whiteouts_through_different_symlinks",
            lower: [vec![usr("usr/lib")], vec![usr("opt"), vec![file("opt/z", ""), file("usr/lib/y", "kept")]]],
            shared: vec![whiteout("lib", "y"), whiteout("lib/m", "n")],
            above: vec![],
        },
        Shared {
            name: "w17_opaque_through_a_symlink_and_over_a_directory",
            lower: [
                vec![usr("usr/lib")],
                vec![vec![dir("lib/").mode(0o700).mtime(9), file("lib/old", ""), dir("lib/s/")]],
            ],
            shared: vec![opaque("lib"), file("lib/s/n", "").mtime(77)],
            above: vec![vec![opaque("lib/s"), file("lib/s/o", "")]],
        },
        Shared {
            name: "w05_whiteout_of_what_comes_again",
            lower: [vec![vec![dir("d/").mode(0o700), file("d/old", "")]], vec![usr("d")]],
            shared: vec![file("d/new", "").mtime(77), whiteout("", "d")],
            above: vec![],
        },
        Shared {
            name: "s06_placed_by_a_fix_up_then_replaced_deleted_and_linked",
            lower: [vec![usr("usr/lib")], vec![usr("opt")]],
            shared: vec![file("lib/a", "1"), file("lib/b", "2"), file("lib/c", "3"), file("lib/e/f", "4").mtime(77)],
            above: vec![
                vec![file("lib/a", "replaced"), whiteout("lib", "b"), hardlink("linked", "lib/c").mode(0o600)],
                vec![dir("lib/e/").mode(0o700), opaque("lib/e"), file("lib/e/g", "5")],
                vec![symlink("lib/e", "/"), hardlink("lib/c", "lib/a")],
            ],
        },
        Shared {
            name: "w08_opaque_root_above_a_fix_up",
            lower: [vec![usr("usr/lib")], vec![vec![owned(0o700, 5, 5)]]],
            shared: vec![file("lib/x", ""), file("d/x", "")],
            above: vec![vec![opaque(""), file("lib/n", "").mtime(77)]],
        },
    ]
}

/// X2: one directory serves both images at the same time and is not touched by either.
#[test]
fn x02_one_layer_in_two_images_over_different_layers() {
    if !root_or_skip("x02_one_layer_in_two_images_over_different_layers") {
        return;
    }
    let lab = Lab::new();
    for options in [ModelOptions::default(), shadow()] {
        for Shared { name, lower, shared, above } in shared_layers() {
            let name = format!("{name} {:?}", options.lower_symlinks);
            let work = tempfile::tempdir_in(lab.path()).unwrap();
            let store = unpack::open_store(&work.path().join("store"), false).unwrap();
            let product = Options { tree: tree_options(options), ..quick() };
            // The layer is alone in the store first: nothing later may change it.
            let stacks: Vec<Vec<Layer>> =
                lower.iter().map(|l| [l.clone(), vec![shared.clone()], above.clone()].concat()).collect();
            let mut pulled = Vec::new();
            let mut first: Option<BTreeMap<String, Tree>> = None;
            for (n, layers) in stacks.iter().enumerate() {
                let reference = image(&work.path().join(format!("i{n}")), layers);
                let want = Model::of_image(lab.options(options), layers).map(|m| lab.comparable(m.tree()));
                let got = unpack::pull(&reference, &store, &product, &|_| {});
                let flat = work.path().join(format!("flat{n}"));
                let unpacked = unpack::unpack(&reference, &flat, None, &product, &|_| {});
                match (want, got) {
                    (Ok(want), Ok(got)) => {
                        unpacked.unwrap();
                        assert_same(&format!("{name} {n}, flat"), &want, &lab.comparable(lab.describe(&flat)));
                        pulled.push((format!("{name} {n}"), got, want));
                    }
                    (Err(_), Err(_)) => assert!(unpacked.is_err(), "{name}: unpack takes what pull refuses"),
                    (want, got) => panic!("{name} {n}: model {:?}, product {:?}", want.err(), got.err()),
                }
                first.get_or_insert_with(|| layers_of(&store));
            }
            let chains: Vec<(&str, &Pulled, Tree)> = pulled.iter().map(|(n, p, t)| (&n[..], p, t.clone())).collect();
            all_at_once(&lab, &store, &chains);
            let last = layers_of(&store);
            for (diff_id, tree) in first.unwrap() {
                assert_same(&format!("{name}: layer {diff_id}"), &tree, &last[&diff_id]);
            }
            assert_eq!(store.check().unwrap(), [], "{name}");
        }
    }
}

fn shadow() -> ModelOptions {
    ModelOptions { lower_symlinks: testkit::model::LowerSymlinks::Shadow, ..ModelOptions::default() }
}

/// X2 with layers nobody thought of: random stacks that share a random layer.
#[test]
fn x02_random_layers_shared_by_random_stacks() {
    if !root_or_skip("x02_random_layers_shared_by_random_stacks") {
        return;
    }
    let lab = Lab::new();
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (from, count) = (number("UNPLY_SEED", 1), number("UNPLY_IMAGES", 40));
    let mut compared = 0;
    for seed in from..from + count {
        let below: Vec<Vec<Layer>> = (0..2).map(|n| testkit::random::random_image(seed * 2 + n + 1_000_000)).collect();
        let models: Vec<Model> = below
            .iter()
            .filter_map(|layers| Model::of_image(lab.options(ModelOptions::default()), layers).ok())
            .collect();
        let [a, b] = &models[..] else { continue };
        let shared = testkit::random::random_layer_on(seed, &[a, b]);
        let stacks: Vec<Vec<Layer>> = below.into_iter().map(|l| [l, vec![shared.clone()]].concat()).collect();
        if !stacks.iter().all(|layers| lab.can_hold(layers)) {
            continue;
        }
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let store = unpack::open_store(&work.path().join("store"), false).unwrap();
        let mut pulled = Vec::new();
        for (n, layers) in stacks.iter().enumerate() {
            let reference = image(&work.path().join(format!("i{n}")), layers);
            let want = Model::of_image(lab.options(ModelOptions::default()), layers).unwrap().tree();
            let got =
                unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            pulled.push((format!("seed {seed}, stack {n}"), got, lab.comparable(want)));
        }
        let chains: Vec<(&str, &Pulled, Tree)> = pulled.iter().map(|(n, p, t)| (&n[..], p, t.clone())).collect();
        let before = layers_of(&store);
        all_at_once(&lab, &store, &chains);
        for (diff_id, tree) in before {
            assert_same(&format!("seed {seed}: layer {diff_id}"), &tree, &layers_of(&store)[&diff_id]);
        }
        compared += 1;
    }
    println!("{compared} of {count} pairs of random stacks compared");
    assert!(compared * 8 > count, "{compared} of {count}: too few stacks were usable");
}

/// Every sequence of four out of three layers that depend on what is below: C, A, B, A and all the others.
#[test]
fn x02_layers_twice_and_thrice_in_every_order() {
    if !root_or_skip("x02_layers_twice_and_thrice_in_every_order") {
        return;
    }
    let lab = Lab::new();
    let sets: [[Layer; 3]; 2] = [
        [
            vec![file("d/a", "A").mtime(7), hardlink("g", "f"), file("lib/x", "A"), whiteout("", "b"), file("f", "A")],
            vec![
                dir("d/").mode(0o700).mtime(5),
                file("f", "B"),
                symlink("lib", "usr"),
                file("b", "B"),
                whiteout("d", "a"),
            ],
            vec![dir("usr/").mode(0o711), opaque("d"), file("d/c", "C").mtime(9), file("f", "C"), whiteout("", "lib")],
        ],
        [
            vec![symlink("l", "t"), dir("t/").mode(0o700), file("t/n", "A"), hardlink("k", "t/n")],
            vec![whiteout("l", "n"), file("l/m", "B").mtime(3), dir("u/"), file("u/n", "B")],
            vec![symlink("l", "u"), file("l/n", "C"), opaque("t"), hardlink("u/k", "l/n")],
        ],
    ];
    let mut wrong = Vec::new();
    for (set, layers) in sets.iter().enumerate() {
        for code in 0..81usize {
            let order: Vec<usize> = (0..4).map(|n| code / 3usize.pow(n) % 3).collect();
            let stack: Vec<Layer> = order.iter().map(|n| layers[*n].clone()).collect();
            wrong.extend(check_every_way(&lab, &format!("set {set}, {order:?}"), &stack, ModelOptions::default()));
        }
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

/// Removes every fix-up of a store behind its back: trees, records or both; returns how many there were.
fn lose_fixups(store: &Store, trees: bool, records: bool) -> usize {
    let root = store.root();
    let mut lost = 0;
    for entry in std::fs::read_dir(root.join("fixups")).unwrap() {
        let record: PathBuf = entry.unwrap().path();
        let tree = root.join("l").join(record.file_name().unwrap());
        if trees && tree.is_dir() {
            std::fs::remove_dir_all(&tree).unwrap();
            lost += 1;
        }
        if records {
            std::fs::remove_dir_all(&record).unwrap();
        }
    }
    lost
}

#[test]
fn x02_fix_ups_are_made_again_when_lost() {
    if !root_or_skip("x02_fix_ups_are_made_again_when_lost") {
        return;
    }
    let lab = Lab::new();
    for (trees, records) in [(true, true), (true, false), (false, true)] {
        for Shared { name, lower, shared, above } in shared_layers() {
            let layers = [lower[0].clone(), vec![shared], above].concat();
            let work = tempfile::tempdir_in(lab.path()).unwrap();
            let at = work.path().join("store");
            let reference = image(&work.path().join("i"), &layers);
            let want = lab.comparable(Model::of_image(lab.options(ModelOptions::default()), &layers).unwrap().tree());
            let store = unpack::open_store(&at, false).unwrap();
            let first = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
            let made: Vec<Tree> = first.chain.lowerdirs().iter().map(|p| raw(p)).collect();
            let id = first.record.image.image_id.to_string();
            drop(first);
            lose_fixups(&store, trees, records);
            drop(store);
            let store = unpack::open_store(&at, false).unwrap();
            // From the store alone, then by a pull that finds every layer there.
            let again = unpack::stored(&id, &store, &|_| {}).unwrap();
            let pulled = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
            assert!(pulled.layers.iter().all(|l| l.reused), "{name}: a layer was unpacked again");
            let remade: Vec<Tree> = pulled.chain.lowerdirs().iter().map(|p| raw(p)).collect();
            assert_eq!(made.len(), remade.len(), "{name}");
            for (n, (a, b)) in made.iter().zip(&remade).enumerate() {
                assert_same(&format!("{name}: lower directory {n} after trees={trees} records={records}"), a, b);
            }
            all_at_once(&lab, &store, &[("stored", &again, want.clone()), ("pulled", &pulled, want)]);
            assert_eq!(store.check().unwrap(), [], "{name}");
        }
    }
}

/// The fix-ups of a chain stand directly above the layers they correct, and chains that begin alike share them.
#[test]
fn x02_chains_that_begin_alike_share_their_fix_ups() {
    if !root_or_skip("x02_chains_that_begin_alike_share_their_fix_ups") {
        return;
    }
    let lab = Lab::new();
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    let base = vec![vec![dir("usr/lib/"), symlink("lib", "usr/lib")], vec![file("lib/x", "1")]];
    let mut chains = Vec::new();
    for n in 0..2 {
        let layers = [base.clone(), vec![vec![file("lib/y", n.to_string())]]].concat();
        let reference = image(&lab.path().join(format!("i{n}")), &layers);
        let pulled = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
        let key = format!("k{n}");
        drop(pulled.chain.snapshot(&key).unwrap());
        chains.push(store.snapshot(&key).unwrap().lowers);
    }
    let fixups: Vec<Vec<Lower>> =
        chains.iter().map(|lowers| lowers.iter().filter(|l| matches!(l, Lower::Fixup(_))).copied().collect()).collect();
    for lowers in &chains {
        assert_eq!(lowers.len(), 5, "topmost first: fix-up, layer, fix-up, layer, layer: {lowers:?}");
        assert!(matches!(
            lowers[..],
            [Lower::Fixup(_), Lower::Layer(_), Lower::Fixup(_), Lower::Layer(_), Lower::Layer(_)]
        ));
    }
    assert_ne!(fixups[0][0], fixups[1][0]);
    assert_eq!(fixups[0][1], fixups[1][1], "the fix-up of the second layer is made once");
}

#[test]
fn x02_a_chain_of_120_layers_with_a_fix_up_each() {
    if !root_or_skip("x02_a_chain_of_120_layers_with_a_fix_up_each") {
        return;
    }
    let lab = Lab::new();
    let mut layers = vec![vec![
        dir("usr/lib/").mode(0o711).mtime(5),
        symlink("lib", "usr/lib"),
        dir("d/").mode(0o700).owner(5, 6).mtime(7),
        file("f0", "f"),
    ]];
    for n in 1..=120usize {
        let mut layer = vec![file(format!("lib/n{n}"), n.to_string()), file(format!("d/s/n{n}"), "").mtime(n as i64)];
        if n % 10 == 0 {
            // The whole group moves into this layer's fix-up.
            layer.push(hardlink(format!("f{n}"), format!("f{}", n - 10)).mode(0o600 + n as u32 % 8));
        }
        if n % 7 == 0 {
            layer.extend([whiteout("lib", format!("n{}", n - 1)), file(format!("lib/n{}", n - 2), "again")]);
        }
        layers.push(layer);
    }
    let model = lab.comparable(Model::of_image(lab.options(ModelOptions::default()), &layers).unwrap().tree());
    for (way, tree) in lab.every_way(&layers, ModelOptions::default()).unwrap() {
        assert_same(way, &model, &lab.comparable(tree));
    }
}

#[test]
fn chains_in_a_user_namespace() {
    in_user_namespace(&[
        "x02_one_layer_in_two_images_over_different_layers",
        "x02_random_layers_shared_by_random_stacks",
        "x02_layers_twice_and_thrice_in_every_order",
        "x02_fix_ups_are_made_again_when_lost",
    ]);
}
