//! Rules of the store between processes: the test binary runs itself again, and is killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::tests::*;
use super::*;
use crate::digest::ChainId;
use crate::policy::TreeOptions;

const SCENARIO: &str = "UNPLY_STORE_TEST_SCENARIO";
const PLACE: &str = "UNPLY_STORE_TEST_PLACE";

fn child(scenario: &str, place: &Path, extra: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["store::tests_process::child_process", "--exact", "--ignored", "--nocapture"])
        .env(SCENARIO, scenario)
        .env(PLACE, place)
        .envs(extra.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The other side of [`child`]; does nothing when somebody runs all ignored tests.
#[test]
#[ignore = "entry point of child processes"]
fn child_process() {
    let (Some(scenario), Some(place)) = (std::env::var_os(SCENARIO), std::env::var_os(PLACE)) else { return };
    let place = Path::new(&place);
    match scenario.to_str().unwrap() {
        "life" => life(place),
        "commit" => commit(place),
        "claim" => claim(place),
        "hold" => hold(place),
        other => panic!("{other}"),
    }
}

/// Everything that a store does, over and over on the same store.
fn life(place: &Path) {
    let store = open(place);
    // What somebody before left is cleaned on the way.
    fs::create_dir_all(store.dir("staging").join("deaddeaddead/tree/x")).unwrap();
    let store = open(store.root().parent().unwrap());
    let pin = store.pin(&[]).unwrap();
    for name in ["a", "b"] {
        if let Claim::Vacant(_lock) = store.claim_layer(&pin, &diff_id(name), &LayerOptions::default(), NEVER).unwrap()
        {
            store.publish(&pin, vec![sealed(&store, name)]).unwrap();
        }
    }
    store.publish(&pin, vec![sealed(&store, "c"), sealed(&store, "d"), sealed(&store, "a")]).unwrap();
    let key = |name: &str| FixupKey { chain_id: ChainId(digest(name)), options: TreeOptions::default() };
    store.publish_fixups(&pin, vec![(key("x"), Some(store.stage().unwrap())), (key("y"), None)]).unwrap();
    store.replace_layer(&pin, sealed(&store, "a")).unwrap();
    store.replace_fixup(&pin, key("x"), store.stage().unwrap()).unwrap();
    put(&store, &["a", "b"], Some("ab"));
    put(&store, &["a", "c"], Some("ac"));
    put(&store, &["a", "c"], Some("ab"));
    let quiet = Store::open(store.root(), flavour(), false).unwrap();
    published(&quiet, &["volatile"]);
    put(&store, &["volatile"], Some("v"));
    for key in ["top", "brief", "done", "box"] {
        match store.remove_snapshot(key) {
            Err(e) if e.kind() != ErrorKind::NotFound => panic!("{e}"),
            _ => {}
        }
    }
    let made = store.create_snapshot(active("box", on_image(&store, &["a", "b"]))).unwrap();
    fs::write(made.upper_path(&store).join("change"), "x").unwrap();
    store.commit_snapshot("done", "box", BTreeMap::new()).unwrap();
    store.create_snapshot(active("top", Base::Snapshot("done".into()))).unwrap();
    store.create_snapshot(active("brief", on_image(&store, &["a"]))).unwrap();
    store.remove_snapshot("brief").unwrap();
    put(&store, &["d"], Some("d"));
    assert!(store.untag("d").unwrap());
    drop(pin);
    store.untag("ac").unwrap();
    store.gc(false).unwrap();
    assert_eq!(store.layers().unwrap().len(), 4, "a and b for the snapshot, a and c for an image, volatile");
}

fn commit(place: &Path) {
    let store = open(place);
    store.create_snapshot(active("box", Base::Empty)).unwrap();
    store.commit_snapshot("done", "box", BTreeMap::new()).unwrap();
}

#[test]
fn p15_a_kill_at_any_step_leaves_a_store_that_the_next_open_makes_clean() {
    let tmp = scratch();
    let trace = tmp.path().join("trace");
    let run = |place: &Path, extra: &[(&str, &str)]| child("life", place, extra).wait_with_output().unwrap();
    let traced = run(tmp.path(), &[("UNPLY_FAILPOINT_TRACE", trace.to_str().unwrap())]);
    assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stdout));
    let trace = fs::read_to_string(trace).unwrap();
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for name in trace.lines() {
        *times.entry(name).or_default() += 1;
    }
    assert!(times.len() >= 38, "the scenario passes only {times:?}");
    for (name, hits) in times {
        // The first, one in the middle and the last time.
        let mut nths = vec![1, hits.div_ceil(2), hits];
        nths.dedup();
        for nth in nths {
            let place = tempfile::tempdir_in(tmp.path()).unwrap();
            let point = format!("{name}#{nth}");
            let killed = run(place.path(), &[("UNPLY_FAILPOINT", &point)]);
            assert_eq!(killed.status.signal(), Some(libc::SIGKILL), "{point}");
            let store = open(place.path());
            no_problems_after(&store, &point);
            // And the same command works.
            life(place.path());
            no_problems_after(&store, &point);
            assert_eq!(record::names(&store.dir("trash")).unwrap(), [] as [&str; 0], "{point}");
        }
    }
}

fn no_problems_after(store: &Store, point: &str) {
    let problems: Vec<String> = store.check().unwrap().iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "killed at {point}: {problems:#?}");
}

#[test]
fn p02_a_commit_killed_between_its_two_records_is_a_commit() {
    let tmp = scratch();
    child("commit", tmp.path(), &[("UNPLY_FAILPOINT", "snapshot.committed")]).wait().unwrap();
    let store = open(tmp.path());
    let snapshots = store.snapshots().unwrap();
    assert_eq!(snapshots.iter().map(|s| s.key.as_str()).collect::<Vec<_>>(), ["done"]);
    no_problems(&store);
}

fn claim(place: &Path) {
    let store = open(place);
    for round in 0..10 {
        let name = format!("layer{round}");
        let pin = store.pin(&[]).unwrap();
        match store.claim_layer(&pin, &diff_id(&name), &LayerOptions::default(), NEVER).unwrap() {
            Claim::Present(layer) => {
                assert_eq!(fs::read_to_string(layer.tree_path().join("file")).unwrap(), name);
            }
            Claim::Vacant(_lock) => {
                // A name of its own for every unpack: a second one would show.
                tempfile::Builder::new().prefix(&name).tempfile_in(place).unwrap().keep().unwrap();
                std::thread::sleep(std::time::Duration::from_millis(5));
                store.publish(&pin, vec![sealed(&store, &name)]).unwrap();
            }
            Claim::Held => unreachable!(),
        }
        put(&store, &[&name], Some(&name));
    }
}

#[test]
fn p10_four_processes_unpack_every_layer_once_while_a_fifth_collects() {
    let tmp = scratch();
    let store = open(tmp.path());
    let mut children: Vec<Child> = (0..4).map(|_| child("claim", tmp.path(), &[])).collect();
    while children.iter_mut().any(|c| c.try_wait().unwrap().is_none()) {
        store.gc(false).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    for mut child in children {
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success(), "{said}");
    }
    let unpacked = record::names(tmp.path()).unwrap().iter().filter(|n| n.starts_with("layer")).count();
    assert_eq!(unpacked, 10);
    assert_eq!(store.layers().unwrap().len(), 10);
    no_problems(&store);
}

/// Holds a claim, staging and a pin until killed.
fn hold(place: &Path) {
    let store = open(place);
    let pin = store.pin(&[Id::of_layer(&diff_id("pinned"), &LayerOptions::default())]).unwrap();
    let Claim::Vacant(_lock) = store.claim_layer(&pin, &diff_id("a"), &LayerOptions::default(), NEVER).unwrap() else {
        panic!()
    };
    let _staging = store.stage().unwrap();
    fs::write(place.join("ready"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn what_a_process_holds_is_safe_while_it_lives_and_free_when_it_is_killed() {
    let tmp = scratch();
    let store = open(tmp.path());
    published(&store, &["pinned"]);
    let mut holder = child("hold", tmp.path(), &[]);
    while !tmp.path().join("ready").exists() {
        assert!(holder.try_wait().unwrap().is_none(), "the holder ended");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let pin = store.pin(&[]).unwrap();
    let options = LayerOptions::default();
    assert!(matches!(store.try_claim_layer(&pin, &diff_id("a"), &options).unwrap(), Claim::Held));
    open(tmp.path());
    store.gc(false).unwrap();
    assert_eq!(record::names(&store.dir("staging")).unwrap().len(), 1);
    assert!(store.layer(&diff_id("pinned"), &options).unwrap().is_some());

    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(matches!(store.claim_layer(&pin, &diff_id("a"), &options, NEVER).unwrap(), Claim::Vacant(_)));
    open(tmp.path());
    assert_eq!(record::names(&store.dir("staging")).unwrap(), [] as [&str; 0]);
    store.gc(false).unwrap();
    assert!(store.layer(&diff_id("pinned"), &options).unwrap().is_none());
    no_problems(&store);
}
