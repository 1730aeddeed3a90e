//! The store: published layers, fix-ups, images and snapshots on disk.
//!
//! Owns: the layout and its version, locks, staging, sealing, publication, records, garbage collection.
//! Refuses to know: how bytes were decoded, what a whiteout means, how anything is mounted.
//!
//! # Life of a layer
//! [`Store::pin`] → [`Store::claim_layer`] (present: use it; vacant: this process unpacks it, others wait) →
//! [`Store::stage`] → somebody fills [`Staging::tree_path`] → [`Staging::seal`] (only if digest, size and diff_id are
//! as expected) → [`Store::publish`] → [`LayerRef`]. Each is made only by consuming the one before.
//!
//! # Invariants
//! * `l/ID` with a record is complete, verified and never changed again.
//! * A record that says `durable: yes` appeared after a `syncfs` that covered every byte it speaks of.
//! * What a live pin, an image or a snapshot names is never collected.
//! * What a dead process left is recognised by its free lock, never by age or process id.
//! * After any kill, the next [`Store::open`] gives a store for which [`Store::check`] finds nothing.
//!
//! # Layout, version 1
//! Documents and names are described in [`format`](mod@format).
//! ```text
//! ROOT/            0700, owned by the caller
//!   store.json     {version, flavour: {xattr: trusted|user, ownership: keep|squash, whiteouts: char-device|xattr}}
//!   lock           byte-range locks (see `lock.rs`); empty
//!   l/ID           trees of layers and fix-ups: the lower directories. ID is 12 characters of base32, so that 128
//!                  of ROOT/l/ID fit one page of mount options
//!   layers/ID/     record.json; `entries`: the journal that apply wrote; `stash/`: files that only links name (R-32)
//!   fixups/ID/     record.json; without tree in l/ where there was nothing to correct
//!   images/ID/     record.json, config.json; manifest.json as it came, where there is one
//!   snapshots/ID.json   one file and not a directory: two fsyncs make it durable
//!   s/DIR/         fs, work: upper and work directory of a snapshot; m: its default mount point. DIR is named in the
//!                  record, since a committed snapshot changes its name but keeps its directory
//!   staging/NAME/  tree/, meta/ (becomes layers/ID), `lock`: flock held by the owner; `.tmp-*`: files being written
//!   pins/NAME      one ID a line, flock held by the owner
//!   kept/NAME/     tree: one that was replaced while mounts showed it; why.json: which. Absent until the first repair
//!   e/0, e/1       two empty directories, 0755, mtime 0, for mounts of fewer than two layers
//!   trash/         what is being deleted; NAME.json is a snapshot's record whose s/DIR is to go too
//! ```
//! Every record has a `version`; one that this program does not know is refused. Publication: write the records into
//! staging, one `syncfs`, rename the trees, fsync `l`, rename the records, fsync `layers`. Deletion: rename the record
//! to `trash`, rename the tree to `trash`, fsync the directories they left, remove.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod check;
mod commit;
mod compare;
mod filter;
pub mod format;
mod gc;
mod id;
mod images;
mod lock;
mod pin;
mod publish;
mod record;
mod replace;
mod snapshots;
mod staging;
mod trash;
mod usage;
mod verify;

pub use check::{Problem, ProblemKind};
pub use compare::compare_trees;
pub use filter::SnapshotFilter;
pub use gc::{Freed, GcReport};
pub use id::Id;
pub use images::NewImage;
pub use pin::Pin;
pub use publish::{Claim, FixupRef, LayerLock, LayerRef};
pub use record::{
    Durable, FixupKey, FixupRecord, Flavour, Form, Image, ImageLayer, ImageRecord, LayerOptions, LayerRecord, Lower,
    Platform, SnapshotKind, SnapshotRecord, Time, Usage,
};
pub use snapshots::{Base, EPHEMERAL, NewSnapshot, SnapshotLock};
pub use staging::{SealedLayer, Staging};
pub use usage::{ImageUsage, LayerUsage, StoreUsage, User};
pub use verify::{Damage, DamageKind, Depth};

use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;
use crate::mount::EmptyDirs;
use crate::policy::{Ownership, WhiteoutForm};
pub(crate) use lock::patience;
use lock::{Locks, Mode};
use record::StoreRecord;

/// The version of the layout that this program reads and writes.
pub const VERSION: u32 = 1;

/// Asks whether the caller wants to give up; polled while waiting for another process.
pub type Cancel<'a> = &'a dyn Fn() -> bool;

const TEMPORARY: &str = ".tmp-";
const DIRECTORIES: [&str; 10] = ["l", "layers", "fixups", "images", "snapshots", "s", "staging", "pins", "e", "trash"];
const LOCK: &str = "lock";
const STORE_RECORD: &str = "store.json";

/// A store of layers and images. Cheap to clone; clones are one store.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    flavour: Flavour,
    durable: bool,
    boot_id: Option<String>,
}

impl Store {
    /// Opens the store at `root`, which is made if absent or empty, and cleans up what dead processes left.
    ///
    /// `durable`: what a call of this handle publishes is on disk when the call returns.
    ///
    /// # Errors
    /// `Unsupported` if the store has another flavour or an unknown version; `Usage` if `root` holds something else;
    /// `NotPermitted` if it belongs to somebody else.
    pub fn open(root: &Path, flavour: Flavour, durable: bool) -> Result<Store> {
        make_root(root)?;
        Store::open_at(root, Some(flavour), durable)
    }

    /// Opens the store at `root` with whatever flavour it has.
    ///
    /// # Errors
    /// `NotFound` if there is none; else as [`Store::open`].
    pub fn open_existing(root: &Path, durable: bool) -> Result<Store> {
        if !root.join(STORE_RECORD).exists() {
            return Err(Error::new(ErrorKind::NotFound, format!("no store at {}", root.display()))
                .with_hint("pull an image first, or choose another --root"));
        }
        Store::open_at(root, None, durable)
    }

    fn open_at(root: &Path, wanted: Option<Flavour>, durable: bool) -> Result<Store> {
        let root = fs::canonicalize(root).map_err(|e| io_at("resolve", root, e))?;
        check_owner(&root)?;
        let record_path = root.join(STORE_RECORD);
        let record = match (record::read::<StoreRecord>(&record_path)?, wanted) {
            (Some(record), _) => record,
            (None, Some(flavour)) => create(&root, flavour)?,
            (None, None) => {
                return Err(Error::new(ErrorKind::NotFound, format!("no store at {}", root.display())));
            }
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != record.flavour) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the store at {} was made for {}, this command needs {}",
                    root.display(),
                    describe(&record.flavour),
                    describe(&wanted)
                ),
            )
            .with_hint("use another --root: one store holds one flavour"));
        }
        let store = Store(Arc::new(Inner { root, flavour: record.flavour, durable, boot_id: boot_id() }));
        store.clean()?;
        Ok(store)
    }

    /// Returns the absolute path of the store.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Returns what every layer of this store has in common.
    pub fn flavour(&self) -> Flavour {
        self.0.flavour
    }

    /// Returns whether this handle makes what it publishes durable.
    ///
    /// Where the kernel does not tell its boot id, nobody could say later what a reboot took away: there every handle does.
    pub fn durable(&self) -> bool {
        self.0.durable || self.0.boot_id.is_none()
    }

    /// Returns two empty directories for mounts of fewer than two layers.
    pub fn empty_dirs(&self) -> EmptyDirs {
        EmptyDirs::within(&self.dir("e"))
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.root.join(name)
    }

    fn object(&self, dir: &str, id: &Id) -> PathBuf {
        self.dir(dir).join(id.as_str())
    }

    fn locks(&self) -> Result<Locks> {
        Locks::open(&self.dir(LOCK))
    }

    /// Takes the gate: shared while a name appears that garbage collection must not miss, exclusive to judge what is dead.
    fn gate(&self, mode: Mode) -> Result<Locks> {
        let locks = self.locks()?;
        locks.gate(mode)?;
        Ok(locks)
    }

    fn durable_now(&self) -> Durable {
        match (&self.0.boot_id, self.0.durable) {
            (Some(boot_id), false) => Durable::No { boot_id: boot_id.clone() },
            _ => Durable::Yes,
        }
    }

    /// Says whether what a record speaks of is still good in this boot.
    fn survived(&self, durable: &Durable) -> bool {
        match durable {
            Durable::Yes => true,
            Durable::No { boot_id } => self.0.boot_id.as_ref() == Some(boot_id),
        }
    }
}

/// Makes `root`, or sees to it that what is there may become a store.
fn make_root(root: &Path) -> Result<()> {
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent).map_err(|e| io_at("create", parent, e))?;
    }
    match DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(io_at("create", root, e)),
    }
    let found = record::names(root)?;
    let ours = |name: &String| {
        DIRECTORIES.contains(&name.as_str())
            || [LOCK, "lost+found"].contains(&name.as_str())
            || name.starts_with(TEMPORARY)
            // Another process looks at this moment what the place can store, or was killed at it.
            || name.starts_with(crate::sys::PROBE)
    };
    // A creation that was killed leaves only our own names, without store.json.
    if found.iter().any(|name| name == STORE_RECORD) || found.iter().all(ours) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("{} is no store and not empty", root.display()))
        .with_hint("name an absent or empty directory with --root"))
}

/// Refuses a root that somebody else could change under us (P13); closes one that others can enter.
fn check_owner(root: &Path) -> Result<()> {
    let meta = fs::metadata(root).map_err(|e| io_at("stat", root, e))?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::new(
            ErrorKind::NotPermitted,
            format!("the store at {} belongs to user {}", root.display(), meta.uid()),
        )
        .with_hint("run as that user, or use another --root"));
    }
    if meta.mode() & 0o7777 != 0o700 {
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(|e| io_at("chmod", root, e))?;
    }
    Ok(())
}

fn create(root: &Path, flavour: Flavour) -> Result<StoreRecord> {
    let locks = Locks::open(&root.join(LOCK))?;
    locks.gate(Mode::Exclusive)?;
    let path = root.join(STORE_RECORD);
    if let Some(record) = record::read(&path)? {
        return Ok(record);
    }
    // A default ACL or the setgid bit of the place would pass to every directory made below (R-27).
    staging::forget_the_place(root, 0o700)?;
    fail_point("create.directories")?;
    for name in DIRECTORIES {
        staging::make_dir(&root.join(name), 0o700)?;
    }
    for name in ["0", "1"] {
        let dir = root.join("e").join(name);
        staging::make_dir(&dir, 0o755)?;
        staging::root_metadata(&dir, flavour.ownership, None)?;
    }
    let record = StoreRecord { version: VERSION, flavour };
    let bytes = record::encode(&record)?;
    fail_point("create.before-record")?;
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(root.join("staging"))
        .map_err(|e| io_at("create a file in", root, e))?;
    io::Write::write_all(&mut temporary, &bytes)
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(|e| io_at("write", &path, e))?;
    temporary.persist(&path).map_err(|e| io_at("create", &path, e.error))?;
    fail_point("create.after-record")?;
    record::sync_dir(root)?;
    Ok(record)
}

fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = text.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

fn describe(flavour: &Flavour) -> String {
    let whiteouts = match flavour.whiteouts {
        WhiteoutForm::CharDevice => "device",
        WhiteoutForm::Xattr => "xattr",
    };
    let owners = match flavour.ownership {
        Ownership::Keep => "the image's owners",
        Ownership::Squash => "owners squashed to the caller",
    };
    format!("{}* marks, {whiteouts} whiteouts and {owners}", flavour.xattr.prefix())
}

/// Wraps an I/O error with the call and the path it was about.
fn io_at(call: &str, path: &Path, e: impl Into<io::Error>) -> Error {
    Error::io(format!("{call} {}", crate::error::escape(path.as_os_str().as_encoded_bytes())), e.into())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_process;
