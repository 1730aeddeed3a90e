//! The rules P1 to P7 beyond what containerd's own tests look at.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::suite::{Bench, Case, Change, apply, refused, root_label};
use super::{FailureKind, Kind, Labels};
use Change::{Dir, File, Link};

/// The cases, in the order of the rules.
pub fn cases() -> Vec<Case> {
    let case = |name, rule, run| Case { name, rule, owners: false, run };
    vec![
        case("p01_a_parent_is_committed_or_nothing", "P1", parents as fn(&Bench<'_>)),
        case("p01_keys_and_names_share_one_namespace", "P1", one_namespace),
        case("p02_only_an_active_snapshot_is_committed", "P2", commits),
        case("p02_a_refused_commit_changes_nothing", "P2", refused_commit),
        case("p02_a_commit_replaces_labels", "P2", commit_labels),
        case("p02_a_parent_may_come_with_the_commit", "P2", rebase),
        case("p03_children_go_first", "P3", children),
        case("p03_a_removal_leaves_others_alone", "P3", removal),
        case("p04_nothing_is_known_of_what_is_not_there", "P4", missing),
        case("p04_labels_are_kept_and_change_alone", "P4", labels),
        case("p05_usage_counts_links_once_and_no_parent", "P5", usage),
        case("p06_mounts_are_the_same_at_any_time", "P6", mounts),
        case("p06_a_child_has_the_root_of_its_parent", "P6", root),
        case("p07_cleanup_takes_nothing_that_is_needed", "P7", cleanup),
    ]
}

/// Makes containerd's six empty snapshots: name, kind, parent.
pub(super) fn six(b: &Bench<'_>) -> [(&'static str, Kind, &'static str); 6] {
    b.prepare("c1-a", "");
    b.commit("c1", "c1-a");
    b.prepare("c2-a", "c1");
    b.commit("c2", "c2-a");
    b.prepare("a1", "c2");
    b.prepare("a2", "");
    b.view("v1", "c2");
    b.view("v2", "");
    [
        ("c1", Kind::Committed, ""),
        ("c2", Kind::Committed, "c1"),
        ("a1", Kind::Active, "c2"),
        ("a2", Kind::Active, ""),
        ("v1", Kind::View, "c2"),
        ("v2", Kind::View, ""),
    ]
}

fn parents(b: &Bench<'_>) {
    six(b);
    let none = Labels::new();
    for (parent, kind) in [
        ("nothing", FailureKind::NotFound),
        ("a1", FailureKind::InvalidArgument),
        ("v1", FailureKind::InvalidArgument),
        ("new", FailureKind::NotFound),
    ] {
        refused(&format!("prepare on {parent}"), b.sn.prepare("new", parent, &none), kind);
        refused(&format!("view on {parent}"), b.sn.view("new", parent, &none), kind);
        refused("what was refused", b.sn.stat("new"), FailureKind::NotFound);
    }
}

fn one_namespace(b: &Bench<'_>) {
    let none = Labels::new();
    for (name, kind, parent) in six(b) {
        refused(&format!("prepare as {name}"), b.sn.prepare(name, "c1", &none), FailureKind::AlreadyExists);
        refused(&format!("view as {name}"), b.sn.view(name, "", &none), FailureKind::AlreadyExists);
        let info = b.stat(name);
        assert_eq!((info.kind, info.parent.as_str()), (kind, parent), "{name} is another one now");
    }
}

fn commits(b: &Bench<'_>) {
    six(b);
    let none = Labels::new();
    for key in ["v1", "c1"] {
        refused(&format!("commit of {key}"), b.sn.commit("x", key, "", &none), FailureKind::FailedPrecondition);
    }
    refused("commit of nothing", b.sn.commit("x", "nothing", "", &none), FailureKind::NotFound);
    refused("what was refused", b.sn.stat("x"), FailureKind::NotFound);
    b.commit("x", "a1");
    refused("the key", b.sn.stat("a1"), FailureKind::NotFound);
    refused("the key's mounts", b.sn.mounts("a1"), FailureKind::NotFound);
    refused("a second commit", b.sn.commit("y", "a1", "", &none), FailureKind::NotFound);
    b.prepare("a1", "x");
}

fn refused_commit(b: &Bench<'_>) {
    six(b);
    let mounted = b.mount(&b.prepare("box", "c1"), "m");
    apply(mounted.path(), &[File("f", "kept", 0o644)]);
    mounted.detach();
    for name in ["c1", "v1", "a1", "box"] {
        let answer = b.sn.commit(name, "box", "", &Labels::new());
        refused(&format!("commit as {name}"), answer, FailureKind::AlreadyExists);
    }
    assert_eq!(b.stat("box").kind, Kind::Active);
    let mounted = b.mount(&b.sn.mounts("box").unwrap(), "m");
    assert_eq!(fs::read_to_string(mounted.path().join("f")).unwrap(), "kept");
}

fn commit_labels(b: &Bench<'_>) {
    let one = |key: &str| Labels::from([(key.to_owned(), "x".to_owned())]);
    b.sn.prepare("key", "", &one("old")).unwrap();
    assert_eq!(b.stat("key").labels, one("old"));
    b.sn.commit("name", "key", "", &one("new")).unwrap();
    assert_eq!(b.stat("name").labels, one("new"), "labels are not inherited");
    b.sn.prepare("child", "name", &Labels::new()).unwrap();
    assert_eq!(b.stat("child").labels, Labels::new(), "labels are not inherited");
}

fn rebase(b: &Bench<'_>) {
    if !b.dialect.rebases {
        return;
    }
    let none = Labels::new();
    b.layer("base", "", &[Dir("d", 0o755), File("d/base", "base", 0o644)]);
    b.layer("other", "", &[]);
    let mounted = b.mount(&b.prepare("late", ""), "m");
    apply(mounted.path(), &[Dir("d", 0o755), File("d/late", "late", 0o644)]);
    mounted.detach();
    b.prepare("on-other", "other");
    refused("commit onto nothing known", b.sn.commit("x", "late", "nothing", &none), FailureKind::NotFound);
    refused("commit onto an active one", b.sn.commit("x", "late", "on-other", &none), FailureKind::InvalidArgument);
    refused("commit onto itself", b.sn.commit("x", "late", "late", &none), FailureKind::InvalidArgument);
    refused("commit onto another", b.sn.commit("x", "on-other", "base", &none), FailureKind::InvalidArgument);
    b.sn.commit("same", "on-other", "other", &none).unwrap();
    b.sn.commit("top", "late", "base", &none).unwrap();
    assert_eq!(b.stat("top").parent, "base");
    let view = b.mount(&b.view("view", "top"), "v");
    for name in ["base", "late"] {
        assert_eq!(fs::read_to_string(view.path().join("d").join(name)).unwrap(), name);
    }
    refused("removal of what it stands on", b.sn.remove("base"), FailureKind::FailedPrecondition);
}

fn children(b: &Bench<'_>) {
    six(b);
    for key in ["c1", "c2"] {
        let answer = b.sn.remove(key);
        assert!(answer.as_ref().is_err_and(|e| e.message.contains("remove")), "{answer:?}");
        refused(&format!("removal of {key}"), answer, FailureKind::FailedPrecondition);
    }
    b.remove("a1");
    refused("removal below a view", b.sn.remove("c2"), FailureKind::FailedPrecondition);
    for key in ["v1", "c2", "c1", "v2", "a2"] {
        b.remove(key);
        refused("what was removed", b.sn.remove(key), FailureKind::NotFound);
    }
}

fn removal(b: &Bench<'_>) {
    b.layer("base", "", &[File("f", "base", 0o644)]);
    let write = |key: &str| {
        let mounted = b.mount(&b.prepare(key, "base"), "m");
        apply(mounted.path(), &[File(key, key, 0o644)]);
        mounted.detach();
    };
    write("one");
    write("two");
    b.remove("one");
    let mounted = b.mount(&b.sn.mounts("two").unwrap(), "m");
    for (name, content) in [("f", "base"), ("two", "two")] {
        assert_eq!(fs::read_to_string(mounted.path().join(name)).unwrap(), content);
    }
    mounted.detach();
    let mounted = b.mount(&b.prepare("one", "base"), "m");
    assert!(!mounted.path().join("one").exists(), "a key that is used again finds what was removed");
}

fn missing(b: &Bench<'_>) {
    let mut info = {
        b.prepare("there", "");
        b.stat("there")
    };
    info.name = "nothing".into();
    refused("stat", b.sn.stat("nothing"), FailureKind::NotFound);
    refused("mounts", b.sn.mounts("nothing"), FailureKind::NotFound);
    refused("usage", b.sn.usage("nothing"), FailureKind::NotFound);
    refused("remove", b.sn.remove("nothing"), FailureKind::NotFound);
    refused("update", b.sn.update(&info, &["labels"]), FailureKind::NotFound);
}

fn labels(b: &Bench<'_>) {
    // Whatever is in them.
    let odd = Labels::from([("a/b.c \"d\"".to_owned(), "x, y=z\n\u{e9}".to_owned()), ("k".to_owned(), "v".to_owned())]);
    b.layer("base", "", &[]);
    b.sn.prepare("active", "base", &odd).unwrap();
    b.sn.view("view", "base", &odd).unwrap();
    for key in ["active", "view"] {
        let before = b.stat(key);
        assert_eq!(before.labels, odd);
        let mut wanted = before.clone();
        wanted.labels.remove("k");
        wanted.kind = Kind::Committed;
        wanted.parent = String::new();
        let after = b.sn.update(&wanted, &["labels.k"]).unwrap();
        assert_eq!(after.labels, wanted.labels);
        assert!(after.updated > before.updated, "{key}: the time of the change stands still");
        assert_eq!((after.kind, after.parent.as_str(), after.created), (before.kind, "base", before.created));
        for path in ["kind", "name", "created", "labels.", "nonsense", ""] {
            let answer = b.sn.update(&wanted, &["labels", path]);
            refused(&format!("update of \"{path}\""), answer, FailureKind::InvalidArgument);
            assert_eq!(b.stat(key), after, "a refused update changed something");
        }
    }
}

fn usage(b: &Bench<'_>) {
    let big = "x".repeat(1 << 20);
    let mounted = b.mount(&b.prepare("big", ""), "m");
    let empty = b.sn.usage("big").unwrap();
    apply(mounted.path(), &[File("f", &big, 0o644), Link("f", "g"), Link("f", "h"), Dir("d", 0o755)]);
    mounted.detach();
    let active = b.sn.usage("big").unwrap();
    assert_eq!(active.inodes - empty.inodes, 2, "a file of three names and a directory");
    let bytes = active.bytes - empty.bytes;
    assert!(((1 << 20)..(2 << 20)).contains(&bytes), "{bytes} bytes for one MiB of three names");
    b.commit("committed", "big");
    assert_eq!(b.sn.usage("committed").unwrap(), active);
    b.prepare("child", "committed");
    b.view("view", "committed");
    for key in ["child", "view"] {
        let usage = b.sn.usage(key).unwrap();
        assert!(usage.bytes < 1 << 16 && usage.inodes < 8, "{key} counts what it stands on: {usage:?}");
    }
}

fn mounts(b: &Bench<'_>) {
    b.layer("base", "", &[File("f", "base", 0o644)]);
    for (key, parent) in [("on-nothing", ""), ("on-base", "base")] {
        let prepared = b.prepare(key, parent);
        assert_eq!(b.sn.mounts(key).unwrap(), prepared);
        let mounted = b.mount(&prepared, "m");
        apply(mounted.path(), &[File("new", key, 0o644)]);
        assert_eq!(b.sn.mounts(key).unwrap(), prepared, "while it is mounted");
        mounted.detach();
        let again = b.mount(&b.sn.mounts(key).unwrap(), "m");
        assert_eq!(fs::read_to_string(again.path().join("new")).unwrap(), key);
        again.detach();
        let view = format!("view-{key}");
        let viewed = b.view(&view, parent);
        assert_eq!(b.sn.mounts(&view).unwrap(), viewed);
        let mounted = b.mount(&viewed, "v");
        assert_eq!(mounted.path().join("f").exists(), parent == "base");
        assert!(fs::write(mounted.path().join("new"), "").is_err(), "a view can be written");
    }
    refused("mounts of a committed one", b.sn.mounts("base"), FailureKind::FailedPrecondition);
}

fn root(b: &Bench<'_>) {
    let mounted = b.mount(&b.prepare("a", ""), "m");
    fs::set_permissions(mounted.path(), fs::Permissions::from_mode(0o1711)).unwrap();
    let before = fs::metadata(mounted.path()).unwrap();
    mounted.detach();
    b.commit("base", "a");
    for (key, mounts) in [("active", b.prepare("active", "base")), ("view", b.view("view", "base"))] {
        let mounted = b.mount(&mounts, "m");
        let found = fs::metadata(mounted.path()).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o1711, before.uid(), before.gid()), "{key}");
    }
}

fn cleanup(b: &Bench<'_>) {
    b.layer("base", "", &[File("f", "base", 0o644)]);
    let mounted = b.mount(&b.prepare("box", "base"), "m");
    apply(mounted.path(), &[File("g", "box", 0o644)]);
    b.sn.prepare("gone", "base", &root_label()).unwrap();
    b.remove("gone");
    b.sn.cleanup().unwrap();
    for (name, content) in [("f", "base"), ("g", "box")] {
        assert_eq!(fs::read_to_string(mounted.path().join(name)).unwrap(), content);
    }
    mounted.detach();
    b.sn.cleanup().unwrap();
    b.commit("next", "box");
    let view = b.mount(&b.view("view", "next"), "v");
    assert_eq!(fs::read_to_string(view.path().join("g")).unwrap(), "box");
}
