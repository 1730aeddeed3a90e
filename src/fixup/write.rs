//! Compares the symbolic tree with what overlayfs would show without a fix-up, and writes the difference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rustix::io::Errno;

use crate::apply::{LiteralPath, Marker, Node, finish_root};
use crate::error::{Error, ErrorKind, Result, escape};
use crate::merge::{ChainView, Found, ViewDir};
use crate::policy::Ownership;
use crate::root::{Dir, Kind, LazyDir, LinkOutcome, NodeMeta, ReadLink, meta as fdmeta};

use super::replay::Replay;
use super::tree::{Child, DirId, InodeId, ROOT, Source};
use super::{FixupFacts, FixupInput};

/// Position of the corrected layer in the view that includes it.
const THE_LAYER: usize = 0;

pub(super) fn write(input: &FixupInput<'_>, replay: Replay, shown: &ChainView, target: &Dir) -> Result<FixupFacts> {
    let mut writer = Writer {
        input,
        replay,
        target,
        marker: Marker::new(input.marks.flavour, input.marks.form),
        made: BTreeMap::new(),
        root_whiteouts: false,
        first_names: HashMap::new(),
        places: HashMap::new(),
        facts: FixupFacts::default(),
    };
    writer.facts.redirected = writer.replay.redirects();
    let root = shown.root();
    writer.visit(ROOT, root.as_ref(), &LiteralPath::default(), Pass::Survey)?;
    writer.load_all_names(shown)?;
    writer.places = writer.replay.placed.iter().map(|(path, inode)| (*inode, path.clone())).collect();
    writer.visit(ROOT, root.as_ref(), &LiteralPath::default(), Pass::Write)?;
    writer.finish()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Find the inodes that have to be written: one wrong name moves all names of an inode.
    Survey,
    Write,
}

struct MadeDir {
    meta: NodeMeta,
    whiteouts: bool,
}

struct Writer<'a> {
    input: &'a FixupInput<'a>,
    replay: Replay,
    target: &'a Dir,
    marker: Marker,
    made: BTreeMap<LiteralPath, MadeDir>,
    root_whiteouts: bool,
    first_names: HashMap<InodeId, (LiteralPath, Vec<u8>)>,
    places: HashMap<InodeId, Vec<u8>>,
    facts: FixupFacts,
}

impl Writer<'_> {
    fn visit(&mut self, dir: DirId, shown: Option<&ViewDir>, path: &LiteralPath, pass: Pass) -> Result<()> {
        for name in self.names(dir, shown)? {
            let want = self.wanted(dir, &name)?;
            let have = match shown {
                Some(view) => view.lookup(&name)?,
                None => None,
            };
            match (want, have) {
                (None, None) => {}
                (None, Some(_)) => {
                    if pass == Pass::Write {
                        self.whiteout(path, &name)?;
                    }
                }
                (Some(Child::Leaf { inode, .. }), have) => {
                    let here = path.join(&name);
                    let same = self.is_same(inode, have.as_ref(), &here);
                    match pass {
                        Pass::Survey if !same => self.replay.tree.inode_mut(inode).moved = true,
                        Pass::Write if !same || self.replay.tree.inode(inode).moved => {
                            self.leaf(path, &name, inode)?;
                        }
                        _ => {}
                    }
                }
                (Some(Child::Dir(id)), have) => {
                    let view = match &have {
                        Some(Found::Dir(view)) => Some(view),
                        _ => None,
                    };
                    let here = path.join(&name);
                    if pass == Pass::Write && !self.shows_right_meta(id, view)? {
                        self.container(&here)?;
                    }
                    let node = self.replay.tree.dir(id);
                    let untouched = node.entries.is_empty()
                        && node.view.is_some()
                        && view.is_some_and(|v| v.part(THE_LAYER).is_none());
                    if !untouched {
                        self.visit(id, view, &here, pass)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns what has to show; a device that cannot be made here has done its work by replacing what was there (R2).
    fn wanted(&mut self, dir: DirId, name: &[u8]) -> Result<Option<Child>> {
        let child = self.replay.tree.child(dir, name)?;
        if let (true, Some(Child::Leaf { inode, .. })) = (self.input.skip_devices, child)
            && let Source::Own(Node::CharDevice(..) | Node::BlockDevice(..)) = &self.replay.tree.inode(inode).source
        {
            return Ok(None);
        }
        Ok(child)
    }

    /// Returns the names that could differ between the wanted directory and the shown one.
    fn names(&self, dir: DirId, shown: Option<&ViewDir>) -> Result<BTreeSet<Vec<u8>>> {
        let node = self.replay.tree.dir(dir);
        let mut names: BTreeSet<Vec<u8>> = node.entries.keys().cloned().collect();
        let own = shown.and_then(|view| view.part(THE_LAYER));
        if let Some(own) = own {
            names.extend(own.open()?.list()?.into_iter().map(|listed| listed.name));
        }
        let lower_parts = shown.map_or(0, |view| view.depth() - usize::from(own.is_some()));
        let same_lower = node.view.as_ref().map_or(0, ViewDir::depth) == lower_parts;
        if !same_lower {
            if let Some(view) = shown {
                names.extend(view.list()?);
            }
            if let Some(view) = &node.view {
                names.extend(view.list()?);
            }
        }
        Ok(names)
    }

    fn is_same(&self, inode: InodeId, have: Option<&Found>, path: &LiteralPath) -> bool {
        let Some(Found::Other { layer, stat, .. }) = have else { return false };
        let wanted = self.replay.tree.inode(inode);
        if wanted.moved {
            return false;
        }
        match &wanted.source {
            Source::Own(_) => *layer == THE_LAYER && self.replay.placed.get(path.as_bytes()) == Some(&inode),
            Source::Lower { stat: lower, .. } => *layer != THE_LAYER && stat.id == lower.id,
        }
    }

    fn shows_right_meta(&self, id: DirId, view: Option<&ViewDir>) -> Result<bool> {
        let Some(view) = view else { return Ok(false) };
        let want = self.replay.tree.dir_meta(id)?;
        let have = view.meta()?;
        let owners = self.input.ownership == Ownership::Squash
            || (want.meta.uid, want.meta.gid) == (have.meta.uid, have.meta.gid);
        let sorted = |mut xattrs: Vec<(Vec<u8>, Vec<u8>)>| {
            xattrs.sort();
            xattrs
        };
        Ok(owners
            && want.meta.mode == have.meta.mode
            && want.meta.mtime == have.meta.mtime
            && sorted(want.xattrs) == sorted(have.xattrs))
    }

    /// Returns the fix-up's own directory at `path`, making it and those above it with the metadata they show.
    fn container(&mut self, path: &LiteralPath) -> Result<Dir> {
        if path.is_root() {
            return Ok(self.target.clone());
        }
        if !self.made.contains_key(path) {
            let mut here = LiteralPath::default();
            let mut node = ROOT;
            for name in path.components() {
                let next = here.join(name);
                node = match self.replay.tree.child(node, name)? {
                    Some(Child::Dir(id)) => id,
                    _ => return Err(inconsistent(&next)),
                };
                if !self.made.contains_key(&next) {
                    let parent = self.target.open_below_or_self(here.as_bytes())?;
                    if !parent.make_dir(name, 0o700)? {
                        return Err(inconsistent(&next));
                    }
                    let meta = self.replay.tree.dir_meta(node)?;
                    self.made.insert(next.clone(), MadeDir { meta, whiteouts: false });
                    self.facts.nodes += 1;
                }
                here = next;
            }
        }
        self.target.open_below(path.as_bytes())
    }

    fn whiteout(&mut self, parent: &LiteralPath, name: &[u8]) -> Result<()> {
        let dir = self.container(parent)?;
        if self.marker.whiteout(&dir, name)? {
            self.facts.whiteouts += 1;
            self.facts.nodes += 1;
            match self.made.get_mut(parent) {
                Some(made) => made.whiteouts = true,
                None => self.root_whiteouts = true,
            }
        }
        Ok(())
    }

    fn leaf(&mut self, parent: &LiteralPath, name: &[u8], inode: InodeId) -> Result<()> {
        let dir = self.container(parent)?;
        if let Some((first_parent, first)) = self.first_names.get(&inode) {
            let from = self.target.open_below_or_self(first_parent.as_bytes())?;
            match dir.link(name, &from, first)? {
                LinkOutcome::Made => return Ok(()),
                // As many names as the file system allows: the rest become copies (L12).
                LinkOutcome::TooMany => {}
                LinkOutcome::Taken | LinkOutcome::NoTarget => return Err(inconsistent(&parent.join(name))),
            }
        }
        let meta = self.replay.tree.inode_meta(inode, self.input.marks)?;
        let source = self.replay.tree.inode(inode).source.clone();
        let made = match &source {
            Source::Own(Node::File { .. }) => self.own_file(&dir, name, inode, &meta)?,
            Source::Own(Node::Symlink(target)) => dir.make_symlink(name, target)?,
            Source::Own(Node::CharDevice(major, minor)) => {
                dir.make_node(name, Kind::CharDevice, 0o600, rustix::fs::makedev(*major, *minor))?
            }
            Source::Own(Node::BlockDevice(major, minor)) => {
                dir.make_node(name, Kind::BlockDevice, 0o600, rustix::fs::makedev(*major, *minor))?
            }
            Source::Own(_) => dir.make_node(name, Kind::Fifo, 0o600, 0)?,
            Source::Lower { dir: from, name: lower, stat, .. } => match stat.kind {
                Kind::File => copy_file(&dir, name, &meta, self.input, &from.open()?, lower)?,
                Kind::Symlink => match from.open()?.read_link(lower)? {
                    ReadLink::Target(target) => dir.make_symlink(name, &target)?,
                    _ => return Err(inconsistent(&parent.join(name))),
                },
                kind => dir.make_node(name, kind, 0o600, stat.rdev)?,
            },
        };
        if !made {
            return Err(inconsistent(&parent.join(name)));
        }
        let regular = matches!(&source, Source::Own(Node::File { .. }))
            || matches!(&source, Source::Lower { stat, .. } if stat.kind == Kind::File);
        if !regular {
            let is_link = self.replay.tree.symlink(inode)?.is_some();
            if self.input.ownership == Ownership::Keep {
                dir.set_owner(name, meta.meta.uid, meta.meta.gid)?;
            }
            for (xattr, value) in &meta.xattrs {
                tolerate(dir.set_xattr(name, xattr, value), self.input)?;
            }
            if !is_link {
                dir.set_mode(name, meta.meta.mode)?;
            }
            dir.set_times(name, &meta.meta)?;
        }
        self.facts.nodes += 1;
        self.first_names.insert(inode, (parent.clone(), name.to_vec()));
        Ok(())
    }

    fn own_file(&self, dir: &Dir, name: &[u8], inode: InodeId, meta: &NodeMeta) -> Result<bool> {
        let (from, path) = match (self.places.get(&inode), self.replay.stashed.get(&inode)) {
            (Some(path), _) => (&self.input.layer, path.clone()),
            (None, Some((number, rest))) => {
                let mut path = number.to_string().into_bytes();
                if !rest.is_empty() {
                    path.push(b'/');
                    path.extend_from_slice(rest);
                }
                (&self.input.stash, path)
            }
            (None, None) => return Err(inconsistent(&LiteralPath::clean(name).0)),
        };
        let (parent, last) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], &path[..]),
        };
        copy_file(dir, name, meta, self.input, &from.open_below_or_self(parent)?, last)
    }

    /// Brings every visible name of the lower inodes that move into the symbolic tree.
    fn load_all_names(&mut self, shown: &ChainView) -> Result<()> {
        let wanted: Vec<(usize, u64)> = self
            .replay
            .tree
            .inodes
            .iter()
            .filter(|inode| inode.moved)
            .filter_map(|inode| match &inode.source {
                Source::Lower { layer, stat, .. } if stat.nlink > 1 => Some((*layer, stat.id.1)),
                _ => None,
            })
            .collect();
        let layers: BTreeSet<usize> = wanted.iter().map(|(layer, _)| *layer).collect();
        for layer in layers {
            let inos: BTreeSet<u64> = wanted.iter().filter(|(l, _)| *l == layer).map(|(_, ino)| *ino).collect();
            // The view that includes the layer itself has it at position 0.
            let Some(lower) = shown.layers().get(layer + 1) else { continue };
            let mut found = Vec::new();
            let top = LazyDir::new(lower.dir.clone(), &Arc::default());
            find_names(&top, &LiteralPath::default(), &inos, &mut found)?;
            for path in found {
                let mut here = ROOT;
                for component in path.components() {
                    match self.replay.tree.child(here, component)? {
                        Some(Child::Dir(id)) => here = id,
                        _ => break,
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<FixupFacts> {
        for (path, made) in self.made.iter().rev() {
            let dir = self.target.open_below(path.as_bytes())?;
            if self.input.ownership == Ownership::Keep {
                fdmeta::set_owner_fd(&dir, made.meta.meta.uid, made.meta.meta.gid)
                    .map_err(|e| Error::io("fchown", e.into()).with_entry(path.as_bytes()))?;
            }
            for (name, value) in &made.meta.xattrs {
                tolerate(fdmeta::set_xattr_fd(&dir, name, value), self.input)?;
            }
            if made.whiteouts {
                self.marker.holds_whiteouts(&dir, false)?;
            }
            fdmeta::set_mode_fd(&dir, made.meta.meta.mode).map_err(|e| Error::io("fchmod", e.into()))?;
            fdmeta::set_times_fd(&dir, &made.meta.meta).map_err(|e| Error::io("futimens", e.into()))?;
        }
        if self.root_whiteouts {
            self.marker.holds_whiteouts(self.target, false)?;
        }
        finish_root(self.target, self.input.ownership)?;
        Ok(self.facts)
    }
}

fn find_names(at: &LazyDir, path: &LiteralPath, inos: &BTreeSet<u64>, out: &mut Vec<LiteralPath>) -> Result<()> {
    let listing = at.open()?.list()?;
    for listed in listing {
        let kind = match listed.kind {
            Some(kind) => Some(kind),
            None => at.open()?.kind_of(&listed)?,
        };
        if kind == Some(Kind::Directory) {
            find_names(&at.child(&listed.name), &path.join(&listed.name), inos, out)?;
        } else if inos.contains(&listed.ino) {
            out.push(path.join(&listed.name));
        }
    }
    Ok(())
}

/// Copies a regular file with its metadata; never a hard link, which would show in other images that share the layer.
fn copy_file(
    to: &Dir,
    name: &[u8],
    node: &NodeMeta,
    input: &FixupInput<'_>,
    from: &Dir,
    source: &[u8],
) -> Result<bool> {
    let source = from.open_file(source)?;
    let Some(fd) = to.make_file(name, 0o600)? else { return Ok(false) };
    crate::sys::reflink_or_copy(&source, &fd)?;
    let meta = &node.meta;
    if input.ownership == Ownership::Keep {
        fdmeta::set_owner_fd(&fd, meta.uid, meta.gid).map_err(|e| Error::io("fchown", e.into()))?;
    }
    for (xattr, value) in &node.xattrs {
        tolerate(fdmeta::set_xattr_fd(&fd, xattr, value), input)?;
    }
    fdmeta::set_mode_fd(&fd, meta.mode).map_err(|e| Error::io("fchmod", e.into()))?;
    fdmeta::set_times_fd(&fd, meta).map_err(|e| Error::io("futimens", e.into()))?;
    Ok(true)
}

/// What could not be set when the layer was applied cannot be set here either; it was reported there.
fn tolerate(result: rustix::io::Result<()>, input: &FixupInput<'_>) -> Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM | Errno::ACCESS | Errno::INVAL) if input.skip_devices => Ok(()),
        other => other.map_err(|e| Error::io("setxattr", e.into())),
    }
}

fn inconsistent(path: &LiteralPath) -> Error {
    Error::new(ErrorKind::Other, format!("layer directory and journal disagree at \"{}\"", escape(path.as_bytes())))
        .with_hint("remove the layer and pull the image again")
}
