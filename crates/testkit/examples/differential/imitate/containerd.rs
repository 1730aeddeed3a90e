//! containerd 1.6: `archive.Apply` on a layer directory of its own, above the first with `OverlayConvertWhiteout`;
//! the first layer of an image is applied plainly (a bind mount).
//!
//! Written after `archive/tar.go` and `archive/tar_opts_linux.go` of containerd and `fs/path.go` of continuity.

use super::*;
use crate::disk::{SETGID, clean, made, split};
use crate::overlay::{OPAQUE, is_whiteout, merged};
use std::collections::BTreeSet;

const SCOPE: Scope = Scope::Host;

pub fn imitate(layers: &[Vec<EntrySpec>], notes: &mut Vec<Note>) -> Result<Tree, Refused> {
    let mut done: Vec<Disk> = Vec::new();
    for layer in layers {
        let parents: Vec<&Disk> = done.iter().rev().collect();
        let lower = view(&parents);
        let mut apply =
            Apply { disk: Disk::new(), parents, lower: &lower, notes, unpacked: BTreeSet::new(), dirs: Vec::new() };
        layer.iter().try_for_each(|entry| apply.entry(entry))?;
        apply.finish()?;
        let disk = apply.disk;
        done.push(disk);
    }
    let stack: Vec<&Disk> = done.iter().rev().collect();
    let tree = view(&stack);
    note_phantoms(notes, &tree, &stack);
    note(notes, "D3", b"");
    Ok(tree)
}

/// One layer is shown by a bind mount, whiteouts and all.
fn view(layers: &[&Disk]) -> Tree {
    match layers {
        [] => Disk::new().tree(),
        [one] => one.tree(),
        more => merged(more),
    }
}

struct Apply<'a> {
    disk: Disk,
    /// Layer directories below, topmost first.
    parents: Vec<&'a Disk>,
    lower: &'a Tree,
    notes: &'a mut Vec<Note>,
    unpacked: BTreeSet<Vec<u8>>,
    dirs: Vec<(&'a EntrySpec, Vec<u8>)>,
}

impl<'a> Apply<'a> {
    fn entry(&mut self, entry: &'a EntrySpec) -> Result<(), Refused> {
        let name = clean(&entry.path);
        if name.is_empty() {
            if entry.kind == EntryKind::Dir {
                note(self.notes, "D3", b"")
            } else {
                note(self.notes, "D4", b"")
            }
            return Ok(());
        }
        let (parent, base) = split(&name);
        let marker = base.starts_with(b".wh.");
        note_dot_dot(self.notes, &self.disk, parent);
        let parent = root_path(&self.disk, parent).map_err(|e| self.parent_refused(e, parent, marker))?;
        let path = join(&parent, base);
        self.mkparent(&parent, marker)?;
        note_below_whiteout(self.notes, &parent);
        if marker {
            if parent != split(&name).0 {
                note(self.notes, "W17", &parent);
            }
            return self.whiteout(entry, &parent, &base[4..]);
        }
        if let Ok(ino) = self.disk.find(&path, Last::Keep, SCOPE) {
            note_replaced(self.notes, self.lower, self.disk.node(ino), entry, &path);
            if !(self.disk.is_dir(ino) && entry.kind == EntryKind::Dir) {
                self.remove_all(&path)?;
            }
        }
        self.create(entry, &path)?;
        if entry.kind == EntryKind::Dir {
            self.dirs.push((entry, path.clone()));
        }
        self.unpacked.insert(path);
        Ok(())
    }

    fn remove_all(&mut self, path: &[u8]) -> Result<(), Refused> {
        self.disk.remove_all(path, SCOPE).map_err(|e| refused("S10", path, e))
    }

    fn parent_refused(&self, errno: Errno, parent: &[u8], marker: bool) -> Refused {
        // What stands in the way decides the rule.
        let mut at = Vec::new();
        let mut through_whiteout = false;
        for component in components(parent) {
            at = join(&at, component);
            through_whiteout |= self.disk.find(&at, Last::Keep, SCOPE).is_ok_and(|i| is_whiteout(self.disk.node(i)));
        }
        let rule = match errno {
            Errno::Loop => "S12",
            Errno::TooLong => "S11",
            _ if through_whiteout && marker => "W6",
            _ if through_whiteout => "W5",
            _ if marker => "W19",
            _ => "S10",
        };
        refused(rule, parent, errno)
    }

    /// Makes missing directories; what a layer below knows of them is copied, and then changed by what is put in.
    fn mkparent(&mut self, path: &[u8], marker: bool) -> Result<(), Refused> {
        match self.disk.find(path, Last::Keep, SCOPE) {
            Ok(ino) if self.disk.is_dir(ino) => return Ok(()),
            Ok(_) => return Err(self.parent_refused(Errno::NotDir, path, marker)),
            Err(Errno::NoEnt) => {}
            Err(e) => return Err(self.parent_refused(e, path, marker)),
        }
        let (above, _) = split(path);
        if !above.is_empty() {
            self.mkparent(above, marker)?;
        }
        let made = self.disk.make(path, SCOPE, made(Kind::Dir));
        let ino = made.map_err(|e| self.parent_refused(e, path, marker))?;
        // It sets the mode again, and not the group.
        let node = self.disk.node_mut(ino);
        if node.mode & SETGID != 0 {
            node.mode &= !SETGID;
            note(self.notes, "D9", path);
        }
        note_implied(self.notes, self.lower, path, marker);
        for parent in &self.parents {
            let there = root_path(parent, path).and_then(|p| parent.find(&p, Last::Keep, SCOPE));
            match there {
                Ok(found) if parent.is_dir(found) => {
                    let from = parent.node(found);
                    let node = self.disk.node_mut(ino);
                    (node.mode, node.uid, node.gid, node.mtime) = (from.mode, from.uid, from.gid, from.mtime);
                    node.xattrs = from.xattrs.clone();
                    node.xattrs.retain(|name, _| !name.starts_with(b"trusted."));
                    let seen = self.lower.get(path).map(|node| &node.kind);
                    if !matches!(seen, Some(Kind::Dir | Kind::Symlink(_))) {
                        note(self.notes, "X3", path);
                    }
                    break;
                }
                Ok(_) => break,
                Err(Errno::NoEnt) => {}
                Err(e) => return Err(self.parent_refused(e, path, marker)),
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, entry: &EntrySpec, parent: &[u8], hidden: &[u8]) -> Result<(), Refused> {
        if hidden == b".wh..opq" {
            return self.opaque(parent);
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(Refused::new("W11", parent, "invalid whiteout name"));
        }
        let path = join(parent, hidden);
        if path.starts_with(b".wh.") {
            note(self.notes, "W13", &path);
        }
        if self.parents.is_empty() {
            if self.disk.find(&path, Last::Keep, SCOPE).is_ok() {
                note(self.notes, "W2", &path);
            }
            return self.remove_all(&path);
        }
        let mut node = made(Kind::Char(0, 0));
        (node.uid, node.gid) = (entry.uid as u32, entry.gid as u32);
        let twice = |ino: Ino| is_whiteout(self.disk.node(ino));
        let rule = if self.disk.find(&path, Last::Keep, SCOPE).is_ok_and(twice) { "D6" } else { "W2" };
        let exists = |e: Errno| if e == Errno::Exist { refused(rule, &path, e) } else { refused("S11", &path, e) };
        self.disk.make(&path, SCOPE, node).map_err(exists)?;
        Ok(())
    }

    fn opaque(&mut self, parent: &[u8]) -> Result<(), Refused> {
        if !self.parents.is_empty() {
            if parent.is_empty() {
                note(self.notes, "W8", b"");
            }
            let ino = self.disk.find(parent, Last::Keep, SCOPE).map_err(|e| refused("O4", parent, e))?;
            self.disk.node_mut(ino).xattrs.insert(OPAQUE.to_vec(), b"y".to_vec());
            return Ok(());
        }
        // The first layer: whatever was not an entry goes, with what is below it.
        let mut todo = vec![parent.to_vec()];
        while let Some(dir) = todo.pop() {
            let Ok(ino) = self.disk.find(&dir, Last::Keep, SCOPE) else { continue };
            let names: Vec<Vec<u8>> = self.disk.children(ino).keys().cloned().collect();
            for name in names {
                let path = join(&dir, &name);
                if self.unpacked.contains(&path) {
                    todo.push(path);
                } else {
                    note(self.notes, "W2", &path);
                    self.remove_all(&path)?;
                }
            }
        }
        Ok(())
    }

    fn create(&mut self, entry: &EntrySpec, path: &[u8]) -> Result<(), Refused> {
        let ino = match (&entry.kind, node_of(entry)) {
            (EntryKind::HardLink(target), _) => self.link(target, path)?,
            (EntryKind::Dir, _) if self.disk.find(path, Last::Keep, SCOPE).is_ok() => {
                self.disk.find(path, Last::Keep, SCOPE).expect("was there")
            }
            (EntryKind::Symlink(target), _) if target.is_empty() => return Err(refused("S1", path, Errno::NoEnt)),
            (EntryKind::Symlink(target), _) if target.len() > 4095 => return Err(refused("S1", path, Errno::TooLong)),
            (_, Some(node)) => self.disk.make(path, SCOPE, node).map_err(|e| refused("S11", path, e))?,
            (_, None) => unreachable!("only a hard link has no node"),
        };
        if entry.kind == EntryKind::Char(0, 0) {
            note(self.notes, "W21", path);
        }
        note_numbers(self.notes, entry, path);
        if entry.kind == EntryKind::Dir && !self.disk.node(ino).xattrs.is_empty() {
            note(self.notes, "D5", path);
        }
        let to_symlink =
            matches!(entry.kind, EntryKind::HardLink(_)) && matches!(self.disk.node(ino).kind, Kind::Symlink(_));
        if to_symlink {
            note(self.notes, "L9", path);
        }
        let capable = self.disk.node(ino).xattrs.contains_key(&b"security.capability"[..]);
        chown(&mut self.disk, ino, entry);
        if capable && matches!(entry.kind, EntryKind::HardLink(_)) {
            note(self.notes, "L9", path);
        }
        for (name, value) in &entry.xattrs {
            if name.starts_with(b"trusted.") {
                note(self.notes, "O1", path);
                continue;
            }
            match set_xattr(&mut self.disk, ino, name, value) {
                Xattr::Set => note_xattr(self.notes, name, value, path),
                Xattr::Unsupported => {}
                Xattr::Never(rule, errno) => return Err(refused(rule, path, errno)),
                // Debian's has the correction of later versions.
                Xattr::NotPermitted => {}
            }
        }
        let mtime = bound(self.notes, entry, path);
        let node = self.disk.node_mut(ino);
        if !matches!(node.kind, Kind::Symlink(_)) {
            node.mode = entry.mode & 0o7777;
        }
        node.mtime = mtime;
        Ok(())
    }

    fn link(&mut self, target: &[u8], path: &[u8]) -> Result<Ino, Refused> {
        let target = clean(target);
        let (parent, base) = split(&target);
        let rule = |e: Errno, lower: &Tree| match e {
            Errno::Loop => "S12",
            Errno::Perm => "L11",
            Errno::NoEnt if lower.get(resolved(lower, &target)).is_some() => "L2",
            Errno::NoEnt if lower.get(&target).is_some() => "L2",
            _ => "L6",
        };
        let place = root_path(&self.disk, parent).map_err(|e| refused(rule(e, self.lower), path, e))?;
        let place = join(&place, base);
        if self.disk.find(&place, Last::Keep, SCOPE).is_ok_and(|i| is_whiteout(self.disk.node(i))) {
            note(self.notes, "L13", path);
        }
        self.disk.link(&place, path, SCOPE).map_err(|e| refused(rule(e, self.lower), path, e))
    }

    /// Sets the times of directories, found again by name through whatever became of their parents.
    fn finish(&mut self) -> Result<(), Refused> {
        for (entry, was) in std::mem::take(&mut self.dirs) {
            let name = clean(&entry.path);
            let path = root_path(&self.disk, &name).map_err(|e| refused("S5", &name, e))?;
            let ino = self.disk.find(&path, Last::Keep, SCOPE).map_err(|e| refused("S5", &name, e))?;
            if path != was || !self.disk.is_dir(ino) {
                self.disk.names_of(ino).iter().for_each(|name| note(self.notes, "S5", name));
            }
            self.disk.node_mut(ino).mtime = bound(self.notes, entry, &path);
        }
        Ok(())
    }
}

/// Times before 1970 become 1970.
pub(super) fn bound(notes: &mut Vec<Note>, entry: &EntrySpec, path: &[u8]) -> (i64, u32) {
    if entry.mtime.0 < 0 {
        note(notes, "M9", path);
        return (0, 0);
    }
    entry.mtime
}

/// Numbers that the tools cut and the rules refuse.
pub(super) fn note_numbers(notes: &mut Vec<Note>, entry: &EntrySpec, path: &[u8]) {
    if entry.uid >= u64::from(u32::MAX) || entry.gid >= u64::from(u32::MAX) {
        note(notes, "M5", path);
    }
    if let EntryKind::Char(major, minor) | EntryKind::Block(major, minor) = entry.kind
        && (major > 0xfff || minor > 0xf_ffff)
    {
        note(notes, "M6", path);
    }
}

/// `fs.RootPath`: symlinks resolved below the root, but what they leave is cleaned as text.
pub(super) fn root_path(disk: &Disk, path: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut walked = 0;
    let mut path = path.to_vec();
    loop {
        let before = walked;
        path = walk_links(disk, &path, &mut walked)?;
        if before == walked {
            return Ok(clean(&path));
        }
    }
}

fn walk_links(disk: &Disk, path: &[u8], walked: &mut usize) -> Result<Vec<u8>, Errno> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    let (dir, file) = path.split_at(at);
    match (dir, file) {
        (b"", file) => Ok(walk_link(disk, file, walked)?.0),
        (b"/", b"") => Ok(dir.to_vec()),
        (dir, b"") => walk_links(disk, &dir[..dir.len() - 1], walked),
        (dir, file) => {
            let new_dir = walk_links(disk, dir, walked)?;
            let (new, link) = walk_link(disk, &go_join(&new_dir, file), walked)?;
            Ok(if !link || new.starts_with(b"/") { new } else { go_join(&new_dir, &new) })
        }
    }
}

fn walk_link(disk: &Disk, path: &[u8], walked: &mut usize) -> Result<(Vec<u8>, bool), Errno> {
    if *walked > 255 {
        return Err(Errno::Loop);
    }
    let inside = clean(path);
    let rooted = [b"/", &inside[..]].concat();
    if inside.is_empty() {
        return Ok((rooted, false));
    }
    match disk.find(&inside, Last::Keep, SCOPE) {
        Err(Errno::NoEnt) => Ok((rooted, false)),
        Err(e) => Err(e),
        Ok(ino) => match &disk.node(ino).kind {
            Kind::Symlink(target) => {
                *walked += 1;
                Ok((target.clone(), true))
            }
            _ => Ok((rooted, false)),
        },
    }
}

/// `filepath.Join` of two parts, where the first may be absolute or not.
fn go_join(a: &[u8], b: &[u8]) -> Vec<u8> {
    let joined = [a, b"/", b].concat();
    if a.starts_with(b"/") {
        return [b"/", &clean(&joined)[..]].concat();
    }
    // Relative: leading ".." stay.
    let mut out: Vec<&[u8]> = Vec::new();
    for component in components(&joined) {
        match out.last() {
            Some(last) if component == b".." && *last != b".." => drop(out.pop()),
            _ => out.push(component),
        }
    }
    out.join(&b'/')
}
