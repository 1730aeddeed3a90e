//! Garbage collection: what nothing names goes.
//!
//! Roots are images, snapshots, live pins, and what overlays of the caller's mount namespace have among their layers (a
//! mount may outlive the process that pinned its chain). Judging and renaming happen under the exclusive gate and take
//! milliseconds; deleting files happens after it was released and blocks nobody.

use std::collections::HashSet;
use std::path::PathBuf;

use super::lock::Mode;
use super::publish::undamaged;
use super::record::{self, FixupRecord, ImageRecord, LayerRecord, Lower, SnapshotRecord};
use super::{Id, Store};
use crate::digest::{ChainId, DiffId};
use crate::error::{ErrorKind, Result};
use crate::fail::fail_point;

/// What a collection freed, or with a dry run would free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Layers, in the order of their names.
    pub layers: Vec<Freed<DiffId>>,
    /// Fix-ups, in the order of their names.
    pub fixups: Vec<Freed<ChainId>>,
    /// What dead processes and damaged records left.
    pub leftovers: Vec<PathBuf>,
    /// Bytes of file content in the freed layers, as recorded when they were unpacked, and in the freed fix-ups.
    pub bytes: u64,
}

/// One freed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed<T> {
    /// Its name in the store.
    pub id: Id,
    /// What it was; `None` if its record is damaged.
    pub key: Option<T>,
    /// Bytes of file content.
    pub bytes: u64,
}

impl Store {
    /// Deletes what no image, no snapshot, no live pin and no mount needs, and what dead processes left.
    ///
    /// # Errors
    /// `Malformed` if the record of a snapshot is damaged: nobody knows what it stands on, so nothing is deleted.
    pub fn gc(&self, dry_run: bool) -> Result<GcReport> {
        self.gc_until(dry_run, &|| false)
    }

    /// As [`Store::gc`]; `stop` is asked before each file is deleted. What is left goes with the next command.
    pub(super) fn gc_until(&self, dry_run: bool, stop: &dyn Fn() -> bool) -> Result<GcReport> {
        let gate = self.gate(Mode::Exclusive)?;
        let mut report = GcReport::default();
        let roots = self.roots(dry_run, &mut report)?;
        for name in record::names(&self.dir("layers"))? {
            let Some(id) = name.parse::<Id>().ok().filter(|id| !roots.ids.contains(id)) else { continue };
            let record: Option<LayerRecord> = undamaged(record::read(&self.object("layers", &id).join("record.json")))?;
            let bytes = record.as_ref().map_or(0, |record| record.facts.content_bytes);
            report.bytes = report.bytes.saturating_add(bytes);
            report.layers.push(Freed { id, key: record.map(|record| record.diff_id), bytes });
        }
        for name in record::names(&self.dir("fixups"))? {
            let Some(id) = name.parse::<Id>().ok().filter(|id| !roots.ids.contains(id)) else { continue };
            let record: Option<FixupRecord> = undamaged(record::read(&self.object("fixups", &id).join("record.json")))?;
            let bytes = self.fixup_bytes(&id)?;
            report.bytes = report.bytes.saturating_add(bytes);
            report.fixups.push(Freed { id, key: record.map(|record| record.chain_id), bytes });
        }
        report.leftovers.extend(self.dead_staging()?);
        report.leftovers.extend(self.orphan_trees()?);
        report.leftovers.extend(self.released()?);
        report.leftovers.extend(self.unused_dirs(&roots.dirs)?);
        if dry_run {
            return Ok(report);
        }
        fail_point("gc.judged")?;
        let layers = report.layers.iter().map(|freed| ("layers", freed.id));
        let fixups = report.fixups.iter().map(|freed| ("fixups", freed.id));
        for (records, id) in layers.chain(fixups) {
            // The record first: a tree without one is nothing, a record without tree would be a lie.
            self.discard(&self.object(records, &id))?;
            fail_point("gc.record-discarded")?;
            self.discard(&self.object("l", &id))?;
        }
        for path in &report.leftovers {
            self.discard(path)?;
        }
        fail_point("gc.discarded")?;
        drop(gate);
        self.empty_trash(stop)?;
        Ok(report)
    }

    fn roots(&self, dry_run: bool, report: &mut GcReport) -> Result<Roots> {
        let mut roots = Roots { ids: self.pinned(!dry_run)?, dirs: HashSet::new() };
        let images = self.dir("images");
        for name in record::names(&images)? {
            let dir = images.join(name);
            match undamaged(record::read::<ImageRecord>(&dir.join("record.json")))? {
                Some(record) => roots.ids.extend(record.image.needs()),
                // It has no name any more and can be pulled again.
                None => report.leftovers.push(dir),
            }
        }
        let mut snapshots = self.snapshots_strictly()?;
        let abandoned = self.abandoned(&snapshots)?;
        snapshots.retain(|record| {
            let gone = abandoned.contains(&record.dir);
            if gone {
                report.leftovers.push(self.snapshot_path(&record.key));
            }
            !gone
        });
        for record in &snapshots {
            roots.dirs.insert(record.dir);
            for lower in &record.lowers {
                match lower {
                    Lower::Layer(id) | Lower::Fixup(id) => roots.ids.insert(*id),
                    Lower::Snapshot(dir) => roots.dirs.insert(*dir),
                };
            }
        }
        report.leftovers.extend(self.superseded(&snapshots));
        roots.ids.extend(self.mounted_objects("l")?.into_keys());
        roots.dirs.extend(self.mounted_objects("s")?.into_keys());
        Ok(roots)
    }

    fn snapshots_strictly(&self) -> Result<Vec<SnapshotRecord>> {
        let dir = self.dir("snapshots");
        let mut out = Vec::new();
        for name in record::names(&dir)? {
            let record = record::read(&dir.join(name)).map_err(|e| match e.kind() {
                ErrorKind::Malformed => e.with_hint("remove that file to give the snapshot up, then collect again"),
                _ => e,
            })?;
            out.extend(record);
        }
        Ok(out)
    }

    pub(super) fn unused_dirs(&self, used: &HashSet<Id>) -> Result<Vec<PathBuf>> {
        let s = self.dir("s");
        let unused = |name: &String| name.parse::<Id>().map_or(true, |id| !used.contains(&id));
        Ok(record::names(&s)?.into_iter().filter(unused).map(|name| s.join(name)).collect())
    }
}

struct Roots {
    ids: HashSet<Id>,
    dirs: HashSet<Id>,
}
