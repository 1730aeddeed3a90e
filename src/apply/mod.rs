//! The changeset rules of a layer: entries become actions, actions become calls on a directory.
//!
//! Owns: what names and whiteouts mean ([`plan()`]), how a layer is laid down in an empty directory ([`apply_layer`]), the
//! journal of what the archive asked for. Refuses to know: compression, the store, mounting, the layers below.
//!
//! Invariants:
//! * A layer directory never depends on other layers. What cannot be settled alone is recorded
//!   ([`facts::LayerFacts::depends_on_lower`] and the journal) and settled by a fix-up above it.
//! * No name starting with `.wh.` ever reaches the disk.
//! * Whiteouts are written after the last entry, so their place in the archive does not matter
//!   (<https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts>).
//! * Directories get their metadata last, deepest first; every other node as owner → xattrs → mode → times.

mod dirs;
pub mod facts;
mod finish;
pub mod fold;
pub mod inventory;
pub mod journal;
mod lay;
mod links;
pub mod plan;

use std::fs::File;
use std::io::{BufRead, ErrorKind as IoErrorKind};

use crate::error::{Error, ErrorKind, Result, from_io};
use crate::policy::{Ownership, WhiteoutForm};
use crate::root::Dir;
use crate::tar::{self, Parser, Step};

pub use facts::{LayerFacts, RootMeta};
pub(crate) use finish::{Marker, finish_root};
pub(crate) use lay::{MAX_SYMLINKS, implied_meta, too_many_symlinks};
pub(crate) use plan::check_implied;
pub use plan::{Action, LiteralPath, Node, PlanOptions, plan};

/// Something odd that was accepted, or dropped, while a layer was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Stable code, such as `name-clamped`.
    pub kind: &'static str,
    /// The entry's name, verbatim.
    pub path: Vec<u8>,
    /// What happened.
    pub detail: String,
}

impl Warning {
    /// Creates a warning.
    pub fn new(kind: &'static str, path: &[u8], detail: impl Into<String>) -> Warning {
        Warning { kind, path: path.to_vec(), detail: detail.into() }
    }
}

/// How a layer is applied.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Naming rules, xattr namespace, limits.
    pub plan: PlanOptions,
    /// Form of whiteouts.
    pub whiteouts: WhiteoutForm,
    /// Whether owners can be set.
    pub ownership: Ownership,
    /// Device nodes cannot be made here (a user namespace): they are skipped with a warning.
    pub skip_devices: bool,
    /// Xattrs that the caller may not set are skipped with a warning (a user namespace).
    pub tolerate_xattrs: bool,
    /// The journal gets a checksum of each file's content, for those who will keep the directory and verify it later.
    pub sums: bool,
}

/// Where a layer goes: three places that belong to nobody else.
pub struct Target {
    /// An empty directory on a file system that can hold whiteouts: becomes the layer directory.
    pub tree: Dir,
    /// An empty directory on the same file system, for content that a fix-up may still need.
    pub stash: Dir,
    /// An empty file for the journal.
    pub journal: File,
}

/// Proof that a layer was applied to its last entry.
#[derive(Debug)]
#[non_exhaustive]
pub struct Applied {
    /// What was found out.
    pub facts: LayerFacts,
}

/// Applies the tar stream `input` to an empty directory; stops after the end-of-archive blocks, the rest is the caller's to drain.
///
/// `check` is called once an entry and ends the work with its error (cancellation); `warn` gets every oddity.
///
/// # Errors
/// `Malformed` and `Limit` for what the archive asks for, with entry and offset; errors of `input` as they are (an
/// [`Error`] inside an `io::Error` is taken out); errors of system calls with the call. The target is then half done and must be thrown away.
pub fn apply_layer<R: BufRead>(
    input: &mut R,
    target: Target,
    options: &ApplyOptions,
    warn: &mut dyn FnMut(Warning),
    check: &dyn Fn() -> Result<()>,
) -> Result<Applied> {
    let mut parser = Parser::new(&options.plan.limits);
    let mut layer = lay::Layer::new(target, options)?;
    let mut entries = 0u64;
    let mut block = [0u8; 512];
    loop {
        if !read_block(input, &mut block)? {
            parser.finish().map_err(Error::from)?;
            break;
        }
        let step = parser.block(&block).map_err(Error::from)?;
        for oddity in parser.take_oddities() {
            warn(Warning::new(oddity.code, &oddity.path, oddity.detail));
        }
        match step {
            Step::More => {}
            Step::End => break,
            Step::Skip(n) => skip(input, n)?,
            Step::Entry(entry) => {
                check()?;
                entries += 1;
                if entries > options.plan.limits.max_entries {
                    return Err(Error::new(
                        ErrorKind::Limit,
                        format!("more than {} entries in one layer (--max-entries)", options.plan.limits.max_entries),
                    )
                    .with_entry(&entry.path)
                    .with_offset(entry.offset));
                }
                one_entry(input, &mut layer, *entry, options, warn)?;
            }
        }
    }
    let facts = layer.finish(warn)?;
    Ok(Applied { facts: LayerFacts { entries, ..facts } })
}

fn one_entry<R: BufRead>(
    input: &mut R,
    layer: &mut lay::Layer<'_>,
    entry: tar::Entry,
    options: &ApplyOptions,
    warn: &mut dyn FnMut(Warning),
) -> Result<()> {
    let (stored, offset) = (entry.stored, entry.offset);
    let (name, mtime) = (entry.path.clone(), entry.mtime);
    let action = plan(entry, &options.plan, warn)?;
    let mut data = Data { input, left: stored };
    layer.run(action, mtime, &name, &mut data, warn).map_err(|e| e.with_entry(&name).with_offset(offset))?;
    let rest = data.left.checked_add((512 - stored % 512) % 512).ok_or_else(truncated)?;
    skip(input, rest)
}

/// The data of one entry.
pub(crate) struct Data<'a, R> {
    input: &'a mut R,
    left: u64,
}

impl<R: BufRead> Data<'_, R> {
    /// Hands out the next piece of at most `most` bytes to `take`, straight from the stream's buffer.
    fn piece(&mut self, most: u64, take: impl FnOnce(&[u8]) -> Result<()>) -> Result<u64> {
        let buf = fill(self.input)?;
        let n = (buf.len() as u64).min(self.left).min(most) as usize;
        if n == 0 {
            return Err(truncated());
        }
        take(&buf[..n])?;
        self.input.consume(n);
        self.left -= n as u64;
        Ok(n as u64)
    }
}

fn truncated() -> Error {
    Error::new(ErrorKind::Malformed, "archive ends inside an entry (T3)")
}

fn fill<R: BufRead>(input: &mut R) -> Result<&[u8]> {
    // The borrow checker cannot see that the loop ends with the borrow: find out first, then borrow.
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == IoErrorKind::Interrupted => {}
            Err(e) => return Err(from_io("read the layer", e)),
        }
    }
    input.fill_buf().map_err(|e| from_io("read the layer", e))
}

/// Fills `block`; `false` at a clean end before its first byte.
fn read_block<R: BufRead>(input: &mut R, block: &mut [u8; 512]) -> Result<bool> {
    let mut have = 0;
    while have < block.len() {
        let buf = fill(input)?;
        if buf.is_empty() {
            return if have == 0 {
                Ok(false)
            } else {
                Err(Error::new(ErrorKind::Malformed, "archive ends inside a header block (T3)"))
            };
        }
        let n = buf.len().min(block.len() - have);
        block[have..have + n].copy_from_slice(&buf[..n]);
        input.consume(n);
        have += n;
    }
    Ok(true)
}

fn skip<R: BufRead>(input: &mut R, mut n: u64) -> Result<()> {
    while n > 0 {
        let buf = fill(input)?;
        if buf.is_empty() {
            return Err(truncated());
        }
        let step = (buf.len() as u64).min(n);
        input.consume(step as usize);
        n -= step;
    }
    Ok(())
}
