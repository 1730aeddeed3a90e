//! From what a replay sees to findings.

use crate::apply::LiteralPath;
use crate::apply::journal::Reader;
use crate::error::{Error, Result, escape};
use crate::fixup::{Hides, NameChain, Sight, Was};
use crate::root::NodeMeta;

use super::scan::Marks;
use super::{Code, Findings};

/// Puts one more layer on the chain; returns its first refusal.
///
/// # Errors
/// `Limit` for too many nodes.
pub(super) fn look(
    chain: &mut NameChain,
    journal: &[u8],
    marks: &Marks,
    findings: &mut Findings,
) -> Result<Option<Error>> {
    let mut refusal = None;
    chain.layer(&|| Reader::new(journal), &mut |sight| match sight {
        Sight::Refused { path, error } => {
            findings.refuse(&error, path.as_bytes());
            refusal.get_or_insert(error);
        }
        sight => one(&sight, marks, findings),
    })?;
    Ok(refusal)
}

fn one(sight: &Sight<'_>, marks: &Marks, findings: &mut Findings) {
    let mut add = |code: Code, path: &LiteralPath, detail: &str| {
        findings.add(code, if path.is_root() { b"/" } else { path.as_bytes() }, detail);
    };
    match sight {
        Sight::Marker { dir, name, hides, through } => {
            let path = name.map_or_else(|| (*dir).clone(), |name| dir.join(name));
            if *through {
                add(Code::WhiteoutThroughSymlink, &path, "a marker's directory is a symlink of a lower layer");
            }
            match (name.is_some(), hides) {
                (_, Hides::BelowFile) => add(Code::MarkerBelowFile, &path, "a marker below a file of a lower layer"),
                (true, Hides::Content) if marks.made_after(&path) => {
                    add(Code::WhiteoutThenDirectory, &path, "a whiteout, then a directory of that name");
                }
                (true, Hides::Nothing) if !marks.is_explained(&path) => {
                    add(Code::WhiteoutOfNothing, &path, "no lower layer has what the whiteout hides");
                }
                (true, Hides::NoDirectory) if !marks.is_explained(&path) => {
                    add(Code::WhiteoutWithoutDirectory, &path, "no lower layer has the whiteout's directory");
                }
                (false, Hides::Content) if dir.is_root() => {
                    add(Code::OpaqueRoot, &path, "an opaque marker at the root");
                }
                (false, Hides::NoDirectory) if !marks.holds_entries(&path) => {
                    add(Code::OpaqueWithoutDirectory, &path, "an opaque marker in a directory that nobody has");
                }
                _ => {}
            }
        }
        Sight::Lands { path, place } => {
            let place = escape(place.as_bytes());
            add(
                Code::ThroughLowerSymlink,
                path,
                &format!("lands at \"{place}\": a symlink of a lower layer leads there"),
            );
        }
        Sight::OwnSymlink { path, absolute, dangling } => {
            let (code, detail) = match (dangling, absolute) {
                (true, _) => (Code::ThroughDanglingSymlink, "goes through a symlink whose target does not exist"),
                (false, true) => (Code::ThroughSymlink, "goes through an absolute symlink of this layer"),
                (false, false) => (Code::ThroughSymlink, "goes through a symlink of this layer"),
            };
            add(code, path, detail);
        }
        Sight::ParentReplaced { path } => add(Code::ParentReplaced, path, "its parent is a file of this layer"),
        Sight::MarkerReplaces { dir } => {
            add(Code::OpaqueOverEntry, dir, "an opaque marker below what this layer made as a file");
        }
        Sight::Replaces { path, own: true, .. } if !marks.is_repeated(path) => {
            add(Code::PlaceTaken, path, "an entry of another name, or one below it, took the place before");
        }
        Sight::Replaces { path, was: Was::Symlink, own: false, directory: true } => {
            add(Code::LowerSymlinkReplaced, path, "a directory where a lower layer has a symlink");
        }
        Sight::Replaces { .. } | Sight::Refused { .. } => {}
        Sight::LinkIntoLower { path } => add(Code::LinkIntoLower, path, "a hard link to a file of a lower layer"),
        Sight::LinkForward { path } => add(Code::LinkForward, path, "a hard link to what comes later in the archive"),
        Sight::LinkToSelf { path } => add(Code::LinkToSelf, path, "a hard link to what it is already"),
        Sight::LinkToSymlink { path } => add(Code::LinkToSymlink, path, "a hard link to a symlink"),
        Sight::LinkMetadata { path, before, after } => {
            add(Code::LinkMetadata, path, &format!("the target has {}, the link's header {}", of(before), of(after)));
        }
        Sight::Implied { place, lower: None } => {
            add(Code::ImpliedDirectory, place, "a directory that the archive does not describe");
        }
        Sight::Implied { place, lower: Some(lower) } => {
            let plain = (lower.meta.mode, lower.meta.uid, lower.meta.gid) == (0o755, 0, 0) && lower.xattrs.is_empty();
            if !plain {
                let detail = format!("not described in this layer; below it has {}", of(lower));
                add(Code::ImpliedParent, place, &detail);
            }
        }
    }
}

fn of(node: &NodeMeta) -> String {
    let meta = &node.meta;
    let xattrs = match node.xattrs.len() {
        0 => String::new(),
        n => format!(", {n} xattrs"),
    };
    format!("mode {:04o}, owner {}:{}, mtime {}{xattrs}", meta.mode, meta.uid, meta.gid, meta.mtime.seconds)
}
