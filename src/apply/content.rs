//! Files: their content, written as it comes, with its checksum; their owner, xattrs, mode and times.

use std::io::BufRead;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::Result;
use crate::policy::Ownership;
use crate::root::{Meta, NodeMeta, meta as fdmeta};
use crate::tar::Region;

use super::dirs::DirId;
use super::journal::Sum;
use super::lay::{Layer, call_failed, changed_meanwhile};
use super::writers::Plain;
use super::{Data, Warning, unheld};

impl Layer<'_> {
    #[expect(clippy::too_many_arguments, reason = "one file is all of these")]
    pub(super) fn file<R: BufRead>(
        &mut self,
        parent: DirId,
        name: &[u8],
        size: u64,
        sparse: Option<&[Region]>,
        meta: &NodeMeta,
        entry: &[u8],
        data: &mut Data<'_, R>,
        warn: &mut dyn FnMut(Warning),
    ) -> Result<Option<Sum>> {
        let dir = self.dirs.handle(parent)?;
        let mode = self.open_mode(&meta.meta);
        let fd = match dir.make_file(name, mode)? {
            Some(fd) => fd,
            None => {
                self.duplicate(parent, &dir, name, entry, warn)?;
                dir.make_file(name, mode)?.ok_or_else(|| changed_meanwhile(name))?
            }
        };
        self.facts.inodes += 1;
        let sum = self.write_data(&fd, size, sparse, data)?;
        self.finish_fd(&fd, meta, mode, entry, warn)?;
        Ok(sum)
    }

    /// Mode for `open`: what the entry wants, unless special bits or an owner change would lose it.
    pub(super) fn open_mode(&self, meta: &Meta) -> u32 {
        if self.owner_differs(meta) || meta.mode & 0o7000 != 0 { 0o600 } else { meta.mode }
    }

    pub(super) fn owner_differs(&self, meta: &Meta) -> bool {
        self.options.ownership == Ownership::Keep && (meta.uid, meta.gid) != self.creator
    }

    /// Owner → xattrs → mode → times by descriptor (M1); `mode_now` is what `open` was asked for.
    pub(super) fn finish_fd(
        &mut self,
        fd: &OwnedFd,
        node: &NodeMeta,
        mode_now: u32,
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        let meta = &node.meta;
        self.plain(meta, mode_now, entry).finish(fd, || {
            node.xattrs.iter().try_for_each(|(name, value)| {
                let result = fdmeta::set_xattr_fd(fd, name, value);
                self.tolerate_xattr(result, name, value, entry, warn)
            })
        })?;
        if unheld::rare_time(meta.mtime) {
            let kept = fdmeta::mtime_fd(fd).map_err(|e| call_failed("fstat", e))?;
            self.check_time(meta.mtime, kept, entry, warn);
        }
        Ok(())
    }

    /// What is left to do for a file that `open` makes with `open_mode`; counts an owner that cannot be set.
    pub(super) fn plain(&mut self, meta: &Meta, open_mode: u32, entry: &[u8]) -> Plain {
        let owner = self.owner_differs(meta);
        if !owner {
            self.count_squashed(meta, entry);
        }
        let by_open = self.umask.is_some_and(|umask| open_mode & !umask == meta.mode);
        Plain { open_mode, owner, chmod: !by_open, meta: *meta, sum: self.options.sums }
    }

    pub(super) fn count_squashed(&mut self, meta: &Meta, entry: &[u8]) {
        if self.options.ownership == Ownership::Squash && (meta.uid, meta.gid) != self.creator {
            if self.squashed == 0 {
                self.first_squashed = entry.to_vec();
            }
            self.squashed += 1;
        }
    }

    /// Writes an entry's data and returns its checksum, where that is wanted.
    pub(super) fn write_data<R: BufRead>(
        &mut self,
        fd: &OwnedFd,
        size: u64,
        sparse: Option<&[Region]>,
        data: &mut Data<'_, R>,
    ) -> Result<Option<Sum>> {
        let whole = [Region { offset: 0, length: size }];
        self.hasher.reset();
        for region in sparse.unwrap_or(&whole) {
            if sparse.is_some() && region.length > 0 {
                rustix::fs::seek(fd, SeekFrom::Start(region.offset)).map_err(|e| call_failed("lseek", e))?;
            }
            let mut left = region.length;
            while left > 0 {
                left -= data.piece(left, |bytes| {
                    if self.options.sums {
                        self.hasher.update(bytes);
                    }
                    write_all(fd, bytes)
                })?;
            }
            self.facts.content_bytes = self.facts.content_bytes.saturating_add(region.length);
        }
        if sparse.is_some() {
            rustix::fs::ftruncate(fd, size).map_err(|e| call_failed("ftruncate", e))?;
        }
        Ok(self.options.sums.then(|| Sum(self.hasher.digest())))
    }

    /// Returns how many entries were squashed, and the first of them.
    pub(super) fn squashed(&self) -> (u64, &[u8]) {
        (self.squashed, &self.first_squashed)
    }
}

pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(call_failed("write", Errno::IO)),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(call_failed("write", e)),
        }
    }
    Ok(())
}
