//! Real images that nobody here made: unpacked flat and mounted, the trees compared, damage refused with the right exit code.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use testkit::{assert_same, compare};
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::unpack::{self, Options};

/// What each image of the corpus must give, by the corpus's own manifest: entries in all layers, or the kind of refusal.
#[derive(Debug, Clone, Copy)]
enum Want {
    Layers(usize),
    Refused(ErrorKind),
}
use ErrorKind::{Integrity, Limit, Malformed, NotFound, Unsupported};
use Want::{Layers, Refused};

const IMAGES: &[(&str, Want)] = &[
    ("layer:images/alpine-minirootfs-v3.20-x86_64/alpine-minirootfs-3.20.3-x86_64.tar.gz", Layers(1)),
    ("layer:images/claircore/bad_name.tar", Layers(1)),
    ("layer:images/claircore/concat.tar", Layers(1)),
    ("layer:images/claircore/layer-with-bad-version.tar", Layers(1)),
    ("layer:images/claircore/layer-with-cpe.tar", Layers(1)),
    ("layer:images/claircore/oddlayer.tar", Layers(1)),
    ("layer:images/claircore/rhcos-layer-with-conflicting-files.tar", Layers(1)),
    ("layer:images/claircore/rhcos-layer-with-embedded-cs.tar", Layers(1)),
    ("layer:images/claircore/whiteout.layer", Layers(1)),
    ("layer:images/claircore/whiteout_advanced.layer", Layers(1)),
    ("layer:images/claircore/whiteout_opaque.layer", Layers(1)),
    ("images/container-libs-libimage/exported-container.tar", Layers(1)),
    ("images/container-libs-libimage/oci-name-only.tar.gz", Layers(1)),
    ("images/container-libs-libimage/oci-unnamed.tar.gz", Layers(1)),
    ("docker-archive:images/dive/test-docker-image.tar", Layers(14)),
    ("docker-archive:images/dive/test-kaniko-image.tar", Layers(14)),
    ("images/dive/test-oci-gzip-image.tar", Layers(1)),
    ("images/dive/test-oci-estargz-image.tar", Layers(1)),
    ("images/dive/test-oci-uncompressed-image.tar", Layers(1)),
    ("images/dive/test-oci-zstd-image.tar", Layers(1)),
    ("images/ggcr-mutate/overwritten_file.tar", Layers(3)),
    ("images/ggcr-mutate/source_image.tar", Layers(1)),
    ("images/ggcr-mutate/source_image_with_empty_layer_history.tar", Layers(1)),
    ("images/ggcr-mutate/whiteout_dir.tar", Layers(4)),
    ("images/ggcr-mutate/whiteout_image.tar", Layers(3)),
    ("images/ggcr-tarball/hello-world-v25.tar", Layers(1)),
    ("images/ggcr-tarball/null_manifest.tar", Refused(NotFound)),
    ("images/ggcr-tarball/test_bundle.tar", Refused(NotFound)),
    ("images/ggcr-tarball/test_image_1.tar", Layers(1)),
    ("images/grootfs-corrupted", Refused(Integrity)),
    ("images/grootfs-hardlink-fixed", Layers(2)),
    ("images/grootfs-invalid-config", Refused(NotFound)),
    ("images/grootfs-invalid-manifest-size-less-than-physical-size", Refused(Integrity)),
    ("images/grootfs-non-writable-folder", Layers(2)),
    ("images/nydus-tar/all-entry-type.tar", Layers(1)),
    ("images/nydus-tar/bgzip.tar.gz", Layers(1)),
    ("layer:images/nydus-tar/empty.tar", Layers(1)),
    ("layer:images/nydus-tar/zran-single-stream.tar.gz", Layers(1)),
    ("layer:images/nydus-tar/zran-two-streams.tar.gz", Layers(1)),
    ("layer:images/nydus-tar/zran-zero-file.tar.gz", Layers(1)),
    ("layer:images/ostree-ext/exampleos.tar.zst", Layers(1)),
    ("layer:images/ostree-ext/hlinks.tar.gz", Layers(1)),
    ("images/sylabs-aufs-docker-v2-manifest-fixed", Layers(1)),
    ("images/sylabs-hard-link-delete-1", Layers(2)),
    ("images/sylabs-hard-link-delete-2", Layers(2)),
    ("images/sylabs-hard-link-delete-4", Layers(3)),
    ("images/sylabs-hello-world-docker-v2-manifest-list", Layers(1)),
    ("images/sylabs-root-dir-entry", Layers(1)),
    ("images/sylabs-whiteout-explicit-dir", Layers(2)),
    ("images/sylabs-whiteout-opaque", Layers(2)),
];

fn reference(spec: &str) -> Reference {
    let root = corpus();
    match spec.split_once(':') {
        Some((transport, path)) => format!("{transport}:{}", root.join(path).display()).parse().unwrap(),
        None => Reference::Path(root.join(spec)),
    }
}

fn quick() -> Options {
    Options { durable: false, ..Options::default() }
}

#[test]
fn every_real_image_gives_one_tree_or_the_right_refusal() {
    if !root_or_skip("every_real_image_gives_one_tree_or_the_right_refusal") {
        return;
    }
    let lab = Lab::new();
    let mut wrong = Vec::new();
    for (spec, want) in IMAGES {
        let reference = reference(spec);
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let result = every_way_of(work.path(), &lab.path().join("store"), &reference, &quick(), &|p| lab.describe(p));
        match (want, result) {
            (Layers(_), Ok(trees)) => {
                for (way, tree) in &trees[1..] {
                    let differences = compare(&trees[0].1, tree);
                    wrong.extend(differences.iter().take(8).map(|d| format!("{spec}: {way}: {d}")));
                }
            }
            (Refused(kind), Err(e)) if e.kind() == *kind => {}
            (want, result) => {
                wrong.push(format!(
                    "{spec}: want {want:?}, got {:?}",
                    result.map(|_| "a tree").map_err(|e| e.to_string())
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
    // The right number of layers, so that an empty answer cannot pass.
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    for (spec, want) in IMAGES {
        if let Layers(count) = want {
            let pulled = unpack::pull(&reference(spec), &store, &quick(), &|_| {}).unwrap();
            assert_eq!(pulled.layers.len(), *count, "{spec}");
            assert!(
                pulled.layers.iter().all(|l| l.reused || spec.starts_with("layer:") || spec.contains(".tar")),
                "{spec} was read again"
            );
        }
    }
    assert_eq!(store.check().unwrap(), [], "the store is consistent");
}

/// The busybox layouts keep their blobs as symlinks; a checkout that cannot hold symlinks has their targets as text.
fn busybox(name: &str, to: &Path) -> PathBuf {
    let from = corpus().join("images").join(name);
    let copy = to.join(name);
    let status = Command::new("cp").arg("-r").arg(&from).arg(&copy).status().unwrap();
    assert!(status.success());
    Command::new("chmod").args(["-R", "u+w"]).arg(&copy).status().unwrap();
    for blob in std::fs::read_dir(copy.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        if !path.is_symlink() && bytes.starts_with(b"../../") {
            let target = String::from_utf8(bytes).unwrap();
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(target.trim_end(), &path).unwrap();
        }
    }
    copy
}

#[test]
fn busybox_with_symlinked_blobs() {
    if !root_or_skip("busybox_with_symlinked_blobs") {
        return;
    }
    let lab = Lab::new();
    for name in ["busybox-latest-glibc-amd64", "busybox-latest-musl-arm64v8"] {
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let layout = busybox(name, work.path());
        let reference = Reference::Path(layout);
        let trees =
            every_way_of(work.path(), &lab.path().join("store"), &reference, &quick(), &|p| lab.describe(p)).unwrap();
        assert!(trees[0].1.0.len() > 400, "{name}: {} names", trees[0].1.0.len());
        for (way, tree) in &trees[1..] {
            assert_same(&format!("{name} {way}"), &trees[0].1, tree);
        }
        // One flipped bit anywhere in the layer.
        let blob = work.path().join(name).join("rootfs.tar.gz");
        let good = std::fs::read(&blob).unwrap();
        for at in [20, good.len() / 3, good.len() / 2, good.len() - 9, good.len() - 2] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&blob, &bad).unwrap();
            let out = work.path().join("bad");
            let e = unpack::unpack(&reference, &out, None, &quick(), &|_| {}).unwrap_err();
            assert_eq!(e.kind(), Integrity, "{name}, byte {at}: {e}");
            assert!(!out.exists());
            let names: Vec<_> = std::fs::read_dir(work.path()).unwrap().map(|n| n.unwrap().file_name()).collect();
            assert!(!names.iter().any(|n| n.as_encoded_bytes().starts_with(b".unply")), "left behind: {names:?}");
        }
    }
}

fn tool(name: &str) -> bool {
    let there = Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        println!("SKIP: {name} is not installed");
        assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{name} is needed in CI");
    }
    there
}

/// umoci is right about these images: our tree is its tree, but for the root's own metadata (R-2).
#[test]
fn umoci_agrees() {
    if !root_or_skip("umoci_agrees") || !tool("umoci") || !tool("skopeo") {
        return;
    }
    let lab = Lab::new();
    let images = [
        "docker-archive:images/dive/test-docker-image.tar",
        "docker-archive:images/ggcr-mutate/overwritten_file.tar",
        "docker-archive:images/ggcr-mutate/whiteout_image.tar",
        "oci:images/grootfs-hardlink-fixed",
        "oci:images/grootfs-non-writable-folder",
        "oci:images/sylabs-hard-link-delete-1",
        "oci:images/sylabs-whiteout-explicit-dir",
        "oci:images/sylabs-whiteout-opaque",
    ];
    for spec in images {
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let (transport, path) = spec.split_once(':').unwrap();
        let source = format!("{transport}:{}", corpus().join(path).display());
        let copy = format!("oci:{}:x", work.path().join("oci").display());
        let output = Command::new("skopeo").args(["copy", "-q", "--insecure-policy", &source, &copy]).output().unwrap();
        assert!(output.status.success(), "{spec}: skopeo: {}", String::from_utf8_lossy(&output.stderr));
        let theirs = work.path().join("theirs");
        let image = format!("{}:x", work.path().join("oci").display());
        let output = Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&theirs).output().unwrap();
        assert!(output.status.success(), "{spec}: umoci: {}", String::from_utf8_lossy(&output.stderr));
        let ours = work.path().join("ours");
        unpack::unpack(&copy.parse().unwrap(), &ours, None, &quick(), &|_| {}).unwrap();
        let options = testkit::DescribeOptions { ignore_root_meta: true, ..Default::default() };
        let described = |p: &Path| testkit::describe(p, &options).unwrap().without_root_meta();
        // It leaves "now" on directories that nobody describes; those images are not in the list.
        assert_same(spec, &described(&theirs), &described(&ours));
    }
}

/// One image of the big recipes, where a directory with them is named: `UNPLY_BIG_IMAGES=DIR`.
#[test]
fn a_big_image_gives_one_tree() {
    let Some(dir) = std::env::var_os("UNPLY_BIG_IMAGES") else {
        println!(
            "SKIP: a_big_image_gives_one_tree: UNPLY_BIG_IMAGES names no directory made by recipes/build-images.sh"
        );
        return;
    };
    let lab = Lab::new();
    for name in ["debian-nginx", "node-app", "python-ml"] {
        for form in ["oci-gzip", "oci-zstd"] {
            let path = Path::new(&dir).join(name).join(form);
            if !path.is_dir() {
                continue;
            }
            let work = tempfile::tempdir_in(lab.path()).unwrap();
            let trees = every_way_of(work.path(), &lab.path().join("store"), &Reference::Path(path), &quick(), &|p| {
                lab.describe(p)
            })
            .unwrap();
            for (way, tree) in &trees[1..] {
                assert_same(&format!("{name} {form} {way}"), &trees[0].1, tree);
            }
        }
    }
}

const _: (ErrorKind, ErrorKind, ErrorKind) = (Malformed, Limit, Unsupported);
