//! Measures unpacking: time, throughput, processor time and memory; stage by stage, and beside other tools.
//!
//! Owns: what is timed, where it is written, synthetic images, how others are run. Refuses to know: how results are shown.
//!
//! A run pulls an image without syncs into an empty store on a fresh file system, or in a directory of the one
//! that is there. Blobs are read once before the first run, so that they are in the page cache; making the file system and
//! deleting it are not timed. Every digest is verified, as always. Stages are measured alone, by loops that share no
//! line with the engine ([`LayerStages`]), between the runs; the trace is that of a run of its own.

mod containerd;
mod create;
mod decode;
mod ground;
mod layout;
mod process;
mod stages;
mod synthetic;
mod tree;
mod verdict;
mod versus;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

pub use create::Counts;
pub use decode::{Cost, ZstdTwin};
pub use ground::Place;
pub use process::Used;
pub use stages::{Floor, LayerStages, Step};
pub use synthetic::{Shape, synthesise};
pub use tree::{Comparison, Difference};
pub use verdict::Verdict;
pub use versus::{Ours, Rival, Tool, Versus};

use crate::error::{Error, ErrorKind, Result, from_io};
use crate::image::{self, Image, Input, Reference, Source};
use crate::sys;
use crate::trace::{Span, Trace, overlap};
use crate::unpack::{LayerOutcome, Options, open_store, pull};
use ground::{Ground, Room};

/// How to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// How images are unpacked; `trace` is taken as off. With `durable` our syncs are part of the time, and so is one of the file
    /// system behind every other tool.
    pub unpack: Options,
    /// Runs of the image, and pairs of runs beside each other tool.
    pub runs: u32,
    /// Where each run writes.
    pub place: Place,
    /// Measure the stages alone, too.
    pub stages: bool,
    /// Other tools to run in turns with ours.
    pub versus: Option<Versus>,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Wall time in seconds, from opening the store to the recorded image.
    pub wall_seconds: f64,
    /// Processor time of all threads, in seconds.
    pub cpu_seconds: f64,
    /// Most memory resident at once, in bytes; since the process began where the kernel does not let it be reset.
    pub peak_rss_bytes: u64,
    /// What each layer took, bottom first.
    pub layers: Vec<LayerOutcome>,
}

/// Everything measured of one image.
#[derive(Debug, Clone)]
pub struct Report {
    /// The runs, in order; at least one.
    pub runs: Vec<Run>,
    /// The stages, where they were asked for.
    pub stages: Option<Stages>,
    /// The other tools, in the order asked for.
    pub rivals: Vec<Rival>,
}

impl Report {
    /// Returns what the runs took.
    pub fn walls(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.wall_seconds))
    }
}

/// What the stages of an image take alone, and what that says of the runs.
#[derive(Debug, Clone)]
pub struct Stages {
    /// Medians by layer, bottom first; a layer that the image has twice costs nothing the second time.
    pub layers: Vec<LayerStages>,
    /// Processors that this process may use.
    pub cpus: usize,
    /// The shortest time possible.
    pub floor: Floor,
    /// The floor divided by the median wall time.
    pub efficiency: f64,
    /// When which stage of which layer was at work, in a run of its own.
    pub trace: Vec<Span>,
    /// How much of each layer's time two of its stages were at work at once, from 0 to 1.
    pub overlaps: Vec<f64>,
    /// What a person can do with it.
    pub verdicts: Vec<Verdict>,
}

/// Smallest, middle and largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The median; of an even number the lower of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Sums up some numbers; zeros for none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let last = sorted.len().saturating_sub(1);
        Spread { median: at(last / 2), min: at(0), max: at(last) }
    }
}

/// Runs after which stages are measured; more would take longer and say nothing new.
const STAGE_RUNS: u32 = 3;

/// Measures pulls of the image that `reference` names; `note` is told what is going on.
///
/// # Errors
/// `Usage` for standard input, which can be read only once, and for images in a store; `Unsupported` for stages and other
/// tools on a compressed archive; `NotFound` for a tool that is not installed; `NotPermitted` where nothing can be
/// mounted; those of a pull.
pub fn run(reference: &Reference, options: &BenchOptions, note: &dyn Fn(&str)) -> Result<Report> {
    if matches!(reference, Reference::Stdin { .. } | Reference::Layer(Input::Stdin) | Reference::Stored(_)) {
        return Err(Error::new(ErrorKind::Usage, "only an image in files can be unpacked several times")
            .with_image(reference)
            .with_hint("name a layout, an archive or a layer"));
    }
    for tool in options.versus.iter().flat_map(|versus| &versus.tools) {
        tool.find()?;
    }
    let (image, bytes) = warm_up(reference, options)?;
    let Some(image) = image else {
        if !options.stages && options.versus.is_none() {
            return plain(reference, options, room_of(bytes.saturating_mul(16), 1 << 20));
        }
        let text = "the layers of a compressed archive can only be read in turn: no stage can be measured alone";
        return Err(Error::new(ErrorKind::Unsupported, text)
            .with_image(reference)
            .with_hint("decompress the archive, or make a layout of it: skopeo copy … oci:DIR:TAG"));
    };
    let room = match options.place {
        Place::Ext4 => {
            let (bytes, entries) = stages::survey(&image, &options.unpack.limits, &options.unpack.cancel)?;
            room_of(bytes, entries)
        }
        _ => Room { bytes: 0, inodes: 0 },
    };
    let (mut runs, mut measured) = (Vec::new(), Vec::new());
    for number in 0..options.runs.max(1) {
        note(&format!("run {} of {}", number + 1, options.runs.max(1)));
        let run = one(reference, options, room, &Trace::default())?;
        if options.stages && number < STAGE_RUNS {
            measured.push(alone(&image, options, room, &run.layers, number == 0, note)?);
        }
        runs.push(run);
    }
    let mut report = Report { runs, stages: None, rivals: Vec::new() };
    if options.stages {
        note("tracing one more run");
        let trace = Trace::begin();
        let traced = one(reference, options, room, &trace)?;
        report.stages = Some(conclude(&report, &measured, &trace, traced.layers.len()));
    }
    if let (Some(versus), Some(first)) = (&options.versus, report.runs.first()) {
        let exported = layout::Exported::new(image, &first.layers, options.place)?;
        report.rivals = versus::measure(&exported, room, versus, options, note)?;
    }
    Ok(report)
}

fn plain(reference: &Reference, options: &BenchOptions, room: Room) -> Result<Report> {
    let runs = (0..options.runs.max(1)).map(|_| one(reference, options, room, &Trace::default()));
    Ok(Report { runs: runs.collect::<Result<_>>()?, stages: None, rivals: Vec::new() })
}

/// Room for a tree, its blobs beside it, and every tool's own records.
fn room_of(tar_bytes: u64, entries: u64) -> Room {
    let bytes = tar_bytes.saturating_mul(2).saturating_add(entries.saturating_mul(8192)).saturating_add(1 << 30);
    Room { bytes, inodes: entries.saturating_mul(2).saturating_add(1 << 16) }
}

/// Reads every blob once, so that it is in the page cache; returns how many bytes they are, and the image unless it is one
/// whose layers can only be read in turn.
fn warm_up(reference: &Reference, options: &BenchOptions) -> Result<(Option<Image>, u64)> {
    let mut bytes = 0;
    let mut skip = |blob: &mut dyn io::Read| {
        let read = io::copy(blob, &mut io::sink()).map_err(|e| from_io("read the image", e).with_image(reference))?;
        bytes += read;
        options.unpack.cancel.check()
    };
    let image = match image::open(reference, &options.unpack.open_options())? {
        Source::Image(image) => {
            for index in 0..image.layers.len() {
                skip(&mut image.open_layer(index)?)?;
            }
            Some(image)
        }
        Source::Stream(stream) => stream.read(|member| skip(member)).map(|_| None)?,
    };
    Ok((image, bytes))
}

fn one(reference: &Reference, options: &BenchOptions, room: Room, trace: &Trace) -> Result<Run> {
    options.unpack.cancel.check()?;
    let ground = Ground::new(options.place, room)?;
    let unpack = Options { trace: trace.clone(), ..options.unpack.clone() };
    reset_peak();
    let cpu = cpu_seconds()?;
    let started = Instant::now();
    let store = open_store(&ground.path().join("store"), unpack.durable)?;
    let pulled = pull(reference, &store, &unpack, &|_| {})?;
    let run = Run {
        wall_seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds()? - cpu,
        peak_rss_bytes: peak_rss(),
        layers: pulled.layers.clone(),
    };
    drop(pulled);
    drop(store);
    ground.remove()?;
    Ok(run)
}

/// Measures the stages of every layer, each alone, on a fresh file system of the same kind.
fn alone(
    image: &Image,
    options: &BenchOptions,
    room: Room,
    outcomes: &[LayerOutcome],
    sampled: bool,
    note: &dyn Fn(&str),
) -> Result<Vec<LayerStages>> {
    let ground = Ground::new(options.place, room)?;
    let (limits, cancel) = (&options.unpack.limits, &options.unpack.cancel);
    let mut seen = HashSet::new();
    let mut layers = Vec::new();
    for index in 0..image.layers.len() {
        note(&format!("stages of layer {} of {}, alone", index + 1, image.layers.len()));
        let dir = ground.path().join(format!("layer-{index}"));
        let mut stages = stages::measure(image, index, &dir, limits, sampled, cancel)?;
        // A layer that an image has twice is unpacked once.
        if outcomes.get(index).is_some_and(|outcome| !seen.insert(outcome.diff_id)) {
            (stages.costs, stages.zstd) = (Default::default(), None);
        }
        layers.push(stages);
    }
    ground.remove()?;
    Ok(layers)
}

fn conclude(report: &Report, measured: &[Vec<LayerStages>], trace: &Trace, layers: usize) -> Stages {
    let cpus = sys::available_cpus();
    let trace = trace.spans();
    let overlaps = (0..layers).map(|layer| overlap(&trace, layer)).collect();
    let layers = stages::medians(measured);
    let floor = Floor::of(&layers, cpus);
    let wall = report.walls().median;
    let efficiency = if wall > 0.0 { floor.seconds / wall } else { 0.0 };
    let verdicts = verdict::of(&layers, &floor, cpus, wall);
    Stages { layers, cpus, floor, efficiency, trace, overlaps, verdicts }
}

fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|e| Error::io("getrusage", e.into()))?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}

/// Makes the kernel forget the highest use of memory so far (`man 5 proc_pid_clear_refs`), and what is free with it.
fn reset_peak() {
    crate::sys::trim_heap();
    if let Ok(mut file) = File::options().write(true).open("/proc/self/clear_refs") {
        // Where this is not permitted the peak is that of the process.
        let _ = io::Write::write_all(&mut file, b"5");
    }
}

fn peak_rss() -> u64 {
    high_water(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// Finds the most memory that was resident at once in the text of `/proc/PID/status`, in bytes.
fn high_water(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_numbers() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0]), Spread { median: 1.0, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([]), Spread { median: 0.0, min: 0.0, max: 0.0 });
    }

    #[test]
    fn memory_and_processor_time_are_known() {
        reset_peak();
        assert!(peak_rss() > 0);
        assert!(cpu_seconds().unwrap() >= 0.0);
    }
}
