//! What a loss of power leaves: whatever a command published before it returned is there, completely.
//!
//! The disk of `common/disk.rs` remembers every write and flush. A run of commands is cut short at many of its writes;
//! each cut is mounted again as another disk in "another boot", and judged. `UNPLY_CUTS=200` asks for that many cuts.

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use disk::{Cut, Disk, Image, Mounted, Random, Rig, disks_or_skip, rounds};
use testkit::image::{ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{DescribeOptions, EntrySpec, Tree, compare, describe, dir, file, hardlink, layer, symlink, whiteout};
use unply::store::{Base, Durable, NewSnapshot, SnapshotKind, Store};
use unply::unpack;

const MEBIBYTES: usize = 96;

/// A place with disks, images to pull from outside of them, and what everything must look like.
struct Field {
    tmp: tempfile::TempDir,
    rig: Rig,
    fresh: Image,
    images: Vec<(&'static str, Vec<Vec<EntrySpec>>)>,
}

/// What lay where, by name.
type Trees = BTreeMap<String, Tree>;

fn tree_of(path: &Path) -> Tree {
    describe(path, &DescribeOptions::default()).unwrap_or_else(|e| panic!("describe {}: {e}", path.display()))
}

fn images() -> Vec<(&'static str, Vec<Vec<EntrySpec>>)> {
    let mut random = Random::new(7);
    let mut files = |dir_name: &str, count: usize| {
        let mut out = vec![dir(format!("{dir_name}/"))];
        for n in 0..count {
            // Nothing, what fits an inode, a part of a block, several blocks.
            let length = [0, 40, 3000, 30_000][random.below(4) as usize];
            out.push(file(format!("{dir_name}/f{n}"), random.bytes(length)).mode(0o640).owner(7, 8));
        }
        out
    };
    let mut base = files("usr", 60);
    base.extend([hardlink("usr/same", "usr/f1"), symlink("bin", "usr"), dir("etc/"), file("etc/conf", "x")]);
    base.push(file("usr/with", "xattr").xattr("user.k", vec![b'v'; 300]));
    let mut middle = files("opt", 30);
    middle.extend([whiteout("usr/", "f2"), file("etc/conf", "y"), file("usr/f3", "changed")]);
    let top = files("srv", 40);
    let other = files("home", 20);
    vec![("one", vec![base.clone(), middle, top]), ("two", vec![base, other])]
}

impl Field {
    fn new() -> Field {
        common::private_mounts();
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let rig = Rig::new(tmp.path());
        let fresh = rig.ext4(MEBIBYTES);
        let images = images();
        for (name, layers) in &images {
            let tars = layers.iter().map(layer).collect::<Vec<_>>();
            OciLayout::new(tmp.path().join(name)).unwrap().add(&ImageSpec::new(tars).tag(*name)).unwrap();
        }
        std::fs::create_dir(tmp.path().join("place")).unwrap();
        Field { tmp, rig, fresh, images }
    }

    fn place(&self) -> PathBuf {
        self.tmp.path().join("place")
    }

    fn reference(&self, name: &str) -> String {
        format!("oci:{}:{name}", self.tmp.path().join(name).display())
    }

    fn model(&self, name: &str) -> Tree {
        let (_, layers) = self.images.iter().find(|(n, _)| *n == name).unwrap();
        Model::of_image(testkit::model::Options::default(), layers).unwrap().tree()
    }

    /// Returns the tree of every layer of the store at the place, by diff_id.
    fn layers(store: &Store) -> Trees {
        store.layers().unwrap().iter().map(|l| (l.diff_id().to_string(), tree_of(l.tree_path()))).collect()
    }

    /// Returns what the layers look like where nothing went wrong.
    fn sound_layers(&self) -> Trees {
        let root = self.tmp.path().join("reference");
        for (name, _) in &self.images {
            run(&root, &["pull", &self.reference(name)]);
        }
        let trees = Self::layers(&Store::open_existing(&root, true).unwrap());
        std::fs::remove_dir_all(root).unwrap();
        trees
    }

    fn mount(&self, disk: &Disk, options: &str) -> Mounted {
        disk.mount(&self.place(), &["noinit_itable", options].join(","))
    }
}

fn output(root: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unply"))
        .env("UNPLY_ROOT", root)
        .args(["--progress", "none", "-j2"])
        .args(args)
        .output()
        .unwrap()
}

#[track_caller]
fn run(root: &Path, args: &[&str]) -> String {
    let output = output(root, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Gives this thread and its children a kernel that was booted again: its id of the boot is another one.
fn boot_again(work: &Path, number: usize) {
    let path = work.join("boot_id");
    std::fs::write(&path, format!("00000000-0000-0000-0000-{number:012}\n")).unwrap();
    let target = "/proc/sys/kernel/random/boot_id";
    nix::mount::mount(Some(&path), target, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn write_tree(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    for n in 0..50 {
        std::fs::write(dir.join(format!("f{n}")), vec![b'x'; 10_000]).unwrap();
    }
}

fn whole(dir: &Path) -> bool {
    (0..50).all(|n| std::fs::read(dir.join(format!("f{n}"))).is_ok_and(|c| c == vec![b'x'; 10_000]))
}

/// The controls: loss is seen where nothing was synced, the classic broken publication is seen for what it is, and
/// what was synced is whole.
#[test]
fn the_rig_tells_loss_from_safety() {
    if !disks_or_skip("the_rig_tells_loss_from_safety") {
        return;
    }
    let field = Field::new();
    let place = field.place();
    let disk = field.rig.disk(field.fresh.clone());
    let mounted = field.mount(&disk, "");
    write_tree(&place.join("plain"));
    let plain = disk.cut();
    // The order of containerd#5854: the tree gets its name and the name is synced, the files are not.
    write_tree(&place.join("staged"));
    std::fs::rename(place.join("staged"), place.join("named")).unwrap();
    std::fs::File::open(&place).unwrap().sync_all().unwrap();
    let named = disk.cut();
    write_tree(&place.join("synced"));
    rustix::fs::syncfs(std::fs::File::open(&place).unwrap()).unwrap();
    let synced = disk.cut();
    drop(mounted);
    let mut random = Random::new(1);
    let mut after = |cut: &Cut, look: &dyn Fn()| {
        for _ in 0..4 {
            let disk = field.rig.disk(cut.image(&mut random));
            let _mounted = field.mount(&disk, "");
            look();
        }
    };
    after(&plain, &|| assert!(!whole(&place.join("plain")), "a plain extraction must be lost"));
    after(&named, &|| {
        assert!(place.join("named").is_dir(), "its name was synced");
        assert!(!whole(&place.join("named")), "its files were not");
    });
    after(&synced, &|| assert!(whole(&place.join("synced"))));
}

/// What must hold after a cut at a given request.
#[derive(Debug, Clone, Default)]
struct Promise {
    /// Images whose pull had returned and whose removal had not begun.
    images: Vec<&'static str>,
    /// Directories whose unpack had returned.
    unpacked: Vec<(&'static str, &'static str)>,
    /// Snapshots whose commit had returned.
    committed: Vec<&'static str>,
}

/// Runs every command that publishes or removes; notes from which request on what is promised.
fn life(field: &Field, disk: &Disk, store_root: &Path) -> Vec<(u64, Promise)> {
    let mut promise = Promise::default();
    let mut promises = vec![(0, promise.clone())];
    let place = field.place();
    let mut now = |promise: &Promise| promises.push((disk.requests(), promise.clone()));
    run(store_root, &["pull", &field.reference("one")]);
    promise.images.push("one");
    now(&promise);
    run(store_root, &["unpack", &field.reference("one"), place.join("flat").to_str().unwrap()]);
    promise.unpacked.push(("flat", "one"));
    now(&promise);
    run(store_root, &["pull", &field.reference("two")]);
    promise.images.push("two");
    now(&promise);
    {
        let store = Store::open_existing(store_root, true).unwrap();
        let lowers = vec![unply::store::Lower::Layer(store.layers().unwrap()[0].id())];
        let image_id = store.images().unwrap()[0].image.image_id;
        let made = store
            .create_snapshot(NewSnapshot {
                key: "box".into(),
                kind: SnapshotKind::Active,
                base: Base::Image { image_id, lowers },
                root: None,
                labels: BTreeMap::new(),
            })
            .unwrap();
        write_tree(&made.upper_path(&store).join("tree"));
        store.commit_snapshot("done", "box", BTreeMap::new()).unwrap();
        promise.committed.push("done");
        now(&promise);
    }
    promise.images.retain(|name| *name != "one");
    now(&promise);
    run(store_root, &["rm", "one"]);
    run(store_root, &["gc"]);
    run(store_root, &["pull", &field.reference("one")]);
    promise.images.push("one");
    now(&promise);
    promises
}

/// Says what is wrong with the disk that a cut left.
fn judge(field: &Field, sound: &Trees, promise: &Promise, at: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let root = field.place().join("store");
    let differ = |what: String, expected: &Tree, found: &Tree| -> Option<String> {
        let differences = compare(expected, found);
        differences
            .first()
            .map(|first| format!("{at}: {what} is incomplete: {first} and {} more", differences.len() - 1))
    };
    for (target, image) in &promise.unpacked {
        if !field.place().join(target).is_dir() {
            wrong.push(format!("{at}: {target} is gone"));
        }
        let _ = image;
    }
    let flat = field.place().join("flat");
    if flat.exists() {
        wrong.extend(differ("the unpacked directory".into(), &field.model("one"), &tree_of(&flat)));
    }
    if root.join("store.json").exists() {
        let store = Store::open_existing(&root, true).unwrap();
        wrong.extend(store.check().unwrap().iter().map(|problem| format!("{at}: {problem}")));
        for (diff_id, tree) in Field::layers(&store) {
            wrong.extend(differ(format!("layer {diff_id}"), &sound[&diff_id], &tree));
        }
        for name in &promise.images {
            if let Err(e) = store.find_image(name) {
                wrong.push(format!("{at}: image {name} is lost: {e}"));
            }
        }
        for key in &promise.committed {
            match store.snapshot(key) {
                Ok(record) if whole(&record.upper_path(&store).join("tree")) => {}
                Ok(_) => wrong.push(format!("{at}: snapshot {key} is incomplete")),
                Err(e) => wrong.push(format!("{at}: snapshot {key} is lost: {e}")),
            }
        }
    } else if *promise.images != [""; 0] {
        wrong.push(format!("{at}: the store is lost"));
    }
    // The same commands work, and then everything is there.
    for (name, _) in &field.images {
        run(&root, &["pull", &field.reference(name)]);
    }
    let again = field.place().join("again");
    run(&root, &["unpack", &field.reference("one"), again.to_str().unwrap()]);
    wrong.extend(differ("a new unpack".into(), &field.model("one"), &tree_of(&again)));
    let store = Store::open_existing(&root, true).unwrap();
    wrong.extend(store.check().unwrap().iter().map(|problem| format!("{at}, pulled again: {problem}")));
    if Field::layers(&store) != *sound {
        wrong.push(format!("{at}: layers differ after another pull"));
    }
    let merged = field.tmp.path().join("merged");
    std::fs::create_dir_all(&merged).unwrap();
    for (name, _) in &field.images {
        let pulled = unpack::stored(name, &store, &|_| {}).unwrap();
        let attached = pulled.chain.view().attach(&merged).unwrap();
        wrong.extend(differ(format!("image {name}"), &field.model(name), &tree_of(&merged)));
        attached.detach().unwrap();
    }
    let staged = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(b".unply-");
    if std::fs::read_dir(field.place()).unwrap().any(|e| staged(&e.unwrap().file_name())) {
        wrong.push(format!("{at}: an unfinished unpack is left beside its target"));
    }
    wrong
}

/// Rule P9: after a loss of power at any moment no layer is incomplete, and nothing is lost that a command had published.
#[test]
fn p09_no_cut_of_power_leaves_an_incomplete_layer_or_takes_what_was_published() {
    if !disks_or_skip("p09_no_cut_of_power_leaves_an_incomplete_layer_or_takes_what_was_published") {
        return;
    }
    let field = Field::new();
    let sound = field.sound_layers();
    let cuts = rounds("UNPLY_CUTS", 20);
    let mut random = Random::new(rounds("UNPLY_SEED", 1));
    let mut wrong = Vec::new();
    let (mut judged, mut unsettled) = (0, 0);
    // How the file system orders data and metadata is its administrator's choice; the promise is the same.
    for (round, options) in ["", "data=writeback,commit=1", "data=journal"].iter().cycle().enumerate() {
        if judged >= cuts {
            break;
        }
        let root = field.place().join("store");
        // A first run tells how many requests there are; how they are spread changes little from run to run.
        let total = {
            let disk = field.rig.disk(field.fresh.clone());
            let _mounted = field.mount(&disk, options);
            life(&field, &disk, &root);
            disk.requests()
        };
        let disk = field.rig.disk(field.fresh.clone());
        disk.cut_before((0..(cuts - judged).min(10)).map(|_| random.below(total)));
        let mounted = field.mount(&disk, options);
        let promises = life(&field, &disk, &root);
        let mut taken = disk.cuts();
        taken.push(disk.cut());
        drop(mounted);
        drop(disk);
        for cut in taken {
            let (_, promise) = promises.iter().rev().find(|(from, _)| *from <= cut.at).unwrap();
            let disk = field.rig.disk(cut.image(&mut random));
            let at = format!("round {round} ({options}), cut at {} of {total}", cut.at);
            let mounted = match disk.try_mount(&field.place(), &["noinit_itable", options].join(",")) {
                Ok(mounted) => mounted,
                Err(e) => panic!("{at}: {e}"),
            };
            boot_again(field.tmp.path(), judged as usize);
            wrong.extend(judge(&field, &sound, promise, &at));
            drop(mounted);
            judged += 1;
            unsettled += u64::from(cut.unsettled() > 0);
        }
    }
    println!("{judged} cuts, {unsettled} of them with writes in flight: {} findings", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What was written without syncs counts as absent in the next boot, whatever of it is there, and is unpacked again.
#[test]
fn p09_what_no_durable_left_is_unpacked_again_after_a_reboot() {
    if !disks_or_skip("p09_what_no_durable_left_is_unpacked_again_after_a_reboot") {
        return;
    }
    let field = Field::new();
    let sound = field.sound_layers();
    let root = field.place().join("store");
    let disk = field.rig.disk(field.fresh.clone());
    let mounted = field.mount(&disk, "");
    run(&root, &["--no-durable", "pull", &field.reference("two")]);
    let flushes = disk.flushes();
    run(&root, &["--no-durable", "pull", &field.reference("one")]);
    assert_eq!(disk.flushes(), flushes, "--no-durable syncs nothing once the store is made");
    // The worst case: the names and records reach the disk, the files do not.
    std::fs::File::open(root.join("layers")).unwrap().sync_all().unwrap();
    let cut = disk.cut();
    drop(mounted);
    drop(disk);

    let disk = field.rig.disk(cut.bare());
    let _mounted = field.mount(&disk, "");
    boot_again(field.tmp.path(), 1);
    let names = std::fs::read_dir(root.join("layers")).unwrap().count();
    assert_eq!(names, 4, "the records survived");
    let store = Store::open_existing(&root, true).unwrap();
    assert!(store.layers().unwrap().is_empty(), "layers of another boot that were never synced are used");
    for name in ["one", "two"] {
        let text = run(&root, &["--json", "pull", &field.reference(name)]);
        let doc: serde_json::Value = serde_json::from_str(&text).unwrap();
        let shared = usize::from(name == "two");
        let reused = doc["layers"].as_array().unwrap().iter().filter(|layer| layer["reused"] == true).count();
        assert_eq!(reused, shared, "{doc}");
    }
    assert_eq!(Field::layers(&store), sound);
    assert_eq!(store.check().unwrap(), []);
}

/// A durable command over what `--no-durable` left in this boot syncs it once, and then it survives.
#[test]
fn p09_a_durable_pull_makes_good_what_no_durable_left() {
    if !disks_or_skip("p09_a_durable_pull_makes_good_what_no_durable_left") {
        return;
    }
    let field = Field::new();
    let sound = field.sound_layers();
    let root = field.place().join("store");
    let disk = field.rig.disk(field.fresh.clone());
    let mounted = field.mount(&disk, "");
    run(&root, &["--no-durable", "pull", &field.reference("two")]);
    run(&root, &["pull", &field.reference("two")]);
    let cut = disk.cut();
    drop(mounted);
    drop(disk);
    let mut random = Random::new(3);
    for number in 0..3 {
        let disk = field.rig.disk(cut.image(&mut random));
        let _mounted = field.mount(&disk, "");
        boot_again(field.tmp.path(), number);
        let store = Store::open_existing(&root, true).unwrap();
        let layers = store.layers().unwrap();
        assert_eq!(layers.len(), 2);
        assert!(layers.iter().all(|layer| *layer.durable() == Durable::Yes));
        for (diff_id, tree) in Field::layers(&store) {
            assert_eq!(compare(&sound[&diff_id], &tree), [], "{diff_id}");
        }
        assert_eq!(store.check().unwrap(), []);
    }
}
