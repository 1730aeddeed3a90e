//! Folds one staged layer onto a directory by renames: the flattened form of what overlayfs would show.

use std::sync::Arc;

use crate::error::Result;
use crate::fail::fail_point;
use crate::policy::{Ownership, WhiteoutForm, XattrFlavour};
use crate::root::{Dir, Kind, LazyDir, Listed, Meta, NodeMeta, meta as fdmeta};

use super::finish::finish_root;

/// How the folded layer marks what it hides.
#[derive(Debug, Clone, Copy)]
pub struct FoldOptions {
    /// Namespace of the marks.
    pub flavour: XattrFlavour,
    /// Form of whiteouts.
    pub form: WhiteoutForm,
    /// Whether owners are kept.
    pub ownership: Ownership,
    /// The layer has marks: what is moved is searched for them.
    pub has_marks: bool,
    /// The layer hides everything below it.
    pub root_opaque: bool,
}

/// Moves everything of `layer` onto `base`, which holds the tree below it; afterwards `layer` holds only leftovers.
///
/// # Errors
/// Errors of system calls; `base` is then half folded.
pub fn fold(base: &Dir, layer: &Dir, options: &FoldOptions) -> Result<()> {
    if options.root_opaque {
        base.clear()?;
    }
    let handles = Arc::default();
    fold_dir(&LazyDir::new(base.clone(), &handles), &LazyDir::new(layer.clone(), &handles), options)?;
    finish_root(base, options.ownership)
}

/// Removes overlayfs's marks from a layer directory that becomes the bottom of a flattened tree.
pub fn strip_marks(base: &Dir, options: &FoldOptions) -> Result<()> {
    if options.has_marks {
        strip(&LazyDir::new(base.clone(), &Arc::default()), options)?;
    }
    finish_root(base, options.ownership)
}

fn is_whiteout(dir: &Dir, listed: &Listed, options: &FoldOptions) -> Result<bool> {
    if !options.has_marks {
        return Ok(false);
    }
    match listed.kind {
        Some(Kind::CharDevice) | None => {}
        Some(Kind::File) if options.form == WhiteoutForm::Xattr => {
            let xattr = format!("{}whiteout", options.flavour.prefix());
            return Ok(dir.stat(&listed.name)?.is_some_and(|st| st.size == 0)
                && dir.get_xattr(&listed.name, xattr.as_bytes())?.is_some());
        }
        Some(_) => return Ok(false),
    }
    Ok(dir.stat(&listed.name)?.is_some_and(|st| st.is_char_whiteout()))
}

fn fold_dir(base_at: &LazyDir, layer_at: &LazyDir, options: &FoldOptions) -> Result<()> {
    let listing = layer_at.open()?.list()?;
    for listed in listing {
        fail_point("fold.before-name")?;
        let (base, layer) = (base_at.open()?, layer_at.open()?);
        let name = &listed.name[..];
        if is_whiteout(&layer, &listed, options)? {
            base.remove_all(name)?;
            continue;
        }
        let there = base.stat(name)?.map(|st| st.kind);
        if layer.kind_of(&listed)? == Some(Kind::Directory) {
            if there == Some(Kind::Directory) {
                let upper = layer.open_child(name)?;
                if !(options.has_marks && is_opaque(&upper, options)?) {
                    // Before anything is moved out of it, which would change its mtime.
                    let meta = meta_of(&upper, options)?;
                    // A level costs no descriptor while those below it are folded.
                    drop((base, layer, upper));
                    let lower = base_at.child(name);
                    fold_dir(&lower, &layer_at.child(name), options)?;
                    // A directory entry replaces all metadata, it does not merge (D5).
                    lower.open()?.apply_meta_self(&meta, options.ownership == Ownership::Keep, &|_| false)?;
                    continue;
                }
            }
            if there.is_some() {
                base.remove_all(name)?;
            }
            layer.rename(name, &base, name)?;
            if options.has_marks {
                strip(&LazyDir::new(base.open_child(name)?, &Arc::default()), options)?;
            }
        } else {
            if there == Some(Kind::Directory) {
                base.remove_all(name)?;
            }
            layer.rename(name, &base, name)?;
        }
    }
    Ok(())
}

fn is_opaque(dir: &Dir, options: &FoldOptions) -> Result<bool> {
    let xattr = format!("{}opaque", options.flavour.prefix());
    Ok(dir.get_xattr_self(xattr.as_bytes())?.as_deref() == Some(b"y"))
}

fn meta_of(upper: &Dir, options: &FoldOptions) -> Result<NodeMeta> {
    let mut xattrs = upper.xattrs_self()?;
    let prefix = options.flavour.prefix().as_bytes();
    if options.has_marks {
        xattrs.retain(|(name, _)| !name.starts_with(prefix));
    }
    Ok(NodeMeta { meta: upper.stat_self()?.meta, xattrs })
}

fn strip(at: &LazyDir, options: &FoldOptions) -> Result<()> {
    let dir = at.open()?;
    let before: Meta = dir.stat_self()?.meta;
    let mut changed = false;
    for mark in ["opaque", "origin"] {
        let name = format!("{}{mark}", options.flavour.prefix());
        if dir.get_xattr_self(name.as_bytes())?.is_some() {
            dir.remove_xattr_self(name.as_bytes())?;
        }
    }
    let mut below = Vec::new();
    for listed in dir.list()? {
        if is_whiteout(&dir, &listed, options)? {
            dir.unlink(&listed.name)?;
            changed = true;
        } else if dir.kind_of(&listed)? == Some(Kind::Directory) {
            below.push(listed.name);
        }
    }
    if changed {
        fdmeta::set_times_fd(&dir, &before).map_err(|e| super::lay::call_failed("futimens", e))?;
    }
    drop(dir);
    below.iter().try_for_each(|name| strip(&at.child(name), options))
}
