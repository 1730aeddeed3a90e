//! Removal of odd trees.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};

use super::{Removal, remove_path};

/// Memory where there is some.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn removed(path: &Path) {
    assert_eq!(remove_path(path, &|| false).unwrap(), Removal::Complete);
    assert!(fs::symlink_metadata(path).is_err(), "{path:?} is still there");
}

#[test]
fn what_is_absent_counts_as_removed_and_a_file_is_removed() {
    let tmp = scratch();
    removed(&tmp.path().join("nothing"));
    removed(&tmp.path().join("no/parent"));
    fs::write(tmp.path().join("file"), "").unwrap();
    removed(&tmp.path().join("file"));
}

#[test]
fn symlinks_are_removed_and_not_followed() {
    let tmp = scratch();
    let canary = tmp.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("keep"), "x").unwrap();
    let tree = tmp.path().join("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    symlink(&canary, tree.join("d/to-dir")).unwrap();
    symlink("loop", tree.join("loop")).unwrap();
    removed(&tree);
    symlink(&canary, &tree).unwrap();
    removed(&tree);
    assert_eq!(fs::read_to_string(canary.join("keep")).unwrap(), "x");
}

#[test]
fn every_kind_of_entry_and_name_goes() {
    let tmp = scratch();
    let tree = tmp.path().join("tree");
    fs::create_dir_all(tree.join("closed/inner")).unwrap();
    fs::write(tree.join("closed/inner/file"), "").unwrap();
    fs::write(tree.join(std::ffi::OsStr::from_encoded(b"bad\xff\n name")), "").unwrap();
    fs::write(tree.join("x".repeat(255)), "").unwrap();
    mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    if rustix::process::geteuid().is_root() {
        mknodat(CWD, tree.join("whiteout"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }
    for dir in ["closed/inner", "closed"] {
        fs::set_permissions(tree.join(dir), fs::Permissions::from_mode(0o000)).unwrap();
    }
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o555)).unwrap();
    removed(&tree);
}

trait FromEncoded {
    fn from_encoded(bytes: &[u8]) -> &Self;
}

impl FromEncoded for std::ffi::OsStr {
    fn from_encoded(bytes: &[u8]) -> &Self {
        std::os::unix::ffi::OsStrExt::from_bytes(bytes)
    }
}

/// Deeper than PATH_MAX can name and than any usual limit on open files.
#[test]
fn s11_a_tree_deeper_than_any_path_goes() {
    let tmp = scratch();
    let tree = tmp.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let mut dir: OwnedFd = fs::File::open(&tree).unwrap().into();
    let name = CString::new("deep-name-".repeat(10)).unwrap();
    for _ in 0..3000 {
        mkdirat(&dir, &name, Mode::RWXU).unwrap();
        drop(openat(&dir, c"side", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap());
        dir = openat(&dir, &name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let open_files = || fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0);
    let before = open_files();
    removed(&tree);
    drop(dir);
    assert!(open_files() <= before + 64, "handles stay open");
}

#[test]
fn removal_can_be_stopped_and_resumed() {
    let tmp = scratch();
    let tree = tmp.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..100 {
        fs::create_dir_all(tree.join(format!("{n}/x"))).unwrap();
    }
    let calls = std::cell::Cell::new(0);
    let stop = || {
        calls.set(calls.get() + 1);
        calls.get() > 50
    };
    assert_eq!(remove_path(&tree, &stop).unwrap(), Removal::Stopped);
    assert!(tree.is_dir());
    removed(&tree);
}

#[test]
fn four_removers_of_one_tree_all_succeed() {
    let tmp = scratch();
    for round in 0..10 {
        let tree = tmp.path().join(format!("tree{round}"));
        for n in 0..40 {
            fs::create_dir_all(tree.join(format!("{n}/a/b/c"))).unwrap();
            fs::write(tree.join(format!("{n}/a/f")), "").unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| removed(&tree));
            }
        });
    }
}

#[test]
fn n16_what_is_mounted_inside_is_not_touched() {
    let tmp = scratch();
    let (tree, outside) = (tmp.path().join("tree"), tmp.path().join("outside"));
    fs::create_dir_all(tree.join("d/m")).unwrap();
    fs::write(tree.join("d/file"), "").unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("keep"), "x").unwrap();
    // A bind mount of the same file system: its device number is the tree's own.
    if let Err(e) = rustix::mount::mount_bind(&outside, tree.join("d/m")) {
        assert!(std::env::var_os("CI").is_none(), "cannot mount: {e}");
        eprintln!("SKIP: cannot mount: {e}");
        return;
    }
    let outcome = remove_path(&tree, &|| false);
    rustix::mount::unmount(tree.join("d/m"), rustix::mount::UnmountFlags::empty()).unwrap();
    let error = outcome.unwrap_err();
    let code = std::error::Error::source(&error)
        .and_then(|e| e.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::raw_os_error);
    assert!(matches!(code, Some(libc::EBUSY | libc::EXDEV)), "{error}");
    assert_eq!(fs::read_to_string(outside.join("keep")).unwrap(), "x");
    assert!(!tree.join("d/file").exists(), "the rest is gone");
    removed(&tree);
}

#[test]
fn an_undeletable_file_is_an_error_and_the_rest_goes() {
    let tmp = scratch();
    let tree = tmp.path().join("tree");
    for n in 0..10 {
        fs::create_dir_all(tree.join(format!("{n}"))).unwrap();
        fs::write(tree.join(format!("{n}/f")), "").unwrap();
    }
    let file = fs::File::open(tree.join("5/f")).unwrap();
    let set = |flags| rustix::fs::ioctl_setflags(file.as_fd(), flags);
    if let Err(e) = set(rustix::fs::IFlags::IMMUTABLE) {
        eprintln!("SKIP: no immutable files here: {e}");
        return;
    }
    let outcome = remove_path(&tree, &|| false);
    set(rustix::fs::IFlags::empty()).unwrap();
    assert!(outcome.is_err());
    assert_eq!(fs::read_dir(&tree).unwrap().count(), 1);
    removed(&tree);
}
