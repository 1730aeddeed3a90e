use super::*;
use crate::tar::layer;
use crate::{file, whiteout};

fn spec() -> ImageSpec {
    let bottom = layer(&[file("a", "1")]);
    ImageSpec::new([bottom.clone(), layer(&[whiteout("", "a")]), bottom]).tag("test:1")
}

/// Reads a tar into its members: content, or the target of a symlink.
fn members(bytes: &[u8]) -> Vec<(String, Result<Vec<u8>, String>)> {
    let mut archive = ::tar::Archive::new(bytes);
    let mut out = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        io::Read::read_to_end(&mut entry, &mut content).unwrap();
        let link = entry.link_name_bytes().map(|l| String::from_utf8(l.to_vec()).unwrap());
        let path = String::from_utf8(entry.path_bytes().to_vec()).unwrap();
        out.push((path, link.map_or(Ok(content), Err)));
    }
    out
}

fn blobs_are_right(files: &Files) -> bool {
    let blobs = files.iter().filter_map(|(path, bytes)| Some((path.strip_prefix("blobs/sha256/")?, bytes)));
    blobs.into_iter().all(|(digest, bytes)| sha256_hex(bytes) == digest)
}

#[test]
fn layouts_have_right_digests_everywhere() {
    let images = [
        spec(),
        ImageSpec { nested: true, attestation: true, ..spec() }.annotation("k", "quo\"te\n"),
        ImageSpec { docker_types: true, ..spec() }.platform("linux", "arm", Some("v7")),
        spec().compression(Compression::Zstd),
        spec().compression(Compression::None),
    ];
    let mut layout = Layout::default();
    for image in &images {
        let built = layout.add(image);
        assert_eq!(built.layers.len(), 3);
        assert_eq!(built.layers[0], built.layers[2]);
        let manifest = String::from_utf8(layout.files[&format!("blobs/sha256/{}", built.manifest)].clone()).unwrap();
        assert!(built.layers.iter().chain([&built.config]).all(|digest| manifest.contains(digest)));
        let config = String::from_utf8(layout.files[&format!("blobs/sha256/{}", built.config)].clone()).unwrap();
        assert!(image.diff_ids().iter().all(|diff_id| config.contains(diff_id)));
    }
    let files = layout.finished();
    assert!(blobs_are_right(&files));
    let index = String::from_utf8(files["index.json"].clone()).unwrap();
    assert_eq!(index.matches("org.opencontainers.image.ref.name").count(), 5);
    assert!(index.contains(r#""variant":"v7""#));
}

#[test]
fn each_breakage_breaks_one_thing() {
    let right = Layout::default().add(&spec());
    for breakage in
        [Breakage::FlippedBit(1), Breakage::ShortBlob(1), Breakage::FlippedConfig, Breakage::FlippedManifest]
    {
        let mut layout = Layout::default();
        assert_eq!(layout.add(&spec().broken(breakage)), right, "{breakage:?} leaves the descriptors alone");
        assert!(!blobs_are_right(&layout.finished()), "{breakage:?}");
    }
    for breakage in [Breakage::WrongSize(0), Breakage::WrongDiffId(2), Breakage::MissingDiffId] {
        let mut layout = Layout::default();
        assert_ne!(layout.add(&spec().broken(breakage)).manifest, right.manifest, "{breakage:?}");
        assert!(blobs_are_right(&layout.finished()), "{breakage:?}");
    }
    let mut layout = Layout::default();
    layout.add(&spec().broken(Breakage::MissingBlob(1)));
    assert!(!layout.files.contains_key(&format!("blobs/sha256/{}", right.layers[1])));
}

#[test]
fn a_layout_is_written_to_disk_and_into_an_archive() {
    let path = std::env::temp_dir().join(format!("testkit-layout-{}", std::process::id()));
    let mut layout = OciLayout::new(&path).unwrap();
    let built = layout.add(&spec()).unwrap();
    let blob = std::fs::read(layout.path().join(format!("blobs/sha256/{}", built.layers[0]))).unwrap();
    let index = std::fs::read(path.join("index.json")).unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    assert_eq!(sha256_hex(&blob), built.layers[0]);
    let archived: Vec<_> = members(&oci_archive(&[spec()]));
    assert!(archived.iter().any(|(path, content)| path == "index.json" && content.as_ref() == Ok(&index)));
    assert!(archived.iter().any(|(path, content)| path.ends_with(&built.layers[0]) && content.as_ref() == Ok(&blob)));
}

#[test]
fn legacy_docker_archives_link_repeated_layers() {
    let archive = docker_archive(&[spec()], DockerOptions::default());
    let members = members(&archive);
    let layers: Vec<_> = members.iter().filter(|(path, _)| path.ends_with("/layer.tar")).collect();
    assert_eq!(layers.len(), 3);
    assert_eq!(layers[0].1.as_ref().unwrap(), &spec().layers[0].tar);
    assert_eq!(layers[2].1.as_ref().unwrap_err(), &format!("../{}", layers[0].0));
    assert_eq!(members[members.len() - 2].0, "manifest.json");
    let first = DockerOptions { manifest_first: true, ..DockerOptions::default() };
    assert_eq!(self::members(&docker_archive(&[spec()], first))[0].0, "manifest.json");
}

#[test]
fn combined_docker_archives_name_their_blobs() {
    let options = DockerOptions { form: DockerForm::Combined, manifest_first: false };
    let members = members(&docker_archive(&[spec()], options));
    let get = |name: &str| members.iter().find(|(path, _)| path == name).unwrap().1.clone().unwrap();
    let manifest = String::from_utf8(get("manifest.json")).unwrap();
    for diff_id in spec().diff_ids() {
        assert!(manifest.contains(&format!("blobs/sha256/{diff_id}")));
        assert_eq!(sha256_hex(&get(&format!("blobs/sha256/{diff_id}"))), diff_id);
    }
    assert!(manifest.contains(r#""RepoTags":["test:1"]"#));
    assert!(String::from_utf8(get("repositories")).unwrap().starts_with(r#"{"test":{"1":"#));
}
