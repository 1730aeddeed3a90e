//! Carries out the mounts that a snapshotter names.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_bind, mount_remount, move_mount, unmount,
};

use super::Mount;

/// One page of options, which is all that `mount(2)` takes; it cuts longer ones without a word.
const PAGE: usize = 4096;

/// Something mounted, in the mount namespace of the calling thread; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted(Option<PathBuf>);

impl Mounted {
    /// Mounts at `target`, which is made.
    pub fn new(mounts: &[Mount], target: &Path) -> Mounted {
        std::fs::create_dir_all(target).unwrap();
        assert!(!mounts.is_empty(), "no mounts were named for {}", target.display());
        for one in mounts {
            attach(one, target);
        }
        Mounted(Some(target.to_path_buf()))
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap()
    }

    /// Unmounts; fails where something goes on using it.
    pub fn detach(mut self) {
        let start = Instant::now();
        loop {
            let Some(target) = &self.0 else { return };
            match unmount(target, UnmountFlags::empty()) {
                Ok(()) => self.0 = None,
                // A child that another thread of the test starts holds our descriptors until it calls exec.
                Err(rustix::io::Errno::BUSY) if start.elapsed() < Duration::from_secs(5) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) => panic!("unmount {}: {e}", target.display()),
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(target) = &self.0 {
            // The test failed already, and says why.
            let _ = unmount(target, UnmountFlags::DETACH);
        }
    }
}

fn attach(one: &Mount, target: &Path) {
    let read_only = one.options.iter().any(|o| o == "ro");
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    if one.options.iter().any(|o| o == "bind" || o == "rbind") {
        mount_bind(&one.source, target).unwrap_or_else(|e| panic!("{one:?}: {e}"));
        if read_only {
            mount_remount(target, flags | MountFlags::BIND, c"").unwrap_or_else(|e| panic!("{one:?}: {e}"));
        }
        return;
    }
    let options: Vec<&str> = one.options.iter().map(String::as_str).filter(|o| !matches!(*o, "ro" | "rw")).collect();
    let data = CString::new(options.join(",")).unwrap();
    if data.as_bytes().len() < PAGE {
        return mount(&one.source, target, &one.fs_type, flags, data.as_c_str())
            .unwrap_or_else(|e| panic!("{one:?}: {e}"));
    }
    let context = fsopen(&one.fs_type, FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&context, "source", &one.source).unwrap();
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", list)) => {
                for lower in list.split(':') {
                    fsconfig_set_string(&context, "lowerdir+", lower).unwrap_or_else(|e| panic!("{lower}: {e}"));
                }
            }
            Some((key, value)) => fsconfig_set_string(&context, key, value).unwrap_or_else(|e| panic!("{option}: {e}")),
            None => fsconfig_set_flag(&context, option).unwrap_or_else(|e| panic!("{option}: {e}")),
        }
    }
    fsconfig_create(&context).unwrap_or_else(|e| panic!("{one:?}: {e}"));
    let attributes = if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let made = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap();
    move_mount(&made, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
}
