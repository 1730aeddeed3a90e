//! Whether two tools made the same tree.
//!
//! Owns: describing a tree as it lies on disk, and what two descriptions differ in. Refuses to know: who is right. What a
//! rule explains is said with the rule and counted all the same.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use crate::cancel::CancelToken;
use crate::error::{Result, escape, from_io};
use crate::root::{Dir, Kind, ReadLink};
use crate::sys;

/// How a tool writes what a layer deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As overlayfs reads it.
    Overlay,
    /// Plain `tar`: the markers stay files of that name.
    Tar,
    /// Nothing is left of it: layers are applied to one tree.
    Flat,
}

/// What a name is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Kind(Kind),
    /// A whiteout as overlayfs has it.
    Whiteout,
    /// A file `.wh.NAME`, listed as NAME.
    Marker,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    what: What,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: (i64, u32),
    links: u64,
    rdev: u64,
    target: Vec<u8>,
    content: u64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    opaque: bool,
}

/// A tree, by path.
#[derive(Debug, Default)]
pub(super) struct Listing(BTreeMap<Vec<u8>, Node>);

const MARKER: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Describes everything below `root`, which itself is left out: it is no entry of the image.
///
/// # Errors
/// Those of reading, and `Cancelled`.
pub(super) fn list(root: &Path, form: Form, cancel: &CancelToken) -> Result<Listing> {
    let root = Dir::open(root)?;
    let mut out = Listing::default();
    let mut buffer = vec![0; 256 << 10];
    let mut left = vec![Vec::new()];
    while let Some(path) = left.pop() {
        cancel.check()?;
        let dir = root.open_below_or_self(&path)?;
        for listed in dir.list()? {
            let full = if path.is_empty() { listed.name.clone() } else { [&path, &b"/"[..], &listed.name].concat() };
            let Some(mut node) = describe(&dir, &listed.name, form, &mut buffer)? else { continue };
            if form == Form::Tar && listed.name.starts_with(MARKER) {
                if listed.name == OPAQUE {
                    // The directory itself was listed before what is in it.
                    if let Some(parent) = out.0.get_mut(&path) {
                        parent.opaque = true;
                    }
                    continue;
                }
                node.what = What::Marker;
                let name = listed.name.get(MARKER.len()..).unwrap_or_default();
                let full = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
                // Where the layer also has an entry of the name, the marker says nothing more.
                out.0.entry(full).or_insert(node);
                continue;
            }
            if node.what == What::Kind(Kind::Directory) {
                left.push(full.clone());
            }
            out.0.insert(full, node);
        }
    }
    Ok(out)
}

fn describe(dir: &Dir, name: &[u8], form: Form, buffer: &mut [u8]) -> Result<Option<Node>> {
    let Some(stat) = dir.stat(name)? else { return Ok(None) };
    let mut node = Node {
        what: What::Kind(stat.kind),
        mode: stat.meta.mode,
        owner: (stat.meta.uid, stat.meta.gid),
        size: 0,
        mtime: (stat.meta.mtime.seconds, stat.meta.mtime.nanos),
        links: 0,
        rdev: 0,
        target: Vec::new(),
        content: 0,
        xattrs: Vec::new(),
        opaque: false,
    };
    for xattr in sys::list_xattrs(dir, name)? {
        let value = sys::get_xattr(dir, name, &xattr)?.unwrap_or_default();
        let special = [&b"trusted.overlay."[..], b"user.overlay."].iter().find_map(|p| xattr.strip_prefix(*p));
        match special {
            None => node.xattrs.push((xattr, value)),
            Some(b"opaque") if form == Form::Overlay => node.opaque |= value == b"y",
            Some(b"whiteout") if form == Form::Overlay => node.what = What::Whiteout,
            Some(_) => {}
        }
    }
    node.xattrs.sort_unstable();
    match stat.kind {
        Kind::File => {
            (node.size, node.links) = (stat.size, stat.nlink);
            let mut hasher = Xxh3::new();
            let mut file = std::fs::File::from(dir.open_file(name)?);
            loop {
                let n = file.read(buffer).map_err(|e| from_io("read a file to compare", e))?;
                if n == 0 {
                    break;
                }
                hasher.update(buffer.get(..n).unwrap_or_default());
            }
            node.content = hasher.digest();
        }
        Kind::Symlink => {
            if let ReadLink::Target(target) = dir.read_link(name)? {
                node.target = target;
            }
        }
        Kind::CharDevice if form == Form::Overlay && stat.is_char_whiteout() => node.what = What::Whiteout,
        Kind::CharDevice | Kind::BlockDevice => node.rdev = stat.rdev,
        _ => {}
    }
    Ok(Some(node))
}

/// One thing in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which layer, counted from the bottom; `None` in a flattened tree.
    pub layer: Option<usize>,
    /// The name, escaped.
    pub path: String,
    /// What differs: `missing`, `extra`, `type`, `whiteout`, `opaque`, `mode`, `owner`, `size`, `mtime`, `links`, `target`,
    /// `device`, `content`, `xattrs`.
    pub what: &'static str,
    /// What we have, safe to show.
    pub ours: String,
    /// What the other tool has, safe to show.
    pub theirs: String,
    /// The rule that explains it, where one does.
    pub because: Option<&'static str>,
}

/// How two trees compare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Names in our tree or trees.
    pub entries: u64,
    /// How often each thing differs.
    pub counts: BTreeMap<&'static str, u64>,
    /// How many of these a rule explains, by rule.
    pub explained: BTreeMap<&'static str, u64>,
    /// The first ones, those that nothing explains before the others.
    pub first: Vec<Difference>,
}

/// Differences that are listed, of those that a rule explains and of those that none does.
const LISTED: usize = 10;

const WHITEOUT: &str =
    "plain tar extraction keeps whiteouts as files called .wh.NAME (OCI layer specification, whiteouts)";
const MARKED: &str = "the time of a directory with whiteouts changes with the tool that makes them after the directory";

impl Comparison {
    /// Returns how many differences there are.
    pub fn differences(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Returns how many of them no rule explains.
    pub fn unexplained(&self) -> u64 {
        self.differences().saturating_sub(self.explained.values().sum())
    }

    /// Adds what two trees differ in.
    pub(super) fn add(&mut self, layer: Option<usize>, ours: &Listing, theirs: &Listing) {
        self.entries += ours.0.len() as u64;
        for (path, node) in &ours.0 {
            match theirs.0.get(path) {
                Some(other) => self.nodes(layer, path, node, other, theirs),
                None => self.note(layer, path, "missing", show(&node.what), "nothing".into(), None),
            }
        }
        for (path, node) in theirs.0.iter().filter(|(path, _)| !ours.0.contains_key(*path)) {
            self.note(layer, path, "extra", "nothing".into(), show(&node.what), None);
        }
        self.first.sort_by_key(|difference| difference.because.is_some());
    }

    fn nodes(&mut self, layer: Option<usize>, path: &[u8], ours: &Node, theirs: &Node, tree: &Listing) {
        if ours.what != theirs.what {
            let because = (ours.what == What::Whiteout && theirs.what == What::Marker).then_some(WHITEOUT);
            let what = if because.is_some() { "whiteout" } else { "type" };
            return self.note(layer, path, what, show(&ours.what), show(&theirs.what), because);
        }
        if ours.what == What::Whiteout {
            return;
        }
        let mut note = |what, differs: bool, a: String, b: String, because| {
            if differs {
                self.note(layer, path, what, a, b, because);
            }
        };
        let is_link = ours.what == What::Kind(Kind::Symlink);
        let octal = |mode: u32| format!("{mode:04o}");
        note("mode", !is_link && ours.mode != theirs.mode, octal(ours.mode), octal(theirs.mode), None);
        let owner = |(uid, gid)| format!("{uid}:{gid}");
        note("owner", ours.owner != theirs.owner, owner(ours.owner), owner(theirs.owner), None);
        note("size", ours.size != theirs.size, ours.size.to_string(), theirs.size.to_string(), None);
        let time = |(seconds, nanos): (i64, u32)| format!("{seconds}.{nanos:09}");
        let has_marker = || {
            let inside = |key: &Vec<u8>| key.strip_prefix(path).is_some_and(|rest| rest.first() == Some(&b'/'));
            let below = tree.0.range(path.to_vec()..).skip(1).take_while(|(key, _)| key.starts_with(path));
            below.filter(|(key, _)| inside(key)).any(|(_, node)| node.what == What::Marker)
        };
        let because =
            (ours.what == What::Kind(Kind::Directory) && ours.mtime != theirs.mtime && has_marker()).then_some(MARKED);
        note("mtime", ours.mtime != theirs.mtime, time(ours.mtime), time(theirs.mtime), because);
        note("links", ours.links != theirs.links, ours.links.to_string(), theirs.links.to_string(), None);
        note("target", ours.target != theirs.target, escape(&ours.target), escape(&theirs.target), None);
        note("device", ours.rdev != theirs.rdev, ours.rdev.to_string(), theirs.rdev.to_string(), None);
        let hash = |content: u64| format!("{content:016x}");
        note("content", ours.content != theirs.content, hash(ours.content), hash(theirs.content), None);
        let names = |xattrs: &[(Vec<u8>, Vec<u8>)]| {
            let names: Vec<String> = xattrs.iter().take(5).map(|(name, _)| escape(name)).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(" ") }
        };
        note("xattrs", ours.xattrs != theirs.xattrs, names(&ours.xattrs), names(&theirs.xattrs), None);
        let opaque = |is: bool| if is { "opaque" } else { "not opaque" }.to_owned();
        note("opaque", ours.opaque != theirs.opaque, opaque(ours.opaque), opaque(theirs.opaque), None);
    }

    fn note(
        &mut self,
        layer: Option<usize>,
        path: &[u8],
        what: &'static str,
        ours: String,
        theirs: String,
        because: Option<&'static str>,
    ) {
        *self.counts.entry(what).or_default() += 1;
        if let Some(because) = because {
            *self.explained.entry(because).or_default() += 1;
        }
        if self.first.iter().filter(|other| other.because.is_some() == because.is_some()).count() < LISTED {
            self.first.push(Difference { layer, path: escape(path), what, ours, theirs, because });
        }
    }
}

fn show(what: &What) -> String {
    match what {
        What::Whiteout => "a whiteout",
        What::Marker => "a file .wh.NAME",
        What::Kind(Kind::Directory) => "a directory",
        What::Kind(Kind::File) => "a file",
        What::Kind(Kind::Symlink) => "a symlink",
        What::Kind(Kind::CharDevice) => "a character device",
        What::Kind(Kind::BlockDevice) => "a block device",
        What::Kind(Kind::Fifo) => "a pipe",
        What::Kind(Kind::Other) => "a socket",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(form: Form, make: &dyn Fn(&Path)) -> Listing {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        // Times that do not depend on when this test runs.
        let mut left = vec![dir.path().to_path_buf()];
        while let Some(path) = left.pop() {
            for entry in std::fs::read_dir(&path).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    std::fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
                }
            }
            std::fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        list(dir.path(), form, &CancelToken::new()).unwrap()
    }

    fn compared(ours: &Listing, theirs: &Listing) -> Comparison {
        let mut comparison = Comparison::default();
        comparison.add(None, ours, theirs);
        comparison
    }

    #[test]
    fn equal_trees_do_not_differ_and_every_change_is_found() {
        use std::os::unix::fs::PermissionsExt;
        let base = |dir: &Path| {
            std::fs::create_dir(dir.join("d")).unwrap();
            std::fs::write(dir.join("d/f"), "one").unwrap();
        };
        let ours = listing(Form::Flat, &base);
        let same = compared(&ours, &listing(Form::Flat, &base));
        assert_eq!((same.differences(), same.entries), (0, 2));
        type Change = fn(&Path);
        let changes: [(&str, Change); 5] = [
            ("content", |dir| std::fs::write(dir.join("d/f"), "two").unwrap()),
            ("size", |dir| std::fs::write(dir.join("d/f"), "more").unwrap()),
            ("missing", |dir| std::fs::remove_file(dir.join("d/f")).unwrap()),
            ("extra", |dir| std::fs::write(dir.join("d/g"), "").unwrap()),
            ("mode", |dir| std::fs::set_permissions(dir.join("d"), PermissionsExt::from_mode(0o700)).unwrap()),
        ];
        for (what, change) in changes {
            let theirs = listing(Form::Flat, &|dir| {
                base(dir);
                change(dir);
            });
            let found = compared(&ours, &theirs);
            assert!(found.counts.contains_key(what) && found.unexplained() > 0, "{what}: {found:?}");
        }
    }

    #[test]
    fn markers_that_plain_tar_leaves_are_counted_and_explained() {
        let theirs = listing(Form::Tar, &|dir| {
            std::fs::create_dir(dir.join("d")).unwrap();
            std::fs::write(dir.join("d/.wh.gone"), "").unwrap();
            std::fs::write(dir.join("d/.wh..wh..opq"), "").unwrap();
        });
        let mut ours = listing(Form::Overlay, &|dir| {
            std::fs::create_dir(dir.join("d")).unwrap();
            std::fs::write(dir.join("d/gone"), "").unwrap();
        });
        ours.0.get_mut(&b"d/gone"[..]).unwrap().what = What::Whiteout;
        let found = compared(&ours, &theirs);
        assert_eq!(found.counts, BTreeMap::from([("whiteout", 1), ("opaque", 1)]));
        assert_eq!(found.explained, BTreeMap::from([(WHITEOUT, 1)]));
        assert_eq!((found.unexplained(), found.first[0].what, found.first[1].what), (1, "opaque", "whiteout"));
        ours.0.get_mut(&b"d"[..]).unwrap().opaque = true;
        assert_eq!(compared(&ours, &theirs).unexplained(), 0);
    }
}
