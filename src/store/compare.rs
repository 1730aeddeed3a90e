//! Two trees, name by name: a fix-up against what it is computed to be.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::verify::{CHUNK, Damage, DamageKind, Depth, join, name_of};
use crate::cancel::CancelToken;
use crate::error::{Error, Result, escape};
use crate::root::{Dir, Kind, Meta};

/// Compares `have` with `want`, which nobody changes meanwhile, handing every difference to `found`.
///
/// # Errors
/// `Cancelled`; errors of the disk.
pub fn compare_trees(
    want: &Dir,
    have: &Dir,
    depth: Depth,
    cancel: &CancelToken,
    found: &mut dyn FnMut(Damage),
) -> Result<()> {
    let mut compare = Compare { depth, cancel, found };
    compare.directory(want, have, b"")?;
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        cancel.check()?;
        let (want, have) = (want.open_below_or_self(&path)?, have.open_below_or_self(&path)?);
        let mut names: Vec<Vec<u8>> = want.list()?.into_iter().chain(have.list()?).map(|listed| listed.name).collect();
        names.sort();
        names.dedup();
        for name in names {
            let at = join(&path, &name);
            if compare.name(&want, &have, &name, &at)? {
                pending.push(at);
            }
        }
    }
    Ok(())
}

struct Compare<'a> {
    depth: Depth,
    cancel: &'a CancelToken,
    found: &'a mut dyn FnMut(Damage),
}

impl Compare<'_> {
    fn report(&mut self, kind: DamageKind, path: &[u8], detail: impl Into<String>) {
        (self.found)(Damage { kind, path: path.to_vec(), detail: detail.into() });
    }

    /// Returns whether both have a directory there.
    fn name(&mut self, want: &Dir, have: &Dir, name: &[u8], at: &[u8]) -> Result<bool> {
        let (wanted, there) = match (want.stat(name)?, have.stat(name)?) {
            (Some(wanted), Some(there)) => (wanted, there),
            (Some(_), None) => {
                self.report(DamageKind::Missing, at, "is not there");
                return Ok(false);
            }
            (None, Some(there)) => {
                self.report(DamageKind::Added, at, format!("{} that does not belong there", name_of(&there)));
                return Ok(false);
            }
            (None, None) => return Ok(false),
        };
        let same_target = || -> Result<bool> { Ok(want.read_link(name)? == have.read_link(name)?) };
        if wanted.kind != there.kind || wanted.rdev != there.rdev || (wanted.kind == Kind::Symlink && !same_target()?) {
            let detail = format!("is {}, should be {}", name_of(&there), name_of(&wanted));
            self.report(DamageKind::Type, at, detail);
            return Ok(false);
        }
        if wanted.kind == Kind::Directory {
            self.directory(&want.open_child(name)?, &have.open_child(name)?, at)?;
            return Ok(true);
        }
        if differ(&wanted.meta, &there.meta) {
            self.report(DamageKind::Metadata, at, "owner, mode or mtime differ");
        }
        self.xattrs(want.xattrs(name)?, have.xattrs(name)?, at);
        if wanted.kind != Kind::File {
            return Ok(false);
        }
        if wanted.size != there.size {
            self.report(DamageKind::Size, at, format!("has {} bytes, should have {}", there.size, wanted.size));
        } else if self.depth == Depth::Content {
            let open = |dir: &Dir| dir.open_file(name).map(File::from);
            match same_content(&open(want)?, &open(have)?, self.cancel) {
                Ok(true) => {}
                Ok(false) => self.report(DamageKind::Content, at, "has other content than was unpacked"),
                Err(e) if e.kind() == crate::error::ErrorKind::Cancelled => return Err(e),
                Err(e) => self.report(DamageKind::Unreadable, at, e.message()),
            }
        }
        Ok(false)
    }

    fn directory(&mut self, want: &Dir, have: &Dir, at: &[u8]) -> Result<()> {
        if differ(&want.stat_self()?.meta, &have.stat_self()?.meta) {
            self.report(DamageKind::Metadata, at, "owner, mode or mtime differ");
        }
        self.xattrs(want.xattrs_self()?, have.xattrs_self()?, at);
        Ok(())
    }

    fn xattrs(&mut self, mut want: Vec<(Vec<u8>, Vec<u8>)>, mut have: Vec<(Vec<u8>, Vec<u8>)>, at: &[u8]) {
        for list in [&mut want, &mut have] {
            list.retain(|(name, _)| name != b"security.selinux"); // the host's
            list.sort();
        }
        if want != have {
            let name = |(name, _): &(Vec<u8>, Vec<u8>)| escape(name);
            let names: Vec<String> = want
                .iter()
                .filter(|x| !have.contains(x))
                .chain(have.iter().filter(|x| !want.contains(x)))
                .map(name)
                .collect();
            self.report(DamageKind::Metadata, at, format!("xattrs differ: {}", names.join(", ")));
        }
    }
}

/// Times of access are nobody's promise.
fn differ(want: &Meta, have: &Meta) -> bool {
    (want.mode, want.uid, want.gid, want.mtime) != (have.mode, have.uid, have.gid, have.mtime)
}

fn same_content(a: &File, b: &File, cancel: &CancelToken) -> Result<bool> {
    let read = |file: &File, buf: &mut [u8], at: u64| file.read_at(buf, at).map_err(|e| Error::io("read", e));
    let (mut x, mut y) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0u64;
    loop {
        cancel.check()?;
        let n = read(a, &mut x, at)?;
        if n == 0 {
            return Ok(true);
        }
        let Some(part) = y.get_mut(..n) else { return Ok(false) };
        if let Err(e) = b.read_exact_at(part, at) {
            return if e.kind() == std::io::ErrorKind::UnexpectedEof { Ok(false) } else { Err(Error::io("read", e)) };
        }
        if x.get(..n) != Some(part) {
            return Ok(false);
        }
        at += n as u64;
    }
}
