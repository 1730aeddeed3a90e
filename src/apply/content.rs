//! The content of files: written as it comes, with its checksum.

use std::io::BufRead;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::Result;
use crate::tar::Region;

use super::Data;
use super::journal::Sum;
use super::lay::{Layer, call_failed};

impl Layer<'_> {
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
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
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
