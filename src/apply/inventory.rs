//! What a layer directory must hold, read from its journal.
//!
//! Owns: how records of entries add up to names, inodes and marks. Refuses to know: where the directory is, how it is compared.
//!
//! The journal says where everything was placed, so no rule of naming is applied here again: names come and go, and links
//! share an inode. Memory: about 150 bytes and the path for every name of the layer.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::ops::Bound;

use crate::error::{Error, ErrorKind, Result};
use crate::root::NodeMeta;
use crate::tar::Region;

use super::journal::{Reader, Record, Sum};
use super::plan::{LiteralPath, Node};

/// One of the inodes of a layer directory, counted from 0 in the order of making.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode(usize);

/// What stands under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Laid {
    /// A directory.
    Directory {
        /// Its metadata.
        meta: NodeMeta,
        /// It carries overlayfs's opaque mark.
        opaque: bool,
        /// It holds whiteouts.
        whiteouts: bool,
    },
    /// A whiteout.
    Whiteout,
    /// Something else, which other names may share.
    Node(Inode),
}

/// An inode that is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaidNode {
    /// What it is.
    pub kind: LaidKind,
    /// Metadata after the last link header that changed it.
    pub meta: NodeMeta,
}

/// The types of inodes besides directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaidKind {
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// Where a sparse file has data.
        sparse: Option<Vec<Region>>,
        /// Checksum of its data, where one was taken.
        sum: Option<Sum>,
    },
    /// A symlink with this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

#[derive(Debug)]
struct Aside {
    size: u64,
    sum: Option<Sum>,
    /// Its inode, once something was linked to it.
    inode: Option<Inode>,
}

/// The names of one tree, sorted by bytes; the root is the empty path.
pub type Names = BTreeMap<Vec<u8>, Laid>;

/// The content of a layer directory and of its stash.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The layer directory.
    pub tree: Names,
    /// The stash: what only a fix-up may still need, each under its number.
    pub stash: Names,
    nodes: Vec<LaidNode>,
    /// Files that AUFS kept aside, by number.
    aside: HashMap<u64, Aside>,
    /// How many names each node has, by number.
    names: Vec<u32>,
}

impl Inventory {
    /// Reads a journal to its end.
    ///
    /// # Errors
    /// `Other` where the journal is damaged, or was cut before its last part.
    pub fn read<R: Read>(mut journal: Reader<R>) -> Result<Inventory> {
        let mut out = Inventory::default();
        while let Some(record) = journal.read()? {
            out.add(record)?;
        }
        if !matches!(out.tree.get(&b""[..]), Some(Laid::Directory { .. })) {
            return Err(damaged("it has no end"));
        }
        out.names = vec![0; out.nodes.len()];
        for laid in out.tree.values().chain(out.stash.values()) {
            if let Laid::Node(inode) = laid {
                out.names[inode.0] += 1;
            }
        }
        Ok(out)
    }

    /// Returns an inode that one of the trees names.
    ///
    /// # Panics
    /// Never for an [`Inode`] of this inventory.
    pub fn node(&self, inode: Inode) -> &LaidNode {
        &self.nodes[inode.0]
    }

    /// Returns how many names an inode has in tree and stash together.
    pub fn names_of(&self, inode: Inode) -> u32 {
        self.names.get(inode.0).copied().unwrap_or(0)
    }

    fn add(&mut self, record: Record) -> Result<()> {
        match record {
            Record::Make { placed: Some(placed), source, node, meta, sum, .. } => {
                self.make(placed, source, node, meta, sum)
            }
            Record::Stashed { placed, number } => {
                for (path, laid) in take_below(&mut self.tree, placed.as_bytes()) {
                    let mut to = number.to_string().into_bytes();
                    to.extend_from_slice(path.get(placed.as_bytes().len()..).unwrap_or_default());
                    self.stash.insert(to, laid);
                }
                Ok(())
            }
            Record::Aside { number, size, sum } => {
                self.aside.insert(number, Aside { size, sum, inode: None });
                Ok(())
            }
            Record::Removed { placed } => {
                take_below(&mut self.tree, placed.as_bytes());
                Ok(())
            }
            Record::Left { placed, meta, opaque, whiteouts } => {
                self.tree.insert(placed.as_bytes().to_vec(), Laid::Directory { meta, opaque, whiteouts });
                Ok(())
            }
            Record::Hides { placed } => {
                self.tree.insert(placed.as_bytes().to_vec(), Laid::Whiteout);
                Ok(())
            }
            // Not placed, or without a trace of its own.
            Record::Make { placed: None, .. } | Record::Whiteout { .. } | Record::Opaque { .. } => Ok(()),
        }
    }

    fn make(
        &mut self,
        placed: LiteralPath,
        source: Option<LiteralPath>,
        node: Node,
        meta: NodeMeta,
        sum: Option<Sum>,
    ) -> Result<()> {
        let kind = match node {
            // Said once at the end, as it was left.
            Node::Directory => return Ok(()),
            Node::HardLink(_) => {
                let found = source.as_ref().and_then(|s| self.tree.get(s.as_bytes()));
                let Some(Laid::Node(inode)) = found else { return Err(damaged("a link has no target")) };
                return self.link(placed, *inode, meta);
            }
            Node::AufsLink(number) => {
                let number = str::from_utf8(&number).ok().and_then(|n| n.parse::<u64>().ok());
                let aside = number.and_then(|n| self.aside.get_mut(&n));
                let aside = aside.ok_or_else(|| damaged("a link has no target"))?;
                if let Some(inode) = aside.inode {
                    return self.link(placed, inode, meta);
                }
                aside.inode = Some(Inode(self.nodes.len()));
                LaidKind::File { size: aside.size, sparse: None, sum: aside.sum }
            }
            Node::File { size, sparse } => LaidKind::File { size, sparse, sum },
            Node::Symlink(target) => LaidKind::Symlink(target),
            Node::CharDevice(major, minor) => LaidKind::CharDevice(major, minor),
            Node::BlockDevice(major, minor) => LaidKind::BlockDevice(major, minor),
            Node::Fifo => LaidKind::Fifo,
        };
        let inode = Inode(self.nodes.len());
        self.nodes.push(LaidNode { kind, meta });
        self.tree.insert(placed.as_bytes().to_vec(), Laid::Node(inode));
        Ok(())
    }

    fn link(&mut self, placed: LiteralPath, inode: Inode, meta: NodeMeta) -> Result<()> {
        let node = self.nodes.get_mut(inode.0).ok_or_else(|| damaged("a link has no target"))?;
        if !matches!(node.kind, LaidKind::Symlink(_)) {
            node.meta.meta = meta.meta;
            let file = matches!(node.kind, LaidKind::File { .. });
            for (name, value) in meta.xattrs {
                if !file && name.starts_with(b"user.") {
                    continue;
                }
                match node.meta.xattrs.iter_mut().find(|(have, _)| *have == name) {
                    Some((_, have)) => *have = value,
                    None => node.meta.xattrs.push((name, value)),
                }
            }
        }
        self.tree.insert(placed.as_bytes().to_vec(), Laid::Node(inode));
        Ok(())
    }
}

/// Takes a name and all below it out of `names`.
fn take_below(names: &mut Names, path: &[u8]) -> Vec<(Vec<u8>, Laid)> {
    let mut gone: Vec<Vec<u8>> = Vec::new();
    if names.contains_key(path) {
        gone.push(path.to_vec());
    }
    let mut below = path.to_vec();
    below.push(b'/');
    let range = (Bound::Included(below.clone()), Bound::Unbounded);
    gone.extend(names.range::<Vec<u8>, _>(range).map(|(p, _)| p).take_while(|p| p.starts_with(&below)).cloned());
    gone.into_iter().filter_map(|p| names.remove_entry(&p)).collect()
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Other, format!("the layer's journal is damaged: {why}"))
        .with_hint("`unply repair` unpacks the layer again")
}
