//! Who needs which layer, and what it takes: the arithmetic behind listings.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::lock::Mode;
use super::record::{ImageRecord, Lower};
use super::{Id, LayerRef, Store, io_at};
use crate::digest::ImageId;
use crate::error::{ErrorKind, Result};
use crate::mount;

/// Somebody who keeps a layer from being collected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// An image has it.
    Image(ImageId),
    /// A snapshot stands on it, by key or name.
    Snapshot(String),
    /// An overlay of the caller's mount namespace stands on it, by mount point.
    Mount(PathBuf),
    /// A running process pinned it.
    Pin,
}

/// A layer and who needs it.
#[derive(Debug, Clone)]
pub struct LayerUsage {
    /// The layer.
    pub layer: LayerRef,
    /// Everybody who needs it; empty: the next collection takes it.
    pub users: Vec<User>,
}

/// An image and the bytes of file content that it stands for; a layer that it has twice counts once.
#[derive(Debug, Clone)]
pub struct ImageUsage {
    /// The image.
    pub record: ImageRecord,
    /// Bytes in layers and fix-ups that no other image has.
    pub exclusive: u64,
    /// Bytes in layers and fix-ups that other images have too.
    pub shared: u64,
}

/// What the store holds, and for whom.
#[derive(Debug, Clone)]
pub struct StoreUsage {
    /// Layers that can be used, in the order of their names.
    pub layers: Vec<LayerUsage>,
    /// Images, in the order of first pulling.
    pub images: Vec<ImageUsage>,
}

impl LayerUsage {
    /// Returns how many images have it.
    pub fn images(&self) -> usize {
        self.users.iter().filter(|user| matches!(user, User::Image(_))).count()
    }

    /// Returns its bytes of file content, hard links counted once.
    pub fn bytes(&self) -> u64 {
        self.layer.facts().content_bytes
    }
}

impl Store {
    /// Tells who needs which layer, and what images take alone and together.
    ///
    /// # Errors
    /// `Unsupported` for a record of an unknown version; when the mount table cannot be read.
    pub fn usage(&self) -> Result<StoreUsage> {
        let images = self.images()?;
        let mut users: HashMap<Id, Vec<User>> = HashMap::new();
        let mut images_of: HashMap<Id, u32> = HashMap::new();
        for record in &images {
            let id = record.image.image_id;
            for needed in record.image.needs().into_iter().collect::<HashSet<_>>() {
                users.entry(needed).or_default().push(User::Image(id));
                *images_of.entry(needed).or_default() += 1;
            }
        }
        for snapshot in self.snapshots()? {
            for lower in &snapshot.lowers {
                if let Lower::Layer(id) = lower {
                    users.entry(*id).or_default().push(User::Snapshot(snapshot.key.clone()));
                }
            }
        }
        for (id, target) in self.mounted_objects("l")? {
            users.entry(id).or_default().push(User::Mount(target));
        }
        let gate = match self.gate(Mode::Exclusive) {
            // A disk that cannot be written has nobody at work on it.
            Err(e) if e.kind() == ErrorKind::Unsupported => None,
            gate => Some(gate?),
        };
        let pinned = self.pinned(false)?;
        drop(gate);
        for id in pinned {
            users.entry(id).or_default().push(User::Pin);
        }
        let layers: Vec<LayerUsage> = self
            .layers()?
            .into_iter()
            .map(|layer| LayerUsage { users: users.remove(&layer.id()).unwrap_or_default(), layer })
            .collect();
        let bytes: HashMap<Id, u64> = layers.iter().map(|l| (l.layer.id(), l.bytes())).collect();
        let mut out = Vec::with_capacity(images.len());
        for record in images {
            let layers = record.image.layers.len();
            let mut usage = ImageUsage { record, exclusive: 0, shared: 0 };
            let mut seen = HashSet::new();
            for (at, id) in usage.record.image.needs().into_iter().enumerate() {
                let taken = match bytes.get(&id) {
                    Some(bytes) => *bytes,
                    // The second half are fix-ups, of which hardly any image has one.
                    None if at >= layers => self.fixup_bytes(&id)?,
                    None => 0,
                };
                if seen.insert(id) {
                    let alone = images_of.get(&id).is_none_or(|n| *n <= 1);
                    let sum = if alone { &mut usage.exclusive } else { &mut usage.shared };
                    *sum = sum.saturating_add(taken);
                }
            }
            out.push(usage);
        }
        Ok(StoreUsage { layers, images: out })
    }

    /// Returns the bytes of file content in a fix-up; 0 where there is none.
    pub(super) fn fixup_bytes(&self, id: &Id) -> Result<u64> {
        let tree = self.object("l", id);
        if tree.is_dir() { content_bytes(&tree) } else { Ok(0) }
    }

    /// Returns the objects of this store's directory `dir` that overlays of the caller's mount namespace have among their
    /// layers, with the mount point of one of them.
    ///
    /// An object is known by its name and its parent's, whatever path to the store the mounter used.
    pub(super) fn mounted_objects(&self, dir: &str) -> Result<BTreeMap<Id, PathBuf>> {
        let mut out = BTreeMap::new();
        for found in mount::overlay_mounts().map_err(|e| e.with_hint("mount /proc to see what mounts need"))? {
            for path in found.lowers().into_iter().chain(found.upper()) {
                let object = path.ancestors().find(|p| p.parent().is_some_and(|parent| parent.ends_with(dir)));
                let name = object.and_then(|p| p.file_name()).and_then(|name| name.to_str());
                if let Some(id) = name.and_then(|name| name.parse::<Id>().ok()) {
                    out.entry(id).or_insert_with(|| found.target.clone());
                }
            }
        }
        Ok(out)
    }
}

/// Counts bytes of file content, without holes, hard links once.
fn content_bytes(root: &Path) -> Result<u64> {
    let mut bytes = 0u64;
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).map_err(|e| io_at("list", &path, e))? {
            let entry = entry.map_err(|e| io_at("list", &path, e))?;
            let meta = entry.metadata().map_err(|e| io_at("stat", &entry.path(), e))?;
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.is_file() && (meta.nlink() < 2 || linked.insert((meta.dev(), meta.ino()))) {
                bytes = bytes.saturating_add(meta.len().min(meta.blocks().saturating_mul(512)));
            }
        }
    }
    Ok(bytes)
}
