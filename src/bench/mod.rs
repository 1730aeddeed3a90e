//! Measures unpacking: time, throughput, processor time and memory.
//!
//! Owns: what is timed, where it is written, synthetic images. Refuses to know: how results are shown.
//!
//! A run pulls an image without syncs into an empty store in a fresh directory, on a tmpfs of its own or on the file system that
//! is there. Blobs are read once before the first run, so that they are in the page cache; making the directory and
//! deleting it are not timed. Every digest is verified, as always.

mod synthetic;

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

pub use synthetic::{Shape, synthesise};

use crate::error::{Error, ErrorKind, Result, from_io};
use crate::image::{self, Input, Reference, Source};
use crate::unpack::{LayerOutcome, Options, open_store, pull};

/// Where the store of each run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On a tmpfs mounted for the run.
    Tmpfs,
    /// In a plain directory.
    Here,
}

/// How to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// How images are unpacked; `durable` is taken as false.
    pub unpack: Options,
    /// Runs of the image.
    pub runs: u32,
    /// Where the store of each run stands.
    pub place: Place,
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

/// All runs of one image.
#[derive(Debug, Clone)]
pub struct Report {
    /// The runs, in order; at least one.
    pub runs: Vec<Run>,
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

/// Measures pulls of the image that `reference` names.
///
/// # Errors
/// `Usage` for standard input, which can be read only once, and for images in a store; `NotPermitted` where a tmpfs cannot
/// be mounted; those of a pull.
pub fn run(reference: &Reference, options: &BenchOptions) -> Result<Report> {
    if matches!(reference, Reference::Stdin { .. } | Reference::Layer(Input::Stdin) | Reference::Stored(_)) {
        return Err(Error::new(ErrorKind::Usage, "only an image in files can be unpacked several times")
            .with_image(reference)
            .with_hint("name a layout, an archive or a layer"));
    }
    warm_up(reference, options)?;
    let mut runs = Vec::new();
    for _ in 0..options.runs.max(1) {
        runs.push(one(reference, options)?);
    }
    Ok(Report { runs })
}

/// Reads every blob once.
fn warm_up(reference: &Reference, options: &BenchOptions) -> Result<()> {
    let skip = |blob: &mut dyn io::Read| {
        io::copy(blob, &mut io::sink()).map(drop).map_err(|e| from_io("read the image", e).with_image(reference))
    };
    match image::open(reference, &options.unpack.open_options())? {
        Source::Image(image) => {
            for index in 0..image.layers.len() {
                options.unpack.cancel.check()?;
                skip(&mut image.open_layer(index)?)?;
            }
            Ok(())
        }
        Source::Stream(stream) => stream.read(|member| skip(member)).map(drop),
    }
}

fn one(reference: &Reference, options: &BenchOptions) -> Result<Run> {
    let dir = tempfile::Builder::new()
        .prefix("unply-bench-")
        .tempdir()
        .map_err(|e| Error::io(format!("create a directory in {}", std::env::temp_dir().display()), e))?;
    let mount = match options.place {
        Place::Tmpfs => Some(Tmpfs::mount(dir.path())?),
        Place::Here => None,
    };
    let unpack = Options { durable: false, ..options.unpack.clone() };
    reset_peak();
    let cpu = cpu_seconds()?;
    let started = Instant::now();
    let store = open_store(&dir.path().join("store"), false)?;
    let pulled = pull(reference, &store, &unpack, &|_| {})?;
    let run = Run {
        wall_seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds()? - cpu,
        peak_rss_bytes: peak_rss(),
        layers: pulled.layers.clone(),
    };
    drop(pulled);
    drop(store);
    drop(mount);
    // Layers hold directories that their owner may not enter; the store knows how to remove those.
    let path = dir.keep();
    crate::root::remove_path(&path, &|| false)?;
    Ok(run)
}

/// A tmpfs that goes away when dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(dir: &'a Path) -> Result<Self> {
        nix::mount::mount(Some("unply-bench"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=0700,nr_inodes=0"))
            .map_err(|e| {
                Error::io(format!("mount a tmpfs at {}", dir.display()), e.into())
                    .with_hint("measure on a plain directory instead")
            })?;
        Ok(Tmpfs(dir))
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        // What stays mounted shows in the removal of the directory that follows.
        let _ = nix::mount::umount2(self.0, MntFlags::MNT_DETACH);
    }
}

fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|e| Error::io("getrusage", e.into()))?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}

/// Makes the kernel forget the highest use of memory so far (`man 5 proc_pid_clear_refs`).
fn reset_peak() {
    if let Ok(mut file) = File::options().write(true).open("/proc/self/clear_refs") {
        // Where this is not permitted the peak is that of the process.
        let _ = io::Write::write_all(&mut file, b"5");
    }
}

fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
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
