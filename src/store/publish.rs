//! How a staged tree becomes a layer that everybody may use, and how it is found again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::CWD;

use super::lock::{Locks, Mode, What};
use super::record::{self, Durable, FixupKey, FixupRecord, Form, LayerOptions, LayerRecord, Replace, Time};
use super::staging::{SealedLayer, Staging};
use super::{Cancel, Id, Pin, Store, VERSION, io_at};
use crate::apply::facts::LayerFacts;
use crate::digest::DiffId;
use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;
use crate::root::Dir;

/// A published layer; cheap to clone.
#[derive(Debug, Clone)]
pub struct LayerRef {
    id: Id,
    tree: PathBuf,
    meta: PathBuf,
    record: Arc<LayerRecord>,
}

impl LayerRef {
    /// Returns its name in the store.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Returns its identity.
    pub fn diff_id(&self) -> DiffId {
        self.record.diff_id
    }

    /// Returns what its tree is on disk.
    pub fn form(&self) -> Form {
        self.record.form
    }

    /// Returns its tree; read only.
    pub fn tree_path(&self) -> &Path {
        &self.tree
    }

    /// Returns what applying it found out.
    pub fn facts(&self) -> &LayerFacts {
        &self.record.facts
    }

    /// Returns whether it survives a loss of power.
    pub fn durable(&self) -> &Durable {
        &self.record.durable
    }

    /// Returns everything known about it.
    pub fn record(&self) -> &LayerRecord {
        &self.record
    }

    /// Returns the directory with its record, its journal and its stash; read only.
    pub fn meta_path(&self) -> &Path {
        &self.meta
    }
}

/// A published fix-up; cheap to clone.
#[derive(Debug, Clone)]
pub struct FixupRef {
    id: Id,
    tree: Option<PathBuf>,
    meta: PathBuf,
    record: Arc<FixupRecord>,
}

impl FixupRef {
    /// Returns its name in the store.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Returns its tree; `None` where there was nothing to correct.
    pub fn tree_path(&self) -> Option<&Path> {
        self.tree.as_deref()
    }

    /// Returns everything known about it.
    pub fn record(&self) -> &FixupRecord {
        &self.record
    }
}

/// What came of the wish to have a layer.
#[derive(Debug)]
pub enum Claim {
    /// It is published already.
    Present(LayerRef),
    /// It is not, and nobody else will unpack it while this lock lives.
    Vacant(LayerLock),
    /// Another process or thread unpacks it now; only [`Store::try_claim_layer`] says so.
    Held,
}

/// The exclusive right to unpack one layer; it ends with its owner, whatever way that dies. Keep it until published.
#[derive(Debug)]
pub struct LayerLock {
    id: Id,
    _locks: Locks,
}

impl LayerLock {
    /// Returns the name that the layer will have.
    pub fn id(&self) -> Id {
        self.id
    }
}

/// Something staged that is about to get its name.
struct Candidate {
    id: Id,
    /// `layers` or `fixups`.
    records: &'static str,
    staging: Staging,
    has_tree: bool,
    fate: Fate,
}

#[derive(PartialEq, Eq)]
enum Fate {
    /// To be published.
    Fresh,
    /// Somebody published the same before; the staged one is dropped.
    Present,
    /// Twice in one group: the other one is published.
    Repeated,
}

impl Store {
    /// Looks a layer up.
    ///
    /// One that was written without syncs in another boot counts as absent: it has to be unpacked again. Nothing keeps
    /// the layer from being collected but a [`Pin`], an image or a snapshot that names it.
    ///
    /// # Errors
    /// `Unsupported` for a record of an unknown version.
    pub fn layer(&self, diff_id: &DiffId, options: &LayerOptions) -> Result<Option<LayerRef>> {
        let id = Id::of_layer(diff_id, options);
        let Some(layer) = self.layer_by_id(&id)? else { return Ok(None) };
        same_key(&id, layer.record.diff_id == *diff_id && layer.record.options == *options)?;
        Ok(Some(layer))
    }

    /// Looks a layer up by its name in the store, as [`Store::layer`] does.
    ///
    /// # Errors
    /// As [`Store::layer`].
    pub fn layer_by_id(&self, id: &Id) -> Result<Option<LayerRef>> {
        let meta = self.object("layers", id);
        let Some(record) = undamaged(record::read::<LayerRecord>(&meta.join("record.json")))? else { return Ok(None) };
        let tree = self.object("l", id);
        if !self.survived(&record.durable) || !tree.is_dir() {
            return Ok(None);
        }
        Ok(Some(LayerRef { id: *id, tree, meta, record: Arc::new(record) }))
    }

    /// Returns every layer that can be used, in the order of their names.
    ///
    /// # Errors
    /// As [`Store::layer`].
    pub fn layers(&self) -> Result<Vec<LayerRef>> {
        record::each(&record::names(&self.dir("layers"))?, |name| match name.parse() {
            Ok(id) => self.layer_by_id(&id),
            Err(_) => Ok(None),
        })
    }

    /// Looks a fix-up up.
    ///
    /// # Errors
    /// `Unsupported` for a record of an unknown version.
    pub fn fixup(&self, key: &FixupKey) -> Result<Option<FixupRef>> {
        let id = Id::of_fixup(key);
        let Some(fixup) = self.fixup_by_id(&id)? else { return Ok(None) };
        same_key(&id, fixup.record.chain_id == key.chain_id && fixup.record.options == key.options)?;
        Ok(Some(fixup))
    }

    /// Looks a fix-up up by its name in the store.
    ///
    /// # Errors
    /// As [`Store::fixup`].
    pub fn fixup_by_id(&self, id: &Id) -> Result<Option<FixupRef>> {
        let meta = self.object("fixups", id);
        let Some(record) = undamaged(record::read::<FixupRecord>(&meta.join("record.json")))? else { return Ok(None) };
        let tree = (!record.empty).then(|| self.object("l", id));
        if !self.survived(&record.durable) || tree.as_ref().is_some_and(|tree| !tree.is_dir()) {
            return Ok(None);
        }
        Ok(Some(FixupRef { id: *id, tree, meta, record: Arc::new(record) }))
    }

    /// Pins a layer and finds it, or takes the right to unpack it, waiting for whoever unpacks it now.
    ///
    /// Wait only while holding no other unpublished layer, else two processes wait for each other: take what
    /// [`Store::try_claim_layer`] gives, publish it, then wait for the rest.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn claim_layer(
        &self,
        pin: &Pin,
        diff_id: &DiffId,
        options: &LayerOptions,
        cancel: Cancel<'_>,
    ) -> Result<Claim> {
        let id = Id::of_layer(diff_id, options);
        pin.add(&[id])?;
        if let Some(layer) = self.layer(diff_id, options)? {
            return Ok(Claim::Present(layer));
        }
        let locks = self.locks()?;
        locks.key(What::Claim, Some(&id), Mode::Exclusive, cancel)?;
        self.vacant(id, locks, diff_id, options)
    }

    /// As [`Store::claim_layer`], without waiting.
    ///
    /// # Errors
    /// As [`Store::layer`].
    pub fn try_claim_layer(&self, pin: &Pin, diff_id: &DiffId, options: &LayerOptions) -> Result<Claim> {
        let id = Id::of_layer(diff_id, options);
        pin.add(&[id])?;
        if let Some(layer) = self.layer(diff_id, options)? {
            return Ok(Claim::Present(layer));
        }
        let locks = self.locks()?;
        if !locks.try_key(What::Claim, Some(&id), Mode::Exclusive)? {
            return Ok(Claim::Held);
        }
        self.vacant(id, locks, diff_id, options)
    }

    fn vacant(&self, id: Id, locks: Locks, diff_id: &DiffId, options: &LayerOptions) -> Result<Claim> {
        // Whoever had the lock may have published meanwhile.
        Ok(match self.layer(diff_id, options)? {
            Some(layer) => Claim::Present(layer),
            None => Claim::Vacant(LayerLock { id, _locks: locks }),
        })
    }

    /// Publishes a group of sealed layers with one `syncfs` and pins them; the result has the order of `sealed`.
    ///
    /// A layer that is published already stays, and the staged one is dropped.
    ///
    /// # Errors
    /// An error of the disk: then no layer of the group counts as published by this call, and what was staged is removed.
    pub fn publish(&self, pin: &Pin, sealed: Vec<SealedLayer>) -> Result<Vec<LayerRef>> {
        let mut keys = Vec::with_capacity(sealed.len());
        let mut group = Vec::with_capacity(sealed.len());
        for layer in sealed {
            let id = Id::of_layer(&layer.report.diff_id, &layer.options);
            keys.push((layer.report.diff_id, layer.options));
            let record = self.record_of(&layer);
            layer.staging.write_record(&record::encode(&record)?)?;
            group.push(Candidate { id, records: "layers", staging: layer.staging, has_tree: true, fate: Fate::Fresh });
        }
        let met_others = self.publish_group(pin, group)?;
        let mut out = Vec::with_capacity(keys.len());
        for (diff_id, options) in keys {
            out.push(self.layer(&diff_id, &options)?.ok_or_else(|| vanished(&diff_id))?);
        }
        if met_others && self.durable() {
            self.upgrade_durable(&mut out, &mut [])?;
        }
        Ok(out)
    }

    /// Publishes the fix-ups of a chain and pins them; `None` for one that has nothing to correct.
    ///
    /// The root directory of a tree keeps the metadata that its maker gave it.
    ///
    /// # Errors
    /// As [`Store::publish`].
    pub fn publish_fixups(&self, pin: &Pin, fixups: Vec<(FixupKey, Option<Staging>)>) -> Result<Vec<FixupRef>> {
        let mut keys = Vec::with_capacity(fixups.len());
        let mut group = Vec::with_capacity(fixups.len());
        for (key, staging) in fixups {
            let record = self.fixup_record(&key, staging.is_none());
            let has_tree = staging.is_some();
            let staging = match staging {
                Some(staging) => staging,
                None => self.stage()?,
            };
            staging.write_record(&record::encode(&record)?)?;
            group.push(Candidate { id: Id::of_fixup(&key), records: "fixups", staging, has_tree, fate: Fate::Fresh });
            keys.push(key);
        }
        let met_others = self.publish_group(pin, group)?;
        let mut out = Vec::with_capacity(keys.len());
        for key in keys {
            out.push(self.fixup(&key)?.ok_or_else(|| vanished(&key.chain_id))?);
        }
        if met_others && self.durable() {
            self.upgrade_durable(&mut [], &mut out)?;
        }
        Ok(out)
    }

    pub(super) fn record_of(&self, layer: &SealedLayer) -> LayerRecord {
        LayerRecord {
            version: VERSION,
            diff_id: layer.report.diff_id,
            options: layer.options,
            flavour: self.flavour(),
            form: Form::Directory,
            durable: self.durable_now(),
            source: layer.report.clone(),
            facts: layer.facts.clone(),
            created: Time::now(),
        }
    }

    pub(super) fn fixup_record(&self, key: &FixupKey, empty: bool) -> FixupRecord {
        FixupRecord {
            version: VERSION,
            chain_id: key.chain_id,
            options: key.options,
            flavour: self.flavour(),
            form: Form::Directory,
            empty,
            durable: self.durable_now(),
            created: Time::now(),
        }
    }

    /// The protocol of publication, for whatever has a tree in `l` and a record directory.
    ///
    /// Returns whether something was there already, which another process may have left without syncs.
    fn publish_group(&self, pin: &Pin, mut group: Vec<Candidate>) -> Result<bool> {
        fail_point("publish.staged")?;
        let ids: Vec<Id> = group.iter().map(|c| c.id).collect();
        pin.add(&ids)?;
        // A descriptor reports the write-back errors since it was opened, once: the oldest of the group saw all of them.
        if let (true, Some(oldest)) = (self.durable(), group.iter().min_by_key(|c| c.staging.opened())) {
            self.sync_all(oldest.staging.sync_handle())?;
        }
        fail_point("publish.synced")?;
        group.sort_by_key(|candidate| candidate.id);
        let locks = self.gate(Mode::Shared)?;
        let mut before = None;
        for candidate in &mut group {
            if before == Some(candidate.id) {
                candidate.fate = Fate::Repeated;
                continue;
            }
            before = Some(candidate.id);
            locks.key(What::Publication, Some(&candidate.id), Mode::Exclusive, &|| false)?;
            if self.good(candidate)? {
                candidate.fate = Fate::Present;
                continue;
            }
            // What a kill between the two renames or a reboot without syncs left. It was never handed out in this boot.
            self.discard(&self.object(candidate.records, &candidate.id))?;
            self.discard(&self.object("l", &candidate.id))?;
        }
        let outcome = self.give_names(&group);
        if outcome.is_err() {
            for candidate in group.iter().filter(|c| c.fate == Fate::Fresh) {
                if !self.object(candidate.records, &candidate.id).exists() {
                    // Best effort: an orphan is replaced or cleaned by the next command.
                    let _ = self.discard(&self.object("l", &candidate.id));
                }
            }
        }
        drop(locks);
        outcome?;
        fail_point("publish.named")?;
        let mut met_others = false;
        for candidate in group {
            match candidate.fate {
                Fate::Fresh => candidate.staging.published(),
                Fate::Present => met_others = true,
                Fate::Repeated => {}
            }
        }
        Ok(met_others)
    }

    fn good(&self, candidate: &Candidate) -> Result<bool> {
        Ok(match candidate.records {
            "layers" => self.layer_by_id(&candidate.id)?.is_some(),
            _ => self.fixup_by_id(&candidate.id)?.is_some(),
        })
    }

    fn give_names(&self, group: &[Candidate]) -> Result<()> {
        let fresh = || group.iter().filter(|c| c.fate == Fate::Fresh);
        if fresh().next().is_none() {
            return Ok(());
        }
        let trees = Dir::open(&self.dir("l"))?;
        for candidate in fresh().filter(|c| c.has_tree) {
            fail_point("publish.before-tree-rename")?;
            candidate.staging.give_tree(&trees, candidate.id.as_str())?;
        }
        fail_point("publish.after-tree-rename")?;
        // A record on disk must never speak of a tree whose name is not.
        self.sync_dir(&self.dir("l"))?;
        fail_point("publish.trees-synced")?;
        for candidate in fresh() {
            fail_point("publish.before-record-rename")?;
            candidate.staging.give_record(&Dir::open(&self.dir(candidate.records))?, candidate.id.as_str())?;
        }
        fail_point("publish.after-record-rename")?;
        for records in ["layers", "fixups"] {
            if fresh().any(|c| c.records == records) {
                self.sync_dir(&self.dir(records))?;
            }
        }
        Ok(())
    }

    /// Makes durable what was published without syncs, so that a durable command may rely on it.
    ///
    /// Also settles names that another process gave a moment ago.
    ///
    /// # Errors
    /// An error of the disk: then the records stay as they are.
    pub fn upgrade_durable(&self, layers: &mut [LayerRef], fixups: &mut [FixupRef]) -> Result<()> {
        let volatile = |durable: &Durable| *durable != Durable::Yes;
        if layers.iter().any(|l| volatile(&l.record.durable)) || fixups.iter().any(|f| volatile(&f.record.durable)) {
            let root = fs::File::open(self.root()).map_err(|e| io_at("open", self.root(), e))?;
            self.sync_all(&root)?;
        }
        fail_point("upgrade.synced")?;
        let _gate = self.gate(Mode::Shared)?;
        for LayerRef { meta, record, .. } in layers.iter_mut().filter(|l| volatile(&l.record.durable)) {
            let record = Arc::make_mut(record);
            record.durable = Durable::Yes;
            self.write_file(&meta.join("record.json"), &record::encode(record)?, Replace::Yes)?;
        }
        for FixupRef { meta, record, .. } in fixups.iter_mut().filter(|f| volatile(&f.record.durable)) {
            let record = Arc::make_mut(record);
            record.durable = Durable::Yes;
            self.write_file(&meta.join("record.json"), &record::encode(record)?, Replace::Yes)?;
        }
        for dir in ["l", "layers", "fixups"] {
            record::sync_dir(&self.dir(dir))?;
        }
        Ok(())
    }
}

/// A record that a crash tore counts as no record: what it spoke of is made again.
pub(super) fn undamaged<T>(read: Result<Option<T>>) -> Result<Option<T>> {
    match read {
        Err(e) if e.kind() == ErrorKind::Malformed => {
            tracing::warn!(error = %e, "a record of the store is ignored");
            Ok(None)
        }
        other => other,
    }
}

pub(super) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    crate::sys::rename_new(CWD, from, CWD, to).map_err(|e| io_at("create", to, e))
}

fn same_key(id: &Id, same: bool) -> Result<()> {
    if same {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, format!("two different keys have the name {id} in this store"))
        .with_hint("use another --root for this image"))
}

pub(super) fn vanished(what: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Other, format!("{what} vanished from the store right after it was published"))
}
