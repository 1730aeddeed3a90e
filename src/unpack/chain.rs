//! Layers of a store stacked into a chain, with the fix-ups that they need.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::apply::{LayerFacts, RootMeta, Warning};
use crate::digest::{ChainId, ImageId};
use crate::error::{Error, ErrorKind, Result};
use crate::fixup::{FixupFacts, FixupInput, make_fixup};
use crate::merge::{ChainView, Layer, Marks};
use crate::mount::{Attached, MountPlan, Upper};
use crate::policy::{Limits, RootEntry, TreeOptions, WhiteoutForm};
use crate::root::{Dir, Meta, NodeMeta, Resolver};
use crate::store::{
    Base, Durable, EPHEMERAL, FixupKey, FixupRef, Flavour, Id, ImageRecord, LayerOptions, LayerRef, Lower, NewSnapshot,
    Pin, SnapshotKind, SnapshotLock, SnapshotRecord, Staging, Store,
};
use crate::tar::Timestamp;

use super::layer::Place;
use super::{Event, Events, resolving};

/// A stack of published layers: what a rootfs is mounted from. While it is held, nothing of it is collected.
#[derive(Debug)]
pub struct Chain {
    store: Store,
    _pin: Pin,
    image_id: ImageId,
    chain_id: ChainId,
    /// Topmost first.
    lowers: Vec<(Lower, PathBuf)>,
    layers: Vec<LayerRef>,
    root: Option<RootMeta>,
}

/// A kept writable directory on top of a chain.
#[derive(Debug)]
pub struct Snapshot {
    store: Store,
    record: SnapshotRecord,
    _lock: SnapshotLock,
}

/// Fix-ups that are published together; each has its staging, and so some descriptors, until then.
const FIXUP_GROUP: usize = 32;

/// One directory of a stack that grows from the bottom.
#[derive(Clone)]
struct Stacked {
    lower: Lower,
    path: PathBuf,
    dir: Dir,
}

pub(super) fn marks(flavour: Flavour) -> Marks {
    Marks { flavour: flavour.xattr, form: flavour.whiteouts }
}

/// Computes one fix-up into the empty directory `target`.
pub(super) fn fix(
    layer: &Place,
    lower: ChainView,
    flavour: Flavour,
    options: &TreeOptions,
    limits: &Limits,
    target: &Dir,
    warn: &mut dyn FnMut(Warning),
) -> Result<FixupFacts> {
    // A layer without a stash never needs one; any directory serves.
    let stash = layer.stash()?.unwrap_or_else(|| layer.tree.clone());
    let input = FixupInput {
        lower,
        layer: layer.tree.clone(),
        stash,
        journal: &|| layer.journal(),
        marks: marks(flavour),
        ownership: flavour.ownership,
        lower_symlinks: options.lower_symlinks,
        skip_devices: flavour.xattr == crate::policy::XattrFlavour::User,
        limits,
    };
    make_fixup(&input, target, &mut |name, place| {
        let place = crate::error::escape(place);
        warn(Warning::new(
            "through-lower-symlink",
            name,
            format!("lands at \"{place}\": its parent is a symlink of a lower layer (R-3)"),
        ));
    })
}

/// Whether a layer needs a fix-up above a chain that is empty (`bottom`) or not.
pub(super) fn needs_fixup(facts: &LayerFacts, bottom: bool) -> bool {
    // At the bottom only links that point forward have anything to settle: implied directories and whiteouts meet nothing.
    facts.depends_on_lower && (!bottom || facts.late_links > 0)
}

/// Converts recorded metadata of a root entry.
pub(super) fn root_node(meta: &RootMeta) -> NodeMeta {
    let mtime = Timestamp { seconds: meta.mtime, nanos: meta.mtime_nanos };
    NodeMeta {
        meta: Meta { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime, atime: mtime },
        xattrs: meta.xattrs.clone(),
    }
}

impl Chain {
    /// Stacks the layers of an image that are all in the store, making the fix-ups that are missing within `limits`.
    #[expect(clippy::too_many_arguments, reason = "a chain is all of these")]
    pub(super) fn build(
        store: &Store,
        pin: Pin,
        image_id: ImageId,
        layers: Vec<LayerRef>,
        options: &TreeOptions,
        limits: &Limits,
        resolver: Option<Resolver>,
        events: Events<'_>,
    ) -> Result<Chain> {
        let open = |path: &Path| Ok::<_, Error>(resolving(Dir::open(path)?, resolver));
        // Those that are made are stood on before they have a name: one group, one sync for them all.
        let mut made = Vec::new();
        let (stack, root, chain_id) = stack_up(&layers, options, &open, &mut |step| match store.fixup(&step.key)? {
            Some(found) => stacked(&found, &open),
            None => {
                let (staging, nodes) = compute(store, step, options, limits, &open, events)?;
                let id = Id::of_fixup(&step.key);
                let above = (nodes > 0).then(|| Stacked {
                    lower: Lower::Fixup(id),
                    path: Lower::Fixup(id).path(store),
                    dir: resolving(staging.tree().clone(), resolver),
                });
                made.push((step.key, above.is_some().then_some(staging)));
                if made.len() == FIXUP_GROUP {
                    store.publish_fixups(&pin, std::mem::take(&mut made))?;
                }
                Ok(above)
            }
        })?;
        if !made.is_empty() {
            store.publish_fixups(&pin, made)?;
        }
        Ok(Chain {
            store: store.clone(),
            _pin: pin,
            image_id,
            chain_id,
            lowers: stack.into_iter().rev().map(|s| (s.lower, s.path)).collect(),
            layers,
            root,
        })
    }

    /// Makes durable what a run without syncs left of it, where its store is asked for durability.
    ///
    /// # Errors
    /// As [`Store::upgrade_durable`].
    pub(super) fn settle(&self) -> Result<()> {
        let mut fixups = Vec::new();
        for (lower, _) in &self.lowers {
            if let Lower::Fixup(id) = lower {
                fixups.extend(self.store.fixup_by_id(id)?);
            }
        }
        let volatile = |durable: &Durable| *durable != Durable::Yes;
        let any =
            self.layers.iter().any(|l| volatile(l.durable())) || fixups.iter().any(|f| volatile(&f.record().durable));
        match any && self.store.durable() {
            true => self.store.upgrade_durable(&mut self.layers.clone(), &mut fixups),
            false => Ok(()),
        }
    }

    /// Returns the chain's identity.
    pub fn chain_id(&self) -> ChainId {
        self.chain_id
    }

    /// Returns the image it was built for.
    pub fn image_id(&self) -> ImageId {
        self.image_id
    }

    /// Returns the image's layers, bottom first.
    pub fn layers(&self) -> &[LayerRef] {
        &self.layers
    }

    /// Returns the directories to stack, topmost first, as in overlayfs's `lowerdir`.
    pub fn lowerdirs(&self) -> Vec<PathBuf> {
        self.lowers.iter().map(|(_, path)| path.clone()).collect()
    }

    /// Returns the plan of a read-only view.
    pub fn view(&self) -> MountPlan {
        grounded(&self.store, MountPlan::view(self.lowerdirs(), self.store.flavour().xattr, &self.store.empty_dirs()))
    }

    /// Makes a writable snapshot under `key` on top of the chain, and takes the right to mount it.
    ///
    /// # Errors
    /// `AlreadyExists` where the key is taken.
    pub fn snapshot(&self, key: &str) -> Result<Snapshot> {
        self.make_snapshot(key, SnapshotKind::Active)
    }

    /// Makes a read-only snapshot under `key`: it keeps the layers from being collected for as long as it is mounted
    /// somewhere, which no chain held by a process can do.
    ///
    /// # Errors
    /// `AlreadyExists` where the key is taken.
    pub fn view_snapshot(&self, key: &str) -> Result<Snapshot> {
        self.make_snapshot(key, SnapshotKind::View)
    }

    /// Makes a snapshot for one mount: a view, or a writable one that is forgotten with it unless something is written.
    ///
    /// # Errors
    /// `AlreadyExists` where the key is taken.
    pub fn ephemeral_snapshot(&self, key: &str, read_only: bool) -> Result<Snapshot> {
        let kind = if read_only { SnapshotKind::View } else { SnapshotKind::Active };
        self.hold(self.described(key, kind, BTreeMap::from([(EPHEMERAL.to_owned(), "yes".to_owned())])))
    }

    fn make_snapshot(&self, key: &str, kind: SnapshotKind) -> Result<Snapshot> {
        self.hold(self.described(key, kind, BTreeMap::new()))
    }

    fn hold(&self, new: NewSnapshot) -> Result<Snapshot> {
        let (lock, record) = self.store.create_locked_snapshot(new)?;
        Ok(Snapshot { store: self.store.clone(), record, _lock: lock })
    }

    fn described(&self, key: &str, kind: SnapshotKind, labels: BTreeMap<String, String>) -> NewSnapshot {
        let lowers = self.lowers.iter().map(|(lower, _)| *lower).collect();
        let base = Base::Image { image_id: self.image_id, lowers };
        NewSnapshot { key: key.to_owned(), kind, base, root: self.root.clone(), labels }
    }

    /// Makes a snapshot under `key` on top of the chain without taking the right to mount it.
    ///
    /// # Errors
    /// As [`Store::create_snapshot`].
    pub fn record_snapshot(
        &self,
        key: &str,
        kind: SnapshotKind,
        labels: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord> {
        self.store.create_snapshot(self.described(key, kind, labels))
    }
}

/// A place in a chain that needs a fix-up: the layer it corrects and what is below.
pub(super) struct Step<'a> {
    pub key: FixupKey,
    pub layer: &'a LayerRef,
    stack: &'a [Stacked],
    root: Option<&'a RootMeta>,
}

/// Opens a published fix-up for its place in a stack; `None` where it has nothing to correct.
fn stacked(fixup: &FixupRef, open: &dyn Fn(&Path) -> Result<Dir>) -> Result<Option<Stacked>> {
    let Some(path) = fixup.tree_path() else { return Ok(None) };
    Ok(Some(Stacked { lower: Lower::Fixup(fixup.id()), path: path.to_path_buf(), dir: open(path)? }))
}

/// Stacks layers, bottom first, asking `fixup` for what stands above one that needs it, if there is anything to correct.
///
/// Returns the directories, bottom first, what a root entry said, and the chain's identity.
fn stack_up(
    layers: &[LayerRef],
    options: &TreeOptions,
    open: &dyn Fn(&Path) -> Result<Dir>,
    fixup: &mut dyn FnMut(&Step<'_>) -> Result<Option<Stacked>>,
) -> Result<(Vec<Stacked>, Option<RootMeta>, ChainId)> {
    let diff_ids: Vec<_> = layers.iter().map(LayerRef::diff_id).collect();
    let chain_ids = ChainId::of_layers(&diff_ids);
    let mut stack: Vec<Stacked> = Vec::new();
    let mut root = None;
    for (layer, chain_id) in layers.iter().zip(&chain_ids) {
        let facts = layer.facts();
        if facts.root_opaque {
            // Overlayfs ignores the mark on a layer's root (W8): what is below is left out.
            stack.clear();
        }
        if options.root_entry == RootEntry::Apply && facts.root_entry.is_some() {
            root = facts.root_entry.clone();
        }
        let mut above = None;
        if needs_fixup(facts, stack.is_empty()) || root.is_some() {
            let key = FixupKey { chain_id: *chain_id, options: *options };
            above = fixup(&Step { key, layer, stack: &stack, root: root.as_ref() })?;
        }
        let lower = Lower::Layer(layer.id());
        // One directory may not be stacked twice; the topmost occurrence says all that the lower one does.
        stack.retain(|s| s.lower != lower);
        let path = layer.tree_path().to_path_buf();
        stack.push(Stacked { lower, dir: open(&path)?, path });
        stack.extend(above);
    }
    Ok((stack, root, chain_ids.last().copied().unwrap_or_else(ChainId::empty)))
}

/// Walks a chain whose layers are all there, handing every place that needs a fix-up to `look`.
pub(super) fn each_fixup(
    layers: &[LayerRef],
    options: &TreeOptions,
    look: &mut dyn FnMut(&Step<'_>) -> Result<FixupRef>,
) -> Result<()> {
    stack_up(layers, options, &Dir::open, &mut |step| stacked(&look(step)?, &Dir::open)).map(drop)
}

/// Computes a fix-up into a staging; returns how much there was to correct, too.
pub(super) fn compute(
    store: &Store,
    step: &Step<'_>,
    options: &TreeOptions,
    limits: &Limits,
    open: &dyn Fn(&Path) -> Result<Dir>,
    events: Events<'_>,
) -> Result<(Staging, u64)> {
    let flavour = store.flavour();
    let staging = store.stage()?;
    let layers = step.stack.iter().rev().map(|s| Layer { dir: s.dir.clone(), marks: Some(marks(flavour)) });
    let view = ChainView::new(layers.collect());
    let place = Place { tree: open(step.layer.tree_path())?, meta: open(step.layer.meta_path())? };
    let target = staging.tree().clone().with_resolver(place.tree.resolver());
    let name = step.layer.diff_id().to_string();
    let mut warn = |warning: Warning| events(Event::Warning { layer: Some(name.clone()), warning });
    let mut facts = fix(&place, view, flavour, options, limits, &target, &mut warn).map_err(|e| e.with_layer(&name))?;
    if let Some(root) = step.root {
        let keep = |xattr: &[u8]| xattr.starts_with(flavour.xattr.prefix().as_bytes());
        target.apply_meta_self(&root_node(root), flavour.ownership == crate::policy::Ownership::Keep, &keep)?;
        facts.nodes += 1;
    }
    Ok((staging, facts.nodes))
}

/// Completes a plan for the whiteouts that the store's layers have.
fn grounded(store: &Store, plan: MountPlan) -> MountPlan {
    match store.flavour().whiteouts {
        WhiteoutForm::Xattr => plan.on_empty_ground(&store.empty_dirs()),
        WhiteoutForm::CharDevice => plan,
    }
}

/// Returns the plan of a snapshot's mount, the same at any time, for another program to carry out (P6).
///
/// It takes no right to the directories: one upper directory mounted twice is damaged, and keeping to one mount is up to
/// the caller.
///
/// # Errors
/// `NotFound`; `FailedPrecondition` for a committed snapshot, which is there to be stood on.
pub fn snapshot_plan(store: &Store, key: &str) -> Result<MountPlan> {
    let record = store.ready_snapshot(key)?;
    if record.kind == SnapshotKind::Committed {
        let key = crate::error::escape(key.as_bytes());
        return Err(Error::new(ErrorKind::FailedPrecondition, format!("snapshot \"{key}\" is committed"))
            .with_hint("make a view of it"));
    }
    Ok(plan_of(store, &record))
}

fn plan_of(store: &Store, record: &SnapshotRecord) -> MountPlan {
    let flavour = store.flavour().xattr;
    let empty = store.empty_dirs();
    let lowers = record.lower_paths(store);
    let plan = match record.kind {
        SnapshotKind::Active => {
            let upper = Upper { upper: record.upper_path(store), work: record.work_path(store) };
            MountPlan::writable(lowers, upper, flavour, &empty)
        }
        _ => MountPlan::view(lowers, flavour, &empty),
    };
    grounded(store, plan)
}

impl Snapshot {
    /// Takes the right to mount a kept snapshot.
    ///
    /// # Errors
    /// `NotFound`; `Busy` where another process holds it.
    pub fn open(store: &Store, key: &str) -> Result<Snapshot> {
        // Whoever holds it has it mounted, perhaps for days.
        let (lock, record) = store.lock_snapshot(key, &crate::store::patience()).map_err(|e| match e.kind() {
            ErrorKind::Cancelled => Error::new(
                ErrorKind::Busy,
                format!("snapshot \"{}\" is in use by another process", crate::error::escape(key.as_bytes())),
            ),
            _ => e,
        })?;
        Ok(Snapshot { store: store.clone(), record, _lock: lock })
    }

    /// Returns what the store knows about it.
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }

    /// Returns the mount point in the store that belongs to it.
    pub fn mount_path(&self) -> PathBuf {
        self.record.mount_path(&self.store)
    }

    /// Returns the plan of its mount: writable for an active one, a view otherwise.
    pub fn plan(&self) -> MountPlan {
        plan_of(&self.store, &self.record)
    }

    /// Mounts it at `target`.
    ///
    /// # Errors
    /// As [`MountPlan::attach`].
    pub fn mount(&self, target: &Path) -> Result<Attached> {
        self.plan().attach(target)
    }
}

/// Stacks the layers of an image that the store has; layers that are gone are an error.
pub(super) fn of_record(store: &Store, pin: Pin, record: &ImageRecord, events: Events<'_>) -> Result<Chain> {
    let options = LayerOptions::from(&record.image.options);
    let mut layers = Vec::new();
    for layer in &record.image.layers {
        let found = store.layer(&layer.diff_id, &options)?.ok_or_else(|| {
            Error::new(crate::error::ErrorKind::NotFound, "layer is not in the store any more")
                .with_layer(layer.diff_id)
                .with_hint("pull the image again")
        })?;
        layers.push(found);
    }
    Chain::build(store, pin, record.image.image_id, layers, &record.image.options, &unlimited(), None, events)
}

/// Limits for layers that are in the store: whoever pulled them had some, and they are within them.
pub(super) fn unlimited() -> Limits {
    Limits { max_layer_memory: u64::MAX, max_depth: usize::MAX, ..Limits::default() }
}
