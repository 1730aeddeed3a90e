//! Whether what is to be unpacked can fit at all: a hopeless run is refused before it fills the disk.
//!
//! Nobody knows before the last byte how much a layer takes. What is known is how large its blob is, and a file system
//! that has not even room for that will hardly have room for what comes out of it. Anything that may fit is tried.

use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::sys;

/// Inodes that every layer takes while it is staged: its directory, its tree, its journal, its stash.
const INODES_PER_LAYER: u64 = 4;

/// What is to be unpacked takes at least this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    bytes: u64,
    layers: u64,
}

impl Need {
    /// Sums up blobs whose sizes in bytes are known; others count as empty.
    pub(super) fn of(sizes: impl IntoIterator<Item = Option<u64>>) -> Need {
        sizes.into_iter().fold(Need::default(), |need, size| Need {
            bytes: need.bytes.saturating_add(size.unwrap_or(0)),
            layers: need.layers.saturating_add(1),
        })
    }

    /// Refuses what cannot fit on the file system of `dir`, whose path is `path`.
    ///
    /// # Errors
    /// `NoSpace`, with what is needed and what is free.
    pub(super) fn check(&self, dir: impl AsFd, path: &Path) -> Result<()> {
        let (bytes, inodes) = sys::fs_space(dir)?;
        let need = self.layers.saturating_mul(INODES_PER_LAYER);
        let short = |what: &str, need: u64, free: u64| {
            Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{} layers need at least {need} {what} in {}, {free} are free: {} too few",
                    self.layers,
                    path.display(),
                    need.saturating_sub(free)
                ),
            )
            .with_hint("nothing was unpacked; make room there, or choose another place"))
        };
        if self.bytes > bytes {
            return short("bytes", self.bytes, bytes);
        }
        if need > inodes {
            return short("inodes", need, inodes);
        }
        Ok(())
    }
}
