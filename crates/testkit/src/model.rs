//! The reference model: `docs/spec-notes.md` as a program that keeps everything in memory.
//!
//! Owns: the meaning of a list of layers. Refuses to know: archives, file systems, overlays, speed. The headings of the
//! page are the sections of this code; a comment quotes the rule where the code alone does not say it.
//!
//! A name is found again from the root each time it is needed, inodes are numbers, directories are maps: nothing is
//! cached, so nothing can be stale.

mod add;
mod delete;
mod disk;
mod names;

pub use names::{Meaning, Reason, Refusal, Warning};

use crate::entry::EntrySpec;
use crate::tree::Tree;
use disk::Disk;
use names::Layer;
use std::collections::BTreeMap;

/// What a name below a symlink of a lower layer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LowerSymlinks {
    /// Resolved inside the root file system.
    #[default]
    Resolve,
    /// Replaced by a new directory.
    Shadow,
}

/// What a root entry of a layer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootEntry {
    /// Nothing.
    #[default]
    Ignore,
    /// The last layer that has one sets the root's metadata.
    Apply,
}

/// The choices that change a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Names below symlinks of lower layers.
    pub lower_symlinks: LowerSymlinks,
    /// Refuse what a conforming builder would not write.
    pub strict: bool,
    /// Root entries.
    pub root_entry: RootEntry,
    /// The tree is made for mounts that read `user.overlay.*`: such xattrs of a layer are dropped.
    pub userxattr: bool,
    /// Keep `security.selinux`.
    pub selinux_keep: bool,
    /// Device nodes cannot be made, as in a user namespace (R2).
    pub skip_devices: bool,
}

/// A root file system made of the layers applied so far, bottom first.
#[derive(Debug, Clone)]
pub struct Model {
    options: Options,
    disk: Disk,
    /// Counts layers; names made by the layer being applied carry this number.
    layer: usize,
    warnings: Vec<Warning>,
}

impl Model {
    /// Makes an empty root: 0755, 0:0, mtime 0, no xattrs.
    pub fn new(options: Options) -> Model {
        Model { options, disk: Disk::new(), layer: 0, warnings: Vec::new() }
    }

    /// Applies one layer on top of those applied before.
    ///
    /// # Errors
    /// The layer is refused, and with it the image: the model is not to be used any more.
    pub fn apply(&mut self, entries: &[EntrySpec]) -> Result<(), Refusal> {
        self.layer += 1;
        let layer = Layer::read(entries, &self.options, &mut self.warnings)?;
        self.delete(&layer);
        self.add(&layer)
    }

    /// Applies all layers of an image to an empty root, bottom first.
    ///
    /// # Errors
    /// The first layer that is refused.
    pub fn of_image(options: Options, layers: &[Vec<EntrySpec>]) -> Result<Model, Refusal> {
        let mut model = Model::new(options);
        layers.iter().try_for_each(|layer| model.apply(layer))?;
        Ok(model)
    }

    /// Says what the name of each entry of a layer means, whatever stands below.
    ///
    /// # Errors
    /// The first entry that is refused for what it says itself.
    pub fn meanings(options: &Options, entries: &[EntrySpec]) -> Result<Vec<Meaning>, Refusal> {
        let layer = Layer::read(entries, options, &mut Vec::new())?;
        Ok(layer.entries.into_iter().map(|(_, meaning)| meaning).collect())
    }

    /// Returns the tree as it now is.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        let mut identity = BTreeMap::new();
        for (path, inode) in self.disk.names() {
            tree.0.insert(path.clone(), self.disk.node(inode));
            if !self.disk.is_dir(inode) {
                identity.insert(path, inode);
            }
        }
        tree.group_links(&identity);
        tree
    }

    /// Returns the warnings so far, in archive order within a layer's reading, then within its application.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    fn warn(&mut self, code: &'static str, path: &[u8]) {
        self.warnings.push(Warning { code, path: path.to_vec() });
    }
}

#[cfg(test)]
mod tests;
