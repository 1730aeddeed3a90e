//! Fresh file systems to unpack into.
//!
//! Owns: making one, and leaving nothing of it. Mounts belong to the calling thread's mount namespace: whoever does not
//! want them seen enters one of its own first. A loop device goes with its mount, the RAM behind it with the tmpfs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags};
use tempfile::TempDir;

use crate::error::{Error, ErrorKind, Result};

/// Where each run writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On a tmpfs mounted for the run.
    Tmpfs,
    /// On an ext4 with a journal made for the run, on a loop device whose file is in RAM.
    Ext4,
    /// In a plain directory.
    Here,
}

impl Place {
    /// Returns its name in arguments and output.
    pub fn name(self) -> &'static str {
        match self {
            Place::Tmpfs => "tmpfs",
            Place::Ext4 => "ext4",
            Place::Here => "here",
        }
    }
}

/// What a file system has to have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub bytes: u64,
    pub inodes: u64,
}

/// An empty directory, on a file system of its own where there shall be one; goes when dropped.
pub(super) struct Ground {
    dir: Option<TempDir>,
    path: PathBuf,
    mounts: Vec<PathBuf>,
}

/// Makes a directory in `$TMPDIR`.
pub(super) fn temporary() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("unply-bench-")
        .tempdir()
        .map_err(|e| Error::io(format!("create a directory in {}", std::env::temp_dir().display()), e))
}

impl Ground {
    /// Makes an empty file system.
    ///
    /// # Errors
    /// `NotFound` where `mkfs.ext4` is missing; `NotPermitted` where nothing can be mounted.
    pub fn new(place: Place, room: Room) -> Result<Ground> {
        let dir = temporary()?;
        let path = dir.path().join("fs");
        let mut ground = Ground { dir: Some(dir), path: path.clone(), mounts: Vec::new() };
        make_dir(&path)?;
        match place {
            Place::Here => {}
            Place::Tmpfs => ground.tmpfs(&path, None)?,
            Place::Ext4 => ground.ext4(room)?,
        }
        Ok(ground)
    }

    /// Returns the directory, which is empty at first (but for `lost+found`).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts and deletes, and says what went wrong with that.
    ///
    /// # Errors
    /// Those of deleting.
    pub fn remove(mut self) -> Result<()> {
        self.unmount();
        match self.dir.take() {
            // Layers hold directories that their owner may not enter; the store knows how to remove those.
            Some(dir) => crate::root::remove_path(&dir.keep(), &|| false).map(drop),
            None => Ok(()),
        }
    }

    fn tmpfs(&mut self, at: &Path, bytes: Option<u64>) -> Result<()> {
        let mut options = "mode=0700,nr_inodes=0".to_owned();
        if let Some(bytes) = bytes {
            options.push_str(&format!(",size={bytes}"));
        }
        nix::mount::mount(Some("unply-bench"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).map_err(
            |e| {
                Error::io(format!("mount a tmpfs at {}", at.display()), e.into())
                    .with_hint("measure on a plain directory instead: --fs here")
            },
        )?;
        self.mounts.push(at.to_path_buf());
        Ok(())
    }

    fn ext4(&mut self, room: Room) -> Result<()> {
        let mkfs = program("mkfs.ext4").ok_or_else(|| missing("mkfs.ext4", "e2fsprogs"))?;
        let ram = self.path.with_file_name("ram");
        make_dir(&ram)?;
        let bytes = room.bytes.next_multiple_of(1 << 20);
        self.tmpfs(&ram, Some(bytes.saturating_add(64 << 20)))?;
        let disk = ram.join("disk");
        let made = std::fs::File::create_new(&disk).and_then(|file| file.set_len(bytes));
        made.map_err(|e| Error::io(format!("create {}", disk.display()), e))?;
        // Nothing is left to the kernel's lazy initialisation, which would work beside what is measured.
        let eager = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        let inodes = room.inodes.max(bytes >> 14).to_string();
        let options = ["-q", "-F", "-b", "4096", "-O", "has_journal", "-E", eager, "-N", inodes.as_str()];
        run(Command::new(mkfs).args(options).arg(&disk))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop,noatime,noinit_itable"]).arg(&disk).arg(&self.path);
        run(&mut mount)
            .map_err(|e| e.with_hint("--fs ext4 needs root and loop devices; --fs tmpfs and here do not"))?;
        self.mounts.push(self.path.clone());
        Ok(())
    }

    fn unmount(&mut self) {
        while let Some(mount) = self.mounts.pop() {
            // A plain unmount first: it lets go of the loop device before it returns. What stays mounted shows in the
            // removal of the directory that follows.
            if nix::mount::umount2(&mount, MntFlags::empty()).is_err() {
                let _ = nix::mount::umount2(&mount, MntFlags::MNT_DETACH);
            }
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.unmount();
        if let Some(dir) = self.dir.take() {
            // Something else went wrong before and is reported.
            let _ = crate::root::remove_path(&dir.keep(), &|| false);
        }
    }
}

fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir(path).map_err(|e| Error::io(format!("create {}", path.display()), e))
}

/// Finds a program as a shell would, and where root's programs are.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The error for a program that is not installed.
pub(super) fn missing(program: &str, package: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{program} is not installed"))
        .with_hint(format!("on Debian: apt-get install {package}"))
}

/// Runs a command to its end and keeps what it said for the case that it fails.
pub(super) fn run(command: &mut Command) -> Result<()> {
    let name = || Path::new(command.get_program()).file_name().map_or_else(String::new, lossy);
    let what = format!("run {}", name());
    let output = command.stdin(Stdio::null()).output().map_err(|e| Error::io(what.clone(), e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = last_line(&output.stderr);
    let kind = if said.contains("denied") || said.contains("permitted") || said.contains("superuser") {
        ErrorKind::NotPermitted
    } else {
        ErrorKind::Other
    };
    Err(Error::new(kind, format!("{what}: {}: {said}", output.status)))
}

fn lossy(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

/// Returns the last line of what a program said, safe to show and not too long.
pub(super) fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    crate::error::escape(line.trim().chars().take(400).collect::<String>().as_bytes())
}
