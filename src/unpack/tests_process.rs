//! Rules of unpacking between processes: the test binary runs itself again, and is killed at every step.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use testkit::image::{ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{DescribeOptions, EntrySpec, Tree, describe, dir, file, hardlink, layer, opaque, symlink, whiteout};

use super::*;
use crate::error::ErrorKind;
use crate::image::Reference;

const SCENARIO: &str = "UNPLY_UNPACK_TEST_SCENARIO";
const PLACE: &str = "UNPLY_UNPACK_TEST_PLACE";
const VOLATILE: &str = "UNPLY_UNPACK_TEST_VOLATILE";

fn layers() -> Vec<Vec<EntrySpec>> {
    vec![
        vec![dir("a/"), file("a/old", "1"), file("a/kept", "2"), dir("gone/"), file("gone/f", "3"), dir("etc/")],
        vec![whiteout("", "gone"), file("a/new", "4"), hardlink("a/same", "a/new"), dir("b/c/")],
        vec![opaque("a/"), dir("a/"), file("a/last", "5"), symlink("etc/link", "../a/last"), file("top", "6")],
    ]
}

fn expected() -> Tree {
    Model::of_image(testkit::model::Options::default(), &layers()).unwrap().tree()
}

fn tree_of(path: &Path) -> Tree {
    describe(path, &DescribeOptions::default()).unwrap()
}

fn scratch() -> tempfile::TempDir {
    scratch_with(&layers())
}

fn scratch_with(layers: &[Vec<EntrySpec>]) -> tempfile::TempDir {
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let tars = layers.iter().map(layer).collect::<Vec<_>>();
    OciLayout::new(place.path().join("image")).unwrap().add(&ImageSpec::new(tars).tag("t")).unwrap();
    place
}

fn reference(place: &Path) -> Reference {
    format!("oci:{}:t", place.join("image").display()).parse().unwrap()
}

fn child(scenario: &str, place: &Path, extra: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["unpack::tests_process::child_process", "--exact", "--ignored", "--nocapture"])
        .env(SCENARIO, scenario)
        .env(PLACE, place)
        .envs(extra.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap()
}

#[test]
#[ignore = "entry point of child processes"]
fn child_process() {
    let (Some(scenario), Some(place)) = (std::env::var_os(SCENARIO), std::env::var_os(PLACE)) else { return };
    let place = Path::new(&place);
    match scenario.to_str().unwrap() {
        "beside" => flat(place, "target"),
        "inside" => flat(place, "mounted"),
        "pull" => pulled(place),
        "mount" => mounted(place),
        other => panic!("{other}"),
    }
}

fn options() -> Options {
    Options { jobs: 1, durable: std::env::var_os(VOLATILE).is_none(), ..Options::default() }
}

fn flat(place: &Path, target: &str) {
    unpack(&reference(place), &place.join(target), None, &options(), &|_| {}).unwrap();
}

fn pulled(place: &Path) {
    let store = open_store(&place.join("store"), options().durable).unwrap();
    pull(&reference(place), &store, &options(), &|_| {}).unwrap();
}

fn mounted(place: &Path) {
    let store = open_store(&place.join("store"), true).unwrap();
    let pulled = pull(&reference(place), &store, &options(), &|_| {}).unwrap();
    let snapshot = match pulled.chain.snapshot("box") {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Snapshot::open(&store, "box").unwrap(),
        other => other.unwrap(),
    };
    let attached = snapshot.mount(&place.join("merged")).unwrap();
    fs::write(attached.target().join("written"), "x").unwrap();
    attached.detach().unwrap();
    drop(snapshot);
    store.remove_snapshot("box").unwrap();
}

/// Runs `scenario` once to learn its steps, then kills it at each: the first, one in the middle and the last time.
fn killed_at_each(scenario: &str, at_least: &[&str], prepare: &dyn Fn(&Path), judge: &dyn Fn(&Path, &str)) {
    let place = scratch();
    prepare(place.path());
    let trace = place.path().join("trace");
    let traced = child(scenario, place.path(), &[("UNPLY_FAILPOINT_TRACE", trace.to_str().unwrap())]);
    assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stderr));
    let trace = fs::read_to_string(trace).unwrap();
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for name in trace.lines() {
        *times.entry(name).or_default() += 1;
    }
    for name in at_least {
        assert!(times.contains_key(name), "{scenario} does not pass {name}: {times:?}");
    }
    for (name, hits) in times {
        let mut nths = vec![1, hits.div_ceil(2), hits];
        nths.dedup();
        for nth in nths {
            let place = scratch();
            prepare(place.path());
            let point = format!("{name}#{nth}");
            let killed = child(scenario, place.path(), &[("UNPLY_FAILPOINT", &point)]);
            assert_eq!(killed.status.signal(), Some(libc::SIGKILL), "{scenario} at {point}");
            judge(place.path(), &point);
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const TARGET_STEPS: &[&str] = &[
    "target.before-lock",
    "target.before-own",
    "target.prepared",
    "flat.laid",
    "flat.before-fold",
    "fold.before-name",
    "target.complete",
    "syncfs",
    "target.synced",
    "target.removed-one",
    "target.unlocked",
];

fn root_or_skip(test: &str) -> bool {
    if rustix::process::geteuid().is_root() && !crate::sys::in_user_namespace() {
        return true;
    }
    println!("SKIP: {test}: needs root");
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{test} must not be skipped in CI");
    false
}

#[test]
fn p15_an_unpack_killed_at_any_step_leaves_its_target_whole_or_absent_and_nothing_after_the_next() {
    if !root_or_skip("an unpack killed at any step") {
        return;
    }
    let expected = expected();
    killed_at_each(
        "beside",
        &[TARGET_STEPS, &["target.placed", "target.before-removal"]].concat(),
        &|_| {},
        &|place, point| {
            let target = place.join("target");
            if target.exists() {
                testkit::assert_same(&format!("killed at {point}"), &expected, &tree_of(&target));
            }
            flat(place, "next");
            if !target.exists() {
                flat(place, "target");
            }
            for name in ["target", "next"] {
                testkit::assert_same(&format!("after a kill at {point}"), &expected, &tree_of(&place.join(name)));
            }
            assert_eq!(names(place), ["image", "next", "target"], "after a kill at {point}");
        },
    );
}

#[test]
fn p15_an_unpack_into_a_mount_point_killed_at_any_step_is_whole_or_begun_anew() {
    if !root_or_skip("an unpack into a mount point killed at any step") {
        return;
    }
    private_mounts();
    let prepare = |place: &Path| {
        let at = place.join("mounted");
        fs::create_dir(&at).unwrap();
        nix::mount::mount(Some("none"), &at, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    };
    let expected = expected();
    killed_at_each(
        "inside",
        &[TARGET_STEPS, &["target.moved-one", "target.unmarked"]].concat(),
        &prepare,
        &|place, point| {
            let at = place.join("mounted");
            match unpack(&reference(place), &at, None, &options(), &|_| {}) {
                Ok(_) => testkit::assert_same(&format!("after a kill at {point}"), &expected, &tree_of(&at)),
                // Its mark was gone: then all of it was in place, perhaps but for the times of the root itself.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    assert!(["target.unlocked#1", "target.unmarked#1", "syncfs#2"].contains(&point), "{point}: {e}");
                    let bare = |tree: Tree| tree.without_root_meta();
                    testkit::assert_same(&format!("killed at {point}"), &bare(expected.clone()), &bare(tree_of(&at)));
                }
                Err(e) => panic!("after a kill at {point}: {e}"),
            }
            assert!(!names(&at).iter().any(|name| name.starts_with(".unply-")), "{point}: {:?}", names(&at));
            // A process that another test starts may hold a file of it for a moment.
            nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).unwrap();
        },
    );
}

#[test]
fn p15_a_pull_and_a_mount_killed_at_any_step_work_the_next_time() {
    if !root_or_skip("a pull and a mount killed at any step") {
        return;
    }
    private_mounts();
    let prepare = |place: &Path| fs::create_dir(place.join("merged")).unwrap();
    let steps = ["stage.made", "seal.done", "publish.synced", "image.after-rename", "mount.made", "mount.attached"];
    killed_at_each("mount", &steps, &prepare, &|place, point| {
        let merged = place.join("merged");
        if crate::mount::find_mount(&merged).unwrap().is_some() {
            crate::mount::detach(&merged).unwrap();
        }
        let store = open_store(&place.join("store"), true).unwrap();
        let problems: Vec<String> = store.check().unwrap().iter().map(ToString::to_string).collect();
        assert!(problems.is_empty(), "killed at {point}: {problems:#?}");
        // Not here: a process that another test starts holds our locks for the moment between its fork and its exec.
        let again = child("mount", place, &[]);
        assert!(again.status.success(), "after a kill at {point}: {}", String::from_utf8_lossy(&again.stderr));
        store.gc(false).unwrap();
        for dir in ["staging", "trash", "pins"] {
            assert!(names(&store.root().join(dir)).is_empty(), "{dir} after a kill at {point}");
        }
    });
}

fn private_mounts() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

/// Runs a pull in a process of its own and counts its calls of `syncfs`.
fn syncs_of_a_pull(place: &Path, durable: bool) -> usize {
    let trace = place.join("trace");
    let mut extra = vec![("UNPLY_FAILPOINT_TRACE", trace.to_str().unwrap())];
    if !durable {
        extra.push((VOLATILE, "1"));
    }
    let output = child("pull", place, &extra);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let count = fs::read_to_string(&trace).unwrap().lines().filter(|line| *line == "syncfs").count();
    fs::remove_file(&trace).unwrap();
    count
}

#[test]
fn p09_one_syncfs_a_group_and_none_where_nothing_is_new() {
    let layers: Vec<Vec<EntrySpec>> =
        ["a", "b", "c"].map(|d| vec![dir(d), file(format!("{d}/f"), d), file(format!("{d}/g"), "x")]).into();
    let scratch = || scratch_with(&layers);
    let place = scratch();
    assert_eq!(syncs_of_a_pull(place.path(), true), 1, "three layers in one group");
    assert_eq!(syncs_of_a_pull(place.path(), true), 0, "everything is there");
    assert_eq!(syncs_of_a_pull(place.path(), false), 0);

    let place = scratch();
    assert_eq!(syncs_of_a_pull(place.path(), false), 0, "not asked for");
    assert_eq!(syncs_of_a_pull(place.path(), true), 1, "what the run before left is made good");
    assert_eq!(syncs_of_a_pull(place.path(), true), 0);
}

#[test]
fn p09_a_durable_use_of_a_stored_image_makes_it_durable() {
    let place = scratch();
    assert_eq!(syncs_of_a_pull(place.path(), false), 0);
    let store = open_store(&place.path().join("store"), true).unwrap();
    assert!(store.layers().unwrap().iter().all(|l| *l.durable() != crate::store::Durable::Yes));
    let name = store.images().unwrap()[0].names[0].clone();
    stored(&name, &store, &|_| {}).unwrap();
    assert!(store.layers().unwrap().iter().all(|l| *l.durable() == crate::store::Durable::Yes));
}

/// The error of the one call that makes everything safe is the error of the command (moby and containerd lost it for years).
#[test]
fn p09_a_syncfs_that_fails_publishes_nothing() {
    let place = scratch();
    let store = open_store(&place.path().join("store"), true).unwrap();
    let pull = || pull(&reference(place.path()), &store, &Options::default(), &|_| {});
    crate::fail::inject("syncfs");
    assert_eq!(pull().unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(store.layers().unwrap().is_empty() && store.images().unwrap().is_empty());
    assert!(store.check().unwrap().is_empty());
    assert!(names(&store.root().join("staging")).is_empty());
    pull().unwrap();

    let target = place.path().join("target");
    crate::fail::inject("syncfs");
    let unpack = || unpack(&reference(place.path()), &target, None, &Options::default(), &|_| {});
    assert_eq!(unpack().unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(names(place.path()), ["image", "store"]);
    unpack().unwrap();
}
