//! What the members of an image archive mean: Docker's `manifest.json`, an OCI layout, or both at once.
//!
//! Owns: the choice between the two (I15), the meaning of `manifest.json` (I14;
//! <https://github.com/moby/docker-image-spec/blob/main/spec.md#combined-image-json--filesystem-changeset-format>).
//! Refuses to know: how members are read, so the same code serves files and streams.

use std::cell::Cell;
use std::fmt;

use super::json::{self, Config, DockerImage};
use super::layout::blob_name;
use super::outer::Magic;
use super::platform::Platform;
use super::reference::Selector;
use super::resolve::{
    Blobs, OpenBlob, Wanted, diff_ids, familiar, list, missing, read_limited, resolve, short, verify_digest,
};
use super::stream::ArchiveKind;
use super::{Image, LayerBlobs, LayerDescriptor};
use crate::digest::{Algorithm, BlobDigest, Digest, ImageId};
use crate::error::{Error, ErrorKind, escape};
use crate::policy::Limit;

/// A member that holds a layer.
pub(crate) struct LayerFile {
    /// Bytes of the member.
    pub size: u64,
    /// What it is packed with.
    pub magic: Magic,
}

/// Members by name; names are cleaned and links followed.
pub(crate) trait Files {
    /// Opens a document; `None` when it is not there.
    fn open(&self, name: &[u8]) -> Result<Option<OpenBlob>, Error>;
    /// Looks at a layer; `None` when it is not there.
    fn layer(&self, name: &[u8]) -> Result<Option<LayerFile>, Error>;
    /// Says whether a member of that cleaned name is there.
    fn has(&self, name: &str) -> bool;
}

/// Where a layer should be.
pub(crate) struct LayerMember {
    /// The member's name.
    pub name: Vec<u8>,
    digest: Option<BlobDigest>,
}

impl fmt::Display for LayerMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.digest {
            Some(digest) => write!(f, "layer {digest}"),
            None => write!(f, "layer \"{}\"", escape(&self.name)),
        }
    }
}

/// The chosen image and the member of each layer, bottom first.
pub(crate) struct Picked {
    pub image: Image,
    pub members: Vec<LayerMember>,
}

/// A view of an archive's members as the blobs of a layout.
struct AsBlobs<'a>(&'a dyn Files);

impl Blobs for AsBlobs<'_> {
    fn open(&self, digest: &BlobDigest) -> Result<Option<OpenBlob>, Error> {
        self.0.open(blob_name(digest).as_bytes())
    }
}

/// Finds the wanted image among the members of an archive.
///
/// An archive of Docker 25 or later is a layout and has a `manifest.json`: the layout is preferred, because it has the
/// manifest's digest; where it lacks the image or its layers (moby#47065), `manifest.json` decides.
///
/// # Errors
/// As [`resolve`], and `NotFound` when the archive is of another kind.
pub(crate) fn pick(files: &dyn Files, kind: ArchiveKind, wanted: &Wanted<'_>) -> Result<Picked, Error> {
    let (layout, docker) = (files.has("index.json"), files.has("manifest.json"));
    let not_found = |message: &str, hint: &str| Err(Error::new(ErrorKind::NotFound, message).with_hint(hint));
    match (kind, layout, docker) {
        (ArchiveKind::Oci, true, _) => pick_oci(files, wanted, false),
        (ArchiveKind::Oci, false, true) => {
            not_found("the archive holds no image layout: it has no index.json", "use docker-archive:")
        }
        (ArchiveKind::Docker, true, false) => {
            not_found("the archive is not Docker's: it has no manifest.json", "use oci-archive:")
        }
        (ArchiveKind::Sniff, true, false) => pick_oci(files, wanted, false),
        (ArchiveKind::Docker | ArchiveKind::Sniff, true, true) => match pick_oci(files, wanted, true) {
            Err(err) if err.kind() == ErrorKind::NotFound => pick_docker(files, wanted),
            other => other,
        },
        (ArchiveKind::Docker | ArchiveKind::Sniff, false, true) => pick_docker(files, wanted),
        (_, false, false) if files.has("repositories") => {
            Err(Error::new(ErrorKind::Unsupported, "the archive is older than Docker 1.10: it has no manifest.json")
                .with_hint("load and save it again with a current docker or podman"))
        }
        (_, false, false) => not_found(
            "this is no image archive: it has no index.json and no manifest.json",
            "if it is the tar of a single layer or root file system, use layer:FILE or layer:-",
        ),
    }
}

fn pick_oci(files: &dyn Files, wanted: &Wanted<'_>, may_lack_layers: bool) -> Result<Picked, Error> {
    let required = |name: &str| match files.open(name.as_bytes())? {
        Some(blob) => read_limited(blob.reader, name, wanted.limits, Limit::JsonBytes),
        None => Err(Error::new(ErrorKind::NotFound, format!("the archive has no {name}"))),
    };
    json::check_layout(&required("oci-layout")?)?;
    let wanted = Wanted { may_lack_layers, ..*wanted };
    let mut image = resolve(&AsBlobs(files), &required("index.json")?, &wanted)?;
    let members: Vec<LayerMember> = image
        .layers
        .iter()
        .map(|layer| LayerMember {
            name: layer.digest.map(|d| blob_name(&d).into_bytes()).unwrap_or_default(),
            digest: layer.digest,
        })
        .collect();
    image.reference = String::new();
    Ok(Picked { image, members })
}

/// Bytes of configs read to find one image, in units of the limit on one of them.
const MAX_CONFIGS: u64 = 16;

struct Docker<'a> {
    files: &'a dyn Files,
    wanted: &'a Wanted<'a>,
    read: Cell<u64>,
}

fn pick_docker(files: &dyn Files, wanted: &Wanted<'_>) -> Result<Picked, Error> {
    let blob = files.open(b"manifest.json")?.ok_or_else(|| missing("manifest.json"))?;
    let raw = read_limited(blob.reader, "manifest.json", wanted.limits, Limit::ManifestBytes)?;
    let mut images = DockerImage::list(&raw)?;
    // The same image may be listed once per name.
    let mut at = std::collections::HashMap::new();
    let mut names: Vec<Vec<String>> = Vec::new();
    images.retain(|image| {
        let key = (image.config.clone(), image.layers().to_vec());
        let first = *at.entry(key).or_insert(names.len());
        match names.get_mut(first) {
            Some(known) => {
                for name in image.names() {
                    if !known.contains(name) {
                        known.push(name.clone());
                    }
                }
                false
            }
            None => {
                names.push(image.names().to_vec());
                true
            }
        }
    });
    let images: Vec<(DockerImage, Vec<String>)> = images.into_iter().zip(names).collect();
    Docker { files, wanted, read: Cell::new(0) }.pick(&images)
}

type Named = (DockerImage, Vec<String>);

impl Docker<'_> {
    fn pick(&self, images: &[Named]) -> Result<Picked, Error> {
        let not_found = |message: String| Error::new(ErrorKind::NotFound, message).with_hint(self.list(images));
        if images.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "manifest.json lists no image"));
        }
        let mut found: Vec<&Named> = Vec::new();
        match self.wanted.selector {
            Selector::None => found.extend(images),
            Selector::Name(name) => {
                found.extend(images.iter().filter(|(_, names)| names.contains(name)));
                if found.is_empty() {
                    let wanted = familiar(name);
                    found.extend(images.iter().filter(|(_, names)| names.iter().any(|n| familiar(n) == wanted)));
                }
                if found.is_empty() {
                    return Err(not_found(format!("no image is named \"{}\"", short(name))));
                }
            }
            Selector::Digest(digest) => {
                for named in images {
                    if self.config(&named.0)?.0.0 == digest.0 {
                        found.push(named);
                    }
                }
                if found.is_empty() {
                    return Err(not_found(format!("no image has the id {digest}")));
                }
            }
        }
        let (platform, fit) = self.wanted.platform();
        let alone = found.len() == 1;
        // Different names are different images; one name for several is one image for several platforms.
        if found.iter().any(|(_, names)| found.first().is_some_and(|(_, first)| first != names))
            && *self.wanted.selector == Selector::None
        {
            return Err(not_found(format!("{} images are here, which one?", found.len())));
        }
        let mut best: Option<(u32, &Named)> = None;
        let mut tied = false;
        let mut platforms = Vec::new();
        for named in found {
            let has = self.config(&named.0)?.2.platform();
            let rank = match (self.wanted.platform, alone) {
                (None, true) => Some(0),
                (_, true) if has.is_unknown() => Some(0),
                _ => platform.rank(&has, fit),
            };
            platforms.push(has);
            let Some(rank) = rank else { continue };
            match best {
                Some((r, _)) if r < rank => {}
                Some((r, _)) if r == rank => tied = true,
                _ => {
                    best = Some((rank, named));
                    tied = false;
                }
            }
        }
        match best {
            Some(_) if tied => {
                Err(not_found("several images are here for one name and platform, which one?".to_owned()))
            }
            Some((_, named)) => self.image(named),
            None => Err(Error::new(ErrorKind::NotFound, format!("no image is here for {platform}"))
                .with_hint(list(platforms.iter().map(Platform::to_string)))),
        }
    }

    /// Reads a config; its id is the digest of its bytes, and where its name is made of a digest the two must agree.
    fn config(&self, image: &DockerImage) -> Result<(ImageId, Vec<u8>, Config), Error> {
        let name = image.config.as_str();
        let what = format!("config \"{}\"", short(name));
        let limits = self.wanted.limits;
        let blob = self.files.open(name.as_bytes())?.ok_or_else(|| missing(&what))?;
        let read = self.read.get().saturating_add(blob.size.max(4096));
        if read > limits.max_json_bytes.saturating_mul(MAX_CONFIGS) {
            let found = format_args!("more than {MAX_CONFIGS} times that in all configs");
            return Err(limits.exceeded(Limit::JsonBytes, found));
        }
        self.read.set(read);
        let raw = read_limited(blob.reader, &what, limits, Limit::JsonBytes)?;
        let mut id = Digest::of(Algorithm::Sha256, &raw);
        if let Some(promised) = digest_in_name(name) {
            verify_digest(&raw, &promised, &what)?;
            id = promised.0;
        }
        let config = Config::parse(&raw, &what)?;
        Ok((ImageId(id), raw, config))
    }

    fn image(&self, (docker, names): &Named) -> Result<Picked, Error> {
        let (image_id, config_raw, config) = self.config(docker)?;
        let what = format!("config {image_id}");
        let diff_ids = diff_ids(&config, &what, docker.layers().len(), self.wanted.limits)?;
        let mut layers = Vec::with_capacity(diff_ids.len());
        let mut members = Vec::with_capacity(diff_ids.len());
        for (name, diff_id) in docker.layers().iter().zip(diff_ids) {
            let file = self.files.layer(name.as_bytes())?;
            let digest = name.strip_prefix("blobs/").and_then(|n| n.replacen('/', ":", 1).parse().ok());
            layers.push(LayerDescriptor {
                digest,
                size: file.as_ref().map(|f| f.size),
                media_type: match file.map(|f| f.magic) {
                    Some(Magic::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    Some(Magic::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
                    _ => "application/vnd.docker.image.rootfs.diff.tar",
                }
                .to_owned(),
                diff_id: Some(diff_id),
            });
            members.push(LayerMember { name: name.clone().into_bytes(), digest });
        }
        let image = Image {
            reference: String::new(),
            names: names.clone(),
            manifest_digest: None,
            image_id: Some(image_id),
            platform: config.platform(),
            layers,
            config_raw,
            manifest_raw: None,
            blobs: LayerBlobs::none(Vec::new()),
        };
        Ok(Picked { image, members })
    }

    /// Lists what is there: names, and for images without one the id that selects them.
    fn list(&self, images: &[Named]) -> String {
        list(images.iter().map(|(image, names)| {
            if names.is_empty() {
                return match self.config(image) {
                    Ok((id, ..)) => format!("@{id}"),
                    Err(_) => format!("an unnamed image with config {}", short(&image.config)),
                };
            }
            names.iter().take(4).map(|n| short(n)).collect::<Vec<_>>().join(" = ")
        }))
    }
}

/// Returns the digest that a config is named after: `blobs/sha256/HEX` or `sha256:HEX`. `HEX.json` is only a habit:
/// tools that edit a config keep its name, and Docker and containerd load the result.
fn digest_in_name(name: &str) -> Option<BlobDigest> {
    match name.strip_prefix("blobs/") {
        Some(blob) => blob.replacen('/', ":", 1).parse().ok(),
        None => name.parse().ok(),
    }
}
