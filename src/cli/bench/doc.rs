//! What `bench` found, as JSON has it; text and page are made from the same.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bench::{Comparison, Report, Rival, Run, Spread, Stages, Step, Used};
use crate::stream::Codec;

#[derive(Serialize)]
pub struct BenchDoc {
    pub fs: &'static str,
    pub runs: u32,
    pub jobs: usize,
    /// Syncs are part of what was measured.
    pub durable: bool,
    /// The library.
    pub inflate: &'static str,
    pub images: Vec<ImageDoc>,
}

#[derive(Serialize)]
pub struct ImageDoc {
    pub reference: String,
    #[serde(flatten)]
    pub total: Rates,
    pub wall_seconds_min: f64,
    pub wall_seconds_max: f64,
    pub cpu_seconds: f64,
    pub peak_rss_bytes: u64,
    pub layers: Vec<LayerDoc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<StagesDoc>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub versus: Vec<RivalDoc>,
}

#[derive(Serialize)]
pub struct LayerDoc {
    pub digest: String,
    pub diff_id: String,
    #[serde(flatten)]
    pub rates: Rates,
}

/// Sizes, the median of the wall times, and what follows from them.
#[derive(Clone, Copy, Serialize)]
pub struct Rates {
    pub compressed_bytes: u64,
    pub uncompressed_bytes: u64,
    pub entries: u64,
    pub wall_seconds: f64,
    pub compressed_mb_per_second: f64,
    pub uncompressed_mb_per_second: f64,
    pub entries_per_second: f64,
}

#[derive(Serialize)]
pub struct StagesDoc {
    pub cpus: usize,
    pub floor_seconds: f64,
    pub longest_seconds: f64,
    pub longest_layer: usize,
    pub longest_stage: &'static str,
    pub shared_seconds: f64,
    pub efficiency: f64,
    pub layers: Vec<LayerStagesDoc>,
    pub verdicts: Vec<VerdictDoc>,
    pub trace: Vec<SpanDoc>,
}

#[derive(Serialize)]
pub struct LayerStagesDoc {
    pub codec: Codec,
    pub compressed_bytes: u64,
    pub uncompressed_bytes: u64,
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hard_links: u64,
    pub others: u64,
    pub content_bytes: u64,
    pub read: StageDoc,
    pub hash_blob: StageDoc,
    pub inflate: StageDoc,
    pub hash_tar: StageDoc,
    pub create: StageDoc,
    pub overlap: f64,
    pub zstd: Option<ZstdDoc>,
}

impl LayerStagesDoc {
    /// The stages in the order of the data.
    pub fn stages(&self) -> [(Step, StageDoc); 5] {
        let costs = [self.read, self.hash_blob, self.inflate, self.hash_tar, self.create];
        let mut each = Step::ALL.into_iter().zip(costs);
        std::array::from_fn(|_| each.next().unwrap_or((Step::Read, self.read)))
    }
}

/// A stage alone; the rates are those of its processor time.
#[derive(Clone, Copy, Serialize)]
pub struct StageDoc {
    pub cpu_seconds: f64,
    pub wall_seconds: f64,
    /// Of what the stage reads: blob bytes, archive bytes, or bytes of file content.
    pub mb_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries_per_second: Option<f64>,
}

#[derive(Serialize)]
pub struct ZstdDoc {
    pub ratio: f64,
    pub mb_per_second: f64,
    pub inflate_seconds: f64,
}

#[derive(Serialize)]
pub struct VerdictDoc {
    pub layer: Option<usize>,
    pub text: String,
}

#[derive(Serialize)]
pub struct SpanDoc {
    pub layer: usize,
    pub stage: &'static str,
    pub start: f64,
    pub end: f64,
}

#[derive(Serialize)]
pub struct RivalDoc {
    pub tool: &'static str,
    pub command: String,
    pub ours: &'static str,
    pub leaves_out: &'static str,
    pub ratio: f64,
    pub ratio_min: f64,
    pub ratio_max: f64,
    pub pairs: Vec<PairDoc>,
    pub trees: Option<TreesDoc>,
    pub failed: Option<String>,
}

#[derive(Serialize)]
pub struct PairDoc {
    pub ours: UsedDoc,
    pub theirs: UsedDoc,
}

#[derive(Clone, Copy, Serialize)]
pub struct UsedDoc {
    pub wall_seconds: f64,
    pub cpu_seconds: f64,
    pub peak_rss_bytes: u64,
}

#[derive(Serialize)]
pub struct TreesDoc {
    pub entries: u64,
    pub differences: u64,
    pub unexplained: u64,
    pub counts: BTreeMap<&'static str, u64>,
    pub explained: BTreeMap<&'static str, u64>,
    pub first: Vec<DifferenceDoc>,
}

#[derive(Serialize)]
pub struct DifferenceDoc {
    pub layer: Option<usize>,
    pub path: String,
    pub what: &'static str,
    pub ours: String,
    pub theirs: String,
    pub because: Option<&'static str>,
}

fn per_second(n: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { n / seconds } else { 0.0 }
}

impl Rates {
    fn new(compressed_bytes: u64, uncompressed_bytes: u64, entries: u64, wall_seconds: f64) -> Rates {
        Rates {
            compressed_bytes,
            uncompressed_bytes,
            entries,
            wall_seconds,
            compressed_mb_per_second: per_second(compressed_bytes as f64 / 1e6, wall_seconds),
            uncompressed_mb_per_second: per_second(uncompressed_bytes as f64 / 1e6, wall_seconds),
            entries_per_second: per_second(entries as f64, wall_seconds),
        }
    }
}

impl ImageDoc {
    /// Sums up the runs of one image.
    pub fn new(reference: String, report: &Report) -> ImageDoc {
        let walls = report.walls();
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
            stages: report.stages.as_ref().map(StagesDoc::new),
            versus: report.rivals.iter().map(RivalDoc::new).collect(),
        }
    }
}

impl StagesDoc {
    fn new(stages: &Stages) -> StagesDoc {
        let layers = stages.layers.iter().zip(&stages.overlaps).map(|(layer, overlap)| {
            let stage = |step: Step| {
                let cost = layer.cost(step);
                let bytes = match step {
                    Step::Read | Step::HashBlob => layer.compressed_bytes,
                    Step::Inflate | Step::HashTar => layer.tar_bytes,
                    Step::Create => layer.counts.content_bytes,
                };
                StageDoc {
                    cpu_seconds: cost.cpu_seconds,
                    wall_seconds: cost.wall_seconds,
                    mb_per_second: per_second(bytes as f64 / 1e6, cost.cpu_seconds),
                    entries_per_second: (step == Step::Create)
                        .then(|| per_second(layer.counts.entries() as f64, cost.cpu_seconds)),
                }
            };
            LayerStagesDoc {
                codec: layer.codec,
                compressed_bytes: layer.compressed_bytes,
                uncompressed_bytes: layer.tar_bytes,
                files: layer.counts.files,
                directories: layer.counts.directories,
                symlinks: layer.counts.symlinks,
                hard_links: layer.counts.hard_links,
                others: layer.counts.others,
                content_bytes: layer.counts.content_bytes,
                read: stage(Step::Read),
                hash_blob: stage(Step::HashBlob),
                inflate: stage(Step::Inflate),
                hash_tar: stage(Step::HashTar),
                create: stage(Step::Create),
                overlap: *overlap,
                zstd: layer.zstd.map(|twin| ZstdDoc {
                    ratio: twin.ratio,
                    mb_per_second: twin.bytes_per_second / 1e6,
                    inflate_seconds: layer.tar_bytes as f64 / twin.bytes_per_second,
                }),
            }
        });
        let verdicts =
            stages.verdicts.iter().map(|verdict| VerdictDoc { layer: verdict.layer, text: verdict.text.clone() });
        let trace = stages.trace.iter().map(|span| SpanDoc {
            layer: span.layer,
            stage: span.stage.name(),
            start: span.start.as_secs_f64(),
            end: span.end.as_secs_f64(),
        });
        StagesDoc {
            cpus: stages.cpus,
            floor_seconds: stages.floor.seconds,
            longest_seconds: stages.floor.longest,
            longest_layer: stages.floor.layer,
            longest_stage: stages.floor.step.name(),
            shared_seconds: stages.floor.shared,
            efficiency: stages.efficiency,
            layers: layers.collect(),
            verdicts: verdicts.collect(),
            trace: trace.collect(),
        }
    }
}

impl RivalDoc {
    fn new(rival: &Rival) -> RivalDoc {
        let used = |used: &Used| UsedDoc {
            wall_seconds: used.wall_seconds,
            cpu_seconds: used.cpu_seconds,
            peak_rss_bytes: used.peak_rss_bytes,
        };
        let ratios = rival.ratios();
        RivalDoc {
            tool: rival.tool.name(),
            command: rival.command.clone(),
            ours: rival.ours.name(),
            leaves_out: rival.tool.leaves_out(),
            ratio: ratios.median,
            ratio_min: ratios.min,
            ratio_max: ratios.max,
            pairs: rival.pairs.iter().map(|(a, b)| PairDoc { ours: used(a), theirs: used(b) }).collect(),
            trees: rival.comparison.as_ref().map(TreesDoc::new),
            failed: rival.failed.clone(),
        }
    }

    /// Returns the median of a number of the pairs, ours and theirs.
    pub fn medians(&self, number: fn(&UsedDoc) -> f64) -> (f64, f64) {
        let of = |side: fn(&PairDoc) -> &UsedDoc| Spread::of(self.pairs.iter().map(|pair| number(side(pair)))).median;
        (of(|pair| &pair.ours), of(|pair| &pair.theirs))
    }
}

impl TreesDoc {
    fn new(comparison: &Comparison) -> TreesDoc {
        let first = comparison.first.iter().map(|difference| DifferenceDoc {
            layer: difference.layer,
            path: difference.path.clone(),
            what: difference.what,
            ours: difference.ours.clone(),
            theirs: difference.theirs.clone(),
            because: difference.because,
        });
        TreesDoc {
            entries: comparison.entries,
            differences: comparison.differences(),
            unexplained: comparison.unexplained(),
            counts: comparison.counts.clone(),
            explained: comparison.explained.clone(),
            first: first.collect(),
        }
    }

    /// Says in one line how the trees compare.
    pub fn summary(&self) -> String {
        match (self.differences, self.unexplained) {
            (0, _) => format!("equal, {} entries", self.entries),
            (all, 0) => format!("{} entries, {all} differences, all explained", self.entries),
            (all, left) => format!("{} entries, {all} differences, {left} of them unexplained", self.entries),
        }
    }
}
