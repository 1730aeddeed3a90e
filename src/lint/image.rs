//! What the documents of an image, and the descriptors of its layers, tell.

use serde::Deserialize;

use super::{Code, Findings};
use crate::digest::Algorithm;
use crate::image::{Image, LayerDescriptor};
use crate::policy::{Limit, Limits};
use crate::stream::StreamReport;
use crate::unpack::Options;

/// Layers that Docker stacks at most.
const DOCKER_LAYERS: usize = 128;

/// The parts of a config that nobody needs for unpacking
/// (<https://github.com/opencontainers/image-spec/blob/main/config.md#properties>).
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    history: Option<Vec<History>>,
}

#[derive(Deserialize)]
struct History {
    #[serde(default)]
    empty_layer: Option<bool>,
}

/// Looks at the image as a whole.
pub(super) fn look(image: &Image, findings: &mut Findings) {
    if image.layers.is_empty() {
        findings.add(Code::NoLayers, b"", "the image has no layers");
    }
    if image.layers.len() > DOCKER_LAYERS {
        findings.add(Code::ManyLayers, b"", format!("the image has {} layers", image.layers.len()));
    }
    // A single layer has no documents yet. A config that this cannot read was read before, with other eyes.
    let Ok(config) = serde_json::from_slice::<Config>(&image.config_raw) else { return };
    let missing = |word: &Option<String>| word.as_ref().is_none_or(String::is_empty);
    if missing(&config.os) || missing(&config.architecture) {
        findings.add(Code::NoPlatform, b"", "the config does not say for which system and architecture it is");
    }
    if let Some(history) = &config.history {
        let made = history.iter().filter(|step| step.empty_layer != Some(true)).count();
        if made != image.layers.len() {
            let detail = format!("the history tells of {made} layers, there are {}", image.layers.len());
            findings.add(Code::HistoryMismatch, b"", detail);
        }
    }
}

/// Looks at what is said of a layer, and at how large it turned out to be.
pub(super) fn look_at_layer(
    layer: &LayerDescriptor,
    options: &Options,
    report: Option<&StreamReport>,
    entries: u64,
    findings: &mut Findings,
) {
    if layer.media_type.contains(".nondistributable.") || layer.media_type.contains(".foreign.") {
        findings.add(Code::ForeignLayer, b"", format!("media type {}", layer.media_type));
    }
    if let Some(digest) = layer.digest
        && digest.0.algorithm() != Algorithm::Sha256
    {
        findings.add(Code::UncommonDigest, b"", digest.to_string());
    }
    let limits = &options.limits;
    near(limits, Limit::Entries, entries, b"", findings);
    if let Some(report) = report {
        let (packed, unpacked) = (report.compressed_bytes, report.uncompressed_bytes);
        near(limits, Limit::LayerBytes, unpacked, b"", findings);
        if unpacked > limits.ratio_floor {
            near(limits, Limit::Ratio, unpacked / packed.max(1), b"", findings);
        }
    }
}

/// Notes what comes to four fifths of a limit or more.
pub(super) fn near(limits: &Limits, limit: Limit, found: u64, path: &[u8], findings: &mut Findings) {
    let max = limits.get(limit);
    if found >= max - max / 5 {
        let (bounds, flag) = (limit.bounds(), limit.flag());
        findings.add(Code::NearLimit, path, format!("{bounds}: {found}, the limit is {max} (--{flag})"));
    }
}
