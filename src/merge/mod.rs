//! A read-only merged view over layer directories, as overlayfs would show them.
//!
//! Owns: lookup through whiteouts (both forms) and opaque directories, merged listings. Used where the kernel's own view is
//! not mounted: fix-ups, folding, checks. Refuses to know: tar, the store's layout.
//! However many directories of a view are remembered, few descriptors are open.
//! Order: everywhere in this module the topmost layer comes first, as in overlayfs's `lowerdir`
//! (<https://docs.kernel.org/filesystems/overlayfs.html#multiple-lower-layers>).

use std::collections::HashSet;

use crate::error::Result;
use crate::policy::{WhiteoutForm, XattrFlavour};
use crate::root::{Dir, Handles, Kind, LazyDir, Listed, NodeMeta, Stat};

/// How a directory marks what it hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Namespace of the marks.
    pub flavour: XattrFlavour,
    /// Form of whiteouts.
    pub form: WhiteoutForm,
}

impl Marks {
    /// Whether `listed` in `dir` is a whiteout.
    pub fn is_whiteout(&self, dir: &Dir, listed: &Listed) -> Result<bool> {
        match listed.kind {
            Some(Kind::CharDevice) | None => {}
            Some(Kind::File) if self.form == WhiteoutForm::Xattr => {}
            Some(_) => return Ok(false),
        }
        match dir.stat(&listed.name)? {
            Some(st) => self.is_whiteout_stat(dir, &listed.name, &st),
            None => Ok(false),
        }
    }

    fn is_whiteout_stat(&self, dir: &Dir, name: &[u8], st: &Stat) -> Result<bool> {
        if st.is_char_whiteout() {
            return Ok(true);
        }
        if self.form == WhiteoutForm::Xattr && st.kind == Kind::File && st.size == 0 {
            let xattr = format!("{}whiteout", self.flavour.prefix());
            return Ok(dir.get_xattr(name, xattr.as_bytes())?.is_some());
        }
        Ok(false)
    }

    /// Whether `dir` hides what lower layers have in it.
    pub fn is_opaque(&self, dir: &Dir) -> Result<bool> {
        let xattr = format!("{}opaque", self.flavour.prefix());
        Ok(dir.get_xattr_self(xattr.as_bytes())?.as_deref() == Some(b"y"))
    }

    /// Whether `xattr` is one of overlayfs's own.
    pub fn is_mark(&self, xattr: &[u8]) -> bool {
        xattr.starts_with(self.flavour.prefix().as_bytes())
    }
}

/// One layer of a view.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The layer directory.
    pub dir: Dir,
    /// How it marks what it hides; `None` for a plain directory that hides nothing.
    pub marks: Option<Marks>,
}

#[derive(Debug, Clone)]
struct Part {
    layer: usize,
    dir: LazyDir,
}

/// The view.
#[derive(Debug, Clone)]
pub struct ChainView {
    layers: std::sync::Arc<Vec<Layer>>,
}

/// A directory of the view: the directories that merge, topmost first.
#[derive(Debug, Clone)]
pub struct ViewDir {
    view: ChainView,
    parts: Vec<Part>,
}

/// What a name of the view is.
#[derive(Debug, Clone)]
pub enum Found {
    /// A directory.
    Dir(ViewDir),
    /// Anything else, at `name` in `dir` of the layer `layer` (an index into the view's layers, topmost first).
    Other {
        /// Index of the layer that has it.
        layer: usize,
        /// The layer's directory that holds it.
        dir: LazyDir,
        /// What it is.
        stat: Stat,
    },
}

impl ChainView {
    /// Creates a view over `layers`, topmost first.
    pub fn new(layers: Vec<Layer>) -> ChainView {
        ChainView { layers: std::sync::Arc::new(layers) }
    }

    /// Returns the layers, topmost first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns the merged root; `None` where there are no layers.
    pub fn root(&self) -> Option<ViewDir> {
        let handles = std::sync::Arc::new(Handles::default());
        let part = |(layer, l): (usize, &Layer)| Part { layer, dir: LazyDir::new(l.dir.clone(), &handles) };
        let parts: Vec<Part> = self.layers.iter().enumerate().map(part).collect();
        (!parts.is_empty()).then(|| ViewDir { view: self.clone(), parts })
    }
}

impl ViewDir {
    /// Returns what `name` is.
    pub fn lookup(&self, name: &[u8]) -> Result<Option<Found>> {
        let mut parts: Vec<Part> = Vec::new();
        for part in &self.parts {
            let dir = part.dir.open()?;
            let Some(stat) = dir.stat(name)? else { continue };
            let marks = self.view.layers[part.layer].marks;
            if let Some(marks) = marks
                && marks.is_whiteout_stat(&dir, name, &stat)?
            {
                break;
            }
            if stat.kind != Kind::Directory {
                if parts.is_empty() {
                    return Ok(Some(Found::Other { layer: part.layer, dir: part.dir.clone(), stat }));
                }
                break;
            }
            let dir = part.dir.child(name);
            let opaque = match marks {
                Some(marks) => marks.is_opaque(&dir.open()?)?,
                None => false,
            };
            parts.push(Part { layer: part.layer, dir });
            if opaque {
                break;
            }
        }
        Ok((!parts.is_empty()).then(|| Found::Dir(ViewDir { view: self.view.clone(), parts })))
    }

    /// Returns the visible names, in no particular order.
    pub fn list(&self) -> Result<Vec<Vec<u8>>> {
        let mut seen: HashSet<Vec<u8>> = HashSet::new();
        let mut out = Vec::new();
        for part in &self.parts {
            let marks = self.view.layers[part.layer].marks;
            let dir = part.dir.open()?;
            for listed in dir.list()? {
                if seen.contains(&listed.name) {
                    continue;
                }
                let hidden = match marks {
                    Some(marks) => marks.is_whiteout(&dir, &listed)?,
                    None => false,
                };
                if !hidden {
                    out.push(listed.name.clone());
                }
                seen.insert(listed.name);
            }
        }
        Ok(out)
    }

    /// Returns the part that the layer `layer` contributes.
    pub fn part(&self, layer: usize) -> Option<&LazyDir> {
        self.parts.iter().find(|p| p.layer == layer).map(|p| &p.dir)
    }

    /// Returns how many layers merge here.
    pub fn depth(&self) -> usize {
        self.parts.len()
    }

    /// Returns the metadata that shows: that of the topmost part, without overlayfs's marks.
    pub fn meta(&self) -> Result<NodeMeta> {
        let Some(part) = self.parts.first() else { return Ok(NodeMeta::default()) };
        let dir = part.dir.open()?;
        let mut xattrs = dir.xattrs_self()?;
        if let Some(marks) = self.view.layers[part.layer].marks {
            xattrs.retain(|(name, _)| !marks.is_mark(name));
        }
        Ok(NodeMeta { meta: dir.stat_self()?.meta, xattrs })
    }
}
