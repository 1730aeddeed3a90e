//! umoci 0.4: every layer applied one after another into one directory.
//!
//! Written after `oci/layer/tar_extract.go` of umoci and `join.go` of filepath-securejoin.

use super::containerd::note_numbers;
use super::*;
use crate::disk::{ROOT, SETGID, clean, made, split};
use std::collections::BTreeSet;

const SCOPE: Scope = Scope::Host;

pub fn imitate(layers: &[Vec<EntrySpec>], notes: &mut Vec<Note>) -> Result<Tree, Refused> {
    let mut disk = Disk::new();
    disk.node_mut(ROOT).mtime = (0, 0);
    for layer in layers {
        let mut apply = Apply { disk, notes, upper: BTreeSet::new() };
        layer.iter().try_for_each(|entry| apply.entry(entry))?;
        disk = apply.disk;
    }
    Ok(disk.tree())
}

struct Apply<'a> {
    disk: Disk,
    notes: &'a mut Vec<Note>,
    /// What this layer has put there, with all parents.
    upper: BTreeSet<Vec<u8>>,
}

impl Apply<'_> {
    fn entry(&mut self, entry: &EntrySpec) -> Result<(), Refused> {
        let name = clean(&entry.path);
        let (parent, file) = split(&name);
        if name.is_empty() && entry.kind != EntryKind::Dir {
            return Err(Refused::new("D4", &name, "refusing to change type of root directory"));
        }
        note_dot_dot(self.notes, &self.disk, parent);
        let dir = secure_join(&self.disk, parent).map_err(|e| refused("S12", parent, e))?;
        let path = join(&dir, file);
        if file.starts_with(b".wh.") && dir != parent {
            note(self.notes, "R-24", &dir);
        }
        // The parent as it was is put back at the end.
        let before = if path == dir { None } else { self.disk.find(&dir, Last::Keep, SCOPE).ok() };
        let before = before.map(|ino| self.disk.node(ino).clone());
        self.unpack(entry, &dir, file, &path)?;
        if let Some(was) = before {
            // Found again by name: another directory by now, if the entry replaced it.
            let ino = self.disk.find(&dir, Last::Keep, SCOPE).map_err(|e| refused("W2", &dir, e))?;
            let node = self.disk.node_mut(ino);
            (node.mode, node.uid, node.gid) = (was.mode, was.uid, was.gid);
            (node.mtime, node.xattrs) = (was.mtime, was.xattrs);
        }
        Ok(())
    }

    fn unpack(&mut self, entry: &EntrySpec, dir: &[u8], file: &[u8], path: &[u8]) -> Result<(), Refused> {
        if file.starts_with(b".wh.") {
            return self.whiteout(dir, file);
        }
        note_below_whiteout(self.notes, dir);
        let there = match self.disk.find(path, Last::Keep, SCOPE) {
            Err(Errno::TooLong) => return Err(refused("S11", path, Errno::TooLong)),
            other => other.ok(),
        };
        let dir_there = there.map_or(entry.kind == EntryKind::Dir, |ino| self.disk.is_dir(ino));
        self.mkdir_all(dir)?;
        if !dir_there || entry.kind != EntryKind::Dir {
            self.disk.remove_all(path, SCOPE).map_err(|e| refused("S10", path, e))?;
        }
        let ino = match (&entry.kind, node_of(entry)) {
            (EntryKind::Dir, _) => {
                self.mkdir_all(path)?;
                self.disk.find(path, Last::Keep, SCOPE).map_err(|e| refused("S10", path, e))?
            }
            (EntryKind::HardLink(target), _) => self.link(target, path)?,
            (EntryKind::Symlink(target), _) if target.is_empty() => return Err(refused("S1", path, Errno::NoEnt)),
            (EntryKind::Symlink(target), _) if target.len() > 4095 => return Err(refused("S1", path, Errno::TooLong)),
            (_, Some(node)) => self.disk.make(path, SCOPE, node).map_err(|e| refused("S10", path, e))?,
            (_, None) => unreachable!("only a hard link has no node"),
        };
        if entry.kind == EntryKind::Char(0, 0) {
            note(self.notes, "W21", path);
        }
        note_numbers(self.notes, entry, path);
        if path.is_empty() {
            note(self.notes, "D3", path);
        }
        if matches!(entry.kind, EntryKind::HardLink(_)) {
            note(self.notes, "L9", path);
        } else {
            self.metadata(entry, path, ino)?;
        }
        let mut at = path;
        while !at.is_empty() {
            self.upper.insert(at.to_vec());
            at = split(at).0;
        }
        Ok(())
    }

    fn metadata(&mut self, entry: &EntrySpec, path: &[u8], ino: Ino) -> Result<(), Refused> {
        chown(&mut self.disk, ino, entry);
        let node = self.disk.node_mut(ino);
        if !matches!(node.kind, Kind::Symlink(_)) {
            node.mode = entry.mode & 0o7777;
        }
        node.xattrs.clear();
        node.mtime = entry.mtime;
        for (name, value) in &entry.xattrs {
            if name == b"security.selinux" || name == b"system.nfs4_acl" {
                // With `--selinux keep` the rules keep the label.
                note_xattr(self.notes, name, value, path);
                continue;
            }
            if value.is_empty() {
                // Go's `Header.Xattrs` has no empty values.
                note(self.notes, "M12", path);
                continue;
            }
            if name.starts_with(b"trusted.overlay.") {
                note(self.notes, "O1", path);
            }
            match set_xattr(&mut self.disk, ino, name, value) {
                Xattr::Set => note_xattr(self.notes, name, value, path),
                Xattr::Unsupported => {}
                Xattr::NotPermitted => return Err(refused("M18", path, Errno::Perm)),
                Xattr::Never(rule, errno) => return Err(refused(rule, path, errno)),
            }
        }
        Ok(())
    }

    fn mkdir_all(&mut self, path: &[u8]) -> Result<(), Refused> {
        match self.disk.find(path, Last::Follow, SCOPE) {
            Ok(ino) if self.disk.is_dir(ino) => return Ok(()),
            Ok(_) => return Err(refused("S10", path, Errno::NotDir)),
            Err(_) => {}
        }
        let (above, _) = split(path);
        if !above.is_empty() {
            self.mkdir_all(above)?;
        }
        let errno = |e: Errno| refused(if e == Errno::TooLong { "S11" } else { "S10" }, path, e);
        let ino = self.disk.make(path, SCOPE, made(Kind::Dir)).map_err(errno)?;
        if self.disk.node(ino).mode & SETGID != 0 {
            note(self.notes, "D9", path);
        }
        // Its own time is now, and so is that of the directory that it was put into.
        note(self.notes, "D1", path);
        note(self.notes, "D1", above);
        Ok(())
    }

    fn link(&mut self, target: &[u8], path: &[u8]) -> Result<Ino, Refused> {
        let target = clean(target);
        let (parent, base) = split(&target);
        let dir = secure_join(&self.disk, parent).map_err(|e| refused("S12", path, e))?;
        self.disk.link(&join(&dir, base), path, SCOPE).map_err(|e| {
            let rule = if e == Errno::Perm { "L11" } else { "L6" };
            refused(rule, path, e)
        })
    }

    /// Removes what this layer has not put there itself.
    fn whiteout(&mut self, dir: &[u8], file: &[u8]) -> Result<(), Refused> {
        let opaque = file == b".wh..wh..opq";
        let path = if opaque { dir.to_vec() } else { join(dir, &file[4..]) };
        let ino = match self.disk.find(&path, Last::Keep, SCOPE) {
            Ok(ino) => ino,
            Err(Errno::NoEnt | Errno::NotDir) => return Ok(()),
            Err(e) => return Err(refused("S11", &path, e)),
        };
        if opaque && !self.disk.is_dir(ino) {
            note(self.notes, "O4", &path);
        }
        if matches!(self.disk.node(ino).kind, Kind::Symlink(_)) {
            // Entries before this one went through it.
            note(self.notes, "R-24", &path);
            note(self.notes, "R-24", &secure_join(&self.disk, &path).unwrap_or_default());
        }
        self.purge(&path, opaque)
    }

    fn purge(&mut self, path: &[u8], keep: bool) -> Result<(), Refused> {
        if !self.upper.contains(path) && !keep {
            return self.disk.remove_all(path, SCOPE).map_err(|e| refused("W1", path, e));
        }
        note(self.notes, "R-24", path);
        let ino = self.disk.find(path, Last::Keep, SCOPE).map_err(|e| refused("W1", path, e))?;
        let names: Vec<Vec<u8>> = self.disk.children(ino).keys().cloned().collect();
        names.iter().try_for_each(|name| self.purge(&join(path, name), false))
    }
}

/// `SecureJoin`: what is missing, or below something that is no directory, is taken as text.
fn secure_join(disk: &Disk, path: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut todo: VecDeque<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
    let mut at: Vec<u8> = Vec::new();
    let mut expansions = 0;
    while let Some(name) = todo.pop_front() {
        if expansions > 255 {
            return Err(Errno::Loop);
        }
        let full = clean(&join(&at, &name));
        if full.is_empty() {
            at.clear();
            continue;
        }
        match disk.find(&full, Last::Keep, SCOPE).map(|ino| &disk.node(ino).kind) {
            Ok(Kind::Symlink(target)) => {
                expansions += 1;
                if target.starts_with(b"/") {
                    at.clear();
                }
                let parts: Vec<Vec<u8>> = target.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
                for part in parts.into_iter().rev() {
                    todo.push_front(part);
                }
            }
            Ok(_) | Err(Errno::NoEnt | Errno::NotDir) => at = join(&at, &name),
            Err(e) => return Err(e),
        }
    }
    Ok(clean(&at))
}
