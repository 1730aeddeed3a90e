//! A commit: an active snapshot gets a new name and never changes again.
//!
//! Two records change, the new name's and the key's. A note in `staging` outlives a kill between them, and whoever opens
//! the store next finishes what it says: a commit has happened or it has not.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use super::lock::{Mode, What};
use super::publish::undamaged;
use super::record::{self, Replace, SnapshotKind, SnapshotRecord, Time};
use super::snapshots::{busy, named, scan, standing_on, taken};
use super::trash::mounted;
use super::{Id, Store, TEMPORARY, io_at};
use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;

/// Ends the name of the note that a commit leaves while two records change.
const COMMIT: &str = ".commit";

impl Store {
    /// Turns the active snapshot `key` into the committed snapshot `name`; the key is gone then.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if it is not active; `AlreadyExists` if the name is taken; `Busy` if it is mounted.
    pub fn commit_snapshot(&self, name: &str, key: &str, labels: BTreeMap<String, String>) -> Result<SnapshotRecord> {
        self.commit_snapshot_onto(name, key, None, labels)
    }

    /// As [`Store::commit_snapshot`], onto a committed snapshot that the active one, made on nothing, did not name yet.
    ///
    /// Layers may so be written side by side, and get their order when they are committed.
    ///
    /// # Errors
    /// As [`Store::commit_snapshot`]; `Usage` if the parent is not committed, or the active one stands on something else.
    pub fn commit_snapshot_onto(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord> {
        named(name)?;
        let locks = self.locks()?;
        if !locks.try_key_briefly(What::Snapshot, Some(&Id::of_snapshot(key)), Mode::Exclusive)? {
            return Err(busy(key));
        }
        let active = self.snapshot(key)?;
        if active.kind != SnapshotKind::Active {
            let key = crate::error::escape(key.as_bytes());
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("snapshot \"{key}\" is not active")));
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
        let mut ids = vec![(Id::of_snapshot(key), Mode::Exclusive), (Id::of_snapshot(name), Mode::Exclusive)];
        ids.extend(parent.map(|parent| (Id::of_snapshot(parent), Mode::Shared)));
        ids.sort_by_key(|(id, _)| *id);
        // A parent of the new name or of the key would be locked twice; it is refused below.
        ids.dedup_by_key(|(id, _)| *id);
        for (id, mode) in &ids {
            locks.key(What::SnapshotRecord, Some(id), *mode, &|| false)?;
        }
        // Labels may have changed meanwhile; the directories cannot.
        let mut active = self.snapshot(key)?;
        if let Some(parent) = parent.filter(|parent| active.parent.as_deref() != Some(parent)) {
            let below = self.committed(parent)?;
            if !active.lowers.is_empty() {
                let key = crate::error::escape(key.as_bytes());
                return Err(Error::new(ErrorKind::Usage, format!("snapshot \"{key}\" stands on something else")));
            }
            active.lowers = standing_on(&below);
            active.image_id = below.image_id;
            active.parent = Some(below.key);
        }
        let intent = self.intend_commit(key, name)?;
        let now = Time::now();
        let record = SnapshotRecord {
            key: name.to_owned(),
            kind: SnapshotKind::Committed,
            labels,
            usage: Some(usage),
            durable: self.durable_now(),
            created: now,
            updated: now,
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
}
