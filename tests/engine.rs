//! The engine through its public API: sources that go by once, targets, stacks of every height, many processes, places.

mod common;

use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;
use std::sync::Mutex;

use common::*;
use testkit::image::{
    Compression, DockerForm, DockerOptions, ImageSpec, LayerSpec, OciLayout, docker_archive, oci_archive,
};
use testkit::model::Model;
use testkit::{EntrySpec, assert_same, dir, file, hardlink, layer, opaque, symlink, whiteout};
use unply::cancel::CancelToken;
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::unpack::{self, Event, Options};

fn quick() -> Options {
    Options { durable: false, jobs: 2, ..Options::default() }
}

fn some_layers() -> Vec<Vec<EntrySpec>> {
    vec![
        vec![
            dir("etc/"),
            file("etc/a", "1"),
            dir("usr/"),
            dir("usr/lib/"),
            file("usr/lib/x", "x"),
            symlink("lib", "usr/lib"),
        ],
        vec![whiteout("etc", "a"), file("etc/b", "2"), file("lib/y", "y")],
        vec![dir("etc/"), opaque("etc"), file("etc/c", "3"), hardlink("etc/d", "usr/lib/x")],
    ]
}

fn tars(layers: &[Vec<EntrySpec>]) -> Vec<Vec<u8>> {
    layers.iter().map(layer).collect()
}

fn names(path: &Path) -> Vec<String> {
    let mut out: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|n| n.unwrap().file_name().into_string().unwrap()).collect();
    out.sort();
    out
}

#[test]
fn archives_give_the_same_tree_with_the_manifest_first_and_last() {
    if !root_or_skip("archives_give_the_same_tree_with_the_manifest_first_and_last") {
        return;
    }
    let lab = Lab::new();
    let layers = some_layers();
    let model = Model::of_image(Default::default(), &layers).unwrap().tree();
    let image = ImageSpec::new(tars(&layers)).tag("repo:t");
    for (form, form_name) in [(DockerForm::Legacy, "legacy"), (DockerForm::Combined, "combined")] {
        for manifest_first in [true, false] {
            for gzip in [false, true] {
                let work = tempfile::tempdir_in(lab.path()).unwrap();
                let mut bytes = docker_archive(std::slice::from_ref(&image), DockerOptions { form, manifest_first });
                if gzip {
                    // A compressed archive cannot be read at random: it goes by once, as standard input does.
                    bytes = testkit::gzip(&bytes);
                }
                let path = work.path().join("image.tar");
                std::fs::write(&path, bytes).unwrap();
                let reference = format!("docker-archive:{}:repo:t", path.display()).parse().unwrap();
                let trees =
                    every_way_of(work.path(), &lab.path().join("store"), &reference, &quick(), &|p| lab.describe(p))
                        .unwrap();
                for (way, tree) in trees {
                    assert_same(
                        &format!("{form_name} manifest_first={manifest_first} gzip={gzip} {way}"),
                        &model,
                        &tree,
                    );
                }
            }
        }
    }
}

#[test]
fn a_bad_member_that_the_image_does_not_use_is_a_warning() {
    if !root_or_skip("a_bad_member_that_the_image_does_not_use_is_a_warning") {
        return;
    }
    let lab = Lab::new();
    let good = ImageSpec::new(tars(&some_layers())).tag("good:t");
    let mut broken = testkit::gzip(&layer(&[file("z", "z")]));
    let at = broken.len() - 6;
    broken[at] ^= 1;
    let bad = ImageSpec::new([layer(&[file("z", "z")])]).tag("bad:t");
    let bad = ImageSpec { layers: vec![LayerSpec::new(layer(&[file("z", "z")])).blob(broken)], ..bad };
    let archive = testkit::gzip(&oci_archive(&[bad, good]));
    let path = lab.path().join("two.tar.gz");
    std::fs::write(&path, archive).unwrap();
    let reference = |tag: &str| format!("oci-archive:{}:{tag}", path.display()).parse::<Reference>().unwrap();
    let warnings = Mutex::new(Vec::new());
    let events = |event: Event| {
        if let Event::Warning { warning, .. } = event {
            warnings.lock().unwrap().push(warning.kind);
        }
    };
    let out = lab.path().join("out");
    unpack::unpack(&reference("good:t"), &out, None, &quick(), &events).unwrap();
    assert!(warnings.lock().unwrap().contains(&"unused-member"), "{:?}", warnings.lock().unwrap());
    let bad_out = lab.path().join("bad");
    let e = unpack::unpack(&reference("bad:t"), &bad_out, None, &quick(), &|_| {}).unwrap_err();
    // The blob is the promised one: it was made with a wrong checksum.
    assert_eq!(e.kind(), ErrorKind::Malformed, "{e}");
    assert!(!bad_out.exists());
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    assert_eq!(unpack::pull(&reference("bad:t"), &store, &quick(), &|_| {}).unwrap_err().kind(), ErrorKind::Malformed);
    assert!(store.images().unwrap().is_empty());
    assert_eq!(store.check().unwrap(), []);
}

#[test]
fn stacks_of_every_height() {
    if !root_or_skip("stacks_of_every_height") {
        return;
    }
    let lab = Lab::new();
    for height in [0usize, 1, 2, 35, 130] {
        let layers: Vec<Vec<EntrySpec>> = (0..height)
            .map(|n| {
                let mut l =
                    vec![dir("d/").mtime(n as i64), file(format!("d/f{n}"), n.to_string()), file("top", n.to_string())];
                if n % 7 == 3 {
                    l.push(whiteout("d", format!("f{}", n - 1)));
                }
                if n % 10 == 9 {
                    l.push(file("d/implied/deep", "x"));
                }
                l
            })
            .collect();
        let model = Model::of_image(Default::default(), &layers).unwrap().tree();
        for (way, tree) in lab.every_way(&layers, Default::default()).unwrap() {
            assert_same(&format!("{height} layers {way}"), &model, &tree);
        }
    }
}

/// N2: more layers than one overlay takes.
#[test]
fn n02_five_hundred_layers_and_more() {
    if !root_or_skip("n02_five_hundred_layers_and_more") {
        return;
    }
    let lab = Lab::new();
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    for (height, fits) in [(500usize, true), (501, true), (640, true), (1000, false)] {
        let layers: Vec<Vec<EntrySpec>> = (0..height)
            .map(|n| {
                let mut layer = vec![file(format!("f{n}"), format!("{height}"))];
                match n {
                    2 => layer.extend([dir("d/"), file("d/old", ""), file("gone", "")]),
                    4 => layer.extend([whiteout("", "gone"), hardlink("linked", "f1")]),
                    _ if n + 3 == height => layer.extend([dir("d/"), opaque("d"), file("d/new", "")]),
                    _ => {}
                }
                layer
            })
            .collect();
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        OciLayout::new(work.path().join("i")).unwrap().add(&ImageSpec::new(tars(&layers)).tag("t")).unwrap();
        let reference: Reference = format!("oci:{}:t", work.path().join("i").display()).parse().unwrap();
        let model = Model::of_image(Default::default(), &layers).unwrap().tree();
        if fits {
            let trees =
                every_way_of(work.path(), &lab.path().join("store"), &reference, &quick(), &|p| lab.describe(p))
                    .unwrap();
            for (way, tree) in trees {
                assert_same(&format!("{height} layers, {way}"), &model, &tree);
            }
            continue;
        }
        let pulled = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
        let target = work.path().join("m");
        std::fs::create_dir(&target).unwrap();
        let e = pulled.chain.view().attach(&target).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
        assert!(e.to_string().contains("999") && e.hint().unwrap().contains("one directory"), "{e}");
        let flat = work.path().join("flat");
        unpack::unpack(&reference, &flat, None, &quick(), &|_| {}).unwrap();
        assert_same(&format!("{height} layers, flat"), &model, &lab.describe(&flat));
    }
}

#[test]
fn odd_places_work() {
    if !root_or_skip("odd_places_work") {
        return;
    }
    let lab = Lab::new();
    let layers = some_layers();
    let model = Model::of_image(Default::default(), &layers).unwrap().tree();
    for place in [":", "a,b", "back\\slash", "sp ace", "new\nline", &"long".repeat(60)] {
        let mut home = lab.path().join(place);
        if place.len() > 100 {
            home = home.join(place).join(place);
        }
        std::fs::create_dir_all(&home).unwrap();
        OciLayout::new(home.join("i")).unwrap().add(&ImageSpec::new(tars(&layers)).tag("t")).unwrap();
        let reference = Reference::OciDir { dir: home.join("i"), selector: unply::image::Selector::None };
        for (way, tree) in
            every_way_of(&home, &home.join("s:,\\ \n"), &reference, &quick(), &|p| lab.describe(p)).unwrap()
        {
            assert_same(&format!("{place:?} {way}"), &model, &tree);
        }
    }
}

/// nothing of the place gets into the rootfs.
#[test]
fn r27_setgid_default_acl_and_umask_of_the_place_stay_outside() {
    use std::os::unix::fs::PermissionsExt as _;
    if !root_or_skip("r27_setgid_default_acl_and_umask_of_the_place_stay_outside") {
        return;
    }
    let lab = Lab::new();
    let home = lab.path().join("place");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(0), Some(4242)).unwrap();
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o2777)).unwrap();
    // user::rwx, user:4243:rwx, group::rwx, mask::rwx, other::rwx
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, id) in [(1u16, u32::MAX), (2, 4243), (4, u32::MAX), (16, u32::MAX), (32, u32::MAX)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(7u16.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    rustix::fs::setxattr(&home, "system.posix_acl_default", &acl, rustix::fs::XattrFlags::empty()).unwrap();
    let layers = some_layers();
    let model = Model::of_image(Default::default(), &layers).unwrap().tree();
    OciLayout::new(lab.path().join("i")).unwrap().add(&ImageSpec::new(tars(&layers)).tag("t")).unwrap();
    let reference: Reference = format!("oci:{}:t", lab.path().join("i").display()).parse().unwrap();
    let trees = every_way_of(&home, &home.join("store"), &reference, &quick(), &|p| lab.describe(p)).unwrap();
    for (way, tree) in trees {
        assert_same(way, &model, &tree);
    }
}

#[test]
fn targets() {
    if !root_or_skip("targets") {
        return;
    }
    let lab = Lab::new();
    OciLayout::new(lab.path().join("i")).unwrap().add(&ImageSpec::new(tars(&some_layers())).tag("t")).unwrap();
    let reference: Reference = format!("oci:{}:t", lab.path().join("i").display()).parse().unwrap();
    let model = Model::of_image(Default::default(), &some_layers()).unwrap().tree();
    let durable = Options { durable: true, ..quick() };
    let try_at = |path: &Path| unpack::unpack(&reference, path, None, &durable, &|_| {});
    // Absent, then not empty.
    let absent = lab.path().join("absent");
    try_at(&absent).unwrap();
    assert_same("absent", &model, &lab.describe(&absent));
    let e = try_at(&absent).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::AlreadyExists, "{e}");
    assert!(e.hint().is_some());
    assert_same("untouched", &model, &lab.describe(&absent));
    // Empty.
    let empty = lab.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    try_at(&empty).unwrap();
    assert_same("empty", &model, &lab.describe(&empty));
    // No directory, no parent.
    std::fs::write(lab.path().join("file"), "").unwrap();
    assert_eq!(try_at(&lab.path().join("file")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(try_at(&lab.path().join("no/parent")).unwrap_err().kind(), ErrorKind::NotFound);
    // A mount point, with lost+found and with what a killed run left.
    let mounted = lab.path().join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    rustix::mount::mount("none", &mounted, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    std::fs::create_dir(mounted.join("lost+found")).unwrap();
    std::fs::create_dir_all(mounted.join(".unply-dead/rootfs/x")).unwrap();
    std::fs::write(mounted.join(".unply-dead/lock"), "").unwrap();
    std::fs::create_dir(mounted.join("half-moved")).unwrap();
    try_at(&mounted).unwrap();
    let mut tree = lab.describe(&mounted);
    assert!(tree.0.remove(&b"lost+found"[..]).is_some());
    assert_same("mount point", &model, &tree);
    // A failure empties it again.
    for name in names(&mounted) {
        if name != "lost+found" {
            let path = mounted.join(name);
            if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir_all(path).unwrap()
            } else {
                std::fs::remove_file(path).unwrap()
            }
        }
    }
    let mut bad = ImageSpec::new(tars(&some_layers())).tag("bad");
    bad = bad.broken(testkit::image::Breakage::WrongDiffId(1));
    OciLayout::new(lab.path().join("b")).unwrap().add(&bad).unwrap();
    let broken: Reference = format!("oci:{}:bad", lab.path().join("b").display()).parse().unwrap();
    let e = unpack::unpack(&broken, &mounted, None, &quick(), &|_| {}).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Integrity, "{e}");
    assert_eq!(names(&mounted), ["lost+found"]);
    // Leftovers beside a target go with the next run.
    std::fs::create_dir_all(lab.path().join(".unply-killed/0/tree")).unwrap();
    std::fs::write(lab.path().join(".unply-killed/lock"), "").unwrap();
    try_at(&lab.path().join("again")).unwrap();
    assert!(!names(lab.path()).iter().any(|n| n.starts_with(".unply-")), "{:?}", names(lab.path()));
}

#[test]
fn layers_are_shared_and_unpacked_once_by_many_at_once() {
    if !root_or_skip("layers_are_shared_and_unpacked_once_by_many_at_once") {
        return;
    }
    let lab = Lab::new();
    let shared = some_layers();
    let mut layout = OciLayout::new(lab.path().join("i")).unwrap();
    for n in 0..4 {
        let mut layers = shared.clone();
        layers.push(vec![file(format!("own{n}"), n.to_string())]);
        layout.add(&ImageSpec::new(tars(&layers)).tag(format!("t{n}")).compression(Compression::Gzip)).unwrap();
    }
    let root = lab.path().join("store");
    unpack::open_store(&root, false).unwrap();
    let unpacked = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (root, unpacked, layout) = (&root, &unpacked, layout.path());
            scope.spawn(move || {
                let store = unpack::open_store(root, n % 2 == 0).unwrap();
                let reference = format!("oci:{}:t{}", layout.display(), n % 4).parse().unwrap();
                let pulled = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
                unpacked.lock().unwrap().extend(pulled.layers.iter().filter(|l| !l.reused).map(|l| l.diff_id));
            });
        }
    });
    let unpacked = unpacked.into_inner().unwrap();
    let different: HashSet<_> = unpacked.iter().collect();
    assert_eq!(different.len(), unpacked.len(), "a layer was unpacked twice");
    assert_eq!(unpacked.len(), 7);
    let store = unpack::open_store(&root, true).unwrap();
    assert_eq!(store.check().unwrap(), []);
    assert_eq!(store.images().unwrap().len(), 4);
}

#[test]
fn p11_one_bad_layer_of_several_at_once_fails_the_image_and_the_finished_ones_stay() {
    if !root_or_skip("p11_one_bad_layer_of_several_at_once_fails_the_image_and_the_finished_ones_stay") {
        return;
    }
    let lab = Lab::new();
    let layers: Vec<Vec<EntrySpec>> =
        (0..6).map(|n| vec![dir("d/"), file(format!("d/f{n}"), "x".repeat(n * 10_000)), file("top", "t")]).collect();
    let layout = lab.path().join("i");
    let built = OciLayout::new(&layout).unwrap().add(&ImageSpec::new(tars(&layers)).tag("t")).unwrap();
    let reference: Reference = format!("oci:{}:t", layout.display()).parse().unwrap();
    for (jobs, bad) in (0..6).flat_map(|bad| [(1, bad), (3, bad), (8, bad)]) {
        let at = format!("layer {bad} of 6 is bad, {jobs} at once");
        let root = lab.path().join(format!("store-{jobs}-{bad}"));
        let store = unpack::open_store(&root, false).unwrap();
        let options = Options { jobs, ..quick() };
        let blob = layout.join("blobs/sha256").join(&built.layers[bad]);
        let good = std::fs::read(&blob).unwrap();
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        std::fs::write(&blob, damaged).unwrap();
        let e = unpack::pull(&reference, &store, &options, &|_| {}).unwrap_err();
        std::fs::write(&blob, good).unwrap();
        assert_eq!(e.kind(), ErrorKind::Integrity, "{at}: {e}");
        assert_eq!((store.images().unwrap().len(), store.check().unwrap()), (0, vec![]), "{at}");
        assert_eq!(names(&root.join("staging")), [""; 0], "{at}");
        let stayed = store.layers().unwrap().len();
        assert!(stayed < layers.len(), "{at}");
        let pulled = unpack::pull(&reference, &store, &options, &|_| {}).unwrap();
        assert_eq!(pulled.layers.iter().filter(|layer| layer.reused).count(), stayed, "{at}");
        // The image's layer whose blob was damaged is not among them.
        assert!(!pulled.layers[bad].reused, "{at}");
    }
}

#[test]
fn a_held_chain_is_not_collected() {
    if !root_or_skip("a_held_chain_is_not_collected") {
        return;
    }
    let lab = Lab::new();
    OciLayout::new(lab.path().join("i")).unwrap().add(&ImageSpec::new(tars(&some_layers())).tag("t")).unwrap();
    let reference: Reference = format!("oci:{}:t", lab.path().join("i").display()).parse().unwrap();
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    let pulled = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
    store.remove_image(&pulled.record.image.image_id).unwrap();
    assert_eq!(store.gc(false).unwrap().layers.len(), 0, "the chain is still held");
    for path in pulled.chain.lowerdirs() {
        assert!(path.is_dir());
    }
    drop(pulled);
    assert_eq!(store.gc(false).unwrap().layers.len(), 3);
    assert_eq!(store.check().unwrap(), []);
}

#[test]
fn b10_cancelling_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    if !root_or_skip("b10_cancelling_leaves_nothing") {
        return;
    }
    OciLayout::new(dir.path().join("i")).unwrap().add(&ImageSpec::new(tars(&some_layers())).tag("t")).unwrap();
    let reference: Reference = format!("oci:{}:t", dir.path().join("i").display()).parse().unwrap();
    let cancel = CancelToken::new();
    cancel.cancel();
    let options = Options { cancel, ..quick() };
    let e = unpack::unpack(&reference, &dir.path().join("out"), None, &options, &|_| {}).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Cancelled);
    assert_eq!(names(dir.path()), ["i"]);
}

#[test]
fn an_image_of_the_store_can_be_flattened_after_its_source_is_gone() {
    if !root_or_skip("an_image_of_the_store_can_be_flattened_after_its_source_is_gone") {
        return;
    }
    let lab = Lab::new();
    let model = Model::of_image(Default::default(), &some_layers()).unwrap().tree();
    OciLayout::new(lab.path().join("i")).unwrap().add(&ImageSpec::new(tars(&some_layers())).tag("name:t")).unwrap();
    let reference: Reference = format!("oci:{}:name:t", lab.path().join("i").display()).parse().unwrap();
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap();
    std::fs::remove_dir_all(lab.path().join("i")).unwrap();
    let out = lab.path().join("out");
    unpack::unpack(&Reference::Stored("name:t".into()), &out, Some(&store), &quick(), &|_| {}).unwrap();
    assert_same("from the store", &model, &lab.describe(&out));
}

/// Memory does not grow with the layer: a 200 MB file of zeros and 20,000 names.
#[test]
fn peak_memory_is_bounded() {
    if std::env::var_os("UNPLY_MEMORY_CHILD").is_some() {
        let layers: Reference = format!("layer:{}", std::env::var("UNPLY_MEMORY_CHILD").unwrap()).parse().unwrap();
        let out = tempfile::tempdir_in("/dev/shm").unwrap();
        unpack::unpack(&layers, &out.path().join("o"), None, &quick(), &|_| {}).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 64 << 10, "peak {kib} KiB");
        println!("peak {kib} KiB;");
        return;
    }
    if !root_or_skip("peak_memory_is_bounded") {
        return;
    }
    let lab = Lab::new();
    let mut entries = vec![file("big", vec![0u8; 200 << 20])];
    for d in 0..100 {
        entries.push(dir(format!("d{d}/")));
        entries.extend((0..200).map(|n| file(format!("d{d}/f{n}"), "x")));
    }
    let path = lab.path().join("layer.tar.gz");
    std::fs::write(&path, testkit::gzip(&layer(&entries))).unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "peak_memory_is_bounded", "--nocapture"])
        .env("UNPLY_MEMORY_CHILD", &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}

/// B11: what is kept of a layer while it is applied grows with its directories, not with its names.
#[test]
fn b11_names_are_not_kept() {
    if !root_or_skip("b11_names_are_not_kept") {
        return;
    }
    let lab = Lab::new();
    let peak = |count: usize| -> u64 {
        let mut entries = vec![dir("d/")];
        entries.extend((0..count).map(|n| file(format!("d/{n:0>220}"), "")));
        let path = lab.path().join(format!("{count}.tar.gz"));
        std::fs::write(&path, testkit::gzip(&layer(&entries))).unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peak_memory_is_bounded", "--nocapture"])
            .env("UNPLY_MEMORY_CHILD", &path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let peak = text.split("peak ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        peak.parse().unwrap()
    };
    let (few, many) = (peak(100), peak(60_000));
    // The names alone are 13 MB.
    assert!(many < few + (6 << 10), "{few} KiB for 100 names, {many} KiB for 60,000");
}

#[test]
fn a_stream_can_come_from_any_reader() {
    use unply::image::{ArchiveKind, ArchiveStream, OpenOptions, Selector};
    let bytes = docker_archive(
        &[ImageSpec::new(tars(&some_layers())).tag("r:t")],
        DockerOptions { form: DockerForm::Legacy, manifest_first: false },
    );
    let stream = ArchiveStream::from_reader(
        Box::new(Cursor::new(bytes)),
        ArchiveKind::Sniff,
        Selector::None,
        &OpenOptions::default(),
    );
    let collected = stream.read(|member| Ok(member.size)).unwrap();
    assert_eq!(collected.image.layers.len(), 3);
}
