//! OCI image layout directories (`oci:DIR`).
//!
//! Owns: finding files below the directory without ever leaving it
//! (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>). Refuses to know: what blobs contain.
//! Invariant: every file is reached from the directory's handle, one component at a time; a symlink is expanded by
//! hand and may not climb above the layout — busybox's publisher links blobs to files beside them, so they must work.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::resolve::{Blobs, OpenBlob, Wanted, read_limited, resolve};
use super::{Image, Place, json};
use crate::digest::BlobDigest;
use crate::error::{Error, ErrorKind, escape};
use crate::policy::Limit;

/// Symlinks expanded for one file.
const MAX_LINKS: u32 = 40;

/// An open layout directory.
pub(crate) struct Layout {
    dir: OwnedFd,
}

impl Layout {
    /// Opens the directory itself; what is in it is not looked at.
    ///
    /// # Errors
    /// `NotFound` when it is not there or no directory.
    pub fn open(dir: &Path) -> Result<Layout, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, dir, flags, Mode::empty()) {
            Ok(dir) => Ok(Layout { dir }),
            Err(Errno::NOENT) => {
                Err(Error::new(ErrorKind::NotFound, format!("there is no directory {}", dir.display()))
                    .with_hint("name an OCI image layout: a directory with oci-layout, index.json and blobs/"))
            }
            Err(Errno::NOTDIR) => Err(Error::new(ErrorKind::NotFound, format!("{} is not a directory", dir.display()))
                .with_hint("for a file, write oci-archive: or docker-archive:")),
            Err(err) => Err(Error::io(format!("opening directory {}", dir.display()), err.into())),
        }
    }

    /// Opens a regular file below the directory; `None` when it is not there.
    ///
    /// # Errors
    /// `Malformed` when a symlink leaves the layout, links do not end, or it is no regular file.
    fn file(&self, path: &str) -> Result<Option<(File, u64)>, Error> {
        self.walk(path.as_bytes()).map_err(|err| err.with_entry(path.as_bytes()))
    }

    fn walk(&self, path: &[u8]) -> Result<Option<(File, u64)>, Error> {
        let io = |what: &str, err: Errno| Error::io(what.to_owned(), err.into());
        let malformed = |message: String| Error::new(ErrorKind::Malformed, message);
        // Components still to walk, the next one last; directories walked, the deepest last (the layout is below all).
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut dirs: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if dirs.pop().is_none() {
                    return Err(malformed("a symlink leaves the image layout".to_owned()));
                }
                continue;
            }
            let here = dirs.last().unwrap_or(&self.dir);
            let stat = match statat(here, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(err) => return Err(io("looking for the file", err)),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(malformed(format!("more than {MAX_LINKS} symlinks on the way")));
                    }
                    let target =
                        readlinkat(here, name.as_slice(), Vec::new()).map_err(|err| io("reading a symlink", err))?;
                    if target.as_bytes().first() == Some(&b'/') {
                        return Err(malformed(format!(
                            "a symlink leaves the image layout for \"{}\"",
                            escape(target.as_bytes())
                        ))
                        .with_hint("copy the file into the layout"));
                    }
                    todo.extend(components(target.as_bytes()));
                }
                FileType::Directory => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let dir = openat(here, name.as_slice(), flags, Mode::empty())
                        .map_err(|err| io("opening a directory", err))?;
                    dirs.push(dir);
                }
                FileType::RegularFile if todo.is_empty() => {
                    // A name swapped for a FIFO in the meantime must not block.
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                    let file = openat(here, name.as_slice(), flags, Mode::empty())
                        .map_err(|err| io("opening the file", err))?;
                    let stat = fstat(&file).map_err(|err| io("asking for the size", err))?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                        return Err(malformed("it is not a regular file".to_owned()));
                    }
                    return Ok(Some((file.into(), u64::try_from(stat.st_size).unwrap_or(0))));
                }
                FileType::RegularFile => return Ok(None),
                _ => return Err(malformed("it is not a regular file".to_owned())),
            }
        }
        Err(malformed("it is a directory".to_owned()))
    }

    /// Says whether the directory looks like a layout.
    pub fn is_one(&self) -> Result<bool, Error> {
        Ok(self.file("oci-layout")?.is_some() || self.file("index.json")?.is_some())
    }
}

/// Splits a path into components, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec).collect()
}

impl Blobs for Layout {
    fn open(&self, digest: &BlobDigest) -> Result<Option<OpenBlob>, Error> {
        let found = self.file(&blob_name(digest))?;
        Ok(found.map(|(file, size)| OpenBlob { size, reader: Box::new(file) }))
    }
}

/// Returns the name of a blob below a layout; a digest's text is safe by its grammar.
pub(crate) fn blob_name(digest: &BlobDigest) -> String {
    let text = digest.to_string();
    format!("blobs/{}", text.replacen(':', "/", 1))
}

/// Opens an image of a layout directory.
///
/// # Errors
/// `NotFound` when the directory is no layout, and as [`resolve`].
pub(crate) fn open(dir: &Path, wanted: &Wanted<'_>) -> Result<Image, Error> {
    let layout = Layout::open(dir)?;
    let required = |name: &str| match layout.file(name)? {
        Some((file, _)) => read_limited(file, name, wanted.limits, Limit::JsonBytes),
        None => Err(Error::new(ErrorKind::NotFound, format!("{} is no image layout: it has no {name}", dir.display()))
            .with_hint("name a directory with oci-layout, index.json and blobs/")),
    };
    json::check_layout(&required("oci-layout")?)?;
    let mut image = resolve(&layout, &required("index.json")?, wanted)?;
    image.blobs.place = Place::Layout(std::sync::Arc::new(layout));
    Ok(image)
}
