//! A published layer is what was unpacked, and `verify` notices when it is not.

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use common::*;
use testkit::cases::{self, Expect};
use testkit::image::{ImageSpec, OciLayout};
use testkit::{EntrySpec, dir, file, hardlink, whiteout};
use unply::cancel::CancelToken;
use unply::store::{Damage, DamageKind, Depth, Store};
use unply::unpack::{self, Options};

/// A store with one image in it.
struct Pulled {
    _work: tempfile::TempDir,
    store: Store,
    trees: Vec<PathBuf>,
}

fn pull(lab: &Lab, layers: &[Vec<EntrySpec>], options: testkit::model::Options) -> unply::error::Result<Pulled> {
    pull_tars(lab, layers.iter().map(testkit::layer).collect(), options)
}

fn pull_tars(lab: &Lab, tars: Vec<Vec<u8>>, options: testkit::model::Options) -> unply::error::Result<Pulled> {
    let work = tempfile::tempdir_in(lab.path()).unwrap();
    let layout = work.path().join("image");
    OciLayout::new(&layout).unwrap().add(&ImageSpec::new(tars).tag("t")).unwrap();
    let store = unpack::open_store(&work.path().join("store"), false).unwrap();
    let options = Options { tree: tree_options(options), durable: false, jobs: 2, ..Options::default() };
    let reference = format!("oci:{}:t", layout.display()).parse().unwrap();
    let pulled = unpack::pull(&reference, &store, &options, &|_| {})?;
    let trees = pulled.chain.layers().iter().map(|l| l.tree_path().to_path_buf()).collect();
    Ok(Pulled { _work: work, store, trees })
}

fn damage(store: &Store, depth: Depth) -> Vec<Damage> {
    let mut found = Vec::new();
    for layer in store.layers().unwrap() {
        store.verify_layer(&layer, depth, &CancelToken::new(), &mut |d| found.push(d)).unwrap();
    }
    found
}

#[test]
fn what_was_just_unpacked_is_undamaged() {
    if !root_or_skip("what_was_just_unpacked_is_undamaged") {
        return;
    }
    let lab = Lab::new();
    let mut wrong = Vec::new();
    let mut check = |name: &str, layers: &[Vec<EntrySpec>], options| {
        if !lab.can_hold(layers) {
            return;
        }
        let Ok(pulled) = pull(&lab, layers, options) else { return };
        for found in damage(&pulled.store, Depth::Content) {
            wrong.push(format!("{name}: {found}"));
        }
    };
    for case in cases::all().iter().filter(|case| matches!(case.expect, Expect::Tree(_))) {
        check(case.name, &case.layers, case.options);
    }
    for seed in 1..=150 {
        check(&format!("seed {seed}"), &testkit::random::random_image(seed), Default::default());
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_same_inside_a_user_namespace() {
    in_user_namespace(&["what_was_just_unpacked_is_undamaged"]);
}

/// Changes a published layer, and says what must be found: kind, path.
type Change = (&'static str, fn(&Path), DamageKind, &'static str);

fn sample() -> Vec<Vec<EntrySpec>> {
    let lower = vec![dir("d/"), file("d/gone", "x"), dir("o/"), file("o/old", "x")];
    let upper = vec![
        dir("d/").mtime(7),
        file("d/f", "content of f").mode(0o640).mtime(5).xattr("user.k", "v"),
        hardlink("d/g", "d/f").mode(0o640).mtime(5).xattr("user.k", "v"),
        testkit::symlink("d/l", "f"),
        whiteout("d", "gone"),
        dir("o/"),
        testkit::opaque("o"),
        file("o/new", "n"),
    ];
    vec![lower, upper]
}

fn keep_times(path: &Path, change: impl FnOnce()) {
    let before = fs::symlink_metadata(path).unwrap();
    change();
    let file = File::open(path).unwrap();
    let times = fs::FileTimes::new().set_modified(before.modified().unwrap()).set_accessed(before.accessed().unwrap());
    file.set_times(times).unwrap();
}

#[test]
fn every_kind_of_damage_is_found_and_named() {
    if !root_or_skip("every_kind_of_damage_is_found_and_named") {
        return;
    }
    let lab = Lab::new();
    let changes: Vec<Change> = vec![
        (
            "missing file",
            |t| keep_times(&t.join("o"), || fs::remove_file(t.join("o/new")).unwrap()),
            DamageKind::Missing,
            "o/new",
        ),
        ("missing directory", |t| fs::remove_dir_all(t.join("o")).unwrap(), DamageKind::Missing, "o"),
        (
            "missing whiteout",
            |t| keep_times(&t.join("d"), || fs::remove_file(t.join("d/gone")).unwrap()),
            DamageKind::Missing,
            "d/gone",
        ),
        (
            "added",
            |t| keep_times(&t.join("o"), || fs::write(t.join("o/more"), "").unwrap()),
            DamageKind::Added,
            "o/more",
        ),
        (
            "truncated",
            |t| {
                keep_times(&t.join("o/new"), || {
                    File::options().write(true).open(t.join("o/new")).unwrap().set_len(0).unwrap()
                })
            },
            DamageKind::Size,
            "o/new",
        ),
        (
            "mode",
            |t| fs::set_permissions(t.join("d/f"), Permissions::from_mode(0o644)).unwrap(),
            DamageKind::Metadata,
            "d/f",
        ),
        ("owner", |t| chown(t.join("o"), Some(7), None).unwrap(), DamageKind::Metadata, "o"),
        (
            "mtime",
            |t| File::open(t.join("d")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap(),
            DamageKind::Metadata,
            "d",
        ),
        ("xattr", |t| rustix::fs::removexattr(t.join("d/f"), "user.k").unwrap(), DamageKind::Metadata, "d/f"),
        (
            "added xattr",
            |t| rustix::fs::setxattr(t.join("o/new"), "user.more", b"", rustix::fs::XattrFlags::empty()).unwrap(),
            DamageKind::Metadata,
            "o/new",
        ),
        (
            "symlink",
            |t| {
                keep_times(&t.join("d"), || {
                    fs::remove_file(t.join("d/l")).unwrap();
                    symlink("g", t.join("d/l")).unwrap()
                })
            },
            DamageKind::Type,
            "d/l",
        ),
        (
            "another type",
            |t| {
                fs::remove_file(t.join("o/new")).unwrap();
                fs::create_dir(t.join("o/new")).unwrap()
            },
            DamageKind::Type,
            "o/new",
        ),
        (
            "opaque mark",
            |t| rustix::fs::removexattr(t.join("o"), "trusted.overlay.opaque").unwrap(),
            DamageKind::Marks,
            "o",
        ),
        (
            "whiteout filter",
            |t| rustix::fs::removexattr(t.join("d"), "trusted.overlay.origin").unwrap(),
            DamageKind::Marks,
            "d",
        ),
        (
            "hard link",
            |t| {
                fs::copy(t.join("d/f"), t.join("d/c")).unwrap();
                fs::rename(t.join("d/c"), t.join("d/g")).unwrap()
            },
            DamageKind::Links,
            "d/g",
        ),
    ];
    for (name, change, kind, path) in changes {
        let pulled = pull(&lab, &sample(), Default::default()).unwrap();
        assert_eq!(damage(&pulled.store, Depth::Content), [], "{name}: before");
        change(&pulled.trees[1]);
        let found = damage(&pulled.store, Depth::Names);
        assert!(found.iter().any(|d| d.kind == kind && d.path == path.as_bytes()), "{name}: {found:?}");
    }
}

#[test]
fn p16_one_flipped_byte_behind_size_and_mtime_is_found_by_content_alone() {
    if !root_or_skip("p16_one_flipped_byte_behind_size_and_mtime_is_found_by_content_alone") {
        return;
    }
    let lab = Lab::new();
    let pulled = pull(&lab, &sample(), Default::default()).unwrap();
    let path = pulled.trees[1].join("d/g");
    keep_times(&path, || {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0u8];
        file.read_exact_at(&mut byte, 3).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 3).unwrap();
    });
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 5);
    assert_eq!(damage(&pulled.store, Depth::Names), []);
    let found = damage(&pulled.store, Depth::Content);
    // One inode, named once, by the first of its names in the walk.
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, DamageKind::Content);
    assert!([&b"d/f"[..], b"d/g"].contains(&found[0].path.as_slice()), "{found:?}");
}

#[test]
fn sparse_files_are_verified_without_reading_their_holes() {
    if !root_or_skip("sparse_files_are_verified") {
        return;
    }
    let lab = Lab::new();
    // GNU sparse 1.0: the map stands before the data.
    let map = testkit::tar::Header::new(b'0', "s");
    let mut data = b"2\n4096\n4\n549755813888\n5\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"herethere");
    let records = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "s"),
        ("GNU.sparse.realsize", "1099511627776"),
    ];
    let tar = testkit::tar::TarBuilder::new().pax(&records).member(map.size(data.len() as u64), &data).finish();
    let pulled = pull_tars(&lab, vec![tar], Default::default()).unwrap();
    assert_eq!(damage(&pulled.store, Depth::Content), []);
    let path = pulled.trees[0].join("s");
    keep_times(&path, || {
        File::options().write(true).open(&path).unwrap().write_all_at(b"x", 1 << 20).map(drop).unwrap()
    });
    let found = damage(&pulled.store, Depth::Content);
    assert_eq!(found.iter().map(|d| d.kind).collect::<Vec<_>>(), [DamageKind::Content]);
}

#[test]
fn a_damaged_journal_is_said_not_trusted() {
    if !root_or_skip("a_damaged_journal_is_said_not_trusted") {
        return;
    }
    let lab = Lab::new();
    let pulled = pull(&lab, &sample(), Default::default()).unwrap();
    for layer in pulled.store.layers().unwrap() {
        let whole = fs::read(layer.meta_path().join("entries")).unwrap();
        for cut in [0, 5, whole.len() / 2, whole.len() - 1] {
            fs::write(layer.meta_path().join("entries"), &whole[..cut]).unwrap();
            let e = pulled.store.verify_layer(&layer, Depth::Names, &CancelToken::new(), &mut |_| {}).unwrap_err();
            assert_eq!(e.kind(), unply::error::ErrorKind::Integrity, "{cut}: {e}");
        }
    }
}
