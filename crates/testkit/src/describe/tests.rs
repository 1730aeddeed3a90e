use super::*;
use crate::tree::assert_same;
use rustix::fs::{CWD, XattrFlags};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

/// A directory that is removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        let path = std::env::temp_dir().join(format!("testkit-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: the system cleans its temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn x12_everything_a_tree_has_is_described() {
    let root = Temporary::new("all");
    let at = |name: &str| root.0.join(name);
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/z"), "content").unwrap();
    std::fs::set_permissions(at("d/z"), std::fs::Permissions::from_mode(0o4711)).unwrap();
    std::fs::hard_link(at("d/z"), at("b")).unwrap();
    symlink("../no\nwhere", at("l")).unwrap();
    rustix::fs::mknodat(CWD, at("p"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    rustix::fs::lsetxattr(at("b"), "user.k", b"\0v", XattrFlags::empty()).unwrap();
    rustix::fs::lsetxattr(at("d"), "user.d", b"", XattrFlags::empty()).unwrap();
    rustix::fs::lsetxattr(at("d"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();

    let tree = describe(&root.0, &DescribeOptions::default()).unwrap();
    let paths: Vec<&[u8]> = tree.0.keys().map(|path| &path[..]).collect();
    assert_eq!(paths, [&b""[..], b"b", b"d", b"d/z", b"l", b"p"]);
    let z = tree.get("d/z").unwrap();
    assert_eq!((&z.kind, z.mode, z.link.as_deref()), (&Kind::file(b"content"), 0o4711, Some(&b"b"[..])));
    assert_eq!(z.xattrs, [(b"user.k".to_vec(), b"\0v".to_vec())].into());
    assert_eq!(tree.get("d").unwrap().xattrs, [(b"user.d".to_vec(), Vec::new())].into());
    assert_eq!(tree.get("l").unwrap().kind, Kind::Symlink(b"../no\nwhere".to_vec()));
    assert_eq!(tree.get("p").unwrap().kind, Kind::Fifo);
    let metadata = std::fs::symlink_metadata(at("l")).unwrap();
    assert_eq!(tree.get("l").unwrap().mtime, (metadata.mtime(), metadata.mtime_nsec() as u32));

    let options = DescribeOptions { ignore_root_meta: true, ignore_owners: true, ..DescribeOptions::default() };
    let plain = describe(&root.0, &options).unwrap();
    assert_eq!(plain.get("").unwrap(), &Node::new(Kind::Dir));
    assert_same("filters", &tree.without_root_meta().without_owners(), &plain);
}

#[test]
fn s11_trees_deeper_than_path_max() {
    let root = Temporary::new("deep");
    let name = "n".repeat(200);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(&root.0, flags, Mode::empty()).unwrap();
    for _ in 0..60 {
        rustix::fs::mkdirat(&at, &name[..], Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, &name[..], flags, Mode::empty()).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    drop(rustix::fs::openat(&at, "file", flags, Mode::from_raw_mode(0o644)).unwrap());
    let tree = describe(&root.0, &DescribeOptions::default()).unwrap();
    assert_eq!(tree.0.len(), 62);
    assert!(tree.0.keys().any(|path| path.len() > 12_000 && path.ends_with(b"/file")));
}

#[test]
fn unreadable_paths_say_what_failed() {
    assert!(describe(Path::new("/no/such/place"), &DescribeOptions::default()).is_err());
}

/// Says why a test cannot run; where everything must run that is a failure.
fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "cannot run: {reason}");
    eprintln!("SKIP: {reason}");
}

#[test]
fn w10_a_whiteout_that_leaks_into_a_listing_is_a_phantom() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    let root = Temporary::new("phantom");
    // A whiteout in a directory that only one layer has: overlayfs lists the name and lstat does not find it. The mount
    // lives in a namespace of its own, so it cannot outlive the shell.
    let script = "mkdir -p lower/d bottom merged && mknod lower/d/gone c 0 0 && : >lower/d/kept &&
        mount -t overlay overlay -o lowerdir=lower:bottom merged && echo mounted && read -r end";
    let mut shell = match Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .current_dir(&root.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    {
        Ok(shell) => shell,
        Err(error) => return skip(&format!("unshare: {error}")),
    };
    let mut line = String::new();
    io::BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let seen = (line == "mounted\n").then(|| {
        let merged = format!("/proc/{}/root{}/merged", shell.id(), root.0.display());
        describe(Path::new(&merged), &DescribeOptions::default())
    });
    drop(shell.stdin.take());
    shell.wait().unwrap();
    let Some(tree) = seen else { return skip("no overlay mount without privileges") };
    let tree = tree.unwrap();
    assert!(matches!(tree.get("d/kept").unwrap().kind, Kind::File { len: 0, .. }));
    assert_eq!(tree.get("d/gone").map(|node| &node.kind), Some(&Kind::Phantom));
}
