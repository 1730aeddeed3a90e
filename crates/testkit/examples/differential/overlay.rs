//! What Linux shows of layer directories mounted as lowerdirs of one overlay.
//!
//! Owns: merging, whiteouts (character devices 0:0), opaque directories, and the names that leak where a directory is
//! not merged. Left out, because no imitation makes them: redirects, metacopy, xattr whiteouts.

use crate::disk::{Disk, Ino, ROOT, join};
use std::collections::{BTreeMap, BTreeSet};
use testkit::Tree;
use testkit::tree::{Kind, Node};

/// The xattr of an opaque directory.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// A directory or other node of one layer.
type Real = (usize, Ino);

/// Returns the mounted view; `layers` stand topmost first.
pub fn merged(layers: &[&Disk]) -> Tree {
    let mut merge = Merge { layers, tree: Tree::default(), identity: BTreeMap::new() };
    merge.directory(Vec::new(), (0..layers.len()).map(|layer| (layer, ROOT)).collect());
    merge.tree.group_links(&merge.identity);
    merge.tree
}

pub fn is_whiteout(node: &Node) -> bool {
    node.kind == Kind::Char(0, 0)
}

struct Merge<'a> {
    layers: &'a [&'a Disk],
    tree: Tree,
    identity: BTreeMap<Vec<u8>, Real>,
}

impl Merge<'_> {
    fn node(&self, (layer, ino): Real) -> &Node {
        self.layers[layer].node(ino)
    }

    fn opaque(&self, real: Real) -> bool {
        self.node(real).xattrs.get(OPAQUE).is_some_and(|v| v == b"y")
    }

    fn directory(&mut self, path: Vec<u8>, reals: Vec<Real>) {
        let mut node = self.node(reals[0]).clone();
        node.xattrs.retain(|name, _| !name.starts_with(b"trusted.overlay."));
        self.tree.0.insert(path.clone(), node);
        let names: BTreeSet<&Vec<u8>> =
            reals.iter().flat_map(|(layer, ino)| self.layers[*layer].children(*ino).keys()).collect();
        for name in names.into_iter().cloned().collect::<Vec<_>>() {
            let path = join(&path, &name);
            let hits: Vec<Real> = reals
                .iter()
                .filter_map(|(layer, ino)| Some((*layer, *self.layers[*layer].children(*ino).get(&name)?)))
                .collect();
            let top = hits[0];
            match &self.node(top).kind {
                Kind::Char(0, 0) if reals.len() > 1 => {}
                Kind::Char(0, 0) => drop(self.tree.0.insert(path, Node::new(Kind::Phantom))),
                Kind::Dir => {
                    let mut below = Vec::new();
                    for hit in hits.into_iter().take_while(|hit| self.node(*hit).kind == Kind::Dir) {
                        below.push(hit);
                        if self.opaque(hit) {
                            break;
                        }
                    }
                    self.directory(path, below);
                }
                _ => {
                    let mut node = self.node(top).clone();
                    node.xattrs.retain(|name, _| !name.starts_with(b"trusted.overlay."));
                    self.identity.insert(path.clone(), top);
                    self.tree.0.insert(path, node);
                }
            }
        }
    }
}
