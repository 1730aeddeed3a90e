//! Handles: what is not followed, not entered and not opened.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn both(dir: &std::path::Path) -> [Dir; 2] {
    [Resolver::Openat2, Resolver::Steps].map(|resolver| Dir::open(dir).unwrap().with_resolver(resolver))
}

/// What CI must not skip.
fn skip(why: &dyn std::fmt::Display) {
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "must not be skipped in CI: {why}");
    println!("SKIP: {why}");
}

#[test]
fn s14_no_resolver_follows_a_symlink_or_goes_up() {
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir_all(tmp.path().join("in/d/e")).unwrap();
    fs::create_dir(tmp.path().join("out")).unwrap();
    symlink("../out", tmp.path().join("in/l")).unwrap();
    symlink("d", tmp.path().join("in/inside")).unwrap();
    symlink("/proc/self/root", tmp.path().join("in/magic")).unwrap();
    for dir in both(&tmp.path().join("in")) {
        assert!(dir.open_below(b"d/e").is_ok() && dir.open_below(b"./d//e/").is_ok());
        for path in [&b"l"[..], b"inside", b"inside/e", b"magic/tmp", b"..", b"d/../..", b"d/e/../../../out", b"none"] {
            let error = dir.open_below(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{:?} {}: {error}", dir.resolver(), escape(path));
        }
        // What is opened through a handle opens in the same way.
        assert_eq!(dir.open_child(b"d").unwrap().resolver(), dir.resolver());
        assert!(dir.open_file(b"l").is_err());
    }
}

#[test]
fn s14_no_resolver_enters_a_mount_and_no_removal_does() {
    let tmp = tempfile::tempdir().unwrap();
    let (tree, outside) = (tmp.path().join("tree"), tmp.path().join("outside"));
    fs::create_dir_all(tree.join("d/m/below")).unwrap();
    fs::create_dir_all(outside.join("below")).unwrap();
    fs::write(outside.join("keep"), "x").unwrap();
    // A bind mount of the same file system: its device number is the tree's own.
    if let Err(e) = rustix::mount::mount_bind(&outside, tree.join("d/m")) {
        return skip(&e);
    }
    let mut wrong = Vec::new();
    for dir in both(&tree) {
        for path in [&b"d/m"[..], b"d/m/below"] {
            if dir.open_below(path).is_ok() {
                wrong.push(format!("{:?} enters {}", dir.resolver(), escape(path)));
            }
        }
        if dir.remove_all(b"d").is_ok() || !outside.join("keep").exists() {
            wrong.push(format!("{:?} removes it", dir.resolver()));
        }
    }
    rustix::mount::unmount(tree.join("d/m"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn what_took_the_place_of_something_published_is_removed_and_not_followed() {
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir_all(tmp.path().join("outside/keep")).unwrap();
    let dir = Dir::open(tmp.path()).unwrap();
    let mine = dir.new_dir(b"mine", 0o700).unwrap();
    dir.check_is(b"mine", &mine).unwrap();
    symlink("outside", tmp.path().join("evil")).unwrap();
    assert_eq!(dir.check_is(b"evil", &mine).unwrap_err().kind(), ErrorKind::Busy);
    assert!(fs::symlink_metadata(tmp.path().join("evil")).is_err());
    assert!(tmp.path().join("outside/keep").is_dir());
    assert_eq!(dir.new_dir(b"mine", 0o700).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(dir.new_file(b"mine").unwrap_err().kind(), ErrorKind::AlreadyExists);
}

/// Runs the next test again where `/proc` is an empty directory.
#[test]
fn go_archive_105_109_modes_and_xattrs_need_no_proc() {
    let status = std::process::Command::new("unshare")
        .args([
            "-Urm",
            "sh",
            "-c",
            "mount -t tmpfs none /proc && exec \"$0\" --exact root::tests::child_without_proc --ignored",
        ])
        .arg(std::env::current_exe().unwrap())
        .env("UNPLY_NO_PROC", "1")
        .output();
    match status {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            if text.contains("unshare:") || text.contains("mount:") { skip(&text) } else { panic!("{text}") }
        }
        Err(e) => skip(&e),
    }
}

#[test]
#[ignore = "entry point of a child process"]
fn child_without_proc() {
    assert!(std::env::var_os("UNPLY_NO_PROC").is_some() && !std::path::Path::new("/proc/self").exists());
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = Dir::open(tmp.path()).unwrap();
    drop(dir.make_file(b"f", 0o000).unwrap().unwrap());
    dir.make_node(b"p", Kind::Fifo, 0o000, 0).unwrap();
    dir.make_symlink(b"l", b"f").unwrap();
    let old_kernel = |e: &Error| e.kind() == ErrorKind::NotFound;
    for name in [&b"f"[..], b"p"] {
        match dir.set_mode(name, 0o751) {
            Ok(()) => assert_eq!(dir.stat(name).unwrap().unwrap().meta.mode, 0o751),
            // Before Linux 6.6 /proc is the only way; the error is typed and says so.
            Err(e) => assert!(old_kernel(&e), "{e}"),
        }
    }
    match dir.set_xattr(b"f", b"user.k", b"v") {
        Ok(()) => assert_eq!(dir.get_xattr(b"f", b"user.k").unwrap().unwrap(), b"v"),
        Err(e) => assert_eq!(e, Errno::NOENT, "before Linux 6.13"),
    }
    dir.new_dir(b"d", 0o755).unwrap();
    fs::set_permissions(tmp.path().join("d"), fs::Permissions::from_mode(0o555)).unwrap();
    dir.remove_all(b"d").unwrap();
}
