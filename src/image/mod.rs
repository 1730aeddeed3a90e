//! Image sources: from a reference to an image's documents and layer blobs.
//!
//! Owns: the reference grammar, OCI layouts as directories and archives, Docker archives in all their forms, single
//! layers, archives that can be read only once, platform choice, and the verification of every JSON document on the
//! way. Refuses to know: the store, and what layers contain — layer blobs come out raw; `stream` verifies them.
//! Invariants: an [`Image`] keeps its files open, so renaming or deleting them later changes nothing; no name from an
//! image is ever used as a path outside the layout or archive it came from; a list of layers is bottom first.

mod archive;
mod docker;
mod json;
mod layout;
mod members;
mod outer;
mod platform;
mod reference;
mod resolve;
mod single;
mod sniff;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex};

pub use platform::Platform;
pub use reference::{Input, Reference, Selector};
pub use single::synthesise_config;
pub use stream::{ArchiveKind, ArchiveStream, Collected, Member};

use crate::cancel::CancelToken;
use crate::digest::{BlobDigest, DiffId, Digest, ImageId};
use crate::error::{Error, ErrorKind, escape};
use crate::policy::Limits;

/// One layer as the manifest and the config describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob, where the source promises one: always in an OCI image, in a Docker archive only for
    /// members that are named after it.
    pub digest: Option<BlobDigest>,
    /// Size of the blob in bytes, as promised, or as found where nothing is promised.
    pub size: Option<u64>,
    /// Media type, as promised, or from the magic bytes where nothing is promised.
    pub media_type: String,
    /// Digest of the uncompressed layer; `None` only for `layer:` references before the layer was read.
    pub diff_id: Option<DiffId>,
}

impl LayerDescriptor {
    /// Checks that the media type is a tar layer (rule I6: other types are no error until they are to be unpacked).
    ///
    /// # Errors
    /// `Unsupported`, naming the type.
    pub fn check_unpackable(&self) -> Result<(), Error> {
        if json::is_layer(&self.media_type) {
            return Ok(());
        }
        let err = Error::new(
            ErrorKind::Unsupported,
            format!("layers of media type \"{}\" cannot be unpacked", escape(self.media_type.as_bytes())),
        );
        Err(match self.digest {
            Some(digest) => err.with_layer(digest),
            None => err,
        })
    }
}

/// One image: its ids, its documents and a way to its layers.
#[derive(Debug)]
pub struct Image {
    /// The reference it was opened by, in its canonical text form.
    pub reference: String,
    /// The names the source gives it, full ones first; may be empty.
    pub names: Vec<String>,
    /// Digest of the manifest; `None` where there is none (Docker archives, `layer:`).
    pub manifest_digest: Option<BlobDigest>,
    /// Digest of the config; `None` for `layer:` references until [`Image::settle_layer`].
    pub image_id: Option<ImageId>,
    /// What it is built for, by its config; words are empty where neither config nor index says.
    pub platform: Platform,
    /// The layers, bottom first.
    pub layers: Vec<LayerDescriptor>,
    /// The config, byte for byte; empty for `layer:` references until [`Image::settle_layer`].
    pub config_raw: Vec<u8>,
    /// The manifest, byte for byte, where there is one.
    pub manifest_raw: Option<Vec<u8>>,
    blobs: LayerBlobs,
}

impl Image {
    /// Opens the blob of layer `index` (0 is the bottom), raw and unverified, from its start. May be called often and
    /// from several threads; only `layer:-` can be opened once.
    ///
    /// # Errors
    /// `NotFound` naming the digest when the blob is missing; `Unsupported` for a media type that is no tar layer and
    /// for layers that went by in a stream; `Malformed` when the blob lies outside the layout or archive.
    pub fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, Error> {
        let layer = self.layers.get(index).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("the image has {} layers, none is number {index}", self.layers.len()),
            )
        })?;
        let open = || {
            layer.check_unpackable()?;
            self.blobs.open(index, layer)
        };
        open().map_err(|err: Error| err.with_image(&self.reference))
    }

    /// Completes an image of a single layer once the layer was read: sets its diff_id, config and image id.
    ///
    /// # Errors
    /// `Usage` when the image is no single layer of unknown diff_id.
    pub fn settle_layer(&mut self, diff_id: DiffId) -> Result<(), Error> {
        match self.layers.as_mut_slice() {
            [layer] if layer.diff_id.is_none() => layer.diff_id = Some(diff_id),
            _ => return Err(Error::new(ErrorKind::Usage, "only a single layer can be given a diff_id")),
        }
        self.config_raw = synthesise_config(diff_id, &self.platform);
        self.image_id = Some(ImageId(Digest::of(crate::digest::Algorithm::Sha256, &self.config_raw)));
        Ok(())
    }
}

/// Where the blobs of the layers are.
struct LayerBlobs {
    /// Content embedded in the descriptors, verified, per layer (I8).
    embedded: Vec<Option<Arc<[u8]>>>,
    place: Place,
}

enum Place {
    /// They went by in a stream, or there are none.
    Nowhere,
    /// In a layout directory, by digest.
    Layout(Arc<layout::Layout>),
    /// In an archive; per layer the member that holds it, or why there is none.
    Archive(Arc<archive::Archive>, Vec<Result<archive::Range, Arc<str>>>),
    /// A file of its own.
    File(Arc<std::fs::File>),
    /// A stream that can be taken once.
    Once(Mutex<Option<Box<dyn Read + Send>>>),
}

impl fmt::Debug for LayerBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.place {
            Place::Nowhere => "nowhere",
            Place::Layout(_) => "layout",
            Place::Archive(..) => "archive",
            Place::File(_) => "file",
            Place::Once(_) => "stream",
        })
    }
}

impl LayerBlobs {
    fn none(embedded: Vec<Option<Vec<u8>>>) -> LayerBlobs {
        let embedded = embedded.into_iter().map(|data| data.map(Arc::from)).collect();
        LayerBlobs { embedded, place: Place::Nowhere }
    }

    fn at(place: Place) -> LayerBlobs {
        LayerBlobs { embedded: Vec::new(), place }
    }

    /// Returns the embedded content of layer `index`.
    fn embedded(&self, index: usize) -> Option<Arc<[u8]>> {
        self.embedded.get(index).cloned().flatten()
    }

    fn open(&self, index: usize, layer: &LayerDescriptor) -> Result<Box<dyn Read + Send>, Error> {
        if let Some(data) = self.embedded(index) {
            return Ok(Box::new(Cursor::new(data)));
        }
        match &self.place {
            Place::Layout(layout) => {
                let digest = layer.digest.ok_or_else(|| Error::new(ErrorKind::Other, "layer without a digest"))?;
                match resolve::Blobs::open(&**layout, &digest)? {
                    Some(blob) => Ok(blob.reader),
                    None => Err(resolve::missing(&format!("layer {digest}"))),
                }
            }
            Place::Archive(archive, ranges) => match ranges.get(index) {
                Some(Ok(range)) => Ok(Box::new(archive.reader(*range))),
                Some(Err(why)) => Err(Error::new(ErrorKind::NotFound, why.to_string())),
                None => Err(Error::new(ErrorKind::Other, "layer without a place")),
            },
            Place::File(file) => Ok(Box::new(archive::RangeReader::whole(Arc::clone(file)))),
            Place::Once(stream) => {
                let taken = stream.lock().map_or_else(|poisoned| poisoned.into_inner().take(), |mut s| s.take());
                taken.ok_or_else(|| Error::new(ErrorKind::Unsupported, "standard input can be read only once"))
            }
            Place::Nowhere => Err(Error::new(ErrorKind::Unsupported, "the layers of a stream can be read only once")),
        }
    }
}

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The platform asked for. `None` prefers this machine's, and takes an image of another where it is the only one.
    pub platform: Option<Platform>,
    /// Limits on documents and archives.
    pub limits: Limits,
    /// Ends the wait for bytes of a pipe or of standard input; the reading that waited answers `Cancelled`.
    pub cancel: CancelToken,
}

/// An image, or the stream that will turn out to be one.
#[derive(Debug)]
pub enum Source {
    /// Its documents are read, its layers can be opened in any order.
    Image(Image),
    /// An archive that must be read once, in whatever order it comes: standard input, a pipe, a compressed archive.
    Stream(ArchiveStream),
}

/// Opens the image that `reference` names.
///
/// # Errors
/// `NotFound` when there is no such place, image, name, digest or platform, or when the choice is ambiguous — the hint
/// lists what is there; `Integrity` for documents that do not match their digest or size; `Malformed`, `Limit`;
/// `Unsupported` for what is no image and for [`Reference::Stored`], which only the store can open.
pub fn open(reference: &Reference, options: &OpenOptions) -> Result<Source, Error> {
    sniff::open(reference, options).map_err(|err| err.with_image(reference))
}
