//! Where a layer is written before anybody may see it, and the seal that makes it publishable.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Gid, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::lock::{self, Mode};
use super::record::LayerOptions;
use super::{LOCK, Store, io_at};
use crate::apply::facts::{LayerFacts, RootMeta};
use crate::digest::DiffId;
use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;
use crate::policy::Ownership;
use crate::root::{Dir, meta as fdmeta};
use crate::stream::report::{Expected, StreamReport};

/// A private directory in which one layer or fix-up grows; dropping it removes it.
///
/// It is alive as long as its lock is held: when the owner dies, whatever the way, the next command cleans it up.
#[derive(Debug)]
///
/// Everything in it is reached through handles that were opened when it was made: whoever swaps a directory of it for a
/// symlink leads nobody out of the store.
pub struct Staging {
    /// The directory of all stagings, and this one's name in it.
    home: Dir,
    name: Vec<u8>,
    dir: Dir,
    meta: Dir,
    /// Opened before the first write, so that its `syncfs` reports every write-back error since.
    tree: Dir,
    path: PathBuf,
    tree_path: PathBuf,
    opened: Instant,
    _owner: File,
    published: bool,
}

impl Store {
    /// Makes a staging directory whose tree is an empty root: 0755, owner 0:0 (or the caller, where owners are squashed).
    ///
    /// # Errors
    /// `NoSpace`, and whatever else the file system says.
    pub fn stage(&self) -> Result<Staging> {
        // The gate: between its creation and its lock, the directory would look like a dead one.
        let gate = self.gate(Mode::Shared)?;
        let staging = self.dir("staging");
        let home = Dir::open(&staging)?;
        let path = tempfile::Builder::new()
            .prefix("")
            .rand_bytes(12)
            .tempdir_in(&staging)
            .map_err(|e| io_at("create a directory in", &staging, e))?
            .keep();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        let dir = home.open_child(&name)?;
        fail_point("stage.before-lock")?;
        let owner = File::from(dir.new_file(LOCK.as_bytes())?);
        lock::try_own(&owner)?;
        drop(gate);
        let open = || -> Result<(Dir, Dir)> {
            let meta = dir.new_dir(b"meta", 0o700)?;
            let tree = dir.new_dir(TREE, 0o755)?;
            give_root_metadata(&tree, &path, self.flavour().ownership, None)?;
            fail_point("stage.made")?;
            Ok((meta, tree))
        };
        match open() {
            Ok((meta, tree)) => Ok(Staging {
                home,
                name,
                dir,
                meta,
                tree,
                tree_path: path.join("tree"),
                path,
                opened: Instant::now(),
                _owner: owner,
                published: false,
            }),
            Err(e) => {
                // The error matters more; what stays is cleaned by the next command.
                let _ = home.remove_all(&name);
                Err(e)
            }
        }
    }
}

impl Staging {
    /// Returns the directory that becomes the layer's tree.
    pub fn tree_path(&self) -> &Path {
        &self.tree_path
    }

    /// Returns a handle on that directory.
    pub fn tree(&self) -> &Dir {
        &self.tree
    }

    /// Returns a handle on the directory that becomes the layer's record: the journal and the stash of the layer go there.
    pub fn meta(&self) -> &Dir {
        &self.meta
    }

    /// Consumes the staging and the proof that its blob was what was promised, and gives a layer that may be published.
    ///
    /// # Errors
    /// `Integrity` if the digest, the size or the diff_id is not the expected one; the staging is removed.
    pub fn seal(
        self,
        options: LayerOptions,
        facts: LayerFacts,
        report: StreamReport,
        expected: &Expected,
    ) -> Result<SealedLayer> {
        agree(&report, expected)?;
        let (atime, mtime) = (Timespec { tv_sec: 0, tv_nsec: 0 }, Timespec { tv_sec: 0, tv_nsec: 0 });
        // Applying entries moved it; two unpacks of one layer must give one tree (P14).
        rustix::fs::futimens(&self.tree, &Timestamps { last_access: atime, last_modification: mtime })
            .map_err(|e| io_at("set times of", &self.tree_path, e))?;
        fail_point("seal.done")?;
        Ok(SealedLayer { staging: self, options, facts, report })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the record that makes it count, once it has its name.
    pub(super) fn write_record(&self, bytes: &[u8]) -> Result<()> {
        File::from(self.meta.new_file(RECORD)?)
            .write_all(bytes)
            .map_err(|e| io_at("write the record of", &self.path, e))
    }

    /// Moves the tree to its name in `to`, which must be free.
    pub(super) fn give_tree(&self, to: &Dir, name: &str) -> Result<()> {
        give(&self.dir, TREE, &self.tree, to, name)
    }

    /// Moves the record to its name in `to`, which must be free.
    pub(super) fn give_record(&self, to: &Dir, name: &str) -> Result<()> {
        give(&self.dir, b"meta", &self.meta, to, name)
    }

    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    pub(super) fn sync_handle(&self) -> &Dir {
        &self.tree
    }

    /// Removes what is left after its tree and record moved away.
    pub(super) fn published(mut self) {
        self.published = true;
        self.remove();
    }

    fn remove(&self) {
        // The lock file goes with the last one, so that nobody takes the rest for a dead man's.
        let parts = [(&self.dir, TREE), (&self.dir, &b"meta"[..]), (&self.home, &self.name)];
        if let Some(e) = parts.iter().find_map(|(dir, name)| dir.remove_all(name).err()) {
            // The next command cleans it up.
            tracing::warn!(path = %self.path.display(), error = %e, "staging is left behind");
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            self.remove();
        }
    }
}

/// A staged layer whose blob was read to its end and proved to be the expected one.
#[derive(Debug)]
pub struct SealedLayer {
    pub(super) staging: Staging,
    pub(super) options: LayerOptions,
    pub(super) facts: LayerFacts,
    pub(super) report: StreamReport,
}

impl SealedLayer {
    /// Returns the layer's identity.
    pub fn diff_id(&self) -> DiffId {
        self.report.diff_id
    }

    /// Returns what applying the layer found out.
    pub fn facts(&self) -> &LayerFacts {
        &self.facts
    }

    /// Returns what reading the blob proved.
    pub fn report(&self) -> &StreamReport {
        &self.report
    }

    /// Returns the still private tree.
    pub fn tree_path(&self) -> &Path {
        self.staging.tree_path()
    }

    /// Returns a handle on the tree.
    pub fn tree(&self) -> &Dir {
        self.staging.tree()
    }
}

fn agree(report: &StreamReport, expected: &Expected) -> Result<()> {
    let differs = |what: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Err(Error::new(ErrorKind::Integrity, format!("{what} differs: expected {expected}, found {found}"))
            .with_layer(report.digest))
    };
    match expected {
        Expected { digest: Some(want), .. } if *want != report.digest => differs("digest", want, &report.digest),
        Expected { size: Some(want), .. } if *want != report.compressed_bytes => {
            differs("size in bytes", want, &report.compressed_bytes)
        }
        Expected { diff_id: Some(want), .. } if *want != report.diff_id => differs("diff_id", want, &report.diff_id),
        _ => Ok(()),
    }
}

const TREE: &[u8] = b"tree";
const RECORD: &[u8] = b"record.json";

fn give(from: &Dir, part: &[u8], what: &Dir, to: &Dir, name: &str) -> Result<()> {
    if !from.rename_new(part, to, name.as_bytes())? {
        return Err(Error::new(ErrorKind::AlreadyExists, format!("{name} is in the store already")));
    }
    to.check_is(name.as_bytes(), what)
}

/// Makes a directory with exactly this mode, whatever umask, setgid bit and default ACL say.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(io_at("create", path, e)),
    }
    forget_the_place(path, mode)
}

pub(super) fn forget_the_place(path: &Path, mode: u32) -> Result<()> {
    for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::removexattr(path, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(io_at("remove the ACL of", path, e)),
        }
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| io_at("chmod", path, e))
}

/// The root directory of a rootfs that nothing describes: 0755, 0:0, mtime 0, no xattrs.
pub(super) fn plain_root() -> RootMeta {
    RootMeta { mode: 0o755, ..RootMeta::default() }
}

/// Gives a directory the metadata of a root: ownership, xattrs, mode, times, in this order.
pub(super) fn root_metadata(path: &Path, ownership: Ownership, meta: Option<&RootMeta>) -> Result<()> {
    let dir = File::open(path).map_err(|e| io_at("open", path, e))?;
    give_root_metadata(&dir, path, ownership, meta)
}

fn give_root_metadata(dir: impl AsFd, path: &Path, ownership: Ownership, meta: Option<&RootMeta>) -> Result<()> {
    let dir = dir.as_fd();
    let plain = plain_root();
    let meta = meta.unwrap_or(&plain);
    if ownership == Ownership::Keep {
        rustix::fs::fchown(dir, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
            .map_err(|e| io_at("chown", path, e))?;
    }
    for (name, value) in &meta.xattrs {
        rustix::fs::fsetxattr(dir, name.as_slice(), value, XattrFlags::empty())
            .map_err(|e| io_at("set an xattr of", path, e))?;
    }
    fdmeta::set_mode_fd(dir, meta.mode & 0o7777).map_err(|e| io_at("chmod", path, e))?;
    let time = Timespec { tv_sec: meta.mtime, tv_nsec: meta.mtime_nanos.into() };
    rustix::fs::futimens(dir, &Timestamps { last_access: time, last_modification: time })
        .map_err(|e| io_at("set times of", path, e))
}
