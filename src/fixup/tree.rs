//! The symbolic tree: lower content is loaded when looked at, changes live in memory.

use std::collections::{BTreeMap, HashMap};

use crate::apply::{LiteralPath, Node};
use crate::error::Result;
use crate::merge::{ChainView, Found, Marks, ViewDir};
use crate::policy::Remembered;
use crate::root::{Kind, LazyDir, NodeMeta, ReadLink, Stat};

/// A directory of the symbolic tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct DirId(usize);

impl DirId {
    /// Returns how many directories the tree had before this one; later layers' directories have larger numbers.
    pub(super) fn number(self) -> usize {
        self.0
    }
}

/// The root.
pub(super) const ROOT: DirId = DirId(0);

/// An inode that is not a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct InodeId(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Child {
    Dir(DirId),
    /// Anything else, with the number of the layer that made the name ([`Tree::is_own`]).
    Leaf {
        inode: InodeId,
        layer: u32,
    },
}

/// Where a directory's metadata comes from.
#[derive(Debug, Clone)]
pub(super) enum DirMeta {
    /// Whatever the lower tree shows.
    Lower,
    /// This layer says.
    Own(NodeMeta),
}

pub(super) struct DirNode {
    pub parent: DirId,
    pub name: Vec<u8>,
    /// Components of its path; the root has none.
    pub depth: usize,
    /// Lower content that still merges here.
    pub view: Option<ViewDir>,
    /// Where the metadata comes from when it is [`DirMeta::Lower`]; kept apart because clearing drops `view`.
    pub shown: Option<ViewDir>,
    pub meta: DirMeta,
    /// Everything looked at or changed; `None` is a removed name.
    pub entries: BTreeMap<Vec<u8>, Option<Child>>,
}

/// Where an inode's content is.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// In a lower layer: `name` in `dir` of layer number `layer`.
    Lower { layer: usize, dir: LazyDir, name: Vec<u8>, stat: Stat },
    /// Made by this layer.
    Own(Node),
}

pub(super) struct Inode {
    pub source: Source,
    /// Metadata; `None` means what the lower layer has.
    pub meta: Option<NodeMeta>,
    /// Has to be written into the fix-up under all its names.
    pub moved: bool,
}

pub(super) struct Tree {
    pub dirs: Vec<DirNode>,
    pub inodes: Vec<Inode>,
    lower_inodes: HashMap<(u64, u64), InodeId>,
    pub memory: Remembered,
    /// Number of the layer that is being replayed; what directories of lower layers have is number 0.
    layer: u32,
}

/// What a name takes in the tree besides its bytes: its slot with the room that a node of a B-tree leaves free, its
/// allocation.
const NAME: usize = 2 * size_of::<(Vec<u8>, Option<Child>)>() + 16;

impl Tree {
    pub(super) fn new(lower: &ChainView, max_memory: u64) -> Tree {
        let view = lower.root();
        let root = DirNode {
            parent: ROOT,
            name: Vec::new(),
            depth: 0,
            view: view.clone(),
            shown: view,
            meta: DirMeta::Own(NodeMeta::default()),
            entries: BTreeMap::new(),
        };
        let memory = Remembered::new(max_memory);
        Tree { dirs: vec![root], inodes: Vec::new(), lower_inodes: HashMap::new(), memory, layer: 1 }
    }

    /// Whether a name made by layer number `layer` belongs to the layer that is being replayed.
    pub(super) fn is_own(&self, layer: u32) -> bool {
        layer == self.layer
    }

    /// Makes what the tree now holds the lower tree of one more layer.
    pub(super) fn next_layer(&mut self) {
        self.layer = self.layer.saturating_add(1);
    }

    pub(super) fn dir(&self, id: DirId) -> &DirNode {
        &self.dirs[id.0]
    }

    pub(super) fn dir_mut(&mut self, id: DirId) -> &mut DirNode {
        &mut self.dirs[id.0]
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0]
    }

    pub(super) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.0]
    }

    /// Returns what `name` in `dir` is now, loading it from the lower tree at the first look.
    pub(super) fn child(&mut self, dir: DirId, name: &[u8]) -> Result<Option<Child>> {
        if let Some(known) = self.dir(dir).entries.get(name) {
            return Ok(*known);
        }
        let depth = self.dir(dir).depth + 1;
        let Some(view) = self.dir(dir).view.clone() else { return Ok(None) };
        self.memory.add(size_of::<DirNode>() + NAME + 2 * name.len())?;
        let child = match view.lookup(name)? {
            None => None,
            Some(Found::Dir(view)) => {
                self.dirs.push(DirNode {
                    parent: dir,
                    name: name.to_vec(),
                    depth,
                    view: Some(view.clone()),
                    shown: Some(view),
                    meta: DirMeta::Lower,
                    entries: BTreeMap::new(),
                });
                Some(Child::Dir(DirId(self.dirs.len() - 1)))
            }
            Some(Found::Other { layer, dir: from, stat }) => {
                let id = match self.lower_inodes.get(&stat.id) {
                    Some(id) => *id,
                    None => {
                        let source = Source::Lower { layer, dir: from, name: name.to_vec(), stat };
                        self.inodes.push(Inode { source, meta: None, moved: false });
                        let id = InodeId(self.inodes.len() - 1);
                        self.lower_inodes.insert(stat.id, id);
                        id
                    }
                };
                Some(Child::Leaf { inode: id, layer: 0 })
            }
        };
        self.dir_mut(dir).entries.insert(name.to_vec(), child);
        Ok(child)
    }

    /// Returns the target where `inode` is a symlink.
    pub(super) fn symlink(&self, inode: InodeId) -> Result<Option<Vec<u8>>> {
        match &self.inode(inode).source {
            Source::Own(Node::Symlink(target)) => Ok(Some(target.clone())),
            Source::Own(_) => Ok(None),
            Source::Lower { dir, name, stat, .. } => {
                if stat.kind != Kind::Symlink {
                    return Ok(None);
                }
                match dir.open()?.read_link(name)? {
                    ReadLink::Target(target) => Ok(Some(target)),
                    _ => Ok(None),
                }
            }
        }
    }

    pub(super) fn remove(&mut self, dir: DirId, name: &[u8]) {
        self.dir_mut(dir).entries.insert(name.to_vec(), None);
    }

    /// Removes all children; the directory stays with its metadata.
    pub(super) fn clear(&mut self, dir: DirId) {
        let node = self.dir_mut(dir);
        node.view = None;
        node.entries.clear();
    }

    pub(super) fn make_dir(&mut self, parent: DirId, name: &[u8], meta: NodeMeta) -> Result<DirId> {
        self.memory.add(size_of::<DirNode>() + NAME + 2 * name.len())?;
        self.memory.add_xattrs(&meta.xattrs)?;
        self.dirs.push(DirNode {
            parent,
            name: name.to_vec(),
            depth: self.dir(parent).depth + 1,
            view: None,
            shown: None,
            meta: DirMeta::Own(meta),
            entries: BTreeMap::new(),
        });
        let id = DirId(self.dirs.len() - 1);
        self.dir_mut(parent).entries.insert(name.to_vec(), Some(Child::Dir(id)));
        Ok(id)
    }

    pub(super) fn make_inode(&mut self, node: Node, meta: NodeMeta) -> Result<InodeId> {
        let more = match &node {
            Node::Symlink(target) => target.len(),
            Node::File { sparse: Some(regions), .. } => size_of_val(&regions[..]),
            _ => 0,
        };
        self.memory.add(size_of::<Inode>() + NAME + more)?;
        self.memory.add_xattrs(&meta.xattrs)?;
        self.inodes.push(Inode { source: Source::Own(node), meta: Some(meta), moved: false });
        Ok(InodeId(self.inodes.len() - 1))
    }

    pub(super) fn put(&mut self, parent: DirId, name: &[u8], inode: InodeId) {
        let layer = self.layer;
        self.dir_mut(parent).entries.insert(name.to_vec(), Some(Child::Leaf { inode, layer }));
    }

    pub(super) fn path(&self, mut dir: DirId) -> LiteralPath {
        let mut names = Vec::new();
        while dir != ROOT {
            names.push(&self.dir(dir).name[..]);
            dir = self.dir(dir).parent;
        }
        names.reverse();
        LiteralPath::clean(&names.join(&b'/')).0
    }

    /// Whether `dir` is `above` or lies below it.
    pub(super) fn within(&self, mut dir: DirId, above: DirId) -> bool {
        loop {
            if dir == above {
                return true;
            }
            if dir == ROOT {
                return false;
            }
            dir = self.dir(dir).parent;
        }
    }

    /// Whether `inode` is a regular file.
    pub(super) fn is_file(&self, inode: InodeId) -> bool {
        match &self.inode(inode).source {
            Source::Own(node) => matches!(node, Node::File { .. }),
            Source::Lower { stat, .. } => stat.kind == Kind::File,
        }
    }

    /// Returns the metadata a directory shows.
    pub(super) fn dir_meta(&self, dir: DirId) -> Result<NodeMeta> {
        let node = self.dir(dir);
        match (&node.meta, &node.shown) {
            (DirMeta::Own(meta), _) => Ok(meta.clone()),
            (DirMeta::Lower, Some(view)) => view.meta(),
            (DirMeta::Lower, None) => Ok(NodeMeta::default()),
        }
    }

    /// Returns the metadata an inode shows; `marks` are left out of a lower one's xattrs.
    pub(super) fn inode_meta(&self, id: InodeId, marks: Marks) -> Result<NodeMeta> {
        let inode = self.inode(id);
        if let Some(meta) = &inode.meta {
            return Ok(meta.clone());
        }
        match &inode.source {
            Source::Lower { dir, name, stat, .. } => {
                let mut xattrs = dir.open()?.xattrs(name)?;
                xattrs.retain(|(xattr, _)| !marks.is_mark(xattr));
                Ok(NodeMeta { meta: stat.meta, xattrs })
            }
            Source::Own(_) => Ok(NodeMeta::default()),
        }
    }
}
