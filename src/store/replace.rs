//! A fresh tree in the place of a damaged one, under the feet of mounts that still show the old one.
//!
//! A lower directory of a mount must not change (<https://docs.kernel.org/filesystems/overlayfs.html#changes-to-underlying-filesystems>),
//! so a damaged tree is never written to: it changes places with a fresh one, in one rename, and is kept in `kept/` until no
//! mount has it. Each of the steps leaves a store whose layer is either the old one or the new one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use super::lock::{Mode, What};
use super::publish::{FixupRef, LayerRef, vanished};
use super::record::{self, FixupKey, Replace};
use super::staging::{SealedLayer, Staging, make_dir};
use super::{Id, Pin, Store, VERSION, io_at};
use crate::error::Result;
use crate::fail::fail_point;
use crate::mount::{OverlayUse, overlays_anywhere_using};

const WHY: &str = "why.json";
const TREE: &str = "tree";

/// `kept/NAME/why.json`: who may still need the tree beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    /// The name that the tree had.
    id: Id,
    /// The boot in which it was replaced: no mount lives longer.
    boot_id: Option<String>,
    /// Device numbers of the overlays that had it as a layer; `None` until they were looked up.
    devices: Option<BTreeSet<String>>,
}

impl Store {
    /// Puts a freshly unpacked layer in the place of the published one, or publishes it where there is none; returns the
    /// mounts that show the old tree until they are made again.
    ///
    /// # Errors
    /// An error of the disk; the old tree is in place then, unless the error says otherwise.
    pub fn replace_layer(&self, pin: &Pin, sealed: SealedLayer) -> Result<(LayerRef, Vec<OverlayUse>)> {
        let (diff_id, options) = (sealed.report.diff_id, sealed.options);
        let id = Id::of_layer(&diff_id, &options);
        if self.layer(&diff_id, &options)?.is_none() {
            let mut layers = self.publish(pin, vec![sealed])?;
            return Ok((layers.pop().ok_or_else(|| vanished(&diff_id))?, Vec::new()));
        }
        let record = self.record_of(&sealed);
        sealed.staging.write_record(&record::encode(&record)?)?;
        pin.add(&[id])?;
        let uses = self.exchange("layers", id, &sealed.staging)?;
        Ok((self.layer(&diff_id, &options)?.ok_or_else(|| vanished(&diff_id))?, uses))
    }

    /// As [`Store::replace_layer`], for a fix-up that has a tree.
    ///
    /// # Errors
    /// As [`Store::replace_layer`].
    pub fn replace_fixup(&self, pin: &Pin, key: FixupKey, staging: Staging) -> Result<(FixupRef, Vec<OverlayUse>)> {
        let id = Id::of_fixup(&key);
        staging.write_record(&record::encode(&self.fixup_record(&key, false))?)?;
        pin.add(&[id])?;
        let uses = self.exchange("fixups", id, &staging)?;
        Ok((self.fixup(&key)?.ok_or_else(|| vanished(&key.chain_id))?, uses))
    }

    fn exchange(&self, records: &str, id: Id, staging: &Staging) -> Result<Vec<OverlayUse>> {
        if self.durable() {
            self.sync_all(staging.sync_handle())?;
        }
        fail_point("replace.synced")?;
        let locks = self.gate(Mode::Shared)?;
        locks.key(What::Publication, Some(&id), Mode::Exclusive, &|| false)?;
        let home = self.dir("kept");
        make_dir(&home, 0o700)?;
        let kept = home.join(Id::random().to_string());
        make_dir(&kept, 0o700)?;
        let mut why = Kept { version: VERSION, id, boot_id: self.0.boot_id.clone(), devices: None };
        self.write_file(&kept.join(WHY), &record::encode(&why)?, Replace::Yes)?;
        let (tree, name) = (kept.join(TREE), self.object("l", &id));
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| io_at("rename", from, e));
        rename(&staging.path().join(TREE), &tree)?;
        self.sync_dir(&kept)?;
        self.sync_dir(&home)?;
        fail_point("replace.before-exchange")?;
        exchange(&tree, &name)?;
        self.sync_dir(&self.dir("l"))?;
        fail_point("replace.tree-exchanged")?;
        exchange(&staging.path().join("meta"), &self.object(records, &id))?;
        self.sync_dir(&self.dir(records))?;
        fail_point("replace.record-exchanged")?;
        // Whoever has the old tree was mounted before the exchange; whoever came after it is listed for nothing.
        let uses = overlays_anywhere_using(&name)?;
        if uses.is_empty() {
            self.discard(&kept)?;
        } else {
            why.devices = Some(uses.iter().map(|u| u.device.clone()).collect());
            self.write_file(&kept.join(WHY), &record::encode(&why)?, Replace::Yes)?;
        }
        drop(locks);
        self.tidy();
        Ok(uses)
    }

    /// Returns replaced trees that no mount has any more; under the exclusive gate, so none is being replaced.
    pub(super) fn released(&self) -> Result<Vec<PathBuf>> {
        let home = self.dir("kept");
        let mut out = Vec::new();
        for name in record::names(&home)? {
            let path = home.join(name);
            // Without the note nothing was exchanged yet.
            let needed = match super::publish::undamaged(record::read::<Kept>(&path.join(WHY)))? {
                Some(why) => self.needed(&why)?,
                None => false,
            };
            if !needed {
                out.push(path);
            }
        }
        Ok(out)
    }

    fn needed(&self, why: &Kept) -> Result<bool> {
        if why.boot_id.is_some() && why.boot_id != self.0.boot_id {
            return Ok(false);
        }
        let uses = overlays_anywhere_using(&self.object("l", &why.id))?;
        Ok(match &why.devices {
            None => !uses.is_empty(),
            Some(devices) => uses.iter().any(|u| devices.contains(&u.device)),
        })
    }
}

fn exchange(a: &Path, b: &Path) -> Result<()> {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(|e| {
        let error = io_at("exchange", b, e);
        match e {
            rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS => error.with_hint(
                "this file system cannot exchange two names: unmount, remove the image with `unply rm`, run `unply gc`, pull again",
            ),
            _ => error,
        }
    })
}
