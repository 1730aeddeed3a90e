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

mod behind;
mod content;
mod dirs;
pub mod facts;
mod finish;
pub mod fold;
pub mod inventory;
pub mod journal;
mod lay;
mod links;
pub mod plan;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_plan;
#[cfg(test)]
mod tests_writers;
mod unheld;
mod writers;

use std::fs::File;
use std::io::{BufRead, ErrorKind as IoErrorKind};

use crate::error::{Error, ErrorKind, Result, from_io};
use crate::policy::{Limits, Ownership, WhiteoutForm};
use crate::root::Dir;
use crate::tar::{self, Parser, Step};
use crate::trace::LayerTrace;

pub use facts::{LayerFacts, RootMeta};
pub(crate) use finish::{Marker, finish_root};
pub(crate) use lay::{MAX_SYMLINKS, implied_meta, too_many_symlinks};
pub use plan::{Action, LiteralPath, Node, PlanOptions, plan};
pub(crate) use plan::{check_depth, check_implied};
pub use writers::Writers;

/// The entry of an eStargz layer that lists the others
/// (<https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md>).
pub(crate) const STARGZ_INDEX: &[u8] = b"stargz.index.json";

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
    /// Who makes small files, while whoever called goes on reading; the tree and the journal are the same.
    pub writers: Writers,
    /// Records when those were at work.
    pub trace: LayerTrace,
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

/// Applies the tar stream `input` to an empty directory; stops where something stands behind the end-of-archive blocks, the
/// rest is the caller's to drain.
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
    let mut layer = lay::Layer::new(target, options)?;
    let parser = Parser::new(&options.plan.limits);
    // The writer of eStargz that keeps a blob's own end puts its index behind it: nothing to warn of.
    let odd = &mut |w: Warning| match (w.kind, w.path.as_slice()) {
        ("data-after-end", STARGZ_INDEX) => {}
        _ => warn(w),
    };
    let entries = each_entry(input, parser, odd, check, &mut |entry, data, warn| {
        let (offset, name, mtime) = (entry.offset, entry.path.clone(), entry.mtime);
        let action = plan(entry, &options.plan, warn)?;
        layer.offset = offset;
        let done = layer.run(action, mtime, &name, data, warn);
        layer.oddities.drain(..).for_each(warn);
        done.map_err(|e| e.with_entry(&name).with_offset(offset))
    });
    let entries = match entries {
        Ok(entries) => entries,
        // What failed before it comes first, as without threads; who cancels does not wait for that.
        Err(e) if e.kind() != ErrorKind::Cancelled => return Err(layer.settle().err().unwrap_or(e)),
        Err(e) => return Err(e),
    };
    let facts = layer.finish(warn)?;
    Ok(Applied { facts: LayerFacts { entries, ..facts } })
}

/// What is done with one entry, its data, and what is to be warned of.
type Visit<'a, R> = &'a mut dyn FnMut(tar::Entry, &mut Data<'_, R>, &mut dyn FnMut(Warning)) -> Result<()>;

/// Calls `visit` for each entry of a tar stream and returns how many there were; data that it leaves is skipped. Stops
/// after the end-of-archive blocks.
///
/// # Errors
/// As [`apply_layer`], and what `visit` returns.
pub(crate) fn each_entry<R: BufRead>(
    input: &mut R,
    mut parser: Parser,
    warn: &mut dyn FnMut(Warning),
    check: &dyn Fn() -> Result<()>,
    visit: Visit<'_, R>,
) -> Result<u64> {
    let mut entries = 0u64;
    let mut block = [0u8; 512];
    loop {
        let step = match read_block(input, &mut block)? {
            true => parser.block(&block),
            false => parser.finish().map(|()| Step::End),
        };
        for oddity in parser.take_oddities() {
            warn(Warning::new(oddity.code, &oddity.path, oddity.detail));
        }
        match step.map_err(Error::from)? {
            Step::More => {}
            Step::End => {
                behind_the_end(input, warn)?;
                return Ok(entries);
            }
            Step::Skip(n) => skip(input, n)?,
            Step::Entry(entry) => {
                check()?;
                entries += 1;
                let stored = entry.stored;
                let mut data = Data { input, left: stored };
                visit(*entry, &mut data, warn)?;
                let rest = data.left;
                skip(input, rest)?;
                skip_padding(input, (512 - stored % 512) % 512)?;
            }
        }
    }
}

/// Looks for something behind the end of the archive: no reader takes it for entries (T4, T5), so whoever put it there
/// should be seen. Stops at the first block that is not zero.
fn behind_the_end<R: BufRead>(input: &mut R, warn: &mut dyn FnMut(Warning)) -> Result<()> {
    let mut block = [0u8; 512];
    loop {
        let have = read_some(input, &mut block)?;
        let found = block.get(..have).unwrap_or_default();
        if found.is_empty() {
            return Ok(());
        }
        if found.iter().any(|b| *b != 0) {
            // Whoever knows the format tells by the first name: an index behind the end belongs to lazy pulling (Z15).
            let (what, name) = match have == block.len() && Parser::new(&Limits::default()).block(&block).is_ok() {
                true => ("another archive follows", block.split(|b| *b == 0).next().unwrap_or_default()),
                false => ("bytes that are not zero follow", &[][..]),
            };
            let name = name.get(..100).unwrap_or(name);
            let detail = format!("{what} the end of the archive; hashed, not read (T4, T5)");
            warn(Warning::new("data-after-end", name, detail));
            return Ok(());
        }
    }
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
    match read_some(input, block)? {
        0 => Ok(false),
        512 => Ok(true),
        _ => Err(Error::new(ErrorKind::Malformed, "archive ends inside a header block (T3)")),
    }
}

/// Fills `block` as far as the stream goes and returns how many bytes that were.
fn read_some<R: BufRead>(input: &mut R, block: &mut [u8; 512]) -> Result<usize> {
    let mut have = 0;
    while have < block.len() {
        let buf = fill(input)?;
        if buf.is_empty() {
            break;
        }
        let n = buf.len().min(block.len() - have);
        block[have..have + n].copy_from_slice(&buf[..n]);
        input.consume(n);
        have += n;
    }
    Ok(have)
}

/// Skips what fills up the last block of an entry's data; an archive may end there, as it may end without zero blocks (T2).
fn skip_padding<R: BufRead>(input: &mut R, mut n: u64) -> Result<()> {
    while n > 0 {
        let buf = fill(input)?;
        if buf.is_empty() {
            break;
        }
        let step = (buf.len() as u64).min(n);
        input.consume(step as usize);
        n -= step;
    }
    Ok(())
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
