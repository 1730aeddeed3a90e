//! Images that try to reach beyond their own files: digests, names and links of layouts and archives, documents that lie.

use std::path::{Path, PathBuf};

use testkit::image::{Compression, ImageSpec, LayerSpec, OciLayout};
use testkit::tar::TarBuilder;
use testkit::{compare, file, symlink};
use unply::error::{Error, ErrorKind};
use unply::image::Reference;
use unply::unpack::{self, Options};

use crate::Canary;
use crate::common::{Lab, root_or_skip};

/// A place with a canary, and a layer outside every image that would be good if it were reached.
struct Place {
    lab: Lab,
    canary: Canary,
    outside: PathBuf,
    tar: Vec<u8>,
}

impl Place {
    fn new(test: &str) -> Option<Place> {
        if !root_or_skip(test) {
            return None;
        }
        let lab = Lab::new();
        let outside = lab.path().join("outside");
        let canary = Canary::plant(&outside);
        let tar = testkit::layer(&[file("stolen", "from outside the image")]);
        std::fs::write(outside.join("VICTIM/layer.tar"), &tar).unwrap();
        Some(Place { lab, canary, outside, tar })
    }

    fn victim(&self, rest: &str) -> PathBuf {
        self.outside.join("VICTIM").join(rest)
    }

    /// A whole image, and the names of its blobs: config, manifest, layer.
    fn layout(&self) -> (PathBuf, [PathBuf; 3]) {
        let dir = self.lab.path().join("image");
        let _ = std::fs::remove_dir_all(&dir);
        let spec = ImageSpec::new([self.tar.clone()]).tag("t").compression(Compression::None);
        let built = OciLayout::new(&dir).unwrap().add(&spec).unwrap();
        let blob = |digest: &str| dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let blobs = [blob(&built.config), blob(&built.manifest), blob(&built.layers[0])];
        (dir, blobs)
    }

    /// Unpacks and pulls; both must fail alike and leave nothing.
    fn refused(&self, what: &str, reference: &str, options: &Options) -> Error {
        let before = self.canary.look();
        let flat = self.lab.path().join("flat");
        let reference: Reference = reference.parse().unwrap();
        let error = unpack::unpack(&reference, &flat, None, options, &|_| {}).map(drop).expect_err(what);
        assert!(!flat.exists(), "{what}: left something");
        let store = unpack::open_store(&self.lab.path().join("store"), false).unwrap();
        let pulled = unpack::pull(&reference, &store, options, &|_| {}).map(drop).expect_err(what);
        assert_eq!(error.kind(), pulled.kind(), "{what}: {error}; {pulled}");
        assert!(store.images().unwrap().is_empty(), "{what}: recorded");
        let escaped = compare(&before, &self.canary.look());
        assert!(escaped.is_empty(), "{what}: ESCAPED: {escaped:?}");
        error
    }

    fn oci(&self, what: &str, dir: &Path) -> ErrorKind {
        self.refused(what, &format!("oci:{}", dir.display()), &Options { durable: false, ..Options::default() }).kind()
    }
}

fn link(target: &Path, at: &Path) {
    if at.is_dir() {
        std::fs::remove_dir_all(at).unwrap();
    } else {
        std::fs::remove_file(at).unwrap();
    }
    std::os::unix::fs::symlink(target, at).unwrap();
}

fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

#[test]
fn symlinks_of_a_layout_that_leave_it() {
    let Some(place) = Place::new("symlinks_of_a_layout_that_leave_it") else { return };
    let (_, [config, manifest, layer]) = place.layout();
    let victim = place.victim("");
    for blob in [&config, &manifest, &layer] {
        std::fs::copy(blob, victim.join(blob.file_name().unwrap())).unwrap();
    }
    std::fs::copy(place.lab.path().join("image/index.json"), victim.join("index.json")).unwrap();
    let up = |blob: &Path| PathBuf::from("../../../outside/VICTIM").join(blob.file_name().unwrap());
    for blob in [&config, &manifest, &layer] {
        for target in [victim.join(blob.file_name().unwrap()), up(blob)] {
            let (dir, _) = place.layout();
            link(&target, blob);
            assert_eq!(place.oci("blob", &dir), ErrorKind::Malformed, "{}", target.display());
        }
    }
    for (name, target) in [
        ("blobs/sha256", victim.clone()),
        ("blobs/sha256", "../../outside/VICTIM".into()),
        ("blobs", "/proc/self/cwd".into()),
        ("index.json", victim.join("index.json")),
        ("index.json", "../outside/VICTIM/index.json".into()),
    ] {
        let (dir, _) = place.layout();
        link(&target, &dir.join(name));
        assert_eq!(place.oci(name, &dir), ErrorKind::Malformed, "{name} -> {}", target.display());
    }
}

#[test]
fn cve_2024_3727_a_digest_is_never_a_path() {
    let Some(place) = Place::new("cve_2024_3727_a_digest_is_never_a_path") else { return };
    let deep = "../".repeat(20);
    let outside = format!("sha256:{deep}{}", &place.victim("layer.tar").to_str().unwrap()[1..]);
    for text in [
        outside.as_str(),
        "sha256:../../index.json",
        "../../index.json",
        "sha256:",
        "",
        "sha256:ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789",
        "sha256:0123",
        "sha512:0123456789012345678901234567890123456789012345678901234567890123",
        "../sha256:0123456789012345678901234567890123456789012345678901234567890123",
    ] {
        let (dir, _) = place.layout();
        edit(&dir.join("index.json"), |index| index["manifests"][0]["digest"] = text.into());
        assert_eq!(place.oci(text, &dir), ErrorKind::Malformed, "{text}");
    }
}

/// A `docker save` archive in which one name is not what it should be.
fn docker(place: &Place, config: &str, layer: &str, members: &[testkit::EntrySpec]) -> String {
    let manifest = serde_json::json!([{ "Config": config, "RepoTags": ["t:1"], "Layers": [layer] }]);
    let json = serde_json::json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", testkit::tar::sha256_hex(&place.tar))] },
    });
    let mut tar = TarBuilder::new().entry(&file("config.json", serde_json::to_vec(&json).unwrap()));
    for member in members {
        tar = tar.entry(member);
    }
    let path = place.lab.path().join("docker.tar");
    std::fs::write(&path, tar.entry(&file("manifest.json", serde_json::to_vec(&manifest).unwrap())).finish()).unwrap();
    format!("docker-archive:{}", path.display())
}

#[test]
fn cve_2014_9358_names_in_a_docker_archive_stay_in_it() {
    let Some(place) = Place::new("cve_2014_9358_names_in_a_docker_archive_stay_in_it") else { return };
    let options = Options { durable: false, ..Options::default() };
    let absolute = place.victim("layer.tar").to_str().unwrap().to_owned();
    let climb = format!("{}{}", "../".repeat(24), &absolute[1..]);
    let good = file("a/layer.tar", place.tar.clone());
    for (what, config, layer, members) in [
        ("layer by ..", "config.json", climb.as_str(), vec![good.clone()]),
        ("layer by an absolute name", "config.json", &absolute, vec![good.clone()]),
        ("config by ..", &climb, "a/layer.tar", vec![good.clone()]),
        ("config by an absolute name", &absolute, "a/layer.tar", vec![good.clone()]),
        ("layer is a symlink out", "config.json", "a/layer.tar", vec![symlink("a/layer.tar", &climb)]),
        ("layer is an absolute symlink", "config.json", "a/layer.tar", vec![symlink("a/layer.tar", &absolute)]),
        ("layer is a hard link out", "config.json", "a/layer.tar", vec![testkit::hardlink("a/layer.tar", &climb)]),
        (
            "layer is a hard link to an absolute name",
            "config.json",
            "a/layer.tar",
            vec![testkit::hardlink("a/layer.tar", &absolute)],
        ),
        (
            "layer through a symlinked directory",
            "config.json",
            "a/layer.tar",
            vec![symlink("a", place.victim("").to_str().unwrap())],
        ),
    ] {
        let error = place.refused(what, &docker(&place, config, layer, &members), &options);
        assert!(matches!(error.kind(), ErrorKind::Malformed | ErrorKind::NotFound), "{what}: {error}");
    }
    // A member's own name is no path either.
    let reference: Reference =
        docker(&place, "config.json", "a/layer.tar", &[file(&climb, "x"), good]).parse().unwrap();
    let before = place.canary.look();
    // Refused or unpacked: both are fine, as long as nothing is written there.
    let _ = unpack::unpack(&reference, &place.lab.path().join("flat"), None, &options, &|_| {});
    assert!(compare(&before, &place.canary.look()).is_empty(), "ESCAPED");
}

#[test]
fn cve_2020_15157_urls_are_never_fetched() {
    let Some(place) = Place::new("cve_2020_15157_urls_are_never_fetched") else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (dir, [_, manifest, layer]) = place.layout();
    edit(&manifest, |json| {
        json["layers"][0]["urls"] = serde_json::json!([format!("http://{}/layer", listener.local_addr().unwrap())]);
    });
    let bytes = std::fs::read(&manifest).unwrap();
    let hex = testkit::tar::sha256_hex(&bytes);
    std::fs::rename(&manifest, manifest.with_file_name(&hex)).unwrap();
    edit(&dir.join("index.json"), |index| {
        index["manifests"][0]["digest"] = format!("sha256:{hex}").into();
        index["manifests"][0]["size"] = bytes.len().into();
    });
    std::fs::remove_file(layer).unwrap();
    assert_eq!(place.oci("foreign layer", &dir), ErrorKind::NotFound);
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody asked for it");
}

#[test]
fn cve_2021_41190_a_manifest_that_is_an_index_too() {
    let Some(place) = Place::new("cve_2021_41190_a_manifest_that_is_an_index_too") else { return };
    let (dir, [_, manifest, _]) = place.layout();
    edit(&manifest, |json| json["manifests"] = serde_json::json!([]));
    let bytes = std::fs::read(&manifest).unwrap();
    let hex = testkit::tar::sha256_hex(&bytes);
    std::fs::rename(&manifest, manifest.with_file_name(&hex)).unwrap();
    edit(&dir.join("index.json"), |index| {
        index["manifests"][0]["digest"] = format!("sha256:{hex}").into();
        index["manifests"][0]["size"] = bytes.len().into();
    });
    assert_eq!(place.oci("both", &dir), ErrorKind::Malformed);
}

#[test]
fn cve_2023_25153_documents_are_bounded() {
    let Some(place) = Place::new("cve_2023_25153_documents_are_bounded") else { return };
    let (dir, _) = place.layout();
    // A hole: nothing of it has to be written, or read.
    std::fs::File::options().write(true).open(dir.join("index.json")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(place.oci("a terabyte of index", &dir), ErrorKind::Limit);
}

fn one_layer(place: &Place, layer: LayerSpec) -> String {
    let dir = place.lab.path().join("image");
    let spec = ImageSpec { layers: vec![layer], ..ImageSpec::default() }.tag("t");
    OciLayout::new(&dir).unwrap().add(&spec).unwrap();
    format!("oci:{}:t", dir.display())
}

#[test]
fn cve_2017_14992_a_bomb_stops_early() {
    let Some(place) = Place::new("cve_2017_14992_a_bomb_stops_early") else { return };
    let tar = testkit::layer(&[file("zeros", vec![0; 8 << 20])]);
    let mut options = Options { durable: false, ..Options::default() };
    (options.limits.max_ratio, options.limits.ratio_floor) = (100, 1 << 20);
    let error = place.refused("bomb", &one_layer(&place, LayerSpec::new(tar)), &options);
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
}

#[test]
fn cve_2014_9357_cve_2021_20291_xz_starts_no_program_and_waits_for_none() {
    let Some(place) = Place::new("cve_2014_9357_cve_2021_20291_xz_starts_no_program_and_waits_for_none") else {
        return;
    };
    let options = Options { durable: false, ..Options::default() };
    for blob in [&b"\xfd7zXZ\0\0\x04"[..], b"\xfd7zXZ\0broken", b"BZh91AY&SY"] {
        let layer = LayerSpec::new(place.tar.clone()).blob(blob);
        let error = place.refused("xz", &one_layer(&place, layer), &options);
        assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Malformed), "{error}");
    }
}

#[test]
fn cve_2026_24054_an_image_without_layers_is_an_empty_root_of_its_own() {
    let test = "cve_2026_24054_an_image_without_layers_is_an_empty_root_of_its_own";
    let Some(place) = Place::new(test) else { return };
    let dir = place.lab.path().join("image");
    OciLayout::new(&dir).unwrap().add(&ImageSpec::default().tag("t")).unwrap();
    let reference: Reference = format!("oci:{}:t", dir.display()).parse().unwrap();
    let options = Options { durable: false, ..Options::default() };
    let work = place.lab.path().join("work");
    std::fs::create_dir(&work).unwrap();
    // Looks, and asserts that a view cannot be written.
    let ways = crate::common::every_way_of(&work, &place.lab.path().join("store"), &reference, &options, &|path| {
        place.lab.describe(path)
    });
    for (way, tree) in ways.unwrap() {
        assert_eq!(tree.0.len(), 1, "{way}: only the root");
    }
}

#[test]
fn cve_2026_55686_cve_2022_23648_cve_2024_9676_the_config_moves_nothing() {
    let test = "cve_2026_55686_cve_2022_23648_cve_2024_9676_the_config_moves_nothing";
    let Some(place) = Place::new(test) else { return };
    let victim = place.victim("");
    let tar = testkit::layer(&[
        symlink("work", victim.to_str().unwrap()),
        symlink("passwd", place.victim("file").to_str().unwrap()),
    ]);
    let dir = place.lab.path().join("image");
    let mut spec = ImageSpec::new([tar]).tag("t");
    spec.config = Some(r#""WorkingDir": "/work/new", "Volumes": {"/work/volume": {}}, "User": "root""#.into());
    OciLayout::new(&dir).unwrap().add(&spec).unwrap();
    let before = place.canary.look();
    let flat = place.lab.path().join("flat");
    let reference: Reference = format!("oci:{}:t", dir.display()).parse().unwrap();
    unpack::unpack(&reference, &flat, None, &Options { durable: false, ..Options::default() }, &|_| {}).unwrap();
    assert!(compare(&before, &place.canary.look()).is_empty(), "ESCAPED");
    assert_eq!(std::fs::read_dir(&flat).unwrap().count(), 2);
}

#[test]
fn cve_2021_41091_cve_2021_41103_cve_2024_25621_nobody_else_enters_a_store() {
    let test = "cve_2021_41091_cve_2021_41103_cve_2024_25621_nobody_else_enters_a_store";
    let Some(place) = Place::new(test) else { return };
    use std::os::unix::fs::PermissionsExt as _;
    let root = place.lab.path().join("store");
    let mode = || std::fs::metadata(&root).unwrap().permissions().mode() & 0o7777;
    drop(unpack::open_store(&root, false).unwrap());
    assert_eq!(mode(), 0o700);
    // One that was opened up is closed again before anything is done in it.
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(unpack::open_store(&root, false).unwrap());
    assert_eq!(mode(), 0o700);
}
