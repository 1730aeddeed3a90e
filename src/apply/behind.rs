//! Files that threads make while the archive is read on ([`super::writers`]), and what is recorded once they are there.
//!
//! Whatever looks at names, replaces one or makes a link settles first, so that all of it sees what it would see if every file
//! were made in its turn. The journal is the same, byte for byte.

use std::io::BufRead;

use crate::error::{Error, ErrorKind, Result};
use crate::root::NodeMeta;
use crate::tar::Region;

use super::Data;
use super::dirs::DirId;
use super::journal::{RecordRef, Sum};
use super::lay::{self, Layer, changed_meanwhile};
use super::plan::{LiteralPath, Node};
use super::unheld;
use super::writers::{Outcome, Plain};

/// What is recorded in its turn.
pub(super) struct Note {
    pub(super) path: LiteralPath,
    pub(super) placed: LiteralPath,
    pub(super) node: Node,
    pub(super) meta: NodeMeta,
    pub(super) sum: Option<Sum>,
    /// Of a file that a thread makes.
    pub(super) file: Option<UnderWay>,
}

/// What is needed to make a file after all, or to say why it could not be made.
pub(super) struct UnderWay {
    parent: DirId,
    plain: Plain,
    entry: Vec<u8>,
    offset: u64,
}

impl Layer<'_> {
    /// Adds a record, once everything before it is settled.
    pub(super) fn record(&mut self, record: RecordRef<'_>) -> Result<()> {
        self.settle()?;
        self.journal.push(record)
    }

    /// Adds the record of a node that was made, behind those of files under way.
    pub(super) fn note(&mut self, note: Note) -> Result<()> {
        match self.crew.put(note) {
            Some(note) => self.push(&note, note.sum),
            None => self.told(),
        }
    }

    fn push(&mut self, note: &Note, sum: Option<Sum>) -> Result<()> {
        let Note { path, placed, node, meta, .. } = note;
        self.journal.push(RecordRef::Make { path, placed: Some(placed), source: None, node, meta, sum })
    }

    /// Whether a file has nothing that only the thread at hand can judge.
    pub(super) fn is_plain(&self, size: u64, sparse: Option<&[Region]>, meta: &NodeMeta) -> bool {
        self.crew.wants(size) && sparse.is_none() && meta.xattrs.is_empty() && !unheld::rare_time(meta.meta.mtime)
    }

    /// Whether a file of this name can be handed over now.
    pub(super) fn crew_takes(&mut self, parent: DirId, name: &[u8], size: u64) -> Result<bool> {
        // A directory that the layer made is replaced at once: what comes next may be below that name.
        if self.dirs.child(parent, name).is_some() {
            return Ok(false);
        }
        let room = self.crew.has_room(parent, name, size)?;
        self.told()?;
        Ok(room)
    }

    #[expect(clippy::too_many_arguments, reason = "one file is all of these")]
    pub(super) fn hand_over<R: BufRead>(
        &mut self,
        parent: DirId,
        placed: LiteralPath,
        path: LiteralPath,
        node: Node,
        meta: NodeMeta,
        entry: &[u8],
        data: &mut Data<'_, R>,
    ) -> Result<()> {
        let plain = self.plain(&meta.meta, self.open_mode(&meta.meta), entry);
        let under_way = UnderWay { parent, plain, entry: entry.to_vec(), offset: self.offset };
        let dir = self.dirs.handle(parent)?;
        let name = placed.split_last().map(|(_, name)| name.to_vec()).unwrap_or_default();
        let size = data.left;
        let note = Note { path, placed, node, meta, sum: None, file: Some(under_way) };
        self.crew.add((parent, dir), &name, plain, note, |bytes| {
            while data.left > 0 {
                data.piece(u64::MAX, |piece| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        self.facts.content_bytes = self.facts.content_bytes.saturating_add(size);
        Ok(())
    }

    /// Waits for every file under way, and records what came of each.
    ///
    /// # Errors
    /// That of the first file of the archive that could not be made, with its entry and offset.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.crew.is_idle() {
            return Ok(());
        }
        let done = self.crew.hurry().and_then(|()| self.told());
        self.broken |= done.is_err();
        done
    }

    /// Records what came of those files under way that nothing unfinished stands before.
    fn told(&mut self) -> Result<()> {
        while let Some((note, outcome)) = self.crew.next() {
            if let Err(e) = self.tell(&note, outcome) {
                self.broken = true;
                return Err(match &note.file {
                    Some(file) => e.with_entry(&file.entry).with_offset(file.offset),
                    None => e,
                });
            }
        }
        Ok(())
    }

    fn tell(&mut self, note: &Note, outcome: Outcome) -> Result<()> {
        let (content, file) = match (outcome, &note.file) {
            (Outcome::Noted, _) => return self.push(note, note.sum),
            (Outcome::Made(sum), _) => {
                self.facts.inodes += 1;
                return self.push(note, sum);
            }
            (Outcome::Failed(e), _) => return Err(e),
            (Outcome::Taken(content), Some(file)) => (content, file),
            (Outcome::Taken(_), None) => return Err(Error::new(ErrorKind::Other, "no file, and its name is taken")),
        };
        let Some((_, name)) = note.placed.split_last() else { return Ok(()) };
        // The parent was there when the file was handed over, and nothing was replaced since.
        let dir = self.dirs.handle(file.parent)?;
        self.oddities.push(lay::twice(&file.entry));
        self.displace_now(file.parent, &dir, name)?;
        let sum = file.plain.make(&dir, name, &content)?.ok_or_else(|| changed_meanwhile(name))?;
        self.facts.inodes += 1;
        self.push(note, sum)
    }
}
