//! A directory tree in memory that answers calls as Linux does, and path arithmetic as Go does it.
//!
//! Owns: names, inodes, walks, errors, the times that making and removing a name leave on its directory.
//! Refuses to know: layers, whiteouts, tools. Paths are bytes below the root, without leading slash; the root is empty.

use std::collections::{BTreeMap, VecDeque};
use testkit::Tree;
use testkit::tree::{Kind, Node};

/// The number of an inode.
pub type Ino = usize;
/// The root directory.
pub const ROOT: Ino = 0;
/// "When the tool ran", in place of a time that no image states.
pub const NOW: (i64, u32) = (i64::MAX, 0);

/// The bit of a directory that gives its group to what is made in it.
pub const SETGID: u32 = 0o2000;

/// What a call answers when it does not do what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    NoEnt,
    NotDir,
    Exist,
    Loop,
    Perm,
    TooLong,
    Invalid,
    TooBig,
    Range,
}

impl Errno {
    /// The words of the error as Go programs print them.
    pub fn words(self) -> &'static str {
        match self {
            Errno::NoEnt => "no such file or directory",
            Errno::NotDir => "not a directory",
            Errno::Exist => "file exists",
            Errno::Loop => "too many",
            Errno::Perm => "operation not permitted",
            Errno::TooLong => "file name too long",
            Errno::Invalid => "invalid argument",
            Errno::TooBig => "argument list too long",
            Errno::Range => "numerical result out of range",
        }
    }
}

/// Whose root an absolute symlink starts at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The tree's: the tool has changed its root.
    Chroot,
    /// The host's, where nothing of these names is.
    Host,
}

/// Whether a symlink as last component is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    Follow,
    Keep,
}

/// Where a walk ended.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory that holds the name.
    pub dir: Ino,
    /// The name; empty for the root.
    pub name: Vec<u8>,
    /// What it names, if anything.
    pub ino: Option<Ino>,
    /// The path without symlinks.
    pub real: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Stored {
    node: Node,
    children: BTreeMap<Vec<u8>, Ino>,
}

/// A tree.
#[derive(Debug, Clone)]
pub struct Disk(Vec<Stored>);

impl Disk {
    /// Makes an empty root 0755, made now.
    pub fn new() -> Disk {
        Disk(vec![Stored { node: made(Kind::Dir), children: BTreeMap::new() }])
    }

    pub fn node(&self, ino: Ino) -> &Node {
        &self.0[ino].node
    }

    pub fn node_mut(&mut self, ino: Ino) -> &mut Node {
        &mut self.0[ino].node
    }

    pub fn is_dir(&self, ino: Ino) -> bool {
        self.node(ino).kind == Kind::Dir
    }

    pub fn children(&self, ino: Ino) -> &BTreeMap<Vec<u8>, Ino> {
        &self.0[ino].children
    }

    /// Walks a path.
    pub fn walk(&self, path: &[u8], last: Last, scope: Scope) -> Result<Place, Errno> {
        if path.len() > 4000 {
            return Err(Errno::TooLong);
        }
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut stack: Vec<(Vec<u8>, Ino)> = Vec::new();
        let mut expansions = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                if stack.pop().is_none() && scope == Scope::Host {
                    return Err(Errno::NoEnt);
                }
                continue;
            }
            if name.len() > 255 {
                return Err(Errno::TooLong);
            }
            let dir = stack.last().map_or(ROOT, |(_, ino)| *ino);
            let real = |stack: &[(Vec<u8>, Ino)]| join(&real_path(stack), &name);
            let Some(&ino) = self.0[dir].children.get(&name) else {
                if todo.is_empty() {
                    let real = real(&stack);
                    return Ok(Place { dir, name, ino: None, real });
                }
                return Err(Errno::NoEnt);
            };
            match &self.0[ino].node.kind {
                Kind::Dir => stack.push((name, ino)),
                Kind::Symlink(target) if !todo.is_empty() || last == Last::Follow => {
                    expansions += 1;
                    if expansions > 40 {
                        return Err(Errno::Loop);
                    }
                    if target.starts_with(b"/") {
                        if scope == Scope::Host {
                            return Err(Errno::NoEnt);
                        }
                        stack.clear();
                    }
                    for component in components(target).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(component.to_vec());
                    }
                }
                _ if todo.is_empty() => {
                    let real = real(&stack);
                    return Ok(Place { dir, name, ino: Some(ino), real });
                }
                _ => return Err(Errno::NotDir),
            }
        }
        let real = real_path(&stack);
        let Some((name, ino)) = stack.pop() else {
            return Ok(Place { dir: ROOT, name: Vec::new(), ino: Some(ROOT), real });
        };
        let dir = stack.last().map_or(ROOT, |(_, ino)| *ino);
        Ok(Place { dir, name, ino: Some(ino), real })
    }

    /// Finds what a path names.
    pub fn find(&self, path: &[u8], last: Last, scope: Scope) -> Result<Ino, Errno> {
        self.walk(path, last, scope)?.ino.ok_or(Errno::NoEnt)
    }

    /// Makes a new node; its directory's mtime becomes now, and a setgid directory hands on its group.
    pub fn make(&mut self, path: &[u8], scope: Scope, node: Node) -> Result<Ino, Errno> {
        let place = self.walk(path, Last::Keep, scope)?;
        if place.ino.is_some() {
            return Err(Errno::Exist);
        }
        self.0.push(Stored { node, children: BTreeMap::new() });
        let ino = self.0.len() - 1;
        let above = self.node(place.dir);
        if above.mode & SETGID != 0 {
            let gid = above.gid;
            let node = self.node_mut(ino);
            node.gid = gid;
            if node.kind == Kind::Dir {
                node.mode |= SETGID;
            }
        }
        self.name(&place, ino);
        Ok(ino)
    }

    /// Gives an inode another name.
    pub fn link(&mut self, target: &[u8], path: &[u8], scope: Scope) -> Result<Ino, Errno> {
        let ino = self.find(target, Last::Keep, scope)?;
        let place = self.walk(path, Last::Keep, scope)?;
        match () {
            () if place.ino.is_some() => Err(Errno::Exist),
            () if self.is_dir(ino) => Err(Errno::Perm),
            () => {
                self.name(&place, ino);
                Ok(ino)
            }
        }
    }

    fn name(&mut self, place: &Place, ino: Ino) {
        self.0[place.dir].children.insert(place.name.clone(), ino);
        self.0[place.dir].node.mtime = NOW;
    }

    /// Removes a name with everything below it; what is missing already is no error.
    pub fn remove_all(&mut self, path: &[u8], scope: Scope) -> Result<(), Errno> {
        let place = match self.walk(path, Last::Keep, scope) {
            Err(Errno::NoEnt) => return Ok(()),
            other => other?,
        };
        if place.ino.is_some() && self.0[place.dir].children.remove(&place.name).is_some() {
            self.0[place.dir].node.mtime = NOW;
        }
        Ok(())
    }

    /// Lists the names of an inode.
    pub fn names_of(&self, inode: Ino) -> Vec<Vec<u8>> {
        let (mut names, mut todo) = (Vec::new(), vec![(Vec::new(), ROOT)]);
        while let Some((path, ino)) = todo.pop() {
            todo.extend(self.children(ino).iter().map(|(name, child)| (join(&path, name), *child)));
            if ino == inode {
                names.push(path);
            }
        }
        names
    }

    /// Returns the tree, as it is without any overlay.
    pub fn tree(&self) -> Tree {
        let (mut tree, mut identity, mut todo) = (Tree::default(), BTreeMap::new(), vec![(Vec::new(), ROOT)]);
        while let Some((path, ino)) = todo.pop() {
            for (name, child) in self.children(ino) {
                todo.push((join(&path, name), *child));
            }
            if !self.is_dir(ino) {
                identity.insert(path.clone(), ino);
            }
            tree.0.insert(path, self.node(ino).clone());
        }
        tree.group_links(&identity);
        tree
    }
}

/// A node as it is made before anything sets its metadata: 0755, 0:0, now.
pub fn made(kind: Kind) -> Node {
    let mut node = Node::new(kind);
    node.mtime = NOW;
    node
}

fn real_path(stack: &[(Vec<u8>, Ino)]) -> Vec<u8> {
    stack.iter().fold(Vec::new(), |path, (name, _)| join(&path, name))
}

/// Splits a path into its components, without empty ones and `.`.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".")
}

/// Joins a directory and a name below it.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// Cleans a path as text, starting at the root and never leaving it: `filepath.Clean("/" + path)`.
pub fn clean(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<&[u8]> = Vec::new();
    for component in components(path) {
        match component {
            b".." => _ = out.pop(),
            _ => out.push(component),
        }
    }
    out.join(&b'/')
}

/// Splits a cleaned path into its directory and its last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Whether `path` is `base` or below it.
pub fn at_or_below(path: &[u8], base: &[u8]) -> bool {
    base.is_empty() || path == base || (path.starts_with(base) && path.get(base.len()) == Some(&b'/'))
}
