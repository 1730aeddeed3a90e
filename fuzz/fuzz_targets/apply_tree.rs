//! Small layer lists, unpacked flat and, where the input asks for it, pulled and mounted: the tree is the reference
//! model's or both refuse, and nothing beside it changes.
//!
//! Needs root, since owners and devices are set. The first byte chooses options; inputs are text (see `unply_fuzz::layers_from_text`), so a reproducer
//! can be read and shortened by hand.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use testkit::image::{ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{DescribeOptions, Tree, compare, describe};
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::policy::{LowerSymlinks, RootEntry, TreeOptions};
use unply::unpack::{Options, open_store, pull, unpack};

/// A directory with something to lose, and a place inside it to unpack to.
struct Arena {
    dir: PathBuf,
    before: Tree,
}

static ARENA: LazyLock<Arena> = LazyLock::new(|| {
    // The mounts of a fuzzer that is stopped go with it. The calling thread is the only one so far.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let dir = unply_fuzz::scratch();
    for name in ["canary/a/b", "canary/lib", "canary/usr", "a", "lib", "work"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    for name in ["canary/a/f", "canary/file", "a/f", "file"] {
        std::fs::write(dir.join(name), "precious").unwrap();
    }
    let before = look(&dir);
    Arena { dir, before }
});

fn look(path: &Path) -> Tree {
    // The place itself changes its times when something is made in it.
    describe(path, &DescribeOptions::default()).unwrap().without_root_meta()
}

fn without_work(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    tree.0.retain(|path, _| path != b"work" && !path.starts_with(b"work/"));
    tree
}

/// The same image as layers of a store, stacked by overlayfs.
fn mounted(work: &Path, reference: &Reference, options: &Options, wanted: Option<&Tree>) {
    let store = open_store(&work.join("store"), false).unwrap();
    let (pulled, wanted) = match (pull(reference, &store, options, &|_| {}), wanted) {
        (Ok(pulled), Some(wanted)) => (pulled, wanted),
        (Err(_), None) => return,
        (Err(e), Some(_)) => panic!("the model takes it, a pull says: {e}"),
        (Ok(_), None) => panic!("a pull takes it, the model refuses it"),
    };
    let merged = work.join("merged");
    std::fs::create_dir(&merged).unwrap();
    let view = pulled.chain.view().attach(&merged).unwrap();
    // Elsewhere than in a user namespace `user.overlay.*` is data; the default hides it.
    let shown = DescribeOptions {
        ignore_xattr: Box::new(|name| name.starts_with(b"trusted.overlay.")),
        ..DescribeOptions::default()
    };
    let differences = compare(wanted, &describe(&merged, &shown).unwrap());
    assert!(differences.is_empty(), "mounted, the model's tree is on the left:\n{differences:#?}");
    view.detach().unwrap();
    std::fs::remove_dir(&merged).unwrap();
    let problems = store.check().unwrap();
    assert!(problems.is_empty(), "{problems:?}");
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, text)) = data.split_first() else { return };
    let (strict, shadow, apply) = (choice & 1 != 0, choice & 2 != 0, choice & 4 != 0);
    let layers = unply_fuzz::layers_from_text(text);
    let model_options = testkit::model::Options {
        strict,
        lower_symlinks: if shadow {
            testkit::model::LowerSymlinks::Shadow
        } else {
            testkit::model::LowerSymlinks::Resolve
        },
        root_entry: if apply { testkit::model::RootEntry::Apply } else { testkit::model::RootEntry::Ignore },
        ..testkit::model::Options::default()
    };
    let wanted = Model::of_image(model_options, &layers).map(|m| m.tree());

    let work = ARENA.dir.join("work");
    let layout = work.join("image");
    let tars: Vec<Vec<u8>> = layers.iter().map(testkit::layer).collect();
    let image = ImageSpec::new(tars).tag("t").compression(testkit::image::Compression::None);
    OciLayout::new(&layout).unwrap().add(&image).unwrap();
    let reference: Reference = format!("oci:{}:t", layout.display()).parse().unwrap();
    let options = Options {
        tree: TreeOptions {
            strict,
            lower_symlinks: if shadow { LowerSymlinks::Shadow } else { LowerSymlinks::Resolve },
            root_entry: if apply { RootEntry::Apply } else { RootEntry::Ignore },
            ..TreeOptions::default()
        },
        jobs: 1,
        durable: false,
        ..Options::default()
    };
    let target = work.join("rootfs");
    let result = unpack(&reference, &target, None, &options, &|_| {});
    match (&wanted, &result) {
        (Ok(wanted), Ok(_)) => {
            // In a flattened tree no mark of overlayfs may be left, so nothing is hidden from the comparison.
            let everything = DescribeOptions { ignore_xattr: Box::new(|_| false), ..DescribeOptions::default() };
            let found = describe(&target, &everything).unwrap();
            let differences = compare(wanted, &found);
            assert!(differences.is_empty(), "the model's tree is on the left:\n{differences:#?}");
        }
        (Err(_), Err(e)) => {
            assert!(matches!(e.kind(), ErrorKind::Malformed | ErrorKind::Limit), "refused in an odd way: {e}");
            assert!(!target.exists(), "a refused image left something: {e}");
        }
        (Ok(_), Err(e)) => panic!("the model takes it, we say: {e}"),
        (Err(refusal), Ok(_)) => panic!("we take it, the model says: {refusal:?}"),
    }
    if choice & 8 != 0 {
        mounted(&work, &reference, &options, wanted.as_ref().ok());
    }
    let after = look(&ARENA.dir);
    assert_eq!(without_work(&after), without_work(&ARENA.before), "something beside the target changed");
    let left: Vec<_> = std::fs::read_dir(&work).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "image" || name == "rootfs" || name == "store"), "left behind: {left:?}");
    for used in [layout, target, work.join("store")] {
        if used.exists() {
            std::fs::remove_dir_all(used).unwrap();
        }
    }
});
