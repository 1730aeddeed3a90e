//! What the place a layer goes to does not hold: xattrs and times, dropped or changed with a warning, or refused.

use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result, escape};
use crate::tar::Timestamp;

use super::Warning;
use super::lay::Layer;

/// Whether some file system may not hold this time: outside of 32 bits it is worth a look.
pub(super) fn rare_time(mtime: Timestamp) -> bool {
    i32::try_from(mtime.seconds).is_err()
}

impl Layer<'_> {
    /// Tells apart xattrs that this place cannot hold, which are dropped with a warning, from real failures.
    pub(super) fn tolerate_xattr(
        &mut self,
        result: rustix::io::Result<()>,
        name: &[u8],
        value: &[u8],
        entry: &[u8],
        warn: &mut dyn FnMut(Warning),
    ) -> Result<()> {
        let e = match result {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        let tolerable = e == Errno::OPNOTSUPP
            || (self.options.tolerate_xattrs && matches!(e, Errno::PERM | Errno::ACCESS | Errno::INVAL));
        if tolerable {
            self.facts.xattrs_dropped = true;
            self.refused_xattr(name, e, entry, warn);
            return Ok(());
        }
        let message = format!("setxattr(\"{}\", {} bytes)", escape(name), value.len());
        if matches!(e, Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) && value.len() > 2048 {
            // ext4 keeps all xattrs of a file in one block and says ENOSPC: the disk is not full.
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{message}: the file system cannot hold an xattr of this size"),
            ));
        }
        Err(Error::io(message, e.into()))
    }

    /// Tells about the first xattr of a namespace that this place refuses and counts the others: a layer may have as many
    /// as files.
    fn refused_xattr(&mut self, name: &[u8], e: Errno, entry: &[u8], warn: &mut dyn FnMut(Warning)) {
        const MOST: usize = 8;
        let end = name.iter().position(|b| *b == b'.').map_or(name.len(), |dot| dot + 1);
        let namespace = name.get(..end).unwrap_or(name);
        let full = self.refused_xattrs.len() == MOST;
        let known = self.refused_xattrs.iter_mut().find(|(known, _)| known == namespace || (full && known.is_empty()));
        match known {
            Some((_, more)) => *more += 1,
            None => {
                // The last place counts whatever namespaces a hostile layer thinks up.
                let namespace = if self.refused_xattrs.len() + 1 == MOST { b"" } else { namespace };
                self.refused_xattrs.push((namespace.to_vec(), 0));
                warn(Warning::new("xattr-unsupported", entry, format!("xattr {} dropped: {e}", escape(name))));
            }
        }
    }

    /// Says how many xattrs were dropped without a word of their own.
    pub(super) fn refused_in_all(&self, warn: &mut dyn FnMut(Warning)) {
        for (namespace, more) in self.refused_xattrs.iter().filter(|(_, more)| *more > 0) {
            let detail = format!("{more} more xattrs {}* dropped in this layer (M19)", escape(namespace));
            warn(Warning::new("xattr-unsupported", b"", detail));
        }
    }

    /// Warns where a time is not what the archive says: this file system holds no such one.
    pub(super) fn check_time(&self, wanted: Timestamp, kept: Timestamp, entry: &[u8], warn: &mut dyn FnMut(Warning)) {
        let saturated = matches!(wanted.seconds, i64::MIN | i64::MAX);
        if saturated || wanted.seconds != kept.seconds {
            let detail = format!("mtime {} is out of range here; kept as {} (R-8)", wanted.seconds, kept.seconds);
            warn(Warning::new("mtime-saturated", entry, detail));
        }
    }
}
