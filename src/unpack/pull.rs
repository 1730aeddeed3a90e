//! Images into the store.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use crate::digest::{ChainId, DiffId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{self, Image, Reference, Source};
use crate::store::{
    self, Claim, ImageLayer, ImageRecord, LayerLock, LayerOptions, LayerRef, NewImage, Pin, SealedLayer, Staging, Store,
};
use crate::stream::Expected;

use super::chain::{Chain, of_record};
use super::layer::{Bench, Laid, Place, warn_mismatch};
use super::room::Need;
use super::{Event, Events, LayerOutcome, Options};

/// Sealed but unpublished bytes that make a group worth publishing.
const GROUP_BYTES: u64 = 1 << 30;

/// A pulled image.
#[derive(Debug)]
pub struct Pulled {
    /// What the store recorded.
    pub record: ImageRecord,
    /// Its layers, stacked and kept from being collected.
    pub chain: Chain,
    /// What became of each layer, bottom first.
    pub layers: Vec<LayerOutcome>,
}

/// Brings the image that `reference` names into the store; layers that are there are not read again.
///
/// # Errors
/// `NotFound`, `Integrity`, `Malformed`, `Limit`, `NoSpace`, `Cancelled` … as the kinds say: the image is then not in the
/// store; layers of it that were finished and verified may be.
pub fn pull(reference: &Reference, store: &Store, options: &Options, events: Events<'_>) -> Result<Pulled> {
    if let Reference::Stored(name) = reference {
        return stored(name, store, events);
    }
    let named = |e: Error| e.with_image(reference);
    let source = image::open(reference, &options.open_options())?;
    let pull = Pull {
        bench: Bench { keeps: true, ..Bench::new(options, store.flavour(), events) },
        store,
        pin: store.pin(&[])?,
        layer_options: LayerOptions::from(&options.tree),
        source: source_of(reference),
    };
    match source {
        Source::Image(image) => pull.image(image).map_err(named),
        Source::Stream(stream) => super::archive::pull_stream(pull, stream).map_err(named),
    }
}

/// Returns an image that the store has, by name or id, as if it had just been pulled.
///
/// # Errors
/// `NotFound` where there is none, listing what is there.
pub fn stored(name: &str, store: &Store, events: Events<'_>) -> Result<Pulled> {
    let record = store.find_image(name)?;
    let pin = store.pin(&record.image.needs())?;
    let chain = of_record(store, pin, &record, events)?;
    chain.settle()?;
    let layers = outcomes(chain.layers(), &HashMap::new());
    Ok(Pulled { record, chain, layers })
}

pub(super) struct Pull<'a> {
    pub bench: Bench<'a>,
    pub store: &'a Store,
    pub pin: Pin,
    pub layer_options: LayerOptions,
    /// Where a repair finds the image again.
    pub source: Option<String>,
}

fn source_of(reference: &Reference) -> Option<String> {
    let absolute = (!reference.is_stdin()).then(|| reference.absolute().ok()).flatten()?;
    let text = absolute.to_string();
    // A path that text cannot hold is found again by nobody.
    text.parse().is_ok_and(|read: Reference| read == absolute).then_some(text)
}

/// What was unpacked by this run.
type Seconds = HashMap<DiffId, f64>;

fn outcomes(layers: &[LayerRef], seconds: &Seconds) -> Vec<LayerOutcome> {
    let diff_ids: Vec<DiffId> = layers.iter().map(LayerRef::diff_id).collect();
    let chains = ChainId::of_layers(&diff_ids);
    layers
        .iter()
        .zip(chains)
        .map(|(layer, chain_id)| {
            let source = &layer.record().source;
            LayerOutcome {
                digest: source.digest,
                diff_id: layer.diff_id(),
                chain_id,
                compressed_bytes: source.compressed_bytes,
                uncompressed_bytes: source.uncompressed_bytes,
                entries: layer.facts().entries,
                reused: !seconds.contains_key(&layer.diff_id()),
                seconds: seconds.get(&layer.diff_id()).copied().unwrap_or(0.0),
            }
        })
        .collect()
}

/// Returns where a layer goes that is going to be published.
pub(super) fn place_of(staging: &Staging) -> Place {
    Place { tree: staging.tree().clone(), meta: staging.meta().clone() }
}

/// Layers that are sealed but not published, with the right to publish them.
#[derive(Default)]
struct Sealed {
    layers: Vec<SealedLayer>,
    locks: Vec<LayerLock>,
    bytes: u64,
}

impl Pull<'_> {
    fn image(self, mut image: Image) -> Result<Pulled> {
        for layer in &image.layers {
            layer.check_unpackable()?;
        }
        (self.bench.events)(Event::Image { layers: image.layers.iter().map(|l| (l.digest, l.size)).collect() });
        let mut seconds = Seconds::new();
        if let [layer] = image.layers.as_slice()
            && layer.diff_id.is_none()
        {
            let (diff_id, took) = self.single(&image)?;
            seconds.extend(took.map(|t| (diff_id, t)));
            image.settle_layer(diff_id)?;
        } else {
            seconds = self.all(&image)?;
        }
        self.conclude(&image, seconds)
    }

    pub(super) fn stage_one(&self, index: usize, image: &Image, expected: &Expected) -> Result<(SealedLayer, f64)> {
        let staging = self.store.stage()?;
        let blob = image.open_layer(index)?;
        let place = place_of(&staging);
        let Laid { facts, report, seconds } = self.bench.lay(index, blob, expected.clone(), &place)?;
        warn_mismatch(&image.layers[index].media_type, &report, self.bench.events);
        Ok((staging.seal(self.layer_options, facts, report, expected)?, seconds))
    }

    /// A layer whose diff_id nobody promised: unpacked first, then published under what it turned out to be.
    fn single(&self, image: &Image) -> Result<(DiffId, Option<f64>)> {
        let expected = Expected { digest: None, size: None, diff_id: None };
        let (sealed, seconds) = self.stage_one(0, image, &expected)?;
        let diff_id = sealed.diff_id();
        let cancelled = || self.bench.options.cancel.is_cancelled();
        let took = match self.store.claim_layer(&self.pin, &diff_id, &self.layer_options, &cancelled)? {
            Claim::Present(_) | Claim::Held => None,
            Claim::Vacant(_lock) => {
                self.store.publish(&self.pin, vec![sealed])?;
                Some(seconds)
            }
        };
        Ok((diff_id, took))
    }

    /// All layers whose diff_ids are known, several at once, the biggest first.
    fn all(&self, image: &Image) -> Result<Seconds> {
        let mut jobs: Vec<(usize, DiffId)> = Vec::new();
        let mut seen = HashSet::new();
        for (index, layer) in image.layers.iter().enumerate() {
            let diff_id = layer
                .diff_id
                .ok_or_else(|| Error::new(ErrorKind::Malformed, "the image has a layer without a diff_id"))?;
            if seen.insert(diff_id) {
                jobs.push((index, diff_id));
            }
        }
        jobs.sort_by_key(|(index, _)| std::cmp::Reverse(image.layers[*index].size.unwrap_or(u64::MAX)));
        self.check_room(&jobs, image)?;
        let seconds = Mutex::new(Seconds::new());
        let held = Mutex::new(Vec::new());
        let sealed = Mutex::new(Sealed::default());
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let work = |job: &(usize, DiffId), wait: bool| -> Result<()> {
            self.bench.options.cancel.check()?;
            let (index, diff_id) = *job;
            let claim = if wait {
                let cancelled = || self.bench.options.cancel.is_cancelled();
                self.store.claim_layer(&self.pin, &diff_id, &self.layer_options, &cancelled)?
            } else {
                self.store.try_claim_layer(&self.pin, &diff_id, &self.layer_options)?
            };
            let lock = match claim {
                Claim::Present(_) => return Ok(()),
                Claim::Held => {
                    lock_of(&held).push(*job);
                    return Ok(());
                }
                Claim::Vacant(lock) => lock,
            };
            let layer = &image.layers[index];
            let expected = Expected { digest: layer.digest, size: layer.size, diff_id: Some(diff_id) };
            let (layer, took) = self.stage_one(index, image, &expected)?;
            lock_of(&seconds).insert(diff_id, took);
            let group = {
                let mut sealed = lock_of(&sealed);
                sealed.bytes += layer.facts().content_bytes;
                sealed.layers.push(layer);
                sealed.locks.push(lock);
                (wait || sealed.bytes >= GROUP_BYTES).then(|| std::mem::take(&mut *sealed))
            };
            match group {
                Some(group) => self.publish(group),
                None => Ok(()),
            }
        };
        self.side_by_side(&jobs, &failed, &|job| work(job, false))?;
        // Finished layers stay, whatever became of the others.
        let rest = std::mem::take(&mut *lock_of(&sealed));
        let published = self.publish(rest);
        if let Some(e) = lock_of(&failed).take() {
            return Err(e);
        }
        published?;
        // Holding nothing now, it is safe to wait for other processes.
        for job in std::mem::take(&mut *lock_of(&held)) {
            work(&job, true)?;
        }
        Ok(std::mem::take(&mut *lock_of(&seconds)))
    }

    /// Refuses to begin what cannot end for want of space.
    fn check_room(&self, jobs: &[(usize, DiffId)], image: &Image) -> Result<()> {
        let root = std::fs::File::open(self.store.root())
            .map_err(|e| Error::io(format!("open {}", self.store.root().display()), e))?;
        let size = |(index, _): &(usize, DiffId)| image.layers[*index].size;
        if Need::of(jobs.iter().map(size)).check(&root, self.store.root()).is_ok() {
            return Ok(());
        }
        // What is there already, or is being unpacked by somebody else, needs nothing more.
        let mut missing = Vec::new();
        for job in jobs {
            if let Claim::Vacant(_) = self.store.try_claim_layer(&self.pin, &job.1, &self.layer_options)? {
                missing.push(size(job));
            }
        }
        Need::of(missing).check(&root, self.store.root())
    }

    /// Runs `work` on every job, at most `-j` at a time, in order; the first error cancels what has not begun.
    fn side_by_side<T: Sync>(
        &self,
        jobs: &[T],
        failed: &Mutex<Option<Error>>,
        work: &(dyn Fn(&T) -> Result<()> + Sync),
    ) -> Result<()> {
        super::side_by_side(&self.bench, jobs, failed, work)
    }

    fn publish(&self, group: Sealed) -> Result<()> {
        if !group.layers.is_empty() {
            self.store.publish(&self.pin, group.layers)?;
        }
        // Only now may others unpack these layers, and they will find them.
        drop(group.locks);
        Ok(())
    }

    /// Stacks the layers, which are all in the store now, and records the image.
    pub(super) fn conclude(self, image: &Image, seconds: Seconds) -> Result<Pulled> {
        let Pull { bench, store, pin, layer_options, source } = self;
        let image_id =
            image.image_id.ok_or_else(|| Error::new(ErrorKind::Other, "the image has no id after its pull"))?;
        let mut layers = Vec::new();
        let mut described = Vec::new();
        for layer in &image.layers {
            let diff_id = layer.diff_id.ok_or_else(|| Error::new(ErrorKind::Other, "layer without a diff_id"))?;
            let found = store
                .layer(&diff_id, &layer_options)?
                .ok_or_else(|| Error::new(ErrorKind::Other, "layer vanished during the pull").with_layer(diff_id))?;
            let source = &found.record().source;
            described.push(ImageLayer {
                diff_id,
                digest: layer.digest.unwrap_or(source.digest),
                size: layer.size.unwrap_or(source.compressed_bytes),
                media_type: layer.media_type.clone(),
            });
            layers.push(found);
        }
        let outcomes = outcomes(&layers, &seconds);
        for (index, outcome) in outcomes.iter().enumerate() {
            (bench.events)(Event::LayerDone { index, outcome: outcome.clone() });
        }
        let Options { tree, limits, resolver, .. } = bench.options;
        let chain = Chain::build(store, pin, image_id, layers, tree, limits, *resolver, bench.events)?;
        let record = store.put_image(NewImage {
            image: store::Image {
                image_id,
                reference: image.reference.clone(),
                source,
                manifest_digest: image.manifest_digest,
                platform: store::Platform {
                    os: image.platform.os.clone(),
                    architecture: image.platform.architecture.clone(),
                    variant: image.platform.variant.clone(),
                },
                layers: described,
                chain_id: chain.chain_id(),
                options: bench.options.tree,
            },
            name: Some(image.names.first().map_or(image.reference.as_str(), String::as_str)),
            config: &image.config_raw,
            manifest: image.manifest_raw.as_deref(),
        })?;
        Ok(Pulled { record, chain, layers: outcomes })
    }
}

fn lock_of<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
