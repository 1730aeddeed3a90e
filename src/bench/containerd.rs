//! A containerd of our own: private root, state and socket, no plugins that are not needed, gone afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::ground::run;
use super::process::{Daemon, Used};
use crate::cancel::CancelToken;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// How long it may take to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(20);

/// What images are called that it imports.
const NAME: &str = "localhost/unply-bench";

pub(super) struct Containerd {
    daemon: Daemon,
    socket: PathBuf,
}

impl Containerd {
    /// Starts one with all its files in `dir` and waits until it answers.
    pub fn start(dir: &Path, cancel: &CancelToken) -> Result<Containerd> {
        let at = |name: &str| dir.join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.aufs\"]\n[grpc]\naddress = {:?}\n",
            at("containerd"),
            at("state"),
            at("c.sock")
        );
        let file = at("containerd.toml");
        std::fs::write(&file, config).map_err(|e| Error::io(format!("write {}", file.display()), e))?;
        let daemon = Daemon::start(Command::new("containerd").arg("--config").arg(&file))?;
        let containerd = Containerd { daemon, socket: at("c.sock") };
        let began = Instant::now();
        while let Err(e) = run(containerd.ctr().arg("version")) {
            cancel.check()?;
            if began.elapsed() > PATIENCE || !containerd.daemon.is_running()? {
                return Err(Error::new(ErrorKind::Other, format!("containerd does not answer: {}", e.message())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(containerd)
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", "unply-bench"]);
        command
    }

    /// Brings the layout in `archive` into its content store and unpacks nothing.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let import = ["images", "import", "--no-unpack", "--base-name", NAME];
        run(self.ctr().args(import).arg(archive))
    }

    /// Returns the command that unpacks an image that was imported.
    pub fn unpack(&self, manifest: &Digest) -> Command {
        let mut command = self.ctr();
        command.args(["snapshots", "--snapshotter", "overlayfs", "unpack"]).arg(manifest.to_string());
        command
    }

    /// Returns what it used so far.
    pub fn used(&self) -> Result<Used> {
        self.daemon.used()
    }

    /// Mounts the unpacked image at `target`, which is made.
    pub fn mount(&self, target: &Path) -> Result<Mounted<'_>> {
        std::fs::create_dir(target).map_err(|e| Error::io(format!("create {}", target.display()), e))?;
        let image = format!("{NAME}:{}", super::layout::TAG);
        run(self.ctr().args(["images", "mount", "--snapshotter", "overlayfs", &image]).arg(target))?;
        Ok(Mounted { target: target.to_path_buf(), _containerd: self })
    }
}

/// An image that containerd mounted; unmounted when dropped.
pub(super) struct Mounted<'a> {
    target: PathBuf,
    _containerd: &'a Containerd,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        use nix::mount::{MntFlags, umount2};
        // What stays mounted shows in the removal of what is below.
        let _ = umount2(&self.target, MntFlags::MNT_DETACH);
    }
}
