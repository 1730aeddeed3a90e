//! Deletion in two steps, and the clean-up of what dead processes left.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::lock::{self, Mode};
use super::record::{self, SnapshotRecord};
use super::{Id, LOCK, Store, TEMPORARY, io_at};
use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;
use crate::root::remove_path;
use crate::sys::{PROBE, ProbeDir};

/// How long opening a store may spend on deleting what somebody else left. Garbage collection deletes the rest.
const OPEN_BUDGET: Duration = Duration::from_millis(250);
/// Directories whose names must be settled before anything in the trash loses content.
const NAMED_FROM: [&str; 6] = ["layers", "fixups", "images", "snapshots", "l", "s"];

impl Store {
    /// Moves something into the trash, where it counts as gone; returns whether it was there.
    pub(super) fn discard(&self, path: &Path) -> Result<bool> {
        self.discard_as(path, &Id::random().to_string())
    }

    pub(super) fn discard_as(&self, path: &Path, name: &str) -> Result<bool> {
        match fs::rename(path, self.dir("trash").join(name)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io_at("discard", path, e)),
        }
    }

    /// Deletes what is in the trash. Safe beside any other process, and after any kill.
    ///
    /// # Errors
    /// The first thing that could not be deleted; the rest is gone by then.
    pub(super) fn empty_trash(&self, stop: &dyn Fn() -> bool) -> Result<()> {
        let trash = self.dir("trash");
        let mut found = record::names(&trash)?;
        if found.is_empty() {
            return Ok(());
        }
        let mut settled = Vec::new();
        for name in found.iter().filter(|name| name.ends_with(".json")) {
            let path = trash.join(name);
            // The record of a removed snapshot: its directory goes too, and the record last.
            if let Ok(Some(record)) = record::read::<SnapshotRecord>(&path) {
                self.discard(&self.object("s", &record.dir))?;
            }
            fail_point("trash.snapshot-dir")?;
            settled.push(path);
        }
        // Files must not go while a loss of power could bring back the name that promises them.
        for dir in NAMED_FROM.iter().chain(&["trash"]) {
            record::sync_dir(&self.dir(dir))?;
        }
        fail_point("trash.settled")?;
        for path in settled {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_at("remove", &path, e)),
                _ => {}
            }
        }
        found = record::names(&trash)?;
        let mut first_error = None;
        for name in found.iter().filter(|name| !name.ends_with(".json")) {
            let path = trash.join(name);
            fail_point("trash.before-removal")?;
            if let Err(e) = remove_path(&path, stop) {
                first_error.get_or_insert(e);
            }
            if stop() {
                break;
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Deletes what is in the trash after something came there; its names are gone already, so this may fail.
    pub(super) fn tidy(&self) {
        if let Err(e) = self.empty_trash(&|| false) {
            tracing::warn!(error = %e, "trash of the store stays for now");
        }
    }

    /// Clears away what no living process owns. Skipped while others are at work: they or the next one will do it.
    pub(super) fn clean(&self) -> Result<()> {
        let locks = match self.locks() {
            // A disk that cannot be written can still be read.
            Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(()),
            locks => locks?,
        };
        if locks.try_gate(Mode::Exclusive)? {
            self.bury_the_dead()?;
            drop(locks);
        }
        let start = Instant::now();
        if let Err(e) = self.empty_trash(&|| start.elapsed() > OPEN_BUDGET) {
            // What cannot be deleted (a mount inside, a read-only disk) is no reason not to read the store.
            tracing::warn!(error = %e, "trash of the store stays for now");
        }
        Ok(())
    }

    /// Moves dead staging, temporary names and orphan trees to the trash and removes dead pins, under the exclusive gate that the caller holds.
    pub(super) fn bury_the_dead(&self) -> Result<()> {
        for path in self.dead_staging()? {
            self.finish_commit(&path)?;
            self.discard(&path)?;
            fail_point("clean.staging")?;
        }
        for path in self.orphan_trees()? {
            self.discard(&path)?;
        }
        for path in self.released()? {
            self.discard(&path)?;
        }
        for name in record::names(self.root())?.iter().filter(|name| name.starts_with(PROBE)) {
            let path = self.root().join(name);
            if ProbeDir::is_dead(&path)? {
                self.discard(&path)?;
            }
        }
        self.pinned(true)?;
        let s = self.dir("s");
        for name in record::names(&s)?.iter().filter(|name| name.starts_with(TEMPORARY)) {
            self.discard(&s.join(name))?;
        }
        Ok(())
    }

    /// Returns staging directories without living owner, and temporary files: under the exclusive gate none is in use.
    pub(super) fn dead_staging(&self) -> Result<Vec<PathBuf>> {
        let staging = self.dir("staging");
        let mut out = Vec::new();
        for name in record::names(&staging)? {
            let path = staging.join(&name);
            if name.starts_with(TEMPORARY) || !self.alive(&path.join(LOCK))? {
                out.push(path);
            }
        }
        Ok(out)
    }

    fn alive(&self, lock_file: &Path) -> Result<bool> {
        match File::open(lock_file) {
            Ok(file) => Ok(!lock::try_own(&file)?),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(false),
            Err(e) => Err(io_at("open", lock_file, e)),
        }
    }

    /// Returns trees that no record speaks of.
    pub(super) fn orphan_trees(&self) -> Result<Vec<PathBuf>> {
        let mut recorded: HashSet<String> = record::names(&self.dir("layers"))?.into_iter().collect();
        recorded.extend(record::names(&self.dir("fixups"))?);
        let l = self.dir("l");
        Ok(record::names(&l)?.into_iter().filter(|name| !recorded.contains(name)).map(|name| l.join(name)).collect())
    }
}

/// Says whether something is mounted at, or has its upper directory in, a directory below `s`.
///
/// The names there are random, so finding one anywhere in a line of the mount table is enough. Other mount namespaces
/// cannot be seen.
pub(super) fn mounted(dir: &Id) -> Result<bool> {
    // A thread may be in another mount namespace than the rest of its process.
    let table = "/proc/thread-self/mountinfo";
    let bytes = fs::read(table)
        .map_err(|e| Error::io(format!("read {table}"), e).with_hint("mount /proc to manage snapshots"))?;
    let needle = dir.as_str().as_bytes();
    Ok(bytes.windows(needle.len()).any(|window| window == needle))
}
