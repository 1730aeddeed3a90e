//! Whether the store is consistent: every name leads somewhere, and nothing lies about without a name.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::lock::Mode;
use super::record::{self, FixupRecord, ImageRecord, LayerOptions, LayerRecord, Lower, SnapshotKind, SnapshotRecord};
use super::{FixupKey, Id, Store};
use crate::error::{ErrorKind, Result};

/// What is wrong with an object of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// A record cannot be read.
    DamagedRecord,
    /// A record stands under a name that is not made from its key, or was written for another flavour.
    MisplacedRecord,
    /// A record whose tree or directory is not there.
    MissingTree,
    /// A tree or directory of which no record speaks.
    Orphan,
    /// Something that a record names is not there.
    DeadReference,
    /// What a dead process left; the next command that finds the store idle cleans it.
    Leftover,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// The file or directory that it is about.
    pub path: PathBuf,
    /// What exactly.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = crate::error::escape(self.path.as_os_str().as_encoded_bytes());
        write!(f, "{path}: {}", self.detail)
    }
}

#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn add(&mut self, kind: ProblemKind, path: &Path, detail: impl Into<String>) {
        self.0.push(Problem { kind, path: path.to_path_buf(), detail: detail.into() });
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self, path: &Path) -> Result<Option<T>> {
        match record::read(path) {
            Ok(Some(record)) => Ok(Some(record)),
            Ok(None) => {
                self.add(ProblemKind::DamagedRecord, path, "the record is missing");
                Ok(None)
            }
            Err(e) if matches!(e.kind(), ErrorKind::Malformed | ErrorKind::Unsupported) => {
                self.add(ProblemKind::DamagedRecord, path, e.message());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

impl Store {
    /// Compares all records with what is on disk; an empty list means that the store is consistent.
    ///
    /// Looks at names and records, never into the files of a layer. Waits until nobody is publishing or collecting.
    ///
    /// # Errors
    /// Only if the store cannot be read.
    pub fn check(&self) -> Result<Vec<Problem>> {
        let _gate = self.gate(Mode::Exclusive)?;
        let mut out = Findings::default();
        self.check_layers(&mut out)?;
        self.check_fixups(&mut out)?;
        self.check_images(&mut out)?;
        self.check_snapshots(&mut out)?;
        for path in self.orphan_trees()? {
            out.add(ProblemKind::Orphan, &path, "no record speaks of this tree");
        }
        for path in self.dead_staging()? {
            out.add(ProblemKind::Leftover, &path, "its owner is dead");
        }
        Ok(out.0)
    }

    fn check_layers(&self, out: &mut Findings) -> Result<()> {
        for name in record::names(&self.dir("layers"))? {
            let path = self.dir("layers").join(&name).join("record.json");
            let Some(record) = out.read::<LayerRecord>(&path)? else { continue };
            if Id::of_layer(&record.diff_id, &record.options).as_str() != name {
                out.add(ProblemKind::MisplacedRecord, &path, format!("it is about {}", record.diff_id));
            }
            if record.flavour != self.flavour() {
                out.add(ProblemKind::MisplacedRecord, &path, "it was written for another flavour");
            }
            let tree = self.dir("l").join(&name);
            if !tree.is_dir() {
                out.add(ProblemKind::MissingTree, &tree, format!("the tree of layer {} is not there", record.diff_id));
            }
        }
        Ok(())
    }

    fn check_fixups(&self, out: &mut Findings) -> Result<()> {
        for name in record::names(&self.dir("fixups"))? {
            let path = self.dir("fixups").join(&name).join("record.json");
            let Some(record) = out.read::<FixupRecord>(&path)? else { continue };
            let key = FixupKey { chain_id: record.chain_id, options: record.options };
            if Id::of_fixup(&key).as_str() != name || record.flavour != self.flavour() {
                out.add(ProblemKind::MisplacedRecord, &path, format!("it is about {}", record.chain_id));
            }
            let tree = self.dir("l").join(&name);
            match (record.empty, tree.is_dir()) {
                (false, false) => out.add(ProblemKind::MissingTree, &tree, "the tree of a fix-up is not there"),
                (true, true) => out.add(ProblemKind::Orphan, &tree, "its fix-up says that it has no tree"),
                _ => {}
            }
        }
        Ok(())
    }

    fn check_images(&self, out: &mut Findings) -> Result<()> {
        for name in record::names(&self.dir("images"))? {
            let path = self.dir("images").join(&name).join("record.json");
            let Some(record) = out.read::<ImageRecord>(&path)? else { continue };
            if Id::of_image(&record.image.image_id).as_str() != name {
                out.add(ProblemKind::MisplacedRecord, &path, format!("it is about {}", record.image.image_id));
            }
            // Written without syncs in another boot: it promises nothing, and a pull makes it good.
            if !self.survived(&record.durable) {
                continue;
            }
            let options = LayerOptions::from(&record.image.options);
            for layer in &record.image.layers {
                let id = Id::of_layer(&layer.diff_id, &options);
                if self.layer_by_id(&id)?.is_none() {
                    let detail = format!("image {} needs layer {}", record.image.image_id, layer.diff_id);
                    out.add(ProblemKind::DeadReference, &path, detail);
                }
            }
            let config = path.with_file_name("config.json");
            if !config.is_file() {
                out.add(ProblemKind::DeadReference, &config, "the config document is not there");
            }
        }
        Ok(())
    }

    fn check_snapshots(&self, out: &mut Findings) -> Result<()> {
        let mut records: Vec<SnapshotRecord> = Vec::new();
        let mut damaged = false;
        for name in record::names(&self.dir("snapshots"))? {
            let path = self.dir("snapshots").join(&name);
            let Some(record) = out.read::<SnapshotRecord>(&path)? else {
                damaged = true;
                continue;
            };
            if name != format!("{}.json", Id::of_snapshot(&record.key)) {
                out.add(ProblemKind::MisplacedRecord, &path, format!("it is about \"{}\"", record.key));
            }
            records.push(record);
        }
        let kinds: HashMap<&str, SnapshotKind> = records.iter().map(|r| (r.key.as_str(), r.kind)).collect();
        let mut used = HashSet::new();
        for record in &records {
            used.insert(record.dir);
            let path = self.dir("snapshots").join(format!("{}.json", Id::of_snapshot(&record.key)));
            for lower in record.lowers.iter().filter(|_| self.survived(&record.durable)) {
                let found = match lower {
                    Lower::Layer(id) => self.layer_by_id(id)?.is_some(),
                    Lower::Fixup(id) => self.fixup_by_id(id)?.is_some(),
                    Lower::Snapshot(dir) => self.object("s", dir).join("fs").is_dir(),
                };
                if !found {
                    out.add(ProblemKind::DeadReference, &path, format!("\"{}\" needs {lower:?}", record.key));
                }
            }
            if record.parent.as_deref().is_some_and(|p| kinds.get(p) != Some(&SnapshotKind::Committed)) {
                out.add(ProblemKind::DeadReference, &path, format!("the parent of \"{}\" is not there", record.key));
            }
            // Others have their directories made when they are first needed.
            if record.kind == SnapshotKind::Committed && !record.upper_path(self).is_dir() {
                out.add(ProblemKind::MissingTree, &path, format!("the content of \"{}\" is not there", record.key));
            }
        }
        for path in self.superseded(&records) {
            out.add(ProblemKind::Leftover, &path, "a commit was interrupted");
        }
        // A damaged record may be the one that names a directory.
        if !damaged {
            for path in self.unused_dirs(&used)? {
                out.add(ProblemKind::Orphan, &path, "no snapshot has this directory");
            }
        }
        Ok(())
    }
}
