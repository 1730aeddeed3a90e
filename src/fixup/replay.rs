//! The two phases of `docs/spec-notes.md`, on the symbolic tree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;

use crate::apply::journal::{Reader, Record};
use crate::apply::{LiteralPath, MAX_SYMLINKS, Node, check_implied, implied_meta, too_many_symlinks};
use crate::error::{Error, ErrorKind, Result, escape};
use crate::merge::Marks;
use crate::policy::LowerSymlinks;
use crate::root::{Meta, NodeMeta};

use super::FixupInput;
use super::tree::{Child, DirId, DirMeta, InodeId, ROOT, Tree};

/// Something that a marker hides; sorted parents first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Hidden {
    depth: usize,
    path: LiteralPath,
    /// Directory and name; `None` hides everything in the directory `path`.
    name: Option<(LiteralPath, Vec<u8>)>,
}

/// The symbolic tree with what is known of the layer's own directory.
pub(super) struct Replay {
    pub tree: Tree,
    /// What the layer directory holds: place → inode.
    pub placed: BTreeMap<Vec<u8>, InodeId>,
    /// What was moved to the stash: inode → number and path below it.
    pub stashed: HashMap<InodeId, (u64, Vec<u8>)>,
    lower_symlinks: LowerSymlinks,
    marks: Marks,
    late: Vec<(LiteralPath, LiteralPath, NodeMeta)>,
    redirects: u64,
}

impl Replay {
    pub(super) fn new(input: &FixupInput<'_>) -> Result<Replay> {
        Ok(Replay {
            tree: Tree::new(&input.lower),
            placed: BTreeMap::new(),
            stashed: HashMap::new(),
            lower_symlinks: input.lower_symlinks,
            marks: input.marks,
            late: Vec::new(),
            redirects: 0,
        })
    }

    pub(super) fn redirects(&self) -> u64 {
        self.redirects
    }

    /// Phase 1: whiteouts and opaque markers act on the lower tree, parents first.
    pub(super) fn deletions<R: Read>(&mut self, journal: &mut Reader<R>) -> Result<()> {
        let mut described: HashSet<LiteralPath> = HashSet::new();
        let mut hidden: Vec<Hidden> = Vec::new();
        while let Some(record) = journal.read()? {
            match record {
                Record::Make { path, node: Node::Directory, .. } => {
                    described.insert(path);
                }
                Record::Whiteout { parent, name } => {
                    let path = parent.join(&name);
                    hidden.push(Hidden { depth: path.depth(), path, name: Some((parent, name)) });
                }
                Record::Opaque { dir, .. } => {
                    hidden.push(Hidden { depth: dir.depth() + 1, path: dir, name: None });
                }
                Record::Make { .. }
                | Record::Stashed { .. }
                | Record::Removed { .. }
                | Record::Left { .. }
                | Record::Hides { .. } => {}
            }
        }
        hidden.sort();
        for Hidden { path, name, .. } in hidden {
            match name {
                Some((parent, name)) => {
                    if let Some(dir) = self.lower_dir(&parent, &described)? {
                        self.tree.remove(dir, &name);
                    }
                }
                None => {
                    if let Some(dir) = self.lower_dir(&path, &described)? {
                        self.tree.clear(dir);
                    }
                }
            }
        }
        Ok(())
    }

    /// Walks to the directory of the lower tree in which a marker acts; `None` where there is nothing to hide.
    fn lower_dir(&mut self, path: &LiteralPath, described: &HashSet<LiteralPath>) -> Result<Option<DirId>> {
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
                        return Ok(None);
                    }
                    let Some(target) = self.tree.symlink(inode)? else { return Ok(None) };
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Ok(None);
                    }
                    here = expand(&target, here, &mut todo);
                }
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// Phase 2: everything else in archive order, then the links that were put off.
    pub(super) fn entries<R: Read>(
        &mut self,
        journal: &mut Reader<R>,
        redirected: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<()> {
        while let Some(record) = journal.read()? {
            match record {
                Record::Make { path, placed, source, node, meta, sum: _ } => {
                    let refuse = |e: Error| e.with_entry(path.as_bytes());
                    self.make(&path, placed, source, node, meta, redirected).map_err(refuse)?;
                }
                Record::Opaque { dir, mtime } => {
                    self.placed.remove(dir.as_bytes());
                    self.opaque_over_own_file(&dir, mtime)?;
                }
                Record::Stashed { placed, number } => self.stash(&placed, number),
                Record::Whiteout { .. } | Record::Removed { .. } | Record::Left { .. } | Record::Hides { .. } => {}
            }
        }
        for (path, target, meta) in std::mem::take(&mut self.late) {
            if !self.link(&path, &target, &meta, None, None).map_err(|e| e.with_entry(path.as_bytes()))? {
                return Err(Error::new(
                    ErrorKind::Malformed,
                    format!(
                        "hard link target \"{}\" is neither in this layer nor in the layers below",
                        escape(target.as_bytes())
                    ),
                )
                .with_entry(path.as_bytes()));
            }
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
        redirected: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<()> {
        if let Node::HardLink(target) = &node {
            let target = target.clone();
            if !self.link(path, &target, &meta, placed.as_ref(), source.as_ref())? {
                self.late.push((path.clone(), target, meta));
            }
            return Ok(());
        }
        let Some((parent_path, name)) = path.split_last() else { return Ok(()) };
        let before = self.redirects;
        let parent = self.parent_for(&parent_path, &meta.meta)?;
        if self.redirects > before {
            redirected(path.as_bytes(), self.tree.path(parent).join(name).as_bytes());
        }
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
                Some(Child::Dir(id)) => self.tree.dir_mut(id).meta = DirMeta::Own(meta),
                _ => {
                    self.tree.make_dir(parent, name, meta);
                }
            }
            return Ok(());
        }
        let inode = self.tree.make_inode(node, meta);
        self.tree.put(parent, name, inode);
        if let Some(placed) = placed {
            self.placed.insert(placed.as_bytes().to_vec(), inode);
        }
        Ok(())
    }

    /// Finds or makes the directory in which an entry goes.
    fn parent_for(&mut self, path: &LiteralPath, by: &Meta) -> Result<DirId> {
        let mut here = ROOT;
        let mut links = 0;
        let mut todo = components_reversed(path);
        while let Some(component) = todo.pop() {
            if component == b".." {
                here = self.tree.dir(here).parent;
                continue;
            }
            match self.tree.child(here, &component)? {
                Some(Child::Dir(id)) => {
                    here = id;
                    continue;
                }
                Some(Child::Leaf { inode, own }) => {
                    if let Some(target) = self.tree.symlink(inode)?
                        && (own || self.lower_symlinks == LowerSymlinks::Resolve)
                    {
                        links += 1;
                        self.redirects += u64::from(!own);
                        if links > MAX_SYMLINKS {
                            return Err(too_many_symlinks());
                        }
                        here = expand(&target, here, &mut todo);
                        continue;
                    }
                }
                None => {}
            }
            check_implied(&component)?;
            here = self.tree.make_dir(here, &component, implied_meta(by.mtime));
        }
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
                Some(Child::Leaf { inode, own }) => {
                    let Some(target) = self.tree.symlink(inode)? else { return Ok(None) };
                    if !own && self.lower_symlinks == LowerSymlinks::Shadow {
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
    fn link(
        &mut self,
        path: &LiteralPath,
        target: &LiteralPath,
        meta: &NodeMeta,
        placed: Option<&LiteralPath>,
        source: Option<&LiteralPath>,
    ) -> Result<bool> {
        // What the layer directory did, whether or not it is right.
        let there = source.and_then(|s| self.placed.get(s.as_bytes()).copied());
        if let Some(placed) = placed {
            self.forget_place(placed);
            if let Some(inode) = there {
                self.placed.insert(placed.as_bytes().to_vec(), inode);
            }
        }
        let Some((target_parent, target_name)) = target.split_last() else {
            return Err(Error::new(ErrorKind::Malformed, "hard link to the root (L11)"));
        };
        let Some((parent_path, name)) = path.split_last() else {
            return Err(Error::new(ErrorKind::Malformed, "changes the type of the root (D4)"));
        };
        let parent = self.parent_for(&parent_path, &meta.meta)?;
        let found = match self.existing(&target_parent)? {
            Some(dir) => self.tree.child(dir, target_name)?.map(|child| (dir, child)),
            None => None,
        };
        let (target_dir, inode) = match found {
            None => {
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
            Some((dir, Child::Leaf { inode, .. })) => (dir, inode),
        };
        if there != Some(inode) {
            self.moved(there);
            self.moved(Some(inode));
        }
        match self.tree.child(parent, name)? {
            Some(Child::Leaf { inode: old, .. }) if old == inode => {}
            Some(Child::Dir(old)) if self.tree.within(target_dir, old) => {
                return Err(Error::new(ErrorKind::Malformed, "hard link would remove its own target"));
            }
            _ => self.tree.put(parent, name, inode),
        }
        if self.tree.symlink(inode)?.is_none() {
            let mut now = self.tree.inode_meta(inode, self.marks)?;
            now.meta = meta.meta;
            let file = self.tree.is_file(inode);
            for (xattr, value) in meta.xattrs.iter().filter(|(n, _)| file || !n.starts_with(b"user.")) {
                now.xattrs.retain(|(n, _)| n != xattr);
                now.xattrs.push((xattr.clone(), value.clone()));
            }
            self.tree.inode_mut(inode).meta = Some(now);
        }
        Ok(true)
    }

    fn moved(&mut self, inode: Option<InodeId>) {
        if let Some(inode) = inode {
            self.tree.inode_mut(inode).moved = true;
        }
    }

    fn opaque_over_own_file(&mut self, path: &LiteralPath, mtime: crate::tar::Timestamp) -> Result<()> {
        let Some((parent_path, name)) = path.split_last() else { return Ok(()) };
        // A loop on the way means that there is nothing to replace.
        let Ok(Some(parent)) = self.existing(&parent_path) else { return Ok(()) };
        if let Some(Child::Leaf { inode, own: true }) = self.tree.child(parent, name)?
            && self.tree.symlink(inode)?.is_none()
        {
            self.tree.make_dir(parent, name, implied_meta(mtime));
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
