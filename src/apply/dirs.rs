//! The directories of the layer being applied: what is known of them in memory, and open handles on a few.
//!
//! Only directories are remembered; whether a name is a file or a symlink is asked of the file system when it matters.
//! A node id is never used twice, so a removed directory takes everything below it out of reach.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::policy::{Limit, Limits, Remembered};
use crate::root::{Dir, NodeMeta};

use super::plan::LiteralPath;

/// Identifies a directory of the layer; later ids are never above earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirId(u32);

impl DirId {
    /// Returns which of `count` shares this directory belongs to.
    pub fn shard(self, count: usize) -> usize {
        self.0 as usize % count.max(1)
    }
}

/// The layer's root.
pub const ROOT: DirId = DirId(0);

/// Open handles kept besides the root's, for each layer that is unpacked at the same time: shells allow 1,024 in all.
const HANDLES: usize = 32;

/// What is known of one directory.
#[derive(Debug)]
pub struct DirInfo {
    parent: DirId,
    name: Arc<[u8]>,
    /// Components of its path; the root has none.
    pub depth: u32,
    /// Described by an entry of its own; an implied one is not.
    pub explicit: bool,
    /// Hides what lower layers have inside.
    pub opaque: bool,
    /// Holds whiteouts.
    pub whiteouts: bool,
    dead: bool,
    /// Metadata to be set when everything inside is done. Boxed xattrs are rare.
    pub meta: NodeMeta,
}

/// What one directory takes besides its record, its name and its xattrs: its place in the map with the room that a map
/// leaves free, the count and the allocation of its name. In all about 250 bytes; 200,000 directories took 190 each.
const OVERHEAD: usize = 2 * size_of::<((DirId, Arc<[u8]>), DirId)>() + 32;

/// All directories of the layer.
pub struct Dirs {
    /// What is remembered of the layer, the directories and whatever else.
    pub memory: Remembered,
    max_depth: usize,
    infos: Vec<DirInfo>,
    children: HashMap<(DirId, Arc<[u8]>), DirId>,
    root: Dir,
    handles: Vec<(DirId, Dir)>,
    implied: usize,
}

impl Dirs {
    /// Starts with the layer's root.
    pub fn new(root: Dir, limits: &Limits) -> Dirs {
        let memory = Remembered::new(limits.max_layer_memory);
        let info = DirInfo {
            parent: ROOT,
            name: Arc::from(&b""[..]),
            depth: 0,
            explicit: true,
            opaque: false,
            whiteouts: false,
            dead: false,
            meta: NodeMeta::default(),
        };
        Dirs {
            memory,
            max_depth: limits.max_depth,
            infos: vec![info],
            children: HashMap::new(),
            root,
            handles: Vec::new(),
            implied: 0,
        }
    }

    /// Returns the directory `name` in `parent`.
    pub fn child(&self, parent: DirId, name: &[u8]) -> Option<DirId> {
        // The map's key owns its name; looking up by parts needs one short-lived copy.
        self.children.get(&(parent, Arc::from(name))).copied()
    }

    /// Returns what is known of a directory.
    pub fn info(&self, id: DirId) -> &DirInfo {
        &self.infos[id.0 as usize]
    }

    /// Returns what is known of a directory, to be changed.
    pub fn info_mut(&mut self, id: DirId) -> &mut DirInfo {
        &mut self.infos[id.0 as usize]
    }

    /// Returns the directory that holds this one; the root holds itself.
    pub fn parent(&self, id: DirId) -> DirId {
        self.info(id).parent
    }

    /// Adds a directory that was just made.
    ///
    /// # Errors
    /// `Limit` when all of them take too much memory, or when it lies too deep: symlinks lead to deeper places than the
    /// name of any entry.
    pub fn add(&mut self, parent: DirId, name: &[u8], explicit: bool, meta: NodeMeta) -> Result<DirId> {
        let depth = self.info(parent).depth.saturating_add(1);
        if depth as usize > self.max_depth {
            return Err(Limit::Depth.exceeded(self.max_depth as u64, depth));
        }
        self.memory.add(size_of::<DirInfo>() + OVERHEAD + name.len())?;
        self.memory.add_xattrs(&meta.xattrs)?;
        let id = DirId(u32::try_from(self.infos.len()).unwrap_or(u32::MAX));
        let name: Arc<[u8]> = Arc::from(name);
        self.children.insert((parent, name.clone()), id);
        self.infos.push(DirInfo { parent, depth, name, explicit, opaque: false, whiteouts: false, dead: false, meta });
        self.implied += usize::from(!explicit);
        Ok(id)
    }

    /// Takes a directory and all below it out of reach; its files are somebody else's business.
    pub fn forget(&mut self, id: DirId) {
        let info = &mut self.infos[id.0 as usize];
        info.dead = true;
        let key = (info.parent, info.name.clone());
        self.children.remove(&key);
        // Handles below it would still work on the removed directories.
        self.handles.clear();
    }

    /// Whether the directory, or one above it, was taken out of reach.
    pub fn gone(&self, mut id: DirId) -> bool {
        while id != ROOT {
            if self.info(id).dead {
                return true;
            }
            id = self.parent(id);
        }
        false
    }

    /// Whether any implied directory was ever made.
    pub fn any_implied(&self) -> bool {
        self.implied > 0
    }

    /// Returns the directory's path in the layer.
    pub fn path(&self, mut id: DirId) -> LiteralPath {
        let mut names = Vec::new();
        while id != ROOT {
            let info = self.info(id);
            names.push(info.name.clone());
            id = info.parent;
        }
        let mut out = Vec::new();
        for name in names.iter().rev() {
            if !out.is_empty() {
                out.push(b'/');
            }
            out.extend_from_slice(name);
        }
        LiteralPath::from_clean(out)
    }

    /// Returns a handle on the directory.
    pub fn handle(&mut self, id: DirId) -> Result<Dir> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        if let Some(at) = self.handles.iter().rposition(|(held, _)| *held == id) {
            // Recently used handles stay at the end.
            if at + 8 < self.handles.len() {
                let entry = self.handles.remove(at);
                self.handles.push(entry);
                return Ok(self.handles[self.handles.len() - 1].1.clone());
            }
            return Ok(self.handles[at].1.clone());
        }
        let (mut from, mut names) = (id, Vec::new());
        let base = loop {
            if from == ROOT {
                break self.root.clone();
            }
            if let Some((_, dir)) = self.handles.iter().rev().find(|(held, _)| *held == from) {
                break dir.clone();
            }
            names.push(self.info(from).name.clone());
            from = self.info(from).parent;
        };
        names.reverse();
        let path: Vec<u8> = names.join(&b'/');
        let dir = base.open_below(&path)?;
        if self.handles.len() >= HANDLES {
            self.handles.drain(..HANDLES / 2);
        }
        self.handles.push((id, dir.clone()));
        Ok(dir)
    }

    /// Returns every directory still there, parents before children, the root first.
    pub fn live(&self) -> Vec<DirId> {
        let mut alive = vec![false; self.infos.len()];
        let mut out = Vec::new();
        for (n, info) in self.infos.iter().enumerate() {
            let up = n == 0 || alive[info.parent.0 as usize];
            if up && !info.dead {
                alive[n] = true;
                out.push(DirId(n as u32));
            }
        }
        out
    }

    /// Returns the directory at a literal path when every component is a directory of this layer, with no symlink between.
    pub fn at(&self, path: &LiteralPath) -> Option<DirId> {
        path.components().try_fold(ROOT, |here, name| self.child(here, name))
    }

    /// Whether something a lower layer has could show below this directory: not when it or one above is opaque.
    pub fn merges_with_lower(&self, mut id: DirId) -> bool {
        loop {
            if self.info(id).opaque {
                return false;
            }
            if id == ROOT {
                return true;
            }
            id = self.parent(id);
        }
    }
}
