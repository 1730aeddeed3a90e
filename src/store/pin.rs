//! Pins: what a running process needs and nothing on disk names yet.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::lock::{self, Mode};
use super::record::names;
use super::{Id, Store, io_at};
use crate::error::Result;

/// Keeps layers and fix-ups from being collected while it lives; they need not exist yet.
///
/// A file of names with a held lock, so a pin dies with its process.
#[derive(Debug)]
pub struct Pin {
    store: Store,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    ids: HashSet<Id>,
}

impl Store {
    /// Pins `ids`; more can be added later.
    ///
    /// # Errors
    /// `NoSpace`, and whatever else the file system says.
    pub fn pin(&self, ids: &[Id]) -> Result<Pin> {
        let gate = self.gate(Mode::Shared)?;
        let dir = self.dir("pins");
        let file = tempfile::Builder::new()
            .prefix("")
            .rand_bytes(12)
            .tempfile_in(&dir)
            .map_err(|e| io_at("create a file in", &dir, e))?;
        let (file, path) = file.keep().map_err(|e| io_at("keep a file in", &dir, e.error))?;
        lock::try_own(&file)?;
        drop(gate);
        let pin = Pin { store: self.clone(), path, state: Mutex::new(State { file, ids: HashSet::new() }) };
        pin.add(ids)?;
        Ok(pin)
    }

    /// Returns what live pins name and removes dead pins, under the exclusive gate that the caller holds.
    pub(super) fn pinned(&self, remove_dead: bool) -> Result<HashSet<Id>> {
        let dir = self.dir("pins");
        let mut out = HashSet::new();
        for name in names(&dir)? {
            let path = dir.join(name);
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(io_at("open", &path, e)),
            };
            if lock::try_own(&file)? {
                if remove_dead
                    && let Err(e) = std::fs::remove_file(&path)
                    // Else its owner let go of it just now.
                    && e.kind() != std::io::ErrorKind::NotFound
                {
                    return Err(io_at("remove", &path, e));
                }
                continue;
            }
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(|e| io_at("read", &path, e))?;
            out.extend(text.lines().filter_map(|line| line.parse::<Id>().ok()));
        }
        Ok(out)
    }
}

impl Pin {
    /// Pins `ids` too.
    ///
    /// # Errors
    /// `NoSpace`, and whatever else the file system says; what was pinned before stays so.
    pub fn add(&self, ids: &[Id]) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<Id> = ids.iter().filter(|id| !state.ids.contains(id)).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let lines: String = new.iter().map(|id| format!("\n{id}\n")).collect();
        // Whoever collects holds the gate alone, so it never reads half a line.
        let _gate = self.store.gate(Mode::Shared)?;
        state.file.write_all(lines.as_bytes()).map_err(|e| io_at("write", &self.path, e))?;
        state.ids.extend(new);
        Ok(())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // A pin left behind is dead, and removed by the next collection.
        let _ = std::fs::remove_file(&self.path);
    }
}
