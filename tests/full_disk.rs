//! Disks that are full, have no inodes left, may not be written or fail: the exit code, what is kept, what is rolled
//! back, and that the same command works once there is room.

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::path::{Path, PathBuf};
use std::process::Command;

use disk::{Fault, Mounted, Random, Rig, disks_or_skip};
use serde_json::Value;
use testkit::image::{ImageSpec, OciLayout};
use testkit::{EntrySpec, dir, file, layer};
use unply::apply::Writers;
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::store::Store;
use unply::unpack::{Options, open_store, pull};

/// Mounts of our own, images outside of the disks, and a mount point.
struct Field {
    tmp: tempfile::TempDir,
}

struct Ended {
    code: i32,
    /// What was printed; an error is a document too.
    doc: Value,
}

impl Ended {
    #[track_caller]
    fn with(self, code: i32) -> Ended {
        assert_eq!(self.code, code, "{}", self.doc);
        self
    }

    #[track_caller]
    fn says(self, key: &str, text: &str) -> Ended {
        let found = self.doc["error"][key].as_str().unwrap_or_default();
        assert!(found.contains(text), "{key} does not say \"{text}\": {}", self.doc);
        self
    }

    fn reused(&self) -> usize {
        self.doc["layers"].as_array().unwrap().iter().filter(|layer| layer["reused"] == true).count()
    }
}

impl Field {
    fn new() -> Field {
        common::private_mounts();
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::create_dir(tmp.path().join("place")).unwrap();
        Field { tmp }
    }

    fn place(&self) -> PathBuf {
        self.tmp.path().join("place")
    }

    fn root(&self) -> PathBuf {
        self.place().join("store")
    }

    fn image(&self, name: &str, layers: &[Vec<EntrySpec>]) -> String {
        let path = self.tmp.path().join(name);
        let tars = layers.iter().map(layer).collect::<Vec<_>>();
        OciLayout::new(&path).unwrap().add(&ImageSpec::new(tars).tag(name)).unwrap();
        format!("oci:{}:{name}", path.display())
    }

    fn tmpfs(&self, options: &str) -> Mounted {
        mount(&["-t", "tmpfs", "-o", options, "none"], &self.place())
    }

    fn run(&self, args: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_unply"))
            .env("UNPLY_ROOT", self.root())
            .args(["--json", "--progress", "none", "-j1"])
            .args(args)
            .output()
            .unwrap();
        let doc = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        assert!(!doc.is_null(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ended { code: output.status.code().unwrap(), doc }
    }

    /// Nothing half done is left, and the store is sound.
    #[track_caller]
    fn rolled_back(&self) -> Store {
        let store = Store::open_existing(&self.root(), true).unwrap();
        assert_eq!(store.check().unwrap(), []);
        for name in ["staging", "trash"] {
            assert_eq!(std::fs::read_dir(self.root().join(name)).unwrap().count(), 0, "{name}");
        }
        store
    }
}

#[track_caller]
fn mount(args: &[&str], place: &Path) -> Mounted {
    let output = Command::new("mount").args(args).arg(place).output().unwrap();
    assert!(output.status.success(), "mount {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Mounted::at(place)
}

/// The first layer to be unpacked, for its blob is the larger one, and one that becomes 8 MB.
fn small_and_big() -> Vec<Vec<EntrySpec>> {
    let small = vec![file("small", Random::new(5).bytes(200_000))];
    let mut big = vec![dir("d/")];
    big.extend((0..8).map(|n| file(format!("d/f{n}"), vec![b'a' + n; 1 << 20])));
    vec![small, big]
}

fn no_space_midway(field: &Field, more_room: &dyn Fn()) {
    let image = field.image("image", &small_and_big());
    let failed = field.run(&["pull", &image]).with(7);
    failed.says("code", "no-space").says("image", "image").says("layer", "sha256:").says("entry", "d/f");
    let store = field.rolled_back();
    assert_eq!(store.layers().unwrap().len(), 1, "the finished layer is kept");
    assert!(store.images().unwrap().is_empty());
    more_room();
    assert_eq!(field.run(&["pull", &image]).with(0).reused(), 1);
    assert_eq!(field.rolled_back().images().unwrap().len(), 1);
}

#[test]
fn p15_a_full_tmpfs_keeps_finished_layers_and_the_same_command_works_with_more_room() {
    if !disks_or_skip("a full tmpfs") {
        return;
    }
    let field = Field::new();
    let _mounted = field.tmpfs("size=4m");
    no_space_midway(&field, &|| {
        let place = field.place();
        let more = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&place).status().unwrap();
        assert!(more.success());
    });
}

#[test]
fn p15_a_full_ext4_keeps_finished_layers_and_the_same_command_works_with_more_room() {
    if !disks_or_skip("a full ext4") {
        return;
    }
    let field = Field::new();
    let rig = Rig::new(field.tmp.path());
    let disk = rig.disk(rig.ext4(24));
    let _mounted = disk.mount(&field.place(), "noinit_itable");
    let ballast = field.place().join("ballast");
    std::fs::File::create(&ballast).unwrap();
    let (free, _) = unply::sys::fs_space(std::fs::File::open(field.place()).unwrap()).unwrap();
    std::fs::write(&ballast, vec![1; free as usize - (4 << 20)]).unwrap();
    no_space_midway(&field, &|| std::fs::remove_file(&ballast).unwrap());
}

/// A loop device over a sparse file, with a file system made by `program`.
fn loop_disk(field: &Field, program: &str, options: &[&str]) -> Option<Mounted> {
    let image = field.tmp.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    match Command::new(program).args(options).arg(&image).output() {
        Ok(made) => assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr)),
        Err(e) => {
            println!("SKIP: {program}: {e}");
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{program} is needed in CI");
            return None;
        }
    }
    Some(mount(&["-o", "loop", image.to_str().unwrap()], &field.place()))
}

#[test]
fn p15_a_quota_that_is_used_up_is_no_space_too() {
    if !disks_or_skip("a quota") {
        return;
    }
    let field = Field::new();
    let Some(_mounted) = loop_disk(&field, "mkfs.btrfs", &["-q"]) else { return };
    let root = field.root();
    let btrfs = |args: &[&str]| {
        let done = Command::new("btrfs").args(args).arg(&root).output().unwrap();
        assert!(done.status.success(), "btrfs {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    btrfs(&["subvolume", "create"]);
    let enabled = Command::new("btrfs").args(["quota", "enable"]).arg(field.place()).status().unwrap();
    assert!(enabled.success());
    btrfs(&["qgroup", "limit", "4M"]);
    // What is free on the disk says nothing: the refusal comes from a write.
    no_space_midway(&field, &|| btrfs(&["qgroup", "limit", "none"]));
}

/// Most servers have one of these; both copy by sharing blocks, which the fix-up of this image does.
#[test]
fn n14_a_store_lives_on_xfs_and_btrfs() {
    if !disks_or_skip("xfs and btrfs") {
        return;
    }
    let below = vec![dir("d/"), file("d/f", vec![b'f'; 1 << 20]), file("gone", "x")];
    let link = testkit::hardlink("d/link", "d/f");
    let above = vec![link, testkit::whiteout("", "gone"), dir("e/").xattr("user.x", b"y")];
    for (program, options) in [("mkfs.xfs", ["-q", "-f"]), ("mkfs.btrfs", ["-q", "-f"])] {
        let field = Field::new();
        let image = field.image("image", &[below.clone(), above.clone()]);
        let Some(_mounted) = loop_disk(&field, program, &options) else { return };
        field.run(&["pull", &image]).with(0);
        field.run(&["verify", "--all", "--deep"]).with(0);
        let target = field.place().join("target");
        std::fs::create_dir(&target).unwrap();
        field.run(&["mount", &image, target.to_str().unwrap()]).with(0);
        let names = |dir: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|n| n.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&target), ["d", "e"], "{program}");
        assert_eq!(names(&target.join("d")), ["f", "link"], "{program}");
        assert_eq!(std::fs::read(target.join("d/link")).unwrap(), vec![b'f'; 1 << 20]);
        std::fs::write(target.join("d/new"), "x").unwrap();
        field.run(&["umount", "--rm", target.to_str().unwrap()]).with(0);
        field.run(&["unpack", &image, field.place().join("flat").to_str().unwrap()]).with(0);
        assert_eq!(names(&field.place().join("flat/d")), ["f", "link"], "{program}");
        let probe = unply::sys::probe_store(&field.root()).unwrap();
        assert!(probe.reflink, "{program}: {probe:?}");
        assert_eq!(field.rolled_back().check().unwrap(), []);
    }
}

#[test]
fn p15_inodes_that_run_out_are_no_space_too() {
    if !disks_or_skip("inodes that run out") {
        return;
    }
    let field = Field::new();
    let _mounted = field.tmpfs("size=64m,nr_inodes=300");
    let first = vec![file("first", Random::new(5).bytes(100_000))];
    let many = (0..500).map(|n| file(format!("f{n}"), "")).collect();
    let image = field.image("image", &[first, many]);
    field.run(&["pull", &image]).with(7).says("code", "no-space").says("entry", "f");
    assert_eq!(field.rolled_back().layers().unwrap().len(), 1);
    let more = Command::new("mount").args(["-o", "remount,nr_inodes=2000"]).arg(field.place()).status().unwrap();
    assert!(more.success());
    assert_eq!(field.run(&["pull", &image]).with(0).reused(), 1);
}

/// What other threads meet is told as what the one that reads meets: the entry, and nothing stays.
#[test]
fn p15_a_disk_that_several_writers_fill_is_told_by_its_entry_and_nothing_stays() {
    if !disks_or_skip("a disk that several writers fill") {
        return;
    }
    let field = Field::new();
    let first = vec![file("first", Random::new(5).bytes(300_000))];
    let many = (0..3000).map(|n| file(format!("d{}/f{n}", n / 9), vec![b'x'; 2000])).collect();
    let image: Reference = field.image("image", &[first, many]).parse().unwrap();
    let options = Options { writers: Some(Writers::exactly(2, 8)), jobs: 1, ..Options::default() };
    for (little, much) in [("size=4m", "size=64m"), ("size=64m,nr_inodes=700", "size=64m,nr_inodes=9000")] {
        let mounted = field.tmpfs(little);
        let store = open_store(&field.root(), false).unwrap();
        let error = pull(&image, &store, &options, &|_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(error.to_string().contains("/f"), "{error}");
        assert_eq!(field.rolled_back().layers().unwrap().len(), 1, "the finished layer is kept");
        let more = Command::new("mount").args(["-o", &format!("remount,{much}")]).arg(field.place()).status().unwrap();
        assert!(more.success());
        pull(&image, &store, &options, &|_| {}).unwrap();
        assert_eq!(field.rolled_back().images().unwrap().len(), 1);
        drop((store, mounted));
    }
}

#[test]
fn what_can_never_fit_is_refused_before_anything_is_unpacked() {
    if !disks_or_skip("what can never fit") {
        return;
    }
    let field = Field::new();
    let mut random = Random::new(9);
    let big = field.image("big", &[vec![file("a", random.bytes(3 << 20))], vec![file("b", random.bytes(3 << 20))]]);
    let flat = field.place().join("flat");
    {
        let _mounted = field.tmpfs("size=2m");
        for args in [["pull", &big].as_slice(), &["unpack", &big, flat.to_str().unwrap()]] {
            let failed = field.run(args).with(7).says("message", "2 layers need at least 66").says("hint", "make room");
            let failed = failed.says("message", " are free: ").says("image", "big");
            assert!(failed.doc["error"]["entry"].is_null(), "{}", failed.doc);
        }
        assert!(field.rolled_back().layers().unwrap().is_empty());
        assert!(!flat.exists());
    }
    let many = field.image("many", &(0..40).map(|n| vec![file(format!("f{n}"), "")]).collect::<Vec<_>>());
    let _mounted = field.tmpfs("size=64m,nr_inodes=100");
    field.run(&["pull", &many]).with(7).says("message", "40 layers need at least 160 inodes");
}

/// What is in the store already needs no room.
#[test]
fn what_is_there_already_is_not_counted_as_need() {
    if !disks_or_skip("what is there already") {
        return;
    }
    let field = Field::new();
    let _mounted = field.tmpfs("size=8m");
    let image = field.image("image", &[vec![file("a", Random::new(9).bytes(5 << 20))]]);
    field.run(&["pull", &image]).with(0);
    let (free, _) = unply::sys::fs_space(std::fs::File::open(field.place()).unwrap()).unwrap();
    assert!(free < 5 << 20);
    assert_eq!(field.run(&["pull", &image]).with(0).reused(), 1);
}

#[test]
fn p15_a_flat_unpack_that_finds_no_room_leaves_nothing_beside_or_inside_its_target() {
    if !disks_or_skip("a flat unpack without room") {
        return;
    }
    let field = Field::new();
    let image = field.image("image", &small_and_big());
    let _mounted = field.tmpfs("size=2m");
    let place = field.place();
    for target in [place.join("target"), place.clone()] {
        let failed = field.run(&["unpack", &image, target.to_str().unwrap()]).with(7);
        failed.says("layer", "sha256:").says("entry", "d/f");
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    }
    let more = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&place).status().unwrap();
    assert!(more.success());
    field.run(&["unpack", &image, place.to_str().unwrap()]).with(0);
}

#[test]
fn a_read_only_file_system_is_named_and_can_still_be_looked_at() {
    if !disks_or_skip("a read-only file system") {
        return;
    }
    let field = Field::new();
    let image = field.image("image", &[vec![file("a", "x")]]);
    let other = field.image("other", &[vec![file("b", "y")]]);
    let _mounted = field.tmpfs("size=8m");
    field.run(&["pull", &image]).with(0);
    let place = field.place();
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(&place).status().unwrap().success());
    field.run(&["pull", &other]).with(6).says("message", "Read-only file system");
    field.run(&["unpack", &other, place.join("out").to_str().unwrap()]).with(6).says("message", "Read-only");
    field.run(&["gc"]).with(6).says("message", "Read-only file system");
    let images = field.run(&["images"]).with(0);
    assert_eq!(images.doc["images"].as_array().unwrap().len(), 1);
}

/// A disk that fails to write: the error comes out of the one call that waits for it, and nothing counts as published.
#[test]
fn p09_a_write_error_of_the_disk_is_an_error_of_the_command() {
    if !disks_or_skip("a write error of the disk") {
        return;
    }
    let field = Field::new();
    let rig = Rig::new(field.tmp.path());
    let kept = field.image("kept", &[vec![file("a", "x")]]);
    let lost = field.image("lost", &[vec![file("b", vec![b'y'; 100_000])]]);
    let flat = field.place().join("flat");
    for args in [["pull", &lost].as_slice(), &["unpack", &lost, flat.to_str().unwrap()]] {
        let disk = rig.disk(rig.ext4(32));
        let mounted = disk.mount(&field.place(), "noinit_itable");
        field.run(&["pull", &kept]).with(0);
        disk.set_fault(Fault::Writes);
        let failed = field.run(args);
        assert!([1, 6].contains(&failed.code), "{}", failed.doc);
        failed.says("image", "lost");
        let cut = disk.cut();
        drop(mounted);
        drop(disk);
        // The disk is replaced by one with the same content.
        let disk = rig.disk(cut.bare());
        let _mounted = disk.mount(&field.place(), "noinit_itable");
        let store = field.rolled_back();
        assert_eq!(store.images().unwrap().len(), 1);
        assert_eq!(store.layers().unwrap().len(), 1);
        assert!(!flat.exists());
        field.run(args).with(0);
    }
}

#[test]
fn a_blob_that_cannot_be_read_is_named_and_nothing_of_it_stays() {
    if !disks_or_skip("a blob that cannot be read") {
        return;
    }
    let field = Field::new();
    let rig = Rig::new(field.tmp.path());
    let disk = rig.disk(rig.ext4(32));
    let blobs = field.tmp.path().join("blobs");
    std::fs::create_dir(&blobs).unwrap();
    {
        let _mounted = disk.mount(&blobs, "noinit_itable");
        let tar = layer(&vec![file("big", Random::new(2).bytes(4 << 20))]);
        OciLayout::new(blobs.join("image")).unwrap().add(&ImageSpec::new([tar]).tag("t")).unwrap();
    }
    let _mounted = disk.mount(&blobs, "");
    let reference = format!("oci:{}:t", blobs.join("image").display());
    // The documents are read now and stay in memory; the blob is not.
    field.run(&["inspect", &reference]).with(0);
    disk.set_fault(Fault::Reads);
    field.run(&["pull", &reference]).with(1).says("layer", "sha256:").says("message", "Input/output error");
    assert!(field.rolled_back().layers().unwrap().is_empty());
    disk.set_fault(Fault::None);
    field.run(&["pull", &reference]).with(0);
}
