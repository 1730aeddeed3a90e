//! The members of an image archive by name.
//!
//! Owns: cleaning of member names, links between members, refusal of duplicates (I16), and the walk over an outer tar.
//! Refuses to know: what members mean. Invariant: a name is never used as a path in a file system.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, escape, from_io};
use crate::policy::{Limit, Limits};
use crate::tar::{Entry, EntryKind, Parser, Step};

/// Links followed for one name.
const MAX_LINKS: u32 = 40;

/// Bytes of names for each member that is allowed, 32 MiB by default: each name is kept.
const NAME_BYTES: usize = 335;

/// Cleans a member name: no `.`, no empty components, no leading `/`; `None` when `..` leaves the archive.
pub(crate) fn clean(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// A member that is not a directory.
enum Node<T> {
    File(T),
    /// Another member's cleaned name, or the target that leaves the archive.
    Link(Result<Vec<u8>, Vec<u8>>),
}

/// Members by cleaned name.
pub(crate) struct Members<T> {
    nodes: HashMap<Vec<u8>, Node<T>>,
    name_bytes: usize,
    max_members: usize,
}

impl<T> Members<T> {
    pub fn new(limits: &Limits) -> Self {
        Members { nodes: HashMap::new(), name_bytes: 0, max_members: limits.max_archive_members }
    }

    /// Adds a regular member under its cleaned name.
    ///
    /// # Errors
    /// `Malformed` for a second member of that name, `Limit` for too many.
    pub fn add_file(&mut self, name: Vec<u8>, value: T) -> Result<(), Error> {
        self.add(name, Node::File(value))
    }

    /// Adds a symbolic or hard link; other entries that are not regular are ignored.
    ///
    /// # Errors
    /// As [`Members::add_file`].
    pub fn add_link(&mut self, name: Vec<u8>, kind: &EntryKind) -> Result<(), Error> {
        let target = match kind {
            EntryKind::HardLink { target } => clean(target).ok_or_else(|| target.clone()),
            // Relative to the directory of the link; an absolute one would leave the archive.
            EntryKind::Symlink { target } if target.first() == Some(&b'/') => Err(target.clone()),
            EntryKind::Symlink { target } => {
                let dir = name.iter().rposition(|b| *b == b'/').map_or(&[][..], |at| name.get(..at).unwrap_or(&[]));
                clean(&[dir, b"/", target].concat()).ok_or_else(|| target.clone())
            }
            _ => return Ok(()),
        };
        self.add(name, Node::Link(target))
    }

    fn add(&mut self, name: Vec<u8>, node: Node<T>) -> Result<(), Error> {
        self.name_bytes = self.name_bytes.saturating_add(name.len()).saturating_add(match &node {
            Node::Link(Ok(target) | Err(target)) => target.len(),
            Node::File(_) => 0,
        });
        let over = |found: std::fmt::Arguments<'_>| Limit::ArchiveMembers.exceeded(self.max_members as u64, found);
        if self.nodes.len() >= self.max_members {
            return Err(over(format_args!("{}", self.nodes.len().saturating_add(1))));
        }
        if self.name_bytes > self.max_members.saturating_mul(NAME_BYTES) {
            return Err(over(format_args!("{} with {} bytes of names", self.nodes.len(), self.name_bytes)));
        }
        match self.nodes.entry(name) {
            std::collections::hash_map::Entry::Occupied(there) => {
                Err(Error::new(ErrorKind::Malformed, "the archive has two members of one name").with_entry(there.key()))
            }
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(node);
                Ok(())
            }
        }
    }

    /// Finds a member by a name as a document spells it, following links; `None` when it is not there.
    ///
    /// # Errors
    /// `Malformed` when a name or a link leaves the archive, or links do not end.
    pub fn find(&self, name: &[u8]) -> Result<Option<&T>, Error> {
        let outside = |target: &[u8]| {
            Error::new(ErrorKind::Malformed, format!("\"{}\" leaves the archive", escape(target))).with_entry(name)
        };
        let mut at = clean(name).ok_or_else(|| outside(name))?;
        for _ in 0..=MAX_LINKS {
            match self.nodes.get(&at) {
                None => return Ok(None),
                Some(Node::File(value)) => return Ok(Some(value)),
                Some(Node::Link(Ok(target))) => at.clone_from(target),
                Some(Node::Link(Err(target))) => return Err(outside(target)),
            }
        }
        Err(Error::new(ErrorKind::Malformed, format!("more than {MAX_LINKS} links lead to one member"))
            .with_entry(name))
    }

    /// Returns the value of the regular member of exactly this cleaned name.
    pub fn get_mut(&mut self, name: &[u8]) -> Option<&mut T> {
        match self.nodes.get_mut(name) {
            Some(Node::File(value)) => Some(value),
            _ => None,
        }
    }

    /// Says whether there is a member of that cleaned name.
    pub fn has(&self, name: &str) -> bool {
        self.nodes.contains_key(name.as_bytes())
    }
}

/// Bytes that are read block by block.
pub(crate) trait Blocks {
    /// Fills `block` as far as there are bytes; returns how many.
    fn block(&mut self, block: &mut [u8; 512]) -> std::io::Result<usize>;
    /// Passes over bytes; it is no error here if there are fewer.
    fn skip(&mut self, bytes: u64) -> std::io::Result<()>;
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// At the end marker, or because it was stopped.
    Marked,
    /// With the bytes, where no end marker stands: complete, or cut off between two members.
    Unmarked,
}

/// Refuses an archive that lacks `what` and has no end marker: most likely the rest of it is missing.
pub(crate) fn cut_short(what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Malformed,
        format!("the archive is cut short: it ends without an end marker, and without {what}"),
    )
}

/// Walks the entries of an outer tar. `visit` sees each entry with the source standing at its data, and returns how
/// many bytes of data it consumed (at most [`Entry::stored`]), or `None` to stop.
///
/// # Errors
/// The parser's refusals, `visit`'s errors, I/O errors.
pub(crate) fn walk<B: Blocks>(
    source: &mut B,
    limits: &Limits,
    mut visit: impl FnMut(&mut B, &Entry) -> Result<Option<u64>, Error>,
) -> Result<Ended, Error> {
    let read_error = |err| from_io("reading the archive", err);
    let mut parser = Parser::new(limits);
    let mut block = [0; 512];
    loop {
        let found = match source.block(&mut block).map_err(read_error)? {
            0 => return parser.finish().map(|()| Ended::Unmarked).map_err(Error::from),
            512 => parser.block(&block),
            _ => Err(parser.partial_block()),
        };
        // An archive has no warnings to pass on; its oddities do not change which bytes a member has.
        parser.take_oddities();
        match found.map_err(Error::from)? {
            Step::More => {}
            Step::Skip(bytes) => source.skip(bytes).map_err(read_error)?,
            Step::End => return Ok(Ended::Marked),
            Step::Entry(entry) => {
                let Some(consumed) = visit(source, &entry)? else { return Ok(Ended::Marked) };
                let padded = entry.stored.div_ceil(512).saturating_mul(512);
                source.skip(padded.saturating_sub(consumed)).map_err(read_error)?;
            }
        }
    }
}

/// Names at the root that make a tar an image archive.
pub(crate) const MARKERS: [&str; 4] = ["index.json", "oci-layout", "manifest.json", "repositories"];

/// Says whether a cleaned name looks like one that tools give to members of image archives.
pub(crate) fn looks_like_archive(name: &[u8]) -> bool {
    let first = name.split(|b| *b == b'/').next().unwrap_or(name);
    let hex = |s: &[u8]| s.len() == 64 && s.iter().all(u8::is_ascii_hexdigit);
    let stem = first.strip_suffix(b".json").unwrap_or(first);
    MARKERS.iter().any(|m| m.as_bytes() == name)
        || first == b"blobs"
        || hex(stem)
        || first.starts_with(b"sha256:")
        || (!name.contains(&b'/') && [&b".tar"[..], b".tar.gz", b".json"].iter().any(|s| name.ends_with(s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i16_names_are_cleaned_and_never_leave_the_archive() {
        let clean = |s: &str| clean(s.as_bytes()).map(|v| String::from_utf8(v).unwrap());
        for (given, cleaned) in [("./index.json", "index.json"), ("/a//b/./c", "a/b/c"), ("a/../b", "b"), (".", "")] {
            assert_eq!(clean(given).as_deref(), Some(cleaned));
        }
        assert_eq!(clean("../a"), None);
        assert_eq!(clean("a/../../b"), None);
    }

    #[test]
    fn i14_links_are_followed_inside_the_archive_only() {
        let mut members = Members::new(&Limits::default());
        let symlink = |t: &str| EntryKind::Symlink { target: t.into() };
        members.add_file(b"a/layer.tar".to_vec(), 7).unwrap();
        members.add_link(b"b/layer.tar".to_vec(), &symlink("../a/layer.tar")).unwrap();
        members.add_link(b"c/layer.tar".to_vec(), &EntryKind::HardLink { target: b"./b/layer.tar".to_vec() }).unwrap();
        members.add_link(b"out".to_vec(), &symlink("../x")).unwrap();
        members.add_link(b"abs".to_vec(), &symlink("/a/layer.tar")).unwrap();
        members.add_link(b"loop".to_vec(), &symlink("loop")).unwrap();
        members.add_link(b"dangling".to_vec(), &symlink("nothing")).unwrap();
        assert_eq!(members.find(b"./c/layer.tar").unwrap(), Some(&7));
        assert_eq!(members.find(b"dangling").unwrap(), None);
        for bad in ["out", "abs", "loop", "../a/layer.tar"] {
            assert_eq!(members.find(bad.as_bytes()).unwrap_err().kind(), ErrorKind::Malformed, "{bad}");
        }
        assert_eq!(members.add_file(b"b/layer.tar".to_vec(), 8).unwrap_err().kind(), ErrorKind::Malformed);
    }
}
