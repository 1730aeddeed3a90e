//! SIGKILL at random moments of every command, and many processes at once, through the real program.
//!
//! `UNPLY_KILLS=500` and `UNPLY_ROUNDS=200` ask for that many; `UNPLY_SEED` for another order.

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use disk::{Random, disks_or_skip, rounds};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::image::{ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{DescribeOptions, EntrySpec, Tree, compare, describe, dir, file, hardlink, layer, whiteout};
use unply::store::{Base, NewSnapshot, SnapshotKind, Store};
use unply::unpack;

const PLACE: &str = "UNPLY_KILLS_TEST_PLACE";

struct Field {
    tmp: tempfile::TempDir,
    images: BTreeMap<&'static str, Vec<Vec<EntrySpec>>>,
}

fn files(name: &str, count: usize) -> Vec<EntrySpec> {
    let mut random = Random::new(name.bytes().map(u64::from).sum());
    let mut out = vec![dir(format!("{name}/"))];
    out.extend((0..count).map(|n| file(format!("{name}/f{n}"), random.bytes(n * 37 % 9000))));
    out.push(hardlink(format!("{name}/same"), format!("{name}/f0")));
    out
}

impl Field {
    /// Four images of which any two share a layer.
    fn new() -> Field {
        common::private_mounts();
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let layer_of = |name: &str| files(name, 60);
        let cut = |name: &str, gone: &str| [layer_of(name), vec![whiteout(format!("{gone}/"), "f3")]].concat();
        let images = BTreeMap::from([
            ("one", vec![layer_of("base"), layer_of("left"), cut("top1", "base")]),
            ("two", vec![layer_of("base"), layer_of("right"), cut("top2", "right")]),
            ("three", vec![layer_of("left"), layer_of("right"), layer_of("top1b")]),
            ("four", vec![layer_of("base"), layer_of("left"), layer_of("right"), layer_of("top4")]),
        ]);
        for (name, layers) in &images {
            let tars = layers.iter().map(layer).collect::<Vec<_>>();
            OciLayout::new(tmp.path().join(name)).unwrap().add(&ImageSpec::new(tars).tag(*name)).unwrap();
        }
        std::fs::create_dir(tmp.path().join("merged")).unwrap();
        Field { tmp, images }
    }

    fn path(&self, name: &str) -> String {
        self.tmp.path().join(name).into_os_string().into_string().unwrap()
    }

    fn root(&self) -> PathBuf {
        self.tmp.path().join("store")
    }

    fn store(&self) -> Store {
        Store::open_existing(&self.root(), true).unwrap()
    }

    fn reference(&self, name: &str) -> String {
        format!("oci:{}:{name}", self.path(name))
    }

    fn model(&self, name: &str) -> Tree {
        Model::of_image(testkit::model::Options::default(), &self.images[name]).unwrap().tree()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unply"));
        command.env("UNPLY_ROOT", self.root()).args(["--json", "--progress", "none", "-j2"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A commit: the program has no command for it that a test could kill alone, so this test runs itself.
    fn committing(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["commit_in_a_child", "--exact", "--ignored"]).env(PLACE, self.root());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Value {
        document(self.command(args).output().unwrap(), &format!("{args:?}"))
    }

    fn overlays(&self) -> Vec<PathBuf> {
        let ours = |target: &PathBuf| target.starts_with(self.tmp.path());
        unply::mount::overlay_mounts().unwrap().into_iter().map(|mount| mount.target).filter(ours).collect()
    }

    /// The store is sound, and nothing is left that nobody alive owns.
    #[track_caller]
    fn sound(&self, after: &str) {
        if !self.root().join("store.json").exists() {
            return;
        }
        let store = self.store();
        let problems: Vec<String> = store.check().unwrap().iter().map(ToString::to_string).collect();
        assert!(problems.is_empty(), "after {after}: {problems:#?}");
        for name in ["staging", "trash", "pins"] {
            let left: Vec<_> = std::fs::read_dir(self.root().join(name)).unwrap().map(|e| e.unwrap().path()).collect();
            assert!(left.is_empty(), "after {after}: {left:?}");
        }
    }

    /// Every image of the store is whole.
    #[track_caller]
    fn whole(&self, after: &str) {
        let store = self.store();
        let merged = self.tmp.path().join("view");
        std::fs::create_dir_all(&merged).unwrap();
        for record in store.images().unwrap() {
            let name = record.names[0].as_str();
            let pulled = unpack::stored(name, &store, &|_| {}).unwrap();
            let attached = pulled.chain.view().attach(&merged).unwrap();
            let found = describe(&merged, &DescribeOptions::default()).unwrap();
            attached.detach().unwrap();
            assert_eq!(compare(&self.model(name), &found), [], "{name} after {after}");
        }
    }
}

#[track_caller]
fn document(output: Output, what: &str) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {} {said}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{what}: {e}"))
}

fn commit(store: &Store) {
    for key in ["box", "done"] {
        // Whichever a run before this one left.
        let _ = store.remove_snapshot(key);
    }
    let new = NewSnapshot {
        key: "box".into(),
        kind: SnapshotKind::Active,
        base: Base::Empty,
        root: None,
        labels: BTreeMap::new(),
    };
    let made = store.create_snapshot(new).unwrap();
    std::fs::write(made.upper_path(store).join("file"), "x").unwrap();
    store.commit_snapshot("done", "box", BTreeMap::new()).unwrap();
}

#[test]
#[ignore = "entry point of child processes"]
fn commit_in_a_child() {
    let Some(root) = std::env::var_os(PLACE) else { return };
    commit(&Store::open_existing(Path::new(&root), true).unwrap());
}

/// Rule P15: whatever is killed, whenever: the next command works and cleans up what the dead one left.
#[test]
fn p15_a_kill_at_any_moment_of_any_command_hurts_nobody() {
    if !disks_or_skip("kills") {
        return;
    }
    let field = Field::new();
    let mut random = Random::new(rounds("UNPLY_SEED", 1));
    let names: Vec<&str> = field.images.keys().copied().collect();
    // How long each command takes when nobody kills it; kills fall anywhere in there.
    let mut lasts: BTreeMap<&str, Duration> = BTreeMap::new();
    let mut killed: BTreeMap<&str, u64> = BTreeMap::new();
    field.run(&["pull", &field.reference("one")]);
    let (merged, target, beside) = (field.path("merged"), field.path("target"), field.path("beside"));
    let wanted = rounds("UNPLY_KILLS", 40);
    let mut round = 0;
    while killed.values().sum::<u64>() < wanted {
        round += 1;
        assert!(round < 40 * wanted + 1000, "the commands end before they are killed: {killed:?}");
        let name = names[random.below(names.len() as u64) as usize];
        let reference = field.reference(name);
        let (what, mut command) = match random.below(10) {
            0..=2 => ("pull", field.command(&["pull", &reference])),
            3 => ("unpack", field.command(&["unpack", &reference, &target])),
            4 => ("mount", field.command(&["mount", &reference, &merged])),
            5 => ("kept mount", field.command(&["mount", "--snapshot", "kept", &reference, &merged])),
            6 => ("umount", field.command(&["umount", "--rm", "--all"])),
            7 => ("rm", field.command(&["rm", name])),
            8 => ("gc", field.command(&["gc"])),
            _ => ("commit", field.committing()),
        };
        if what == "umount" && field.overlays().is_empty() {
            continue;
        }
        let begun = Instant::now();
        let mut child = command.spawn().unwrap();
        let limit = *lasts.get(what).unwrap_or(&Duration::from_millis(20));
        let patience = limit * u32::try_from(random.below(1000)).unwrap() / 1000;
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if begun.elapsed() >= patience {
                break None;
            }
            std::thread::sleep(Duration::from_micros(100));
        };
        if ended.is_none() {
            let _ = child.kill();
        }
        let status = child.wait().unwrap();
        if status.signal() == Some(libc::SIGKILL) {
            *killed.entry(what).or_default() += 1;
        } else if status.success() {
            let lasted = begun.elapsed();
            lasts.entry(what).and_modify(|l| *l = (*l * 7 + lasted) / 8).or_insert(lasted);
        }
        let after = format!("{what} {name} ({status}) in round {round}");
        let flat = Path::new(&target);
        if flat.exists() {
            let found = describe(flat, &DescribeOptions::default()).unwrap();
            if what == "unpack" {
                assert_eq!(compare(&field.model(name), &found), [], "{after}");
            }
            std::fs::remove_dir_all(flat).unwrap();
        }
        field.sound(&after);
        // Mounts outlive their makers; a command takes them away, and what they stood on.
        let mounts = field.overlays();
        if !mounts.is_empty() && (random.below(3) == 0 || what.ends_with("mount")) {
            field.run(&["umount", "--rm", "--all"]);
            assert_eq!(field.overlays(), [] as [PathBuf; 0], "{after}");
        }
        if random.below(8) == 0 {
            field.run(&["pull", &reference]);
            field.whole(&after);
            field.run(&["unpack", &reference, &beside]);
            std::fs::remove_dir_all(&beside).unwrap();
            let staged = |e: &std::fs::DirEntry| e.file_name().as_encoded_bytes().starts_with(b".unply-");
            let left = std::fs::read_dir(field.tmp.path()).unwrap().filter(|e| staged(e.as_ref().unwrap())).count();
            assert_eq!(left, 0, "stagings beside the target after {after}");
            field.sound(&after);
        }
        if random.below(16) == 0 {
            field.run(&["gc"]);
        }
    }
    let total: u64 = killed.values().sum();
    println!("{total} kills in {round} rounds: {killed:?}");
    let store = field.store();
    for record in store.snapshots().unwrap().into_iter().rev() {
        store.remove_snapshot(&record.key).unwrap();
    }
    for record in store.images().unwrap() {
        field.run(&["rm", &record.names[0]]);
    }
    field.run(&["gc"]);
    assert_eq!(store.layers().unwrap().len(), 0);
    field.sound("everything was dropped");
}

/// Rule P10: whatever many processes pull at once, every layer is unpacked once and every image is whole, while others
/// collect and remove.
#[test]
fn p10_eight_processes_unpack_every_layer_once() {
    if !disks_or_skip("many processes") {
        return;
    }
    let field = Field::new();
    let names: Vec<&str> = field.images.keys().copied().collect();
    let all = rounds("UNPLY_ROUNDS", 8);
    for round in 0..all {
        let mut unpacked: BTreeMap<String, u32> = BTreeMap::new();
        let pulls: Vec<Child> = (0..8)
            .map(|n| {
                field.command(&["pull", &field.reference(names[(n + round as usize) % names.len()])]).spawn().unwrap()
            })
            .collect();
        let collect: Vec<Child> = match round % 2 {
            0 => Vec::new(),
            // Nothing of a running pull may go.
            _ => (0..2).map(|_| field.command(&["gc"]).spawn().unwrap()).collect(),
        };
        for pull in pulls {
            let doc = document(pull.wait_with_output().unwrap(), &format!("pull in round {round}"));
            for layer in doc["layers"].as_array().unwrap().iter().filter(|layer| layer["reused"] == false) {
                *unpacked.entry(layer["diff_id"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        for child in collect {
            let output = child.wait_with_output().unwrap();
            // It may have come before there was a store.
            assert!([Some(0), Some(3)].contains(&output.status.code()), "gc: {output:?}");
        }
        assert_eq!(unpacked.len(), 7, "round {round}");
        assert!(unpacked.values().all(|times| *times == 1), "round {round}: {unpacked:?}");
        field.sound(&format!("round {round}"));
        field.whole(&format!("round {round}"));
        std::fs::remove_dir_all(field.root()).unwrap();
    }
    println!("{all} rounds of 8 processes: every layer unpacked once, every image whole");
}

/// Rule P12: what a mount, a snapshot or a running pull needs is not collected, whoever removes and collects meanwhile.
#[test]
fn p12_removal_and_collection_beside_pulls_never_take_what_is_needed() {
    if !disks_or_skip("removal beside pulls") {
        return;
    }
    let field = Field::new();
    let names: Vec<&str> = field.images.keys().copied().collect();
    let merged = field.path("merged");
    field.run(&["mount", "--read-only", &field.reference("one"), &merged]);
    let expected = field.model("one");
    for round in 0..rounds("UNPLY_ROUNDS", 8) {
        let mut children: Vec<(bool, Child)> = Vec::new();
        for n in 0..6 {
            let name = names[(n + round as usize) % names.len()];
            children.push((true, field.command(&["pull", &field.reference(name)]).spawn().unwrap()));
            children.push((false, field.command(&["rm", names[n % names.len()]]).spawn().unwrap()));
            children.push((true, field.command(&["gc"]).spawn().unwrap()));
        }
        for (must_work, child) in children {
            let output = child.wait_with_output().unwrap();
            // An image may be removed before it is pulled.
            let fine = output.status.success() || (!must_work && output.status.code() == Some(3));
            assert!(fine, "round {round}: {output:?}");
        }
        field.sound(&format!("round {round}"));
        field.whole(&format!("round {round}"));
        let found = describe(Path::new(&merged), &DescribeOptions::default()).unwrap();
        assert_eq!(compare(&expected, &found), [], "the mount in round {round}");
    }
    field.run(&["umount", "--rm", &merged]);
}

/// Rule P10: who waits for a layer takes over when the process that unpacks it dies.
#[test]
fn p10_a_waiter_takes_over_when_the_unpacking_process_is_killed() {
    if !disks_or_skip("a waiter takes over") {
        return;
    }
    let field = Field::new();
    let big: Vec<EntrySpec> = (0..4).map(|n| file(format!("f{n}"), Random::new(n).bytes(16 << 20))).collect();
    OciLayout::new(field.path("big")).unwrap().add(&ImageSpec::new([layer(&big)]).tag("big")).unwrap();
    let reference = field.reference("big");
    let mut first = field.command(&["pull", &reference]).spawn().unwrap();
    // Stopped once it writes: it holds the claim and gets no further.
    let staging = field.root().join("staging");
    let writes = || {
        let staged = std::fs::read_dir(&staging).into_iter().flatten().flatten();
        staged.into_iter().any(|e| std::fs::read_dir(e.path().join("tree")).is_ok_and(|mut tree| tree.next().is_some()))
    };
    while !writes() {
        assert!(first.try_wait().unwrap().is_none(), "it ended too soon");
    }
    let pid = Pid::from_raw(i32::try_from(first.id()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut second = field.command(&["pull", &reference]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(second.try_wait().unwrap().is_none(), "it does not wait for who unpacks the layer");
    first.kill().unwrap();
    first.wait().unwrap();
    let doc = document(second.wait_with_output().unwrap(), "the waiter");
    assert_eq!(doc["layers"][0]["reused"], false, "it unpacks the layer itself");
    field.sound("a waiter took over");
}
