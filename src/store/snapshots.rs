//! Snapshots: writable and read-only views on a chain, and committed changes on which others stand.
//!
//! The contract is containerd's
//! (<https://github.com/containerd/containerd/blob/main/core/snapshots/snapshotter.go>): keys and names share one
//! namespace, a parent is always committed, a snapshot with children cannot be removed. What was written into a
//! snapshot stays a snapshot; it never stands under a diff_id.
//!
//! containerd's errors are ours: `ErrAlreadyExists` and `ErrNotFound` by name, `ErrInvalidArgument` is `Usage`,
//! `ErrFailedPrecondition` is `FailedPrecondition`, or `Busy` where waiting or removing something else would help.
//! Stricter than containerd: a snapshot that is mounted is neither committed nor removed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::lock::{Locks, Mode, What};
use super::publish::{rename_new, undamaged};
use super::record::{self, Lower, Replace, SnapshotKind, SnapshotRecord, Time, Usage};
use super::staging::{make_dir, plain_root, root_metadata};
use super::trash::mounted;
use super::{Cancel, Id, Store, TEMPORARY, VERSION, io_at};
use crate::apply::facts::RootMeta;
use crate::digest::ImageId;
use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;
use crate::mount::overlays_anywhere_using;
use crate::policy::XattrFlavour;
use crate::sys;

/// What a snapshot stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Empty,
    /// The layers and fix-ups of an image, topmost first, as they are to be stacked.
    Image {
        /// The image.
        image_id: ImageId,
        /// Its lower directories, topmost first.
        lowers: Vec<Lower>,
    },
    /// A committed snapshot, by name.
    Snapshot(String),
}

/// A snapshot to be made.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Its key; any text.
    pub key: String,
    /// Writable or read-only; a committed one comes from [`Store::commit_snapshot`] only.
    pub kind: SnapshotKind,
    /// What it stands on.
    pub base: Base,
    /// Metadata for the root of the upper directory: that of the merged root (N11). `None` is 0755, 0:0, mtime 0.
    pub root: Option<RootMeta>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

/// Label of a snapshot that was made for one mount and that nobody gave a key: once it is mounted nowhere, and nothing was
/// written into it, collection takes it away. A kill between its making and its mounting leaves one.
pub const EPHEMERAL: &str = "unply.ephemeral";

/// The exclusive right to mount, change or remove a snapshot's directories (N8); it ends with its owner.
#[derive(Debug)]
pub struct SnapshotLock {
    _locks: Locks,
}

impl SnapshotRecord {
    /// Returns the upper directory of an active snapshot, or the content of a committed one.
    pub fn upper_path(&self, store: &Store) -> PathBuf {
        self.dir_path(store).join("fs")
    }

    /// Returns the work directory, on the same file system as the upper one.
    pub fn work_path(&self, store: &Store) -> PathBuf {
        self.dir_path(store).join("work")
    }

    /// Returns the default mount point.
    pub fn mount_path(&self, store: &Store) -> PathBuf {
        self.dir_path(store).join("m")
    }

    /// Returns the paths of the lower directories, topmost first.
    pub fn lower_paths(&self, store: &Store) -> Vec<PathBuf> {
        self.lowers.iter().map(|lower| lower.path(store)).collect()
    }

    fn dir_path(&self, store: &Store) -> PathBuf {
        store.object("s", &self.dir)
    }
}

impl Lower {
    /// Returns the directory to stack.
    pub fn path(&self, store: &Store) -> PathBuf {
        match self {
            Lower::Layer(id) | Lower::Fixup(id) => store.object("l", id),
            Lower::Snapshot(dir) => store.object("s", dir).join("fs"),
        }
    }
}

impl Store {
    /// Makes a snapshot.
    ///
    /// # Errors
    /// `AlreadyExists` if the key is taken; `NotFound` if the parent, a layer or a fix-up is not there;
    /// `Usage` if the parent is not committed or the kind is.
    pub fn create_snapshot(&self, new: NewSnapshot) -> Result<SnapshotRecord> {
        if new.kind == SnapshotKind::Committed {
            return Err(Error::new(ErrorKind::Usage, "a snapshot is made active or as a view, and committed later"));
        }
        named(&new.key)?;
        // Held until the record stands: neither collection nor removal of the parent can come in between.
        let locks = self.gate(Mode::Shared)?;
        let mut root = new.root;
        let (parent, image_id, lowers) = match new.base {
            Base::Empty => (None, None, Vec::new()),
            Base::Image { image_id, lowers } => (None, Some(image_id), lowers),
            Base::Snapshot(name) => {
                locks.key(What::SnapshotRecord, Some(&Id::of_snapshot(&name)), Mode::Shared, &|| false)?;
                let parent = self.committed(&name)?;
                // The topmost directory says what `/` of the merged tree is, and the parent's is that (N11).
                if root.is_none() {
                    root = Some(root_of(&parent.upper_path(self))?);
                }
                let image_id = parent.image_id;
                (Some(name), image_id, standing_on(&parent))
            }
        };
        self.present(&lowers)?;
        let now = Time::now();
        let record = SnapshotRecord {
            version: VERSION,
            key: new.key,
            kind: new.kind,
            parent,
            image_id,
            dir: Id::random(),
            lowers,
            root: root.unwrap_or_else(plain_root),
            labels: new.labels,
            usage: None,
            durable: self.durable_now(),
            created: now,
            updated: now,
        };
        self.write_file(&self.snapshot_path(&record.key), &record::encode(&record)?, Replace::Never).map_err(|e| {
            match e.kind() {
                ErrorKind::AlreadyExists => taken(&record.key),
                _ => e,
            }
        })?;
        fail_point("snapshot.recorded")?;
        self.restore_dirs(&record)?;
        Ok(record)
    }

    /// Returns the snapshot with this key or name.
    ///
    /// # Errors
    /// `NotFound`; `Malformed` if its record is damaged.
    pub fn snapshot(&self, key: &str) -> Result<SnapshotRecord> {
        let record: Option<SnapshotRecord> = record::read(&self.snapshot_path(key))?;
        // Another key with the same hash is as good as none.
        record.filter(|record| record.key == key).ok_or_else(|| missing(key))
    }

    /// Returns every snapshot, in the order of making.
    ///
    /// # Errors
    /// `Unsupported` for a record of an unknown version.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRecord>> {
        let dir = self.dir("snapshots");
        let mut out: Vec<SnapshotRecord> =
            record::each(&record::names(&dir)?, |name| undamaged(record::read(&dir.join(name))))?;
        out.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
        Ok(out)
    }

    /// Takes the exclusive right to a snapshot's directories, for mounting it, and makes sure that they are there.
    ///
    /// # Errors
    /// `Cancelled`; `NotFound` if the snapshot, a layer or a fix-up is gone.
    pub fn lock_snapshot(&self, key: &str, cancel: Cancel<'_>) -> Result<(SnapshotLock, SnapshotRecord)> {
        let locks = self.locks()?;
        locks.key(What::Snapshot, Some(&Id::of_snapshot(key)), Mode::Exclusive, cancel)?;
        let record = self.ready_snapshot(key)?;
        Ok((SnapshotLock { _locks: locks }, record))
    }

    /// As [`Store::create_snapshot`], and takes the right of [`Store::lock_snapshot`] before anybody can see it.
    ///
    /// # Errors
    /// As both.
    pub fn create_locked_snapshot(&self, new: NewSnapshot) -> Result<(SnapshotLock, SnapshotRecord)> {
        let locks = self.locks()?;
        if !locks.try_key_briefly(What::Snapshot, Some(&Id::of_snapshot(&new.key)), Mode::Exclusive)? {
            return Err(taken(&new.key));
        }
        let key = self.create_snapshot(new)?.key;
        let record = self.ready_snapshot(&key)?;
        Ok((SnapshotLock { _locks: locks }, record))
    }

    /// Returns a snapshot whose directories, and all that it stands on, are there to be mounted; takes no right to do so.
    ///
    /// # Errors
    /// `NotFound` if the snapshot, a layer or a fix-up is gone.
    pub fn ready_snapshot(&self, key: &str) -> Result<SnapshotRecord> {
        let _gate = self.gate(Mode::Shared)?;
        let record = self.snapshot(key)?;
        self.present(&record.lowers)?;
        self.restore_dirs(&record)?;
        Ok(record)
    }

    /// Replaces the labels.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_snapshot_labels(&self, key: &str, labels: BTreeMap<String, String>) -> Result<SnapshotRecord> {
        self.change_labels(key, |all| *all = labels)
    }

    /// Changes what `paths` name: `labels` for all labels, `labels.KEY` for one; no path means all labels.
    ///
    /// A label that `labels` lacks, or has without a value, is removed.
    ///
    /// # Errors
    /// `NotFound`; `Usage` for a path of something that never changes (key, kind, parent, times): nothing is changed then.
    pub fn update_snapshot(
        &self,
        key: &str,
        labels: &BTreeMap<String, String>,
        paths: &[&str],
    ) -> Result<SnapshotRecord> {
        let fixed = |path: &&&str| **path != "labels" && path.strip_prefix("labels.").is_none_or(str::is_empty);
        if let Some(path) = paths.iter().find(fixed) {
            let path = crate::error::escape(path.as_bytes());
            return Err(Error::new(ErrorKind::Usage, format!("\"{path}\" of a snapshot cannot be changed"))
                .with_hint("labels and labels.KEY can"));
        }
        self.change_labels(key, |all| {
            if paths.is_empty() || paths.contains(&"labels") {
                all.clone_from(labels);
            }
            for name in paths.iter().filter_map(|path| path.strip_prefix("labels.")) {
                match labels.get(name) {
                    Some(value) => all.insert(name.to_owned(), value.clone()),
                    None => all.remove(name),
                };
            }
            all.retain(|_, value| !value.is_empty());
        })
    }

    fn change_labels(&self, key: &str, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Result<SnapshotRecord> {
        let locks = self.gate(Mode::Shared)?;
        locks.key(What::SnapshotRecord, Some(&Id::of_snapshot(key)), Mode::Exclusive, &|| false)?;
        let mut record = self.snapshot(key)?;
        change(&mut record.labels);
        record.updated = Time::now();
        self.write_file(&self.snapshot_path(key), &record::encode(&record)?, Replace::Yes)?;
        Ok(record)
    }

    /// Returns what a snapshot takes on disk: counted now for an active one, at commit for a committed one.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshot_usage(&self, key: &str) -> Result<Usage> {
        self.usage_of(&self.snapshot(key)?)
    }

    /// As [`Store::snapshot_usage`], of a record that was read before.
    ///
    /// # Errors
    /// What the file system says; a file that goes while it is counted is none.
    pub fn usage_of(&self, record: &SnapshotRecord) -> Result<Usage> {
        match (record.usage, record.kind) {
            (Some(usage), _) => Ok(usage),
            (None, SnapshotKind::View) => Ok(Usage::default()),
            (None, _) => scan(&record.upper_path(self)),
        }
    }

    /// Removes a snapshot and what was written into it.
    ///
    /// # Errors
    /// `NotFound`; `Busy` if it is mounted in this mount namespace, locked, or others stand on it.
    pub fn remove_snapshot(&self, key: &str) -> Result<()> {
        let id = Id::of_snapshot(key);
        let locks = self.gate(Mode::Shared)?;
        locks.key(What::SnapshotRecord, Some(&id), Mode::Exclusive, &|| false)?;
        if !locks.try_key_briefly(What::Snapshot, Some(&id), Mode::Exclusive)? {
            return Err(busy(key));
        }
        let path = self.snapshot_path(key);
        match self.snapshot(key) {
            Ok(record) => {
                if mounted(&record.dir)? {
                    return Err(busy(key));
                }
                if record.kind == SnapshotKind::Committed {
                    self.no_children(key)?;
                }
            }
            // Its directory cannot be known; collection finds it once no record is damaged.
            Err(e) if e.kind() == ErrorKind::Malformed => {}
            Err(e) => return Err(e),
        }
        self.discard_as(&path, &format!("{}.json", Id::random()))?;
        fail_point("snapshot.discarded")?;
        self.sync_dir(&self.dir("snapshots"))?;
        drop(locks);
        self.tidy();
        Ok(())
    }

    /// Returns a committed snapshot for another one to stand on.
    pub(super) fn committed(&self, name: &str) -> Result<SnapshotRecord> {
        let parent = self.snapshot(name)?;
        if parent.kind == SnapshotKind::Committed {
            return Ok(parent);
        }
        let name = crate::error::escape(name.as_bytes());
        Err(Error::new(ErrorKind::Usage, format!("parent snapshot \"{name}\" is not committed")))
    }

    fn no_children(&self, key: &str) -> Result<()> {
        match self.snapshots()?.iter().find(|s| s.parent.as_deref() == Some(key)) {
            None => Ok(()),
            Some(child) => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "cannot remove snapshot \"{}\": \"{}\" stands on it",
                    crate::error::escape(key.as_bytes()),
                    crate::error::escape(child.key.as_bytes())
                ),
            )
            .with_hint("remove that one first")),
        }
    }

    fn present(&self, lowers: &[Lower]) -> Result<()> {
        for lower in lowers {
            let found = match lower {
                Lower::Layer(id) => self.layer_by_id(id)?.is_some(),
                Lower::Fixup(id) => self.fixup_by_id(id)?.is_some(),
                Lower::Snapshot(dir) => self.object("s", dir).join("fs").is_dir(),
            };
            if !found {
                return Err(Error::new(ErrorKind::NotFound, format!("a lower directory is gone: {lower:?}"))
                    .with_hint("pull the image again; layers written without syncs do not outlive a reboot"));
            }
        }
        Ok(())
    }

    /// Makes the directories of a snapshot that has none.
    ///
    /// They come after the record, so that no kill leaves a directory without one. A loss of power may take them
    /// back only as long as nothing in them was synced either.
    pub(super) fn restore_dirs(&self, record: &SnapshotRecord) -> Result<()> {
        let dir = record.dir_path(self);
        if dir.is_dir() {
            return Ok(());
        }
        if record.kind == SnapshotKind::Committed {
            return Err(Error::new(ErrorKind::NotFound, format!("the content of snapshot \"{}\" is gone", record.key)));
        }
        let s = self.dir("s");
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&s)
            .map_err(|e| io_at("create a directory in", &s, e))?;
        make_dir(&temporary.path().join("m"), 0o755)?;
        if record.kind == SnapshotKind::Active {
            let upper = temporary.path().join("fs");
            make_dir(&upper, 0o755)?;
            root_metadata(&upper, self.flavour().ownership, Some(&record.root))?;
            make_dir(&temporary.path().join("work"), 0o700)?;
        }
        fail_point("snapshot.before-dir-rename")?;
        match rename_new(temporary.path(), &dir) {
            Ok(()) => {
                // It has another name now; there is nothing left to clean up under the old one.
                let _ = temporary.keep();
            }
            // Another process was faster; ours goes away.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        fail_point("snapshot.made")
    }

    pub(super) fn snapshot_path(&self, key: &str) -> PathBuf {
        self.dir("snapshots").join(format!("{}.json", Id::of_snapshot(key)))
    }

    /// Returns the records of active snapshots whose directory a committed one has taken over: a commit was killed.
    pub(super) fn superseded(&self, records: &[SnapshotRecord]) -> Vec<PathBuf> {
        let committed: HashSet<Id> =
            records.iter().filter(|r| r.kind == SnapshotKind::Committed).map(|r| r.dir).collect();
        records
            .iter()
            .filter(|r| r.kind != SnapshotKind::Committed && committed.contains(&r.dir))
            .map(|r| self.snapshot_path(&r.key))
            .collect()
    }

    /// Returns the snapshots that were made for a mount that is gone, or never came, and hold nothing. The caller has the
    /// exclusive gate.
    pub(super) fn abandoned(&self, records: &[SnapshotRecord]) -> Result<HashSet<Id>> {
        let ephemeral = |r: &&SnapshotRecord| r.kind != SnapshotKind::Committed && r.labels.contains_key(EPHEMERAL);
        let mut out = HashSet::new();
        for record in records.iter().filter(ephemeral) {
            let upper = record.upper_path(self);
            let empty = match fs::read_dir(&upper) {
                Ok(mut names) => names.next().is_none(),
                Err(e) => e.kind() == io::ErrorKind::NotFound,
            };
            // Whoever is about to mount it has the lock.
            if !empty || !self.locks()?.try_key(What::Snapshot, Some(&Id::of_snapshot(&record.key)), Mode::Exclusive)? {
                continue;
            }
            let shown = match (record.kind, record.lowers.first()) {
                (SnapshotKind::View, Some(top)) => top.path(self),
                (SnapshotKind::View, None) => self.root().to_path_buf(),
                _ => upper,
            };
            if overlays_anywhere_using(&shown)?.is_empty() {
                out.insert(record.dir);
            }
        }
        Ok(out)
    }
}

/// Counts what a directory takes, hard links once, without following anything.
///
/// Whoever has it mounted may be deleting in it: what is gone by the time it is looked at takes nothing.
pub(super) fn scan(root: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_path_buf()];
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    while let Some(path) = pending.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Err(e) if gone(&e) => continue,
            other => other.map_err(|e| io_at("stat", &path, e))?,
        };
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Err(e) if gone(&e) => continue,
                Err(e) => return Err(io_at("list", &path, e)),
                Ok(entries) => {
                    for entry in entries {
                        pending.push(entry.map_err(|e| io_at("list", &path, e))?.path());
                    }
                }
            }
        } else if meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        usage.bytes = usage.bytes.saturating_add(meta.blocks().saturating_mul(512));
        usage.inodes = usage.inodes.saturating_add(1);
    }
    Ok(usage)
}

/// Returns the lower directories of what stands on a committed snapshot, topmost first.
pub(super) fn standing_on(parent: &SnapshotRecord) -> Vec<Lower> {
    let mut lowers = vec![Lower::Snapshot(parent.dir)];
    lowers.extend(&parent.lowers);
    lowers
}

/// Reads the metadata of a root directory, without what overlayfs keeps there for itself.
fn root_of(path: &Path) -> Result<RootMeta> {
    let dir = fs::File::open(path).map_err(|e| io_at("open", path, e))?;
    let meta = dir.metadata().map_err(|e| io_at("stat", path, e))?;
    let mut xattrs = Vec::new();
    let names = match sys::list_xattrs_fd(&dir) {
        Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => Vec::new(),
        other => other?,
    };
    for name in names {
        let overlays =
            [XattrFlavour::Trusted, XattrFlavour::User].iter().any(|f| name.starts_with(f.prefix().as_bytes()));
        if !overlays && let Some(value) = sys::get_xattr_fd(&dir, &name)? {
            xattrs.push((name, value));
        }
    }
    Ok(RootMeta {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: meta.mtime(),
        mtime_nanos: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
        xattrs,
    })
}

pub(super) fn named(key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "a snapshot needs a name"));
    }
    Ok(())
}

fn missing(key: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no snapshot \"{}\"", crate::error::escape(key.as_bytes())))
}

pub(super) fn taken(key: &str) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        format!("a snapshot \"{}\" exists already", crate::error::escape(key.as_bytes())),
    )
}

pub(super) fn busy(key: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("snapshot \"{}\" is mounted or locked", crate::error::escape(key.as_bytes())))
        .with_hint("unmount it first")
}
