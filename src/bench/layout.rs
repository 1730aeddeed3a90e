//! OCI image layouts, written.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ground::{Ground, Place, Room};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::stream::Codec;
use crate::unpack::LayerOutcome;

/// The name that written images have in their layout.
pub(super) const TAG: &str = "bench";

/// A layout in the making.
pub(super) struct Layout<'a> {
    pub dir: &'a Path,
}

/// A layer that is in the layout.
pub(super) struct Blob {
    pub digest: Digest,
    pub size: u64,
    pub codec: Codec,
}

impl<'a> Layout<'a> {
    /// Begins a layout in an empty directory.
    pub fn new(dir: &'a Path) -> io::Result<Layout<'a>> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        Ok(Layout { dir })
    }

    /// Returns where a blob belongs.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Writes the documents of the only image; returns the digest of its manifest.
    pub fn finish(&self, config: &[u8], layers: &[Blob]) -> io::Result<Digest> {
        let describe = |media_type: &str, digest: &Digest, size: u64| {
            let media_type = format!("application/vnd.oci.image.{media_type}");
            json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
        };
        let layers: Vec<Value> = layers
            .iter()
            .map(|blob| {
                let suffix = match blob.codec {
                    Codec::Plain => "",
                    Codec::Gzip => "+gzip",
                    Codec::Zstd => "+zstd",
                };
                describe(&format!("layer.v1.tar{suffix}"), &blob.digest, blob.size)
            })
            .collect();
        let config_digest = self.document(config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("config.v1+json", &config_digest, config.len() as u64),
            "layers": layers,
        })
        .to_string();
        let digest = self.document(manifest.as_bytes())?;
        let mut named = describe("manifest.v1+json", &digest, manifest.len() as u64);
        if let Some(fields) = named.as_object_mut() {
            fields.insert("annotations".into(), json!({ "org.opencontainers.image.ref.name": TAG }));
        }
        let index = json!({ "schemaVersion": 2, "manifests": [named] });
        fs::write(self.dir.join("index.json"), index.to_string())?;
        fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(digest)
    }

    fn document(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        fs::write(self.blob(&digest), bytes)?;
        Ok(digest)
    }
}

/// An image as a layout of its own, the same for every tool, in RAM where that is permitted.
pub(super) struct Exported {
    ground: Ground,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// The layers, bottom first.
    pub layers: Vec<ExportedLayer>,
}

/// One layer of it.
pub(super) struct ExportedLayer {
    pub path: PathBuf,
    pub codec: Codec,
    pub size: u64,
    pub digest: Digest,
    pub diff_id: Digest,
}

impl Exported {
    /// Writes the image; `outcomes` is what a pull of it found.
    pub fn new(mut image: Image, outcomes: &[LayerOutcome], place: Place) -> Result<Exported> {
        if let ([layer], [outcome]) = (image.layers.as_slice(), outcomes)
            && layer.diff_id.is_none()
        {
            image.settle_layer(outcome.diff_id)?;
        }
        let ram = if place == Place::Here { Place::Here } else { Place::Tmpfs };
        let ground = Ground::new(ram, Room { bytes: 0, inodes: 0 })?;
        let dir = ground.path().join("image");
        let fail = |e: io::Error| Error::io(format!("write a layout to {}", dir.display()), e);
        let layout = Layout::new(&dir).map_err(fail)?;
        let (mut blobs, mut layers) = (Vec::new(), Vec::new());
        for (index, outcome) in outcomes.iter().enumerate() {
            let digest = outcome.digest.0;
            if digest.algorithm() != Algorithm::Sha256 {
                return Err(Error::new(ErrorKind::Unsupported, "other tools take layers with SHA-256 digests only"));
            }
            let path = layout.blob(&digest);
            let mut file = File::create(&path).map_err(fail)?;
            io::copy(&mut image.open_layer(index)?, &mut file).map_err(fail)?;
            let mut head = [0; 4];
            io::Read::read_exact(&mut File::open(&path).map_err(fail)?, &mut head).map_err(fail)?;
            let (codec, size) = (super::decode::codec_of(&head), outcome.compressed_bytes);
            blobs.push(Blob { digest, size, codec });
            layers.push(ExportedLayer { path, codec, size, digest, diff_id: outcome.diff_id.0 });
        }
        let manifest = layout.finish(&image.config_raw, &blobs).map_err(fail)?;
        Ok(Exported { ground, manifest, layers })
    }

    /// Returns the layout's directory.
    pub fn dir(&self) -> PathBuf {
        self.ground.path().join("image")
    }

    /// Writes the layout as one archive beside it, if that is not done yet, and returns where.
    pub fn archive(&self) -> Result<PathBuf> {
        let path = self.ground.path().join("image.tar");
        if !path.exists() {
            let write = || {
                let mut archive = tar::Builder::new(File::create(&path)?);
                archive.append_dir_all(".", self.dir())?;
                archive.finish()
            };
            write().map_err(|e| Error::io(format!("write {}", path.display()), e))?;
        }
        Ok(path)
    }

    /// Returns the order in which layers are best begun: the biggest first.
    pub fn biggest_first(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(self.layers.get(*index).map_or(0, |layer| layer.size)));
        order
    }
}
