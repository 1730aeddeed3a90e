//! What the integration tests share: a private mount namespace, images made by testkit, every way to unpack them.

#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::image::{ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{DescribeOptions, EntrySpec, Tree, compare, describe};
use unply::digest::DiffId;
use unply::error::Result;
use unply::image::Reference;
use unply::policy;
use unply::root::Resolver;
use unply::unpack::{self, Options};

/// Returns whether mounts can be tested; says SKIP where not, and fails there under `CI=true`.
pub fn root_or_skip(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    println!("SKIP: {test}: needs root or a user namespace (try: unshare -Urm)");
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{test} must not be skipped in CI");
    false
}

/// Runs tests of this binary again as root of a user namespace: of one that maps one id, and where we are root of one that maps all.
pub fn in_user_namespace(tests: &[&str]) {
    if std::env::var_os("UNPLY_IN_USERNS").is_some() {
        return;
    }
    let me = std::env::current_exe().unwrap();
    let run = |shape: &str, command: &mut Command| {
        let output = command
            .arg(&me)
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .args(tests)
            .env("UNPLY_IN_USERNS", "1")
            .output();
        let output = match output {
            Ok(output) => output,
            Err(e) => {
                println!("SKIP: user namespace: {e}");
                assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "unshare and nsenter are needed in CI");
                return;
            }
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success(), "in a user namespace ({shape}):\n{text}");
        assert!(text.contains(&format!("{} passed", tests.len())), "not every test ran ({shape}):\n{text}");
    };
    run("one id", Command::new("unshare").arg("-Urm"));
    if rustix::process::geteuid().is_root() {
        let mut holder = Command::new("unshare").args(["-U", "sleep", "600"]).spawn().unwrap();
        let target = holder.id().to_string();
        // Until unshare has done its work the namespace is ours, and its maps cannot be written.
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        let namespace = format!("/proc/{target}/ns/user");
        while std::fs::read_link(&namespace).is_ok_and(|n| n == own) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{target}/{map}"), "0 0 65536").unwrap();
        }
        run("65,536 ids", Command::new("nsenter").args(["-U", "-t", &target, "-S", "0", "-G", "0", "unshare", "-m"]));
        holder.kill().unwrap();
        holder.wait().unwrap();
    }
}

/// Returns the corpus.
pub fn corpus() -> PathBuf {
    let path = std::env::var_os("UNPLY_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"), PathBuf::from);
    assert!(
        path.is_dir(),
        "the corpus is not at {}: it stands beside the checkout, or set UNPLY_CORPUS",
        path.display()
    );
    path
}

/// A place with its own mounts, which go with the thread.
pub struct Lab {
    dir: tempfile::TempDir,
    store: PathBuf,
    pub in_user_namespace: bool,
    pub one_id: bool,
    /// How the product opens directories; `None` lets it choose.
    pub resolver: Option<Resolver>,
}

impl Lab {
    pub fn new() -> Lab {
        private_mounts();
        let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("unply-test-").tempdir_in(base).unwrap();
        let store = dir.path().join("store");
        let in_user_namespace = unply::sys::in_user_namespace();
        let one_id = matches!(unply::sys::uid_map().unwrap(), unply::sys::IdMap::Single(_));
        Lab { dir, store, in_user_namespace, one_id, resolver: None }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Whether this place can show the image at all: a user namespace has not every owner, and no devices for the hard
    /// links of later layers.
    pub fn can_hold(&self, layers: &[Vec<EntrySpec>]) -> bool {
        self.can_hold_with(layers, testkit::model::Options::default())
    }

    /// As [`Lab::can_hold`] with other options than the default ones.
    pub fn can_hold_with(&self, layers: &[Vec<EntrySpec>], options: testkit::model::Options) -> bool {
        use testkit::EntryKind::{Block, Char, HardLink};
        let device = |e: &EntrySpec| matches!(e.kind, Char(..) | Block(..)) && !matches!(e.kind, Char(0, 0));
        let link = |e: &EntrySpec| matches!(e.kind, HardLink(_));
        let first = layers.iter().position(|layer| layer.iter().any(device)).unwrap_or(layers.len());
        if self.in_user_namespace && layers.iter().skip(first + 1).flatten().any(link) {
            return false;
        }
        let fits = |e: &EntrySpec| {
            let owners = e.uid < 65536 && e.gid < 65536;
            let xattrs = e.xattrs.iter().all(|(name, _)| {
                let dropped =
                    name.starts_with(b"trusted.overlay.") || (name == b"security.selinux" && !options.selinux_keep);
                name.starts_with(b"user.") || dropped
            });
            !self.in_user_namespace || ((owners || self.one_id) && xattrs)
        };
        layers.iter().flatten().all(fits)
    }

    /// The options that the model needs to know what mounts of this place read.
    pub fn options(&self, options: testkit::model::Options) -> testkit::model::Options {
        testkit::model::Options { userxattr: self.in_user_namespace, skip_devices: self.in_user_namespace, ..options }
    }

    /// Leaves out what the place cannot keep.
    pub fn comparable(&self, tree: Tree) -> Tree {
        if self.one_id { tree.without_owners() } else { tree }
    }

    pub fn describe(&self, path: &Path) -> Tree {
        // Where the mount does not read `user.overlay.*` it is data like any other.
        let (user, special) = (self.in_user_namespace, testkit::describe::overlay_xattr);
        let ignore_xattr = Box::new(move |name: &[u8]| special(name) && (user || !name.starts_with(b"user.")));
        let options = DescribeOptions { ignore_xattr, ..DescribeOptions::default() };
        describe(path, &options).unwrap_or_else(|e| panic!("describe {}: {e}", path.display()))
    }

    /// Unpacks flat, mounted read-only, and mounted with an upper; an error if all refuse.
    pub fn every_way(
        &self,
        layers: &[Vec<EntrySpec>],
        options: testkit::model::Options,
    ) -> Result<Vec<(&'static str, Tree)>> {
        self.every_way_of_tars(&layers.iter().map(testkit::layer).collect::<Vec<_>>(), options)
    }

    /// As [`Lab::every_way`], for any archives.
    pub fn every_way_of_tars(
        &self,
        tars: &[Vec<u8>],
        options: testkit::model::Options,
    ) -> Result<Vec<(&'static str, Tree)>> {
        let work = tempfile::tempdir_in(self.path()).unwrap();
        let layout = work.path().join("image");
        OciLayout::new(&layout).unwrap().add(&ImageSpec::new(tars.to_vec()).tag("t")).unwrap();
        let reference: Reference = format!("oci:{}:t", layout.display()).parse().unwrap();
        let options = Options {
            tree: tree_options(options),
            durable: false,
            jobs: 2,
            resolver: self.resolver,
            ..Options::default()
        };
        every_way_of(work.path(), &self.store, &reference, &options, &|path| self.describe(path))
    }
}

/// Compares what [`Lab::every_way`] gave with the reference model; returns what is wrong.
pub fn check_image(
    lab: &Lab,
    name: &str,
    layers: &[Vec<EntrySpec>],
    options: testkit::model::Options,
    results: &Result<Vec<(&'static str, Tree)>>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    match (Model::of_image(lab.options(options), layers), results) {
        (Err(_), Err(_)) => {}
        (Err(refusal), Ok(_)) => wrong.push(format!("{name}: accepted, but the model refuses: {refusal:?}")),
        (Ok(_), Err(e)) => wrong.push(format!("{name}: refused, but the model accepts: {e}")),
        (Ok(model), Ok(trees)) => {
            let expected = lab.comparable(model.tree());
            for (way, tree) in trees {
                let differences = compare(&expected, &lab.comparable(tree.clone()));
                if !differences.is_empty() {
                    wrong.push(format!("{name}, {way} (expected: model):"));
                    wrong.extend(differences.iter().take(12).map(|d| format!("    {d}")));
                }
            }
        }
    }
    wrong
}

/// As [`check_image`], every way.
pub fn check_every_way(
    lab: &Lab,
    name: &str,
    layers: &[Vec<EntrySpec>],
    options: testkit::model::Options,
) -> Vec<String> {
    check_image(lab, name, layers, options, &lab.every_way(layers, options))
}

/// Brings one image in every way and describes each result.
pub fn every_way_of(
    work: &Path,
    store: &Path,
    reference: &Reference,
    options: &Options,
    describe: &dyn Fn(&Path) -> Tree,
) -> Result<Vec<(&'static str, Tree)>> {
    let mut out = Vec::new();
    let flat = work.join("flat");
    let unpacked = unpack::unpack(reference, &flat, None, options, &|_| {});
    let store = unpack::open_store(store, false).unwrap();
    let pulled = unpack::pull(reference, &store, options, &|_| {});
    match (&unpacked, &pulled) {
        (Ok(_), Ok(_)) => {}
        (Err(e), Err(_)) => {
            assert!(!flat.exists(), "an unpack that failed left its target behind: {e}");
            return Err(pulled.unwrap_err());
        }
        (Ok(_), Err(e)) => panic!("unpack accepts what pull refuses: {e}"),
        (Err(e), Ok(_)) => panic!("pull accepts what unpack refuses: {e}"),
    }
    out.push(("flat", describe(&flat)));
    let pulled = pulled?;
    let merged = work.join("merged");
    std::fs::create_dir(&merged).unwrap();
    let view = pulled.chain.view().attach(&merged)?;
    out.push(("mounted read-only", describe(&merged)));
    let write = std::fs::write(merged.join("must-not-be"), b"");
    assert_eq!(write.unwrap_err().raw_os_error(), Some(libc::EROFS), "a view can be written");
    view.detach()?;
    let key = format!("test-{}", std::process::id());
    let snapshot = pulled.chain.snapshot(&key)?;
    let mounted = snapshot.mount(&merged)?;
    out.push(("mounted read-write", describe(&merged)));
    // Removing everything must not trip over phantoms. Xattr whiteouts of lower layers are phantoms to the kernel's own
    // rmdir (measured on 6.18: it looks for character devices only), though nothing lists them.
    let kernel_bug = |e: &std::io::Error| {
        store.flavour().whiteouts == policy::WhiteoutForm::Xattr && e.raw_os_error() == Some(libc::ENOTEMPTY)
    };
    for entry in std::fs::read_dir(&merged).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            match std::fs::remove_dir_all(&path) {
                Err(e) if !kernel_bug(&e) => panic!("remove {}: {e}", path.display()),
                _ => {}
            }
        } else {
            std::fs::remove_file(&path).unwrap_or_else(|e| panic!("remove {}: {e}", path.display()));
        }
    }
    mounted.detach()?;
    drop(snapshot);
    // A process that another test starts holds our locks for the moment between its fork and its exec.
    for _ in 0..200 {
        match store.remove_snapshot(&key) {
            Err(e) if e.kind() == unply::error::ErrorKind::Busy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => return other.map(|()| out),
        }
    }
    store.remove_snapshot(&key)?;
    Ok(out)
}

pub fn tree_options(options: testkit::model::Options) -> policy::TreeOptions {
    use testkit::model;
    policy::TreeOptions {
        strict: options.strict,
        root_entry: match options.root_entry {
            model::RootEntry::Ignore => policy::RootEntry::Ignore,
            model::RootEntry::Apply => policy::RootEntry::Apply,
        },
        lower_symlinks: match options.lower_symlinks {
            model::LowerSymlinks::Resolve => policy::LowerSymlinks::Resolve,
            model::LowerSymlinks::Shadow => policy::LowerSymlinks::Shadow,
        },
        selinux: if options.selinux_keep { policy::Selinux::Keep } else { policy::Selinux::Drop },
    }
}

/// Gives the calling thread mounts of its own.
pub fn private_mounts() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    if std::env::var_os("UNPLY_IN_USERNS").is_none() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare(CLONE_NEWNS)");
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("make mounts private");
}

pub fn diff_id(text: &str) -> DiffId {
    text.parse().unwrap()
}
