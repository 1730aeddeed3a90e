//! containerd's snapshot contract as a trait, and a suite that any implementation of it has to pass.
//!
//! A *snapshot* is a directory tree under a key. An **active** one can be written through its mounts. Committing it
//! gives it a name and makes it unchangeable; only then may others stand on it. A **view** is the tree of a **committed**
//! one, read-only. Keys and names share one namespace and mean nothing.
//!
//! ```text
//! prepare("extract", "")      → mounts; mount, write, unmount
//! commit("base", "extract")   → "extract" is gone, "base" is there
//! prepare("box", "base")      → mounts that show base, writable
//! view("look", "base")        → mounts that show base, read-only
//! remove("base")              → failed precondition: "box" and "look" stand on it
//! ```
//! The contract's text is containerd's `core/snapshots/snapshotter.go`. [`suite::cases`] has its 21 tests under their own
//! names (rule P8), and one case or more for each of the rules P1 to P7. [`broken::Broken`] breaks an implementation in a
//! known way, to see that the suite notices.

pub mod broken;
pub mod mounting;
pub mod rules;
pub mod suite;

use std::collections::BTreeMap;
use std::time::SystemTime;

/// Free texts that a snapshot carries.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writable.
    Active,
    /// Read-only.
    View,
    /// Finished; others may stand on it.
    Committed,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its key, or for a committed one its name.
    pub name: String,
    /// The committed snapshot that it stands on; empty for none.
    pub parent: String,
    /// What it is for.
    pub kind: Kind,
    /// Its labels.
    pub labels: Labels,
    /// When it was made, or committed.
    pub created: SystemTime,
    /// When anything of it last changed.
    pub updated: SystemTime,
}

/// What a snapshot takes, without what it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A mount, as `mount(8)` and containerd have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `overlay` or `bind`.
    pub fs_type: String,
    /// What is mounted; the directory of a bind mount.
    pub source: String,
    /// Options, one an element.
    pub options: Vec<String>,
}

/// The errors that the contract names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// There is no such snapshot.
    NotFound,
    /// The key or name is taken.
    AlreadyExists,
    /// It can never be done.
    InvalidArgument,
    /// It cannot be done to something in this state.
    FailedPrecondition,
    /// Any other.
    Other,
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which of the contract's errors.
    pub kind: FailureKind,
    /// For a human.
    pub message: String,
}

/// What a call answers.
pub type Answer<T> = Result<T, Failure>;

/// An implementation of the contract. Calls take `&self`: some are made while [`walk`](Snapshotter::walk) runs.
pub trait Snapshotter {
    /// Makes a writable snapshot on `parent` (empty: on nothing).
    fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>>;
    /// Makes a read-only snapshot on `parent` (empty: of nothing).
    fn view(&self, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>>;
    /// Returns the mounts of an active snapshot or a view, the same at any time.
    fn mounts(&self, key: &str) -> Answer<Vec<Mount>>;
    /// Commits an active snapshot, onto `parent` if that is not empty.
    fn commit(&self, name: &str, key: &str, parent: &str, labels: &Labels) -> Answer<()>;
    /// Removes a snapshot that nothing stands on.
    fn remove(&self, key: &str) -> Answer<()>;
    /// Returns what is known of a snapshot.
    fn stat(&self, key: &str) -> Answer<Info>;
    /// Changes what `paths` name (`labels`, `labels.KEY`; none: all that can change) to what `info` has.
    fn update(&self, info: &Info, paths: &[&str]) -> Answer<Info>;
    /// Shows every snapshot that one of the filters fits, or every one where there is no filter.
    fn walk(&self, filters: &[&str], each: &mut dyn FnMut(Info)) -> Answer<()>;
    /// Returns what a snapshot takes.
    fn usage(&self, key: &str) -> Answer<Usage>;
    /// Deletes what nothing needs any more, where removal leaves that for later.
    fn cleanup(&self) -> Answer<()>;
    /// Ends the work; may come twice.
    fn close(&self) -> Answer<()>;
}

/// In what implementations of the contract may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// A snapshot may be committed while it is mounted. Where not, that is a failed precondition.
    pub commits_while_mounted: bool,
    /// A directory of the parent can be renamed in a mount (overlayfs without `redirect_dir`: no, `EXDEV`).
    pub renames_directories: bool,
    /// A snapshot made on nothing can be committed onto a parent.
    pub rebases: bool,
}
