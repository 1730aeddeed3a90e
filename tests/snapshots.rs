//! Snapshots: containerd's contract (rules P1 to P8) against the library and the command line, and what users rely on.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Lab, in_user_namespace, root_or_skip};
use serde_json::Value;
use testkit::image::{ImageSpec, OciLayout};
use testkit::snapshotter::broken::{Broken, Fault};
use testkit::snapshotter::suite::{self, Factory, Outcome};
use testkit::snapshotter::{Answer, Dialect, Failure, FailureKind, Info, Kind, Labels, Mount, Snapshotter, Usage};
use testkit::{dir, file, whiteout};
use unply::error::{Error, ErrorKind};
use unply::image::Reference;
use unply::store::{Base, NewSnapshot, SnapshotFilter, SnapshotKind, SnapshotRecord, Store, User};
use unply::unpack::{self, Options};

const DIALECT: Dialect = Dialect { commits_while_mounted: false, renames_directories: false, rebases: true };

/// The library as containerd's plugin would use it.
struct Library(Store);

fn failure(e: Error) -> Failure {
    let kind = match e.kind() {
        ErrorKind::NotFound => FailureKind::NotFound,
        ErrorKind::AlreadyExists => FailureKind::AlreadyExists,
        ErrorKind::Usage => FailureKind::InvalidArgument,
        ErrorKind::Busy | ErrorKind::FailedPrecondition => FailureKind::FailedPrecondition,
        _ => FailureKind::Other,
    };
    Failure { kind, message: e.to_string() }
}

fn info(record: SnapshotRecord) -> Info {
    Info {
        name: record.key,
        parent: record.parent.unwrap_or_default(),
        kind: match record.kind {
            SnapshotKind::Active => Kind::Active,
            SnapshotKind::View => Kind::View,
            SnapshotKind::Committed => Kind::Committed,
        },
        labels: record.labels,
        created: record.created.0,
        updated: record.updated.0,
    }
}

impl Library {
    fn open(root: &Path) -> Library {
        Library(unpack::open_store(&root.join("s"), false).unwrap())
    }

    fn make(&self, key: &str, parent: &str, labels: &Labels, kind: SnapshotKind) -> Answer<Vec<Mount>> {
        let base = if parent.is_empty() { Base::Empty } else { Base::Snapshot(parent.to_owned()) };
        let new = NewSnapshot { key: key.to_owned(), kind, base, root: None, labels: labels.clone() };
        self.0.create_snapshot(new).map_err(failure)?;
        self.mounts(key)
    }
}

impl Snapshotter for Library {
    fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>> {
        self.make(key, parent, labels, SnapshotKind::Active)
    }
    fn view(&self, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>> {
        self.make(key, parent, labels, SnapshotKind::View)
    }
    fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        let mount = unpack::snapshot_plan(&self.0, key).and_then(|plan| plan.render_containerd()).map_err(failure)?;
        Ok(vec![Mount { fs_type: mount.fs_type, source: mount.source, options: mount.options }])
    }
    fn commit(&self, name: &str, key: &str, parent: &str, labels: &Labels) -> Answer<()> {
        let parent = Some(parent).filter(|parent| !parent.is_empty());
        self.0.commit_snapshot_onto(name, key, parent, labels.clone()).map(drop).map_err(failure)
    }
    fn remove(&self, key: &str) -> Answer<()> {
        self.0.remove_snapshot(key).map_err(failure)
    }
    fn stat(&self, key: &str) -> Answer<Info> {
        self.0.snapshot(key).map(info).map_err(failure)
    }
    fn update(&self, wanted: &Info, paths: &[&str]) -> Answer<Info> {
        self.0.update_snapshot(&wanted.name, &wanted.labels, paths).map(info).map_err(failure)
    }
    fn walk(&self, filters: &[&str], each: &mut dyn FnMut(Info)) -> Answer<()> {
        let filter = SnapshotFilter::parse(filters).map_err(failure)?;
        let all = self.0.snapshots().map_err(failure)?;
        all.into_iter().filter(|record| filter.fits(record)).for_each(|record| each(info(record)));
        Ok(())
    }
    fn usage(&self, key: &str) -> Answer<Usage> {
        self.0.snapshot_usage(key).map(|u| Usage { bytes: u.bytes, inodes: u.inodes }).map_err(failure)
    }
    fn cleanup(&self) -> Answer<()> {
        self.0.gc(false).map(drop).map_err(failure)
    }
    fn close(&self) -> Answer<()> {
        Ok(())
    }
}

/// The program as a script would use it.
struct Program(PathBuf);

fn unply(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unply"));
    command.env("UNPLY_ROOT", store).stdin(Stdio::null());
    command
}

impl Program {
    fn ask(&self, args: &[&str]) -> Answer<Value> {
        let mut command = unply(&self.0);
        let output = command.args(["--json", "--no-durable", "snapshot"]).args(args).output().unwrap();
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        if output.status.success() {
            return Ok(value);
        }
        let (kind, code) = match value["error"]["code"].as_str().unwrap() {
            "not-found" => (FailureKind::NotFound, 3),
            "already-exists" => (FailureKind::AlreadyExists, 1),
            "usage" => (FailureKind::InvalidArgument, 2),
            "failed-precondition" => (FailureKind::FailedPrecondition, 2),
            "busy" => (FailureKind::FailedPrecondition, 8),
            other => panic!("{other}: {value}"),
        };
        assert_eq!(output.status.code(), Some(code), "{value}");
        Err(Failure { kind, message: value["error"]["message"].as_str().unwrap().to_owned() })
    }

    fn make(&self, word: &str, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>> {
        let labels = labels.iter().map(|(k, v)| format!("--label={k}={v}")).collect::<Vec<_>>();
        let mut args = vec![word, key];
        args.extend(Some(parent).filter(|parent| !parent.is_empty()));
        args.extend(labels.iter().map(String::as_str));
        self.ask(&args)?;
        self.mounts(key)
    }
}

fn time(value: &Value) -> SystemTime {
    let (seconds, nanos) = value.as_str().unwrap().split_once('.').unwrap();
    UNIX_EPOCH + Duration::new(seconds.parse().unwrap(), nanos.parse().unwrap())
}

fn parsed(value: &Value) -> Info {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Info {
        name: text(&value["key"]),
        parent: text(&value["parent"]),
        kind: match value["kind"].as_str().unwrap() {
            "active" => Kind::Active,
            "view" => Kind::View,
            _ => Kind::Committed,
        },
        labels: value["labels"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), text(v))).collect(),
        created: time(&value["created"]),
        updated: time(&value["updated"]),
    }
}

impl Snapshotter for Program {
    fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>> {
        self.make("prepare", key, parent, labels)
    }
    fn view(&self, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>> {
        self.make("view", key, parent, labels)
    }
    fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        let value = self.ask(&["mounts", key])?;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mount = |m: &Value| Mount {
            fs_type: text(&m["type"]),
            source: text(&m["source"]),
            options: m["options"].as_array().unwrap().iter().map(text).collect(),
        };
        Ok(value["mounts"].as_array().unwrap().iter().map(mount).collect())
    }
    fn commit(&self, name: &str, key: &str, parent: &str, labels: &Labels) -> Answer<()> {
        let labels = labels.iter().map(|(k, v)| format!("--label={k}={v}")).collect::<Vec<_>>();
        let mut args = vec!["commit", name, key];
        if !parent.is_empty() {
            args.extend(["--parent", parent]);
        }
        args.extend(labels.iter().map(String::as_str));
        self.ask(&args).map(drop)
    }
    fn remove(&self, key: &str) -> Answer<()> {
        self.ask(&["rm", key]).map(drop)
    }
    fn stat(&self, key: &str) -> Answer<Info> {
        self.ask(&["stat", key]).map(|value| parsed(&value))
    }
    fn update(&self, wanted: &Info, paths: &[&str]) -> Answer<Info> {
        let old = self.stat(&wanted.name)?.labels;
        let one = |key: &str| match wanted.labels.get(key) {
            Some(value) => format!("{key}={value}"),
            None => format!("{key}-"),
        };
        let mut changes = Vec::new();
        for path in if paths.is_empty() { &["labels"] } else { paths } {
            match path.strip_prefix("labels.").filter(|key| !key.is_empty()) {
                Some(key) => changes.push(one(key)),
                None if *path == "labels" => changes.extend(old.keys().chain(wanted.labels.keys()).map(|key| one(key))),
                // There is no word for it: this is no change of a label.
                None => changes.push((*path).to_owned()),
            }
        }
        let mut args = vec!["label", &wanted.name];
        args.extend(changes.iter().map(String::as_str));
        self.ask(&args).map(|value| parsed(&value))
    }
    fn walk(&self, filters: &[&str], each: &mut dyn FnMut(Info)) -> Answer<()> {
        let filters: Vec<String> = filters.iter().map(|filter| format!("--filter={filter}")).collect();
        let mut args = vec!["list"];
        args.extend(filters.iter().map(String::as_str));
        let value = self.ask(&args)?;
        value["snapshots"].as_array().unwrap().iter().for_each(|one| each(parsed(one)));
        Ok(())
    }
    fn usage(&self, key: &str) -> Answer<Usage> {
        let value = self.ask(&["usage", key])?;
        Ok(Usage { bytes: value["bytes"].as_u64().unwrap(), inodes: value["inodes"].as_u64().unwrap() })
    }
    fn cleanup(&self) -> Answer<()> {
        assert!(unply(&self.0).args(["--json", "gc"]).output().unwrap().status.success());
        Ok(())
    }
    fn close(&self) -> Answer<()> {
        Ok(())
    }
}

fn passes_the_suite(new: Factory<'_>) {
    let lab = Lab::new();
    let outcomes = suite::run(lab.path(), new, DIALECT, &|_| true);
    assert_eq!(suite::cases().iter().filter(|case| case.rule == "P8").count(), 21);
    assert_eq!(outcomes.len(), suite::cases().len());
    let mut failed = Vec::new();
    for (name, outcome) in outcomes {
        match outcome {
            Outcome::Passed => {}
            Outcome::Skipped(why) => {
                println!("SKIP: {name}: {why}");
                assert!(lab.one_id, "{name} must not be skipped here");
            }
            Outcome::Failed(why) => failed.push(format!("{name}: {why}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn p01_p02_p03_p04_p05_p06_p07_p08_the_library_passes_the_suite() {
    if root_or_skip("the library passes the suite") {
        passes_the_suite(&|root| Box::new(Library::open(root)));
    }
}

#[test]
fn p01_p02_p03_p04_p05_p06_p07_p08_the_command_line_passes_the_suite() {
    if root_or_skip("the command line passes the suite") {
        passes_the_suite(&|root| {
            Library::open(root);
            Box::new(Program(root.join("s")))
        });
    }
}

#[test]
fn p08_the_suite_in_user_namespaces() {
    in_user_namespace(&[
        "p01_p02_p03_p04_p05_p06_p07_p08_the_library_passes_the_suite",
        "p01_p02_p03_p04_p05_p06_p07_p08_the_command_line_passes_the_suite",
        "p06_a_kept_snapshot_is_mounted_again_after_a_reboot",
        "p13_what_another_program_wrote_never_stands_under_a_diff_id",
    ]);
}

#[test]
fn p08_the_suite_sees_every_fault() {
    if !root_or_skip("p08_the_suite_sees_every_fault") {
        return;
    }
    let lab = Lab::new();
    let mut unseen = Vec::new();
    for fault in Fault::ALL {
        let new = |root: &Path| -> Box<dyn Snapshotter> {
            Box::new(Broken::new(Box::new(Library::open(root)), fault, root.join("place")))
        };
        let outcomes = suite::run(lab.path(), &new, DIALECT, &|outcome| !matches!(outcome, Outcome::Failed(_)));
        match outcomes.last() {
            Some((name, Outcome::Failed(why))) => println!("{fault:?}: {name}: {}", why.lines().next().unwrap_or("")),
            _ => unseen.push(fault),
        }
    }
    assert!(unseen.is_empty(), "the suite passes with {unseen:?}");
}

/// A directory with an image `oci:image:t` of two layers.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let place = Place(tempfile::Builder::new().prefix("unply-snap-").tempdir_in(base).unwrap());
        place.image("image", &["one", "two"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes an image whose layers have a file of 1,000 bytes each, named and filled by the layer's name.
    fn image(&self, name: &str, layers: &[&str]) {
        let layer = |n: &&str| testkit::layer(&[dir("d/"), file(format!("d/{n}"), n.repeat(1000).as_str())]);
        let spec = ImageSpec::new(layers.iter().map(layer).collect::<Vec<_>>()).tag("t");
        OciLayout::new(self.path(name)).unwrap().add(&spec).unwrap();
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = unply(&self.path("store")).current_dir(self.0.path()).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {stdout}{stderr}");
        stdout
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// Runs a script in a mount namespace that ends with it, and with it every mount: what a reboot does.
    #[track_caller]
    fn script(&self, script: &str) -> String {
        let output = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-euc", script])
            .env("unply", env!("CARGO_BIN_EXE_unply"))
            .env("UNPLY_ROOT", self.path("store"))
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

#[test]
fn p06_a_kept_snapshot_is_mounted_again_after_a_reboot() {
    if !root_or_skip("p06_a_kept_snapshot_is_mounted_again_after_a_reboot") {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("m")).unwrap();
    place.script("\"$unply\" mount --snapshot work oci:image:t m; echo kept > m/new; rm m/d/one");
    let look = "m=$(\"$unply\" mount --snapshot work); cat $m/new; test ! -e $m/d/one; test -e $m/d/two";
    assert_eq!(place.script(look), "kept\n");
    // Its image has lost its name, and the file that it came from is gone: what a snapshot stands on stays.
    place.ok(&["rm", "oci:image:t"]);
    place.ok(&["gc"]);
    fs::remove_dir_all(place.path("image")).unwrap();
    let look =
        format!("{look}; if \"$unply\" mount --snapshot work; then exit 1; else echo $?; fi; \"$unply\" umount $m");
    assert_eq!(place.script(&look), "kept\n8\n", "mounted twice, it would be damaged");
    // With the command that mount(8) takes, with a command inside, and as a view.
    let look = "mkdir n; eval \"$(\"$unply\" snapshot mounts work n)\"; cat n/new; umount n";
    assert_eq!(place.script(look), "kept\n");
    place.ok(&["snapshot", "commit", "done", "work"]);
    place.ok(&["snapshot", "view", "look", "done"]);
    let look = "m=$(\"$unply\" mount --snapshot look --read-only); cat $m/new; if echo > $m/x; then exit 1; fi 2>&-";
    assert_eq!(place.script(look), "kept\n");
    assert_eq!(place.run(&["mount", "--snapshot", "done"]).0, Some(2), "a committed one is not mounted itself");
    assert_eq!(place.run(&["mount", "--snapshot", "none"]).0, Some(3));
    assert_eq!(place.run(&["mount"]).0, Some(2));
}

#[test]
fn p13_what_another_program_wrote_never_stands_under_a_diff_id() {
    if !root_or_skip("p13_what_another_program_wrote_never_stands_under_a_diff_id") {
        return;
    }
    let place = Place::new();
    let spec: Value = place.json(&["inspect", "oci:image:t"]);
    let top = &spec["layers"][1];
    let (diff_id, chain_id) = (top["diff_id"].as_str().unwrap(), top["chain_id"].as_str().unwrap());
    place.image("bottom", &["one"]);
    place.ok(&["pull", "oci:bottom:t"]);
    let before = place.json(&["layers"]);
    // Somebody commits under the very names that the image's top layer has, with other content.
    for (name, key) in [(chain_id, "a"), (diff_id, "b")] {
        place.ok(&["snapshot", "prepare", key, "--image", "oci:bottom:t"]);
        place.script(&format!("m=$(\"$unply\" mount --snapshot {key}); echo forged > $m/d/two"));
        place.ok(&["snapshot", "commit", name, key]);
    }
    let after = place.json(&["layers"]);
    let ids = |value: &Value| -> Vec<Value> {
        value["layers"].as_array().unwrap().iter().map(|layer| layer["diff_id"].clone()).collect()
    };
    assert_eq!(ids(&before), ids(&after), "a commit made a layer");
    let pulled = place.json(&["pull", "oci:image:t"]);
    let reused: Vec<_> = pulled["layers"].as_array().unwrap().iter().map(|l| l["reused"].as_bool().unwrap()).collect();
    assert_eq!(reused, [true, false], "the top layer comes from the image");
    let shown = place.script("m=$(\"$unply\" mount --read-only oci:image:t); cat $m/d/two");
    assert_eq!(shown, "two".repeat(1000));
    let shown = place.script(&format!(
        "\"$unply\" snapshot view v {chain_id} >/dev/null; m=$(\"$unply\" mount --snapshot v); cat $m/d/two"
    ));
    assert_eq!(shown, "forged\n", "and the snapshot stays what was written");
}

#[test]
fn p12_what_a_mount_shows_is_not_collected() {
    if !root_or_skip("p12_what_a_mount_shows_is_not_collected") {
        return;
    }
    let lab = Lab::new();
    let layers =
        [vec![dir("d/"), file("d/one", "1"), file("d/gone", "")], vec![file("d/two", "2"), whiteout("d", "gone")]];
    let layout = lab.path().join("image");
    OciLayout::new(&layout).unwrap().add(&ImageSpec::new(layers.iter().map(testkit::layer)).tag("t")).unwrap();
    let reference: Reference = format!("oci:{}:t", layout.display()).parse().unwrap();
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    let pulled = unpack::pull(&reference, &store, &Options::default(), &|_| {}).unwrap();
    let target = lab.path().join("m");
    fs::create_dir(&target).unwrap();
    let mounted = pulled.chain.view().attach(&target).unwrap();
    let running = store.usage().unwrap();
    assert!(running.layers.iter().all(|l| l.users.contains(&User::Pin)), "{running:?}");
    let image_id = pulled.record.image.image_id;
    // The process that mounted it has ended, and somebody removes the image: no record says that it is needed.
    drop(pulled);
    store.remove_image(&image_id).unwrap();
    let report = store.gc(false).unwrap();
    assert!(report.layers.is_empty() && report.fixups.len() <= 2, "{report:?}");
    let usage = store.usage().unwrap();
    assert_eq!(usage.layers.len(), 2);
    for layer in &usage.layers {
        assert_eq!(layer.users, [User::Mount(target.clone())]);
    }
    assert_eq!(fs::read_to_string(target.join("d/one")).unwrap(), "1");
    mounted.detach().unwrap();
    assert_eq!(store.gc(false).unwrap().layers.len(), 2);
    assert_eq!(store.check().unwrap(), []);
}

#[test]
fn x06_images_say_what_they_take_alone_and_together() {
    let place = Place::new();
    place.image("other", &["one", "three", "three"]);
    let ids = ["oci:image:t", "oci:other:t"].map(|image| place.json(&["pull", image])["image_id"].clone());
    // `one`, `two` and `three` repeated 1,000 times.
    let images = place.json(&["images"]);
    for (image, (id, exclusive)) in images["images"].as_array().unwrap().iter().zip(ids.iter().zip([3000, 5000])) {
        let found = [&image["bytes"], &image["exclusive_bytes"], &image["shared_bytes"]].map(|v| v.as_u64().unwrap());
        assert_eq!((&image["image_id"], found), (id, [exclusive + 3000, exclusive, 3000]));
    }
    let layers = place.json(&["layers"]);
    for layer in layers["layers"].as_array().unwrap() {
        let found = [&layer["bytes"], &layer["exclusive_bytes"], &layer["shared_bytes"]].map(|v| v.as_u64().unwrap());
        let users = layer["used_by"].as_array().unwrap().len();
        assert!(matches!((users, found), (2, [3000, 0, 3000]) | (1, [3000, 3000, 0] | [5000, 5000, 0])), "{layer}");
    }
    place.ok(&["snapshot", "prepare", "box", "--image", "oci:other:t"]);
    place.ok(&["rm", "oci:other:t"]);
    let layers = place.json(&["layers"]);
    let by_snapshot = |layer: &&Value| layer["used_by"].as_array().unwrap().contains(&"snapshot:box".into());
    assert_eq!(layers["layers"].as_array().unwrap().iter().filter(by_snapshot).count(), 2);
    assert_eq!(place.json(&["gc", "--dry-run"])["bytes"], 0);
    place.ok(&["snapshot", "rm", "box"]);
    let dry = place.json(&["gc", "--dry-run"]);
    assert_eq!((&dry["bytes"], dry["layers"].as_array().unwrap().len()), (&Value::from(5000), 1));
    assert_eq!(place.json(&["layers"])["layers"].as_array().unwrap().len(), 3, "a dry run deletes nothing");
    let freed = place.json(&["gc"]);
    assert_eq!((&freed["bytes"], &freed["layers"]), (&dry["bytes"], &dry["layers"]));
    let table = place.ok(&["images"]);
    assert!(table.contains("SHARED") && table.contains("6.0 kB") && table.contains("0 B"), "{table}");
}

#[test]
fn snapshot_commands_keep_their_words() {
    let place = Place::new();
    let code = |args: &[&str]| place.run(args).0;
    assert_eq!(code(&["snapshot", "stat", "x"]), Some(3), "there is no store yet");
    assert_eq!(place.ok(&["snapshot", "prepare", "key", "--label", "a=b"]), "key\n");
    let id = place.ok(&["pull", "oci:image:t"]);
    assert_eq!(place.ok(&["snapshot", "view", "look", "--image", id.trim()]), "look\n");
    assert_eq!(place.ok(&["snapshot", "commit", "name", "key", "--label=c=d e"]), "name\n");
    assert_eq!(place.ok(&["snapshot", "prepare", "next", "name"]), "next\n");
    assert_eq!(place.ok(&["snapshot", "label", "next", "x=1", "y=2", "x-", "z-"]), "y=2\n");
    let stat = place.ok(&["snapshot", "stat", "name"]);
    for line in ["key      name", "kind     committed", "parent   -", "label    c=d e"] {
        assert!(stat.lines().any(|l| l == line), "{line} is missing in\n{stat}");
    }
    assert!(place.ok(&["snapshot", "usage", "next"]).ends_with(" inodes\n"));
    let mounts = place.ok(&["snapshot", "mounts", "look", "/mnt/a b"]);
    assert!(
        mounts.starts_with("mount -t overlay -o ro,lowerdir=") && mounts.ends_with(" unply '/mnt/a b'\n"),
        "{mounts}"
    );
    let keys = |filters: &[&str]| -> Vec<Value> {
        let value = place.json(&[&["snapshots"], filters].concat());
        value["snapshots"].as_array().unwrap().iter().map(|s| s["key"].clone()).collect()
    };
    assert_eq!(keys(&[]), ["look", "name", "next"]);
    assert_eq!(keys(&["--filter", "kind==view", "--filter", "parent==name"]), ["look", "next"]);
    assert_eq!(keys(&["--filter", &format!("image=={}", id.trim())]), ["look"]);
    assert_eq!(place.ok(&["snapshots"]), place.ok(&["snapshot", "list"]));
    for (args, wanted) in [
        (&["snapshot", "prepare", "look"][..], 1),
        (&["snapshot", "prepare", "x", "none"], 3),
        (&["snapshot", "prepare", "x", "next"], 2),
        (&["snapshot", "prepare", "x", "--image", "none"], 3),
        (&["snapshot", "prepare", "x", "name", "--image", "oci:image:t"], 2),
        (&["snapshot", "prepare", ""], 2),
        (&["snapshot", "prepare", "x", "--label", "a"], 2),
        (&["snapshot", "commit", "x", "look"], 2),
        (&["snapshot", "commit", "name", "next"], 1),
        (&["snapshot", "commit", "x", "none"], 3),
        (&["snapshot", "rm", "name"], 8),
        (&["snapshot", "rm", "look", "none"], 3),
        (&["snapshot", "label", "look", "a"], 2),
        (&["snapshot", "mounts", "name"], 2),
        (&["snapshots", "--filter", "kind=view"], 2),
        (&["snapshot"], 2),
    ] {
        assert_eq!(code(args), Some(wanted), "{args:?}");
    }
    assert_eq!(keys(&[]), ["look", "name", "next"], "what was refused changed something");
    assert_eq!(place.ok(&["snapshot", "rm", "look", "next", "name"]), "removed look\nremoved next\nremoved name\n");
}

/// Counts the calls that wait for the disk.
fn syncs(place: &Place, args: &[&str]) -> Option<(usize, usize)> {
    let log = place.path("strace");
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,fdatasync,syncfs,sync", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_unply"))
        .args(args)
        .env("UNPLY_ROOT", place.path("store"))
        .current_dir(place.0.path())
        .output();
    let output = match traced {
        Ok(output) if output.status.success() => output,
        other => {
            println!("SKIP: counting syncs: {other:?}");
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "strace is needed in CI");
            return None;
        }
    };
    drop(output);
    let log = fs::read_to_string(log).unwrap();
    let count = |word: &str| log.lines().filter(|l| l.contains(word) && !l.contains("resumed")).count();
    assert_eq!(count(" sync("), 0);
    Some((count("fsync(") + count("fdatasync("), count("syncfs(")))
}

#[test]
fn p09_a_group_is_published_by_one_syncfs_and_a_snapshot_by_two_fsyncs() {
    let place = Place::new();
    place.image("five", &["a", "b", "c", "d", "e"]);
    let Some((_, filesystem)) = syncs(&place, &["pull", "oci:five:t"]) else { return };
    assert_eq!(filesystem, 1, "five layers are one group");
    assert_eq!(syncs(&place, &["pull", "oci:five:t"]).unwrap().1, 0, "nothing new is published");
    assert_eq!(syncs(&place, &["snapshot", "prepare", "a"]), Some((2, 0)));
    assert_eq!(syncs(&place, &["snapshot", "prepare", "b", "--image", "oci:five:t"]), Some((2, 0)));
    assert_eq!(syncs(&place, &["snapshot", "commit", "c", "a"]).unwrap().1, 1);
    assert_eq!(syncs(&place, &["snapshot", "view", "d", "c"]), Some((2, 0)));
    assert_eq!(syncs(&place, &["--no-durable", "snapshot", "view", "e", "c"]), Some((0, 0)));
    for read in [&["images"][..], &["layers"], &["snapshots"], &["gc", "--dry-run"], &["snapshot", "mounts", "b"]] {
        assert_eq!(syncs(&place, read), Some((0, 0)), "{read:?}");
    }
}

/// Fix-ups of one chain are a group too; each stands on those below, which have no name yet.
#[test]
fn p09_the_fixups_of_a_chain_are_published_together() {
    let place = Place::new();
    let linked = |count: usize| {
        let links = (0..count).map(|n| match n {
            0 => testkit::layer(&[dir("d/"), file("d/0", "the file"), file("base", count.to_string().as_str())]),
            // A link to what the fix-up below placed.
            n => testkit::layer(&[dir("d/"), testkit::hardlink(format!("d/{n}"), format!("d/{}", n - 1))]),
        });
        let spec = ImageSpec::new(links.collect::<Vec<_>>()).tag("t");
        OciLayout::new(place.path(&count.to_string())).unwrap().add(&spec).unwrap();
    };
    linked(5);
    linked(36);
    let Some((_, filesystem)) = syncs(&place, &["pull", "oci:5:t"]) else { return };
    assert_eq!(filesystem, 2, "layers, fix-ups");
    assert_eq!(syncs(&place, &["pull", "oci:36:t"]).unwrap().1, 3, "layers, the first 32 fix-ups, the other three");
    let files = "m=$($unply mount oci:36:t --read-only); cat $m/d/35; ls $m/d | wc -l; $unply umount $m";
    let shown = place.script(files);
    assert!(shown.contains("the file") && shown.contains("36"), "{shown}");
    place.ok(&["verify", "--all", "--deep"]);
}

/// A kill between the making of a snapshot and its mounting leaves one that nobody knows the key of.
#[test]
fn p15_what_a_killed_mount_left_is_collected_and_nothing_else() {
    use unply::store::EPHEMERAL;
    let place = Place::new();
    place.image("two", &["a", "b"]);
    place.ok(&["pull", "oci:two:t"]);
    let label = format!("--label={EPHEMERAL}=yes");
    for key in ["left", "written"] {
        place.ok(&["snapshot", "prepare", key, "--image", "oci:two:t", &label]);
    }
    place.ok(&["snapshot", "prepare", "named", "--image", "oci:two:t"]);
    place.ok(&["snapshot", "view", "seen", "--image", "oci:two:t", &label]);
    place.script("m=$(\"$unply\" mount --snapshot written); echo > $m/new");
    let keys = || {
        let list = place.json(&["snapshots"]);
        let keys = list["snapshots"].as_array().unwrap().iter().map(|s| s["key"].as_str().unwrap().to_owned());
        keys.collect::<BTreeSet<_>>()
    };
    let known = BTreeSet::from(["left", "written", "named", "seen"].map(str::to_owned));
    assert_eq!(keys(), known);
    // What is mounted stays, here and in another namespace.
    place.script(
        "a=$(\"$unply\" mount oci:two:t); b=$(\"$unply\" mount --read-only oci:two:t)
         unshare -m --propagation private sh -euc '\"$unply\" mount oci:two:t; touch up; exec sleep 1000' >c & other=$!
         until test -e up; do sleep 0.01; done
         \"$unply\" gc >freed; test -d $a/d; test -d $b/d; test -d /proc/$other/root$(cat c)/d
         kill $other; \"$unply\" umount $a; \"$unply\" umount $b",
    );
    let left = keys();
    let kept: BTreeSet<_> = left.intersection(&known).map(String::as_str).collect();
    // Whose view a mount is does not show in it: one of the same layers keeps them all.
    assert_eq!(
        kept,
        BTreeSet::from(["named", "seen", "written"]),
        "{}",
        fs::read_to_string(place.path("freed")).unwrap()
    );
    assert_eq!(left.len(), 5, "two writable mounts are gone, their snapshots stay for now: {left:?}");
    place.ok(&["gc"]);
    assert_eq!(keys(), BTreeSet::from(["named", "written"].map(str::to_owned)));
    assert_eq!(place.ok(&["gc"]).lines().count(), 1);
}
