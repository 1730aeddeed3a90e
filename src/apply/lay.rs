//! Runs actions on the layer directory.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::BufRead;

use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, ErrorKind, Result, escape};
use crate::root::{Dir, Kind, Meta, NodeMeta, ReadLink};
use crate::tar::Timestamp;

use super::behind::Note;
use super::dirs::{DirId, Dirs, ROOT};
use super::facts::{LayerFacts, RootMeta};
use super::journal::{RecordRef, Writer};
use super::links::{AufsFile, EarlyAufsLink};
use super::plan::{Action, LiteralPath, Node};
use super::writers::Crew;
use super::{ApplyOptions, Data, Target, Warning, check_depth, check_implied, unheld};

/// Symlinks expanded in one walk before it is refused (S12).
pub(crate) const MAX_SYMLINKS: usize = 40;
/// Mode of directories while their content is written; the final one comes last (D8).
const WORKING_MODE: u32 = 0o700;

/// The layer directory while entries arrive.
pub(super) struct Layer<'o> {
    pub(super) options: &'o ApplyOptions,
    pub(super) dirs: Dirs,
    pub(super) stash: Dir,
    pub(super) stashed: u64,
    pub(super) aufs: HashMap<Vec<u8>, AufsFile>,
    pub(super) early_aufs: Vec<EarlyAufsLink>,
    pub(super) journal: Writer<File>,
    /// Small files that threads make, and what is to be recorded behind them.
    pub(super) crew: Crew<Note>,
    /// What to warn of since the last entry.
    pub(super) oddities: Vec<Warning>,
    /// Offset of the entry at hand.
    pub(super) offset: u64,
    /// A file under way could not be made: nothing else is the reason of what fails now.
    pub(super) broken: bool,
    pub(super) facts: LayerFacts,
    pub(super) whiteouts: u64,
    pub(super) opaques: u64,
    /// Names of devices that could not be made here: they hide what lower layers have all the same (R2).
    pub(super) unmade: BTreeSet<(DirId, Vec<u8>)>,
    pub(super) last_parent: Option<(LiteralPath, DirId)>,
    /// Owner that the kernel gives to what this process makes.
    pub(super) creator: (u32, u32),
    pub(super) umask: Option<u32>,
    pub(super) squashed: u64,
    pub(super) hasher: Xxh3,
    /// Namespaces of xattrs that this place refused, and how many more of each after the one told about (M19).
    pub(super) refused_xattrs: Vec<(Vec<u8>, u64)>,
    /// The first entry that was squashed.
    pub(super) first_squashed: Vec<u8>,
    /// Files with as many names as the file system allows: where the copy is that takes the next ones (L12).
    pub(super) overflow: HashMap<(u64, u64), LiteralPath>,
    /// Names so far, with `strict` only.
    seen: HashSet<LiteralPath>,
}

impl<'o> Layer<'o> {
    pub(super) fn new(target: Target, options: &'o ApplyOptions) -> Result<Self> {
        let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(Layer {
            options,
            dirs: Dirs::new(target.tree, &options.plan.limits),
            stash: target.stash,
            stashed: 0,
            aufs: HashMap::new(),
            early_aufs: Vec::new(),
            journal: Writer::new(target.journal)?,
            crew: Crew::new(&options.writers, &options.trace),
            oddities: Vec::new(),
            offset: 0,
            broken: false,
            facts: LayerFacts::default(),
            whiteouts: 0,
            opaques: 0,
            unmade: BTreeSet::new(),
            last_parent: None,
            creator: me,
            umask: crate::sys::umask(),
            squashed: 0,
            hasher: Xxh3::new(),
            refused_xattrs: Vec::new(),
            first_squashed: Vec::new(),
            overflow: HashMap::new(),
            seen: HashSet::new(),
        })
    }

    /// Runs one action; `data` is the entry's.
    pub(super) fn run<R: BufRead>(
        &mut self,
        action: Action,
        mtime: Timestamp,
        name: &[u8],
        data: &mut Data<'_, R>,
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        match action {
            Action::Skip => Ok(()),
            Action::Root(node) => {
                self.facts.root_entry = Some(RootMeta {
                    mode: node.meta.mode,
                    uid: node.meta.uid,
                    gid: node.meta.gid,
                    mtime: node.meta.mtime.seconds,
                    mtime_nanos: node.meta.mtime.nanos,
                    xattrs: node.xattrs,
                });
                Ok(())
            }
            Action::Whiteout { parent, name } => {
                self.whiteouts += 1;
                self.record(RecordRef::Whiteout { parent: &parent, name: &name })
            }
            Action::Opaque { dir } => {
                self.opaques += 1;
                self.settle()?;
                self.opaque_over_own_file(&dir, mtime)?;
                self.record(RecordRef::Opaque { dir: &dir, mtime })
            }
            Action::AufsStash(name) => {
                self.settle()?;
                self.aufs_stash(name, data)
            }
            Action::Make { path, node, meta } => self.make(path, node, meta, name, data, warn),
        }
    }

    fn make<R: BufRead>(
        &mut self,
        path: LiteralPath,
        node: Node,
        meta: NodeMeta,
        name: &[u8],
        data: &mut Data<'_, R>,
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        let Some((parent_path, last)) = path.split_last() else {
            return Err(Error::new(ErrorKind::Malformed, "changes the root (D4)"));
        };
        if self.options.plan.tree.strict {
            self.dirs.memory.add(2 * size_of::<LiteralPath>() + path.as_bytes().len())?;
            if !self.seen.insert(path.clone()) {
                return Err(Error::new(ErrorKind::Malformed, "name appears twice in the layer (R-6)"));
            }
        }
        if let Node::HardLink(target) = &node {
            self.settle()?;
            return self.hard_link(&path, target, &meta, name, warn);
        }
        let parent = match self.parent_for(&parent_path, &meta.meta) {
            Err(e) if self.may_be_wrong(&e) => return self.unplaced(&path, node, &meta, data),
            other => other?,
        };
        let placed = self.dirs.path(parent).join(last);
        if self.crew.has(parent, last) || self.crew.is_full() {
            self.settle()?;
        }
        let node = match node {
            Node::AufsLink(stored) => {
                self.settle()?;
                return self.aufs_link(&path, parent, last, &stored, meta, name, warn);
            }
            other => other,
        };
        let mut sum = None;
        match &node {
            Node::Directory => self.directory(parent, last, &meta, name, warn)?,
            Node::File { size, sparse } => {
                let plain = self.is_plain(*size, sparse.as_deref(), &meta);
                if plain && self.crew_takes(parent, last, *size)? {
                    return self.hand_over(parent, placed, path, node, meta, name, data);
                }
                sum = self.file(parent, last, *size, sparse.as_deref(), &meta, name, data, warn)?;
            }
            Node::Symlink(_) | Node::CharDevice(..) | Node::BlockDevice(..) | Node::Fifo => {
                self.special(parent, last, &node, &meta, name, warn)?;
            }
            Node::HardLink(_) | Node::AufsLink(_) => {}
        }
        if placed.is_root() {
            return Ok(());
        }
        let device = matches!(node, Node::CharDevice(..) | Node::BlockDevice(..));
        let unmade = (device && self.options.skip_devices).then(|| placed.clone());
        self.note(Note { path, placed, node, meta, sum, file: None })?;
        match unmade {
            Some(placed) => self.record(RecordRef::Removed { placed: &placed }),
            None => Ok(()),
        }
    }

    /// Returns the directory at the literal path `path`, making what is missing (spec-notes, phase 2, *Parent*).
    pub(super) fn parent_for(&mut self, path: &LiteralPath, implied_by: &Meta) -> Result<DirId> {
        if let Some((last, id)) = &self.last_parent
            && last == path
        {
            return Ok(*id);
        }
        let id = match self.dirs.at(path) {
            Some(id) => id,
            None => self.walk(path, implied_by)?,
        };
        check_depth(self.dirs.info(id).depth as usize, self.options.plan.limits.max_depth)?;
        self.last_parent = Some((path.clone(), id));
        Ok(id)
    }

    fn walk(&mut self, path: &LiteralPath, implied_by: &Meta) -> Result<DirId> {
        // It looks at names, and whoever implies a directory replaces what is there.
        self.settle()?;
        let mut here = ROOT;
        let mut links = 0;
        // Components still to go, the next one last.
        let mut todo: Vec<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
        todo.reverse();
        while let Some(component) = todo.pop() {
            if component == b".." {
                here = self.dirs.parent(here);
                continue;
            }
            if let Some(id) = self.dirs.child(here, &component) {
                here = id;
                continue;
            }
            let dir = self.dirs.handle(here)?;
            let opaque = match dir.read_link(&component)? {
                ReadLink::Target(target) => {
                    links += 1;
                    here = expand(&target, here, links, &mut todo)?;
                    continue;
                }
                ReadLink::NotALink => self.displace(here, &dir, &component)?,
                ReadLink::Nothing => false,
            };
            here = self.imply(here, &dir, &component, implied_by)?;
            self.dirs.info_mut(here).opaque = opaque;
        }
        Ok(here)
    }

    fn imply(&mut self, parent: DirId, dir: &Dir, name: &[u8], by: &Meta) -> Result<DirId> {
        check_implied(name)?;
        self.make_dir_clean(dir, name)?;
        self.dirs.add(parent, name, false, implied_meta(by.mtime))
    }

    fn make_dir_clean(&mut self, dir: &Dir, name: &[u8]) -> Result<()> {
        if !dir.make_dir(name, WORKING_MODE)? {
            return Err(changed_meanwhile(name));
        }
        self.facts.inodes += 1;
        Ok(())
    }

    /// Walks to the directory at `path` without making anything; `None` where the way ends.
    pub(super) fn existing(&mut self, path: &LiteralPath) -> Result<Option<DirId>> {
        if let Some(id) = self.dirs.at(path) {
            return Ok(Some(id));
        }
        let mut here = ROOT;
        let mut links = 0;
        let mut todo: Vec<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
        todo.reverse();
        while let Some(component) = todo.pop() {
            if component == b".." {
                here = self.dirs.parent(here);
                continue;
            }
            if let Some(id) = self.dirs.child(here, &component) {
                here = id;
                continue;
            }
            let ReadLink::Target(target) = self.dirs.handle(here)?.read_link(&component)? else { return Ok(None) };
            links += 1;
            here = expand(&target, here, links, &mut todo)?;
        }
        Ok(Some(here))
    }

    /// Whether the layers below may show that what stands in the layer directory belongs elsewhere.
    pub(super) fn doubtful(&self) -> bool {
        self.dirs.any_implied() || self.facts.late_links > 0
    }

    /// Whether a refusal could be a mistake: with the layers below the name may lead elsewhere. Memory is used up wherever
    /// it leads.
    pub(super) fn may_be_wrong(&self, e: &Error) -> bool {
        matches!(e.kind(), ErrorKind::Malformed | ErrorKind::Limit)
            && self.doubtful()
            && !self.broken
            && !self.dirs.memory.is_over()
    }

    /// Removes what is at `name`, keeping it in the stash where a replay over lower layers may still need it. Returns whether
    /// it was no directory: it took the place of whatever lower layers have there, so a directory that follows is opaque.
    fn displace(&mut self, parent: DirId, dir: &Dir, name: &[u8]) -> Result<bool> {
        self.settle()?;
        self.displace_now(parent, dir, name)
    }

    /// As [`Layer::displace`], with nothing before it that is not settled.
    pub(super) fn displace_now(&mut self, parent: DirId, dir: &Dir, name: &[u8]) -> Result<bool> {
        self.last_parent = None;
        let known = self.dirs.child(parent, name);
        if let Some(id) = known {
            self.dirs.forget(id);
        }
        if !self.overflow.is_empty() {
            let gone = self.dirs.path(parent).join(name);
            self.overflow.retain(|_, copy| !copy.is_within(&gone));
        }
        self.stashed += 1;
        let number = self.stashed;
        let aside = number.to_string().into_bytes();
        dir.rename(name, &self.stash, &aside)?;
        // Looked at where nobody else reaches it: a directory that we did not make is not ours to remove.
        let there = self.stash.stat(&aside)?.ok_or_else(|| changed_meanwhile(name))?;
        if (there.kind == Kind::Directory) != known.is_some() {
            return Err(changed_meanwhile(name));
        }
        if self.doubtful() {
            let placed = self.dirs.path(parent).join(name);
            self.journal.push(RecordRef::Stashed { placed: &placed, number })?;
        } else {
            self.stashed -= 1;
            self.stash.remove_all(&aside)?;
            let placed = self.dirs.path(parent).join(name);
            self.journal.push(RecordRef::Removed { placed: &placed })?;
        }
        Ok(known.is_none())
    }

    fn opaque_over_own_file(&mut self, path: &LiteralPath, mtime: Timestamp) -> Result<()> {
        let Some((parent_path, last)) = path.split_last() else { return Ok(()) };
        // A loop on the way means that there is nothing to replace.
        let Ok(Some(parent)) = self.existing(&parent_path) else { return Ok(()) };
        if self.dirs.child(parent, last).is_some() {
            return Ok(());
        }
        let dir = self.dirs.handle(parent)?;
        match dir.stat(last)? {
            Some(st) if st.kind != Kind::Symlink => _ = self.displace(parent, &dir, last)?,
            None if self.unmade.contains(&(parent, last.to_vec())) => {}
            _ => return Ok(()),
        }
        let id = self.imply(parent, &dir, last, &Meta { mtime, ..Meta::default() })?;
        self.dirs.info_mut(id).opaque = true;
        Ok(())
    }

    fn directory(
        &mut self,
        parent: DirId,
        name: &[u8],
        meta: &NodeMeta,
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        if let Some(id) = self.dirs.child(parent, name) {
            if self.dirs.info(id).explicit {
                self.twice(entry, warn);
            }
            self.dirs.memory.add_xattrs(&meta.xattrs)?;
            let info = self.dirs.info_mut(id);
            // What went through it before would have gone through a symlink of a lower layer.
            self.facts.depends_on_lower |= !info.explicit;
            info.explicit = true;
            info.meta = meta.clone();
            return Ok(());
        }
        let dir = self.dirs.handle(parent)?;
        let mut opaque = false;
        if !dir.make_dir(name, WORKING_MODE)? {
            opaque = self.duplicate(parent, &dir, name, entry, warn)?;
            self.make_dir_clean(&dir, name)?;
        } else {
            self.facts.inodes += 1;
        }
        let id = self.dirs.add(parent, name, true, meta.clone())?;
        self.dirs.info_mut(id).opaque = opaque;
        Ok(())
    }

    fn twice(&self, entry: &[u8], warn: &mut dyn FnMut(Warning)) {
        warn(twice(entry));
    }

    pub(super) fn duplicate(
        &mut self,
        parent: DirId,
        dir: &Dir,
        name: &[u8],
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<bool> {
        self.twice(entry, warn);
        self.displace(parent, dir, name)
    }

    /// Makes a symlink, device or pipe; a device that cannot be made here is skipped with a warning.
    fn special(
        &mut self,
        parent: DirId,
        name: &[u8],
        node: &Node,
        meta: &NodeMeta,
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        let dir = self.dirs.handle(parent)?;
        let device = matches!(node, Node::CharDevice(..) | Node::BlockDevice(..));
        if device && self.options.skip_devices {
            warn(Warning::new("device-skipped", entry, "device nodes cannot be made in a user namespace"));
            // What it replaces goes all the same.
            if dir.stat(name)?.is_some() {
                self.duplicate(parent, &dir, name, entry, warn)?;
            }
            self.facts.devices_skipped = true;
            self.unmade.insert((parent, name.to_vec()));
            return Ok(());
        }
        let make = |dir: &Dir| match node {
            Node::Symlink(target) => dir.make_symlink(name, target),
            Node::CharDevice(major, minor) => {
                dir.make_node(name, Kind::CharDevice, 0o600, rustix::fs::makedev(*major, *minor))
            }
            Node::BlockDevice(major, minor) => {
                dir.make_node(name, Kind::BlockDevice, 0o600, rustix::fs::makedev(*major, *minor))
            }
            _ => dir.make_node(name, Kind::Fifo, 0o600, 0),
        };
        if !make(&dir)? {
            self.duplicate(parent, &dir, name, entry, warn)?;
            if !make(&dir)? {
                return Err(changed_meanwhile(name));
            }
        }
        self.facts.inodes += 1;
        let is_link = matches!(node, Node::Symlink(_));
        if is_link {
            self.last_parent = None;
        }
        self.finish_named(&dir, name, meta, is_link, entry, warn)
    }

    /// Owner → xattrs → mode → times by name, for what must not be opened.
    fn finish_named(
        &mut self,
        dir: &Dir,
        name: &[u8],
        node: &NodeMeta,
        is_link: bool,
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        if self.owner_differs(&node.meta) {
            dir.set_owner(name, node.meta.uid, node.meta.gid).map_err(|e| owner_hint(e, &node.meta))?;
        } else {
            self.count_squashed(&node.meta, entry);
        }
        for (xattr, value) in &node.xattrs {
            let result = dir.set_xattr(name, xattr, value);
            self.tolerate_xattr(result, xattr, value, entry, warn)?;
        }
        if !is_link {
            dir.set_mode(name, node.meta.mode)?;
        }
        dir.set_times(name, &node.meta)?;
        if unheld::rare_time(node.meta.mtime)
            && let Some(st) = dir.stat(name)?
        {
            self.check_time(node.meta.mtime, st.meta.mtime, entry, warn);
        }
        Ok(())
    }

    pub(super) fn stashed_any(&self) -> bool {
        self.stashed > self.aufs.len() as u64
    }
}

pub(super) fn twice(entry: &[u8]) -> Warning {
    Warning::new("duplicate", entry, "name appears twice; the last entry wins")
}

/// Refuses a walk that met more than [`MAX_SYMLINKS`] symlinks.
pub(crate) fn too_many_symlinks() -> Error {
    Error::new(ErrorKind::Malformed, format!("more than {MAX_SYMLINKS} symlinks on the way (S12)"))
}

/// The metadata of a directory that nobody describes, implied by an entry of this mtime.
pub(crate) fn implied_meta(mtime: Timestamp) -> NodeMeta {
    NodeMeta { meta: Meta { mode: 0o755, uid: 0, gid: 0, mtime, atime: mtime }, xattrs: Vec::new() }
}

/// Puts a symlink's target before the components still to go and returns where the walk goes on.
fn expand(target: &[u8], here: DirId, links: usize, todo: &mut Vec<Vec<u8>>) -> Result<DirId> {
    if links > MAX_SYMLINKS {
        return Err(too_many_symlinks());
    }
    for component in target.split(|&b| b == b'/').rev() {
        if !component.is_empty() && component != b"." {
            todo.push(component.to_vec());
        }
    }
    Ok(if target.first() == Some(&b'/') { ROOT } else { here })
}

pub(super) fn changed_meanwhile(name: &[u8]) -> Error {
    Error::new(ErrorKind::Busy, format!("\"{}\" was changed by somebody else meanwhile", escape(name)))
}

pub(crate) fn call_failed(call: &str, e: Errno) -> Error {
    Error::io(call, e.into())
}

pub(crate) fn owner_failed(meta: &Meta, e: Errno) -> Error {
    owner_hint(call_failed("fchown", e), meta)
}

pub(super) fn owner_hint(error: Error, meta: &Meta) -> Error {
    error.with_hint(format!(
        "owner {}:{} cannot be set here; in a user namespace map it (see /etc/subuid) or run as root",
        meta.uid, meta.gid
    ))
}
