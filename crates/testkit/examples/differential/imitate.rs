//! What each tool makes of an image, predicted from its source, every deviation from the rule book noted by its rule.
//!
//! A tool's tree is explained when it is exactly the predicted one: a difference that nobody foresaw cannot hide behind
//! one that somebody did. The notes say which rule a difference belongs to; they carry no proof of their own.

mod containerd;
mod storage;
mod umoci;

pub use storage::{DUPLICATES, Flavour};

use crate::disk::{Disk, Errno, Ino, Last, Scope, at_or_below, components, join};
use std::collections::VecDeque;
use testkit::model::{Model, Options, Reason};
use testkit::tree::{Kind, Node};
use testkit::{EntryKind, EntrySpec, Tree};

/// A tool under comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    Containerd,
    Podman,
    Docker,
    Umoci,
}

impl Tool {
    pub const ALL: [Tool; 4] = [Tool::Containerd, Tool::Docker, Tool::Podman, Tool::Umoci];

    pub fn name(self) -> &'static str {
        match self {
            Tool::Containerd => "containerd",
            Tool::Podman => "podman",
            Tool::Docker => "docker",
            Tool::Umoci => "umoci",
        }
    }

    /// Predicts what the tool makes of layers, bottom first.
    pub fn imitate(self, layers: &[Vec<EntrySpec>]) -> Imitation {
        let mut notes = Vec::new();
        let outcome = match self {
            Tool::Containerd => containerd::imitate(layers, &mut notes),
            Tool::Podman => storage::imitate(Flavour::Podman, layers, &mut notes),
            Tool::Docker => storage::imitate(Flavour::Docker, layers, &mut notes),
            Tool::Umoci => umoci::imitate(layers, &mut notes),
        };
        // As trees are described.
        let outcome = outcome.map(|tree| tree.without_xattrs(is_mark));
        let mut blind = with_acls(layers);
        if matches!(self, Tool::Podman | Tool::Docker) {
            blind.extend(redirected(layers));
        }
        Imitation { outcome, notes, blind }
    }

    /// Leaves out of an image every entry that this tool or the rules would refuse the image for.
    pub fn without_refusals(self, layers: &[Vec<EntrySpec>]) -> Vec<Vec<EntrySpec>> {
        let mut kept: Vec<Vec<EntrySpec>> = Vec::new();
        for layer in layers {
            kept.push(Vec::new());
            for entry in layer {
                let top = kept.len() - 1;
                kept[top].push(entry.clone());
                if self.imitate(&kept).outcome.is_err() || Model::of_image(Options::default(), &kept).is_err() {
                    kept[top].pop();
                }
            }
        }
        kept
    }
}

/// A rule and where the tool departs from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub rule: &'static str,
    pub path: Vec<u8>,
}

/// An image that the tool refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The rule under which it should not, or under which everybody does.
    pub rule: &'static str,
    /// The entry.
    pub path: Vec<u8>,
    /// What its message must contain.
    pub says: &'static str,
    /// It refuses for a duplicate as well, and whichever is noticed first is what it says.
    pub duplicates: bool,
}

impl Refused {
    fn new(rule: &'static str, path: &[u8], says: &'static str) -> Refused {
        Refused { rule, path: path.to_vec(), says, duplicates: false }
    }
}

/// A prediction.
#[derive(Debug, Clone)]
pub struct Imitation {
    pub outcome: Result<Tree, Refused>,
    pub notes: Vec<Note>,
    /// Where nothing is predicted, and with what rule as reason; each place and everything below it.
    pub blind: Vec<Note>,
}

/// Makes a refusal out of what a call answered.
fn refused(rule: &'static str, path: &[u8], errno: Errno) -> Refused {
    Refused::new(rule, path, errno.words())
}

fn note(notes: &mut Vec<Note>, rule: &'static str, path: &[u8]) {
    let note = Note { rule, path: path.to_vec() };
    if !notes.contains(&note) {
        notes.push(note);
    }
}

/// Tells whether an xattr is a mark of the overlays that these tools mount; `user.overlay.*` is data to them.
pub fn is_mark(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
}

/// Finds where ACLs of the archive change modes, and give ACLs to what is made below them (D11).
fn with_acls(layers: &[Vec<EntrySpec>]) -> Vec<Note> {
    let mut blind = Vec::new();
    for entry in layers.iter().flatten().filter(|entry| entry.xattrs.iter().any(|(name, _)| is_acl(name))) {
        note(&mut blind, "D11", &crate::disk::clean(&entry.path));
    }
    blind
}

/// Finds what xattrs of the archive would make overlayfs do, beyond opaque directories.
fn redirected(layers: &[Vec<EntrySpec>]) -> Vec<Note> {
    let mut blind = Vec::new();
    for entry in layers.iter().flatten() {
        for (name, value) in &entry.xattrs {
            match &name[..] {
                b"trusted.overlay.redirect" => {
                    note(&mut blind, "O1", &crate::disk::clean(&entry.path));
                    note(&mut blind, "O1", &crate::disk::clean(value));
                }
                b"trusted.overlay.metacopy" => note(&mut blind, "O1", &crate::disk::clean(&entry.path)),
                _ => {}
            }
        }
    }
    blind
}

/// Names the rule under which the rule book refuses an image.
pub fn rule_of(reason: &Reason) -> &'static str {
    match reason {
        Reason::NameTooLong => "S11",
        Reason::NameClamped => "S8",
        Reason::BareWhiteout => "W11",
        Reason::BelowWhiteout | Reason::WhiteoutMade => "W15",
        Reason::Duplicate => "D6",
        Reason::DeviceZero => "W21",
        Reason::RootRetyped => "D4",
        Reason::SymlinkTarget => "S1",
        Reason::Number => "M5",
        Reason::TooManySymlinks => "S12",
        Reason::LinkTargetMissing => "L6",
        Reason::LinkTargetDirectory => "L11",
        Reason::LinkRemovesTarget => "L6",
        Reason::XattrSize => "M21",
        Reason::Capability => "M16",
    }
}

/// The node that an entry's type makes, owned by root; `None` for a hard link.
fn node_of(entry: &EntrySpec) -> Option<Node> {
    let device = |major: u32, minor: u32| (major & 0xfff, minor & 0xf_ffff);
    let kind = match &entry.kind {
        EntryKind::File(content) => Kind::file(content),
        EntryKind::Dir => Kind::Dir,
        EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
        EntryKind::HardLink(_) => return None,
        EntryKind::Char(major, minor) => {
            let (major, minor) = device(*major, *minor);
            Kind::Char(major, minor)
        }
        EntryKind::Block(major, minor) => {
            let (major, minor) = device(*major, *minor);
            Kind::Block(major, minor)
        }
        EntryKind::Fifo => Kind::Fifo,
    };
    let mut node = crate::disk::made(kind);
    node.mode = if matches!(entry.kind, EntryKind::Symlink(_)) { 0o777 } else { entry.mode & 0o7777 };
    Some(node)
}

/// `lchown` with the numbers cut to 32 bits, as Go passes them on.
fn chown(disk: &mut Disk, ino: Ino, entry: &EntrySpec) {
    let node = disk.node_mut(ino);
    for (field, id) in [(&mut node.uid, entry.uid), (&mut node.gid, entry.gid)] {
        if id as u32 != u32::MAX {
            *field = id as u32;
        }
    }
    if matches!(node.kind, Kind::File { .. }) {
        node.xattrs.remove(&b"security.capability"[..]);
    }
}

/// What `lsetxattr` answers.
enum Xattr {
    Set,
    Unsupported,
    NotPermitted,
    /// What no tool goes on after, and the rule under which the rule book refuses it too.
    Never(&'static str, Errno),
}

const CAPABILITY: &[u8] = b"security.capability";

fn set_xattr(disk: &mut Disk, ino: Ino, name: &[u8], value: &[u8]) -> Xattr {
    let node = disk.node_mut(ino);
    // The top byte of the first word is the version, the last word of version 3 the namespace's root.
    let version = (value.get(3).copied(), value.len());
    let mut value = value.to_vec();
    match () {
        () if name.len() > 255 => return Xattr::Never("M21", Errno::Range),
        () if value.len() > 65_536 => return Xattr::Never("M21", Errno::TooBig),
        () if name == CAPABILITY && !matches!(version, (Some(2), 20) | (Some(3), 24)) => {
            return Xattr::Never("M16", Errno::Invalid);
        }
        () if name.starts_with(b"user.") && !matches!(node.kind, Kind::File { .. } | Kind::Dir) => {
            return Xattr::NotPermitted;
        }
        () if name.starts_with(b"system.") && !is_acl(name) => return Xattr::Unsupported,
        () => {}
    }
    if name == CAPABILITY && version == (Some(3), 24) && value.ends_with(&[0; 4]) {
        // To a reader whose root this is, the kernel shows version 2.
        value.truncate(20);
        value[3] = 2;
    }
    node.xattrs.insert(name.to_vec(), value);
    Xattr::Set
}

fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

/// Notes what xattrs do that all these tools set and the rules do not.
fn note_xattr(notes: &mut Vec<Note>, name: &[u8], value: &[u8], path: &[u8]) {
    match name {
        b"security.selinux" => note(notes, "M15", path),
        CAPABILITY if value.len() == 24 => note(notes, "M16", path),
        _ => {}
    }
}

/// Whether a component of a path is a whiteout's name.
fn has_whiteout_name(path: &[u8]) -> bool {
    components(path).any(|c| c.starts_with(b".wh."))
}

/// Notes that a name stands below a whiteout's name: what is made for it, and the directories on the way.
fn note_below_whiteout(notes: &mut Vec<Note>, parent: &[u8]) {
    if !has_whiteout_name(parent) {
        return;
    }
    let rule = if parent.starts_with(b".wh..wh.") { "W13" } else { "W15" };
    let mut at = Vec::new();
    for component in components(parent) {
        at = join(&at, component);
        note(notes, rule, &at);
        if component.starts_with(b".wh.") {
            return;
        }
    }
}

/// Notes what a tool leaves out that takes the `..` inside a symlink's target as text.
fn note_dot_dot(notes: &mut Vec<Note>, disk: &Disk, parent: &[u8]) {
    let mut at = Vec::new();
    for component in components(parent) {
        let above = at.clone();
        at = join(&at, component);
        let Ok(ino) = disk.find(&at, Last::Keep, Scope::Chroot) else { continue };
        let Kind::Symlink(target) = &disk.node(ino).kind else { continue };
        let mut before = if target.starts_with(b"/") { Vec::new() } else { above };
        for component in components(target) {
            if component == b".." {
                if !before.is_empty() {
                    note(notes, "S4", &before);
                }
                before = crate::disk::split(&before).0.to_vec();
            } else {
                before = join(&before, component);
            }
        }
    }
}

/// Follows symlinks in a tree as far as it has the path; the rest is kept.
fn resolved(tree: &Tree, path: &[u8]) -> Vec<u8> {
    let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut expansions = 0;
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            at.pop();
            continue;
        }
        let next = join(&at.join(&b'/'), &name);
        match tree.get(&next).map(|node| &node.kind) {
            Some(Kind::Symlink(target)) if expansions < 40 => {
                expansions += 1;
                if target.starts_with(b"/") {
                    at.clear();
                }
                for component in components(target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(component.to_vec());
                }
            }
            _ => at.push(name),
        }
    }
    at.join(&b'/')
}

/// What the two overlay imitations say of an entry that takes the place of one of its own layer.
fn note_replaced(notes: &mut Vec<Note>, lower: &Tree, there: &Node, entry: &EntrySpec, path: &[u8]) {
    if there.kind == Kind::Dir || entry.kind != EntryKind::Dir || !has_below(lower, path) {
        return;
    }
    note(notes, if crate::overlay::is_whiteout(there) { "W4" } else { "D6" }, path);
}

/// Whether anything of a tree stands below a path.
fn has_below(tree: &Tree, path: &[u8]) -> bool {
    tree.0.keys().any(|p| p != path && at_or_below(p, path))
}

/// What the two overlay imitations say of a directory that an entry implies.
fn note_implied(notes: &mut Vec<Note>, lower: &Tree, path: &[u8], marker: bool) {
    match lower.get(path).map(|node| &node.kind) {
        Some(Kind::Symlink(_)) => {
            let rule = if marker { "W17" } else { "S6" };
            note(notes, rule, path);
            note(notes, rule, &resolved(lower, path));
        }
        Some(Kind::Dir) => {}
        Some(_) if marker => note(notes, "W19", path),
        _ => {}
    }
    note(notes, "D1", path);
    if marker {
        note(notes, "W10", path);
    }
}

/// What a merged tree shows by itself: leaked whiteouts.
fn note_phantoms(notes: &mut Vec<Note>, tree: &Tree, layers: &[&Disk]) {
    use crate::disk::split;
    for (path, _) in tree.0.iter().filter(|(_, node)| node.kind == Kind::Phantom) {
        let opaque = |disk: &&Disk| {
            let found = disk.find(split(path).0, Last::Keep, Scope::Chroot);
            found.is_ok_and(|ino| disk.node(ino).xattrs.contains_key(crate::overlay::OPAQUE))
        };
        note(notes, if layers.iter().any(opaque) { "W9" } else { "W10" }, path);
    }
}
