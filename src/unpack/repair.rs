//! Whether what an image stands on is undamaged, and the replacement of what is not.

use std::collections::{HashMap, HashSet};

use crate::cancel::CancelToken;
use crate::digest::{ChainId, DiffId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{self, Image, Reference, Source};
use crate::mount::OverlayUse;
use crate::policy::Limits;
use crate::root::Dir;
use crate::store::{Damage, Depth, FixupRef, ImageRecord, LayerOptions, LayerRef, Pin, Store, compare_trees};
use crate::stream::Expected;

use super::chain::{compute, each_fixup, unlimited};
use super::layer::Bench;
use super::pull::Pull;
use super::{Event, Events, Options};

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Layers that were unpacked again, in the image's order.
    pub layers: Vec<DiffId>,
    /// Fix-ups that were computed again, in the image's order.
    pub fixups: Vec<ChainId>,
    /// Mounts that go on showing what was damaged until they are made again; of all mount namespaces that can be seen.
    pub remount: Vec<OverlayUse>,
}

/// Compares the fix-ups of an image with what its layers, which must be undamaged, make of them.
///
/// `found` hears of every difference, then of the fix-up with `None`.
///
/// # Errors
/// `NotFound` where a layer is gone; `Cancelled`; errors of the disk.
pub fn verify_fixups(
    store: &Store,
    record: &ImageRecord,
    depth: Depth,
    cancel: &CancelToken,
    found: &mut dyn FnMut(&FixupRef, Option<Damage>),
) -> Result<()> {
    let layers = layers_of(store, record)?;
    let _pin = store.pin(&record.image.needs())?;
    let limits = unlimited();
    each_fixup(&layers, &record.image.options, &mut |step| {
        let there = store.fixup(&step.key)?.ok_or_else(gone)?;
        let (staging, _) = compute(store, step, &record.image.options, &limits, &Dir::open, &|_| {})?;
        if let Some(tree) = there.tree_path() {
            let mut report = |damage| found(&there, Some(damage));
            compare_trees(staging.tree(), &Dir::open(tree)?, depth, cancel, &mut report)?;
        }
        found(&there, None);
        Ok(there)
    })
    .or_else(|e| if e.kind() == ErrorKind::NotFound && e.message() == GONE { Ok(()) } else { Err(e) })
}

/// A fix-up that is not there is no damage: the next command that needs it makes it.
const GONE: &str = "a fix-up is not in the store";

fn gone() -> Error {
    Error::new(ErrorKind::NotFound, GONE)
}

/// Unpacks again what is damaged or missing of an image of the store, from `from` or else from where it was pulled.
///
/// Every file is read. Directories that mounts show are exchanged, never changed ([`Store::replace_layer`]).
///
/// # Errors
/// `NotFound` where there is no such image or the source does not have its layers any more; then nothing was changed. Whatever reading
/// the source may say; layers that were repaired by then stay so.
pub fn repair(
    name: &str,
    from: Option<&Reference>,
    store: &Store,
    options: &Options,
    events: Events<'_>,
) -> Result<Repaired> {
    let record = store.find_image(name)?;
    let pin = store.pin(&record.image.needs())?;
    let options = Options { tree: record.image.options, ..options.clone() };
    let layer_options = LayerOptions::from(&options.tree);
    let mut out = Repaired::default();
    let mut wanted: Vec<DiffId> = Vec::new();
    let mut seen = HashSet::new();
    for layer in record.image.layers.iter().filter(|layer| seen.insert(layer.diff_id)) {
        if !undamaged(store, &layer.diff_id, &layer_options, &options.cancel)? {
            wanted.push(layer.diff_id);
        }
    }
    if !wanted.is_empty() {
        let source = open_source(&record, from, &options).map_err(|e| e.with_image(name))?;
        let pull = Pull {
            bench: Bench { keeps: true, ..Bench::new(&options, store.flavour(), events) },
            store,
            pin: store.pin(&record.image.needs())?,
            layer_options,
            source: None,
        };
        let places = places(&source, &wanted).map_err(|e| e.with_image(name))?;
        for diff_id in wanted {
            options.cancel.check()?;
            let index = places.get(&diff_id).copied().unwrap_or_default();
            let described = &source.layers[index];
            let expected = Expected { digest: described.digest, size: described.size, diff_id: Some(diff_id) };
            let (sealed, _) = pull.stage_one(index, &source, &expected)?;
            let (_, uses) = store.replace_layer(&pin, sealed)?;
            out.layers.push(diff_id);
            out.remount.extend(uses);
        }
    }
    repair_fixups(store, &pin, &record, &options.cancel, &mut out)?;
    out.remount.sort_by(|a, b| (a.process, &a.target).cmp(&(b.process, &b.target)));
    out.remount.dedup();
    Ok(out)
}

fn undamaged(store: &Store, diff_id: &DiffId, options: &LayerOptions, cancel: &CancelToken) -> Result<bool> {
    let Some(layer) = store.layer(diff_id, options)? else { return Ok(false) };
    let mut damage = 0u64;
    match store.verify_layer(&layer, Depth::Content, cancel, &mut |_| damage += 1) {
        Ok(()) => Ok(damage == 0),
        Err(e) if e.kind() == ErrorKind::Integrity => Ok(false),
        Err(e) => Err(e),
    }
}

fn open_source(record: &ImageRecord, from: Option<&Reference>, options: &Options) -> Result<Image> {
    const HINT: &str = "name a source that has the image with --from";
    let lost = |why: String| Error::new(ErrorKind::NotFound, why).with_hint(HINT);
    let recorded;
    let reference = match (from, &record.image.source) {
        (Some(from), _) => from,
        (None, Some(source)) => {
            recorded = source.parse()?;
            &recorded
        }
        (None, None) => return Err(lost("the image came from standard input: its layers cannot be read again".into())),
    };
    if matches!(reference, Reference::Stored(_)) {
        return Err(lost(format!("{reference} is not a source of images: it is not there, or names one of the store")));
    }
    let opened = image::open(reference, &options.open_options()).map_err(|e| match e.kind() {
        ErrorKind::NotFound if from.is_none() => lost(format!("the source is not there any more: {}", e.message())),
        _ => e,
    })?;
    match opened {
        Source::Image(image) => Ok(image),
        Source::Stream(_) => Err(Error::new(
            ErrorKind::Usage,
            "standard input is read once, from its beginning: a repair takes single layers",
        )
        .with_hint("save the archive to a file, or pull it again after `unply rm` and `unply gc`")),
    }
}

/// Finds the layers that are wanted in an image, which may be another one that shares them.
fn places(source: &Image, wanted: &[DiffId]) -> Result<HashMap<DiffId, usize>> {
    let mut out = HashMap::new();
    for diff_id in wanted {
        let found = source.layers.iter().position(|layer| layer.diff_id == Some(*diff_id));
        // A single layer says what it is only when it was read; its proof then decides.
        let single = (source.layers.len() == 1 && source.layers[0].diff_id.is_none()).then_some(0);
        let Some(index) = found.or(single) else {
            return Err(Error::new(ErrorKind::NotFound, "the source does not have this layer")
                .with_layer(diff_id)
                .with_hint("name a source that has it with --from"));
        };
        source.layers[index].check_unpackable()?;
        out.insert(*diff_id, index);
    }
    Ok(out)
}

fn layers_of(store: &Store, record: &ImageRecord) -> Result<Vec<LayerRef>> {
    let options = LayerOptions::from(&record.image.options);
    let find = |layer: &crate::store::ImageLayer| {
        store.layer(&layer.diff_id, &options)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "layer is not in the store any more").with_layer(layer.diff_id)
        })
    };
    record.image.layers.iter().map(find).collect()
}

fn repair_fixups(
    store: &Store,
    pin: &Pin,
    record: &ImageRecord,
    cancel: &CancelToken,
    out: &mut Repaired,
) -> Result<()> {
    let layers = layers_of(store, record)?;
    let options = &record.image.options;
    let limits: Limits = unlimited();
    each_fixup(&layers, options, &mut |step| {
        let (staging, nodes) = compute(store, step, options, &limits, &Dir::open, &|_: Event| {})?;
        let there = store.fixup(&step.key)?;
        let Some(there) = there else {
            let mut made = store.publish_fixups(pin, vec![(step.key, (nodes > 0).then_some(staging))])?;
            out.fixups.push(step.key.chain_id);
            return made.pop().ok_or_else(gone);
        };
        let Some(tree) = there.tree_path() else { return Ok(there) };
        let mut damage = 0u64;
        let have = Dir::open(tree)?;
        compare_trees(staging.tree(), &have, Depth::Content, cancel, &mut |_| damage += 1)?;
        if damage == 0 {
            return Ok(there);
        }
        let (fixup, uses) = store.replace_fixup(pin, step.key, staging)?;
        out.fixups.push(step.key.chain_id);
        out.remount.extend(uses);
        Ok(fixup)
    })
}
