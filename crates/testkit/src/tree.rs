//! What a root file system looks like, and how two of them differ.
//!
//! Owns: names, types, contents, owners, modes, times, xattrs and hard-link groups. Refuses to know: where a tree comes
//! from. Never part of a tree: `st_dev`, inode numbers, directory link counts and sizes, atime and ctime.

use crate::tar::{hex, sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A regular file; `content` is kept where somebody wants to print it and is never compared.
    File {
        /// Size in bytes.
        len: u64,
        /// SHA-256 of the content.
        sha256: [u8; 32],
        /// The content, where kept.
        content: Option<Vec<u8>>,
    },
    /// A directory.
    Dir,
    /// A symbolic link and its target, verbatim.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket, which no layer can hold.
    Socket,
    /// A name that a raw listing shows and `lstat` does not know: a leaked whiteout.
    Phantom,
}

impl Kind {
    /// Makes a file's kind from its content.
    pub fn file(content: &[u8]) -> Kind {
        Kind::File { len: content.len() as u64, sha256: sha256(content), content: Some(content.to_vec()) }
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Kind) -> bool {
        match (self, other) {
            (Kind::File { len, sha256, .. }, Kind::File { len: l, sha256: s, .. }) => len == l && sha256 == s,
            (Kind::Symlink(a), Kind::Symlink(b)) => a == b,
            (Kind::Char(a, b), Kind::Char(c, d)) | (Kind::Block(a, b), Kind::Block(c, d)) => (a, b) == (c, d),
            (Kind::Dir, Kind::Dir) | (Kind::Fifo, Kind::Fifo) => true,
            (Kind::Socket, Kind::Socket) | (Kind::Phantom, Kind::Phantom) => true,
            _ => false,
        }
    }
}

impl Eq for Kind {}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::File { len, content: Some(content), .. } if *len <= 40 => write!(f, "file {:?}", text(content)),
            Kind::File { len, sha256, .. } => write!(f, "file of {len} bytes, sha256 {}", &hex(sha256)[..12]),
            Kind::Dir => f.write_str("directory"),
            Kind::Symlink(target) => write!(f, "symlink to {:?}", text(target)),
            Kind::Char(major, minor) => write!(f, "character device {major}:{minor}"),
            Kind::Block(major, minor) => write!(f, "block device {major}:{minor}"),
            Kind::Fifo => f.write_str("fifo"),
            Kind::Socket => f.write_str("socket"),
            Kind::Phantom => f.write_str("phantom (listed, but lstat fails)"),
        }
    }
}

/// A name's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky; 0777 for a symlink.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds rounded down, nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The smallest path of the hard-link group, for a non-directory that has more than one name in the tree.
    pub link: Option<Vec<u8>>,
}

impl Node {
    /// Makes a node 0755, 0:0, mtime 0, without xattrs.
    pub fn new(kind: Kind) -> Node {
        Node { kind, mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: BTreeMap::new(), link: None }
    }
}

/// A root file system: paths without leading slash (the root's is empty) and their nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree(pub BTreeMap<Vec<u8>, Node>);

impl Tree {
    /// Returns the node at a path.
    pub fn get(&self, path: impl AsRef<[u8]>) -> Option<&Node> {
        self.0.get(path.as_ref())
    }

    /// Sets every owner to 0:0, for views inside a user namespace with one id.
    pub fn without_owners(mut self) -> Tree {
        self.0.values_mut().for_each(|node| (node.uid, node.gid) = (0, 0));
        self
    }

    /// Removes the xattrs whose name makes `ignore` true.
    pub fn without_xattrs(mut self, ignore: impl Fn(&[u8]) -> bool) -> Tree {
        self.0.values_mut().for_each(|node| node.xattrs.retain(|name, _| !ignore(name)));
        self
    }

    /// Sets the root's metadata to 0755, 0:0, mtime 0, no xattrs.
    pub fn without_root_meta(mut self) -> Tree {
        if let Some(root) = self.0.get_mut(&b""[..]) {
            *root = Node::new(root.kind.clone());
        }
        self
    }

    /// Sets the link field of every node from an identity (`None` for directories): members of a group of two or more
    /// carry the smallest path of the group.
    pub fn group_links<I: Ord>(&mut self, identity: &BTreeMap<Vec<u8>, I>) {
        let mut groups: BTreeMap<&I, Vec<&Vec<u8>>> = BTreeMap::new();
        for (path, id) in identity {
            groups.entry(id).or_default().push(path);
        }
        for paths in groups.into_values().filter(|paths| paths.len() > 1) {
            for path in &paths {
                if let Some(node) = self.0.get_mut(*path) {
                    node.link = Some(paths[0].clone());
                }
            }
        }
    }

    /// Returns the whole tree as text, one line a name.
    pub fn listing(&self) -> String {
        let line = |(path, node): (&Vec<u8>, &Node)| {
            let mut line = format!(
                "/{} {:04o} {}:{} {}.{:09} {}",
                text(path),
                node.mode,
                node.uid,
                node.gid,
                node.mtime.0,
                node.mtime.1,
                node.kind
            );
            for (name, value) in &node.xattrs {
                line += &format!(" {}={:?}", text(name), text(value));
            }
            if let Some(link) = &node.link {
                line += &format!(" (linked with /{})", text(link));
            }
            line + "\n"
        };
        self.0.iter().map(line).collect()
    }
}

/// One way in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path without leading slash.
    pub path: Vec<u8>,
    /// What differs: `presence`, `kind`, `mode`, `owner`, `mtime`, `xattr NAME` or `links`.
    pub field: String,
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}: {}: expected {}, found {}", text(&self.path), self.field, self.expected, self.found)
    }
}

/// Lists what differs between two trees, in path order; empty when they are one tree.
pub fn compare(expected: &Tree, actual: &Tree) -> Vec<Difference> {
    let mut differences = Vec::new();
    let paths: BTreeSet<&Vec<u8>> = expected.0.keys().chain(actual.0.keys()).collect();
    for path in paths {
        match (expected.0.get(path), actual.0.get(path)) {
            (Some(e), Some(a)) => compare_nodes(path, e, a, &mut differences),
            (e, a) => {
                let show = |n: Option<&Node>| n.map_or("nothing".to_string(), |n| n.kind.to_string());
                differences.push(difference(path, "presence", show(e), show(a)));
            }
        }
    }
    differences
}

fn difference(path: &[u8], field: impl Into<String>, expected: String, found: String) -> Difference {
    Difference { path: path.to_vec(), field: field.into(), expected, found }
}

fn compare_nodes(path: &[u8], e: &Node, a: &Node, out: &mut Vec<Difference>) {
    if e.kind != a.kind {
        out.push(difference(path, "kind", e.kind.to_string(), a.kind.to_string()));
    }
    // Linux has no mode on symlinks.
    if e.mode != a.mode && !matches!(e.kind, Kind::Symlink(_)) {
        out.push(difference(path, "mode", format!("{:04o}", e.mode), format!("{:04o}", a.mode)));
    }
    if (e.uid, e.gid) != (a.uid, a.gid) {
        out.push(difference(path, "owner", format!("{}:{}", e.uid, e.gid), format!("{}:{}", a.uid, a.gid)));
    }
    if e.mtime != a.mtime {
        let show = |(s, n): (i64, u32)| format!("{s}.{n:09}");
        out.push(difference(path, "mtime", show(e.mtime), show(a.mtime)));
    }
    let names: BTreeSet<&Vec<u8>> = e.xattrs.keys().chain(a.xattrs.keys()).collect();
    for name in names {
        let (expected, found) = (e.xattrs.get(name), a.xattrs.get(name));
        if expected != found {
            let show = |v: Option<&Vec<u8>>| v.map_or("nothing".to_string(), |v| format!("{:?}", text(v)));
            out.push(difference(path, format!("xattr {}", text(name)), show(expected), show(found)));
        }
    }
    if e.link != a.link {
        let show =
            |l: &Option<Vec<u8>>| l.as_ref().map_or("one name".to_string(), |l| format!("group of /{}", text(l)));
        out.push(difference(path, "links", show(&e.link), show(&a.link)));
    }
}

/// Panics with up to 30 differences when the trees are not one tree; `expected` comes first.
#[track_caller]
pub fn assert_same(label: &str, expected: &Tree, actual: &Tree) {
    let differences = compare(expected, actual);
    if !differences.is_empty() {
        let shown: Vec<String> = differences.iter().take(30).map(|d| format!("  {d}")).collect();
        let more = match differences.len().saturating_sub(30) {
            0 => String::new(),
            n => format!("\n  and {n} more"),
        };
        panic!("{label}: {} differences\n{}{more}", differences.len(), shown.join("\n"));
    }
}

/// Makes bytes printable.
pub fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests;
