//! What a tree cannot tell: places that are hostile to an unpack, orders and thread counts, what layers take on disk, how
//! names that are gone behave, limits of file systems, and the options at the command line.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use common::*;
use testkit::image::{ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{
    DescribeOptions, EntrySpec, Tree, assert_same, describe, dir, file, hardlink, opaque, symlink, whiteout,
};
use unply::image::Reference;
use unply::store::Store;
use unply::unpack::{self, Event, Options};

type Layer = Vec<EntrySpec>;

fn quick() -> Options {
    Options { durable: false, jobs: 2, ..Options::default() }
}

fn image(at: &Path, layers: &[Layer]) -> Reference {
    OciLayout::new(at).unwrap().add(&ImageSpec::new(layers.iter().map(testkit::layer)).tag("t")).unwrap();
    format!("oci:{}:t", at.display()).parse().unwrap()
}

/// A directory with every xattr, overlayfs's own included.
fn raw(path: &Path) -> Tree {
    let options = DescribeOptions { ignore_xattr: Box::new(|_| false), ..DescribeOptions::default() };
    describe(path, &options).unwrap_or_else(|e| panic!("describe {}: {e}", path.display()))
}

/// The trees of every published layer by diff_id.
fn layers_of(store: &Store) -> BTreeMap<String, Tree> {
    store.layers().unwrap().iter().map(|l| (l.diff_id().to_string(), raw(l.tree_path()))).collect()
}

/// Layers that depend on each other in every way, each of which can stand alone.
fn entangled() -> Vec<Layer> {
    vec![
        vec![
            dir("usr/lib/").mode(0o711).mtime(5),
            file("usr/lib/y", "y"),
            symlink("lib", "usr/lib"),
            file("d/old", ""),
        ],
        vec![
            file("lib/x", "x").mtime(6),
            whiteout("lib", "y"),
            whiteout("", "gone"),
            file("a", "1"),
            hardlink("b", "a"),
        ],
        vec![
            opaque("d"),
            file("d/s/n", "").mtime(7),
            whiteout("", "a"),
            dir("e/"),
            whiteout("e", "q"),
            symlink("d/l", ".."),
        ],
    ]
}

#[test]
fn w24_layers_in_every_order_and_by_any_number_of_threads_are_the_same() {
    if !root_or_skip("w24_layers_in_every_order_and_by_any_number_of_threads_are_the_same") {
        return;
    }
    let lab = Lab::new();
    let layers = entangled();
    let model = lab.comparable(Model::of_image(lab.options(Default::default()), &layers).unwrap().tree());
    let whole = image(&lab.path().join("whole"), &layers);
    let singles: Vec<Reference> = layers
        .iter()
        .enumerate()
        .map(|(n, l)| image(&lab.path().join(format!("single{n}")), std::slice::from_ref(l)))
        .collect();
    let mut first: Option<(BTreeMap<String, Tree>, Vec<Tree>)> = None;
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (n, (order, jobs)) in orders.iter().flat_map(|o| [1, 3].map(|jobs| (o, jobs))).enumerate() {
        let options = Options { jobs, ..quick() };
        let store = unpack::open_store(&lab.path().join(format!("store{n}")), false).unwrap();
        // Half of the rounds unpack one after another in this order, the others all at once.
        if jobs == 1 {
            for layer in order {
                unpack::pull(&singles[*layer], &store, &options, &|_| {}).unwrap();
            }
        }
        let pulled = unpack::pull(&whole, &store, &options, &|_| {}).unwrap();
        let now = (layers_of(&store), pulled.chain.lowerdirs().iter().map(|p| raw(p)).collect::<Vec<_>>());
        let merged = lab.path().join(format!("merged{n}"));
        std::fs::create_dir(&merged).unwrap();
        let view = pulled.chain.view().attach(&merged).unwrap();
        assert_same(&format!("{order:?} with {jobs} jobs"), &model, &lab.comparable(lab.describe(&merged)));
        view.detach().unwrap();
        let flat = lab.path().join(format!("flat{n}"));
        unpack::unpack(&whole, &flat, None, &options, &|_| {}).unwrap();
        assert_same(&format!("flat, {jobs} jobs"), &model, &lab.comparable(lab.describe(&flat)));
        let (trees, chain) = first.get_or_insert_with(|| now.clone());
        assert_eq!(trees.keys().collect::<Vec<_>>(), now.0.keys().collect::<Vec<_>>());
        for (diff_id, tree) in trees.iter() {
            assert_same(&format!("{order:?} with {jobs} jobs, layer {diff_id}"), tree, &now.0[diff_id]);
        }
        assert_eq!(chain.len(), now.1.len());
        for (a, b) in chain.iter().zip(&now.1) {
            assert_same(&format!("{order:?} with {jobs} jobs, fix-ups"), a, b);
        }
    }
}

/// Nothing in a layer directory or a fix-up says when it was made: whiteouts, marks and implied directories included.
#[test]
fn p14_unpacking_again_gives_the_same_tree() {
    if !root_or_skip("p14_unpacking_again_gives_the_same_tree") {
        return;
    }
    let lab = Lab::new();
    let mut images = vec![entangled()];
    images.extend((1..30).map(testkit::random::random_image).filter(|layers| lab.can_hold(layers)));
    for (n, layers) in images.iter().enumerate() {
        let reference = image(&lab.path().join(format!("i{n}")), layers);
        let trees = |round: usize| {
            let store = unpack::open_store(&lab.path().join(format!("s{n}-{round}")), false).unwrap();
            let pulled = unpack::pull(&reference, &store, &quick(), &|_| {}).ok()?;
            Some(pulled.chain.lowerdirs().iter().map(|p| raw(p)).collect::<Vec<_>>())
        };
        let (Some(a), Some(b)) = (trees(0), trees(1)) else { continue };
        assert_eq!(a.len(), b.len());
        for (at, (a, b)) in a.iter().zip(&b).enumerate() {
            assert_same(&format!("image {n}, lower directory {at}"), a, b);
        }
    }
}

/// Every inode below a directory, itself not counted, and the bytes they take.
fn taken(path: &Path) -> HashMap<u64, u64> {
    let mut out = HashMap::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        out.insert(meta.ino(), meta.blocks() * 512);
        if meta.is_dir() {
            out.extend(taken(&path));
        }
    }
    out
}

#[test]
fn w22_x06_whiteouts_share_one_inode_and_take_no_bytes() {
    if !root_or_skip("w22_x06_whiteouts_share_one_inode_and_take_no_bytes") {
        return;
    }
    let lab = Lab::new();
    let names = || (0..300).map(|n| (format!("d{}", n % 7), format!("f{n}")));
    let mut lower: Layer = (0..7).map(|n| dir(format!("d{n}/"))).collect();
    lower.extend(names().map(|(d, f)| file(format!("{d}/{f}"), "x")));
    let mut upper: Layer = (0..7).map(|n| dir(format!("d{n}/"))).collect();
    // Whatever their headers say.
    upper.extend(
        names().enumerate().map(|(n, (d, f))| whiteout(d, f).owner(n as u64 % 3, 0).mtime(n as i64).mode(0o600)),
    );
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    let pulled = unpack::pull(&image(&lab.path().join("i"), &[lower, upper]), &store, &quick(), &|_| {}).unwrap();
    let layer = &pulled.chain.layers()[1];
    assert_eq!((layer.facts().whiteouts, layer.facts().content_bytes), (300, 0));
    let (mut inodes, mut bytes, mut count) = (BTreeSet::new(), 0, 0);
    for n in 0..7 {
        for entry in std::fs::read_dir(layer.tree_path().join(format!("d{n}"))).unwrap() {
            let meta = entry.unwrap().metadata().unwrap();
            inodes.insert(meta.ino());
            bytes += meta.blocks();
            count += 1;
        }
    }
    assert_eq!((count, inodes.len(), bytes), (300, 1, 0));
    for layer in pulled.chain.layers() {
        assert_eq!(layer.facts().inodes, taken(layer.tree_path()).len() as u64, "inodes as the store counts them");
    }
    // What a container deletes costs a whiteout each in its own directory, and nothing of the image.
    let snapshot = pulled.chain.snapshot("k").unwrap();
    let before = store.snapshot_usage("k").unwrap();
    let at = lab.path().join("m");
    std::fs::create_dir(&at).unwrap();
    let mounted = snapshot.mount(&at).unwrap();
    for n in 0..7 {
        assert_eq!(std::fs::read_dir(at.join(format!("d{n}"))).unwrap().count(), 0, "a phantom");
        std::fs::remove_dir(at.join(format!("d{n}"))).unwrap();
    }
    mounted.detach().unwrap();
    drop(snapshot);
    let after = store.snapshot_usage("k").unwrap();
    assert_eq!(after.inodes - before.inodes, 1, "seven whiteouts, one inode: {before:?} {after:?}");
}

/// X5: a name that is gone is gone for every call, and its place can be used.
#[test]
fn x05_names_that_are_gone_are_gone_for_every_call() {
    if !root_or_skip("x05_names_that_are_gone_are_gone_for_every_call") {
        return;
    }
    let lab = Lab::new();
    let lower = vec![
        dir("plain/"),
        file("plain/x", ""),
        file("plain/k", ""),
        dir("opaque/"),
        file("opaque/x", ""),
        dir("opaque/sub/"),
        file("opaque/sub/x", ""),
        dir("again/"),
        file("again/x", ""),
        dir("usr/"),
        file("usr/x", ""),
        file("usr/k", ""),
        symlink("lib", "usr"),
        dir("gone/"),
        file("gone/x", ""),
        symlink("link", "plain"),
    ];
    let upper = vec![
        whiteout("plain", "x"),
        dir("opaque/"),
        opaque("opaque"),
        whiteout("opaque", "never"),
        dir("opaque/sub/"),
        whiteout("opaque/sub", "x"),
        whiteout("", "again"),
        dir("again/"),
        whiteout("again", "y"),
        whiteout("lib", "x"),
        whiteout("", "gone"),
        whiteout("", "link"),
        whiteout("", "nothing"),
        dir("only/"),
        whiteout("only", "x"),
        file("only/here/k", ""),
        whiteout("only/here", "x"),
    ];
    let gone = [
        "plain/x",
        "opaque/x",
        "opaque/never",
        "opaque/sub/x",
        "again/x",
        "again/y",
        "usr/x",
        "lib/x",
        "gone",
        "link",
        "nothing",
        "only/x",
        "only/here/x",
        "plain/.wh.x",
        "opaque/.wh..wh..opq",
    ];
    let layers = vec![lower, upper, vec![dir("only/"), file("plain/z", ""), whiteout("plain", "q")]];
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    let reference = image(&lab.path().join("i"), &layers);
    let pulled = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
    let flat = lab.path().join("flat");
    unpack::unpack(&reference, &flat, None, &quick(), &|_| {}).unwrap();
    let at = lab.path().join("m");
    std::fs::create_dir(&at).unwrap();
    let look = |root: &Path| {
        for name in gone {
            let path = root.join(name);
            let (parent, last) = (path.parent().unwrap(), path.file_name().unwrap());
            let listed = std::fs::read_dir(parent).unwrap().any(|e| e.unwrap().file_name() == last);
            assert!(!listed, "{name} is listed in {}", root.display());
            let lost = |e: std::io::Error| assert_eq!(e.raw_os_error(), Some(libc::ENOENT), "{name}: {e}");
            lost(path.symlink_metadata().unwrap_err());
            lost(std::fs::File::open(&path).unwrap_err());
            lost(std::fs::read_link(&path).unwrap_err());
            lost(std::fs::read_dir(&path).unwrap_err());
        }
    };
    look(&flat);
    let view = pulled.chain.view().attach(&at).unwrap();
    look(&at);
    view.detach().unwrap();
    let snapshot = pulled.chain.snapshot("k").unwrap();
    let mounted = snapshot.mount(&at).unwrap();
    look(&at);
    for root in [&at, &flat] {
        for name in gone.iter().filter(|n| !n.contains(".wh.")) {
            let path = root.join(name);
            let lost = |e: std::io::Error| assert_eq!(e.raw_os_error(), Some(libc::ENOENT), "{name}: {e}");
            lost(std::fs::remove_file(&path).unwrap_err());
            lost(std::fs::remove_dir(&path).unwrap_err());
            // A new directory there is empty, whatever stood there before.
            std::fs::create_dir(&path).unwrap();
            assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "{name} came back with its content");
            std::fs::remove_dir(&path).unwrap();
            std::fs::write(&path, "new").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
            std::fs::remove_file(&path).unwrap();
        }
        look(root);
        // rmdir sees no phantoms, from the leaves up.
        for (name, files) in [
            ("opaque/sub", &[][..]),
            ("opaque", &[]),
            ("again", &[]),
            ("only/here", &["k"]),
            ("only", &[]),
            ("usr", &["k"]),
            ("plain", &["k", "z"]),
        ] {
            for file in files {
                std::fs::remove_file(root.join(name).join(file)).unwrap();
            }
            std::fs::remove_dir(root.join(name)).unwrap_or_else(|e| panic!("rmdir {name}: {e}"));
        }
    }
    mounted.detach().unwrap();
}

/// Runs one body where the target and the store lie in a place of this kind.
fn in_a_place(test: &str, prepare: impl Fn(&Path)) {
    if !root_or_skip(test) {
        return;
    }
    let lab = Lab::new();
    let home = lab.path().join("place");
    std::fs::create_dir(&home).unwrap();
    prepare(&home);
    let mut layers = entangled();
    layers.push(vec![
        dir("w/").mode(0o777),
        file("w/x", "").mode(0o666),
        dir("sg/").mode(0o2775).owner(5, 6),
        dir("sg/sub/"),
        file("sg/x", "").mode(0o644),
        file("sg/implied/x", "").mtime(77),
    ]);
    let model = lab.comparable(Model::of_image(lab.options(Default::default()), &layers).unwrap().tree());
    let reference = image(&lab.path().join("i"), &layers);
    let trees = every_way_of(&home, &home.join("store"), &reference, &quick(), &|p| lab.describe(p)).unwrap();
    for (way, tree) in trees {
        assert_same(way, &model, &lab.comparable(tree));
    }
}

#[test]
fn d09_a_setgid_place_gives_its_group_to_nothing() {
    in_a_place("d09_a_setgid_place_gives_its_group_to_nothing", |home| {
        std::os::unix::fs::chown(home, Some(0), Some(4242)).unwrap();
        std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o2777)).unwrap();
        std::fs::create_dir(home.join("probe")).unwrap();
        assert_eq!(home.join("probe").metadata().unwrap().gid(), 4242, "the place is not what the test needs");
        std::fs::remove_dir(home.join("probe")).unwrap();
    });
}

#[test]
fn d10_the_umask_does_not_matter() {
    // The umask belongs to the process: another one has it.
    if std::env::var_os("UNPLY_UMASK").is_none() {
        if root_or_skip("d10_the_umask_does_not_matter") {
            for umask in ["077", "0777", "0"] {
                let me = std::env::current_exe().unwrap();
                let output = Command::new("sh")
                    .args([
                        "-c",
                        &format!("umask {umask}; exec \"$0\" --exact d10_the_umask_does_not_matter --nocapture"),
                    ])
                    .arg(me)
                    .env("UNPLY_UMASK", umask)
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
                assert!(output.status.success() && text.contains("1 passed"), "umask {umask}: {text}");
            }
        }
        return;
    }
    in_a_place("d10_the_umask_does_not_matter", |home| {
        std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o755)).unwrap();
    });
}

#[test]
fn d11_a_default_acl_of_the_place_does_not_matter() {
    in_a_place("d11_a_default_acl_of_the_place_does_not_matter", |home| {
        // user::rwx, user:4243:rwx, group::rwx, mask::rwx, other::rwx
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, id) in [(1u16, u32::MAX), (2, 4243), (4, u32::MAX), (16, u32::MAX), (32, u32::MAX)] {
            acl.extend(tag.to_le_bytes());
            acl.extend(7u16.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        rustix::fs::setxattr(home, "system.posix_acl_default", &acl, rustix::fs::XattrFlags::empty()).unwrap();
        std::fs::write(home.join("probe"), "").unwrap();
        let size = rustix::fs::getxattr(home.join("probe"), "system.posix_acl_access", &mut [0u8; 256]).unwrap();
        assert!(size > 0, "the place is not what the test needs");
        std::fs::remove_file(home.join("probe")).unwrap();
    });
}

/// D8: read-only and unreadable directories before their children, by somebody who is not root outside.
#[test]
fn d08_read_only_directories_as_an_unprivileged_user() {
    let test = "d08_read_only_directories_as_an_unprivileged_user";
    if !root_or_skip(test) {
        return;
    }
    let layers = vec![
        vec![
            dir("r/").mode(0o555),
            dir("r/s/").mode(0),
            file("r/s/x", "1"),
            file("r/y", "2").mode(0),
            dir("r/t/").mode(0o111),
            file("r/t/deep/z", "3"),
            hardlink("r/s/h", "r/y"),
        ],
        vec![
            file("r/s/z", "3"),
            whiteout("r", "y"),
            file("r/t/deep/a", "4"),
            whiteout("r/t/deep", "z"),
            hardlink("r/t/h", "r/s/x"),
        ],
        vec![dir("r/s/").mode(0o500), whiteout("r/s", "h"), opaque("r/t"), file("r/t/n", "")],
    ];
    if std::env::var_os("UNPLY_IN_USERNS").is_none() {
        if unply::sys::in_user_namespace() {
            println!("SKIP: {test}: another user can be had in the first user namespace only");
            return;
        }
        // Under this uid nothing but the namespace's own root gives any right.
        let place = tempfile::Builder::new().prefix("unply-d08-").tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let me = place.path().join("me");
        std::fs::copy(std::env::current_exe().unwrap(), &me).unwrap();
        std::fs::set_permissions(&me, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new("setpriv")
            .args(["--reuid=1000", "--regid=1000", "--clear-groups", "unshare", "-Urm"])
            .arg(&me)
            .args(["--exact", test, "--nocapture"])
            .env("UNPLY_IN_USERNS", "1")
            .env("TMPDIR", place.path())
            .current_dir(place.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let outside = map.split_whitespace().nth(1);
    assert_eq!(outside, Some("1000"), "not the user that the test is about");
    let lab = Lab::new();
    let wrong = check_every_way(&lab, "d08", &layers, Default::default());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What is left can be removed, by those who have no right but that of the owner.
    let out = lab.path().join("out");
    unpack::unpack(&image(&lab.path().join("i"), &layers), &out, None, &quick(), &|_| {}).unwrap();
    let store = lab.path().join("s");
    unpack::pull(
        &image(&lab.path().join("i2"), &layers),
        &unpack::open_store(&store, false).unwrap(),
        &quick(),
        &|_| {},
    )
    .unwrap();
}

/// An ext4 file system in memory; `None`, and a SKIP, where none can be mounted.
struct Ext4(PathBuf);

impl Ext4 {
    fn mount(at: &Path, megabytes: u64, inodes: u64) -> Option<Ext4> {
        let disk = at.join("disk");
        std::fs::File::create(&disk).unwrap().set_len(megabytes << 20).unwrap();
        let point = at.join("ext4");
        std::fs::create_dir(&point).unwrap();
        let run = |command: &mut Command| command.output().is_ok_and(|o| o.status.success());
        let made = run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "^has_journal", "-N", &inodes.to_string()])
            .arg(&disk))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&point));
        if !made {
            println!("SKIP: no ext4 can be mounted by a loop device here");
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "must not be skipped in CI");
            return None;
        }
        Some(Ext4(point))
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status(); // the mount namespace of the test ends anyway
    }
}

/// L12: ext4 allows 65,000 names of one inode. What is over becomes a copy, one for all that are over.
#[test]
fn l12_more_links_than_the_file_system_allows() {
    let test = "l12_more_links_than_the_file_system_allows";
    if !root_or_skip(test) || unply::sys::in_user_namespace() {
        return;
    }
    let lab = Lab::new();
    let Some(ext4) = Ext4::mount(lab.path(), 128, 4096) else { return };
    const LINKS: usize = 65_010;
    let mut layer = vec![file("f", "content").mode(0o640).owner(5, 6).mtime(7).xattr("user.k", "v")];
    layer.extend((1..LINKS).map(|n| hardlink(format!("{}/{n}", n % 9), "f").mode(0o640).owner(5, 6).mtime(7)));
    // A layer above makes every name of the group move into a fix-up, where there are as many.
    let layers = vec![layer, vec![hardlink("last", "f").mode(0o640).owner(5, 6).mtime(7)]];
    let reference = image(&lab.path().join("i"), &layers);
    let look = |way: &str, root: &Path, names: usize| {
        let mut groups: HashMap<u64, usize> = HashMap::new();
        let tree = lab.describe(root);
        let mut found = 0;
        for (path, node) in tree.0.iter().filter(|(_, node)| node.kind != testkit::tree::Kind::Dir) {
            let meta = root.join(String::from_utf8(path.clone()).unwrap()).metadata().unwrap();
            *groups.entry(meta.ino()).or_default() += 1;
            assert_eq!(node.kind, testkit::tree::Kind::file(b"content"), "{way}");
            assert_eq!((node.mode, node.uid, node.gid, node.mtime), (0o640, 5, 6, (7, 0)), "{way}");
            assert_eq!(node.xattrs[&b"user.k"[..]], b"v", "{way}");
            found += 1;
        }
        let mut sizes: Vec<usize> = groups.into_values().collect();
        sizes.sort_unstable();
        // The fix-up sees two files below, and adds a name to the one that is full.
        assert_eq!((found, sizes), (names, vec![1, names - 65_001, 65_000]), "{way}");
    };
    let kinds = Mutex::new(Vec::new());
    let events = |event: Event| {
        if let Event::Warning { warning, .. } = event {
            kinds.lock().unwrap().push(warning.kind);
        }
    };
    let flat = ext4.0.join("flat");
    unpack::unpack(&reference, &flat, None, &quick(), &events).unwrap();
    look("flat", &flat, LINKS + 1);
    assert_eq!(kinds.lock().unwrap().iter().filter(|k| **k == "too-many-links").count(), 1);
    std::fs::remove_dir_all(&flat).unwrap();
    let store = unpack::open_store(&ext4.0.join("store"), false).unwrap();
    let pulled = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
    let merged = lab.path().join("merged");
    std::fs::create_dir(&merged).unwrap();
    let view = pulled.chain.view().attach(&merged).unwrap();
    look("mounted", &merged, LINKS + 1);
    view.detach().unwrap();
}

/// S11: neither depth nor breadth costs descriptors; ordinary shells allow 1,024.
#[test]
fn s11_deep_and_wide_images_need_few_descriptors() {
    if !root_or_skip("s11_deep_and_wide_images_need_few_descriptors") {
        return;
    }
    let lab = Lab::new();
    let deep = vec!["a"; 1020].join("/");
    let long = vec!["n".repeat(100); 50].join("/");
    let mut lower: Layer = (0..1500).map(|n| dir(format!("w/d{n}/")).mtime(5)).collect();
    lower.extend([dir(&deep), file(deep.clone() + "/gone", ""), dir(&long), symlink("s", &deep[..199])]);
    let mut upper: Layer = (0..1500).map(|n| file(format!("w/d{n}/f"), "")).collect();
    upper.extend([
        file(deep.clone() + "/f", "f"),
        whiteout(&deep, "gone"),
        file(long.clone() + "/f", "f"),
        hardlink("h", deep.clone() + "/f"),
        file("s/x", ""),
    ]);
    let layers = [lower, upper];
    let model = lab.comparable(Model::of_image(lab.options(Default::default()), &layers).unwrap().tree());
    let reference = image(&lab.path().join("i"), &layers).to_string();
    let run = |args: &[&str]| {
        let output = Command::new("prlimit")
            .args(["--nofile=220:220", env!("CARGO_BIN_EXE_unply"), "--no-durable", "--progress", "none"])
            .args(args)
            .env("UNPLY_ROOT", lab.path().join("store"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}", &text[..text.len().min(2000)]);
    };
    let flat = lab.path().join("flat");
    run(&["unpack", &reference, &flat.display().to_string()]);
    assert_same("flat", &model, &lab.comparable(lab.describe(&flat)));
    run(&["pull", &reference]);
    let copied = lab.path().join("copied");
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    let id = format!("id:{}", store.images().unwrap()[0].image.image_id.to_string().trim_start_matches("sha256:"));
    run(&["unpack", &id, &copied.display().to_string()]);
    assert_same("from the store", &model, &lab.comparable(lab.describe(&copied)));
    let merged = lab.path().join("merged");
    std::fs::create_dir(&merged).unwrap();
    let view = unpack::stored(&id[3..], &store, &|_| {}).unwrap().chain.view().attach(&merged).unwrap();
    assert_same("mounted", &model, &lab.comparable(lab.describe(&merged)));
    view.detach().unwrap();
}

/// S14: whatever is mounted inside a directory that we walk is not entered.
#[test]
fn s14_mounts_are_not_crossed() {
    if !root_or_skip("s14_mounts_are_not_crossed") {
        return;
    }
    let lab = Lab::new();
    let inside = lab.path().join("a/b");
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::write(lab.path().join("a/f"), "").unwrap();
    let top = unply::root::Dir::open(lab.path()).unwrap();
    top.open_below(b"a/b").unwrap();
    rustix::mount::mount("none", &inside, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let e = top.open_below(b"a/b").unwrap_err();
    assert!(e.to_string().contains("cross-device"), "{e}");
    std::os::unix::fs::symlink("/proc/self/fd", lab.path().join("magic")).unwrap();
    assert!(top.open_below(b"magic").is_err());
    assert!(top.open_below(b"magic/0").is_err());
}

/// Runs the program on a layout `i` of these layers; returns exit code and standard error.
fn unply(lab: &Lab, args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_unply"))
        .args(["--no-durable", "--progress", "none"])
        .args(args)
        .env("UNPLY_ROOT", lab.path().join("store"))
        .current_dir(lab.path())
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Each option of the rulings table, both settings, through the command line: unpacked, pulled, and the tree compared.
#[test]
fn r02_r03_r11_options_change_the_tree_at_the_command_line() {
    if !root_or_skip("r02_r03_r11_options_change_the_tree_at_the_command_line") || unply::sys::in_user_namespace() {
        return;
    }
    use testkit::model::{LowerSymlinks, Options as M, RootEntry};
    let lab = Lab::new();
    let layers = vec![
        vec![
            dir("./").mode(0o750).owner(9, 9).mtime(6).xattr("user.r", "1"),
            dir("usr/lib/"),
            symlink("lib", "usr/lib"),
            file("f", "").xattr("security.selinux", "system_u:object_r:x_t:s0"),
        ],
        vec![file("lib/x", "").mtime(77)],
    ];
    image(&lab.path().join("i"), &layers);
    let settings: [(&[&str], M); 8] = [
        (&[], M::default()),
        (&["--root-entry", "ignore"], M::default()),
        (&["--root-entry", "apply"], M { root_entry: RootEntry::Apply, ..M::default() }),
        (&["--lower-symlinks", "resolve"], M::default()),
        (&["--lower-symlinks", "shadow"], M { lower_symlinks: LowerSymlinks::Shadow, ..M::default() }),
        (&["--selinux", "drop"], M::default()),
        (&["--selinux", "keep"], M { selinux_keep: true, ..M::default() }),
        (&["--strict"], M { strict: true, ..M::default() }),
    ];
    let mut different = BTreeSet::new();
    for (n, (args, options)) in settings.iter().enumerate() {
        let want = Model::of_image(*options, &layers).unwrap().tree();
        different.insert(want.listing());
        let out = format!("out{n}");
        let (code, err) = unply(&lab, &[args, &["unpack", "oci:i:t", &out][..]].concat());
        assert_eq!(code, 0, "{args:?}: {err}");
        assert_same(&format!("{args:?} flat"), &want, &lab.describe(&lab.path().join(&out)));
        // The store keeps them apart: the same image pulled with each setting, one after another.
        let (code, err) = unply(&lab, &[args, &["pull", "oci:i:t"][..]].concat());
        assert_eq!(code, 0, "{args:?}: {err}");
        let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
        let id = store.images().unwrap()[0].image.image_id.to_string();
        let copy = lab.path().join(format!("copy{n}"));
        let stored = Reference::Stored(id);
        unpack::unpack(&stored, &copy, Some(&store), &quick(), &|_| {}).unwrap();
        assert_same(&format!("{args:?} from the store"), &want, &lab.describe(&copy));
        // Each setting that does something says so.
        let told = [("--selinux", "selinux-label"), ("--lower-symlinks", "through-lower-symlink")];
        for (option, warning) in told {
            let changed = args.first() == Some(&option) && ["keep", "shadow"].contains(&args[1]);
            let (_, err) =
                unply(&lab, &[args, &["-v", "unpack", "oci:i:t", &format!("again{n}{warning}")][..]].concat());
            assert_eq!(err.contains(warning), !changed, "{args:?}: {err}");
        }
    }
    assert_eq!(different.len(), 4, "every option changes something");
    for bad in [["--root-entry", "shadow"], ["--lower-symlinks", "keep"], ["--selinux", "apply"]] {
        assert_eq!(unply(&lab, &[&bad[..], &["unpack", "oci:i:t", "bad"]].concat()).0, 2);
    }
}

/// `--strict`: each thing it refuses is refused, exit 5, nothing left; without it, taken with a warning of that name.
#[test]
fn r05_r06_r14_r15_strict_refuses_what_the_default_warns_of() {
    if !root_or_skip("r05_r06_r14_r15_strict_refuses_what_the_default_warns_of") {
        return;
    }
    let lab = Lab::new();
    let wrong: [(&str, &str, Layer); 7] = [
        ("name-clamped", "R-5", vec![file("x/../../evil", "")]),
        ("name-clamped-target", "R-5", vec![file("f", ""), hardlink("h", "../f")]),
        ("duplicate", "R-6", vec![file("a", "1"), file("./a", "22")]),
        ("duplicate", "R-6", vec![dir("d/"), dir("d")]),
        ("device-zero", "R-14", vec![testkit::chr("c", 0, 0)]),
        ("below-whiteout", "R-15", vec![file(".wh.x/b", "")]),
        ("below-whiteout", "R-15", vec![dir("d/.wh.x/y/")]),
    ];
    for (n, (warning, rule, layer)) in wrong.into_iter().enumerate() {
        let at = format!("i{n}");
        image(&lab.path().join(&at), &[vec![file("k", "")], layer]);
        let reference = format!("oci:{at}:t");
        let out = format!("out{n}");
        let (code, err) = unply(&lab, &["--strict", "unpack", &reference, &out]);
        assert!(code == 5 && err.contains(rule), "{warning}: {code} {err}");
        assert!(!lab.path().join(&out).exists());
        let (code, err) = unply(&lab, &["unpack", &reference, &out]);
        assert_eq!(code, 0, "{warning}: {err}");
        if warning != "name-clamped-target" {
            assert!(err.contains(warning), "{warning}: {err}");
        }
        // A layer that the store took without --strict does not pass for one that was held to it.
        assert_eq!(unply(&lab, &["pull", &reference]).0, 0);
        let (code, err) = unply(&lab, &["--strict", "pull", &reference]);
        assert!(code == 5 && err.contains(rule), "{warning} from the store: {code} {err}");
    }
    // What a conforming builder writes passes.
    image(&lab.path().join("good"), &entangled());
    let (code, err) = unply(&lab, &["--strict", "unpack", "oci:good:t", "good-out"]);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn layers_in_a_user_namespace() {
    in_user_namespace(&[
        "w24_layers_in_every_order_and_by_any_number_of_threads_are_the_same",
        "p14_unpacking_again_gives_the_same_tree",
        "w22_x06_whiteouts_share_one_inode_and_take_no_bytes",
        "x05_names_that_are_gone_are_gone_for_every_call",
        "r05_r06_r14_r15_strict_refuses_what_the_default_warns_of",
    ]);
}
