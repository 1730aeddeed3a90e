//! The store's format: a store of every version that was ever released is opened, listed, checked, mounted and collected
//! by the program of today, and what it does not know is refused.
//!
//! The golden stores stand in `tests/data/`: `store-v1-trusted.tar.gz` was made by root, `store-v1-user.tar.gz` by root of a
//! user namespace. A new version of the format adds two; old ones are never made again. To make those of a new version, as root:
//! `UNPLY_BLESS=1 cargo test --test format -- --ignored build_the_golden_stores`

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Lab, in_user_namespace, root_or_skip};
use testkit::image::{ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{EntrySpec, compare, dir, file, opaque, symlink, whiteout};
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::store::{SnapshotFilter, SnapshotKind, Store};
use unply::unpack::{self, Options, Snapshot, snapshot_plan};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The image that is in the golden stores: its fix-up is for `lib/b`, which goes through a symlink of the lower layer.
fn layers() -> Vec<Vec<EntrySpec>> {
    vec![
        vec![
            dir("etc/"),
            file("etc/gone", "gone"),
            dir("opt/"),
            file("opt/old", "old"),
            dir("usr/"),
            dir("usr/lib/"),
            file("usr/lib/a", "a"),
            symlink("lib", "usr/lib"),
        ],
        vec![whiteout("etc", "gone"), opaque("opt"), file("opt/new", "new"), file("lib/b", "b")],
    ]
}

const IMAGE: &str = "t";

/// What is done to make a golden store, in the user or mount namespace that gives its flavour.
const SCRIPT: &str = r#"
"$unply" pull oci:image:t
mkdir m
"$unply" mount --snapshot work oci:image:t m
echo written > m/new; rm m/usr/lib/a; rm -r m/etc; mkdir m/etc; echo etc > m/etc/again
"$unply" umount m
"$unply" snapshot prepare change --image oci:image:t
eval "$("$unply" snapshot mounts change m)"
echo committed > m/done; chmod 750 m
umount m
"$unply" snapshot commit done change --label "example.org/why=a golden store"
"$unply" snapshot prepare on-done done --label a=b
"$unply" snapshot view look --image oci:image:t
"$unply" snapshot prepare empty
"#;

#[test]
#[ignore = "makes the golden stores of a new version of the format"]
fn build_the_golden_stores() {
    assert!(std::env::var_os("UNPLY_BLESS").is_some(), "only with UNPLY_BLESS=1: see the head of this file");
    for (flavour, namespaces) in [("trusted", "-m"), ("user", "-Urm")] {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let spec = ImageSpec::new(layers().iter().map(testkit::layer)).tag("t");
        OciLayout::new(place.path().join("image")).unwrap().add(&spec).unwrap();
        let script = Command::new("unshare")
            .args([namespaces, "sh", "-euxc", SCRIPT])
            .env("unply", env!("CARGO_BIN_EXE_unply"))
            .env("UNPLY_ROOT", place.path().join("store"))
            .current_dir(place.path())
            .status();
        assert!(script.unwrap().success());
        let tar = Command::new("tar")
            .args(["--create", "--format=posix", "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*"])
            .args(["--pax-option=delete=atime,delete=ctime", "--use-compress-program=gzip -9n", "--file"])
            .arg(data(&format!("store-v{}-{flavour}.tar.gz", unply::store::VERSION)))
            .args(["-C", place.path().to_str().unwrap(), "store"])
            .status();
        assert!(tar.unwrap().success());
    }
}

/// Puts the golden store of this namespace's flavour into `dir`.
fn golden(dir: &Path, flavour: &str) -> PathBuf {
    let tar = Command::new("tar")
        .args(["--extract", "--preserve-permissions", "--same-owner", "--numeric-owner", "--xattrs"])
        .args(["--xattrs-include=*", "--file"])
        .arg(data(&format!("store-v1-{flavour}.tar.gz")))
        .arg("-C")
        .arg(dir)
        .output()
        .unwrap();
    assert!(tar.status.success() && tar.stderr.is_empty(), "{tar:?}");
    dir.join("store")
}

fn here(lab: &Lab) -> (&'static str, &'static str) {
    if lab.in_user_namespace { ("user", "trusted") } else { ("trusted", "user") }
}

fn copy_of_image(lab: &Lab) -> Reference {
    let layout = lab.path().join("image");
    let spec = ImageSpec::new(layers().iter().map(testkit::layer)).tag("t");
    OciLayout::new(&layout).unwrap().add(&spec).unwrap();
    format!("oci:{}:t", layout.display()).parse().unwrap()
}

#[test]
fn a_store_of_version_1_is_opened_listed_mounted_checked_and_collected() {
    if !root_or_skip("a_store_of_version_1_is_opened_listed_mounted_checked_and_collected") {
        return;
    }
    let lab = Lab::new();
    let store = Store::open_existing(&golden(lab.path(), here(&lab).0), true).unwrap();
    assert_eq!(store.check().unwrap(), []);

    let images = store.images().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].names.as_slice(), images[0].image.layers.len()), (&[IMAGE.to_owned()][..], 2));
    assert!(store.image_manifest(&images[0].image.image_id).unwrap().is_some());
    let usage = store.usage().unwrap();
    assert_eq!(usage.layers.len(), 2);
    assert!(usage.layers.iter().all(|layer| layer.users.len() == 5), "one image, four snapshots: {usage:#?}");
    let snapshots = store.snapshots().unwrap();
    let listed: Vec<_> = snapshots.iter().map(|s| (s.key.as_str(), s.kind, s.parent.as_deref())).collect();
    use SnapshotKind::{Active, Committed, View};
    let expected = [
        ("work", Active, None),
        ("done", Committed, None),
        ("on-done", Active, Some("done")),
        ("look", View, None),
        ("empty", Active, None),
    ];
    assert_eq!(listed, expected);
    let filter = SnapshotFilter::parse(&["labels.\"example.org/why\"==\"a golden store\""]).unwrap();
    assert_eq!(snapshots.iter().filter(|s| filter.fits(s)).count(), 1);
    assert!(store.snapshot_usage("done").unwrap().inodes >= 2);

    // What it shows is what the image means, and what was written.
    let target = lab.path().join("m");
    fs::create_dir(&target).unwrap();
    let model = Model::of_image(lab.options(Default::default()), &layers()).unwrap().tree();
    let view = snapshot_plan(&store, "look").unwrap().attach(&target).unwrap();
    let differences = compare(&lab.comparable(model), &lab.comparable(lab.describe(&target)));
    assert!(differences.is_empty(), "{differences:?}");
    view.detach().unwrap();
    let look = |key: &str, there: &[(&str, &str)], gone: &[&str]| {
        let snapshot = Snapshot::open(&store, key).unwrap();
        let mounted = snapshot.mount(&target).unwrap();
        for (name, content) in there {
            assert_eq!(fs::read_to_string(target.join(name)).unwrap(), *content, "{key}: {name}");
        }
        for name in gone {
            assert!(!target.join(name).exists(), "{key}: {name}");
        }
        fs::write(target.join("of-today"), "").unwrap();
        mounted.detach().unwrap();
    };
    look("work", &[("new", "written\n"), ("etc/again", "etc\n"), ("opt/new", "new")], &["usr/lib/a", "opt/old"]);
    look("on-done", &[("done", "committed\n"), ("usr/lib/a", "a"), ("lib/b", "b")], &["etc/gone"]);

    // The same image needs nothing to be unpacked: names of layers and fix-ups are what they were.
    let pulled = unpack::pull(&copy_of_image(&lab), &store, &Options::default(), &|_| {}).unwrap();
    assert!(pulled.layers.iter().all(|layer| layer.reused));
    assert_eq!(pulled.chain.lowerdirs().len(), 3, "two layers and the fix-up of the second");
    drop(pulled);
    assert_eq!(store.gc(true).unwrap(), Default::default());

    store.commit_snapshot("today", "work", Default::default()).unwrap();
    for key in ["on-done", "done", "look", "empty", "today"] {
        store.remove_snapshot(key).unwrap();
    }
    store.remove_image(&images[0].image.image_id).unwrap();
    let freed = store.gc(false).unwrap();
    assert_eq!((freed.layers.len(), freed.fixups.len(), freed.leftovers.len()), (2, 1, 0));
    assert_eq!(store.check().unwrap(), []);
    assert_eq!(fs::read_dir(store.root().join("l")).unwrap().count(), 0);
}

#[test]
fn a_store_of_another_flavour_is_refused_and_not_mixed() {
    if !root_or_skip("a_store_of_another_flavour_is_refused_and_not_mixed") {
        return;
    }
    let lab = Lab::new();
    let (_, other) = here(&lab);
    if lab.in_user_namespace {
        // Its devices and xattrs cannot even be made here; the record is enough.
        let root = golden(lab.path(), "user");
        let path = root.join("store.json");
        let record = fs::read_to_string(&path).unwrap();
        fs::write(&path, record.replace("\"user\"", "\"trusted\"")).unwrap();
    } else {
        golden(lab.path(), other);
    }
    let root = lab.path().join("store");
    let e = unpack::open_store(&root, true).unwrap_err();
    let text = e.to_string();
    assert!(e.kind() == ErrorKind::Unsupported && text.contains("--root"), "{text}");
    assert!(text.contains("trusted.overlay.*") && text.contains("user.overlay.*"), "{text}");
}

#[test]
fn every_kind_of_record_of_an_unknown_version_is_refused() {
    if !root_or_skip("every_kind_of_record_of_an_unknown_version_is_refused") {
        return;
    }
    let lab = Lab::new();
    let root = golden(lab.path(), here(&lab).0);
    let reference = copy_of_image(&lab);
    for kind in ["store.json", "layers", "fixups", "images", "snapshots"] {
        let place = root.join(kind);
        let records: Vec<PathBuf> = if place.is_file() {
            vec![place]
        } else {
            let entries = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { path.join("record.json") } else { path }).collect()
        };
        assert!(!records.is_empty(), "{kind}");
        let store = Store::open_existing(&root, true).unwrap();
        let before: Vec<Vec<u8>> = records.iter().map(|path| fs::read(path).unwrap()).collect();
        for (path, text) in records.iter().zip(&before) {
            let text = String::from_utf8(text.clone()).unwrap();
            // A document of tomorrow may have nothing else that we know.
            let version: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(version["version"], 1);
            fs::write(path, "{\"version\": 2, \"news\": []}").unwrap();
        }
        let errors = match kind {
            "store.json" => {
                vec![Store::open_existing(&root, true).unwrap_err(), unpack::open_store(&root, true).unwrap_err()]
            }
            "layers" => vec![store.layers().unwrap_err(), store.usage().unwrap_err()],
            "fixups" => vec![unpack::pull(&reference, &store, &Options::default(), &|_| {}).unwrap_err()],
            "images" => vec![store.images().unwrap_err(), store.gc(false).unwrap_err()],
            _ => {
                vec![store.snapshots().unwrap_err(), store.gc(false).unwrap_err(), store.snapshot("work").unwrap_err()]
            }
        };
        for e in errors {
            let text = e.to_string();
            assert!(e.kind() == ErrorKind::Unsupported, "{kind}: {text}");
            for part in ["has version 2", "knows version 1", "use the release of unply that wrote", "--root"] {
                assert!(text.contains(part), "{kind}: {part} is missing in {text}");
            }
        }
        for (path, bytes) in records.iter().zip(before) {
            fs::write(path, bytes).unwrap();
        }
        assert_eq!(store.check().unwrap(), [], "{kind}: a refused command changed something");
    }
}

#[test]
fn the_format_in_user_namespaces() {
    in_user_namespace(&[
        "a_store_of_version_1_is_opened_listed_mounted_checked_and_collected",
        "a_store_of_another_flavour_is_refused_and_not_mixed",
        "every_kind_of_record_of_an_unknown_version_is_refused",
    ]);
}

/// A layer's journal is read where a fix-up is missing and by `verify`: another version is not understood (exit 6), anything
/// else at its head is damage (exit 4), and neither is guessed at.
#[test]
fn journals_with_another_first_line_are_refused_by_mounts_and_verify() {
    if !root_or_skip("journals_with_another_first_line_are_refused_by_mounts_and_verify") {
        return;
    }
    let lab = Lab::new();
    let root = golden(lab.path(), here(&lab).0);
    let target = lab.path().join("m");
    fs::create_dir(&target).unwrap();
    for fixup in fs::read_dir(root.join("fixups")).unwrap() {
        fs::remove_dir_all(fixup.unwrap().path()).unwrap();
    }
    let store = Store::open_existing(&root, true).unwrap();
    let layer = store.layers().unwrap().into_iter().find(|layer| layer.facts().depends_on_lower).unwrap();
    let journal = layer.meta_path().join("entries");
    let whole = fs::read(&journal).unwrap();
    let known = b"unply journal 2\n";
    let records = whole.strip_prefix(known).unwrap();
    let target = target.to_str().unwrap();
    let unply = |first: &[&str], rest: &[&str]| {
        let mut command = Command::new("unshare");
        command.arg("-m").arg(env!("CARGO_BIN_EXE_unply")).env("UNPLY_ROOT", &root);
        command.args(first).args(rest).output().unwrap()
    };
    for (first_line, code, word) in [
        (&b"unply journal 3\n"[..], 6, "unsupported"),
        (b"unply journal 10\n", 6, "unsupported"),
        (b"unply journal 1\n", 6, "unsupported"),
        (b"unply journal x\n", 4, "integrity"),
        (b"unply journal \n", 4, "integrity"),
        (b"another journal\n", 4, "integrity"),
        (b"unply journal 99999999999999\n", 4, "integrity"),
        (b"", 4, "integrity"),
    ] {
        fs::write(&journal, [first_line, records].concat()).unwrap();
        for command in [&["mount", IMAGE, target][..], &["verify", IMAGE]] {
            let output = unply(&["--json"], command);
            let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let what = format!("{} {first_line:?}: {output:?}", command[0]);
            assert_eq!(output.status.code(), Some(code), "{what}");
            if command[0] == "mount" || code == 6 {
                assert_eq!(document["error"]["code"], word, "{what}");
                assert!(document["error"]["message"].as_str().unwrap().contains("journal"), "{what}");
                assert!(document["error"]["hint"].is_string(), "{what}");
            } else {
                // Damage is what `verify` lists; it goes on with the other layers.
                let layers = document["layers"].as_array().unwrap();
                let damaged = layers.iter().find(|l| l["diff_id"] == layer.diff_id().to_string()).unwrap();
                assert_eq!(damaged["damage"][0]["kind"], "record", "{what}");
            }
        }
    }
    fs::write(&journal, &whole).unwrap();
    assert!(unply(&["mount"], &[IMAGE, target]).status.success());
}
