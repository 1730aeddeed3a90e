//! The rule book as data: small images and what their root file system must be.
//!
//! Expectations are written by hand from the rules, not taken from the model: the model is one of the things they test.
//! A tree's expectation names every path there is (so that a leftover or phantom name fails), and of each node what the
//! rule is about.

mod archives;
mod directories;
mod links;
mod metadata;
mod opaque;
mod stacks;
mod symlinks;
mod usrmerge;
mod whiteouts;

pub use archives::{Archive, Means, archives};

use crate::entry::EntrySpec;
use crate::model::{LowerSymlinks, Options, RootEntry};
use crate::tree::{Kind, Node, Tree, text};
use std::collections::BTreeSet;

/// An image and what it must give.
#[derive(Debug, Clone)]
pub struct Case {
    /// Rule, then what happens, such as `w04_whiteout_then_directory`.
    pub name: &'static str,
    /// Rules of the rule book that it guards.
    pub rules: &'static [&'static str],
    /// The choices it is meant for; most cases use the default ones.
    pub options: Options,
    /// Layers, bottom first.
    pub layers: Vec<Vec<EntrySpec>>,
    /// What must come out.
    pub expect: Expect,
}

/// What an image must give.
#[derive(Debug, Clone)]
pub enum Expect {
    /// A tree with exactly these paths (the root, the empty path, need not be listed).
    Tree(Vec<(Vec<u8>, Want)>),
    /// The image is refused.
    Refused,
}

/// What is known of one node; what is `None` is not checked.
#[derive(Debug, Clone)]
pub struct Want {
    /// Its type, content or target.
    pub kind: Kind,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Modification time.
    pub mtime: Option<(i64, u32)>,
    /// All xattrs.
    pub xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    /// The smallest path of its hard-link group, or `Some(None)` for a node with one name.
    pub link: Option<Option<Vec<u8>>>,
}

impl Want {
    fn new(kind: Kind) -> Want {
        Want { kind, mode: None, owner: None, mtime: None, xattrs: None, link: None }
    }

    fn mode(mut self, mode: u32) -> Want {
        self.mode = Some(mode);
        self
    }

    fn owner(mut self, uid: u32, gid: u32) -> Want {
        self.owner = Some((uid, gid));
        self
    }

    fn mtime(self, seconds: i64) -> Want {
        self.mtime_nanos(seconds, 0)
    }

    fn mtime_nanos(mut self, seconds: i64, nanos: u32) -> Want {
        self.mtime = Some((seconds, nanos));
        self
    }

    /// Adds to the list of xattrs, which is complete.
    fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Want {
        self.xattrs.get_or_insert_default().push((name.into(), value.as_ref().to_vec()));
        self
    }

    fn no_xattrs(mut self) -> Want {
        self.xattrs = Some(Vec::new());
        self
    }

    /// In one hard-link group, whose smallest path this is.
    fn group(mut self, smallest: &str) -> Want {
        self.link = Some(Some(smallest.into()));
        self
    }

    /// The only name of its inode.
    fn alone(mut self) -> Want {
        self.link = Some(None);
        self
    }

    /// An implied directory made for an entry with this mtime.
    fn implied(self, mtime: i64) -> Want {
        self.mode(0o755).owner(0, 0).mtime(mtime).no_xattrs()
    }

    fn mismatches(&self, path: &[u8], node: &Node) -> Vec<String> {
        let mut out = Vec::new();
        let mut check = |field: &str, same: bool, expected: String, found: String| {
            if !same {
                out.push(format!("/{}: {field}: expected {expected}, found {found}", text(path)));
            }
        };
        check("kind", self.kind == node.kind, self.kind.to_string(), node.kind.to_string());
        if let Some(mode) = self.mode {
            check("mode", mode == node.mode, format!("{mode:04o}"), format!("{:04o}", node.mode));
        }
        if let Some(owner) = self.owner {
            check("owner", owner == (node.uid, node.gid), format!("{owner:?}"), format!("{}:{}", node.uid, node.gid));
        }
        if let Some(mtime) = self.mtime {
            check("mtime", mtime == node.mtime, format!("{mtime:?}"), format!("{:?}", node.mtime));
        }
        if let Some(xattrs) = &self.xattrs {
            let expected = xattrs.iter().cloned().collect();
            check("xattrs", node.xattrs == expected, format!("{expected:?}"), format!("{:?}", node.xattrs));
        }
        if let Some(link) = &self.link {
            check("links", *link == node.link, format!("{link:?}"), format!("{:?}", node.link));
        }
        out
    }
}

impl Case {
    /// Lists how a tree differs from what the case expects, one line a difference; empty when it is as expected.
    ///
    /// A case that expects a refusal is not met by any tree.
    pub fn mismatches(&self, tree: &Tree) -> Vec<String> {
        let Expect::Tree(wanted) = &self.expect else { return vec!["expected a refusal, found a tree".into()] };
        let mut out = Vec::new();
        for (path, want) in wanted {
            match tree.get(path) {
                Some(node) => out.extend(want.mismatches(path, node)),
                None => out.push(format!("/{}: expected {}, found nothing", text(path), want.kind)),
            }
        }
        let listed: BTreeSet<&Vec<u8>> = wanted.iter().map(|(path, _)| path).collect();
        for (path, node) in tree.0.iter().filter(|(path, _)| !path.is_empty() && !listed.contains(path)) {
            out.push(format!("/{}: expected nothing, found {}", text(path), node.kind));
        }
        out
    }

    fn with(mut self, options: Options) -> Case {
        self.options = options;
        self
    }

    fn shadow(self) -> Case {
        self.with(Options { lower_symlinks: LowerSymlinks::Shadow, ..Options::default() })
    }

    fn strict(self) -> Case {
        self.with(Options { strict: true, ..Options::default() })
    }

    fn root_applied(self) -> Case {
        self.with(Options { root_entry: RootEntry::Apply, ..Options::default() })
    }
}

/// Returns every case, in the order of the rule book's sections.
pub fn all() -> Vec<Case> {
    [
        whiteouts::cases(),
        opaque::cases(),
        links::cases(),
        symlinks::cases(),
        usrmerge::cases(),
        directories::cases(),
        metadata::cases(),
        stacks::cases(),
    ]
    .concat()
}

fn case<P: Into<Vec<u8>>>(
    name: &'static str,
    rules: &'static [&'static str],
    layers: Vec<Vec<EntrySpec>>,
    tree: Vec<(P, Want)>,
) -> Case {
    let tree = tree.into_iter().map(|(path, want)| (path.into(), want)).collect();
    Case { name, rules, options: Options::default(), layers, expect: Expect::Tree(tree) }
}

fn refused(name: &'static str, rules: &'static [&'static str], layers: Vec<Vec<EntrySpec>>) -> Case {
    Case { name, rules, options: Options::default(), layers, expect: Expect::Refused }
}

/// An empty root.
fn nothing() -> Vec<(&'static str, Want)> {
    Vec::new()
}

/// A file with this content.
fn f(content: impl AsRef<[u8]>) -> Want {
    Want::new(Kind::file(content.as_ref()))
}

/// A directory.
fn d() -> Want {
    Want::new(Kind::Dir)
}

/// A symlink with this target.
fn l(target: impl AsRef<[u8]>) -> Want {
    Want::new(Kind::Symlink(target.as_ref().to_vec()))
}

#[cfg(test)]
mod tests;
