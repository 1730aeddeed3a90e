//! Images around layers: OCI layouts, OCI archives and `docker save` archives, right or broken in one chosen place.
//!
//! Owns: configs, manifests, indexes, digests and where a form keeps them. Refuses to know: what a layer holds.
//! Invariant: every digest and size is right except where [`Breakage`] says otherwise.
//! Formats: <https://github.com/opencontainers/image-spec>,
//! <https://github.com/moby/docker-image-spec/blob/main/v1.2.md>.

mod docker;
mod json;

pub use docker::{DockerForm, DockerOptions, docker_archive};

use crate::tar::{TarBuilder, gzip, sha256_hex, zstd};
use crate::{dir, file};
use json::{Json, object, string};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    None,
    /// One gzip member.
    #[default]
    Gzip,
    /// One zstd frame.
    Zstd,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpec {
    /// The uncompressed tar.
    pub tar: Vec<u8>,
    /// How its blob is compressed.
    pub compression: Compression,
    /// The blob, when it is not what compressing the tar gives.
    pub blob: Option<Vec<u8>>,
}

impl LayerSpec {
    /// Makes a gzip layer of a tar.
    pub fn new(tar: impl Into<Vec<u8>>) -> LayerSpec {
        LayerSpec { tar: tar.into(), compression: Compression::Gzip, blob: None }
    }

    /// Sets the compression.
    pub fn compression(mut self, compression: Compression) -> LayerSpec {
        self.compression = compression;
        self
    }

    /// Takes these bytes as the compressed blob; its descriptor describes them rightly.
    pub fn blob(mut self, bytes: impl Into<Vec<u8>>) -> LayerSpec {
        self.blob = Some(bytes.into());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        match (&self.blob, self.compression) {
            (Some(blob), _) => blob.clone(),
            (None, Compression::None) => self.tar.clone(),
            (None, Compression::Gzip) => gzip(&self.tar),
            (None, Compression::Zstd) => zstd(&self.tar),
        }
    }
}

/// What is wrong with an image; layers are counted from the bottom, which is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// The config states another diff_id for this layer.
    WrongDiffId(usize),
    /// One bit in the middle of this layer's blob is not what its digest says.
    FlippedBit(usize),
    /// This layer's descriptor states one byte too much.
    WrongSize(usize),
    /// This layer's blob lacks its last byte.
    ShortBlob(usize),
    /// This layer's blob is missing.
    MissingBlob(usize),
    /// The config states one diff_id too few.
    MissingDiffId,
    /// The config's bytes are not what its digest says.
    FlippedConfig,
    /// The manifest's bytes are not what its digest says.
    FlippedManifest,
}

/// One image.
#[derive(Debug, Clone, Default)]
pub struct ImageSpec {
    /// Layers, bottom first.
    pub layers: Vec<LayerSpec>,
    /// `org.opencontainers.image.ref.name` in a layout, `NAME:TAG` in a Docker archive.
    pub tag: Option<String>,
    /// OS, architecture, variant; `linux`, `amd64`, none when not set.
    pub platform: Option<(String, String, Option<String>)>,
    /// Annotations of the manifest.
    pub annotations: Vec<(String, String)>,
    /// Docker's schema 2 media types in place of OCI's.
    pub docker_types: bool,
    /// The manifest is listed in an index of its own, which `index.json` lists.
    pub nested: bool,
    /// An attestation manifest stands beside the manifest, as buildkit writes it.
    pub attestation: bool,
    /// Members of the config's `config` object, as JSON text: `"Env": ["A=b"]`.
    pub config: Option<String>,
    /// What is wrong with it.
    pub breakages: Vec<Breakage>,
}

impl ImageSpec {
    /// Makes an image of gzip layers from tars, bottom first.
    pub fn new<T: Into<Vec<u8>>>(tars: impl IntoIterator<Item = T>) -> ImageSpec {
        ImageSpec { layers: tars.into_iter().map(LayerSpec::new).collect(), ..ImageSpec::default() }
    }

    /// Sets the tag.
    pub fn tag(mut self, tag: impl Into<String>) -> ImageSpec {
        self.tag = Some(tag.into());
        self
    }

    /// Sets OS and architecture.
    pub fn platform(mut self, os: &str, architecture: &str, variant: Option<&str>) -> ImageSpec {
        self.platform = Some((os.into(), architecture.into(), variant.map(str::to_string)));
        self
    }

    /// Sets the compression of every layer.
    pub fn compression(mut self, compression: Compression) -> ImageSpec {
        self.layers.iter_mut().for_each(|layer| layer.compression = compression);
        self
    }

    /// Adds an annotation to the manifest.
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> ImageSpec {
        self.annotations.push((key.into(), value.into()));
        self
    }

    /// Breaks something.
    pub fn broken(mut self, breakage: Breakage) -> ImageSpec {
        self.breakages.push(breakage);
        self
    }

    fn is(&self, breakage: Breakage) -> bool {
        self.breakages.contains(&breakage)
    }

    fn platform_or_default(&self) -> (String, String, Option<String>) {
        self.platform.clone().unwrap_or(("linux".into(), "amd64".into(), None))
    }

    /// Returns the right diff_ids as hexadecimal digits, bottom first.
    pub fn diff_ids(&self) -> Vec<String> {
        self.layers.iter().map(|layer| sha256_hex(&layer.tar)).collect()
    }

    /// Returns the config document.
    fn config_json(&self) -> Vec<u8> {
        let mut diff_ids = self.diff_ids();
        for (i, diff_id) in diff_ids.iter_mut().enumerate() {
            if self.is(Breakage::WrongDiffId(i)) {
                *diff_id = sha256_hex(diff_id.as_bytes());
            }
        }
        if self.is(Breakage::MissingDiffId) {
            diff_ids.pop();
        }
        let (os, architecture, variant) = self.platform_or_default();
        let mut members = vec![("architecture", string(&architecture)), ("os", string(&os))];
        members.extend(variant.map(|variant| ("variant", string(&variant))));
        members.push(("config", Json(format!("{{{}}}", self.config.as_deref().unwrap_or_default()))));
        let diff_ids = diff_ids.iter().map(|hex| string(&format!("sha256:{hex}")));
        members.push(("rootfs", object([("type", string("layers")), ("diff_ids", json::array(diff_ids))])));
        let history = self.layers.iter().map(|_| object([("created_by", string("testkit"))]));
        members.push(("history", json::array(history)));
        object(members).into_bytes()
    }

    /// Returns the media types of manifest, index, config and of a layer of this compression.
    fn media_types(&self, compression: Compression) -> [String; 4] {
        let suffix = |separator: &str| match compression {
            Compression::None => String::new(),
            Compression::Gzip => format!("{separator}gzip"),
            Compression::Zstd => format!("{separator}zstd"),
        };
        if self.docker_types {
            [
                "application/vnd.docker.distribution.manifest.v2+json".into(),
                "application/vnd.docker.distribution.manifest.list.v2+json".into(),
                "application/vnd.docker.container.image.v1+json".into(),
                format!("application/vnd.docker.image.rootfs.diff.tar{}", suffix(".")),
            ]
        } else {
            [
                "application/vnd.oci.image.manifest.v1+json".into(),
                "application/vnd.oci.image.index.v1+json".into(),
                "application/vnd.oci.image.config.v1+json".into(),
                format!("application/vnd.oci.image.layer.v1.tar{}", suffix("+")),
            ]
        }
    }
}

/// What an image's documents and layers are called, as hexadecimal SHA-256 digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The manifest.
    pub manifest: String,
    /// The config: the image id.
    pub config: String,
    /// The layers' blobs, bottom first.
    pub layers: Vec<String>,
    /// The right diff_ids, bottom first.
    pub diff_ids: Vec<String>,
}

/// The files of a layout, by path.
type Files = BTreeMap<String, Vec<u8>>;

/// A layout in memory.
#[derive(Debug, Default)]
struct Layout {
    files: Files,
    descriptors: Vec<Json>,
}

impl Layout {
    /// Puts a blob in; `stored` is what is really written under the digest of `bytes`.
    fn blob(&mut self, bytes: &[u8], stored: Option<Vec<u8>>) -> String {
        let digest = sha256_hex(bytes);
        if let Some(stored) = stored {
            self.files.insert(format!("blobs/sha256/{digest}"), stored);
        }
        digest
    }

    fn add(&mut self, image: &ImageSpec) -> Built {
        let [manifest_type, index_type, config_type, _] = image.media_types(Compression::None);
        let config_json = image.config_json();
        let stored = if image.is(Breakage::FlippedConfig) { flipped(&config_json) } else { config_json.clone() };
        let config = self.blob(&config_json, Some(stored));

        let mut layers = Vec::new();
        let mut layer_descriptors = Vec::new();
        for (i, layer) in image.layers.iter().enumerate() {
            let bytes = layer.bytes();
            let stored = match () {
                () if image.is(Breakage::MissingBlob(i)) => None,
                () if image.is(Breakage::FlippedBit(i)) => Some(flipped(&bytes)),
                () if image.is(Breakage::ShortBlob(i)) => Some(bytes[..bytes.len().saturating_sub(1)].to_vec()),
                () => Some(bytes.clone()),
            };
            let digest = self.blob(&bytes, stored);
            let size = bytes.len() + usize::from(image.is(Breakage::WrongSize(i)));
            layer_descriptors.push(descriptor(&image.media_types(layer.compression)[3], &digest, size, []));
            layers.push(digest);
        }

        let mut members = vec![
            ("schemaVersion", Json("2".into())),
            ("mediaType", string(&manifest_type)),
            ("config", descriptor(&config_type, &config, config_json.len(), [])),
            ("layers", json::array(layer_descriptors)),
        ];
        if !image.annotations.is_empty() {
            members.push(("annotations", json::strings(&image.annotations)));
        }
        let manifest_json = object(members).into_bytes();
        let stored = if image.is(Breakage::FlippedManifest) { flipped(&manifest_json) } else { manifest_json.clone() };
        let manifest = self.blob(&manifest_json, Some(stored));

        let (os, architecture, variant) = image.platform_or_default();
        let mut platform = vec![("architecture", string(&architecture)), ("os", string(&os))];
        platform.extend(variant.map(|variant| ("variant", string(&variant))));
        let tag = image.tag.iter().map(|tag| ("org.opencontainers.image.ref.name".to_string(), tag.clone()));
        let tag: Vec<(String, String)> = tag.collect();
        let tagged = |here: bool| (here && !tag.is_empty()).then(|| ("annotations", json::strings(&tag)));
        let more = [Some(("platform", object(platform))), tagged(!image.nested)];
        let mut descriptors =
            vec![descriptor(&manifest_type, &manifest, manifest_json.len(), more.into_iter().flatten())];
        if image.attestation {
            descriptors.push(self.attestation(&manifest));
        }
        if image.nested {
            let index_json = index_json(&index_type, descriptors);
            let index = self.blob(&index_json, Some(index_json.clone()));
            descriptors = vec![descriptor(&index_type, &index, index_json.len(), tagged(true))];
        }
        self.descriptors.extend(descriptors);
        Built { manifest, config, layers, diff_ids: image.diff_ids() }
    }

    /// Adds what buildkit adds beside an image: a manifest for the platform `unknown/unknown`.
    fn attestation(&mut self, subject: &str) -> Json {
        let oci = ImageSpec::default();
        let [manifest_type, _, config_type, _] = oci.media_types(Compression::None);
        let statement =
            br#"{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://slsa.dev/provenance/v0.2"}"#;
        let statement_digest = self.blob(statement, Some(statement.to_vec()));
        let unknown = || object([("architecture", string("unknown")), ("os", string("unknown"))]);
        let rootfs = object([
            ("type", string("layers")),
            ("diff_ids", json::array([string(&format!("sha256:{statement_digest}"))])),
        ]);
        let config_json = object([
            ("architecture", string("unknown")),
            ("os", string("unknown")),
            ("config", Json("{}".into())),
            ("rootfs", rootfs),
        ])
        .into_bytes();
        let config = self.blob(&config_json, Some(config_json.clone()));
        let layer = descriptor("application/vnd.in-toto+json", &statement_digest, statement.len(), []);
        let manifest_json = object([
            ("schemaVersion", Json("2".into())),
            ("mediaType", string(&manifest_type)),
            ("config", descriptor(&config_type, &config, config_json.len(), [])),
            ("layers", json::array([layer])),
        ])
        .into_bytes();
        let manifest = self.blob(&manifest_json, Some(manifest_json.clone()));
        let annotations = [
            ("vnd.docker.reference.type".to_string(), "attestation-manifest".to_string()),
            ("vnd.docker.reference.digest".to_string(), format!("sha256:{subject}")),
        ];
        let more = [("annotations", json::strings(&annotations)), ("platform", unknown())];
        descriptor(&manifest_type, &manifest, manifest_json.len(), more)
    }

    /// Returns all files, `oci-layout` and `index.json` included.
    fn finished(&self) -> Files {
        let mut files = self.files.clone();
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        let index_type = &ImageSpec::default().media_types(Compression::None)[1];
        files.insert("index.json".into(), index_json(index_type, self.descriptors.clone()));
        files
    }
}

fn index_json(media_type: &str, descriptors: Vec<Json>) -> Vec<u8> {
    object([
        ("schemaVersion", Json("2".into())),
        ("mediaType", string(media_type)),
        ("manifests", json::array(descriptors)),
    ])
    .into_bytes()
}

fn descriptor(
    media_type: &str,
    digest: &str,
    size: usize,
    more: impl IntoIterator<Item = (&'static str, Json)>,
) -> Json {
    let members = [
        ("mediaType", string(media_type)),
        ("digest", string(&format!("sha256:{digest}"))),
        ("size", Json(size.to_string())),
    ];
    object(members.into_iter().chain(more))
}

/// Flips one bit in the middle.
fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes
}

/// An OCI layout directory; every `add` leaves it complete.
#[derive(Debug)]
pub struct OciLayout {
    path: PathBuf,
    layout: Layout,
}

impl OciLayout {
    /// Makes an empty layout at `path`, which is created when missing.
    ///
    /// # Errors
    /// What writing a file answers.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<OciLayout> {
        let layout = OciLayout { path: path.into(), layout: Layout::default() };
        layout.write()?;
        Ok(layout)
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds an image.
    ///
    /// # Errors
    /// What writing a file answers.
    pub fn add(&mut self, image: &ImageSpec) -> io::Result<Built> {
        let built = self.layout.add(image);
        self.write()?;
        Ok(built)
    }

    fn write(&self) -> io::Result<()> {
        std::fs::create_dir_all(self.path.join("blobs/sha256"))?;
        self.layout.finished().iter().try_for_each(|(path, bytes)| std::fs::write(self.path.join(path), bytes))
    }
}

/// Makes an OCI archive: the tar of a layout with these images, `index.json` after the blobs.
pub fn oci_archive(images: &[ImageSpec]) -> Vec<u8> {
    let mut layout = Layout::default();
    for image in images {
        layout.add(image);
    }
    archive(&layout.finished())
}

fn archive(files: &Files) -> Vec<u8> {
    let tar = ["blobs/", "blobs/sha256/"].into_iter().fold(TarBuilder::new(), |tar, path| tar.entry(&dir(path)));
    files.iter().fold(tar, |tar, (path, bytes)| tar.entry(&file(path, bytes))).finish()
}

#[cfg(test)]
mod tests;
