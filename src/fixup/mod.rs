//! Settles what a layer could not know alone: replays its journal over the tree below and writes the difference.
//!
//! Owns: the semantics of a layer over lower layers (`docs/spec-notes.md`), as a symbolic tree that loads the lower tree
//! lazily ([`replay`](self)), and the *fix-up*: a layer directory for the place directly above the layer it corrects, such that
//! overlay(lower, layer, fix-up) is the tree that the rules ask for. Refuses to know: the store, compression, mounting.
//!
//! Invariants: the lower layers and the layer itself are only read; nothing is hard-linked into or out of them (it would
//! change their link counts for other images): content is reflinked, else copied. A layer whose journal needs nothing
//! from below gives an empty fix-up, which nobody mounts.

mod names;
mod replay;
mod tree;
mod write;

use std::fs::File;

use crate::apply::LiteralPath;
use crate::apply::journal::Reader;
use crate::error::Result;
use crate::merge::{ChainView, Layer, Marks};
use crate::policy::{Limits, LowerSymlinks, Ownership};
use crate::root::Dir;

pub(crate) use names::{Hides, NameChain, Sight, Was};

/// What a fix-up is made from.
pub struct FixupInput<'a> {
    /// The tree below the layer; no layers for the bottom.
    pub lower: ChainView,
    /// The layer's directory.
    pub layer: Dir,
    /// The layer's stash.
    pub stash: Dir,
    /// Opens the layer's journal anew.
    pub journal: &'a dyn Fn() -> Result<File>,
    /// How the layer's directory marks what it hides; the fix-up marks in the same way.
    pub marks: Marks,
    /// Whether owners can be set.
    pub ownership: Ownership,
    /// What a name below a symlink of a lower layer means.
    pub lower_symlinks: LowerSymlinks,
    /// Device nodes cannot be made here.
    pub skip_devices: bool,
    /// Bounds on memory and depth.
    pub limits: &'a Limits,
}

/// What a fix-up holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FixupFacts {
    /// Nodes made, whiteouts included; 0: the fix-up is empty and need not be mounted.
    pub nodes: u64,
    /// Whiteouts among them.
    pub whiteouts: u64,
    /// Names that were resolved through a symlink of a lower layer, in all.
    pub redirected: u64,
}

/// Computes the fix-up and writes it into the empty directory `target`.
///
/// `redirected` is called for each entry that lands elsewhere because its parent is a symlink of a lower layer, with the
/// name in the archive and the place where it lands.
///
/// # Errors
/// `Malformed` for a hard link whose target exists nowhere; refusals of the rules; `Limit` for a layer that takes too much memory or goes too deep; errors of system calls.
pub fn make_fixup(
    input: &FixupInput<'_>,
    target: &Dir,
    redirected: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<FixupFacts> {
    let mut replay = replay::Replay::new(&input.lower, input.lower_symlinks, input.marks, input.limits);
    let mut watch = Redirects(redirected);
    replay.deletions(&mut Reader::new((input.journal)()?)?, &mut watch)?;
    replay.entries(&mut Reader::new((input.journal)()?)?, &mut watch)?;
    let mut layers = vec![Layer { dir: input.layer.clone(), marks: Some(input.marks) }];
    layers.extend(input.lower.layers().iter().cloned());
    let shown = ChainView::new(layers);
    write::write(input, replay, &shown, target)
}

/// Tells of entries that land elsewhere because their parent is a symlink of a lower layer.
struct Redirects<'a>(&'a mut dyn FnMut(&[u8], &[u8]));

impl replay::Watch for Redirects<'_> {
    fn lands(&mut self, tree: &tree::Tree, path: &LiteralPath, (parent, name): (tree::DirId, &[u8])) {
        (self.0)(path.as_bytes(), tree.path(parent).join(name).as_bytes());
    }
}
