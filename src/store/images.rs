//! Images: names for chains of layers, and what keeps those from being collected.

use std::fs;
use std::path::Path;

use super::lock::{Locks, Mode, What};
use super::publish::{rename_new, undamaged};
use super::record::{self, FixupKey, Image, ImageRecord, LayerOptions, Replace, Time};
use super::{Id, Store, TEMPORARY, VERSION, io_at};
use crate::digest::{ChainId, Digest, ImageId};
use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;

/// Shortest part of an image id that stands for it, in hexadecimal digits.
const SHORTEST_ID: usize = 12;
/// How many names an error lists.
const LISTED: usize = 20;

/// An image to be recorded, with its documents as they came.
#[derive(Debug, Clone)]
pub struct NewImage<'a> {
    /// What the pull found out.
    pub image: Image,
    /// A name to find it by; taken away from another image that has it.
    pub name: Option<&'a str>,
    /// The config document.
    pub config: &'a [u8],
    /// The manifest document, where there is one.
    pub manifest: Option<&'a [u8]>,
}

impl Image {
    /// Returns the store names of everything that the image may stand on: its layers, and a fix-up above each.
    pub fn needs(&self) -> Vec<Id> {
        let options = LayerOptions::from(&self.options);
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id).collect();
        let layers = diff_ids.iter().map(|diff_id| Id::of_layer(diff_id, &options));
        let fixups = ChainId::of_layers(&diff_ids)
            .into_iter()
            .map(|chain_id| Id::of_fixup(&FixupKey { chain_id, options: self.options }));
        layers.chain(fixups).collect()
    }
}

impl Store {
    /// Records an image whose layers are all published, and makes those durable where this handle is; an image pulled again keeps its names and gets the new one too.
    ///
    /// # Errors
    /// `Integrity` if a document has not the digest that the image names; `NotFound` if a layer is not in the store.
    pub fn put_image(&self, new: NewImage<'_>) -> Result<ImageRecord> {
        let NewImage { image, name, config, manifest } = new;
        same_digest("config", &image.image_id.0, config)?;
        if let (Some(digest), Some(manifest)) = (&image.manifest_digest, manifest) {
            same_digest("manifest", &digest.0, manifest)?;
        }
        let id = Id::of_image(&image.image_id);
        let dir = self.object("images", &id);
        let locks = self.change_images()?;
        let options = LayerOptions::from(&image.options);
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            let found = self.layer(&layer.diff_id, &options)?.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "layer is not in the store").with_layer(layer.diff_id)
            })?;
            layers.push(found);
        }
        if self.durable() {
            let mut fixups = Vec::new();
            for id in image.needs() {
                fixups.extend(self.fixup_by_id(&id)?);
            }
            self.upgrade_durable(&mut layers, &mut fixups)?;
        }
        let now = Time::now();
        let old = undamaged(record::read::<ImageRecord>(&dir.join("record.json")))?;
        let mut record = ImageRecord {
            version: VERSION,
            image,
            names: Vec::new(),
            durable: self.durable_now(),
            created: old.as_ref().map_or(now, |old| old.created),
            updated: now,
        };
        record.names = old.map(|old| old.names).unwrap_or_default();
        if let Some(name) = name.filter(|name| !record.names.iter().any(|n| n == name)) {
            record.names.push(name.to_owned());
        }
        let bytes = record::encode(&record)?;
        if dir.join("record.json").exists() {
            // The documents come first: the record is what makes them count.
            if let Some(manifest) = manifest {
                self.write_file(&dir.join("manifest.json"), manifest, Replace::Yes)?;
            }
            self.write_file(&dir.join("config.json"), config, Replace::Yes)?;
            self.write_file(&dir.join("record.json"), &bytes, Replace::Yes)?;
        } else {
            self.discard(&dir)?;
            self.new_image(&dir, config, manifest, &bytes)?;
        }
        // From here on the name stands twice; the newer record wins wherever names are looked up.
        fail_point("image.before-untag")?;
        if let Some(name) = name {
            self.take_name(name, Some(&record.image.image_id))?;
        }
        drop(locks);
        Ok(record)
    }

    fn new_image(&self, dir: &Path, config: &[u8], manifest: Option<&[u8]>, record: &[u8]) -> Result<()> {
        let staging = self.dir("staging");
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&staging)
            .map_err(|e| io_at("create a directory in", &staging, e))?;
        let write = |name: &str, bytes: &[u8]| -> Result<()> {
            let path = temporary.path().join(name);
            fs::write(&path, bytes).map_err(|e| io_at("write", &path, e))?;
            if self.durable() {
                fs::File::open(&path).and_then(|f| f.sync_all()).map_err(|e| io_at("sync", &path, e))?;
            }
            Ok(())
        };
        write("config.json", config)?;
        if let Some(manifest) = manifest {
            write("manifest.json", manifest)?;
        }
        write("record.json", record)?;
        self.sync_dir(temporary.path())?;
        fail_point("image.before-rename")?;
        rename_new(temporary.path(), dir)?;
        // It has another name now; there is nothing left to clean up under the old one.
        let _ = temporary.keep();
        fail_point("image.after-rename")?;
        self.sync_dir(&self.dir("images"))
    }

    /// Returns every image, in the order of first pulling. A name that stands twice is the newer image's.
    ///
    /// # Errors
    /// `Unsupported` for a record of an unknown version.
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        let dir = self.dir("images");
        let mut out: Vec<ImageRecord> = Vec::new();
        for name in record::names(&dir)? {
            out.extend(undamaged(record::read(&dir.join(name).join("record.json")))?);
        }
        out.sort_by_key(|record| (std::cmp::Reverse(record.updated), record.image.image_id));
        let mut seen = std::collections::HashSet::new();
        for record in &mut out {
            record.names.retain(|name| seen.insert(name.clone()));
        }
        out.sort_by_key(|record| (record.created, record.image.image_id));
        Ok(out)
    }

    /// Finds an image by name, or by at least twelve digits of its id, with or without `id:` or `sha256:` before them.
    ///
    /// # Errors
    /// `NotFound` if none or several fit; the message lists what is there.
    pub fn find_image(&self, wanted: &str) -> Result<ImageRecord> {
        let images = self.images()?;
        let by_name = images.iter().find(|record| record.names.iter().any(|name| name == wanted));
        if let Some(found) = by_name {
            return Ok(found.clone());
        }
        let bare = wanted.strip_prefix("id:").unwrap_or(wanted);
        let fits = |record: &&ImageRecord| {
            let hex = bare.strip_prefix("sha256:").unwrap_or(bare);
            record.image.image_id.to_string() == bare
                || (hex.len() >= SHORTEST_ID && record.image.image_id.0.hex().starts_with(hex))
        };
        let found: Vec<&ImageRecord> = images.iter().filter(fits).collect();
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            [] => Err(Error::new(ErrorKind::NotFound, "no such image in the store").with_hint(listing(images.iter()))),
            many => Err(Error::new(ErrorKind::NotFound, format!("{} images fit", many.len()))
                .with_hint(listing(many.iter().copied()))),
        }
        .map_err(|e| e.with_image(wanted))
    }

    /// Returns an image's config document.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn image_config(&self, image_id: &ImageId) -> Result<Vec<u8>> {
        let path = self.object("images", &Id::of_image(image_id)).join("config.json");
        fs::read(&path).map_err(|e| io_at("read", &path, e).with_image(image_id))
    }

    /// Returns an image's manifest document, where it has one.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn image_manifest(&self, image_id: &ImageId) -> Result<Option<Vec<u8>>> {
        let path = self.object("images", &Id::of_image(image_id)).join("manifest.json");
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_at("read", &path, e).with_image(image_id)),
        }
    }

    /// Drops a name; an image that has no other is removed. Layers stay until garbage collection.
    ///
    /// Returns whether the image was removed.
    ///
    /// # Errors
    /// `NotFound` if no image has the name.
    pub fn untag(&self, name: &str) -> Result<bool> {
        let record = self
            .images()?
            .into_iter()
            .find(|record| record.names.iter().any(|n| n == name))
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "no image has this name").with_image(name))?;
        let locks = self.change_images()?;
        self.take_name(name, None)?;
        let dir = self.object("images", &Id::of_image(&record.image.image_id));
        let left = undamaged(record::read::<ImageRecord>(&dir.join("record.json")))?;
        let removed = left.is_none_or(|left| left.names.is_empty());
        if removed {
            self.discard_image(&dir)?;
        }
        drop(locks);
        self.tidy();
        Ok(removed)
    }

    /// Removes an image with all its names. Layers stay until garbage collection.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove_image(&self, image_id: &ImageId) -> Result<()> {
        let id = Id::of_image(image_id);
        let locks = self.change_images()?;
        if !self.discard_image(&self.object("images", &id))? {
            return Err(Error::new(ErrorKind::NotFound, "no such image in the store").with_image(image_id));
        }
        drop(locks);
        self.tidy();
        Ok(())
    }

    fn discard_image(&self, dir: &Path) -> Result<bool> {
        fail_point("image.before-discard")?;
        let found = self.discard(dir)?;
        fail_point("image.after-discard")?;
        self.sync_dir(&self.dir("images"))?;
        Ok(found)
    }

    /// Takes the right to change names: one writer at a time, and the gate against collection.
    fn change_images(&self) -> Result<Locks> {
        let locks = self.gate(Mode::Shared)?;
        locks.key(What::Images, None, Mode::Exclusive, &|| false)?;
        Ok(locks)
    }

    /// Takes `name` away from every image but `keep`.
    fn take_name(&self, name: &str, keep: Option<&ImageId>) -> Result<()> {
        let dir = self.dir("images");
        for entry in record::names(&dir)? {
            let path = dir.join(entry).join("record.json");
            let Some(mut record) = undamaged(record::read::<ImageRecord>(&path))? else { continue };
            if keep == Some(&record.image.image_id) || !record.names.iter().any(|n| n == name) {
                continue;
            }
            record.names.retain(|n| n != name);
            if keep.is_none() {
                record.updated = Time::now();
            }
            self.write_file(&path, &record::encode(&record)?, Replace::Yes)?;
        }
        Ok(())
    }
}

fn same_digest(what: &str, expected: &Digest, bytes: &[u8]) -> Result<()> {
    let found = Digest::of(expected.algorithm(), bytes);
    if found == *expected {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Integrity, format!("{what} digest differs: expected {expected}, found {found}")))
}

fn listing<'a>(images: impl Iterator<Item = &'a ImageRecord>) -> String {
    let mut lines: Vec<String> = images
        .map(|record| match record.names.first() {
            Some(name) => name.clone(),
            None => format!("id:{}", record.image.image_id.0.hex()),
        })
        .collect();
    lines.sort_unstable();
    let more = lines.len().saturating_sub(LISTED);
    lines.truncate(LISTED);
    match (lines.is_empty(), more) {
        (true, _) => "the store holds no image".to_owned(),
        (false, 0) => format!("there is: {}", lines.join(", ")),
        (false, more) => format!("there is: {} and {more} more", lines.join(", ")),
    }
}
