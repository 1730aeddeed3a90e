//! Inodes by number, directories as maps of names, and walks through them.

use super::names::{Name, Path};
use crate::tree::{Kind, Node};
use std::collections::{BTreeMap, VecDeque};

/// The number of an inode.
pub(super) type Inode = usize;

/// The number of the root directory.
pub(super) const ROOT: Inode = 0;

/// How many symlinks one walk may expand.
const MAX_EXPANSIONS: usize = 40;

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// What it names.
    pub inode: Inode,
    /// Which layer put the name here.
    pub layer: usize,
}

#[derive(Debug, Clone)]
struct Stored {
    node: Node,
    children: BTreeMap<Name, Entry>,
}

/// Every inode there ever was; those without a name are simply not reached any more.
#[derive(Debug, Clone)]
pub(super) struct Disk(Vec<Stored>);

impl Disk {
    pub(super) fn new() -> Disk {
        Disk(vec![Stored { node: Node::new(Kind::Dir), children: BTreeMap::new() }])
    }

    pub(super) fn make(&mut self, node: Node) -> Inode {
        self.0.push(Stored { node, children: BTreeMap::new() });
        self.0.len() - 1
    }

    pub(super) fn node(&self, inode: Inode) -> Node {
        self.0[inode].node.clone()
    }

    pub(super) fn node_mut(&mut self, inode: Inode) -> &mut Node {
        &mut self.0[inode].node
    }

    pub(super) fn is_dir(&self, inode: Inode) -> bool {
        self.0[inode].node.kind == Kind::Dir
    }

    /// Returns a symlink's target.
    pub(super) fn target(&self, inode: Inode) -> Option<&[u8]> {
        match &self.0[inode].node.kind {
            Kind::Symlink(target) => Some(target),
            _ => None,
        }
    }

    /// Returns the inode of the directory at a path of directories.
    ///
    /// # Panics
    /// When a component is missing: walks only hand out paths of directories.
    pub(super) fn dir(&self, path: &[Name]) -> Inode {
        path.iter().fold(ROOT, |at, name| self.0[at].children[name].inode)
    }

    /// Returns what `name` is in the directory at `dir`.
    pub(super) fn look(&self, dir: &[Name], name: &[u8]) -> Option<Entry> {
        self.0[self.dir(dir)].children.get(name).copied()
    }

    /// Puts a name into a directory.
    pub(super) fn put(&mut self, dir: &[Name], name: &[u8], inode: Inode, layer: usize) {
        let dir = self.dir(dir);
        self.0[dir].children.insert(name.to_vec(), Entry { inode, layer });
    }

    /// Removes a name, and everything below it when it is a directory.
    pub(super) fn remove(&mut self, dir: &[Name], name: &[u8]) {
        let dir = self.dir(dir);
        if let Some(entry) = self.0[dir].children.remove(name) {
            self.clear(entry.inode);
        }
    }

    /// Removes everything below a directory.
    pub(super) fn clear(&mut self, inode: Inode) {
        for entry in std::mem::take(&mut self.0[inode].children).into_values() {
            self.clear(entry.inode);
        }
    }

    /// Tells whether `name` still stands in a directory found earlier by its inode.
    pub(super) fn has(&self, dir: Inode, name: &[u8]) -> bool {
        self.0[dir].children.contains_key(name)
    }

    /// Lists every name there is with its inode, the root as the empty path.
    pub(super) fn names(&self) -> Vec<(Vec<u8>, Inode)> {
        let (mut names, mut todo) = (Vec::new(), vec![(Vec::new(), ROOT)]);
        while let Some((path, inode)) = todo.pop() {
            for (name, entry) in &self.0[inode].children {
                let path = if path.is_empty() { name.clone() } else { [&path[..], b"/", name].concat() };
                todo.push((path, entry.inode));
            }
            names.push((path, inode));
        }
        names
    }
}

/// A walk from the root: where it stands (always a path of directories) and what is still to walk.
pub(super) struct Walk {
    pub at: Path,
    todo: VecDeque<Name>,
    expansions: usize,
}

/// More than 40 symlinks in one walk (S12).
pub(super) struct TooManySymlinks;

impl Walk {
    pub(super) fn new(path: &[Name]) -> Walk {
        Walk { at: Path::new(), todo: path.iter().cloned().collect(), expansions: 0 }
    }

    /// Returns the next component to look at; a `..` of an expanded target goes to the parent of the directory reached
    /// so far and stays at the root.
    pub(super) fn next(&mut self) -> Option<Name> {
        loop {
            let name = self.todo.pop_front()?;
            match &name[..] {
                b"" | b"." => {}
                b".." => drop(self.at.pop()),
                _ => return Some(name),
            }
        }
    }

    /// Goes into a directory.
    pub(super) fn enter(&mut self, name: Name) {
        self.at.push(name);
    }

    /// Puts a symlink's target in front of what is still to walk; an absolute one starts at the root.
    pub(super) fn expand(&mut self, target: &[u8]) -> Result<(), TooManySymlinks> {
        self.expansions += 1;
        if self.expansions > MAX_EXPANSIONS {
            return Err(TooManySymlinks);
        }
        if target.starts_with(b"/") {
            self.at.clear();
        }
        for component in target.split(|b| *b == b'/').rev() {
            self.todo.push_front(component.to_vec());
        }
        Ok(())
    }
}
