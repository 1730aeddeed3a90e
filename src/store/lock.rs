//! Locks between processes and threads, on byte ranges of one file.
//!
//! Open file description locks (<https://man7.org/linux/man-pages/man2/fcntl_locking.2.html>) belong to a descriptor, so
//! they hold between threads too and end with their owner, whatever way it dies. One file means no lock files to clean
//! up. Byte 0 is the *gate*; every other lock is one byte at a 62-bit offset hashed from its key. Two keys on one byte
//! would only wait for each other.
//!
//! Order, so that nobody waits in a circle: first what may be held long (the claim of a layer, waited for while
//! holding no other; the directories of a snapshot), then the gate, then what is held for a moment (publication,
//! records of snapshots, each in ascending order of names; the images). Whoever has the gate alone takes nothing else.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::{Cancel, Id, io_at};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result};

/// The gate is held for renames and small writes; somebody who has it this long was stopped or hangs in the disk.
const GATE_PATIENCE: Duration = Duration::from_secs(300);
/// A child of this process has our descriptors from its fork to its exec, and so our locks, even those let go meanwhile.
const FORK_PATIENCE: Duration = Duration::from_millis(200);
const FIRST_SLEEP: Duration = Duration::from_micros(200);
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

/// How a lock is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

/// What a keyed lock guards.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Unpacking a layer, from the first byte to its publication.
    Claim,
    /// The moment in which a directory and its record get their names.
    Publication,
    /// The directories of a snapshot, for as long as somebody mounts or changes them.
    Snapshot,
    /// The record of a snapshot, for the moment in which it changes or somebody comes to stand on it.
    SnapshotRecord,
    /// The set of image records, all of it.
    Images,
}

/// A descriptor of the lock file with the ranges locked through it; dropping it releases them all.
#[derive(Debug)]
pub(super) struct Locks(File);

impl Locks {
    pub(super) fn open(path: &Path) -> Result<Locks> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map(Locks)
            .map_err(|e| io_at("open", path, e))
    }

    pub(super) fn try_gate(&self, mode: Mode) -> Result<bool> {
        self.try_byte(0, mode)
    }

    pub(super) fn gate(&self, mode: Mode) -> Result<()> {
        wait(|| self.try_gate(mode), &|| false, Some(GATE_PATIENCE))
    }

    pub(super) fn try_key(&self, what: What, id: Option<&Id>, mode: Mode) -> Result<bool> {
        self.try_byte(offset(what, id), mode)
    }

    /// As [`Locks::try_key`], but what is free in a moment counts as free: see [`patience`].
    pub(super) fn try_key_briefly(&self, what: What, id: Option<&Id>, mode: Mode) -> Result<bool> {
        match self.key(what, id, mode, &patience()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::Cancelled => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(super) fn key(&self, what: What, id: Option<&Id>, mode: Mode, cancel: Cancel<'_>) -> Result<()> {
        wait(|| self.try_key(what, id, mode), cancel, None)
    }

    fn try_byte(&self, start: i64, mode: Mode) -> Result<bool> {
        let range = libc::flock {
            l_type: match mode {
                Mode::Shared => libc::F_RDLCK as libc::c_short,
                Mode::Exclusive => libc::F_WRLCK as libc::c_short,
            },
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: start,
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(&self.0, FcntlArg::F_OFD_SETLK(&range)) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) => Ok(false),
            Err(e) => Err(Error::io("lock the store", e.into())),
        }
    }
}

/// Gives up waiting for a lock that a moment's patience does not free.
///
/// A lock belongs to a file description, which a child that some thread starts shares until it calls `exec`. Without
/// this a program that starts others would now and then find busy what nobody uses.
pub(crate) fn patience() -> impl Fn() -> bool {
    let start = Instant::now();
    move || start.elapsed() > FORK_PATIENCE
}

fn offset(what: What, id: Option<&Id>) -> i64 {
    let digest = Digest::of(Algorithm::Sha256, format!("{what:?} {}", id.map_or("", Id::as_str)).as_bytes());
    let hash = digest.as_bytes()[..8].iter().fold(0u64, |hash, byte| hash << 8 | u64::from(*byte));
    // 62 bits and past the gate: always a valid file offset.
    (hash >> 2) as i64 + 1
}

/// Polls instead of sleeping in the kernel, so that a cancelled caller comes back.
fn wait(mut attempt: impl FnMut() -> Result<bool>, cancel: Cancel<'_>, patience: Option<Duration>) -> Result<()> {
    let start = Instant::now();
    let mut sleep = FIRST_SLEEP;
    while !attempt()? {
        if cancel() {
            return Err(Error::new(ErrorKind::Cancelled, "cancelled while waiting for another process"));
        }
        if patience.is_some_and(|p| start.elapsed() >= p) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("the store is locked since {} s", start.elapsed().as_secs()),
            )
            .with_hint("look for a stopped process that uses this store"));
        }
        std::thread::sleep(sleep);
        sleep = (sleep * 2).min(LONGEST_SLEEP);
    }
    Ok(())
}

/// Takes the whole-file lock that says that the owner of a staging directory or a pin is alive.
///
/// Returns whether it was free. `flock` and not a range of the lock file: the owner is found by a name in a listing.
pub(super) fn try_own(file: &File) -> Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(Error::io("lock a file of the store", e.into())),
    }
}
