//! Images into a directory: layers are staged side by side and folded onto each other by renames.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::apply::fold::{FoldOptions, fold};
use crate::apply::{RootMeta, Warning};
use crate::digest::ChainId;
use crate::error::{Error, ErrorKind, Result};
use crate::fail::fail_point;
use crate::image::{self, Collected, Image, Reference, Source};
use crate::merge::{ChainView, Found, Layer, ViewDir};
use crate::policy::{Ownership, RootEntry};
use crate::root::{Dir, Kind, LazyDir, LinkOutcome, NodeMeta, ReadLink};
use crate::store::{Flavour, Store};
use crate::stream::Expected;

use super::archive::{check, expected_of, read_stream, warn_unused};
use super::chain::{fix, marks, needs_fixup, root_node};
use super::layer::{Bench, JOURNAL, Laid, Place, STASH, warn_mismatch};
use super::pull::stored;
use super::room::Need;
use super::target::Target;
use super::{Event, Events, Ids, LayerOutcome, Options, flavour_of, resolving, side_by_side};
use crate::sys;

/// Name of the tree in the staging.
const ROOTFS: &[u8] = b"rootfs";

/// A finished unpack.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// The image's identities.
    pub ids: Ids,
    /// Its layers, bottom first.
    pub layers: Vec<LayerOutcome>,
}

/// Flattens the image that `reference` names into `dir`, which must be absent or empty and then holds the whole tree or nothing.
///
/// `store` is looked at only for references to images in a store.
///
/// # Errors
/// `AlreadyExists` where `dir` is not empty; else as [`super::pull`].
pub fn unpack(
    reference: &Reference,
    dir: &Path,
    store: Option<&Store>,
    options: &Options,
    events: Events<'_>,
) -> Result<Unpacked> {
    if let Reference::Stored(name) = reference {
        let store = store.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "there is no store in which this image could be").with_image(reference)
        })?;
        return from_store(name, dir, store, options, events).map_err(|e| e.with_image(reference));
    }
    let source = image::open(reference, &options.open_options())?;
    let work = || -> Result<Unpacked> {
        let target = Target::prepare(dir)?;
        let flavour = flavour_of(sys::probe_store_at(target.staging())?, dir)?;
        let flat = Flat { bench: Bench::new(options, flavour, events), target };
        match source {
            Source::Image(image) => flat.image(image),
            Source::Stream(stream) => flat.stream(stream),
        }
    };
    work().map_err(|e| e.with_image(reference))
}

struct Flat<'a> {
    bench: Bench<'a>,
    target: Target,
}

impl Flat<'_> {
    fn image(self, mut image: Image) -> Result<Unpacked> {
        for layer in &image.layers {
            layer.check_unpackable()?;
        }
        (self.bench.events)(Event::Image { layers: image.layers.iter().map(|l| (l.digest, l.size)).collect() });
        Need::of(image.layers.iter().map(|l| l.size)).check(self.target.staging(), self.target.path())?;
        let mut order: Vec<usize> = (0..image.layers.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(image.layers[*at].size.unwrap_or(u64::MAX)));
        let laid: Mutex<HashMap<usize, (Place, Laid)>> = Mutex::new(HashMap::new());
        let failed = Mutex::new(None);
        side_by_side(&self.bench, &order, &failed, &|at| {
            self.bench.options.cancel.check()?;
            let layer = &image.layers[*at];
            let single = layer.diff_id.is_none();
            let expected =
                Expected { digest: layer.digest, size: if single { None } else { layer.size }, diff_id: layer.diff_id };
            let place = self.place(*at)?;
            let blob = image.open_layer(*at)?;
            let done = self.bench.lay(*at, blob, expected, &place)?;
            fail_point("flat.laid")?;
            warn_mismatch(&layer.media_type, &done.report, self.bench.events);
            laid.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(*at, (place, done));
            Ok(())
        })?;
        if let Some(e) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(e);
        }
        let mut laid = laid.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut layers = Vec::new();
        for at in 0..image.layers.len() {
            layers.push(laid.remove(&at).ok_or_else(|| Error::new(ErrorKind::Cancelled, "cancelled"))?);
        }
        if let [(_, only)] = layers.as_slice()
            && image.image_id.is_none()
        {
            image.settle_layer(only.report.diff_id)?;
        }
        self.conclude(&image, layers)
    }

    fn stream(self, stream: crate::image::ArchiveStream) -> Result<Unpacked> {
        let collected = read_stream(&self.bench, stream, &|at| self.place(at), &Place::clone)?;
        warn_unused(&collected, self.bench.events);
        let expected: Vec<Expected> = (0..collected.image.layers.len()).map(|at| expected_of(&collected, at)).collect();
        let Collected { image, layers: wanted, tokens } = collected;
        let mut tokens: Vec<Option<_>> = tokens.into_iter().map(|(_, t)| Some(t)).collect();
        let mut done: HashMap<usize, usize> = HashMap::new();
        let mut layers: Vec<(Place, Laid)> = Vec::new();
        for (at, (token, expected)) in wanted.iter().zip(&expected).enumerate() {
            match tokens.get_mut(*token).and_then(Option::take) {
                Some(passed) => {
                    let (place, laid) = passed.judged(expected)?;
                    check(&laid.report, expected)?;
                    done.insert(*token, at);
                    layers.push((place, laid));
                }
                None => {
                    // Folding takes a tree apart, so a layer that stands twice needs a second one.
                    let first = done
                        .get(token)
                        .and_then(|first| layers.get(*first))
                        .ok_or_else(|| Error::new(ErrorKind::Other, "layer of the stream was used up"))?;
                    let copy = self.copy_place(&first.0, wanted.len() + at)?;
                    let laid = Laid { facts: first.1.facts.clone(), report: first.1.report.clone(), seconds: 0.0 };
                    layers.push((copy, laid));
                }
            }
        }
        self.conclude(&image, layers)
    }

    /// Makes room for one layer in the staging.
    fn place(&self, number: usize) -> Result<Place> {
        let meta = self.target.staging().new_dir(number.to_string().as_bytes(), 0o700)?;
        let tree = meta.new_dir(b"tree", 0o755)?;
        Ok(Place { tree, meta }.resolving(self.bench.options.resolver))
    }

    fn copy_place(&self, first: &Place, number: usize) -> Result<Place> {
        let place = self.place(usize::MAX - number)?;
        let copy =
            |from: &Dir, to: &Dir| copy_view(&ChainView::new(vec![Layer { dir: from.clone(), marks: None }]), to, true);
        copy(&first.tree, &place.tree)?;
        if let Some(stash) = first.stash()? {
            copy(&stash, &place.meta.new_dir(STASH, 0o700)?)?;
        }
        let mut journal = File::from(place.meta.new_file(JOURNAL)?);
        std::io::copy(&mut first.journal()?, &mut journal).map_err(|e| Error::io("copy the journal", e))?;
        Ok(place)
    }

    fn conclude(self, image: &Image, layers: Vec<(Place, Laid)>) -> Result<Unpacked> {
        let image_id =
            image.image_id.ok_or_else(|| Error::new(ErrorKind::Other, "the image has no id after its unpack"))?;
        let diff_ids: Vec<_> = layers.iter().map(|(_, laid)| laid.report.diff_id).collect();
        let chains = ChainId::of_layers(&diff_ids);
        let mut outcomes = Vec::new();
        for (at, ((_, laid), chain_id)) in layers.iter().zip(&chains).enumerate() {
            let outcome = LayerOutcome {
                digest: laid.report.digest,
                diff_id: laid.report.diff_id,
                chain_id: *chain_id,
                compressed_bytes: laid.report.compressed_bytes,
                uncompressed_bytes: laid.report.uncompressed_bytes,
                entries: laid.facts.entries,
                reused: false,
                seconds: laid.seconds,
            };
            (self.bench.events)(Event::LayerDone { index: at, outcome: outcome.clone() });
            outcomes.push(outcome);
        }
        fail_point("flat.before-fold")?;
        let root = resolving(self.target.staging().new_dir(ROOTFS, 0o755)?, self.bench.options.resolver);
        crate::apply::finish_root(&root, self.bench.flavour.ownership)?;
        let mut root_meta: Option<RootMeta> = None;
        for (bottom, (place, laid)) in layers.iter().enumerate().map(|(n, l)| (n == 0, l)) {
            self.bench.options.cancel.check()?;
            self.fold_one(&root, place, laid, bottom).map_err(|e| e.with_layer(laid.report.diff_id))?;
            if self.bench.options.tree.root_entry == RootEntry::Apply && laid.facts.root_entry.is_some() {
                root_meta = laid.facts.root_entry.clone();
            }
        }
        if let Some(meta) = root_meta {
            root.apply_meta_self(&root_node(&meta), self.bench.flavour.ownership == Ownership::Keep, &|_| false)?;
        }
        self.target.publish(ROOTFS, &root, self.bench.options.durable)?;
        Ok(Unpacked {
            ids: Ids { image_id, chain_id: chains.last().copied().unwrap_or_else(ChainId::empty) },
            layers: outcomes,
        })
    }

    fn fold_one(&self, root: &Dir, place: &Place, laid: &Laid, bottom: bool) -> Result<()> {
        let flavour = self.bench.flavour;
        let facts = &laid.facts;
        let options = |has_marks, root_opaque| FoldOptions {
            flavour: flavour.xattr,
            form: flavour.whiteouts,
            ownership: flavour.ownership,
            has_marks,
            root_opaque,
        };
        let fresh = bottom || facts.root_opaque;
        let mut fixup = None;
        if needs_fixup(facts, fresh) {
            let target = place.meta.new_dir(b"fix", 0o755)?;
            let lower = if fresh { Vec::new() } else { vec![Layer { dir: root.clone(), marks: None }] };
            let name = laid.report.diff_id.to_string();
            let mut warn = |warning: Warning| {
                (self.bench.events)(Event::Warning { layer: Some(name.clone()), warning });
            };
            let (tree, limits) = (&self.bench.options.tree, &self.bench.options.limits);
            let made = fix(place, ChainView::new(lower), flavour, tree, limits, &target, &mut warn)?;
            fixup = (made.nodes > 0).then_some((target, made));
        }
        fold(root, &place.tree, &options(facts.whiteouts + facts.opaques > 0, facts.root_opaque))?;
        if let Some((dir, made)) = fixup {
            fold(root, &dir, &options(made.whiteouts > 0, false))?;
        }
        Ok(())
    }
}

/// Flattens an image whose blobs are gone but whose layers the store has: the merged view is copied.
fn from_store(name: &str, dir: &Path, store: &Store, options: &Options, events: Events<'_>) -> Result<Unpacked> {
    let pulled = stored(name, store, events)?;
    let target = Target::prepare(dir)?;
    let flavour: Flavour = store.flavour();
    let mut layers = Vec::new();
    for path in pulled.chain.lowerdirs() {
        layers.push(Layer { dir: resolving(Dir::open(&path)?, options.resolver), marks: Some(marks(flavour)) });
    }
    let root = resolving(target.staging().new_dir(ROOTFS, 0o755)?, options.resolver);
    let view = ChainView::new(layers);
    copy_view(&view, &root, flavour.ownership == Ownership::Keep)?;
    options.cancel.check()?;
    if view.root().is_none() {
        crate::apply::finish_root(&root, flavour.ownership)?;
    }
    target.publish(ROOTFS, &root, options.durable)?;
    Ok(Unpacked {
        ids: Ids { image_id: pulled.record.image.image_id, chain_id: pulled.chain.chain_id() },
        layers: pulled.layers,
    })
}

/// Copies everything that a view shows into an empty directory.
fn copy_view(view: &ChainView, to: &Dir, owners: bool) -> Result<()> {
    let Some(root) = view.root() else { return Ok(()) };
    let marked = view.layers().first().and_then(|l| l.marks);
    let mut copier = Copier { links: HashMap::new(), top: to.clone(), owners, marked };
    copier.dir(&root, &LazyDir::new(to.clone(), &Arc::default()), &mut Vec::new())
}

struct Copier {
    /// Inodes with several names: where the first copy is.
    links: HashMap<(u64, u64), (Vec<u8>, Vec<u8>)>,
    top: Dir,
    owners: bool,
    marked: Option<crate::merge::Marks>,
}

impl Copier {
    fn dir(&mut self, from: &ViewDir, target: &LazyDir, path: &mut Vec<u8>) -> Result<()> {
        for name in from.list()? {
            let to = target.open()?;
            match from.lookup(&name)? {
                None => {}
                Some(Found::Dir(child)) => {
                    to.make_dir(&name, 0o700)?;
                    let length = path.len();
                    if length > 0 {
                        path.push(b'/');
                    }
                    path.extend_from_slice(&name);
                    drop(to);
                    self.dir(&child, &target.child(&name), path)?;
                    path.truncate(length);
                }
                Some(Found::Other { dir, stat, .. }) => {
                    if stat.nlink > 1 {
                        if let Some((parent, first)) = self.links.get(&stat.id) {
                            let source = self.top.open_below_or_self(parent)?;
                            if to.link(&name, &source, first)? == LinkOutcome::Made {
                                continue;
                            }
                        }
                        self.links.insert(stat.id, (path.clone(), name.clone()));
                    }
                    self.leaf(&dir.open()?, &to, &name, &stat)?;
                }
            }
        }
        target.open()?.apply_meta_self(&from.meta()?, self.owners, &|_| false)
    }

    fn leaf(&self, from: &Dir, to: &Dir, name: &[u8], stat: &crate::root::Stat) -> Result<()> {
        match stat.kind {
            Kind::File => {
                let source = from.open_file(name)?;
                let fd = to.make_file(name, 0o600)?;
                if let Some(fd) = fd {
                    crate::sys::reflink_or_copy(&source, &fd)?;
                }
            }
            Kind::Symlink => {
                if let ReadLink::Target(target) = from.read_link(name)? {
                    to.make_symlink(name, &target)?;
                }
            }
            kind => {
                to.make_node(name, kind, 0o600, stat.rdev)?;
            }
        }
        let mut xattrs = from.xattrs(name)?;
        if let Some(marks) = self.marked {
            xattrs.retain(|(n, _)| !marks.is_mark(n));
        }
        to.apply_meta(name, &NodeMeta { meta: stat.meta, xattrs }, self.owners, stat.kind == Kind::Symlink)
    }
}
