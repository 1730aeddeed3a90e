//! What each stage of an unpack takes when it runs alone, and what follows: the floor.
//!
//! Owns: which bare loop measures which stage, the arithmetic of floor and efficiency. Refuses to know: the engine, of which
//! nothing runs here, so that it cannot grade itself.
//!
//! The floor is `max(longest single stage of any layer, all stages together / CPUs)`, in processor time: a machine that is
//! busy with something else makes wall times longer, and would make the floor look higher than it is.

use std::io::Read as _;
use std::path::Path;

use super::create::{Counts, Creator, Entries};
use super::decode::{BUFFER, Cost, Stopwatch, ZstdTwin, codec_of, decode, zstd_twin};
use crate::cancel::CancelToken;
use crate::digest::{Algorithm, Hasher};
use crate::error::{Error, Result, from_io};
use crate::image::Image;
use crate::policy::Limits;
use crate::root::Dir;
use crate::stream::Codec;

/// The work on one layer, in the order of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Reading the blob from the page cache.
    Read,
    /// SHA-256 of the blob; none for a layer that is not compressed, whose one digest is both.
    HashBlob,
    /// Decompressing.
    Inflate,
    /// SHA-256 of the archive.
    HashTar,
    /// Making and writing files.
    Create,
}

impl Step {
    /// All of them.
    pub const ALL: [Step; 5] = [Step::Read, Step::HashBlob, Step::Inflate, Step::HashTar, Step::Create];

    /// Returns its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Step::Read => "read",
            Step::HashBlob => "hash_blob",
            Step::Inflate => "inflate",
            Step::HashTar => "hash_tar",
            Step::Create => "create",
        }
    }
}

/// What the stages of one layer take, each alone.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerStages {
    /// How the blob is compressed.
    pub codec: Codec,
    /// Size of the blob in bytes.
    pub compressed_bytes: u64,
    /// Size of the archive in bytes.
    pub tar_bytes: u64,
    /// What the archive has.
    pub counts: Counts,
    /// In the order of [`Step::ALL`].
    pub costs: [Cost; 5],
    /// What the layer would be like as zstd; of gzip layers alone.
    pub zstd: Option<ZstdTwin>,
}

impl LayerStages {
    /// Returns what one stage takes.
    pub fn cost(&self, step: Step) -> Cost {
        self.costs.get(step as usize).copied().unwrap_or_default()
    }

    /// Returns the stage that takes longest.
    pub fn longest(&self) -> (Step, Cost) {
        let longer = |a: &(Step, Cost), b: &(Step, Cost)| a.1.cpu_seconds.total_cmp(&b.1.cpu_seconds);
        Step::ALL
            .into_iter()
            .map(|step| (step, self.cost(step)))
            .max_by(longer)
            .unwrap_or((Step::Read, Cost::default()))
    }

    /// Returns what all stages take together, in processor seconds.
    pub fn sum(&self) -> f64 {
        self.costs.iter().map(|cost| cost.cpu_seconds).sum()
    }

    /// Returns what the layer would take as zstd, estimated from the sample; `None` where it was not sampled.
    pub fn as_zstd(&self) -> Option<LayerStages> {
        let twin = self.zstd?;
        let mut other = self.clone();
        let bytes = self.tar_bytes as f64 / twin.ratio;
        let scale = bytes / (self.compressed_bytes.max(1) as f64);
        for (step, cost) in Step::ALL.into_iter().zip(&mut other.costs) {
            let factor = match step {
                Step::Inflate => self.tar_bytes as f64 / twin.bytes_per_second / cost.cpu_seconds.max(1e-9),
                Step::Read | Step::HashBlob => scale,
                Step::HashTar | Step::Create => 1.0,
            };
            cost.cpu_seconds *= factor;
            cost.wall_seconds *= factor;
        }
        (other.codec, other.compressed_bytes, other.zstd) = (Codec::Zstd, bytes as u64, None);
        Some(other)
    }
}

/// The shortest time in which an image could be unpacked with these libraries on these processors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// The larger of the next two.
    pub seconds: f64,
    /// The longest single stage of any layer.
    pub longest: f64,
    /// The layer with that stage, counted from the bottom, which is 0.
    pub layer: usize,
    /// That stage.
    pub step: Step,
    /// All stages of all layers, divided by the processors.
    pub shared: f64,
}

impl Floor {
    /// Computes it; zeros for no layers.
    pub fn of(layers: &[LayerStages], cpus: usize) -> Floor {
        let longest = layers.iter().map(LayerStages::longest).enumerate();
        let (layer, (step, cost)) = longest
            .max_by(|a, b| a.1.1.cpu_seconds.total_cmp(&b.1.1.cpu_seconds))
            .unwrap_or((0, (Step::Read, Cost::default())));
        let shared = layers.iter().map(LayerStages::sum).sum::<f64>() / cpus.max(1) as f64;
        let longest = cost.cpu_seconds;
        Floor { seconds: longest.max(shared), longest, layer, step, shared }
    }

    /// Tells whether one stage of one layer is what takes so long, rather than all the work together.
    pub fn is_one_stage(&self) -> bool {
        self.longest > self.shared
    }
}

/// Bytes of an archive that are compressed again to learn about zstd.
const SAMPLE: u64 = 32 << 20;

/// What is set aside for them; pages that are not written to cost nothing.
const SAMPLE_ROOM: usize = 40 << 20;

/// Measures the stages of layer `index`, one after another; files are made in the empty directory `dir`.
pub(super) fn measure(
    image: &Image,
    index: usize,
    dir: &Path,
    limits: &Limits,
    sampled: bool,
    cancel: &CancelToken,
) -> Result<LayerStages> {
    let mut buffer = vec![0; BUFFER];
    let mut compressed_bytes = 0;
    let mut codec = Codec::Plain;
    let mut read = Stopwatch::default();
    let mut blob = image.open_layer(index)?;
    loop {
        let n = read.time(|| blob.read(&mut buffer)).map_err(|e| from_io("read a layer", e))?;
        if n == 0 {
            break;
        }
        if compressed_bytes == 0 {
            codec = codec_of(buffer.get(..n).unwrap_or_default());
        }
        compressed_bytes += n as u64;
        cancel.check()?;
    }
    let mut hash_blob = Stopwatch::default();
    if codec != Codec::Plain {
        let mut blob = image.open_layer(index)?;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        loop {
            let n = blob.read(&mut buffer).map_err(|e| from_io("read a layer", e))?;
            if n == 0 {
                break;
            }
            hash_blob.time(|| hasher.update(buffer.get(..n).unwrap_or_default()));
            cancel.check()?;
        }
        std::hint::black_box(hasher.finish());
    }
    let (mut inflate, mut tar_bytes) = (Stopwatch::default(), 0);
    decode(image.open_layer(index)?, limits, &mut inflate, &mut |piece| {
        tar_bytes += piece.len() as u64;
        cancel.check()
    })?;
    // Pieces from the whole archive, so that one kind of file does not stand for all.
    let stride = tar_bytes.div_ceil(SAMPLE).max(1);
    let (mut hash_tar, mut hasher) = (Stopwatch::default(), Hasher::new(Algorithm::Sha256));
    // So large that the allocator gives it back to the kernel afterwards: the peaks of later runs are not to show it.
    let mut sample = Vec::with_capacity(SAMPLE_ROOM);
    let mut number = 0u64;
    decode(image.open_layer(index)?, limits, &mut Stopwatch::default(), &mut |piece| {
        hash_tar.time(|| hasher.update(piece));
        let fits = sample.len() + piece.len() <= SAMPLE_ROOM;
        if sampled && fits && codec == Codec::Gzip && number.is_multiple_of(stride) {
            sample.extend_from_slice(piece);
        }
        number += 1;
        cancel.check()
    })?;
    std::hint::black_box(hasher.finish());
    let zstd = zstd_twin(&sample, limits)?;
    drop(sample);
    let (counts, create) = make_files(image, index, dir, limits, cancel)?;
    let costs = [read, hash_blob, inflate, hash_tar, create].map(|watch| watch.cost());
    Ok(LayerStages { codec, compressed_bytes, tar_bytes, counts, costs, zstd })
}

fn make_files(
    image: &Image,
    index: usize,
    dir: &Path,
    limits: &Limits,
    cancel: &CancelToken,
) -> Result<(Counts, Stopwatch)> {
    std::fs::create_dir(dir).map_err(|e| Error::io(format!("create {}", dir.display()), e))?;
    let mut creator = Creator::new(Dir::open(dir)?, cancel);
    let mut entries = Entries::new(limits);
    decode(image.open_layer(index)?, limits, &mut Stopwatch::default(), &mut |piece| {
        entries.feed(piece, &mut |entry| creator.add(entry))
    })?;
    creator.finish()
}

/// Counts bytes of archives and their entries.
pub(super) fn survey(image: &Image, limits: &Limits, cancel: &CancelToken) -> Result<(u64, u64)> {
    let (mut bytes, mut count) = (0, 0);
    for index in 0..image.layers.len() {
        let mut entries = Entries::new(limits);
        decode(image.open_layer(index)?, limits, &mut Stopwatch::default(), &mut |piece| {
            bytes += piece.len() as u64;
            entries.feed(piece, &mut |_| {
                count += 1;
                Ok(())
            })?;
            cancel.check()
        })?;
    }
    Ok((bytes, count))
}

/// Joins several measurements of the same layers: the median of each number.
pub(super) fn medians(runs: &[Vec<LayerStages>]) -> Vec<LayerStages> {
    let Some(first) = runs.first() else { return Vec::new() };
    let median = |number: &dyn Fn(&LayerStages) -> f64, layer: usize| {
        super::Spread::of(runs.iter().filter_map(|run| run.get(layer)).map(number)).median
    };
    let mut out = first.clone();
    for (layer, stages) in out.iter_mut().enumerate() {
        for (step, cost) in Step::ALL.into_iter().zip(&mut stages.costs) {
            cost.cpu_seconds = median(&|stages| stages.cost(step).cpu_seconds, layer);
            cost.wall_seconds = median(&|stages| stages.cost(step).wall_seconds, layer);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(costs: [f64; 5], zstd: Option<ZstdTwin>) -> LayerStages {
        let costs = costs.map(|cpu_seconds| Cost { cpu_seconds, wall_seconds: cpu_seconds });
        LayerStages {
            codec: Codec::Gzip,
            compressed_bytes: 100,
            tar_bytes: 400,
            counts: Counts::default(),
            costs,
            zstd,
        }
    }

    #[test]
    fn the_floor_is_one_stage_or_all_of_them_shared() {
        let layers = [layer([0.0, 1.0, 4.0, 2.0, 1.0], None), layer([0.0, 0.0, 1.0, 0.0, 3.0], None)];
        let floor = Floor::of(&layers, 2);
        assert_eq!((floor.seconds, floor.longest, floor.shared), (6.0, 4.0, 6.0));
        assert!(!floor.is_one_stage());
        let floor = Floor::of(&layers, 16);
        assert_eq!((floor.seconds, floor.layer, floor.step), (4.0, 0, Step::Inflate));
        assert!(floor.is_one_stage());
        assert_eq!(Floor::of(&[], 0).seconds, 0.0);
    }

    #[test]
    fn a_zstd_twin_changes_decoding_and_what_depends_on_the_blob() {
        let twin = ZstdTwin { ratio: 8.0, bytes_per_second: 400.0 };
        let zstd = layer([2.0, 2.0, 4.0, 2.0, 1.0], Some(twin)).as_zstd().unwrap();
        assert_eq!(zstd.costs.map(|cost| cost.cpu_seconds), [1.0, 1.0, 1.0, 2.0, 1.0]);
        assert_eq!((zstd.compressed_bytes, zstd.codec), (50, Codec::Zstd));
        assert_eq!(layer([0.0; 5], None).as_zstd(), None);
    }

    #[test]
    fn several_measurements_give_the_median_of_each_number() {
        let runs = [3.0, 1.0, 2.0].map(|n| vec![layer([n; 5], None)]);
        let joined = medians(&runs);
        assert_eq!(joined[0].cost(Step::Inflate).cpu_seconds, 2.0);
        assert_eq!(medians(&[]), []);
    }
}
