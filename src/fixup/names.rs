//! A chain as names alone: each layer's journal is replayed over the tree that the layers before it gave, without any
//! directory on disk, and whoever asks is told what depends on the layers below.
//!
//! The rules are those of a fix-up, because it is the same replay. Memory: a few hundred bytes for each name and each
//! inode of the chain; [`crate::policy::Limit::LayerMemory`] bounds it.

use std::collections::{BTreeSet, HashSet};
use std::io::Read;

use crate::apply::journal::{Reader, Record};
use crate::apply::{LiteralPath, Node};
use crate::error::{Error, ErrorKind, Result};
use crate::merge::{ChainView, Marks};
use crate::policy::{Limits, LowerSymlinks, WhiteoutForm, XattrFlavour};
use crate::root::NodeMeta;

use super::replay::{End, Linked, Replay, Watch};
use super::tree::{Child, DirId, ROOT, Tree};

/// What a marker hides in the tree below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hides {
    /// A directory that has something in it, or the content of the marker's own directory.
    Content,
    /// An empty directory, or anything that is no directory.
    Node,
    /// Nothing: the directory is there and has no such name, or nothing in it.
    Nothing,
    /// Nothing: there is no such directory below.
    NoDirectory,
    /// Nothing: something on the way is a file.
    BelowFile,
}

/// What a name was before an entry took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Was {
    Directory,
    Symlink,
    Other,
}

/// Something seen while a layer is replayed. `path` is literal, a `place` is where that leads.
#[derive(Debug)]
pub(crate) enum Sight<'a> {
    /// A whiteout of `name`, or an opaque marker, in `dir`; `through` symlinks of lower layers.
    Marker { dir: &'a LiteralPath, name: Option<&'a [u8]>, hides: Hides, through: bool },
    /// The entry lands elsewhere, through a symlink of a lower layer.
    Lands { path: &'a LiteralPath, place: LiteralPath },
    /// The entry goes through a symlink of its own layer; `dangling`: to a place that had to be made.
    OwnSymlink { path: &'a LiteralPath, absolute: bool, dangling: bool },
    /// What this layer made there earlier is replaced by a directory, because the entry goes below it.
    ParentReplaced { path: &'a LiteralPath },
    /// An opaque marker replaces what this layer made there earlier.
    MarkerReplaces { dir: &'a LiteralPath },
    /// The entry takes the place of something that this layer (`own`) or a lower one made; `directory`: it is one.
    Replaces { path: &'a LiteralPath, was: Was, own: bool, directory: bool },
    /// The hard link's target is a name of a lower layer.
    LinkIntoLower { path: &'a LiteralPath },
    /// The hard link's target comes later in the archive.
    LinkForward { path: &'a LiteralPath },
    /// The hard link's name is a name of the target already.
    LinkToSelf { path: &'a LiteralPath },
    /// The hard link's target is a symlink.
    LinkToSymlink { path: &'a LiteralPath },
    /// The hard link's header changes metadata of the inode.
    LinkMetadata { path: &'a LiteralPath, before: NodeMeta, after: &'a NodeMeta },
    /// A directory that the layer goes through, or puts something into, and does not describe; `lower` has the
    /// metadata it has below, where it is there.
    Implied { place: LiteralPath, lower: Option<NodeMeta> },
    /// An entry that the rules refuse; the replay goes on without it.
    Refused { path: &'a LiteralPath, error: Error },
}

/// Takes what is seen.
pub(crate) type See<'a> = &'a mut dyn FnMut(Sight<'_>);

/// The names of the layers so far.
pub(crate) struct NameChain {
    replay: Replay,
}

/// How a directory would mark things; nothing is marked here.
const MARKS: Marks = Marks { flavour: XattrFlavour::Trusted, form: WhiteoutForm::CharDevice };

impl NameChain {
    /// Starts with an empty root; the limit on a layer's memory holds for all layers together.
    pub(crate) fn new(lower_symlinks: LowerSymlinks, limits: &Limits) -> NameChain {
        let nothing = ChainView::new(Vec::new());
        NameChain { replay: Replay::new(&nothing, lower_symlinks, MARKS, limits) }
    }

    /// Replays one more layer, whose journal `open` opens anew; tells `see`.
    ///
    /// # Errors
    /// `Limit` for too much memory; a journal that is damaged.
    pub(crate) fn layer<R: Read>(&mut self, open: &dyn Fn() -> Result<Reader<R>>, see: See<'_>) -> Result<()> {
        let first_own = self.replay.tree.dirs.len();
        let mut watch =
            Watcher { see, first_own, passed: BTreeSet::new(), own_link: None, dangling: false, marker: false };
        self.replay.deletions(&mut open()?, &mut watch)?;
        let mut journal = open()?;
        let mut described: HashSet<LiteralPath> = HashSet::new();
        while let Some(record) = journal.read()? {
            if let Record::Make { path, node: Node::Directory, .. } = &record {
                described.insert(path.clone());
            }
            watch.next_entry(matches!(record, Record::Opaque { .. }));
            let path = match &record {
                Record::Make { path, .. } => path.clone(),
                _ => LiteralPath::default(),
            };
            if let Err(e) = self.replay.entry(record, &mut watch) {
                refused(e, &path, &mut watch)?;
            }
        }
        for late in self.replay.put_off() {
            watch.next_entry(false);
            if let Err(e) = self.replay.late_link(&late, &mut watch) {
                refused(e, &late.path, &mut watch)?;
            }
        }
        let Watcher { passed, see, .. } = watch;
        for dir in passed {
            let place = self.replay.tree.path(dir);
            if !described.contains(&place) && attached(&self.replay.tree, dir) {
                let lower = if dir.number() < first_own { Some(self.replay.tree.dir_meta(dir)?) } else { None };
                see(Sight::Implied { place, lower });
            }
        }
        self.replay.tree.next_layer();
        Ok(())
    }
}

/// Tells of a refusal that is the archive's, and returns any other.
fn refused(error: Error, path: &LiteralPath, watch: &mut Watcher<'_>) -> Result<()> {
    if error.kind() != ErrorKind::Malformed {
        return Err(error);
    }
    (watch.see)(Sight::Refused { path, error });
    Ok(())
}

/// Turns what the replay meets into sights.
struct Watcher<'a> {
    see: See<'a>,
    /// Number of the first directory that this layer makes.
    first_own: usize,
    /// Directories that entries and markers of this layer are in or go through.
    passed: BTreeSet<DirId>,
    /// The entry went through a symlink of its layer; whether one was absolute.
    own_link: Option<bool>,
    /// It made a directory after that.
    dangling: bool,
    /// The record is an opaque marker.
    marker: bool,
}

impl Watcher<'_> {
    fn next_entry(&mut self, marker: bool) {
        (self.own_link, self.dangling, self.marker) = (None, false, marker);
    }

    /// Notes `dir` and the directories above it.
    fn pass(&mut self, tree: &Tree, mut dir: DirId) {
        while dir != ROOT && self.passed.insert(dir) {
            dir = tree.dir(dir).parent;
        }
    }

    fn arrived(&mut self, tree: &Tree, path: &LiteralPath, parent: DirId) {
        self.pass(tree, parent);
        if let Some(absolute) = self.own_link.take() {
            (self.see)(Sight::OwnSymlink { path, absolute, dangling: self.dangling });
        }
    }

    fn replaces(&mut self, tree: &Tree, path: &LiteralPath, child: Child, directory: bool) -> Result<()> {
        let (was, own) = match child {
            // A directory again only changes its metadata.
            Child::Dir(_) if directory => return Ok(()),
            // Into a lower one this layer may have put something.
            Child::Dir(id) => (Was::Directory, id.number() >= self.first_own || self.passed.contains(&id)),
            Child::Leaf { inode, layer } => {
                let was = if tree.symlink(inode)?.is_some() { Was::Symlink } else { Was::Other };
                (was, tree.is_own(layer))
            }
        };
        (self.see)(Sight::Replaces { path, was, own, directory });
        Ok(())
    }
}

impl Watch for Watcher<'_> {
    fn marker(
        &mut self,
        tree: &mut Tree,
        dir: &LiteralPath,
        name: Option<&[u8]>,
        end: End,
        links: usize,
    ) -> Result<()> {
        let hides = match (end, name) {
            (End::Dir(here), Some(name)) => {
                self.pass(tree, here);
                match tree.child(here, name)? {
                    Some(Child::Dir(id)) if has_content(tree, id) => Hides::Content,
                    Some(_) => Hides::Node,
                    None => Hides::Nothing,
                }
            }
            (End::Dir(here), None) => {
                self.pass(tree, here);
                if has_content(tree, here) { Hides::Content } else { Hides::Nothing }
            }
            (End::File, _) => Hides::BelowFile,
            (End::Nothing, _) => Hides::NoDirectory,
        };
        (self.see)(Sight::Marker { dir, name, hides, through: links > 0 });
        Ok(())
    }

    fn crosses(&mut self, _: &LiteralPath, own: bool, target: &[u8]) {
        if own {
            *self.own_link.get_or_insert(false) |= target.first() == Some(&b'/');
        }
    }

    fn implies(&mut self, tree: &Tree, path: &LiteralPath, there: Option<Child>) {
        self.dangling |= self.own_link.is_some();
        if let Some(Child::Leaf { layer, .. }) = there
            && tree.is_own(layer)
        {
            match self.marker {
                true => (self.see)(Sight::MarkerReplaces { dir: path }),
                false => (self.see)(Sight::ParentReplaced { path }),
            }
        }
    }

    fn lands(&mut self, tree: &Tree, path: &LiteralPath, (parent, name): (DirId, &[u8])) {
        (self.see)(Sight::Lands { path, place: tree.path(parent).join(name) });
    }

    fn makes(
        &mut self,
        tree: &mut Tree,
        path: &LiteralPath,
        (parent, name): (DirId, &[u8]),
        node: &Node,
    ) -> Result<()> {
        self.arrived(tree, path, parent);
        match tree.child(parent, name)? {
            Some(child) => self.replaces(tree, path, child, *node == Node::Directory),
            None => Ok(()),
        }
    }

    fn links(
        &mut self,
        tree: &mut Tree,
        path: &LiteralPath,
        (parent, name): (DirId, &[u8]),
        meta: &NodeMeta,
        found: Linked,
    ) -> Result<()> {
        self.arrived(tree, path, parent);
        let Linked::Target { inode, own, same, late } = found else { return Ok(()) };
        if same {
            (self.see)(Sight::LinkToSelf { path });
        } else if !own {
            (self.see)(Sight::LinkIntoLower { path });
        } else if late {
            (self.see)(Sight::LinkForward { path });
        }
        if let (false, Some(child)) = (same, tree.child(parent, name)?) {
            self.replaces(tree, path, child, false)?;
        }
        if tree.symlink(inode)?.is_some() {
            (self.see)(Sight::LinkToSymlink { path });
            return Ok(());
        }
        let before = tree.inode_meta(inode, MARKS)?;
        let (old, new) = (&before.meta, &meta.meta);
        if (old.mode, old.uid, old.gid, old.mtime) != (new.mode, new.uid, new.gid, new.mtime) {
            (self.see)(Sight::LinkMetadata { path, before, after: meta });
        }
        Ok(())
    }
}

/// Whether `dir` is still in the tree.
fn attached(tree: &Tree, mut dir: DirId) -> bool {
    while dir != ROOT {
        let node = tree.dir(dir);
        if tree.dir(node.parent).entries.get(&node.name) != Some(&Some(Child::Dir(dir))) {
            return false;
        }
        dir = node.parent;
    }
    true
}

fn has_content(tree: &Tree, dir: DirId) -> bool {
    tree.dir(dir).entries.values().any(Option::is_some)
}
