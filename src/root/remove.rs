//! Removal of a tree by directory handles: follows nothing, works on read-only directories and at any depth.

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Dir, failed, meta};
use crate::error::Result;

/// Directories are held open one per level only up to this depth; deeper ones are moved up first, so that neither
/// descriptors nor the stack grow with the image.
const MAX_HELD: usize = 24;

pub(super) fn remove_all(parent: &Dir, name: &[u8]) -> Result<()> {
    let mut hoisted = Hoisted { top: parent, name, count: 0, waiting: Vec::new() };
    remove_at(parent, name, 0, &mut hoisted)?;
    while let Some(aside) = hoisted.waiting.pop() {
        remove_at(parent, &aside, 0, &mut hoisted)?;
    }
    Ok(())
}

/// Directories that were too deep and wait, under other names, to be removed when all handles above them are closed.
struct Hoisted<'a> {
    top: &'a Dir,
    name: &'a [u8],
    count: u64,
    waiting: Vec<Vec<u8>>,
}

/// Removes `name` in `parent`; what is too deep is moved aside.
fn remove_at(parent: &Dir, name: &[u8], depth: usize, hoisted: &mut Hoisted<'_>) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        // A parent without write permission: ours, so it may be changed.
        Err(Errno::ACCESS) => {
            let _ = meta::set_mode_fd(parent, 0o700); // the call below reports what still fails
        }
        Err(e) => return Err(failed("unlinkat", name, e)),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
        Err(Errno::NOTDIR) => return parent.unlink(name).map(|_| ()),
        Err(e) => return Err(failed("rmdir", name, e)),
    }
    let dir = match open_for_removal(parent, name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(failed("openat", name, e)),
    };
    let mut pass = 0;
    loop {
        for listed in dir.list()? {
            if depth < MAX_HELD {
                remove_at(&dir, &listed.name, depth + 1, hoisted)?;
            } else if dir.kind_of(&listed)? == Some(super::Kind::Directory) {
                let aside = loop {
                    hoisted.count += 1;
                    let mut aside = format!(".rm{:x}-{:x}-", std::process::id(), hoisted.count).into_bytes();
                    aside.extend(hoisted.name.iter().take(64));
                    if dir.rename_new(&listed.name, hoisted.top, &aside)? {
                        break aside;
                    }
                };
                hoisted.waiting.push(aside);
            } else {
                dir.unlink(&listed.name)?;
            }
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Names may appear while a listing is under way on some file systems.
            Err(Errno::NOTEMPTY | Errno::EXIST) if pass < 8 => pass += 1,
            Err(e) => return Err(failed("rmdir", name, e)),
        }
    }
}

/// Opens a directory that is going to be removed, giving ourselves permission first where the image took it away.
fn open_for_removal(parent: &Dir, name: &[u8]) -> rustix::io::Result<Dir> {
    let open = || rustix::fs::openat(parent, name, super::DIR_FLAGS, Mode::empty());
    let fd = match open() {
        Err(Errno::ACCESS) => {
            let path = rustix::fs::openat(
                parent,
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            use std::os::fd::AsRawFd;
            rustix::fs::chmod(format!("/proc/self/fd/{}", path.as_raw_fd()), Mode::from_raw_mode(0o700))?;
            open()?
        }
        other => other?,
    };
    let dir = Dir::from_fd(fd);
    if let Ok(st) = rustix::fs::fstat(&dir)
        && st.st_mode & 0o300 != 0o300
    {
        let _ = meta::set_mode_fd(&dir, 0o700); // removal of the children reports what still fails
    }
    Ok(dir)
}
