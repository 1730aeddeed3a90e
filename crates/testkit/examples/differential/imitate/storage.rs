//! podman 4.3 (containers/storage) and Docker 20.10: `archive.Unpack` in a chroot with the overlay whiteout format, every
//! layer into a directory of its own.
//!
//! Written after `pkg/archive/archive.go` and `archive_linux.go` of containers/storage and of moby, which share their
//! origin, and after the duplicate check of tar-split's packer, through which both read every layer.

use super::containerd::{bound, note_numbers};
use super::*;
use crate::disk::{ROOT, SETGID, clean, made, split};
use crate::overlay::{OPAQUE, is_whiteout, merged};
use std::collections::BTreeSet;

const SCOPE: Scope = Scope::Chroot;

/// What tar-split says of a name that comes twice.
pub const DUPLICATES: &str = "duplicates of file paths not supported";

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    Podman,
    Docker,
}

pub fn imitate(flavour: Flavour, layers: &[Vec<EntrySpec>], notes: &mut Vec<Note>) -> Result<Tree, Refused> {
    if layers.is_empty() && flavour == Flavour::Podman {
        return Err(Refused::new("R-21", b"", "layer not known"));
    }
    // An empty directory stands below the lowest layer, so that one layer is an overlay as well.
    let mut done: Vec<Disk> = vec![root(flavour)];
    for layer in layers {
        let stack: Vec<&Disk> = done.iter().rev().collect();
        let lower = merged(&stack);
        // The packer reads on while the layer is unpacked: of two reasons to refuse it, either may come first.
        let duplicate = duplicate(layer);
        let mut apply = Apply { flavour, disk: root(flavour), lower: &lower, notes };
        match (apply.layer(layer), duplicate) {
            (Err(refused), duplicate) => return Err(Refused { duplicates: duplicate.is_some(), ..refused }),
            (Ok(()), Some(path)) => return Err(Refused::new("D6", &path, DUPLICATES)),
            (Ok(()), None) => done.push(apply.disk),
        }
    }
    let stack: Vec<&Disk> = done.iter().rev().collect();
    let tree = merged(&stack);
    note_phantoms(notes, &tree, &stack);
    note(notes, "D3", b"");
    Ok(tree)
}

/// Finds a name that a layer has twice.
fn duplicate(layer: &[EntrySpec]) -> Option<Vec<u8>> {
    let mut seen = BTreeSet::new();
    layer.iter().find(|entry| !seen.insert(go_clean(&entry.path))).map(|entry| clean(&entry.path))
}

fn root(flavour: Flavour) -> Disk {
    let mut disk = Disk::new();
    disk.node_mut(ROOT).mode = match flavour {
        Flavour::Podman => 0o555,
        Flavour::Docker => 0o755,
    };
    disk
}

struct Apply<'a> {
    flavour: Flavour,
    disk: Disk,
    lower: &'a Tree,
    notes: &'a mut Vec<Note>,
}

impl Apply<'_> {
    fn layer(&mut self, layer: &[EntrySpec]) -> Result<(), Refused> {
        let mut dirs = Vec::new();
        for entry in layer {
            if self.entry(entry)? {
                dirs.push(entry);
            }
        }
        dirs.into_iter().try_for_each(|entry| self.directory_time(entry))
    }

    /// Applies an entry; tells whether it made or changed a directory whose time is set at the end.
    fn entry(&mut self, entry: &EntrySpec) -> Result<bool, Refused> {
        let path = clean(&entry.path);
        let (parent, base) = split(&path);
        let marker = base.starts_with(b".wh.");
        let rooted = entry.path.starts_with(b"/") && path.is_empty();
        if !rooted {
            self.make_parents(parent, marker)?;
        }
        note_below_whiteout(self.notes, parent);
        if marker && self.disk.walk(parent, Last::Follow, SCOPE).is_ok_and(|place| place.real != parent) {
            note(self.notes, "W17", &self.disk.walk(parent, Last::Follow, SCOPE).expect("just walked").real);
        }
        if let Ok(ino) = self.disk.find(&path, Last::Keep, SCOPE) {
            if self.disk.is_dir(ino) && go_clean(&entry.path) == b"." {
                note(self.notes, if entry.kind == EntryKind::Dir { "D3" } else { "D4" }, b"");
                return Ok(false);
            }
            note_replaced(self.notes, self.lower, self.disk.node(ino), entry, &path);
            if !(self.disk.is_dir(ino) && entry.kind == EntryKind::Dir) {
                if path.is_empty() {
                    return Err(Refused::new("D4", &path, ""));
                }
                self.disk.remove_all(&path, SCOPE).map_err(|e| refused("S10", &path, e))?;
            }
        }
        if marker {
            self.whiteout(entry, parent, &base[4..])?;
            return Ok(false);
        }
        self.create(entry, &path)?;
        Ok(entry.kind == EntryKind::Dir)
    }

    fn parent_refused(&self, errno: Errno, parent: &[u8], marker: bool) -> Refused {
        let mut at = Vec::new();
        let (mut through_whiteout, mut through_symlink) = (false, false);
        for component in components(parent) {
            at = join(&at, component);
            if let Ok(ino) = self.disk.find(&at, Last::Keep, SCOPE) {
                through_whiteout |= is_whiteout(self.disk.node(ino));
                through_symlink |= matches!(self.disk.node(ino).kind, Kind::Symlink(_));
            }
        }
        let rule = match errno {
            Errno::Loop => "S12",
            Errno::TooLong => "S11",
            _ if through_whiteout && marker => "W6",
            _ if through_whiteout => "W5",
            Errno::NoEnt | Errno::Exist if through_symlink => "S4",
            _ if marker => "W19",
            _ => "S10",
        };
        refused(rule, parent, errno)
    }

    /// `MkdirAll` unless `lstat` knows the parent.
    fn make_parents(&mut self, parent: &[u8], marker: bool) -> Result<(), Refused> {
        match self.disk.find(parent, Last::Keep, SCOPE) {
            Err(Errno::NoEnt) => self.mkdir_all(parent, marker),
            // Whatever else is wrong shows when the name is made.
            _ => Ok(()),
        }
    }

    fn mkdir_all(&mut self, path: &[u8], marker: bool) -> Result<(), Refused> {
        match self.disk.find(path, Last::Follow, SCOPE) {
            Ok(ino) if self.disk.is_dir(ino) => return Ok(()),
            Ok(_) => return Err(self.parent_refused(Errno::NotDir, path, marker)),
            Err(_) => {}
        }
        let (above, _) = split(path);
        if !above.is_empty() {
            self.mkdir_all(above, marker)?;
        }
        let place = self.disk.walk(path, Last::Keep, SCOPE).map_err(|e| self.parent_refused(e, path, marker))?;
        let made = self.disk.make(path, SCOPE, made(Kind::Dir));
        let ino = made.map_err(|e| self.parent_refused(e, path, marker))?;
        let node = self.disk.node_mut(ino);
        node.gid = 0;
        if node.mode & SETGID != 0 {
            note(self.notes, "D9", &place.real);
        }
        note_implied(self.notes, self.lower, &place.real, marker);
        Ok(())
    }

    fn whiteout(&mut self, entry: &EntrySpec, parent: &[u8], hidden: &[u8]) -> Result<(), Refused> {
        if hidden == b".wh..opq" {
            if parent.is_empty() {
                note(self.notes, "W8", b"");
            }
            // setxattr follows symlinks and takes any file.
            let ino = self.disk.find(parent, Last::Follow, SCOPE).map_err(|e| self.parent_refused(e, parent, true))?;
            if !self.disk.is_dir(ino) {
                note(self.notes, "O4", parent);
            }
            self.disk.node_mut(ino).xattrs.insert(OPAQUE.to_vec(), b"y".to_vec());
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(refused("W11", parent, Errno::Exist));
        }
        let path = join(parent, hidden);
        if path.starts_with(b".wh.") {
            note(self.notes, "W13", &path);
        }
        let mut node = made(Kind::Char(0, 0));
        (node.uid, node.gid) = (entry.uid as u32, entry.gid as u32);
        match self.disk.make(&path, SCOPE, node) {
            Ok(_) => Ok(()),
            Err(Errno::NotDir) if self.flavour == Flavour::Podman => {
                // Taken for a whiteout below a whiteout (W6), whatever really stands there.
                Ok(())
            }
            Err(Errno::Exist) => Err(refused("W2", &path, Errno::Exist)),
            Err(e) => Err(self.parent_refused(e, parent, true)),
        }
    }

    fn create(&mut self, entry: &EntrySpec, path: &[u8]) -> Result<(), Refused> {
        let parent = split(path).0;
        let there = self.disk.find(path, Last::Keep, SCOPE);
        let ino = match (&entry.kind, node_of(entry)) {
            (EntryKind::HardLink(target), _) => self.link(target, path)?,
            (EntryKind::Dir, _) if there.is_ok() => there.expect("just looked"),
            (EntryKind::Symlink(target), _) if target.is_empty() => return Err(refused("S1", path, Errno::NoEnt)),
            (EntryKind::Symlink(target), _) if target.len() > 4095 => return Err(refused("S1", path, Errno::TooLong)),
            (_, Some(node)) => {
                let place = self.disk.make(path, SCOPE, node);
                place.map_err(|e| self.parent_refused(e, parent, false))?
            }
            (_, None) => unreachable!("only a hard link has no node"),
        };
        if entry.kind == EntryKind::Char(0, 0) {
            note(self.notes, "W21", path);
        }
        if path.is_empty() {
            note(self.notes, "D3", b"");
        }
        note_numbers(self.notes, entry, path);
        let symlink = matches!(self.disk.node(ino).kind, Kind::Symlink(_));
        let link = matches!(entry.kind, EntryKind::HardLink(_));
        if link && (symlink || self.disk.node(ino).xattrs.contains_key(&b"security.capability"[..])) {
            note(self.notes, "L9", path);
        }
        chown(&mut self.disk, ino, entry);
        if !symlink {
            self.disk.node_mut(ino).mode = entry.mode & 0o7777;
        }
        if !symlink {
            self.disk.node_mut(ino).mtime = bound(self.notes, entry, path);
        } else if !link {
            self.disk.node_mut(ino).mtime = entry.mtime;
        }
        for (name, value) in &entry.xattrs {
            if name == b"security.selinux" && self.flavour == Flavour::Podman {
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
                Xattr::Never(rule, errno) => return Err(refused(rule, path, errno)),
                Xattr::NotPermitted if self.flavour == Flavour::Docker => {}
                Xattr::NotPermitted => return Err(refused("M18", path, Errno::Perm)),
            }
        }
        Ok(())
    }

    fn link(&mut self, target: &[u8], path: &[u8]) -> Result<Ino, Refused> {
        let target = clean(target);
        if self.disk.find(&target, Last::Keep, SCOPE).is_ok_and(|i| is_whiteout(self.disk.node(i))) {
            note(self.notes, "L13", path);
        }
        let lower = self.lower;
        self.disk.link(&target, path, SCOPE).map_err(|e| {
            let below = lower.get(resolved(lower, &target)).or(lower.get(&target)).is_some();
            let rule = match e {
                Errno::Loop => "S12",
                Errno::Perm => "L11",
                Errno::NoEnt if below => "L2",
                _ => "L6",
            };
            refused(rule, path, e)
        })
    }

    fn directory_time(&mut self, entry: &EntrySpec) -> Result<(), Refused> {
        let path = clean(&entry.path);
        let ino = self.disk.find(&path, Last::Follow, SCOPE).map_err(|e| refused("S5", &path, e))?;
        if !self.disk.is_dir(ino) || self.disk.find(&path, Last::Keep, SCOPE) != Ok(ino) {
            self.disk.names_of(ino).iter().for_each(|name| note(self.notes, "S5", name));
        }
        self.disk.node_mut(ino).mtime = bound(self.notes, entry, &path);
        Ok(())
    }
}

/// `filepath.Clean`.
fn go_clean(path: &[u8]) -> Vec<u8> {
    let absolute = path.starts_with(b"/");
    let mut out: Vec<&[u8]> = Vec::new();
    for component in components(path) {
        match out.last() {
            Some(last) if component == b".." && *last != b".." => drop(out.pop()),
            _ if component == b".." && absolute => {}
            _ => out.push(component),
        }
    }
    match (absolute, out.join(&b'/')) {
        (true, path) => [b"/", &path[..]].concat(),
        (false, path) if path.is_empty() => b".".to_vec(),
        (false, path) => path,
    }
}
