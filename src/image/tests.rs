//! Whole sources: every real image, hostile layouts and archives, and streams against files.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;
use crate::digest::Algorithm;

fn corpus() -> PathBuf {
    let dir = std::env::var_os("UNPLY_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"), PathBuf::from)
        .join("images");
    assert!(dir.is_dir(), "the corpus of real images is missing: {} is not a directory", dir.display());
    dir
}

fn options(platform: Option<&str>) -> OpenOptions {
    OpenOptions { platform: platform.map(|p| p.parse().unwrap()), ..OpenOptions::default() }
}

fn source(reference: &str, platform: Option<&str>) -> Result<Source, Error> {
    open(&reference.parse()?, &options(platform))
}

/// What an image is, however it was read; and the bytes of its layers.
#[derive(PartialEq)]
struct Seen {
    names: Vec<String>,
    manifest_digest: Option<BlobDigest>,
    image_id: Option<ImageId>,
    platform: Platform,
    layers: Vec<LayerDescriptor>,
    bytes: Vec<Vec<u8>>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<usize> = self.bytes.iter().map(Vec::len).collect();
        let ids = (&self.names, self.manifest_digest, self.image_id, &self.platform);
        write!(f, "{ids:?} {:?} layer bytes {sizes:?}", self.layers)
    }
}

fn seen(image: &Image, bytes: Vec<Vec<u8>>) -> Seen {
    Seen {
        names: image.names.clone(),
        manifest_digest: image.manifest_digest,
        image_id: image.image_id,
        platform: image.platform.clone(),
        layers: image.layers.clone(),
        bytes,
    }
}

fn bytes_of(mut reader: impl Read) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    reader.read_to_end(&mut out).map_err(|err| crate::error::from_io("read", err))?;
    Ok(out)
}

/// Opens and reads everything, whichever kind of source it is.
fn read_all(source: Source) -> Result<Seen, Error> {
    match source {
        Source::Image(image) => {
            let layers = (0..image.layers.len()).map(|i| bytes_of(image.open_layer(i)?)).collect::<Result<_, _>>()?;
            Ok(seen(&image, layers))
        }
        Source::Stream(stream) => collect(stream),
    }
}

fn collect(stream: ArchiveStream) -> Result<Seen, Error> {
    let collected = stream.read(|member| {
        let size = member.size;
        let bytes = bytes_of(member)?;
        assert_eq!(bytes.len() as u64, size);
        Ok(bytes)
    })?;
    let layers = collected.layers.iter().map(|i| collected.tokens[*i].1.clone()).collect();
    Ok(seen(&collected.image, layers))
}

fn stream_of(archive: Vec<u8>, kind: ArchiveKind, selector: Selector) -> ArchiveStream {
    ArchiveStream::from_reader(Box::new(Cursor::new(archive)), kind, selector, &OpenOptions::default())
}

fn unpacked(blob: &[u8]) -> Vec<u8> {
    match outer::Magic::of(blob) {
        outer::Magic::Other => blob.to_vec(),
        _ => bytes_of(outer::Outer::new(Box::new(Cursor::new(blob.to_vec())), &Limits::default()).unwrap()).unwrap(),
    }
}

/// Checks every layer against what was promised.
fn check(seen: &Seen) {
    assert_eq!(seen.layers.len(), seen.bytes.len());
    for (layer, bytes) in seen.layers.iter().zip(&seen.bytes) {
        if let Some(digest) = layer.digest {
            assert_eq!(digest.0, Digest::of(digest.0.algorithm(), bytes));
        }
        assert_eq!(layer.size, Some(bytes.len() as u64));
        assert_eq!(layer.diff_id.unwrap().0, Digest::of(Algorithm::Sha256, &unpacked(bytes)));
    }
}

fn fails(reference: &str, platform: Option<&str>) -> Error {
    match source(reference, platform).and_then(read_all) {
        Ok(seen) => panic!("{reference} opened: {seen:?}"),
        Err(err) => err,
    }
}

fn at(path: &str) -> String {
    corpus().join(path).to_str().unwrap().to_owned()
}

/// Returns a busybox layout as its publisher keeps it, its blobs symlinks to the files beside them.
///
/// A copy of the corpus made without symlink support holds each link as a small text file with the link's target
/// (git's `core.symlinks=false`); the links are then made again from that text, in a temporary copy. The product
/// itself must refuse such a copy: see `a_link_that_became_a_text_file_is_a_damaged_blob`.
fn busybox(name: &str) -> tempfile::TempDir {
    let (from, to) = (corpus().join(name), tempfile::tempdir().unwrap());
    fs::create_dir_all(to.path().join("blobs/sha256")).unwrap();
    for file in ["oci-layout", "index.json", "image-manifest.json", "image-config.json", "rootfs.tar.gz"] {
        fs::copy(from.join(file), to.path().join(file)).unwrap();
    }
    for entry in fs::read_dir(from.join("blobs/sha256")).unwrap() {
        let blob = entry.unwrap().path();
        let target = fs::read_link(&blob).unwrap_or_else(|_| fs::read_to_string(&blob).unwrap().trim().into());
        assert!(target.starts_with("../.."), "{}: {target:?}", blob.display());
        symlink(target, to.path().join("blobs/sha256").join(blob.file_name().unwrap())).unwrap();
    }
    to
}

// ---- real images ----

#[test]
fn every_real_image_opens_as_its_list_says() {
    // Directory or file, transport, layers.
    for (path, transport, layers) in [
        ("grootfs-hardlink-fixed", "oci", 2),
        ("grootfs-non-writable-folder", "oci", 2),
        ("grootfs-opq-whiteouts-busybox-fixed", "oci", 2),
        ("grootfs-zip-bomb", "oci", 1),
        ("sylabs-aufs-docker-v2-manifest-fixed", "oci", 1),
        ("sylabs-hard-link-delete-1", "oci", 2),
        ("sylabs-hard-link-delete-2", "oci", 2),
        ("sylabs-hard-link-delete-4", "oci", 3),
        ("sylabs-root-dir-entry", "oci", 1),
        ("sylabs-whiteout-explicit-dir", "oci", 2),
        ("sylabs-whiteout-opaque", "oci", 2),
        ("container-libs-libimage/buildkit-docker.tar", "oci-archive", 0),
        ("container-libs-libimage/buildkit-docker.tar", "docker-archive", 0),
        ("container-libs-libimage/buildkit-oci.tar", "oci-archive", 0),
        ("container-libs-libimage/oci-name-only.tar.gz", "oci-archive", 1),
        ("container-libs-libimage/oci-non-docker-name.tar.gz", "oci-archive", 1),
        ("container-libs-libimage/oci-registry-name.tar.gz", "oci-archive", 1),
        ("container-libs-libimage/oci-unnamed.tar.gz", "oci-archive", 1),
        ("dive/test-docker-image.tar", "docker-archive", 14),
        ("dive/test-kaniko-image.tar", "docker-archive", 14),
        ("dive/test-oci-estargz-image.tar", "oci-archive", 1),
        ("dive/test-oci-gzip-image.tar", "oci-archive", 1),
        ("dive/test-oci-uncompressed-image.tar", "oci-archive", 1),
        ("dive/test-oci-zstd-image.tar", "oci-archive", 1),
        ("ggcr-mutate/overwritten_file.tar", "docker-archive", 3),
        ("ggcr-mutate/source_image.tar", "docker-archive", 1),
        ("ggcr-mutate/source_image_with_empty_layer_history.tar", "docker-archive", 1),
        ("ggcr-mutate/whiteout_dir.tar", "docker-archive", 4),
        ("ggcr-mutate/whiteout_image.tar", "docker-archive", 3),
        ("ggcr-tarball/hello-world-v25.tar", "docker-archive", 1),
        ("ggcr-tarball/test_image_1.tar", "docker-archive", 1),
        ("ggcr-tarball/test_image_2.tar", "docker-archive", 1),
        ("ggcr-tarball/test_load_manifest.tar", "docker-archive", 1),
    ] {
        let reference = format!("{transport}:{}", at(path));
        let opened = source(&reference, None).and_then(read_all).unwrap_or_else(|err| panic!("{path}: {err}"));
        assert_eq!(opened.layers.len(), layers, "{path}");
        assert!(opened.image_id.is_some());
        check(&opened);
        // A bare path is recognised.
        let sniffed = source(&at(path), None).and_then(read_all).unwrap_or_else(|err| panic!("{path}: {err}"));
        assert_eq!(sniffed, opened, "{path}");
        // An archive through a pipe is the same image.
        if transport != "oci" {
            let raw = fs::read(at(path)).unwrap();
            let kind = if transport == "oci-archive" { ArchiveKind::Oci } else { ArchiveKind::Docker };
            for kind in [kind, ArchiveKind::Sniff] {
                let streamed = collect(stream_of(raw.clone(), kind, Selector::None));
                assert_eq!(streamed.unwrap_or_else(|err| panic!("{path}: {err}")), opened, "{path}");
            }
        }
    }
}

#[test]
fn every_damaged_real_image_is_refused_with_its_kind() {
    for (path, kind, says) in [
        ("grootfs-corrupted", ErrorKind::Integrity, "9c90ae0cffa9"),
        ("grootfs-invalid-config", ErrorKind::NotFound, "9c90ae0cffa9"),
        ("grootfs-invalid-manifest-size-less-than-physical-size", ErrorKind::Integrity, "c1755e6731ea"),
        ("grootfs-noparents", ErrorKind::NotFound, "011bb5a5560e"),
        ("grootfs-opq-whiteouts-busybox", ErrorKind::Integrity, "502 bytes"),
        ("imgutil-busybox-multi-platform", ErrorKind::NotFound, "f5b920213fc6"),
    ] {
        let err = fails(&format!("oci:{}", at(path)), (path.starts_with("imgutil")).then_some("linux/amd64"));
        assert_eq!(err.kind(), kind, "{path}: {err}");
        assert!(err.to_string().contains(says), "{path}: {err}");
        assert!(err.to_string().contains(path), "the error names the image: {err}");
    }
    for (path, kind, says) in [
        ("ggcr-tarball/null_manifest.tar", ErrorKind::NotFound, "lists no image"),
        ("ggcr-tarball/no_manifest.tar", ErrorKind::Unsupported, "older than Docker 1.10"),
        ("ggcr-tarball/content.tar", ErrorKind::NotFound, "layer:"),
    ] {
        let err = fails(&format!("docker-archive:{}", at(path)), None);
        assert_eq!(err.kind(), kind, "{path}: {err}");
        assert!(err.to_string().contains(says), "{path}: {err}");
    }
    let err = fails(&format!("oci-archive:{}", at("ggcr-tarball/hello-world-v25.tar")), None);
    assert_eq!(err.kind(), ErrorKind::NotFound, "its index lists nothing: {err}");
}

#[test]
fn a_layer_that_is_missing_does_not_hide_the_image() {
    let Source::Image(image) = source(&format!("oci:{}", at("grootfs-noparents")), None).unwrap() else { panic!() };
    assert_eq!(image.layers.len(), 1);
    assert_eq!(image.open_layer(0).err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(image.open_layer(1).err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn busybox_blobs_are_symlinks_inside_the_layout() {
    let dir = busybox("busybox-latest-glibc-amd64");
    check(&in_dir(&dir).unwrap());
    let reference = format!("oci:{}:busybox:1.38.0-glibc", dir.path().display());
    let Source::Image(image) = source(&reference, None).unwrap() else { panic!() };
    assert_eq!(image.reference, reference);
    assert_eq!(image.names, ["busybox:1.38.0-glibc"]);
    assert_eq!(
        image.manifest_digest.unwrap().to_string(),
        "sha256:1cfa4e2b09e127b9c4ed43578d3f3c18e7d44ea47b9ea98475c0cbe9086525f8"
    );
    assert_eq!(
        image.image_id.unwrap().to_string(),
        "sha256:c6348fa86ba0fb2108c9334f5fe913ddc6d853313e655891f133a0127c30099f"
    );
    assert_eq!(
        image.layers[0].diff_id.unwrap().to_string(),
        "sha256:0958e0fef2d6a31e1325b8bfecd99dead933363682d69850a7606599023751bc"
    );
    // Several handles at once, from several threads.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(bytes_of(image.open_layer(0).unwrap()).unwrap().len(), 2_226_327));
        }
    });
    let err = fails(&format!("oci:{}:nope", dir.path().display()), None);
    assert_eq!(err.kind(), ErrorKind::NotFound);
    assert!(err.hint().unwrap().contains("busybox:1.38.0-glibc"), "{err}");
}

#[test]
fn a_link_that_became_a_text_file_is_a_damaged_blob() {
    let dir = busybox("busybox-latest-glibc-amd64");
    for blob in fs::read_dir(dir.path().join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap().path();
        let target = fs::read_link(&blob).unwrap();
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, target.to_str().unwrap()).unwrap();
    }
    assert_eq!(in_dir(&dir).unwrap_err().kind(), ErrorKind::Integrity, "its text is never taken for a path");
}

#[test]
fn i05_ggcr_index_has_tags_nested_indexes_and_a_strange_type() {
    let dir = at("ggcr-layout-test_index");
    let open = |tag: &str| source(&format!("oci:{dir}:{tag}"), None).and_then(read_all);
    let one = open("1").unwrap();
    check(&one);
    assert_eq!(one.layers.len(), 1);
    assert_eq!(open("2").unwrap_err().kind(), ErrorKind::Unsupported, "its media type is that of a descriptor");
    for tag in ["3", "4"] {
        let nested = open(tag).unwrap();
        assert_eq!((nested.manifest_digest, &nested.names[..]), (one.manifest_digest, &[tag.to_owned()][..]));
    }
    let digest = one.manifest_digest.unwrap();
    let by_digest = source(&format!("oci:{dir}@{digest}"), None).and_then(read_all).unwrap();
    assert_eq!(by_digest.manifest_digest, one.manifest_digest);
    let err = fails(&format!("oci:{dir}"), None);
    assert_eq!(err.kind(), ErrorKind::NotFound, "several images, no tag");
    assert!(err.hint().unwrap().contains("here: 1 @sha256:eebff607"), "{err}");
}

#[test]
fn i03_manifest_list_with_nine_platforms() {
    let dir = format!("oci:{}", at("sylabs-hello-world-docker-v2-manifest-list"));
    let platform = |p: &str| source(&dir, Some(p)).and_then(read_all);
    for (asked, got) in [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64/v3", "linux/amd64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v5"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/s390x", "linux/s390x"),
    ] {
        let seen = platform(asked).unwrap();
        check(&seen);
        assert_eq!(seen.platform.to_string(), got, "{asked}");
    }
    let err = platform("windows/amd64").unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);
    assert!(err.hint().unwrap().contains("linux/riscv64"), "{err}");
    // By digest of the list (whose platform is then chosen) and of a manifest in it.
    let list = "@sha256:00e1ee7c898a2c393ea2fe7680938f8dcbe55e51fbf08032cf37326a677f92ed";
    assert_eq!(
        source(&format!("{dir}{list}"), Some("linux/386")).and_then(read_all).unwrap().platform.to_string(),
        "linux/386"
    );
    let arm = "@sha256:40d0cfd0861719208ff9f7747ab3f97844eeca509df705db44a736df863b76af";
    assert_eq!(source(&format!("{dir}{arm}"), None).and_then(read_all).unwrap().platform.to_string(), "linux/arm/v7");
    let none = format!("@sha256:{}", "0".repeat(64));
    assert_eq!(fails(&format!("{dir}{none}"), None).kind(), ErrorKind::NotFound);
}

#[test]
fn an_asked_platform_must_fit_and_an_implied_one_takes_the_only_image() {
    let layout = busybox("busybox-latest-musl-arm64v8");
    check(&in_dir(&layout).unwrap());
    let dir = format!("oci:{}", layout.path().display());
    assert_eq!(source(&dir, None).and_then(read_all).unwrap().platform.to_string(), "linux/arm64");
    assert_eq!(fails(&dir, Some("linux/amd64")).kind(), ErrorKind::NotFound);
    let archive = format!("docker-archive:{}", at("dive/test-docker-image.tar"));
    let err = fails(&archive, Some("linux/s390x"));
    assert!(err.hint().unwrap().contains("linux/amd64"), "{err}");
}

#[test]
fn i14_docker_archives_select_by_name_or_id_and_follow_layer_links() {
    let file = at("ggcr-tarball/test_link.tar");
    let open = |tail: &str| source(&format!("docker-archive:{file}{tail}"), None).and_then(read_all);
    let three = open(":bazel/v1/tarball:test_image_3").unwrap();
    check(&three);
    let one = open(":bazel/v1/tarball:test_image_1").unwrap();
    assert_eq!(three.bytes[0], one.bytes[0], "layer.tar is a symlink to the other image's");
    let by_id = open("@sha256:d4c9adacde69c3d92446e0484cea29493e9fd573cf0c8febfc700d80c46697a4").unwrap();
    assert_eq!(by_id, three);
    let err = open("").unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);
    assert!(err.hint().unwrap().contains("test_image_1, bazel/v1/tarball:test_image_3"), "{err}");
    assert_eq!(open(":nope").unwrap_err().kind(), ErrorKind::NotFound);
    let name = Selector::Name("bazel/v1/tarball:test_image_3".into());
    assert_eq!(collect(stream_of(fs::read(&file).unwrap(), ArchiveKind::Sniff, name)).unwrap(), three);
    // A name without a tag means latest, and the other way round.
    let bundle = format!("docker-archive:{}:test_image_2:latest", at("ggcr-tarball/test_bundle.tar"));
    check(&source(&bundle, None).and_then(read_all).unwrap());
}

#[test]
fn podman_archive_with_two_images() {
    let file = at("podman-oci-two-images/oci-two-images.tar.xz");
    let err = fails(&format!("oci-archive:{file}"), None);
    assert_eq!(err.kind(), ErrorKind::NotFound);
    let hint = err.hint().unwrap().to_owned();
    let digests: Vec<&str> =
        hint.split([' ', ',']).filter_map(|w| w.strip_prefix('@')).filter(|w| w.len() == 71).collect();
    assert_eq!(digests.len(), 2, "{hint}");
    for digest in digests {
        let reference = format!("oci-archive:{file}@{digest}");
        let opened = source(&reference, None).and_then(read_all).unwrap();
        check(&opened);
        let selector = Selector::Digest(digest.parse().unwrap());
        assert_eq!(collect(stream_of(fs::read(&file).unwrap(), ArchiveKind::Sniff, selector)).unwrap(), opened);
    }
}

#[test]
fn xz_is_refused_with_the_pipe_that_helps_and_the_pipe_works() {
    for (name, selector) in [
        ("docker-name-only", None),
        ("docker-registry-name", Some("example.com/empty:latest")),
        ("docker-two-images", Some("example.com/empty/but:different")),
        ("docker-two-names", Some("pretty-empty")),
        ("docker-unnamed", None),
    ] {
        let file = at(&format!("container-libs-libimage/{name}.tar.xz"));
        for reference in [file.clone(), format!("docker-archive:{file}"), format!("layer:{file}")] {
            let err = fails(&reference, None);
            assert_eq!(err.kind(), ErrorKind::Unsupported);
            assert!(err.hint().unwrap().contains("xz -dc FILE | unply"), "{err}");
        }
        let Ok(out) = std::process::Command::new("xz").args(["-dc", &file]).output() else {
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "xz is missing");
            eprintln!("SKIP: xz is not installed");
            return;
        };
        let selector = selector.map_or(Selector::None, |s| Selector::Name(s.into()));
        let seen =
            collect(stream_of(out.stdout, ArchiveKind::Sniff, selector)).unwrap_or_else(|e| panic!("{name}: {e}"));
        check(&seen);
        assert_eq!(seen.layers.len(), 1);
    }
}

#[test]
fn single_layers_are_recognised_and_settle_to_a_stable_id() {
    for path in [
        "alpine-minirootfs-v3.20-x86_64/alpine-minirootfs-3.20.3-x86_64.tar.gz",
        "claircore/whiteout.layer",
        "container-libs-libimage/exported-container.tar",
        "dive/test-gzip-image.tar",
        "nydus-tar/empty.tar",
        "nydus-tar/bgzip.tar.gz",
        "ostree-ext/exampleos.tar.zst",
        "claircore/bad_name.tar",
    ] {
        let Source::Image(mut image) = source(&at(path), Some("linux/amd64")).unwrap() else { panic!("{path}") };
        assert_eq!(image.reference, format!("layer:{}", at(path)), "{path}");
        assert_eq!((image.layers.len(), image.layers[0].diff_id, image.image_id), (1, None, None));
        let blob = bytes_of(image.open_layer(0).unwrap()).unwrap();
        assert_eq!(blob, fs::read(at(path)).unwrap());
        let diff_id = DiffId(Digest::of(Algorithm::Sha256, &unpacked(&blob)));
        image.settle_layer(diff_id).unwrap();
        assert_eq!(image.layers[0].diff_id, Some(diff_id));
        let id = image.image_id.unwrap();
        assert_eq!(id.0, Digest::of(Algorithm::Sha256, &image.config_raw));
        assert_eq!(image.settle_layer(diff_id).unwrap_err().kind(), ErrorKind::Usage);
    }
}

// ---- made images ----

/// A layout in the making.
#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    fn add(&mut self, raw: impl Into<Vec<u8>>) -> (String, usize) {
        let raw = raw.into();
        let digest = Digest::of(Algorithm::Sha256, &raw);
        let size = raw.len();
        self.0.push((format!("blobs/sha256/{}", digest.hex()), raw));
        (digest.to_string(), size)
    }

    /// Adds an image of one layer for a platform; returns the descriptor's fields.
    fn image(&mut self, os_arch: (&str, &str), layer: &[u8]) -> String {
        let diff_id = Digest::of(Algorithm::Sha256, &unpacked(layer));
        let layer = descriptor(LAYER, &self.add(layer));
        let config = format!(
            r#"{{"os":"{}","architecture":"{}","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#,
            os_arch.0, os_arch.1
        );
        let config = descriptor(CONFIG, &self.add(config));
        self.manifest(&config, &layer)
    }

    fn manifest(&mut self, config: &str, layers: &str) -> String {
        let raw = format!(r#"{{"schemaVersion":2,"config":{{{config}}},"layers":[{{{layers}}}]}}"#);
        descriptor(MANIFEST, &self.add(raw))
    }

    fn files(&self, index: &str) -> Vec<(String, Vec<u8>)> {
        let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        files.extend(self.0.iter().cloned());
        files.push(("index.json".to_owned(), index.as_bytes().to_vec()));
        files
    }

    fn write(&self, index: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        for (name, raw) in self.files(index) {
            fs::write(dir.path().join(name), raw).unwrap();
        }
        dir
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn descriptor(media_type: &str, (digest, size): &(String, usize)) -> String {
    format!(r#""mediaType":"{media_type}","digest":"{digest}","size":{size}"#)
}

fn index(entries: &[String]) -> String {
    let entries: Vec<String> = entries.iter().map(|e| format!("{{{e}}}")).collect();
    format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","))
}

fn named(entry: &str, name: &str) -> String {
    format!(r#"{entry},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#)
}

fn for_platform(entry: &str, os: &str, arch: &str) -> String {
    format!(r#"{entry},"platform":{{"os":"{os}","architecture":"{arch}"}}"#)
}

enum Made<'a> {
    File(&'a [u8]),
    Symlink(&'a str),
    Hard(&'a str),
}

fn tar(members: &[(&str, Made<'_>)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, made) in members {
        let mut header = ::tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        header.set_mtime(0);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        let data: &[u8] = match made {
            Made::File(data) => data,
            Made::Symlink(target) | Made::Hard(target) => {
                let hard = matches!(made, Made::Hard(_));
                header.set_entry_type(if hard { ::tar::EntryType::Link } else { ::tar::EntryType::Symlink });
                header.set_link_name_literal(target).unwrap();
                b""
            }
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn layer(content: &str) -> Vec<u8> {
    tar(&[("file", Made::File(content.as_bytes()))])
}

fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let members: Vec<_> = files.iter().map(|(n, d)| (n.as_str(), Made::File(d))).collect();
    tar(&members)
}

fn in_dir(dir: &tempfile::TempDir) -> Result<Seen, Error> {
    in_dir_for(dir, "", None)
}

fn in_dir_for(dir: &tempfile::TempDir, selector: &str, platform: Option<&str>) -> Result<Seen, Error> {
    source(&format!("oci:{}{selector}", dir.path().display()), platform).and_then(read_all)
}

/// Opens an archive as a file and as a stream and expects the same of both.
fn both(archive: &[u8], kind: ArchiveKind, selector: &Selector) -> Result<Seen, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(archive).unwrap();
    let selector = selector.clone();
    let path = file.path().to_owned();
    let reference = match kind {
        ArchiveKind::Oci => Reference::OciArchive { file: path, selector: selector.clone() },
        _ => Reference::DockerArchive { file: path, selector: selector.clone() },
    };
    let as_file = open(&reference, &OpenOptions::default()).and_then(read_all);
    let as_stream = collect(stream_of(archive.to_vec(), kind, selector));
    match (&as_file, &as_stream) {
        (Ok(a), Ok(b)) => assert_eq!(a, b),
        (Err(a), Err(b)) => assert_eq!(a.kind(), b.kind(), "{a} / {b}"),
        (a, b) => panic!("file {a:?}, stream {b:?}"),
    }
    as_file
}

#[test]
fn handles_survive_renames() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    let dir = blobs.write(&index(&[image]));
    let Source::Image(image) = source(&format!("oci:{}", dir.path().display()), None).unwrap() else { panic!() };
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(dir.path(), elsewhere.path().join("moved")).unwrap();
    assert_eq!(bytes_of(image.open_layer(0).unwrap()).unwrap(), layer("x"));
}

#[test]
fn i01_a_layout_needs_its_two_files() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    for (file, content, kind) in [
        ("oci-layout", None, ErrorKind::NotFound),
        ("index.json", None, ErrorKind::NotFound),
        ("oci-layout", Some(r#"{"imageLayoutVersion":"2.0.0"}"#), ErrorKind::Unsupported),
        ("index.json", Some("nonsense"), ErrorKind::Malformed),
    ] {
        let dir = blobs.write(&index(std::slice::from_ref(&image)));
        assert!(in_dir(&dir).is_ok());
        match content {
            None => fs::remove_file(dir.path().join(file)).unwrap(),
            Some(content) => fs::write(dir.path().join(file), content).unwrap(),
        }
        assert_eq!(in_dir(&dir).unwrap_err().kind(), kind, "{file} {content:?}");
    }
    let err = fails("oci:/does/not/exist", None);
    assert_eq!((err.kind(), err.hint().is_some()), (ErrorKind::NotFound, true), "{err}");
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(fails(empty.path().to_str().unwrap(), None).kind(), ErrorKind::NotFound);
}

#[test]
fn hostile_symlinks_do_not_leave_the_layout() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    let outside = tempfile::tempdir().unwrap();
    let name = blobs.0[0].0.clone();
    fs::write(outside.path().join("layer"), &blobs.0[0].1).unwrap();
    let absolute = outside.path().join("layer").to_str().unwrap().to_owned();
    let up = format!("../../../{}/layer", outside.path().file_name().unwrap().to_str().unwrap());
    for (target, kind) in [
        (absolute.as_str(), ErrorKind::Malformed),
        (up.as_str(), ErrorKind::Malformed),
        (name.rsplit('/').next().unwrap(), ErrorKind::Malformed), // itself
        ("../../blobs", ErrorKind::Malformed),                    // a directory
        ("nothing", ErrorKind::NotFound),
    ] {
        let dir = blobs.write(&index(std::slice::from_ref(&image)));
        fs::remove_file(dir.path().join(&name)).unwrap();
        symlink(target, dir.path().join(&name)).unwrap();
        let err = in_dir(&dir).unwrap_err();
        assert_eq!(err.kind(), kind, "{target}: {err}");
    }
    // Inside, by a detour and through a linked directory, they work.
    let dir = blobs.write(&index(std::slice::from_ref(&image)));
    fs::rename(dir.path().join(&name), dir.path().join("layer")).unwrap();
    symlink("../.././blobs/../layer", dir.path().join(&name)).unwrap();
    fs::rename(dir.path().join("blobs"), dir.path().join("real")).unwrap();
    symlink("real", dir.path().join("blobs")).unwrap();
    check(&in_dir(&dir).unwrap());
    // A FIFO neither blocks nor counts as a blob.
    let dir = blobs.write(&index(std::slice::from_ref(&image)));
    fs::remove_file(dir.path().join(&name)).unwrap();
    nix::unistd::mkfifo(&dir.path().join(&name), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(in_dir(&dir).unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn i08_embedded_data_is_used_and_verified() {
    // base64 of `{}`-like small documents is made by hand here: three bytes at a time, no library.
    fn base64(data: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        data.chunks(3)
            .flat_map(|c| {
                let n = c.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - c.len()));
                (0..4).map(move |i| if i <= c.len() { DIGITS[(n >> (18 - 6 * i) & 63) as usize] as char } else { '=' })
            })
            .collect()
    }
    let raw = layer("embedded");
    let mut blobs = Blobs::default();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(Algorithm::Sha256, &raw)
    );
    let with_data = |d: &str, data: &[u8]| format!(r#"{d},"data":"{}""#, base64(data));
    let config_descriptor = with_data(&descriptor(CONFIG, &blobs.add(config.clone())), config.as_bytes());
    let layer_descriptor = descriptor(LAYER, &blobs.add(raw.clone()));
    blobs.0.clear();
    let good = blobs.manifest(&config_descriptor, &with_data(&layer_descriptor, &raw));
    check(&in_dir(&blobs.write(&index(std::slice::from_ref(&good)))).unwrap());
    let packed = pack(&blobs.files(&index(&[good])));
    check(&both(&packed, ArchiveKind::Oci, &Selector::None).unwrap());
    let bad = blobs.manifest(&config_descriptor, &with_data(&layer_descriptor, &layer("EMBEDDED")));
    assert_eq!(in_dir(&blobs.write(&index(&[bad]))).unwrap_err().kind(), ErrorKind::Integrity);
    let torn = blobs.manifest(&config_descriptor, &format!(r#"{layer_descriptor},"data":"?""#));
    assert_eq!(in_dir(&blobs.write(&index(&[torn]))).unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn i04_i06_attestations_and_unknown_types_are_never_picked() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    let attestation = blobs.image(("linux", "amd64"), &layer("statement"));
    let other = blobs.image(("linux", "amd64"), &layer("other")).replace(MANIFEST, "application/foo");
    let unknown = format!(r#""mediaType":"{MANIFEST}","digest":"blake3:{}","size":1"#, "a".repeat(64));
    let entries = [
        for_platform(&attestation, "unknown", "unknown"),
        format!(r#"{attestation},"annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}"#),
        named(&other, "foo"),
        unknown,
        image,
    ];
    let dir = blobs.write(&index(&entries));
    assert_eq!(in_dir(&dir).unwrap().bytes[0], layer("x"));
    let err = in_dir_for(&dir, ":foo", None).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unsupported);
    assert!(err.to_string().contains("application/foo"), "{err}");
    let dir = blobs.write(&index(&entries[..2]));
    assert_eq!(in_dir(&dir).unwrap_err().kind(), ErrorKind::NotFound);
    let escape = format!(r#""mediaType":"{MANIFEST}","digest":"sha256:../../../../etc/passwd","size":1"#);
    assert_eq!(in_dir(&blobs.write(&index(&[escape]))).unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn i06_a_layer_of_unknown_type_is_refused_when_it_is_unpacked_and_i13_foreign_ones_are_read() {
    let mut blobs = Blobs::default();
    blobs.image(("linux", "amd64"), &layer("x"));
    let (layer_blob, config) = (blobs.0[0].clone(), blobs.0[1].1.clone());
    let config = descriptor(CONFIG, &blobs.add(config));
    let layer_id = (Digest::of(Algorithm::Sha256, &layer_blob.1).to_string(), layer_blob.1.len());
    for (media_type, ok) in [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", true),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", true),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", false),
        ("application/vnd.in-toto+json", false),
    ] {
        let manifest = blobs.manifest(&config, &descriptor(media_type, &layer_id));
        let dir = blobs.write(&index(&[manifest]));
        let Source::Image(image) = source(&format!("oci:{}", dir.path().display()), None).unwrap() else { panic!() };
        match image.open_layer(0) {
            Ok(_) => assert!(ok, "{media_type}"),
            Err(err) => {
                assert!(!ok && err.kind() == ErrorKind::Unsupported, "{media_type}: {err}");
                assert!(err.to_string().contains(media_type), "{err}");
            }
        }
    }
}

#[test]
fn i12_every_media_type_of_docker_schema_2_is_read() {
    let tar = layer("x");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let (gzip, zstd) = (gzip.finish().unwrap(), zstd::encode_all(&tar[..], 1).unwrap());
    for (suffix, blob) in [("", &tar), (".gzip", &gzip), (".zstd", &zstd)] {
        for foreign in ["", ".foreign"] {
            let media_type = format!("application/vnd.docker.image.rootfs{foreign}.diff.tar{suffix}");
            let mut blobs = Blobs::default();
            let manifest = blobs.image(("linux", "amd64"), blob);
            let raw = blobs.0.pop().unwrap();
            let text = String::from_utf8(raw.1).unwrap();
            assert!(manifest.contains(MANIFEST) && text.contains(LAYER) && text.contains(CONFIG), "{text}");
            let text =
                text.replace(LAYER, &media_type).replace(CONFIG, "application/vnd.docker.container.image.v1+json");
            let manifest = descriptor("application/vnd.docker.distribution.manifest.v2+json", &blobs.add(text));
            let entry = for_platform(&manifest, "linux", "amd64");
            let list = blobs.add(index(std::slice::from_ref(&entry)));
            let list = descriptor("application/vnd.docker.distribution.manifest.list.v2+json", &list);
            for entry in [entry, list] {
                let seen = in_dir(&blobs.write(&index(&[entry]))).unwrap();
                check(&seen);
                assert_eq!((seen.layers[0].media_type.as_str(), &seen.bytes[0]), (media_type.as_str(), blob));
            }
        }
    }
    // A config that says nothing of the kind is no image's.
    let mut blobs = Blobs::default();
    blobs.image(("linux", "amd64"), &tar);
    let text = String::from_utf8(blobs.0.pop().unwrap().1).unwrap();
    let manifest = descriptor(MANIFEST, &blobs.add(text.replace(CONFIG, "application/vnd.docker.plugin.v1+json")));
    assert_eq!(in_dir(&blobs.write(&index(&[manifest]))).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// I13, CVE-2020-15157: where a foreign layer could be fetched from is not even looked at.
#[test]
fn i13_urls_of_a_foreign_layer_are_not_fetched() {
    let mut blobs = Blobs::default();
    blobs.image(("linux", "amd64"), &layer("x"));
    let text = String::from_utf8(blobs.0.pop().unwrap().1).unwrap();
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let served = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    served.set_nonblocking(true).unwrap();
    let url = format!(
        r#"{foreign}","urls":["http://{}/layer"],"annotations":{{}},"artifactType":""#,
        served.local_addr().unwrap()
    );
    let manifest = descriptor(MANIFEST, &blobs.add(text.replace(LAYER, &url)));
    blobs.0.remove(0);
    let err = in_dir(&blobs.write(&index(&[manifest]))).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
    assert_eq!(served.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody asked for it");
}

#[test]
fn i07_an_artifact_is_no_image() {
    let mut blobs = Blobs::default();
    let config = descriptor("application/vnd.oci.empty.v1+json", &blobs.add("{}"));
    let layer = descriptor("application/vnd.oci.empty.v1+json", &blobs.add("{}"));
    let manifest = blobs.manifest(&config, &layer);
    let err = in_dir(&blobs.write(&index(&[manifest]))).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unsupported);
    assert!(err.to_string().contains("not an image"), "{err}");
}

#[test]
fn i09_i10_i11_inconsistent_documents_are_refused() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    let (config, layers) = {
        let config =
            descriptor(CONFIG, &(Digest::of(Algorithm::Sha256, &blobs.0[1].1).to_string(), blobs.0[1].1.len()));
        let layers = descriptor(LAYER, &(Digest::of(Algorithm::Sha256, &blobs.0[0].1).to_string(), blobs.0[0].1.len()));
        (config, layers)
    };
    let kind = |blobs: &mut Blobs, media_type: &str, raw: String| {
        let entry = descriptor(media_type, &blobs.add(raw));
        in_dir(&blobs.write(&index(&[entry]))).unwrap_err().kind()
    };
    let mixed = format!(r#"{{"config":{{{config}}},"layers":[{{{layers}}}],"manifests":[{{{image}}}]}}"#);
    assert_eq!(kind(&mut blobs, MANIFEST, mixed.clone()), ErrorKind::Malformed);
    assert_eq!(kind(&mut blobs, INDEX, mixed), ErrorKind::Malformed);
    let lying = format!(r#"{{"mediaType":"{INDEX}","config":{{{config}}},"layers":[{{{layers}}}]}}"#);
    assert_eq!(kind(&mut blobs, MANIFEST, lying), ErrorKind::Malformed);
    let two = format!(r#"{{"config":{{{config}}},"layers":[{{{layers}}},{{{layers}}}]}}"#);
    assert_eq!(kind(&mut blobs, MANIFEST, two), ErrorKind::Malformed, "two layers, one diff_id");
    let none = format!(r#"{{"config":{{{config}}},"layers":null}}"#);
    assert_eq!(kind(&mut blobs, MANIFEST, none), ErrorKind::Malformed, "no layers, one diff_id");
    for (rootfs, wanted) in [
        (r#"{"os":"linux"}"#, ErrorKind::Malformed),
        (r#"{"rootfs":{"diff_ids":[]}}"#, ErrorKind::Malformed),
        (r#"{"rootfs":{"type":"layers+base","diff_ids":[]}}"#, ErrorKind::Unsupported),
        (r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../x"]}}"#, ErrorKind::Malformed),
    ] {
        let config = descriptor(CONFIG, &blobs.add(rootfs));
        let raw = format!(r#"{{"config":{{{config}}},"layers":[{{{layers}}}]}}"#);
        assert_eq!(kind(&mut blobs, MANIFEST, raw), wanted, "{rootfs}");
    }
}

#[test]
fn one_flipped_bit_in_any_document_is_exit_4() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    for at in [1, 2] {
        let dir = blobs.write(&index(std::slice::from_ref(&image)));
        let path = dir.path().join(&blobs.0[at].0);
        let mut raw = fs::read(&path).unwrap();
        let middle = raw.len() / 2;
        raw[middle] ^= 1;
        fs::write(&path, &raw).unwrap();
        assert_eq!(in_dir(&dir).unwrap_err().kind(), ErrorKind::Integrity);
        raw.push(b' ');
        fs::write(&path, &raw).unwrap();
        assert_eq!(in_dir(&dir).unwrap_err().kind(), ErrorKind::Integrity);
    }
    // A config in a Docker archive, where its name is a digest.
    let mut broken = fs::read(at("ggcr-tarball/hello-world-v25.tar")).unwrap();
    let needle = b"\"rootfs\"";
    let place = broken.windows(needle.len()).position(|w| w == needle).unwrap();
    broken[place + 1] ^= 1;
    assert_eq!(both(&broken, ArchiveKind::Docker, &Selector::None).unwrap_err().kind(), ErrorKind::Integrity);
}

/// Tools that edit a config keep the name `HEX.json`, and Docker loads it: the id is that of the bytes.
#[test]
fn i14_a_config_file_name_is_no_promise() {
    let file = at("ggcr-mutate/source_image_with_empty_layer_history.tar");
    let Source::Image(image) = source(&format!("docker-archive:{file}"), None).unwrap() else { panic!() };
    assert!(image.image_id.unwrap().to_string().starts_with("sha256:05b5ec129058"));
}

#[test]
fn i05_nesting_is_followed_to_its_limit() {
    let mut blobs = Blobs::default();
    let mut entry = blobs.image(("linux", "amd64"), &layer("x"));
    for depth in 1..=8 {
        let dir = blobs.write(&index(std::slice::from_ref(&entry)));
        assert!(in_dir(&dir).is_ok(), "index.json and {} below it", depth - 1);
        entry = descriptor(INDEX, &blobs.add(index(std::slice::from_ref(&entry))));
    }
    assert_eq!(in_dir(&blobs.write(&index(&[entry]))).unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn i17_oversize_documents_are_refused_before_they_are_read() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    let dir = blobs.write(&index(std::slice::from_ref(&image)));
    let reference: Reference = format!("oci:{}", dir.path().display()).parse().unwrap();
    let open_with = |limits| open(&reference, &OpenOptions { limits, ..OpenOptions::default() }).map(|_| ());
    assert!(open_with(Limits::default()).is_ok());
    let tiny = Limits { max_manifest_bytes: 100, ..Limits::default() };
    assert_eq!(open_with(tiny).unwrap_err().kind(), ErrorKind::Limit);
    let tiny = Limits { max_json_bytes: 40, ..Limits::default() };
    assert_eq!(open_with(tiny).unwrap_err().kind(), ErrorKind::Limit);
    let huge = image.replace("\"size\":", "\"size\":99999999");
    assert_eq!(in_dir(&blobs.write(&index(&[huge]))).unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn i02_i03_names_and_platforms_choose_and_ambiguity_lists() {
    let mut blobs = Blobs::default();
    let amd = blobs.image(("linux", "amd64"), &layer("amd"));
    let arm = blobs.image(("linux", "arm64"), &layer("arm"));
    let amd2 = blobs.image(("linux", "amd64"), &layer("amd2"));
    let open = |blobs: &Blobs, entries: &[String], selector: &str, platform: Option<&str>| {
        in_dir_for(&blobs.write(&index(entries)), selector, platform).map(|s| s.bytes[0].clone())
    };
    // One name, two platforms, platforms known only from the configs.
    let multi = [named(&amd, "a:1"), named(&arm, "a:1")];
    assert_eq!(open(&blobs, &multi, ":a:1", Some("linux/arm64")).unwrap(), layer("arm"));
    assert_eq!(open(&blobs, &multi, "", Some("linux/amd64")).unwrap(), layer("amd"));
    assert_eq!(open(&blobs, &multi, ":a:1", Some("linux/s390x")).unwrap_err().kind(), ErrorKind::NotFound);
    // Two names: none chosen is ambiguous even where the platform would decide.
    let two = [named(&amd, "a:1"), named(&arm, "b:1")];
    assert_eq!(open(&blobs, &two, "", Some("linux/amd64")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(open(&blobs, &two, ":b:1", None).unwrap(), layer("arm"));
    // One image under two names is one image.
    let twice = [named(&amd, "a:1"), named(&amd, "b:1")];
    assert_eq!(open(&blobs, &twice, "", None).unwrap(), layer("amd"));
    // Two images for one platform at the top are ambiguous, in a nested index the first wins.
    let same = [for_platform(&amd, "linux", "amd64"), for_platform(&amd2, "linux", "amd64")];
    let err = open(&blobs, &same, "", Some("linux/amd64")).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);
    assert!(err.hint().unwrap().matches("@sha256:").count() == 2, "{err}");
    let nested = descriptor(INDEX, &blobs.add(index(&same)));
    assert_eq!(open(&blobs, &[nested], "", Some("linux/amd64")).unwrap(), layer("amd"));
    // containerd's full name, and what users type for it.
    let full = format!(r#"{amd},"annotations":{{"io.containerd.image.name":"docker.io/library/a:latest"}}"#);
    for name in [":docker.io/library/a:latest", ":a:latest", ":a"] {
        assert_eq!(open(&blobs, std::slice::from_ref(&full), name, None).unwrap(), layer("amd"), "{name}");
    }
}

// ---- archives ----

#[test]
fn i16_member_names_are_cleaned_and_duplicates_refused() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    let files = blobs.files(&index(&[image]));
    let dotted: Vec<_> = files.iter().map(|(n, d)| (format!("./{n}"), d.clone())).collect();
    check(&both(&pack(&dotted), ArchiveKind::Oci, &Selector::None).unwrap());
    let doubled: Vec<_> = files.iter().chain(&dotted[..1]).cloned().collect();
    assert_eq!(both(&pack(&doubled), ArchiveKind::Oci, &Selector::None).unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn a_stream_gives_the_same_image_whatever_its_order_and_packing() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    let mut files = blobs.files(&index(&[image]));
    let first = both(&pack(&files), ArchiveKind::Oci, &Selector::None).unwrap();
    check(&first);
    files.reverse();
    let reversed = pack(&files);
    assert_eq!(both(&reversed, ArchiveKind::Oci, &Selector::None).unwrap(), first);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&reversed).unwrap();
    for packed in [gzip.finish().unwrap(), zstd::encode_all(&reversed[..], 1).unwrap()] {
        assert_eq!(both(&packed, ArchiveKind::Oci, &Selector::None).unwrap(), first);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&packed).unwrap();
        let sniffed = open(&Reference::Path(file.path().into()), &OpenOptions::default()).unwrap();
        assert!(matches!(sniffed, Source::Stream(_)));
        assert_eq!(read_all(sniffed).unwrap(), first);
    }
    for cut in [300, 600, reversed.len() / 2] {
        let kind = both(&reversed[..cut], ArchiveKind::Oci, &Selector::None).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::Malformed, "cut at {cut}");
    }
}

fn docker_files(layers: &[(&str, Made<'_>, &[u8])], oci: Option<(&Blobs, &str)>) -> Vec<u8> {
    let ids: Vec<String> =
        layers.iter().map(|(_, _, raw)| format!("\"{}\"", Digest::of(Algorithm::Sha256, raw))).collect();
    let names: Vec<String> = layers.iter().map(|(n, _, _)| format!("\"{n}\"")).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let manifest = format!(r#"[{{"Config":"c.json","RepoTags":["a:1"],"Layers":[{}]}}]"#, names.join(","));
    let oci_files = oci.map(|(blobs, index)| blobs.files(index)).unwrap_or_default();
    let mut members: Vec<(&str, Made<'_>)> =
        vec![("manifest.json", Made::File(manifest.as_bytes())), ("c.json", Made::File(config.as_bytes()))];
    members.extend(oci_files.iter().map(|(n, d)| (n.as_str(), Made::File(d))));
    for (name, made, _) in layers {
        members.push((
            name,
            match made {
                Made::File(d) => Made::File(d),
                Made::Symlink(t) => Made::Symlink(t),
                Made::Hard(t) => Made::Hard(t),
            },
        ));
    }
    tar(&members)
}

#[test]
fn i14_links_between_layers_and_links_that_leave() {
    let (x, y) = (layer("x"), layer("y"));
    let zeros = vec![0; 1024];
    let packed = docker_files(
        &[
            ("a/layer.tar", Made::File(&x), &x),
            ("b/layer.tar", Made::Symlink("../a/layer.tar"), &x),
            ("c/layer.tar", Made::Hard("a/layer.tar"), &x),
            ("d/layer.tar", Made::File(&y), &y),
            ("e/layer.tar", Made::File(&zeros), &zeros),
            ("f/layer.tar", Made::File(b""), b""),
        ],
        None,
    );
    let seen = both(&packed, ArchiveKind::Docker, &Selector::Name("a:1".into())).unwrap();
    check(&seen);
    assert_eq!(seen.bytes, [x.clone(), x.clone(), x.clone(), y, zeros, Vec::new()]);
    for (target, kind) in [
        ("../../etc/passwd", ErrorKind::Malformed),
        ("/a/layer.tar", ErrorKind::Malformed),
        ("layer.tar", ErrorKind::Malformed),
        ("nothing", ErrorKind::NotFound),
    ] {
        let packed = docker_files(&[("b/layer.tar", Made::Symlink(target), &x)], None);
        let err = both(&packed, ArchiveKind::Docker, &Selector::None).unwrap_err();
        assert_eq!(err.kind(), kind, "{target}: {err}");
    }
}

#[test]
fn i15_combined_archives_prefer_the_layout_and_fall_back_where_it_lacks_layers() {
    let x = layer("x");
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &x);
    let oci = index(std::slice::from_ref(&image));
    let seen = both(
        &docker_files(&[("l.tar", Made::File(&x), &x)], Some((&blobs, &oci))),
        ArchiveKind::Docker,
        &Selector::None,
    );
    assert!(seen.unwrap().manifest_digest.is_some());
    // moby#47065: the manifest has no layers, manifest.json does.
    let config = descriptor(CONFIG, &(Digest::of(Algorithm::Sha256, &blobs.0[1].1).to_string(), blobs.0[1].1.len()));
    let bare = format!(r#"{{"schemaVersion":2,"config":{{{config}}},"layers":null}}"#);
    let bare = index(&[descriptor(MANIFEST, &blobs.add(bare))]);
    let packed = docker_files(&[("l.tar", Made::File(&x), &x)], Some((&blobs, &bare)));
    let seen = both(&packed, ArchiveKind::Docker, &Selector::None).unwrap();
    assert_eq!((seen.manifest_digest, &seen.bytes[..]), (None, &[x][..]));
    assert_eq!(both(&packed, ArchiveKind::Oci, &Selector::None).unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn a_single_layer_on_standard_input_is_told_so() {
    let names: Vec<String> = (0..100).map(|i| format!("usr/bin/tool{i}")).collect();
    let rootfs: Vec<_> = names.iter().map(|n| (n.as_str(), Made::File(b"x"))).collect();
    let mut calls = 0;
    for raw in
        [tar(&rootfs), tar(&rootfs[..3]), fs::read(at("container-libs-libimage/exported-container.tar")).unwrap()]
    {
        let err = stream_of(raw, ArchiveKind::Sniff, Selector::None)
            .read(|_| {
                calls += 1;
                Ok(())
            })
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NotFound);
        assert!(err.hint().unwrap().contains("layer:-"), "{err}");
    }
    assert_eq!(calls, 0);
    let err = stream_of(b"hello".to_vec(), ArchiveKind::Sniff, Selector::None).read(|_| Ok(())).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Malformed);
}

#[test]
fn the_callback_may_leave_bytes_and_its_error_ends_the_reading() {
    let raw = fs::read(at("dive/test-docker-image.tar")).unwrap();
    let mut read = 0;
    let collected = stream_of(raw.clone(), ArchiveKind::Docker, Selector::None)
        .read(|member| {
            let mut some = [0; 700];
            member.read_exact(&mut some[..read % 700]).unwrap();
            read += 50;
            Ok(member.name.clone())
        })
        .unwrap();
    assert_eq!(collected.layers.len(), 14);
    assert!(collected.tokens.iter().all(|(name, token)| name == token));
    let err = stream_of(raw, ArchiveKind::Docker, Selector::None)
        .read(|_| Err::<(), _>(Error::new(ErrorKind::NoSpace, "full")))
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NoSpace);
}

#[test]
fn huge_documents_nobody_needs_are_given_up() {
    let mut blobs = Blobs::default();
    let image = blobs.image(("linux", "amd64"), &layer("x"));
    let mut files = blobs.files(&index(&[image]));
    for i in 0..8 {
        files.insert(
            0,
            (format!("blobs/sha256/{i}"), format!("{{\"sbom{i}\":\"{}\"}}", "a".repeat(3_000)).into_bytes()),
        );
    }
    let limits = Limits { max_json_bytes: 3_500, max_manifest_bytes: 1_000, ..Limits::default() };
    let options = OpenOptions { limits: limits.clone(), ..OpenOptions::default() };
    let stream = |files: &[(String, Vec<u8>)]| {
        let reader = Box::new(Cursor::new(pack(files)));
        collect(ArchiveStream::from_reader(reader, ArchiveKind::Oci, Selector::None, &options))
    };
    check(&stream(&files).unwrap());
    let long = format!("{{\"x\":\"{}\"}}", "a".repeat(4_000)).into_bytes();
    files.insert(0, ("blobs/sha256/long".to_owned(), long.clone()));
    check(&stream(&files).unwrap());
    files.last_mut().unwrap().1 = long;
    assert_eq!(stream(&files).unwrap_err().kind(), ErrorKind::Limit, "index.json is needed");
}

#[test]
fn b08_member_tables_are_bounded() {
    let names: Vec<String> = (0..50).map(|i| format!("blobs/sha256/{i}")).collect();
    let members: Vec<_> = names.iter().map(|n| (n.as_str(), Made::File(b"{}"))).collect();
    let options =
        OpenOptions { limits: Limits { max_archive_members: 20, ..Limits::default() }, ..OpenOptions::default() };
    let reader = Box::new(Cursor::new(tar(&members)));
    let stream = ArchiveStream::from_reader(reader, ArchiveKind::Oci, Selector::None, &options);
    assert_eq!(collect(stream).unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn an_image_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Image>();
    sent::<ArchiveStream>();
}
