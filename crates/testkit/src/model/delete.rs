//! Phase 1: deletions, on the lower tree only.

use super::disk::Walk;
use super::names::{Layer, Meaning, Path};
use super::{LowerSymlinks, Model};

impl Model {
    /// Runs every whiteout and opaque marker of the layer, wherever it stands in the archive, parents first.
    pub(super) fn delete(&mut self, layer: &Layer<'_>) {
        // "Sorted by the number of components of the literal path of the thing hidden (an opaque marker for `d` counts
        // as depth(d)+1), then by bytes of that path."
        let mut deletions: Vec<(usize, Vec<u8>, &Meaning)> = Vec::new();
        for (_, meaning) in &layer.entries {
            match meaning {
                Meaning::Whiteout(path) => deletions.push((path.len(), path.join(&b'/'), meaning)),
                Meaning::Opaque(path) => deletions.push((path.len() + 1, path.join(&b'/'), meaning)),
                _ => {}
            }
        }
        deletions.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));

        for (_, _, meaning) in deletions {
            match meaning {
                // "A whiteout removes NAME from the directory reached, with everything below it" (W1, W4, W17, W18).
                Meaning::Whiteout(path) => {
                    let Some((name, parent)) = path.split_last() else { continue };
                    if let Some(at) = self.reach_lower(layer, parent) {
                        self.disk.remove(&at, name);
                    }
                }
                // "An opaque marker removes all children of the directory reached" (W7, W8); it keeps its metadata.
                Meaning::Opaque(path) => {
                    if let Some(at) = self.reach_lower(layer, path) {
                        let dir = self.disk.dir(&at);
                        self.disk.clear(dir);
                    }
                }
                _ => {}
            }
        }
    }

    /// Walks the lower tree, as phase 1 has left it so far; `None`: there is nothing to hide (W10, W19, R-25).
    fn reach_lower(&self, layer: &Layer<'_>, path: &[Vec<u8>]) -> Option<Path> {
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next() {
            let here: Path = walk.at.iter().chain([&name]).cloned().collect();
            let inode = self.disk.look(&walk.at, &name)?.inode;
            if self.disk.is_dir(inode) {
                walk.enter(name);
            } else if let Some(target) = self.disk.target(inode)
                // A directory that this layer describes anywhere is a real directory: the symlink is not followed.
                && !layer.directories.contains(&here)
                && self.options.lower_symlinks == LowerSymlinks::Resolve
            {
                walk.expand(target).ok()?;
            } else {
                return None;
            }
        }
        Some(walk.at)
    }
}
