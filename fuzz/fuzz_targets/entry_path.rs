//! The naming rules on arbitrary entries: whatever they let through is a name that may be made.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unply::apply::{Action, LiteralPath, Node, PlanOptions, plan};
use unply::policy::{Limits, Selinux, TreeOptions, XattrFlavour};
use unply::tar::{Entry, EntryKind, Timestamp};

#[derive(Debug, Arbitrary)]
enum Kind {
    File(u32),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Char(u16, u32),
    Block(u16, u32),
    Directory,
    Fifo,
}

/// A component that means something, or any bytes.
#[derive(Debug, Arbitrary)]
enum Part {
    Whiteout(Vec<u8>),
    Bare,
    Opaque,
    AufsLinks,
    Aufs(Vec<u8>),
    Dot,
    DotDot,
    Empty,
    Name(Vec<u8>),
    Long(u8, u16),
}

#[derive(Debug, Arbitrary)]
struct Input {
    parts: Vec<Part>,
    absolute: bool,
    kind: Kind,
    target_parts: Vec<Part>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    strict: bool,
    user: bool,
    keep_selinux: bool,
}

fn path(parts: &[Part]) -> Vec<u8> {
    let part = |p: &Part| -> Vec<u8> {
        match p {
            Part::Whiteout(name) => [b".wh.", &name[..]].concat(),
            Part::Bare => b".wh.".to_vec(),
            Part::Opaque => b".wh..wh..opq".to_vec(),
            Part::AufsLinks => b".wh..wh.plnk".to_vec(),
            Part::Aufs(name) => [b".wh..wh.", &name[..]].concat(),
            Part::Dot => b".".to_vec(),
            Part::DotDot => b"..".to_vec(),
            Part::Empty => Vec::new(),
            Part::Name(name) => name.clone(),
            Part::Long(byte, n) => vec![*byte; usize::from(*n % 600)],
        }
    };
    let mut bytes = parts.iter().map(part).collect::<Vec<_>>().join(&b'/');
    bytes.retain(|b| *b != 0); // the parser never lets a NUL through
    bytes
}

fn check_component(name: &[u8]) {
    assert!(!name.is_empty() && name != b"." && name != b"..", "a component {name:?}");
    assert!(name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0), "a component {name:?}");
}

fn check_path(path: &LiteralPath) {
    if !path.is_root() {
        path.as_bytes().split(|b| *b == b'/').for_each(check_component);
    }
    assert_eq!(&LiteralPath::clean(path.as_bytes()).0, path, "cleaning is not idempotent");
}

fuzz_target!(|input: Input| {
    let mut name = path(&input.parts);
    if input.absolute {
        name.insert(0, b'/');
    }
    let stored = if let Kind::File(n) = input.kind { u64::from(n) } else { 0 };
    // The parser lets no NUL through here either.
    let target = |own: &[u8]| -> Vec<u8> {
        if own.is_empty() { path(&input.target_parts) } else { own.iter().copied().filter(|b| *b != 0).collect() }
    };
    let kind = match &input.kind {
        Kind::File(size) => EntryKind::File { size: u64::from(*size), sparse: None },
        Kind::HardLink(t) => EntryKind::HardLink { target: target(t) },
        Kind::Symlink(t) => EntryKind::Symlink { target: target(t) },
        Kind::Char(major, minor) => EntryKind::CharDevice { major: u32::from(*major), minor: *minor },
        Kind::Block(major, minor) => EntryKind::BlockDevice { major: u32::from(*major), minor: *minor },
        Kind::Directory => EntryKind::Directory,
        Kind::Fifo => EntryKind::Fifo,
    };
    let entry = Entry {
        offset: 0,
        path: name,
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds: 0, nanos: 0 },
        atime: None,
        xattrs: input.xattrs,
        stored,
    };
    let options = PlanOptions {
        tree: TreeOptions {
            strict: input.strict,
            selinux: if input.keep_selinux { Selinux::Keep } else { Selinux::Drop },
            ..TreeOptions::default()
        },
        flavour: if input.user { XattrFlavour::User } else { XattrFlavour::Trusted },
        limits: Limits::default(),
    };
    let Ok(action) = plan(entry.clone(), &options, &mut |_| {}) else { return };
    let prefix = options.flavour.prefix().as_bytes();
    match action {
        Action::Skip => {}
        Action::Root(meta) => assert!(meta.xattrs.iter().all(|(n, _)| !n.starts_with(prefix))),
        Action::Whiteout { parent, name } => {
            check_path(&parent);
            check_component(&name);
            assert!(!name.starts_with(b".wh."));
        }
        Action::Opaque { dir } => check_path(&dir),
        Action::AufsStash(name) => assert!(!name.is_empty() && !name.contains(&b'/')),
        Action::Make { path, node, meta } => {
            assert!(!path.is_root(), "the root is made");
            check_path(&path);
            assert!(path.components().all(|c| !c.starts_with(b".wh.")), "{path:?} reaches the disk");
            assert!(path.depth() <= options.limits.max_depth);
            assert!(meta.xattrs.iter().all(|(n, _)| !n.starts_with(prefix) && !n.starts_with(b"trusted.overlay.")));
            assert_ne!(node, Node::CharDevice(0, 0), "a whiteout made of a device");
            if let Node::HardLink(target) = node {
                check_path(&target);
            }
        }
    }
});
