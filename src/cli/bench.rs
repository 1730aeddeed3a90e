//! `bench`.

use serde::Serialize;

use super::Context;
use super::args::{BenchArgs, BenchFs};
use super::output::{self, Align, Table, human_bytes, note, printable};
use crate::bench::{self, BenchOptions, Place, Report, Run, Shape, Spread};
use crate::error::{Error, Result};
use crate::image::Reference;

#[derive(Serialize)]
struct BenchDoc {
    fs: &'static str,
    runs: u32,
    jobs: usize,
    images: Vec<ImageDoc>,
}

#[derive(Serialize)]
struct ImageDoc {
    reference: String,
    #[serde(flatten)]
    total: Rates,
    wall_seconds_min: f64,
    wall_seconds_max: f64,
    cpu_seconds: f64,
    peak_rss_bytes: u64,
    layers: Vec<LayerDoc>,
}

#[derive(Serialize)]
struct LayerDoc {
    digest: String,
    diff_id: String,
    #[serde(flatten)]
    rates: Rates,
}

/// Sizes, the median of the wall times, and what follows from them.
#[derive(Clone, Copy, Serialize)]
struct Rates {
    compressed_bytes: u64,
    uncompressed_bytes: u64,
    entries: u64,
    wall_seconds: f64,
    compressed_mb_per_second: f64,
    uncompressed_mb_per_second: f64,
    entries_per_second: f64,
}

impl Rates {
    fn new(compressed_bytes: u64, uncompressed_bytes: u64, entries: u64, wall_seconds: f64) -> Rates {
        let per_second = |n: f64| if wall_seconds > 0.0 { n / wall_seconds } else { 0.0 };
        Rates {
            compressed_bytes,
            uncompressed_bytes,
            entries,
            wall_seconds,
            compressed_mb_per_second: per_second(compressed_bytes as f64 / 1e6),
            uncompressed_mb_per_second: per_second(uncompressed_bytes as f64 / 1e6),
            entries_per_second: per_second(entries as f64),
        }
    }

    fn cells(&self) -> [String; 7] {
        [
            human_bytes(self.compressed_bytes),
            human_bytes(self.uncompressed_bytes),
            self.entries.to_string(),
            format!("{:.3}", self.wall_seconds),
            format!("{:.0}", self.compressed_mb_per_second),
            format!("{:.0}", self.uncompressed_mb_per_second),
            format!("{:.0}", self.entries_per_second),
        ]
    }
}

pub fn bench(context: &Context, args: &BenchArgs) -> Result<()> {
    let references: Vec<Reference> = args.images.iter().map(|image| image.parse()).collect::<Result<_>>()?;
    let place = place(args.fs)?;
    let options = BenchOptions { unpack: context.options(), runs: args.runs, place };
    let mut images = Vec::new();
    for reference in &references {
        note(format_args!("measuring {}", printable(&reference.to_string())));
        images.push(summarise(reference.to_string(), &bench::run(reference, &options)?));
    }
    if references.is_empty() {
        for shape in Shape::ALL {
            note(format_args!("making and measuring a synthetic image: {}", shape.name()));
            let dir = tempfile::Builder::new()
                .prefix("unply-bench-")
                .tempdir()
                .map_err(|e| Error::io("create a directory for a synthetic image", e))?;
            let reference = bench::synthesise(shape, dir.path())?;
            images.push(summarise(format!("synthetic:{}", shape.name()), &bench::run(&reference, &options)?));
        }
    }
    let fs = match place {
        Place::Tmpfs => "tmpfs",
        Place::Here => "here",
    };
    let doc = BenchDoc { fs, runs: args.runs, jobs: options.unpack.jobs, images };
    match context.global.json {
        true => output::json(doc),
        false => output::text(&render(&doc)),
    }
}

/// Decides where stores go. Mounts are made in a mount namespace of this thread's own, so that none outlives it.
fn place(wanted: Option<BenchFs>) -> Result<Place> {
    if wanted == Some(BenchFs::Here) {
        return Ok(Place::Here);
    }
    match (own_mount_namespace(), wanted) {
        (Ok(()), _) => Ok(Place::Tmpfs),
        (Err(e), Some(_)) => Err(Error::io("enter a mount namespace", e.into()).with_hint("measure with --fs here")),
        (Err(_), None) => Ok(Place::Here),
    }
}

fn own_mount_namespace() -> nix::Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

fn summarise(reference: String, report: &Report) -> ImageDoc {
    let walls = Spread::of(report.runs.iter().map(|run| run.wall_seconds));
    let median = |number: &dyn Fn(&Run) -> f64| Spread::of(report.runs.iter().map(number)).median;
    let first = report.runs.first().map(|run| run.layers.as_slice()).unwrap_or_default();
    let layers: Vec<LayerDoc> = first
        .iter()
        .enumerate()
        .map(|(at, layer)| {
            let seconds = median(&|run: &Run| run.layers.get(at).map_or(0.0, |layer| layer.seconds));
            let rates = Rates::new(layer.compressed_bytes, layer.uncompressed_bytes, layer.entries, seconds);
            LayerDoc { digest: layer.digest.to_string(), diff_id: layer.diff_id.to_string(), rates }
        })
        .collect();
    let sum = |number: fn(&Rates) -> u64| layers.iter().map(|layer| number(&layer.rates)).sum();
    let total =
        Rates::new(sum(|r| r.compressed_bytes), sum(|r| r.uncompressed_bytes), sum(|r| r.entries), walls.median);
    ImageDoc {
        reference,
        total,
        wall_seconds_min: walls.min,
        wall_seconds_max: walls.max,
        cpu_seconds: median(&|run: &Run| run.cpu_seconds),
        peak_rss_bytes: report.runs.iter().map(|run| run.peak_rss_bytes).max().unwrap_or(0),
        layers,
    }
}

fn render(doc: &BenchDoc) -> String {
    let store = if doc.fs == "tmpfs" { "on tmpfs" } else { "in $TMPDIR" };
    let mut out = format!(
        "median of {} run(s), -j {}, empty store {store}, all digests verified, no syncs\n",
        doc.runs, doc.jobs
    );
    let right = Align::Right;
    let columns = [
        ("LAYER", Align::Left),
        ("BLOB", right),
        ("TAR", right),
        ("ENTRIES", right),
        ("SECONDS", right),
        ("BLOB MB/s", right),
        ("TAR MB/s", right),
        ("ENTRIES/s", right),
    ];
    for image in &doc.images {
        out.push_str(&format!("\n{}\n", printable(&image.reference)));
        let mut table = Table::new(&columns);
        let row = |name: String, rates: &Rates| std::iter::once(name).chain(rates.cells());
        for layer in &image.layers {
            let digest = layer.digest.split_once(':').map_or("", |(_, hex)| hex);
            table.row(row(digest.chars().take(12).collect(), &layer.rates));
        }
        table.row(row("all".to_owned(), &image.total));
        out.push_str(&table.render());
        out.push_str(&format!(
            "wall {:.3} s ({:.3} to {:.3}), CPU {:.3} s, peak memory {}\n",
            image.total.wall_seconds,
            image.wall_seconds_min,
            image.wall_seconds_max,
            image.cpu_seconds,
            human_bytes(image.peak_rss_bytes)
        ));
    }
    out
}
