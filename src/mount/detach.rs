//! Taking a mount away.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::table::{self, MountInfo};
use crate::error::{Error, ErrorKind};
use crate::sys::SysError;

/// How long a busy mount is tried again: a process that was just killed takes a moment to let go.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many holders an error names.
const NAMED: usize = 5;

/// Unmounts the overlay on top of `target`, waiting up to a second while it is busy.
///
/// # Errors
/// `NotFound` when nothing is mounted there, `Usage` when what is mounted there is no overlay, `Busy` with the mounts and
/// processes that hold it, `NotPermitted` without the privilege.
pub fn detach(target: &Path) -> Result<(), Error> {
    let target = overlay_at(target)?;
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(5);
    loop {
        match unmount(&target, UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < deadline => {
                sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            Err(Errno::BUSY) => return Err(busy(&target)),
            Err(e) => return Err(SysError::new("umount2", e).path(&target).arg("UMOUNT_NOFOLLOW").into()),
        }
    }
}

/// Hides the overlay on top of `target` at once, with all mounts below it; the kernel ends it when its last user is gone.
///
/// The layers stay in use until then although no mount table names them: only for clean-up after a failure.
///
/// # Errors
/// As [`detach`], but never `Busy`.
pub fn detach_lazy(target: &Path) -> Result<(), Error> {
    let target = overlay_at(target)?;
    unmount(&target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        .map_err(|e| SysError::new("umount2", e).path(&target).arg("UMOUNT_NOFOLLOW|MNT_DETACH").into())
}

/// Returns the path under which the mount table has `target`, after making sure that an overlay is on top there.
fn overlay_at(target: &Path) -> Result<PathBuf, Error> {
    let path = std::fs::canonicalize(target).map_err(|e| Error::io(format!("resolve {}", target.display()), e))?;
    match table::find_mount(&path)? {
        None => Err(Error::new(ErrorKind::NotFound, format!("nothing is mounted at {}", path.display()))),
        Some(mount) if mount.fs_type != "overlay" => {
            let message = format!("what is mounted at {} is {}, not an overlay", path.display(), mount.fs_type);
            Err(Error::new(ErrorKind::Usage, message))
        }
        Some(_) => Ok(path),
    }
}

fn busy(target: &Path) -> Error {
    let mut holders = Vec::new();
    if let Ok(mounts) = table::all_mounts() {
        let below = mounts.iter().filter(|m: &&MountInfo| m.target != target && m.target.starts_with(target));
        holders.extend(below.map(|m| format!("the mount {}", m.target.display())));
    }
    holders.extend(processes_below(target));
    let message = format!("{} is in use", target.display());
    let err = Error::new(ErrorKind::Busy, message).with_source(SysError::new("umount2", Errno::BUSY).path(target));
    if holders.is_empty() {
        return err.with_hint(format!("look for its users with `fuser -vm {}`", target.display()));
    }
    let more = holders.len().saturating_sub(NAMED);
    holders.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    err.with_hint(format!("held by {}{more}", holders.join(", ")))
}

/// Names the processes that have their root, working directory, program or an open file at or below `target`, as far
/// as `/proc` tells this caller.
fn processes_below(target: &Path) -> Vec<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let dir = process.path();
        let holds = |link: PathBuf| std::fs::read_link(link).is_ok_and(|to| to.starts_with(target));
        let by_fd = || std::fs::read_dir(dir.join("fd")).is_ok_and(|fds| fds.flatten().any(|fd| holds(fd.path())));
        if ["cwd", "root", "exe"].iter().any(|link| holds(dir.join(link))) || by_fd() {
            let name = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
            found.push(format!("process {pid} ({})", name.trim_end()));
        }
    }
    found
}
