//! After the last entry: whiteouts, opaque marks, and the metadata of directories.

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::policy::{Ownership, WhiteoutForm};
use crate::root::{Dir, Kind, LinkOutcome, Meta, NodeMeta, meta as fdmeta};

use super::dirs::{DirId, ROOT};
use super::facts::LayerFacts;
use super::journal::{Record, RecordRef};
use super::lay::{Layer, call_failed};
use super::plan::LiteralPath;
use super::{Warning, lay, unheld};

/// Mode of every rootfs.
const ROOT_MODE: u32 = 0o755;

/// Writes overlayfs's marks into a directory of one layer
/// (<https://docs.kernel.org/filesystems/overlayfs.html#whiteouts-and-opaque-directories>).
pub(crate) struct Marker {
    prefix: &'static str,
    form: WhiteoutForm,
    /// One inode serves all whiteouts of a layer (W22).
    first: Option<(Dir, Vec<u8>)>,
    /// Inodes that whiteouts took.
    inodes: u64,
}

impl Marker {
    pub(crate) fn new(flavour: crate::policy::XattrFlavour, form: WhiteoutForm) -> Marker {
        Marker { prefix: flavour.prefix(), form, first: None, inodes: 0 }
    }

    /// Makes a whiteout of `name`; `false` where the layer has something of that name.
    pub(crate) fn whiteout(&mut self, dir: &Dir, name: &[u8]) -> Result<bool> {
        if let Some((from, source)) = &self.first {
            match dir.link(name, from, source)? {
                LinkOutcome::Made => return Ok(true),
                LinkOutcome::Taken => return Ok(false),
                LinkOutcome::TooMany | LinkOutcome::NoTarget => {}
            }
        }
        let made = match self.form {
            WhiteoutForm::CharDevice => dir.make_node(name, Kind::CharDevice, 0, 0)?,
            WhiteoutForm::Xattr => match dir.make_file(name, 0)? {
                Some(fd) => {
                    let xattr = format!("{}whiteout", self.prefix);
                    fdmeta::set_xattr_fd(&fd, xattr.as_bytes(), b"").map_err(|e| call_failed("fsetxattr", e))?;
                    true
                }
                None => false,
            },
        };
        if made {
            // The layer's tree is the same whenever it is unpacked (P14).
            dir.set_times(name, &Meta::default())?;
            self.first = Some((dir.clone(), name.to_vec()));
            self.inodes += 1;
        }
        Ok(made)
    }

    /// Marks a directory that holds whiteouts: overlayfs then filters them from listings even where nothing is merged.
    pub(crate) fn holds_whiteouts(&self, dir: &Dir, opaque: bool) -> Result<()> {
        self.set(dir, "origin", b"")?;
        if self.form == WhiteoutForm::Xattr && !opaque {
            self.set(dir, "opaque", b"x")?;
        }
        Ok(())
    }

    /// Marks a directory that hides what lower layers have in it.
    pub(crate) fn opaque(&self, dir: &Dir) -> Result<()> {
        self.set(dir, "opaque", b"y")
    }

    fn set(&self, dir: &Dir, mark: &str, value: &[u8]) -> Result<()> {
        let name = format!("{}{mark}", self.prefix);
        dir.set_xattr_self(name.as_bytes(), value).map_err(|e| {
            let error = Error::io(format!("fsetxattr(\"{name}\")"), e.into());
            if e == Errno::OPNOTSUPP {
                error.with_hint(
                    "the file system cannot hold overlayfs's marks; choose another one for the store or the target",
                )
            } else {
                error
            }
        })
    }
}

impl Layer<'_> {
    /// Ends the layer: marks, then directories' metadata, deepest first.
    pub(super) fn finish(mut self, warn: &mut dyn FnMut(Warning)) -> Result<LayerFacts> {
        self.settle()?;
        self.settle_aufs(warn)?;
        self.oddities.drain(..).for_each(&mut *warn);
        let stashed = self.stashed_any();
        let mut unmade = std::mem::take(&mut self.unmade);
        unmade.retain(|(parent, _)| !self.dirs.gone(*parent));
        for (parent, name) in &unmade {
            self.replaced(*parent, name);
        }
        if self.opaques + self.whiteouts > 0 {
            self.marks()?;
        }
        let mut marker = Marker::new(self.options.plan.flavour, self.options.whiteouts);
        for (parent, name) in unmade {
            self.hide(parent, &name, &mut marker)?;
        }
        self.facts.inodes += marker.inodes;
        let live = self.dirs.live();
        let implied = |id: &DirId| !self.dirs.info(*id).explicit && self.dirs.merges_with_lower(self.dirs.parent(*id));
        if stashed || self.facts.late_links > 0 || live.iter().any(implied) {
            self.facts.depends_on_lower = true;
        }
        let marker = Marker::new(self.options.plan.flavour, self.options.whiteouts);
        for id in live.iter().rev() {
            self.finish_directory(*id, &marker, warn)?;
        }
        if let (count @ 1.., first) = self.squashed() {
            let detail =
                format!("{count} entries, this one first, belong to the caller: only one id is mapped here (R-31)");
            warn(Warning::new("owners-squashed", first, detail));
            self.facts.squashed = true;
        }
        self.refused_in_all(warn);
        let file = self.journal.finish()?;
        drop(file);
        Ok(self.facts)
    }

    /// Reads markers back from the journal: what makes a directory opaque first, since whiteouts below it are not needed
    /// then (W9), in whatever order the archive had them.
    fn marks(&mut self) -> Result<()> {
        let mut reader = self.journal.so_far()?;
        while let Some(record) = reader.read()? {
            match record {
                Record::Opaque { dir, .. } => self.opaque(&dir),
                Record::Whiteout { parent, name } => {
                    if let Some(id) = self.dirs.at(&parent) {
                        self.replaced(id, &name);
                    }
                }
                _ => {}
            }
        }
        if self.whiteouts > 0 {
            let mut marker = Marker::new(self.options.plan.flavour, self.options.whiteouts);
            let mut reader = self.journal.so_far()?;
            while let Some(record) = reader.read()? {
                if let Record::Whiteout { parent, name } = record {
                    self.whiteout(&parent, &name, &mut marker)?;
                }
            }
            self.facts.inodes += marker.inodes;
        }
        Ok(())
    }

    /// A hidden name where the layer has a directory: that replaces the lower one as a whole (W2, W4).
    fn replaced(&mut self, parent: DirId, name: &[u8]) {
        if let Some(child) = self.dirs.child(parent, name) {
            self.dirs.info_mut(child).opaque = true;
        }
    }

    fn opaque(&mut self, dir: &LiteralPath) {
        match self.dirs.at(dir) {
            Some(ROOT) => {
                self.facts.root_opaque = true;
                self.dirs.info_mut(ROOT).opaque = true;
            }
            Some(id) => self.dirs.info_mut(id).opaque = true,
            None => self.facts.depends_on_lower = true,
        }
    }

    fn whiteout(&mut self, parent: &LiteralPath, name: &[u8], marker: &mut Marker) -> Result<()> {
        let Some(id) = self.dirs.at(parent) else {
            // The directory is not this layer's: what the name means depends on the layers below.
            self.facts.depends_on_lower = true;
            return Ok(());
        };
        self.hide(id, name, marker)
    }

    /// Hides what lower layers have at `name`; a directory of this layer there was dealt with before.
    fn hide(&mut self, id: DirId, name: &[u8], marker: &mut Marker) -> Result<()> {
        if self.dirs.child(id, name).is_some() || !self.dirs.merges_with_lower(id) {
            return Ok(());
        }
        let dir = self.dirs.handle(id)?;
        if marker.whiteout(&dir, name)? {
            self.dirs.info_mut(id).whiteouts = true;
            self.facts.whiteouts += 1;
            self.journal.push(RecordRef::Hides { placed: &self.dirs.path(id).join(name) })?;
        }
        Ok(())
    }

    fn finish_directory(&mut self, id: DirId, marker: &Marker, warn: &mut dyn FnMut(Warning)) -> Result<()> {
        let dir = self.dirs.handle(id)?;
        let info = self.dirs.info(id);
        let (opaque, whiteouts) = (info.opaque, info.whiteouts);
        if id == ROOT {
            // Overlayfs does not look at the root's opaque mark: the chain leaves lower layers out instead (W8).
            if whiteouts {
                marker.holds_whiteouts(&dir, false)?;
            }
            let root = NodeMeta { meta: Meta { mode: ROOT_MODE, ..Meta::default() }, xattrs: Vec::new() };
            let placed = LiteralPath::default();
            // Overlayfs reads no opaque mark here, so none is written.
            self.journal.push(RecordRef::Left { placed: &placed, meta: &root, opaque: false, whiteouts })?;
            return finish_root(&dir, self.options.ownership);
        }
        let node = std::mem::take(&mut self.dirs.info_mut(id).meta);
        let rare = unheld::rare_time(node.meta.mtime);
        let path = self.dirs.path(id);
        if self.options.ownership == Ownership::Keep {
            let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            if (node.meta.uid, node.meta.gid) != me {
                fdmeta::set_owner_fd(&dir, node.meta.uid, node.meta.gid)
                    .map_err(|e| lay::owner_failed(&node.meta, e))?;
            }
        } else {
            self.count_squashed(&node.meta, path.as_bytes());
        }
        for (name, value) in &node.xattrs {
            let result = fdmeta::set_xattr_fd(&dir, name, value);
            self.tolerate_xattr(result, name, value, path.as_bytes(), warn)?;
        }
        if opaque {
            marker.opaque(&dir)?;
            self.facts.opaques += 1;
        }
        if whiteouts {
            marker.holds_whiteouts(&dir, opaque)?;
        }
        fdmeta::set_mode_fd(&dir, node.meta.mode).map_err(|e| call_failed("fchmod", e))?;
        fdmeta::set_times_fd(&dir, &node.meta).map_err(|e| call_failed("futimens", e))?;
        if rare {
            let kept = fdmeta::mtime_fd(&dir).map_err(|e| call_failed("fstat", e))?;
            self.check_time(node.meta.mtime, kept, path.as_bytes(), warn);
        }
        self.journal.push(RecordRef::Left { placed: &path, meta: &node, opaque, whiteouts })
    }
}

/// Gives the root of a layer directory the one metadata that every rootfs has: 0755, 0:0, mtime 0.
pub(crate) fn finish_root(dir: &Dir, ownership: Ownership) -> Result<()> {
    if ownership == Ownership::Keep {
        fdmeta::set_owner_fd(dir, 0, 0).map_err(|e| call_failed("fchown", e))?;
    }
    fdmeta::set_mode_fd(dir, ROOT_MODE).map_err(|e| call_failed("fchmod", e))?;
    fdmeta::set_times_fd(dir, &Meta::default()).map_err(|e| call_failed("futimens", e))
}
