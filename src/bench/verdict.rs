//! What a person can do with the numbers.
//!
//! Owns: the sentences. They may change; numbers in them are rounded.

use super::stages::{Floor, LayerStages, Step};
use crate::stream::Codec;

/// One thing worth knowing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The layer it is about, counted from the bottom, which is 0; `None` where it is about the whole image.
    pub layer: Option<usize>,
    /// A sentence.
    pub text: String,
}

/// A share of the image's work below which a layer is not worth a word.
const WORTH: f64 = 0.1;

/// An efficiency from which on nothing is to be said about the time above the floor.
const GOOD: f64 = 0.92;

/// Draws conclusions; `wall` is the median of the runs.
pub(super) fn of(layers: &[LayerStages], floor: &Floor, cpus: usize, wall: f64) -> Vec<Verdict> {
    let mut out = Vec::new();
    let all: f64 = layers.iter().map(LayerStages::sum).sum();
    if all <= 0.0 {
        return out;
    }
    let about = |layer, text| Verdict { layer, text };
    let (layer, word) = (floor.layer, step_words(floor.step));
    out.push(about(
        None,
        if floor.is_one_stage() {
            format!(
                "the image can be no faster than {word} of layer {} takes alone: {:.3} s; a layer cut in two would use the other processors",
                layer + 1,
                floor.longest
            )
        } else {
            let (step, seconds) = heaviest(layers);
            let share = percent(seconds / all);
            format!("all stages together keep {cpus} CPUs busy for {:.3} s; most of it is {} ({share} %)", floor.shared, step_words(step))
        },
    ));
    for (index, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.sum() >= WORTH * all) {
        out.push(about(Some(index), of_layer(index, layer, layers, floor, cpus)));
    }
    let efficiency = floor.seconds / wall.max(1e-9);
    if efficiency < GOOD {
        let above = percent(1.0 - efficiency);
        out.push(about(
            None,
            format!("{above} % of the wall time is above the floor: waiting, bookkeeping, or a busy machine"),
        ));
    }
    out
}

fn of_layer(index: usize, layer: &LayerStages, layers: &[LayerStages], floor: &Floor, cpus: usize) -> String {
    let (step, cost) = layer.longest();
    let mut text = format!("layer {} is bound by {}", index + 1, step_words(step));
    match step {
        Step::Inflate if layer.codec == Codec::Gzip => {
            if let Some(twin) = layer.as_zstd() {
                let mut others = layers.to_vec();
                if let Some(place) = others.get_mut(index) {
                    *place = twin.clone();
                }
                let alone = percent(twin.longest().1.cpu_seconds / cost.cpu_seconds.max(1e-9) - 1.0);
                let image = percent(Floor::of(&others, cpus).seconds / floor.seconds.max(1e-9) - 1.0);
                text.push_str(&format!("; as zstd about {alone} % (the image {image} %)"));
            }
        }
        Step::Create => {
            let made = layer.counts.entries().max(1) as f64;
            let micros = cost.cpu_seconds / made * 1e6;
            text.push_str(&format!(
                ": {} entries, {micros:.1} µs each; another codec would not help",
                layer.counts.entries()
            ));
        }
        Step::HashTar => text.push_str(": the diff_id has to be computed, no codec is faster"),
        _ => {}
    }
    text
}

fn heaviest(layers: &[LayerStages]) -> (Step, f64) {
    let sum = |step: Step| layers.iter().map(|layer| layer.cost(step).cpu_seconds).sum::<f64>();
    let all = Step::ALL.into_iter().map(|step| (step, sum(step)));
    all.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((Step::Read, 0.0))
}

/// A share as a whole number with a real minus sign.
fn percent(share: f64) -> String {
    let rounded = (share * 100.0).round();
    if rounded < 0.0 { format!("−{:.0}", -rounded) } else { format!("{:.0}", rounded.abs()) }
}

fn step_words(step: Step) -> &'static str {
    match step {
        Step::Read => "reading the blob",
        Step::HashBlob => "hashing the blob",
        Step::Inflate => "inflate",
        Step::HashTar => "hashing the archive",
        Step::Create => "file creation",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Cost, Counts, ZstdTwin};

    fn layer(costs: [f64; 5], codec: Codec) -> LayerStages {
        LayerStages {
            codec,
            compressed_bytes: 100,
            tar_bytes: 300,
            counts: Counts { files: 1000, ..Counts::default() },
            costs: costs.map(|cpu_seconds| Cost { cpu_seconds, wall_seconds: cpu_seconds }),
            zstd: (codec == Codec::Gzip).then_some(ZstdTwin { ratio: 3.0, bytes_per_second: 300.0 }),
        }
    }

    fn texts(layers: &[LayerStages], cpus: usize, wall: f64) -> Vec<String> {
        let found = of(layers, &Floor::of(layers, cpus), cpus, wall);
        found.into_iter().map(|verdict| verdict.text).collect()
    }

    #[test]
    fn a_gzip_layer_that_is_bound_by_inflate_is_told_what_zstd_would_save() {
        let layers = [layer([0.0, 0.5, 4.0, 2.0, 1.0], Codec::Gzip), layer([0.0, 0.0, 0.1, 0.1, 0.1], Codec::Zstd)];
        let found = texts(&layers, 8, 4.1);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("inflate of layer 1 takes alone: 4.000 s"), "{found:?}");
        assert_eq!(found[1], "layer 1 is bound by inflate; as zstd about −50 % (the image −50 %)");
    }

    #[test]
    fn an_image_of_small_files_and_a_slow_run_are_told_so() {
        let found = texts(
            &[layer([0.0, 0.0, 0.1, 0.1, 0.02], Codec::Zstd), layer([0.0, 0.0, 0.1, 0.1, 2.0], Codec::Zstd)],
            1,
            5.0,
        );
        assert!(
            found[0].starts_with("all stages together keep 1 CPUs busy") && found[0].contains("file creation (83 %)"),
            "{found:?}"
        );
        assert_eq!(
            found[1],
            "layer 2 is bound by file creation: 1000 entries, 2000.0 µs each; another codec would not help"
        );
        assert!(found[2].starts_with("52 % of the wall time is above the floor"), "{found:?}");
        assert_eq!(texts(&[], 2, 1.0), Vec::<String>::new());
    }
}
