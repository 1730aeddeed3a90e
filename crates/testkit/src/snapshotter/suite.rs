//! containerd's 21 tests of a snapshotter (rule P8), under their own names, spelling included.
//!
//! What each has to show was read in containerd's `core/snapshots/testsuite`; written anew.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::mounting::Mounted;
use super::{Answer, Dialect, FailureKind, Info, Kind, Labels, Mount, Snapshotter, rules};
use crate::{DescribeOptions, Tree, compare, describe};

/// One thing that an implementation has to do.
pub struct Case {
    /// containerd's name of it, or the rule's.
    pub name: &'static str,
    /// The rule that it guards.
    pub rule: &'static str,
    /// Needs more than one owner.
    pub owners: bool,
    /// Panics where the implementation is wrong.
    pub run: fn(&Bench<'_>),
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It does it.
    Passed,
    /// This place cannot tell, for this reason.
    Skipped(String),
    /// It does not.
    Failed(String),
}

/// Makes a fresh snapshotter whose root is the given directory, which is empty.
pub type Factory<'a> = &'a dyn Fn(&Path) -> Box<dyn Snapshotter>;

/// Runs every case on a fresh snapshotter below `dir`; `go_on` is asked after each.
///
/// The calling thread needs mounts of its own and the right to make some.
pub fn run(
    dir: &Path,
    new: Factory<'_>,
    dialect: Dialect,
    go_on: &dyn Fn(&Outcome) -> bool,
) -> Vec<(&'static str, Outcome)> {
    let owners = may_chown(dir);
    let mut out = Vec::new();
    for (at, case) in cases().into_iter().enumerate() {
        let outcome = if case.owners && !owners {
            Outcome::Skipped("one owner only can be set here".into())
        } else {
            let place = dir.join(at.to_string());
            let (root, work) = (place.join("r"), place.join("w"));
            fs::create_dir_all(&root).unwrap();
            fs::create_dir_all(&work).unwrap();
            let tried = catch_unwind(AssertUnwindSafe(|| {
                let snapshotter = new(&root);
                (case.run)(&Bench { sn: &*snapshotter, work: work.clone(), dialect, turn: Cell::new(0) });
            }));
            fs::remove_dir_all(&place).unwrap();
            match tried {
                Ok(()) => Outcome::Passed,
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    Outcome::Failed(text.or_else(|| panic.downcast_ref().copied()).unwrap_or("?").to_owned())
                }
            }
        };
        let more = go_on(&outcome);
        out.push((case.name, outcome));
        if !more {
            break;
        }
    }
    out
}

fn may_chown(dir: &Path) -> bool {
    let file = dir.join("owner");
    fs::write(&file, "").unwrap();
    let may = std::os::unix::fs::chown(&file, Some(1), Some(1)).is_ok();
    fs::remove_file(&file).unwrap();
    may
}

/// Every case: the rules first, then containerd's, the long one last.
pub fn cases() -> Vec<Case> {
    let mut out = rules::cases();
    let case = |name, run| Case { name, rule: "P8", owners: false, run };
    out.extend([
        case("Basic", basic as fn(&Bench<'_>)),
        case("StatActive", stat_active),
        case("StatComitted", stat_committed),
        case("TransitivityTest", transitivity),
        case("PreareViewFailingtest", prepare_view_failing),
        case("Update", update),
        case("Remove", remove),
        case("Walk", walk),
        case("LayerFileupdate", layer_file_update),
        case("RemoveDirectoryInLowerLayer", remove_directory_in_lower_layer),
        Case { owners: true, ..case("Chown", chown) },
        Case { owners: true, ..case("DirectoryPermissionOnCommit", directory_permission_on_commit) },
        case("RemoveIntermediateSnapshot", remove_intermediate_snapshot),
        case("DeletedFilesInChildSnapshot", deleted_files_in_child_snapshot),
        case("MoveFileFromLowerLayer", move_file_from_lower_layer),
        case("ViewReadonly", view_readonly),
        case("StatInWalk", stat_in_walk),
        case("CloseTwice", close_twice),
        case("RootPermission", root_permission),
        case("Rename", rename),
        case("128LayersMount", layers_mount_128),
    ]);
    out
}

/// What a case works with.
pub struct Bench<'a> {
    /// The snapshotter, fresh.
    pub sn: &'a dyn Snapshotter,
    /// A directory to play in.
    pub work: PathBuf,
    /// What it may do its own way.
    pub dialect: Dialect,
    turn: Cell<u32>,
}

/// A change of a tree; paths have no leading slash.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change<'a> {
    Dir(&'a str, u32),
    File(&'a str, &'a str, u32),
    Remove(&'a str),
    Own(&'a str, u32),
    Link(&'a str, &'a str),
    Move(&'a str, &'a str),
}
use Change::*;

pub(super) fn apply(root: &Path, changes: &[Change<'_>]) {
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for change in changes {
        let at = |path: &str| root.join(path);
        match *change {
            Dir(path, bits) => {
                fs::create_dir(at(path)).unwrap_or_else(|e| panic!("mkdir {path}: {e}"));
                mode(&at(path), bits);
            }
            File(path, content, bits) => {
                fs::write(at(path), content).unwrap_or_else(|e| panic!("write {path}: {e}"));
                mode(&at(path), bits);
            }
            Remove(path) if at(path).is_dir() => {
                fs::remove_dir_all(at(path)).unwrap_or_else(|e| panic!("remove {path}: {e}"));
            }
            Remove(path) => match fs::remove_file(at(path)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("remove {path}: {e}"),
                _ => {}
            },
            Own(path, id) => std::os::unix::fs::lchown(at(path), Some(id), Some(id)).unwrap(),
            Link(from, to) => fs::hard_link(at(from), at(to)).unwrap_or_else(|e| panic!("link {from} {to}: {e}")),
            Move(from, to) => fs::rename(at(from), at(to)).unwrap_or_else(|e| panic!("rename {from} {to}: {e}")),
        }
    }
}

fn tree(path: &Path) -> Tree {
    let mut tree = describe(path, &DescribeOptions::default()).unwrap();
    // The two sides were written one after the other.
    tree.0.values_mut().for_each(|node| node.mtime = (0, 0));
    tree
}

#[track_caller]
pub(super) fn same(what: &str, expected: &Path, found: &Path) {
    let differences = compare(&tree(expected), &tree(found));
    let lines: Vec<String> = differences.iter().take(12).map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
}

#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(what: &str, answer: Answer<T>, kind: FailureKind) {
    match answer {
        Err(failure) if failure.kind == kind => {}
        other => panic!("{what}: {kind:?} is expected, found {other:?}"),
    }
}

pub(super) fn root_label() -> Labels {
    BTreeMap::from([("containerd.io/gc.root".to_owned(), "2026-01-01T00:00:00Z".to_owned())])
}

impl Bench<'_> {
    /// Makes a key as containerd's tests do: a path, which means nothing.
    pub(super) fn key(&self, name: &str) -> String {
        self.work.join(name).into_os_string().into_string().unwrap()
    }

    #[track_caller]
    pub(super) fn prepare(&self, key: &str, parent: &str) -> Vec<Mount> {
        self.sn.prepare(key, parent, &root_label()).unwrap_or_else(|e| panic!("prepare {key} {parent:?}: {e:?}"))
    }

    #[track_caller]
    pub(super) fn view(&self, key: &str, parent: &str) -> Vec<Mount> {
        self.sn.view(key, parent, &root_label()).unwrap_or_else(|e| panic!("view {key} {parent:?}: {e:?}"))
    }

    #[track_caller]
    pub(super) fn commit(&self, name: &str, key: &str) {
        self.sn.commit(name, key, "", &root_label()).unwrap_or_else(|e| panic!("commit {name} {key}: {e:?}"));
    }

    #[track_caller]
    pub(super) fn remove(&self, key: &str) {
        self.sn.remove(key).unwrap_or_else(|e| panic!("remove {key}: {e:?}"));
    }

    #[track_caller]
    pub(super) fn stat(&self, key: &str) -> Info {
        self.sn.stat(key).unwrap_or_else(|e| panic!("stat {key}: {e:?}"))
    }

    pub(super) fn mount(&self, mounts: &[Mount], name: &str) -> Mounted {
        Mounted::new(mounts, &self.work.join(name))
    }

    /// Prepares, mounts, changes, unmounts and commits; the key is the name with `-active`.
    #[track_caller]
    pub(super) fn layer(&self, name: &str, parent: &str, changes: &[Change<'_>]) {
        let key = format!("{name}-active");
        let mounted = self.mount(&self.prepare(&key, parent), "m");
        apply(mounted.path(), changes);
        mounted.detach();
        self.commit(name, &key);
    }

    /// Stacks layers; each prepared snapshot has to look as a plain directory to which the same was done, before and after,
    /// and so has a view of each committed one in the end.
    pub(super) fn stack(&self, layers: &[&[Change<'_>]]) {
        let turn = self.turn.replace(self.turn.get() + 1);
        let flat = self.work.join(format!("flat{turn}"));
        fs::create_dir(&flat).unwrap();
        fs::set_permissions(&flat, fs::Permissions::from_mode(0o755)).unwrap();
        let mut parent = String::new();
        for (at, changes) in layers.iter().enumerate() {
            let key = self.key(&format!("{turn}-prepare-{at}"));
            let mounted = self.mount(&self.prepare(&key, &parent), "m");
            same(&format!("layer {at} before its changes"), &flat, mounted.path());
            apply(&flat, changes);
            apply(mounted.path(), changes);
            same(&format!("layer {at} after its changes"), &flat, mounted.path());
            mounted.detach();
            parent = self.key(&format!("{turn}-committed-{at}"));
            self.commit(&parent, &key);
            if layers.len() < 10 || at + 1 == layers.len() {
                let view = self.mount(&self.view(&self.key(&format!("{turn}-view-{at}")), &parent), "v");
                same(&format!("the view of layer {at}"), &flat, view.path());
                view.detach();
            }
        }
    }
}

fn basic(b: &Bench<'_>) {
    let initial = [File("foo", "foo\n", 0o777), Dir("a", 0o755), Dir("a/b", 0o755), Dir("a/b/c", 0o755)];
    let diff = [File("bar", "bar\n", 0o777), File("foo", "bar\n", 0o777), Remove("a/b")];
    b.stack(&[&initial, &diff]);

    let [preparing, committed, next, next_committed, last] =
        ["preparing", "committed", "next", "next-committed", "last"].map(|name| b.key(name));
    let mounted = b.mount(&b.prepare(&preparing, ""), "m");
    apply(mounted.path(), &initial);
    mounted.detach();
    b.commit(&committed, &preparing);
    let first = b.stat(&committed);
    assert_eq!((first.parent.as_str(), first.kind), ("", Kind::Committed));
    refused("the key after its commit", b.sn.stat(&preparing), FailureKind::NotFound);
    b.prepare(&next, &committed);
    let info = b.stat(&next);
    assert_eq!((info.parent.as_str(), info.kind), (committed.as_str(), Kind::Active));
    b.commit(&next_committed, &next);
    let second = b.stat(&next_committed);
    assert_eq!((second.parent.as_str(), second.kind), (committed.as_str(), Kind::Committed));
    refused("the second key after its commit", b.sn.stat(&next), FailureKind::NotFound);
    let mut walked = Vec::new();
    b.sn.walk(&[], &mut |info| walked.push(info)).unwrap();
    assert!(walked.contains(&first) && walked.contains(&second), "walk and stat differ: {walked:#?}");
    b.view(&last, &next_committed);
    b.remove(&last);
    match b.sn.remove(&committed) {
        Err(e) => assert!(e.message.contains("remove"), "{e:?}"),
        Ok(()) => panic!("removed what another one stands on"),
    }
    b.remove(&next_committed);
    b.remove(&committed);
}

fn stat_active(b: &Bench<'_>) {
    let key = b.key("preparing");
    let mounted = b.mount(&b.prepare(&key, ""), "m");
    apply(mounted.path(), &[File("foo", "foo\n", 0o777)]);
    let info = b.stat(&key);
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind), (key.as_str(), "", Kind::Active));
}

fn stat_committed(b: &Bench<'_>) {
    let (key, name) = (b.key("preparing"), b.key("committed"));
    let mounted = b.mount(&b.prepare(&key, ""), "m");
    apply(mounted.path(), &[File("foo", "foo\n", 0o777)]);
    if !b.dialect.commits_while_mounted {
        let early = b.sn.commit(&name, &key, "", &root_label());
        refused("a commit of what is mounted", early, FailureKind::FailedPrecondition);
        mounted.detach();
    }
    b.commit(&name, &key);
    let info = b.stat(&name);
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind), (name.as_str(), "", Kind::Committed));
}

fn transitivity(b: &Bench<'_>) {
    b.layer("A", "", &[File("foo", "foo\n", 0o777)]);
    b.layer("B", "A", &[File("foo", "foo bar\n", 0o777)]);
    let parent = b.stat("B").parent;
    assert_eq!((b.stat("A").parent.as_str(), parent.as_str()), ("", "A"));
    assert_eq!(b.stat(&parent).parent, "");
}

fn prepare_view_failing(b: &Bench<'_>) {
    b.layer("A", "", &[]);
    let labels = root_label();
    b.prepare("one", "A");
    refused("a view under a used key", b.sn.view("one", "A", &labels), FailureKind::AlreadyExists);
    b.prepare("two", "A");
    refused("a second prepare", b.sn.prepare("two", "A", &labels), FailureKind::AlreadyExists);
    b.view("three", "A");
    refused("a second view", b.sn.view("three", "A", &labels), FailureKind::AlreadyExists);
}

fn update(b: &Bench<'_>) {
    let labels =
        |pairs: &[(&str, &str)]| -> Labels { pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect() };
    let t1 = SystemTime::now();
    let all = rules::six(b);
    let t2 = SystemTime::now();
    for (name, kind, parent) in all {
        let mut info = b.stat(name);
        assert!((t1..=t2).contains(&info.created), "{name}: created {:?}", info.created);
        assert_eq!(info.created, info.updated, "{name}");
        assert_eq!((info.kind, info.parent.as_str(), info.name.as_str()), (kind, parent, name));
        let created = info.created;
        let gc = ("containerd.io/gc.root", "now");
        info.parent = "doesnotexist".into();
        info.labels = labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3"), gc]);
        let u1 = SystemTime::now();
        let updated = b.sn.update(&info, &[]).unwrap();
        let u2 = SystemTime::now();
        assert!((u1..=u2).contains(&updated.updated), "{name}: updated {:?}", updated.updated);
        assert_eq!((updated.created, updated.kind, updated.parent.as_str()), (created, kind, parent), "{name}");
        assert_eq!((updated.name.as_str(), &updated.labels), (name, &info.labels));
        assert_eq!(b.stat(name), updated);

        info.labels = labels(&[("l1", "updated"), ("l4", "v4")]);
        let updated = b.sn.update(&info, &["labels.l1", "labels.l2"]).unwrap();
        assert_eq!(updated.labels, labels(&[("l1", "updated"), ("l3", "v3"), gc]), "{name}");
        info.labels = labels(&[("l4", "v4"), gc]);
        let updated = b.sn.update(&info, &["labels"]).unwrap();
        assert_eq!(updated.labels, info.labels, "{name}");
        refused("an update of the parent", b.sn.update(&info, &["parent"]), FailureKind::InvalidArgument);
        assert_eq!(b.stat(name), updated);
    }
}

fn remove(b: &Bench<'_>) {
    b.prepare("committed-a", "");
    b.commit("committed-1", "committed-a");
    b.prepare("reuse-1", "committed-1");
    b.remove("reuse-1");
    b.view("reuse-1", "committed-1");
    b.remove("reuse-1");
    b.prepare("reuse-1", "");
    b.remove("committed-1");
    b.commit("committed-1", "reuse-1");
}

fn walk(b: &Bench<'_>) {
    let labels = |l: &str| {
        let mut labels = BTreeMap::from([("containerd.io/gc.root".to_owned(), "check-walk".to_owned())]);
        if !l.is_empty() {
            labels.insert("l".to_owned(), l.to_owned());
        }
        labels
    };
    let (none, l1, l2, l3) = (labels(""), labels("1"), labels("2"), labels("3"));
    b.sn.prepare("a-np", "", &none).unwrap();
    b.sn.prepare("p-tmp", "", &none).unwrap();
    b.sn.commit("p", "p-tmp", "", &none).unwrap();
    b.sn.prepare("a", "p", &none).unwrap();
    b.sn.view("v", "p", &none).unwrap();
    b.sn.prepare("p-wl-tmp", "", &none).unwrap();
    b.sn.commit("p-wl", "p-wl-tmp", "", &l1).unwrap();
    b.sn.prepare("a-wl", "p-wl", &l2).unwrap();
    b.sn.view("v-wl", "p-wl", &l3).unwrap();
    b.sn.prepare("a-np-wl", "", &l2).unwrap();
    let mark = r#"labels."containerd.io/gc.root"==check-walk"#;
    for (filters, expected) in [
        (&[][..], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (&[mark], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (&["kind==active"], "a a-np a-np-wl a-wl"),
        (&["kind==view"], "v v-wl"),
        (&["kind==committed"], "p p-wl"),
        (&["name==p"], "p"),
        (&["kind==active,labels.l==2"], "a-np-wl a-wl"),
        (&["kind==view,labels.l==1"], ""),
        (&["kind==active", "kind==view"], "a a-np a-np-wl a-wl v v-wl"),
        (&["kind==committed,labels.l==1", "parent==p"], "a p-wl v"),
        (&["labels.l"], "a-np-wl a-wl p-wl v-wl"),
        (&["kind==active,parent==p-wl"], "a-wl"),
        (&["parent==p-wl", "parent==p"], "a a-wl v v-wl"),
    ] {
        let mut found = Vec::new();
        b.sn.walk(filters, &mut |info| found.push(info.name)).unwrap();
        found.sort();
        assert_eq!(found.join(" "), expected, "{filters:?}");
    }
}

fn layer_file_update(b: &Bench<'_>) {
    // containerd repeats it, for a failure that came now and then.
    for _ in 0..5 {
        b.stack(&[
            &[
                Dir("etc", 0o700),
                File("etc/hosts", "mydomain 10.0.0.1", 0o644),
                File("etc/profile", "PATH=/usr/bin", 0o644),
            ],
            &[
                File("etc/hosts", "mydomain 10.0.0.2", 0o644),
                File("etc/profile", "PATH=/usr/bin", 0o666),
                Dir("root", 0o700),
                File("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644),
            ],
        ]);
    }
}

fn remove_directory_in_lower_layer(b: &Bench<'_>) {
    b.stack(&[
        &[Dir("lib", 0o700), File("lib/hidden", "", 0o644)],
        &[Remove("lib"), Dir("lib", 0o700), File("lib/not-hidden", "", 0o644)],
        &[File("lib/newfile", "", 0o644)],
    ]);
}

fn chown(b: &Bench<'_>) {
    b.stack(&[
        &[Dir("opt", 0o700), Dir("opt/a", 0o700), Dir("opt/a/b", 0o700), File("opt/a/b/file.txt", "hello", 0o644)],
        &[Own("opt", 1), Own("opt/a", 1), Own("opt/a/b", 1), Own("opt/a/b/file.txt", 1)],
    ]);
}

fn directory_permission_on_commit(b: &Bench<'_>) {
    b.stack(&[
        &[
            Dir("dir1", 0o700),
            Dir("dir2", 0o700),
            Dir("dir3", 0o700),
            Dir("dir4", 0o700),
            File("dir4/f1", "...", 0o644),
            Dir("dir5", 0o700),
            File("dir5/f1", "...", 0o644),
            Own("dir1", 1),
            Own("dir2", 1),
            Own("dir3", 1),
            Own("dir5", 1),
            Own("dir5/f1", 1),
        ],
        &[Own("dir2", 0), Remove("dir3"), Own("dir4", 1), Own("dir4/f1", 1)],
        &[Dir("dir3", 0o700), Own("dir3", 1), Remove("dir5"), Dir("dir5", 0o700), Own("dir5", 1)],
    ]);
}

fn remove_intermediate_snapshot(b: &Bench<'_>) {
    b.layer("base", "", &[]);
    b.layer("middle", "base", &[]);
    b.prepare("top", "middle");
    refused("removal of the middle", b.sn.remove("middle"), FailureKind::FailedPrecondition);
    b.remove("top");
    b.remove("middle");
    b.remove("base");
}

fn deleted_files_in_child_snapshot(b: &Bench<'_>) {
    b.stack(&[&[File("foo", "foo\n", 0o777), File("foobar", "foobar\n", 0o777)], &[Remove("foobar")], &[]]);
}

fn move_file_from_lower_layer(b: &Bench<'_>) {
    b.stack(&[
        &[Dir("dir1", 0o700), File("dir1/f1", "Hello", 0o644), Dir("dir2", 0o700), File("dir2/f2", "...", 0o644)],
        &[
            Dir("dir3", 0o700),
            File("dir3/f1", "Hello", 0o644),
            Remove("dir1"),
            Link("dir2/f2", "dir3/f2"),
            Remove("dir2/f2"),
        ],
    ]);
}

fn view_readonly(b: &Bench<'_>) {
    b.prepare("preparing", "");
    b.commit("committed", "preparing");
    let view = b.mount(&b.view("view", "committed"), "v");
    let written = fs::write(view.path().join("testfile"), "testcontent");
    assert!(written.is_err(), "a view can be written");
    view.detach();
    b.remove("view");
    b.remove("committed");
}

fn stat_in_walk(b: &Bench<'_>) {
    rules::six(b);
    let mut seen = 0;
    b.sn.walk(&[], &mut |info| {
        assert_eq!(b.sn.stat(&info.name).as_ref(), Ok(&info));
        seen += 1;
    })
    .unwrap();
    assert_eq!(seen, 6);
}

fn close_twice(b: &Bench<'_>) {
    b.prepare("prepare", "");
    b.commit("name", "prepare");
    b.remove("name");
    b.sn.close().unwrap();
    b.sn.close().unwrap_or_else(|e| panic!("the second close: {e:?}"));
}

fn root_permission(b: &Bench<'_>) {
    let mounted = b.mount(&b.prepare("preparing", ""), "m");
    assert_eq!(fs::metadata(mounted.path()).unwrap().mode() & 0o777, 0o755);
}

fn rename(b: &Bench<'_>) {
    let mut second = vec![
        File("somefiles/f1-overwrite", "new content 1", 0o644),
        Move("somefiles/f1-overwrite", "somefiles/f1"),
        Move("somefiles/f2", "somefiles/f3"),
    ];
    if b.dialect.renames_directories {
        second.insert(0, Move("dir1", "dir2"));
    }
    b.stack(&[
        &[
            Dir("dir1", 0o700),
            Dir("somefiles", 0o700),
            File("somefiles/f1", "was here first!", 0o644),
            File("somefiles/f2", "nothing interesting", 0o644),
        ],
        &second,
    ]);
}

fn layers_mount_128(b: &Bench<'_>) {
    let texts: Vec<[String; 3]> = (1..128)
        .map(|n| [format!("{n} WAS HERE!\n"), format!("addhere/file-{n}"), format!("onlyme/file-{n}")])
        .collect();
    let mut layers: Vec<Vec<Change<'_>>> = vec![vec![
        File("bottom", "way at the bottom\n", 0o777),
        File("overwriteme", "FIRST!\n", 0o777),
        Dir("addhere", 0o755),
        Dir("onlyme", 0o755),
        File("onlyme/bottom", "bye!\n", 0o777),
    ]];
    layers.extend(texts.iter().map(|[text, added, only]| {
        vec![
            File("overwriteme", text, 0o777),
            File(added, "same\n", 0o755),
            Remove("onlyme"),
            Dir("onlyme", 0o755),
            File(only, "only me!\n", 0o777),
        ]
    }));
    b.stack(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
}
