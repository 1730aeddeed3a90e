//! The two phases of `docs/spec-notes.md`, on the symbolic tree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;

use crate::apply::journal::{Reader, Record};
use crate::apply::{LiteralPath, MAX_SYMLINKS, Node, check_depth, check_implied, implied_meta, too_many_symlinks};
use crate::error::{Error, ErrorKind, Result, escape};
use crate::merge::{ChainView, Marks};
use crate::policy::{Limits, LowerSymlinks};
use crate::root::{Meta, NodeMeta};

use super::tree::{Child, DirId, DirMeta, InodeId, ROOT, Tree};

/// Something that a marker hides; sorted parents first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Hidden {
    depth: usize,
    path: LiteralPath,
    /// Directory and name; `None` hides everything in the directory `path`.
    name: Option<(LiteralPath, Vec<u8>)>,
}

/// Where the walk to a marker's directory ended, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// At this directory.
    Dir(DirId),
    /// Where nothing is, or at a symlink that is not followed.
    Nothing,
    /// At something that is neither directory nor symlink.
    File,
}

/// What a hard link found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linked {
    /// Its target, made by this layer (`own`) or below; `same`: the name is the target itself; `late`: only after the last entry.
    Target { inode: InodeId, own: bool, same: bool, late: bool },
    /// Nothing yet.
    Missing,
}

/// Somebody who looks on while a layer is replayed; every method is called before the tree changes.
#[expect(unused_variables, reason = "the names document the parameters, the defaults need none")]
pub(super) trait Watch {
    /// A marker hides `name` in the directory `dir`, or all of it, and the walk there ended so, through `links` symlinks.
    fn marker(
        &mut self,
        tree: &mut Tree,
        dir: &LiteralPath,
        name: Option<&[u8]>,
        end: End,
        links: usize,
    ) -> Result<()> {
        Ok(())
    }

    /// On the way to `path` a symlink of this layer (`own`) or of a lower one is expanded.
    fn crosses(&mut self, path: &LiteralPath, own: bool, target: &[u8]) {}

    /// On the way to `path` a directory is made where nothing is, or in place of `there`.
    fn implies(&mut self, tree: &Tree, path: &LiteralPath, there: Option<Child>) {}

    /// The parent of `path` is, through a symlink of a lower layer, the directory of `at`.
    fn lands(&mut self, tree: &Tree, path: &LiteralPath, at: (DirId, &[u8])) {}

    /// `path`, no hard link, is about to become `node` at the name and in the directory of `at`.
    fn makes(&mut self, tree: &mut Tree, path: &LiteralPath, at: (DirId, &[u8]), node: &Node) -> Result<()> {
        Ok(())
    }

    /// The hard link `path` found its target.
    fn links(
        &mut self,
        tree: &mut Tree,
        path: &LiteralPath,
        at: (DirId, &[u8]),
        meta: &NodeMeta,
        found: Linked,
    ) -> Result<()> {
        Ok(())
    }
}

/// The symbolic tree with what is known of the layer's own directory.
pub(super) struct Replay {
    pub tree: Tree,
    /// What the layer directory holds: place → inode.
    pub placed: BTreeMap<Vec<u8>, InodeId>,
    /// What was moved to the stash: inode → number and path below it.
    pub stashed: HashMap<InodeId, (u64, Vec<u8>)>,
    /// What AUFS kept aside and some name was linked to: the journal's name for it → inode.
    aufs: HashMap<Vec<u8>, InodeId>,
    lower_symlinks: LowerSymlinks,
    max_depth: usize,
    marks: Marks,
    late: Vec<LateLink>,
    redirects: u64,
}

/// A hard link whose target was missing when its entry came.
pub(super) struct LateLink {
    pub path: LiteralPath,
    target: LiteralPath,
    meta: NodeMeta,
}

/// What a hard link asks for.
struct Link<'a> {
    target: &'a LiteralPath,
    meta: &'a NodeMeta,
    /// Where the layer directory has it.
    placed: Option<&'a LiteralPath>,
    /// Where the layer directory's one found its target.
    source: Option<&'a LiteralPath>,
    late: bool,
}

impl Replay {
    pub(super) fn new(lower: &ChainView, lower_symlinks: LowerSymlinks, marks: Marks, limits: &Limits) -> Replay {
        Replay {
            tree: Tree::new(lower, limits.max_layer_memory),
            placed: BTreeMap::new(),
            stashed: HashMap::new(),
            aufs: HashMap::new(),
            lower_symlinks,
            max_depth: limits.max_depth,
            marks,
            late: Vec::new(),
            redirects: 0,
        }
    }

    pub(super) fn redirects(&self) -> u64 {
        self.redirects
    }

    /// Phase 1: whiteouts and opaque markers act on the lower tree, parents first.
    pub(super) fn deletions<R: Read>(&mut self, journal: &mut Reader<R>, watch: &mut dyn Watch) -> Result<()> {
        let mut described: HashSet<LiteralPath> = HashSet::new();
        let mut hidden: Vec<Hidden> = Vec::new();
        while let Some(record) = journal.read()? {
            match record {
                Record::Make { path, node: Node::Directory, .. } => {
                    self.remember(&[path.as_bytes()])?;
                    described.insert(path);
                }
                Record::Whiteout { parent, name } => {
                    let path = parent.join(&name);
                    self.remember(&[path.as_bytes(), path.as_bytes()])?;
                    hidden.push(Hidden { depth: path.depth(), path, name: Some((parent, name)) });
                }
                Record::Opaque { dir, .. } => {
                    self.remember(&[dir.as_bytes()])?;
                    hidden.push(Hidden { depth: dir.depth() + 1, path: dir, name: None });
                }
                Record::Make { .. }
                | Record::Stashed { .. }
                | Record::Aside { .. }
                | Record::Removed { .. }
                | Record::Left { .. }
                | Record::Hides { .. } => {}
            }
        }
        hidden.sort();
        for Hidden { path, name, .. } in hidden {
            let (dir, name) = match name {
                Some((parent, name)) => (parent, Some(name)),
                None => (path, None),
            };
            let (end, links) = self.lower_dir(&dir, &described)?;
            watch.marker(&mut self.tree, &dir, name.as_deref(), end, links)?;
            match (end, name) {
                (End::Dir(dir), Some(name)) => self.tree.remove(dir, &name),
                (End::Dir(dir), None) => self.tree.clear(dir),
                _ => {}
            }
        }
        Ok(())
    }

    /// Walks to the directory of the lower tree in which a marker acts; also returns how many symlinks led there.
    fn lower_dir(&mut self, path: &LiteralPath, described: &HashSet<LiteralPath>) -> Result<(End, usize)> {
        let mut here = ROOT;
        let mut links = 0;
        let mut todo = components_reversed(path);
        while let Some(component) = todo.pop() {
            if component == b".." {
                here = self.tree.dir(here).parent;
                continue;
            }
            match self.tree.child(here, &component)? {
                Some(Child::Dir(id)) => here = id,
                Some(Child::Leaf { inode, .. }) => {
                    if self.lower_symlinks == LowerSymlinks::Shadow
                        || described.contains(&self.tree.path(here).join(&component))
                    {
                        let link = self.tree.symlink(inode)?.is_some();
                        return Ok((if link { End::Nothing } else { End::File }, links));
                    }
                    let Some(target) = self.tree.symlink(inode)? else { return Ok((End::File, links)) };
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Ok((End::Nothing, links));
                    }
                    here = expand(&target, here, &mut todo);
                }
                None => return Ok((End::Nothing, links)),
            }
        }
        Ok((End::Dir(here), links))
    }

    /// Counts paths that are kept.
    fn remember(&mut self, paths: &[&[u8]]) -> Result<()> {
        let each = 2 * size_of::<(LiteralPath, InodeId)>();
        self.tree.memory.add(paths.iter().map(|path| each + path.len()).sum())
    }

    /// Phase 2: everything else in archive order, then the links that were put off.
    pub(super) fn entries<R: Read>(&mut self, journal: &mut Reader<R>, watch: &mut dyn Watch) -> Result<()> {
        while let Some(record) = journal.read()? {
            self.entry(record, watch)?;
        }
        for late in self.put_off() {
            self.late_link(&late, watch)?;
        }
        Ok(())
    }

    /// Phase 2 for one record.
    pub(super) fn entry(&mut self, record: Record, watch: &mut dyn Watch) -> Result<()> {
        match record {
            Record::Make { path, placed, source, node, meta, sum: _ } => {
                let refuse = |e: Error| e.with_entry(path.as_bytes());
                self.make(&path, placed, source, node, meta, watch).map_err(refuse)?;
            }
            Record::Opaque { dir, mtime } => {
                self.placed.remove(dir.as_bytes());
                self.opaque_over_own_file(&dir, mtime, watch)?;
            }
            Record::Stashed { placed, number } => self.stash(&placed, number),
            // Read beforehand, or about the layer directory alone.
            Record::Whiteout { .. }
            | Record::Aside { .. }
            | Record::Removed { .. }
            | Record::Left { .. }
            | Record::Hides { .. } => {}
        }
        Ok(())
    }

    /// Takes the hard links that were put off to the end of the layer, in archive order.
    pub(super) fn put_off(&mut self) -> Vec<LateLink> {
        std::mem::take(&mut self.late)
    }

    /// Makes a link that was put off.
    pub(super) fn late_link(&mut self, late: &LateLink, watch: &mut dyn Watch) -> Result<()> {
        let LateLink { path, target, meta } = late;
        let link = Link { target, meta, placed: None, source: None, late: true };
        if !self.link(path, &link, watch).map_err(|e| e.with_entry(path.as_bytes()))? {
            let target = escape(target.as_bytes());
            let message =
                format!("hard link target \"{target}\" is neither in this layer nor in the layers below (L2)");
            return Err(Error::new(ErrorKind::Malformed, message).with_entry(path.as_bytes()));
        }
        Ok(())
    }

    fn make(
        &mut self,
        path: &LiteralPath,
        placed: Option<LiteralPath>,
        source: Option<LiteralPath>,
        node: Node,
        meta: NodeMeta,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        if let Node::HardLink(target) = &node {
            let (placed, source) = (placed.as_ref(), source.as_ref());
            if !self.link(path, &Link { target, meta: &meta, placed, source, late: false }, watch)? {
                self.remember(&[path.as_bytes(), target.as_bytes()])?;
                self.tree.memory.add_xattrs(&meta.xattrs)?;
                self.late.push(LateLink { path: path.clone(), target: target.clone(), meta });
            }
            return Ok(());
        }
        let Some((parent_path, name)) = path.split_last() else { return Ok(()) };
        let before = self.redirects;
        let parent = self.parent_for(&parent_path, &meta.meta, watch)?;
        if self.redirects > before {
            watch.lands(&self.tree, path, (parent, name));
        }
        watch.makes(&mut self.tree, path, (parent, name), &node)?;
        if let Some(placed) = &placed {
            if node == Node::Directory {
                // A directory keeps what is below it.
                self.placed.remove(placed.as_bytes());
            } else {
                self.forget_place(placed);
            }
            for (at, _) in placed.as_bytes().iter().enumerate().filter(|(_, b)| **b == b'/') {
                self.placed.remove(&placed.as_bytes()[..at]);
            }
        }
        if node == Node::Directory {
            match self.tree.child(parent, name)? {
                Some(Child::Dir(id)) => {
                    self.tree.memory.add_xattrs(&meta.xattrs)?;
                    self.tree.dir_mut(id).meta = DirMeta::Own(meta);
                }
                _ => {
                    self.tree.make_dir(parent, name, meta)?;
                }
            }
            return Ok(());
        }
        let inode = match node {
            Node::AufsLink(stored) => match self.aufs.get(&stored) {
                Some(inode) => {
                    let inode = *inode;
                    self.describe_link(inode, &meta)?;
                    inode
                }
                None => {
                    let inode = self.tree.make_inode(Node::File { size: 0, sparse: None }, meta)?;
                    self.remember(&[&stored])?;
                    self.aufs.insert(stored, inode);
                    inode
                }
            },
            node => self.tree.make_inode(node, meta)?,
        };
        self.tree.put(parent, name, inode);
        if let Some(placed) = placed {
            self.remember(&[placed.as_bytes()])?;
            self.placed.insert(placed.as_bytes().to_vec(), inode);
        }
        Ok(())
    }

    /// Finds or makes the directory in which an entry goes.
    fn parent_for(&mut self, path: &LiteralPath, by: &Meta, watch: &mut dyn Watch) -> Result<DirId> {
        let mut here = ROOT;
        let mut links = 0;
        let mut todo = components_reversed(path);
        while let Some(component) = todo.pop() {
            if component == b".." {
                here = self.tree.dir(here).parent;
                continue;
            }
            let there = self.tree.child(here, &component)?;
            match there {
                Some(Child::Dir(id)) => {
                    here = id;
                    continue;
                }
                Some(Child::Leaf { inode, layer }) => {
                    let own = self.tree.is_own(layer);
                    if let Some(target) = self.tree.symlink(inode)?
                        && (own || self.lower_symlinks == LowerSymlinks::Resolve)
                    {
                        links += 1;
                        self.redirects += u64::from(!own);
                        if links > MAX_SYMLINKS {
                            return Err(too_many_symlinks());
                        }
                        watch.crosses(path, own, &target);
                        here = expand(&target, here, &mut todo);
                        continue;
                    }
                }
                None => {}
            }
            check_implied(&component)?;
            check_depth(self.tree.dir(here).depth, self.max_depth)?;
            watch.implies(&self.tree, path, there);
            here = self.tree.make_dir(here, &component, implied_meta(by.mtime))?;
        }
        check_depth(self.tree.dir(here).depth, self.max_depth)?;
        Ok(here)
    }

    /// Walks to a directory without making anything.
    fn existing(&mut self, path: &LiteralPath) -> Result<Option<DirId>> {
        let mut here = ROOT;
        let mut links = 0;
        let mut todo = components_reversed(path);
        while let Some(component) = todo.pop() {
            if component == b".." {
                here = self.tree.dir(here).parent;
                continue;
            }
            match self.tree.child(here, &component)? {
                Some(Child::Dir(id)) => here = id,
                Some(Child::Leaf { inode, layer }) => {
                    let Some(target) = self.tree.symlink(inode)? else { return Ok(None) };
                    if !self.tree.is_own(layer) && self.lower_symlinks == LowerSymlinks::Shadow {
                        return Ok(None);
                    }
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(too_many_symlinks());
                    }
                    here = expand(&target, here, &mut todo);
                }
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// Makes `path` another name of `target`; `false` where the target is missing.
    fn link(&mut self, path: &LiteralPath, link: &Link<'_>, watch: &mut dyn Watch) -> Result<bool> {
        let Link { target, meta, placed, source, late } = *link;
        // What the layer directory did, whether or not it is right.
        let there = source.and_then(|s| self.placed.get(s.as_bytes()).copied());
        if let Some(placed) = placed {
            self.forget_place(placed);
            if let Some(inode) = there {
                self.remember(&[placed.as_bytes()])?;
                self.placed.insert(placed.as_bytes().to_vec(), inode);
            }
        }
        let Some((target_parent, target_name)) = target.split_last() else {
            return Err(Error::new(ErrorKind::Malformed, "hard link to the root (L11)"));
        };
        let Some((parent_path, name)) = path.split_last() else {
            return Err(Error::new(ErrorKind::Malformed, "changes the type of the root (D4)"));
        };
        let before = self.redirects;
        let parent = self.parent_for(&parent_path, &meta.meta, watch)?;
        if self.redirects > before && !late {
            watch.lands(&self.tree, path, (parent, name));
        }
        let found = match self.existing(&target_parent)? {
            Some(dir) => self.tree.child(dir, target_name)?.map(|child| (dir, child)),
            None => None,
        };
        let (target_dir, inode, layer) = match found {
            None => {
                watch.links(&mut self.tree, path, (parent, name), meta, Linked::Missing)?;
                // The layer directory gave the wrong inode this header's metadata.
                self.moved(there);
                return Ok(false);
            }
            Some((_, Child::Dir(_))) => {
                return Err(Error::new(
                    ErrorKind::Malformed,
                    format!("hard link to the directory \"{}\" (L11)", escape(target.as_bytes())),
                ));
            }
            Some((dir, Child::Leaf { inode, layer })) => (dir, inode, layer),
        };
        let there_now = self.tree.child(parent, name)?;
        let same = matches!(there_now, Some(Child::Leaf { inode: old, .. }) if old == inode);
        let own = self.tree.is_own(layer);
        watch.links(&mut self.tree, path, (parent, name), meta, Linked::Target { inode, own, same, late })?;
        if there != Some(inode) {
            self.moved(there);
            self.moved(Some(inode));
        }
        match there_now {
            _ if same => {}
            Some(Child::Dir(old)) if self.tree.within(target_dir, old) => {
                return Err(Error::new(ErrorKind::Malformed, "hard link would remove its own target (L6)"));
            }
            _ => self.tree.put(parent, name, inode),
        }
        if self.tree.symlink(inode)?.is_none() {
            self.describe_link(inode, meta)?;
        }
        Ok(true)
    }

    /// Gives the shared inode what a link's header says; xattrs it does not name stay.
    fn describe_link(&mut self, inode: InodeId, meta: &NodeMeta) -> Result<()> {
        let mut now = self.tree.inode_meta(inode, self.marks)?;
        now.meta = meta.meta;
        let file = self.tree.is_file(inode);
        for (xattr, value) in meta.xattrs.iter().filter(|(n, _)| file || !n.starts_with(b"user.")) {
            now.xattrs.retain(|(n, _)| n != xattr);
            now.xattrs.push((xattr.clone(), value.clone()));
        }
        self.tree.inode_mut(inode).meta = Some(now);
        Ok(())
    }

    fn moved(&mut self, inode: Option<InodeId>) {
        if let Some(inode) = inode {
            self.tree.inode_mut(inode).moved = true;
        }
    }

    fn opaque_over_own_file(
        &mut self,
        path: &LiteralPath,
        mtime: crate::tar::Timestamp,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let Some((parent_path, name)) = path.split_last() else { return Ok(()) };
        // A loop on the way means that there is nothing to replace.
        let Ok(Some(parent)) = self.existing(&parent_path) else { return Ok(()) };
        let there = self.tree.child(parent, name)?;
        if let Some(Child::Leaf { inode, layer }) = there
            && self.tree.is_own(layer)
            && self.tree.symlink(inode)?.is_none()
        {
            watch.implies(&self.tree, path, there);
            self.tree.make_dir(parent, name, implied_meta(mtime))?;
        }
        Ok(())
    }

    fn stash(&mut self, placed: &LiteralPath, number: u64) {
        let base = placed.as_bytes();
        for (key, inode) in self.take_places(base) {
            let rest = key[base.len()..].iter().skip(1).copied().collect();
            self.stashed.insert(inode, (number, rest));
        }
    }

    /// Forgets what the layer directory had at `place` and below: it was replaced there.
    fn forget_place(&mut self, place: &LiteralPath) {
        self.take_places(place.as_bytes());
    }

    fn take_places(&mut self, base: &[u8]) -> Vec<(Vec<u8>, InodeId)> {
        let mut out: Vec<(Vec<u8>, InodeId)> = self.placed.remove_entry(base).into_iter().collect();
        let mut below = base.to_vec();
        below.push(b'/');
        let mut after = base.to_vec();
        after.push(b'/' + 1);
        let keys: Vec<Vec<u8>> = self.placed.range(below..after).map(|(key, _)| key.clone()).collect();
        for key in keys {
            out.extend(self.placed.remove_entry(&key));
        }
        out
    }
}

fn components_reversed(path: &LiteralPath) -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
    out.reverse();
    out
}

/// Puts a symlink's target before the components still to go and returns where the walk goes on.
fn expand(target: &[u8], here: DirId, todo: &mut Vec<Vec<u8>>) -> DirId {
    for component in target.split(|&b| b == b'/').rev() {
        if !component.is_empty() && component != b"." {
            todo.push(component.to_vec());
        }
    }
    if target.first() == Some(&b'/') { ROOT } else { here }
}
