//! Snapshots: writable and read-only views on a chain, and committed changes on which others stand.
//!
//! The contract is containerd's
//! (<https://github.com/containerd/containerd/blob/main/core/snapshots/snapshotter.go>): keys and names share one
//! namespace, a parent is always committed, a snapshot with children cannot be removed. What was written into a
//! snapshot stays a snapshot; it never stands under a diff_id.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::fail::fail_point;
use super::lock::{Locks, Mode, What};
use super::publish::{rename_new, undamaged};
use super::record::{self, Lower, Replace, SnapshotKind, SnapshotRecord, Time, Usage};
use super::staging::{make_dir, plain_root, root_metadata};
use super::trash::mounted;
use super::{Cancel, Id, Store, TEMPORARY, VERSION, io_at};
use crate::apply::facts::RootMeta;
use crate::digest::ImageId;
use crate::error::{Error, ErrorKind, Result};

/// Ends the name of the note that a commit leaves while two records change.
const COMMIT: &str = ".commit";

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
        let path = |lower: &Lower| match lower {
            Lower::Layer(id) | Lower::Fixup(id) => store.object("l", id),
            Lower::Snapshot(dir) => store.object("s", dir).join("fs"),
        };
        self.lowers.iter().map(path).collect()
    }

    fn dir_path(&self, store: &Store) -> PathBuf {
        store.object("s", &self.dir)
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
        // Held until the record stands: neither collection nor removal of the parent can come in between.
        let locks = self.gate(Mode::Shared)?;
        let (parent, image_id, lowers) = match new.base {
            Base::Empty => (None, None, Vec::new()),
            Base::Image { image_id, lowers } => (None, Some(image_id), lowers),
            Base::Snapshot(name) => {
                locks.key(What::SnapshotRecord, Some(&Id::of_snapshot(&name)), Mode::Shared, &|| false)?;
                let parent = self.snapshot(&name)?;
                if parent.kind != SnapshotKind::Committed {
                    return Err(Error::new(ErrorKind::Usage, format!("parent snapshot \"{name}\" is not committed")));
                }
                let mut lowers = vec![Lower::Snapshot(parent.dir)];
                lowers.extend(parent.lowers);
                (Some(name), parent.image_id, lowers)
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
            root: new.root.unwrap_or_else(plain_root),
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
        let mut out: Vec<SnapshotRecord> = Vec::new();
        for name in record::names(&dir)? {
            out.extend(undamaged(record::read(&dir.join(name)))?);
        }
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
        let record = self.snapshot(key)?;
        let gate = self.gate(Mode::Shared)?;
        self.present(&record.lowers)?;
        self.restore_dirs(&record)?;
        drop(gate);
        Ok((SnapshotLock { _locks: locks }, record))
    }

    /// Replaces the labels.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_snapshot_labels(&self, key: &str, labels: BTreeMap<String, String>) -> Result<SnapshotRecord> {
        let locks = self.gate(Mode::Shared)?;
        locks.key(What::SnapshotRecord, Some(&Id::of_snapshot(key)), Mode::Exclusive, &|| false)?;
        let mut record = self.snapshot(key)?;
        record.labels = labels;
        record.updated = Time::now();
        self.write_file(&self.snapshot_path(key), &record::encode(&record)?, Replace::Yes)?;
        Ok(record)
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`; the key is gone then.
    ///
    /// # Errors
    /// `NotFound`; `Usage` if it is not active; `AlreadyExists` if the name is taken; `Busy` if it is mounted.
    pub fn commit_snapshot(&self, name: &str, key: &str, labels: BTreeMap<String, String>) -> Result<SnapshotRecord> {
        let locks = self.locks()?;
        if !locks.try_key(What::Snapshot, Some(&Id::of_snapshot(key)), Mode::Exclusive)? {
            return Err(busy(key));
        }
        let active = self.snapshot(key)?;
        if active.kind != SnapshotKind::Active {
            return Err(Error::new(ErrorKind::Usage, format!("snapshot \"{key}\" is not active")));
        }
        if mounted(&active.dir)? {
            return Err(busy(key));
        }
        self.restore_dirs(&active)?;
        if self.durable() {
            let upper = active.upper_path(self);
            let dir = fs::File::open(&upper).map_err(|e| io_at("open", &upper, e))?;
            self.sync_all(&dir)?;
        }
        let usage = scan(&active.upper_path(self))?;
        locks.gate(Mode::Shared)?;
        let mut ids = [Id::of_snapshot(key), Id::of_snapshot(name)];
        ids.sort();
        for id in &ids {
            locks.key(What::SnapshotRecord, Some(id), Mode::Exclusive, &|| false)?;
        }
        // Labels may have changed meanwhile; the directories cannot.
        let active = self.snapshot(key)?;
        let intent = self.intend_commit(key, name)?;
        let record = SnapshotRecord {
            key: name.to_owned(),
            kind: SnapshotKind::Committed,
            labels,
            usage: Some(usage),
            durable: self.durable_now(),
            updated: Time::now(),
            ..active
        };
        self.write_file(&self.snapshot_path(name), &record::encode(&record)?, Replace::Never).map_err(|e| {
            match e.kind() {
                ErrorKind::AlreadyExists => taken(name),
                _ => e,
            }
        })?;
        // Killed here, two records name one directory; the committed one wins.
        fail_point("snapshot.committed")?;
        let path = self.snapshot_path(key);
        fs::remove_file(&path).map_err(|e| io_at("remove", &path, e))?;
        self.sync_dir(&self.dir("snapshots"))?;
        drop(intent);
        Ok(record)
    }

    /// Leaves a note that outlives a kill between the two records of a commit; it goes when dropped.
    fn intend_commit(&self, key: &str, name: &str) -> Result<tempfile::NamedTempFile> {
        let staging = self.dir("staging");
        let mut note = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .suffix(COMMIT)
            .tempfile_in(&staging)
            .map_err(|e| io_at("create a file in", &staging, e))?;
        write!(note, "{} {}", Id::of_snapshot(key), Id::of_snapshot(name))
            .map_err(|e| io_at("write", note.path(), e))?;
        if self.durable() {
            // It must be on disk before either record changes: after a loss of power it is what tells which one counts.
            note.as_file().sync_all().map_err(|e| io_at("sync", note.path(), e))?;
            self.sync_dir(&staging)?;
        }
        Ok(note)
    }

    /// Ends a commit whose process was killed, if `path` is its note; under the exclusive gate, so nobody is in one.
    pub(super) fn finish_commit(&self, path: &Path) -> Result<()> {
        if !path.as_os_str().as_encoded_bytes().ends_with(COMMIT.as_bytes()) {
            return Ok(());
        }
        let note = fs::read_to_string(path).map_err(|e| io_at("read", path, e))?;
        let ids = note.split_once(' ').and_then(|(key, name)| Some((key.parse().ok()?, name.parse().ok()?)));
        let Some((key, name)) = ids else { return Ok(()) };
        let file = |id: Id| self.dir("snapshots").join(format!("{id}.json"));
        let active: Option<SnapshotRecord> = undamaged(record::read(&file(key)))?;
        let committed: Option<SnapshotRecord> = undamaged(record::read(&file(name)))?;
        if let (Some(active), Some(committed)) = (active, committed)
            && active.dir == committed.dir
            && committed.kind == SnapshotKind::Committed
        {
            self.discard(&file(key))?;
        }
        Ok(())
    }

    /// Returns what a snapshot takes on disk: counted now for an active one, at commit for a committed one.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshot_usage(&self, key: &str) -> Result<Usage> {
        let record = self.snapshot(key)?;
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
        if !locks.try_key(What::Snapshot, Some(&id), Mode::Exclusive)? {
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

    fn no_children(&self, key: &str) -> Result<()> {
        match self.snapshots()?.iter().find(|s| s.parent.as_deref() == Some(key)) {
            None => Ok(()),
            Some(child) => Err(Error::new(
                ErrorKind::Busy,
                format!("cannot remove snapshot \"{key}\": \"{}\" stands on it", child.key),
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
    fn restore_dirs(&self, record: &SnapshotRecord) -> Result<()> {
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

    fn snapshot_path(&self, key: &str) -> PathBuf {
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
}

/// Counts what a directory takes, hard links once, without following anything.
fn scan(root: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).map_err(|e| io_at("stat", &path, e))?;
        if meta.is_dir() {
            for entry in fs::read_dir(&path).map_err(|e| io_at("list", &path, e))? {
                pending.push(entry.map_err(|e| io_at("list", &path, e))?.path());
            }
        } else if meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        usage.bytes = usage.bytes.saturating_add(meta.blocks().saturating_mul(512));
        usage.inodes = usage.inodes.saturating_add(1);
    }
    Ok(usage)
}

fn missing(key: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no snapshot \"{}\"", crate::error::escape(key.as_bytes())))
}

fn taken(key: &str) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        format!("a snapshot \"{}\" exists already", crate::error::escape(key.as_bytes())),
    )
}

fn busy(key: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("snapshot \"{}\" is mounted or locked", crate::error::escape(key.as_bytes())))
        .with_hint("unmount it first")
}
