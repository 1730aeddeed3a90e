//! Reads a [`Tree`] from disk through directory handles.
//!
//! Owns: raw listings, so that a name which only `getdents` knows is seen; trees deeper than `PATH_MAX`; names as bytes.
//! Refuses to know: layers. Invariant: never follows a symlink below the given path, never keeps more than three
//! descriptors open.

use crate::tree::{Kind, Node, Tree};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Tells whether something of this name is left out.
pub type NameFilter = Box<dyn Fn(&[u8]) -> bool>;

/// What a description leaves out.
pub struct DescribeOptions {
    /// Report every owner as 0:0: for user namespaces that map one id. Default: no.
    pub ignore_owners: bool,
    /// Report the root as 0755, 0:0, mtime 0, no xattrs. Default: no.
    pub ignore_root_meta: bool,
    /// Names of xattrs left out. Default: [`overlay_xattr`].
    pub ignore_xattr: NameFilter,
    /// Content of files up to this many bytes is kept for messages. Default: 64.
    pub keep_content: u64,
}

impl Default for DescribeOptions {
    fn default() -> Self {
        let ignore_xattr = Box::new(overlay_xattr);
        DescribeOptions { ignore_owners: false, ignore_root_meta: false, ignore_xattr, keep_content: 64 }
    }
}

/// Tells whether overlayfs itself writes xattrs of this name.
pub fn overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Device and inode: what makes two names one file within one description.
type Identity = (u64, u64);

/// One directory on the way down: its path and the child directories still to visit.
struct Level {
    path: Vec<u8>,
    children: Vec<Vec<u8>>,
}

struct Walker<'a> {
    options: &'a DescribeOptions,
    tree: Tree,
    identity: BTreeMap<Vec<u8>, Identity>,
    contents: BTreeMap<Identity, Kind>,
    buffer: Vec<u8>,
}

/// Describes the directory at `path` and everything below it.
///
/// # Errors
/// Whatever a call answers, with the path it was about. A name that a listing shows and `lstat` does not find is no
/// error but a [`Kind::Phantom`].
pub fn describe(path: &Path, options: &DescribeOptions) -> io::Result<Tree> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(path, flags, Mode::empty())?;
    let (tree, identity, contents) = (Tree::default(), BTreeMap::new(), BTreeMap::new());
    let mut walker = Walker { options, tree, identity, contents, buffer: vec![0; 1 << 17] };

    let mut levels = vec![walker.directory(&at, Vec::new())?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.children.pop() {
            let path = join(&level.path, &name);
            let flags = flags | OFlags::NOFOLLOW;
            at = rustix::fs::openat(&at, &name[..], flags, Mode::empty()).map_err(|e| about("openat", &path, e))?;
            levels.push(walker.directory(&at, path)?);
        } else {
            levels.pop();
            if !levels.is_empty() {
                // Back up by `..`: depth costs no descriptors.
                at = rustix::fs::openat(&at, "..", flags, Mode::empty())?;
            }
        }
    }
    let Walker { mut tree, identity, .. } = walker;
    tree.group_links(&identity);
    if options.ignore_owners {
        tree = tree.without_owners();
    }
    if options.ignore_root_meta {
        tree = tree.without_root_meta();
    }
    Ok(tree)
}

impl Walker<'_> {
    /// Describes an open directory and its entries; the child directories are left to be visited.
    fn directory(&mut self, at: &OwnedFd, path: Vec<u8>) -> io::Result<Level> {
        let stat = rustix::fs::fstat(at).map_err(|e| about("fstat", &path, e))?;
        let mut node = node(Kind::Dir, &stat);
        let options = self.options;
        node.xattrs = self.xattrs(&path, options, |name, buffer| match name {
            None => rustix::fs::flistxattr(at, buffer),
            Some(name) => rustix::fs::fgetxattr(at, name, buffer),
        })?;
        self.tree.0.insert(path.clone(), node);

        let mut children = Vec::new();
        for name in listing(at).map_err(|e| about("getdents", &path, e))? {
            let child = join(&path, &name);
            let stat = match rustix::fs::statat(at, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => {
                    self.tree.0.insert(child, Node::new(Kind::Phantom));
                    continue;
                }
                Err(e) => return Err(about("fstatat", &child, e)),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => children.push(name),
                _ => self.other(at.as_raw_fd(), at, &name, child, &stat)?,
            }
        }
        Ok(Level { path, children })
    }

    /// Describes a non-directory.
    fn other(&mut self, raw: i32, at: &OwnedFd, name: &[u8], path: Vec<u8>, stat: &Stat) -> io::Result<()> {
        let id = (stat.st_dev, stat.st_ino);
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => match self.contents.get(&id) {
                Some(kind) => kind.clone(),
                None => {
                    let kind = self.file(at, name, &path)?;
                    self.contents.insert(id, kind.clone());
                    kind
                }
            },
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(at, name, Vec::new()).map_err(|e| about("readlinkat", &path, e))?;
                Kind::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => Kind::Char(major, minor),
            FileType::BlockDevice => Kind::Block(major, minor),
            FileType::Fifo => Kind::Fifo,
            _ => Kind::Socket,
        };
        let mut node = node(kind, stat);
        // A file need not be readable or openable to have its xattrs read this way, and the name may be a symlink.
        let short = [format!("/proc/self/fd/{raw}/").as_bytes(), name].concat();
        let options = self.options;
        node.xattrs = self.xattrs(&path, options, |name, buffer| match name {
            None => rustix::fs::llistxattr(&short[..], buffer),
            Some(name) => rustix::fs::lgetxattr(&short[..], name, buffer),
        })?;
        self.identity.insert(path.clone(), id);
        self.tree.0.insert(path, node);
        Ok(())
    }

    /// Reads and hashes a regular file.
    fn file(&mut self, at: &OwnedFd, name: &[u8], path: &[u8]) -> io::Result<Kind> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file =
            File::from(rustix::fs::openat(at, name, flags, Mode::empty()).map_err(|e| about("openat", path, e))?);
        let (mut hasher, mut len, mut content) = (Sha256::new(), 0u64, Vec::new());
        loop {
            let n = file.read(&mut self.buffer)?;
            if n == 0 {
                break;
            }
            len += n as u64;
            hasher.update(&self.buffer[..n]);
            if len <= self.options.keep_content {
                content.extend_from_slice(&self.buffer[..n]);
            }
        }
        let content = (len <= self.options.keep_content).then_some(content);
        Ok(Kind::File { len, sha256: hasher.finalize().into(), content })
    }

    /// Reads all xattrs; `call` lists without a name and reads with one.
    fn xattrs(
        &mut self,
        path: &[u8],
        options: &DescribeOptions,
        call: impl Fn(Option<&[u8]>, &mut [u8]) -> rustix::io::Result<usize>,
    ) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let length = match call(None, &mut self.buffer) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => 0,
            Err(e) => return Err(about("listxattr", path, e)),
        };
        let names: Vec<Vec<u8>> = self.buffer[..length].split(|b| *b == 0).map(<[u8]>::to_vec).collect();
        let mut xattrs = BTreeMap::new();
        for name in names.into_iter().filter(|name| !name.is_empty() && !(options.ignore_xattr)(name)) {
            match call(Some(&name), &mut self.buffer) {
                Ok(length) => drop(xattrs.insert(name, self.buffer[..length].to_vec())),
                // Listed but not readable, as overlayfs does with its own under some mounts: not the tree's.
                Err(Errno::NODATA) => {}
                Err(e) => return Err(about("getxattr", path, e)),
            }
        }
        Ok(xattrs)
    }
}

/// Lists a directory with `getdents`, sorted, without `.` and `..`.
fn listing(at: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut buffer = vec![MaybeUninit::uninit(); 1 << 15];
    let fd: BorrowedFd<'_> = std::os::fd::AsFd::as_fd(at);
    let mut entries = RawDir::new(fd, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

fn node(kind: Kind, stat: &Stat) -> Node {
    let mut node = Node::new(kind);
    node.mode = stat.st_mode & 0o7777;
    (node.uid, node.gid) = (stat.st_uid, stat.st_gid);
    node.mtime = (stat.st_mtime, stat.st_mtime_nsec as u32);
    node
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn about(call: &str, path: &[u8], errno: Errno) -> io::Error {
    let start = crate::tree::text(&path[..path.len().min(200)]);
    io::Error::new(io::Error::from(errno).kind(), format!("{call} /{start}: {errno}"))
}

#[cfg(test)]
mod tests;
