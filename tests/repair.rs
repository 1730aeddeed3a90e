//! What is damaged is unpacked again, and nobody who uses the store meanwhile is disturbed.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use common::*;
use testkit::image::{ImageSpec, OciLayout};
use testkit::{EntrySpec, dir, file, hardlink, whiteout};
use unply::cancel::CancelToken;
use unply::digest::DiffId;
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::store::{Depth, Store};
use unply::unpack::{self, Options, Repaired};

const NAME: &str = "t";

struct Pulled {
    work: tempfile::TempDir,
    store: Store,
}

fn options() -> Options {
    Options { durable: false, jobs: 2, ..Options::default() }
}

fn layout(place: &Path, layers: &[Vec<EntrySpec>]) -> Reference {
    let spec = ImageSpec::new(layers.iter().map(testkit::layer)).tag(NAME);
    OciLayout::new(place).unwrap().add(&spec).unwrap();
    format!("oci:{}:{NAME}", place.display()).parse().unwrap()
}

fn pull(lab: &Lab, layers: &[Vec<EntrySpec>]) -> Pulled {
    let work = tempfile::tempdir_in(lab.path()).unwrap();
    let reference = layout(&work.path().join("image"), layers);
    let store = unpack::open_store(&work.path().join("store"), false).unwrap();
    unpack::pull(&reference, &store, &options(), &|_| {}).unwrap();
    Pulled { work, store }
}

/// Two layers; the upper one says nothing of `d`, so it needs a fix-up over the lower one.
fn sample() -> Vec<Vec<EntrySpec>> {
    let lower = vec![dir("d/").mode(0o711).mtime(9), file("d/old", "old content"), file("d/gone", "x")];
    let upper = vec![file("d/new", "new content").mtime(5), hardlink("d/again", "d/old"), whiteout("d", "gone")];
    vec![lower, upper]
}

impl Pulled {
    fn repair(&self) -> Repaired {
        unpack::repair(NAME, None, &self.store, &options(), &|_| {}).unwrap()
    }

    fn tree_with(&self, path: &str) -> PathBuf {
        let mut found = fs::read_dir(self.store.root().join("l")).unwrap().map(|e| e.unwrap().path());
        found.find(|tree| tree.join(path).symlink_metadata().is_ok()).unwrap()
    }

    fn damage(&self) -> Vec<String> {
        let mut out = Vec::new();
        for layer in self.store.layers().unwrap() {
            let done =
                self.store.verify_layer(&layer, Depth::Content, &CancelToken::new(), &mut |d| out.push(d.to_string()));
            out.extend(done.err().map(|e| e.to_string()));
        }
        out.extend(self.fixup_damage());
        out
    }

    fn fixup_damage(&self) -> Vec<String> {
        let record = self.store.find_image(NAME).unwrap();
        let mut out = Vec::new();
        unpack::verify_fixups(&self.store, &record, Depth::Content, &CancelToken::new(), &mut |_, found| {
            out.extend(found.map(|d| d.to_string()));
        })
        .unwrap();
        out
    }

    fn kept(&self) -> usize {
        fs::read_dir(self.store.root().join("kept")).map_or(0, Iterator::count)
    }

    fn reopened(&self) -> Store {
        Store::open_existing(self.store.root(), false).unwrap()
    }
}

/// Flips one bit behind size and mtime.
fn flip(path: &Path) {
    let before = fs::metadata(path).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, 0).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
}

fn layer_ids(store: &Store) -> Vec<DiffId> {
    store.find_image(NAME).unwrap().image.layers.iter().map(|l| l.diff_id).collect()
}

#[test]
fn only_what_is_damaged_is_unpacked_again() {
    if !root_or_skip("only_what_is_damaged_is_unpacked_again") {
        return;
    }
    let lab = Lab::new();
    let pulled = pull(&lab, &sample());
    let none = pulled.repair();
    assert!(none.layers.is_empty() && none.fixups.is_empty(), "{none:?}");

    let tree = pulled.tree_with("d/new");
    flip(&tree.join("d/new"));
    assert_eq!(pulled.damage().len(), 1);
    let done = pulled.repair();
    assert_eq!(done.layers, layer_ids(&pulled.store)[1..]);
    assert!(done.fixups.is_empty() && done.remount.is_empty(), "{done:?}");
    assert_eq!(fs::read_to_string(tree.join("d/new")).unwrap(), "new content");
    assert_eq!(pulled.damage(), [""; 0]);
    assert_eq!(pulled.reopened().check().unwrap(), []);
    assert_eq!(pulled.kept(), 0);
}

#[test]
fn every_damage_is_repaired() {
    if !root_or_skip("every_damage_is_repaired") {
        return;
    }
    let lab = Lab::new();
    type Harm = (&'static str, fn(&Pulled));
    let harms: [Harm; 6] = [
        ("a file is gone", |p| fs::remove_file(p.tree_with("d/new").join("d/new")).unwrap()),
        ("a tree is gone", |p| fs::remove_dir_all(p.tree_with("d/new")).unwrap()),
        ("a tree is a file", |p| {
            let tree = p.tree_with("d/new");
            fs::remove_dir_all(&tree).unwrap();
            fs::write(tree, "").unwrap();
        }),
        ("the journal is cut", |p| {
            for layer in p.store.layers().unwrap() {
                File::options().write(true).open(layer.meta_path().join("entries")).unwrap().set_len(20).unwrap();
            }
        }),
        ("the record is empty", |p| {
            let layer = p.store.layers().unwrap().remove(0);
            fs::write(layer.meta_path().join("record.json"), "").unwrap();
        }),
        ("the fix-up's copy of a lower file", |p| flip(&p.tree_with("d/again").join("d/again"))),
    ];
    for (name, harm) in harms {
        let pulled = pull(&lab, &sample());
        let flat = |pulled: &Pulled, out: &str| {
            let out = pulled.work.path().join(out);
            let reference = Reference::Stored(NAME.to_owned());
            unpack::unpack(&reference, &out, Some(&pulled.store), &options(), &|_| {}).unwrap();
            testkit::describe::describe(&out, &Default::default()).unwrap()
        };
        let before = flat(&pulled, "before");
        harm(&pulled);
        let pulled = Pulled { store: pulled.reopened(), ..pulled };
        let done = pulled.repair();
        assert!(!(done.layers.is_empty() && done.fixups.is_empty()), "{name}: {done:?}");
        assert_eq!(pulled.damage(), [""; 0], "{name}");
        assert_eq!(pulled.reopened().check().unwrap(), [], "{name}");
        assert!(before == flat(&pulled, "after"), "{name}");
    }
}

#[test]
fn a_mount_keeps_what_it_shows_until_it_is_made_again() {
    if !root_or_skip("a_mount_keeps_what_it_shows_until_it_is_made_again") {
        return;
    }
    let lab = Lab::new();
    let pulled = pull(&lab, &sample());
    let target = pulled.work.path().join("m");
    fs::create_dir(&target).unwrap();
    let mount = |key: &str| {
        let chain = unpack::stored(NAME, &pulled.store, &|_| {}).unwrap().chain;
        chain.view_snapshot(key).unwrap().mount(&target).unwrap()
    };
    let first = mount("first");
    flip(&pulled.tree_with("d/new").join("d/new"));
    let open = File::open(target.join("d/new")).unwrap();
    let done = pulled.repair();
    assert_eq!(done.layers.len(), 1);
    assert_eq!(done.remount.iter().map(|u| u.target.as_path()).collect::<Vec<_>>(), [&target]);

    // Neither what is open nor what is opened now has changed, nor is anything stale.
    let damaged = String::from_utf8(vec![b'n' ^ 1]).unwrap() + "ew content";
    assert_eq!(std::io::read_to_string(&open).unwrap(), damaged);
    assert_eq!(fs::read_to_string(target.join("d/new")).unwrap(), damaged);
    assert_eq!(fs::read_to_string(target.join("d/again")).unwrap(), "old content");
    let store = pulled.reopened();
    store.gc(false).unwrap();
    assert_eq!((pulled.kept(), fs::read_to_string(target.join("d/new")).unwrap()), (1, damaged));

    drop(open);
    first.detach().unwrap();
    let second = mount("second");
    assert_eq!(fs::read_to_string(target.join("d/new")).unwrap(), "new content");
    second.detach().unwrap();
    // Device numbers are used again: the old tree goes at the latest with the mount that got the old one's.
    let store = pulled.reopened();
    assert_eq!(pulled.kept(), 0);
    for key in ["first", "second"] {
        store.remove_snapshot(key).unwrap();
    }
    assert_eq!(store.check().unwrap(), []);
}

#[test]
fn without_its_source_nothing_is_changed() {
    if !root_or_skip("without_its_source_nothing_is_changed") {
        return;
    }
    let lab = Lab::new();
    let pulled = pull(&lab, &sample());
    let tree = pulled.tree_with("d/new");
    flip(&tree.join("d/new"));
    let image = pulled.work.path().join("image");
    fs::rename(&image, pulled.work.path().join("moved")).unwrap();
    let repair = |from: Option<&Reference>| unpack::repair(NAME, from, &pulled.store, &options(), &|_| {});
    let e = repair(None).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    assert!(e.hint().is_some_and(|hint| hint.contains("--from")), "{e:?}");

    // Another image does not have the layer; one that merely has that name neither.
    let other = layout(&pulled.work.path().join("other"), &[vec![file("f", "")]]);
    let e = repair(Some(&other)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    assert_eq!(pulled.damage().len(), 1);

    // Another image that shares the layer will do.
    let mut layers = sample();
    layers.push(vec![file("more", "")]);
    let shares = layout(&pulled.work.path().join("shares"), &layers);
    assert_eq!(repair(Some(&shares)).unwrap().layers.len(), 1);
    assert_eq!(pulled.damage(), [""; 0]);
}

#[test]
fn a_damaged_source_repairs_nothing() {
    if !root_or_skip("a_damaged_source_repairs_nothing") {
        return;
    }
    let lab = Lab::new();
    let pulled = pull(&lab, &sample());
    let tree = pulled.tree_with("d/new");
    flip(&tree.join("d/new"));
    let record = pulled.store.find_image(NAME).unwrap();
    let hex = record.image.layers[1].digest.to_string().replace("sha256:", "");
    flip(&pulled.work.path().join("image/blobs/sha256").join(hex));
    let e = unpack::repair(NAME, None, &pulled.store, &options(), &|_| {}).unwrap_err();
    assert!(matches!(e.kind(), ErrorKind::Integrity | ErrorKind::Malformed), "{e}");
    assert_eq!(pulled.damage().len(), 1);
    assert_eq!(pulled.reopened().check().unwrap(), []);
}

#[test]
fn the_same_inside_a_user_namespace() {
    in_user_namespace(&[
        "only_what_is_damaged_is_unpacked_again",
        "every_damage_is_repaired",
        "a_mount_keeps_what_it_shows_until_it_is_made_again",
    ]);
}
