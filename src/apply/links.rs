//! What needs another place: hard links inside the layer, to what only lower layers have, to AUFS's hidden sources, and
//! entries that only the layers below can place.

use std::io::BufRead;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result, escape};
use crate::policy::Ownership;
use crate::root::{Dir, Kind, LinkOutcome, NodeMeta, Stat};

use super::dirs::{DirId, ROOT};
use super::journal::RecordRef;
use super::lay::{Layer, changed_meanwhile, owner_hint};
use super::plan::{LiteralPath, Node};
use super::{Data, Warning};

/// A file that AUFS kept aside.
pub(super) struct AufsFile {
    number: u64,
    /// Some name of the layer was linked to it.
    linked: bool,
}

impl AufsFile {
    /// Its name in the stash.
    fn in_stash(&self) -> Vec<u8> {
        format!("a{}", self.number).into_bytes()
    }

    /// What the journal calls a link to it: by number, since the archive's name may be used again.
    fn node(&self) -> Node {
        Node::AufsLink(self.number.to_string().into_bytes())
    }
}

/// A link to a file that AUFS keeps aside later in the archive.
pub(super) struct EarlyAufsLink {
    path: LiteralPath,
    stored: Vec<u8>,
    meta: NodeMeta,
    entry: Vec<u8>,
}

impl Layer<'_> {
    /// Keeps an entry that cannot be placed here for the replay over the layers below, which places or refuses it.
    pub(super) fn unplaced<R: BufRead>(
        &mut self,
        path: &LiteralPath,
        node: Node,
        meta: &NodeMeta,
        data: &mut Data<'_, R>,
    ) -> Result<()> {
        self.settle()?;
        self.facts.late_links += 1;
        if let Node::AufsLink(stored) = &node {
            return self.unplaced_aufs(path, stored, meta);
        }
        let Node::File { size, sparse } = &node else {
            return self.record(RecordRef::Make { path, placed: None, source: None, node: &node, meta, sum: None });
        };
        self.stashed += 1;
        let number = self.stashed;
        let name = number.to_string().into_bytes();
        let fd = self.stash.make_file(&name, 0o600)?.ok_or_else(|| changed_meanwhile(&name))?;
        let sum = self.write_data(&fd, *size, sparse.as_deref(), data)?;
        // A place that no entry can have: the stash takes it over at once.
        let nowhere = LiteralPath::from_clean([b"\0", &name[..]].concat());
        self.record(RecordRef::Make { path, placed: Some(&nowhere), source: None, node: &node, meta, sum })?;
        self.record(RecordRef::Stashed { placed: &nowhere, number })
    }

    /// As [`Layer::unplaced`], for a link to what AUFS kept aside: the stash gets one more name for it.
    fn unplaced_aufs(&mut self, path: &LiteralPath, stored: &[u8], meta: &NodeMeta) -> Result<()> {
        let Some(file) = self.aufs.get(stored) else {
            return self.early_aufs(path, stored, meta.clone(), path.as_bytes());
        };
        let (source, node) = (file.in_stash(), file.node());
        self.stashed += 1;
        let number = self.stashed;
        let name = number.to_string().into_bytes();
        if self.stash.link(&name, &self.stash.clone(), &source)? != LinkOutcome::Made {
            return Err(changed_meanwhile(&name));
        }
        let nowhere = LiteralPath::from_clean([b"\0", &name[..]].concat());
        self.record(RecordRef::Make { path, placed: Some(&nowhere), source: None, node: &node, meta, sum: None })?;
        self.record(RecordRef::Stashed { placed: &nowhere, number })
    }

    fn early_aufs(&mut self, path: &LiteralPath, stored: &[u8], meta: NodeMeta, entry: &[u8]) -> Result<()> {
        let (path, stored, entry) = (path.clone(), stored.to_vec(), entry.to_vec());
        let names = path.as_bytes().len() + stored.len() + entry.len();
        self.dirs.memory.add(size_of::<EarlyAufsLink>() + names)?;
        self.dirs.memory.add_xattrs(&meta.xattrs)?;
        self.early_aufs.push(EarlyAufsLink { path, stored, meta, entry });
        Ok(())
    }

    pub(super) fn hard_link(
        &mut self,
        path: &LiteralPath,
        target: &LiteralPath,
        meta: &NodeMeta,
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        let node = Node::HardLink(target.clone());
        let Some((target_parent, target_name)) = target.split_last() else {
            return Err(Error::new(ErrorKind::Malformed, "hard link to the root (L11)"));
        };
        let Some((parent_path, last)) = path.split_last() else {
            return Err(Error::new(ErrorKind::Malformed, "changes the type of the root (D4)"));
        };
        // Parents come first, so that the target may be looked up through them.
        let found = self.parent_for(&parent_path, &meta.meta).and_then(|p| Ok((p, self.existing(&target_parent)?)));
        let (parent, target_dir) = match found {
            Err(e) if self.may_be_wrong(&e) => {
                self.facts.late_links += 1;
                return self.record(RecordRef::Make { path, placed: None, source: None, node: &node, meta, sum: None });
            }
            other => other?,
        };
        let source = match target_dir {
            Some(id) => {
                let dir = self.dirs.handle(id)?;
                dir.stat(target_name)?.map(|st| (id, dir, st))
            }
            None => None,
        };
        let Some((source_id, source_dir, st)) = source else {
            // Perhaps a lower layer has it, perhaps it comes later: settled with the layers below.
            self.facts.late_links += 1;
            return self.record(RecordRef::Make { path, placed: None, source: None, node: &node, meta, sum: None });
        };
        let found = self.dirs.path(source_id).join(target_name);
        if st.kind == Kind::Directory && self.doubtful() {
            // It may be there only because nobody described it, and be something else in the layers below.
            self.facts.late_links += 1;
            return self.record(RecordRef::Make { path, placed: None, source: None, node: &node, meta, sum: None });
        }
        if st.kind == Kind::Directory {
            return Err(Error::new(
                ErrorKind::Malformed,
                format!("hard link to the directory \"{}\" (L11)", escape(target.as_bytes())),
            ));
        }
        let dir = self.dirs.handle(parent)?;
        let mut outcome = dir.link(last, &source_dir, target_name)?;
        if outcome == LinkOutcome::Taken {
            let same = dir.stat(last)?.is_some_and(|there| there.id == st.id);
            if same {
                outcome = LinkOutcome::Made;
            } else {
                if self.dirs.child(parent, last).is_some_and(|id| self.within(source_id, id)) {
                    if self.doubtful() {
                        // With the layers below the target may stand elsewhere.
                        self.facts.late_links += 1;
                        return self.record(RecordRef::Make {
                            path,
                            placed: None,
                            source: None,
                            node: &node,
                            meta,
                            sum: None,
                        });
                    }
                    return Err(Error::new(ErrorKind::Malformed, "hard link would remove its own target (L6)"));
                }
                self.duplicate(parent, &dir, last, entry, warn)?;
                outcome = dir.link(last, &source_dir, target_name)?;
            }
        }
        match outcome {
            LinkOutcome::Made => {}
            LinkOutcome::TooMany if self.joins_copy(&st, &dir, last)? => {}
            LinkOutcome::TooMany => {
                warn(Warning::new(
                    "too-many-links",
                    entry,
                    "the file system allows no more links; the file is copied (L12)",
                ));
                self.copy_instead(&dir, last, &source_dir, target_name, &st)?;
                self.overflow.insert(st.id, self.dirs.path(parent).join(last));
            }
            LinkOutcome::NoTarget | LinkOutcome::Taken => return Err(changed_meanwhile(last)),
        }
        if st.kind != Kind::Symlink {
            self.link_metadata(&dir, last, &st, meta, entry, warn)?;
        }
        let placed = self.dirs.path(parent).join(last);
        self.record(RecordRef::Make { path, placed: Some(&placed), source: Some(&found), node: &node, meta, sum: None })
    }

    /// Whether `id` is `above` or lies below it.
    fn within(&self, mut id: DirId, above: DirId) -> bool {
        loop {
            if id == above {
                return true;
            }
            if id == ROOT {
                return false;
            }
            id = self.dirs.parent(id);
        }
    }

    /// Applies a link header's metadata to the shared inode, changing only what differs, and keeping its capability.
    fn link_metadata(
        &mut self,
        dir: &Dir,
        name: &[u8],
        st: &Stat,
        node: &NodeMeta,
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        let want = &node.meta;
        let keep = self.options.ownership == Ownership::Keep;
        let owner = keep && (st.meta.uid, st.meta.gid) != (want.uid, want.gid);
        if owner {
            const CAPABILITY: &[u8] = b"security.capability";
            let capability = if st.kind == Kind::File { dir.get_xattr(name, CAPABILITY)? } else { None };
            dir.set_owner(name, want.uid, want.gid).map_err(|e| owner_hint(e, want))?;
            if let Some(value) = capability {
                let result = dir.set_xattr(name, CAPABILITY, &value);
                self.tolerate_xattr(result, CAPABILITY, &value, entry, warn)?;
            }
        }
        for (xattr, value) in &node.xattrs {
            if xattr.starts_with(b"user.") && st.kind != Kind::File {
                warn(Warning::new("user-xattr", entry, format!("xattr {} dropped (M18)", escape(xattr))));
                continue;
            }
            let result = dir.set_xattr(name, xattr, value);
            self.tolerate_xattr(result, xattr, value, entry, warn)?;
        }
        if owner || st.meta.mode != want.mode {
            dir.set_mode(name, want.mode)?;
        }
        // Setting an owner, an xattr or a mode leaves mtime alone.
        if st.meta.mtime != want.mtime || st.meta.atime != want.atime {
            dir.set_times(name, want)?;
        }
        Ok(())
    }

    /// Makes `name` a name of the copy that an earlier link became; a copy for each would let an archive fill the disk.
    fn joins_copy(&mut self, st: &Stat, dir: &Dir, name: &[u8]) -> Result<bool> {
        let Some(place) = self.overflow.get(&st.id).cloned() else { return Ok(false) };
        let Some((parent, copy)) = place.split_last() else { return Ok(false) };
        let Some(parent) = self.dirs.at(&parent) else { return Ok(false) };
        let from = self.dirs.handle(parent)?;
        Ok(dir.link(name, &from, copy)? == LinkOutcome::Made)
    }

    fn copy_instead(&mut self, dir: &Dir, name: &[u8], from: &Dir, source: &[u8], st: &Stat) -> Result<()> {
        if st.kind != Kind::File {
            return Err(Error::io("linkat", Errno::MLINK.into()));
        }
        self.facts.copied_links += 1;
        let input = from.open_file(source)?;
        let xattrs = crate::root::xattrs_of(&input)?;
        let output = dir.make_file(name, 0o600)?.ok_or_else(|| changed_meanwhile(name))?;
        self.facts.inodes += 1;
        crate::sys::reflink_or_copy(&input, &output)?;
        let node = NodeMeta { meta: st.meta, xattrs };
        self.finish_fd(&output, &node, 0o600, name, &mut |_| {})
    }

    pub(super) fn aufs_stash<R: BufRead>(&mut self, name: Vec<u8>, data: &mut Data<'_, R>) -> Result<()> {
        self.stashed += 1;
        let number = self.stashed;
        let file = format!("a{number}");
        let fd = self.stash.make_file(file.as_bytes(), 0o600)?.ok_or_else(|| changed_meanwhile(&name))?;
        let size = data.left;
        let sum = self.write_data(&fd, size, None, data)?;
        self.record(RecordRef::Aside { number, size, sum })?;
        self.dirs.memory.add(2 * size_of::<(Vec<u8>, AufsFile)>() + name.len())?;
        if let Some(old) = self.aufs.insert(name, AufsFile { number, linked: false }) {
            self.stash.unlink(&old.in_stash())?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one link is all of these")]
    pub(super) fn aufs_link(
        &mut self,
        path: &LiteralPath,
        parent: DirId,
        last: &[u8],
        stored: &[u8],
        meta: NodeMeta,
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        let Some(file) = self.aufs.get_mut(stored) else {
            return self.early_aufs(path, stored, meta, entry);
        };
        let (source, node) = (file.in_stash(), file.node());
        if !std::mem::replace(&mut file.linked, true) {
            self.facts.inodes += 1;
        }
        let dir = self.dirs.handle(parent)?;
        if dir.link(last, &self.stash.clone(), &source)? == LinkOutcome::Taken {
            self.duplicate(parent, &dir, last, entry, warn)?;
            if dir.link(last, &self.stash.clone(), &source)? != LinkOutcome::Made {
                return Err(changed_meanwhile(last));
            }
        }
        let st = dir.stat(last)?.ok_or_else(|| changed_meanwhile(last))?;
        self.link_metadata(&dir, last, &st, &meta, entry, warn)?;
        let placed = self.dirs.path(parent).join(last);
        self.record(RecordRef::Make { path, placed: Some(&placed), source: None, node: &node, meta: &meta, sum: None })
    }

    /// Makes the links that came before their source, then drops the sources: their content is in what linked to them.
    pub(super) fn settle_aufs(&mut self, warn: &mut dyn FnMut(Warning)) -> Result<()> {
        for link in std::mem::take(&mut self.early_aufs) {
            if !self.aufs.contains_key(&link.stored) {
                return Err(Error::new(
                    ErrorKind::Malformed,
                    "hard link to an AUFS link source that is not in the layer (R-32)",
                )
                .with_entry(&link.entry));
            }
            let Some((parent_path, last)) = link.path.split_last() else { continue };
            let parent = match self.parent_for(&parent_path, &link.meta.meta) {
                Err(e) if self.may_be_wrong(&e) => {
                    self.facts.late_links += 1;
                    self.unplaced_aufs(&link.path, &link.stored, &link.meta)?;
                    continue;
                }
                other => other?,
            };
            self.aufs_link(&link.path, parent, last, &link.stored, link.meta, &link.entry, warn)?;
        }
        for file in self.aufs.values() {
            self.stash.unlink(&file.in_stash())?;
        }
        Ok(())
    }
}
