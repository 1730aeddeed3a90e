//! Phase 2: everything else, in archive order, last one wins.

use super::disk::{Entry, Inode, ROOT, Walk};
use super::names::{Layer, Meaning, Name, PLNK, Path, Reason, Refusal, clean};
use super::{LowerSymlinks, Model, RootEntry};
use crate::entry::{EntryKind, EntrySpec};
use crate::tree::{Kind, Node};
use std::collections::BTreeMap;

/// Files that AUFS kept for links: the content, and the inode of the first link made (W13, R-32).
type Stash = BTreeMap<Name, (Vec<u8>, Option<Inode>)>;

/// Components of the deepest place that anything may be made at.
const DEEPEST: usize = 1024;

/// Whether a hard link found its target.
enum Linked {
    Done,
    TargetMissing,
}

/// Where a walk that creates nothing ended.
enum Found {
    /// The directory, and what the last component is there.
    There(Path, Name, Entry),
    /// The root itself.
    Root,
    Missing,
}

impl Model {
    pub(super) fn add(&mut self, layer: &Layer<'_>) -> Result<(), Refusal> {
        let mut stash = Stash::new();
        let mut late = Vec::new();
        for (entry, meaning) in &layer.entries {
            match meaning {
                Meaning::Root => {
                    if self.options.root_entry == RootEntry::Apply {
                        self.describe(ROOT, entry);
                    }
                }
                Meaning::Stash(name) => {
                    if let EntryKind::File(content) = &entry.kind {
                        stash.insert(name.clone(), (content.clone(), None));
                    }
                }
                Meaning::Opaque(path) => self.opaque_over_own_file(entry, path),
                // "A plain whiteout does nothing in phase 2."
                Meaning::Whiteout(_) | Meaning::Skipped => {}
                Meaning::Ordinary(path) => match &entry.kind {
                    EntryKind::HardLink(target) => {
                        if let Linked::TargetMissing = self.hard_link(entry, path, target, &mut stash)? {
                            late.push((entry, path, target));
                        }
                    }
                    EntryKind::Dir => self.directory(entry, path)?,
                    _ => self.other(entry, path)?,
                },
            }
        }
        // "Late links": once more, in archive order (L6).
        for (entry, path, target) in late {
            if let Linked::TargetMissing = self.hard_link(entry, path, target, &mut stash)? {
                return Err(Refusal::new(Reason::LinkTargetMissing, entry));
            }
        }
        if self.options.skip_devices {
            self.drop_devices();
        }
        Ok(())
    }

    /// "When the layer is done, its devices are taken away under all their names."
    fn drop_devices(&mut self) {
        for (path, inode) in self.disk.names() {
            if matches!(self.disk.node(inode).kind, Kind::Char(..) | Kind::Block(..)) {
                let mut dir: Path = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
                let name = dir.pop().expect("the root is no device");
                self.disk.remove(&dir, &name);
                self.warn("device-skipped", &path);
            }
        }
    }

    /// "Directory entry": an existing directory keeps its content and takes all metadata (D5).
    fn directory(&mut self, entry: &EntrySpec, path: &Path) -> Result<(), Refusal> {
        let (dir, name) = self.parent(entry, path)?;
        let inode = match self.disk.look(&dir, &name) {
            Some(there) if self.disk.is_dir(there.inode) => there.inode,
            _ => self.place(&dir, &name, Kind::Dir),
        };
        self.describe(inode, entry);
        Ok(())
    }

    /// "Regular file, symlink, device, fifo": always a new inode (L7, L8).
    fn other(&mut self, entry: &EntrySpec, path: &Path) -> Result<(), Refusal> {
        let (dir, name) = self.parent(entry, path)?;
        let kind = match &entry.kind {
            EntryKind::File(content) => Kind::file(content),
            EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
            EntryKind::Char(major, minor) => Kind::Char(*major, *minor),
            EntryKind::Block(major, minor) => Kind::Block(*major, *minor),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Dir | EntryKind::HardLink(_) => unreachable!("these have their own functions"),
        };
        let inode = self.place(&dir, &name, kind);
        self.describe(inode, entry);
        Ok(())
    }

    /// "Hard link".
    fn hard_link(
        &mut self,
        entry: &EntrySpec,
        path: &Path,
        target: &[u8],
        stash: &mut Stash,
    ) -> Result<Linked, Refusal> {
        let refuse = |reason| Err(Refusal::new(reason, entry));
        let (dir, name) = self.parent(entry, path)?;
        let (target, _) = clean(target);
        if let [plnk, stored] = &target[..]
            && plnk == PLNK
            && let Some((content, first)) = stash.get_mut(stored)
        {
            *first = Some(self.stashed_link(entry, &dir, &name, content, *first));
            return Ok(Linked::Done);
        }

        let (target_dir, target_name, there) = match self.find(&target, entry)? {
            Found::Missing => return Ok(Linked::TargetMissing),
            Found::Root => return refuse(Reason::LinkTargetDirectory),
            Found::There(dir, name, there) => (dir, name, there),
        };
        if self.disk.is_dir(there.inode) {
            return refuse(Reason::LinkTargetDirectory);
        }
        let same = self.disk.look(&dir, &name).is_some_and(|old| old.inode == there.inode);
        if !same {
            let target_dir = self.disk.dir(&target_dir);
            self.disk.remove(&dir, &name);
            if !self.disk.has(target_dir, &target_name) {
                return refuse(Reason::LinkRemovesTarget);
            }
            self.disk.put(&dir, &name, there.inode, self.layer);
        }
        self.describe_link(there.inode, entry);
        Ok(Linked::Done)
    }

    /// A hard link into AUFS's directory (W13): the first one makes the file, later ones join it, even where that name is gone.
    fn stashed_link(
        &mut self,
        entry: &EntrySpec,
        dir: &Path,
        name: &Name,
        content: &[u8],
        first: Option<Inode>,
    ) -> Inode {
        let at_name = self.disk.look(dir, name).map(|there| there.inode);
        if at_name.is_none() || at_name != first {
            self.disk.remove(dir, name);
            let Some(inode) = first else {
                let inode = self.place(dir, name, Kind::file(content));
                self.describe(inode, entry);
                return inode;
            };
            self.disk.put(dir, name, inode, self.layer);
        }
        let inode = self.disk.look(dir, name).expect("it was just put there").inode;
        self.describe_link(inode, entry);
        inode
    }

    /// "Opaque marker over this layer's own non-directory" (O4).
    fn opaque_over_own_file(&mut self, entry: &EntrySpec, path: &Path) {
        let Ok(Found::There(dir, name, there)) = self.find(path, entry) else { return };
        let file = !self.disk.is_dir(there.inode) && self.disk.target(there.inode).is_none();
        if file && there.layer == self.layer {
            self.implied(entry, &dir, &name);
        }
    }

    /// "Parent": walks the literal path's directories, making what is missing; returns where the last component goes.
    fn parent(&mut self, entry: &EntrySpec, path: &Path) -> Result<(Path, Name), Refusal> {
        let refuse = |reason| Err(Refusal::new(reason, entry));
        let (last, parent) = path.split_last().expect("an ordinary path is not empty");
        let mut walk = Walk::new(parent);
        while let Some(name) = walk.next() {
            match self.disk.look(&walk.at, &name) {
                Some(there) if self.disk.is_dir(there.inode) => walk.enter(name),
                Some(there) if self.follows(there) => {
                    let target = self.disk.target(there.inode).expect("only symlinks are followed");
                    if walk.expand(target).is_err() {
                        return refuse(Reason::TooManySymlinks);
                    }
                }
                // Missing, or neither directory nor symlink (S10).
                _ => {
                    // A symlink's target can name what no entry may be called (R-15, S11).
                    if name.starts_with(b".wh.") {
                        return refuse(Reason::WhiteoutMade);
                    }
                    if name.len() > 255 {
                        return refuse(Reason::NameTooLong);
                    }
                    if walk.at.len() >= DEEPEST {
                        return refuse(Reason::NameTooLong);
                    }
                    self.implied(entry, &walk.at, &name);
                    walk.enter(name);
                }
            }
        }
        if walk.at.len() >= DEEPEST {
            return refuse(Reason::NameTooLong);
        }
        Ok((walk.at, last.clone()))
    }

    /// Walks without creating anything; the last component is not followed. A file in the middle means missing.
    fn find(&self, path: &[Name], entry: &EntrySpec) -> Result<Found, Refusal> {
        let Some((last, parent)) = path.split_last() else { return Ok(Found::Root) };
        let mut walk = Walk::new(parent);
        while let Some(name) = walk.next() {
            match self.disk.look(&walk.at, &name) {
                Some(there) if self.disk.is_dir(there.inode) => walk.enter(name),
                Some(there) if self.follows(there) => {
                    let target = self.disk.target(there.inode).expect("only symlinks are followed");
                    walk.expand(target).map_err(|_| Refusal::new(Reason::TooManySymlinks, entry))?;
                }
                _ => return Ok(Found::Missing),
            }
        }
        Ok(match self.disk.look(&walk.at, last) {
            Some(there) => Found::There(walk.at, last.clone(), there),
            None => Found::Missing,
        })
    }

    /// Tells whether a walk of phase 2 expands this: a symlink, under `shadow` only one that this layer put there.
    fn follows(&self, there: Entry) -> bool {
        let resolve = self.options.lower_symlinks == LowerSymlinks::Resolve || there.layer == self.layer;
        resolve && self.disk.target(there.inode).is_some()
    }

    /// Removes whatever is at a name and puts a new inode there.
    fn place(&mut self, dir: &Path, name: &Name, kind: Kind) -> Inode {
        self.disk.remove(dir, name);
        let inode = self.disk.make(Node::new(kind));
        self.disk.put(dir, name, inode, self.layer);
        inode
    }

    /// An implied directory: 0755, 0:0, no xattrs, the mtime of the entry being applied (D1, R-19).
    fn implied(&mut self, entry: &EntrySpec, dir: &Path, name: &Name) {
        let inode = self.place(dir, name, Kind::Dir);
        self.disk.node_mut(inode).mtime = entry.mtime;
    }

    /// Gives an inode all metadata of an entry; xattrs are replaced.
    fn describe(&mut self, inode: Inode, entry: &EntrySpec) {
        self.disk.node_mut(inode).xattrs.clear();
        self.apply_header(inode, entry);
    }

    /// a link's header is applied to the shared inode, its xattrs are added; nothing goes through a symlink.
    fn describe_link(&mut self, inode: Inode, entry: &EntrySpec) {
        if self.disk.target(inode).is_none() {
            self.apply_header(inode, entry);
        }
    }

    fn apply_header(&mut self, inode: Inode, entry: &EntrySpec) {
        for (name, value) in &entry.xattrs {
            if self.keeps_xattr(name, value, inode) {
                self.disk.node_mut(inode).xattrs.insert(name.clone(), shown(name, value));
            } else {
                self.warn("xattr-dropped", &entry.path);
            }
        }
        let node = self.disk.node_mut(inode);
        // M3: type bits in the mode field mean nothing. Linux shows every symlink as 0777.
        node.mode = if matches!(node.kind, Kind::Symlink(_)) { 0o777 } else { entry.mode & 0o7777 };
        (node.uid, node.gid) = (entry.uid as u32, entry.gid as u32);
        node.mtime = entry.mtime;
    }

    /// "Skipped with a warning: xattrs that are dropped" (R-9, R-10, R-11, M18, M20).
    fn keeps_xattr(&self, name: &[u8], value: &[u8], inode: Inode) -> bool {
        match name {
            // M16: version 3 is for the user namespace whose root is the last word; 0 is everybody's.
            b"security.capability" => value.len() == 20 || value.ends_with(&[0; 4]),
            b"security.selinux" => self.options.selinux_keep,
            b"system.nfs4_acl" => false,
            _ if name.starts_with(b"trusted.overlay.") => false,
            _ if name.starts_with(b"user.overlay.") && self.options.userxattr => false,
            _ if name.starts_with(b"user.") => matches!(self.disk.node(inode).kind, Kind::File { .. } | Kind::Dir),
            _ => true,
        }
    }
}

/// M16: a capability of version 3 whose root is 0 is one of version 2.
fn shown(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut shown = value.to_vec();
    if name == b"security.capability" {
        shown.truncate(20);
        shown[3] = 2;
    }
    shown
}
