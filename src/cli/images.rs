//! `unpack`, `pull`, `inspect`.

use std::path::Path;

use serde::Serialize;

use super::Context;
use super::output::{self, Align, Table, human_bytes, printable};
use super::report::{LayerDoc, Warnings};
use crate::digest::{ChainId, DiffId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{self, Image, Reference, Source};
use crate::store::ImageRecord;
use crate::stream::{Expected, LayerStream, StreamOptions};
use crate::unpack::{self, LayerOutcome, Options};

#[derive(Serialize)]
struct PullDoc {
    image_id: String,
    chain_id: String,
    layers: Vec<LayerDoc>,
    #[serde(flatten)]
    warnings: Warnings,
}

impl PullDoc {
    fn new(ids: &unpack::Ids, layers: &[LayerOutcome], warnings: Warnings) -> PullDoc {
        PullDoc {
            image_id: ids.image_id.to_string(),
            chain_id: ids.chain_id.to_string(),
            layers: layers.iter().map(LayerDoc::from).collect(),
            warnings,
        }
    }
}

pub fn unpack(context: &Context, image: &str, dir: &Path) -> Result<()> {
    let reference: Reference = image.parse()?;
    let store = context.store_of(&reference)?;
    let reporter = context.reporter();
    let done = unpack::unpack(&reference, dir, store.as_ref(), &context.options(), &|e| reporter.event(e))?;
    let warnings = reporter.finish(&done.layers);
    match context.global.json {
        true => output::json(PullDoc::new(&done.ids, &done.layers, warnings)),
        false => output::text(&format!("{}\n", done.ids.chain_id)),
    }
}

pub fn pull(context: &Context, image: &str) -> Result<()> {
    let reference: Reference = image.parse()?;
    let store = match context.store_of(&reference)? {
        Some(store) => store,
        None => context.store()?,
    };
    let reporter = context.reporter();
    let done = unpack::pull(&reference, &store, &context.options(), &|e| reporter.event(e))?;
    let warnings = reporter.finish(&done.layers);
    let ids = unpack::Ids { image_id: done.record.image.image_id, chain_id: done.chain.chain_id() };
    match context.global.json {
        true => output::json(PullDoc::new(&ids, &done.layers, warnings)),
        false => output::text(&format!("{}\n", ids.image_id)),
    }
}

#[derive(Serialize)]
struct InspectDoc {
    reference: String,
    image_id: Option<String>,
    manifest_digest: Option<String>,
    platform: image::Platform,
    layers: Vec<InspectLayer>,
}

#[derive(Serialize)]
struct InspectLayer {
    digest: Option<String>,
    media_type: String,
    size: Option<u64>,
    diff_id: Option<String>,
    chain_id: Option<String>,
}

pub fn inspect(context: &Context, image: &str) -> Result<()> {
    let reference: Reference = image.parse()?;
    let options = context.options();
    let doc = match &reference {
        Reference::Stored(name) => {
            let store = context.store_of(&reference)?;
            let store = store.ok_or_else(|| Error::new(ErrorKind::Other, "no store was opened"))?;
            of_record(&store.find_image(name)?)
        }
        _ => match image::open(&reference, &options.open_options())? {
            Source::Image(image) => of_image(&with_diff_id(image, &options)?),
            // Members are skipped, not unpacked; the documents say everything.
            Source::Stream(stream) => of_image(&stream.read(|_| Ok(()))?.image),
        },
    };
    match context.global.json {
        true => output::json(doc),
        false => output::text(&render(&doc, context.global.verbose > 0)),
    }
}

/// Reads a single layer to its end, where only that tells its diff_id.
fn with_diff_id(mut image: Image, options: &Options) -> Result<Image> {
    if image.image_id.is_some() {
        return Ok(image);
    }
    let expected = image.layers.first().map_or_else(Expected::default, |layer| Expected {
        digest: layer.digest,
        // The size found when it was opened is no promise.
        size: None,
        diff_id: None,
    });
    let stream = StreamOptions {
        limits: options.limits.clone(),
        expected,
        cancel: options.cancel.clone(),
        ..StreamOptions::default()
    };
    let named = |e: Error, image: &Image| e.with_image(&image.reference);
    let blob = image.open_layer(0)?;
    let report = LayerStream::open(blob, stream).and_then(LayerStream::finish).map_err(|e| named(e, &image))?;
    image.settle_layer(report.diff_id)?;
    if let [layer] = image.layers.as_mut_slice() {
        layer.digest = Some(report.digest);
        layer.size = Some(report.compressed_bytes);
    }
    Ok(image)
}

fn of_image(image: &Image) -> InspectDoc {
    let diff_ids: Vec<DiffId> = image.layers.iter().map_while(|layer| layer.diff_id).collect();
    let chains = ChainId::of_layers(&diff_ids);
    let layers = image.layers.iter().enumerate().map(|(at, layer)| InspectLayer {
        digest: layer.digest.map(|d| d.to_string()).or_else(|| {
            // Of an uncompressed blob both digests are one.
            let plain = layer.media_type.ends_with(".tar") || layer.media_type.ends_with(".diff.tar");
            layer.diff_id.filter(|_| plain).map(|d| d.to_string())
        }),
        media_type: layer.media_type.clone(),
        size: layer.size,
        diff_id: layer.diff_id.map(|d| d.to_string()),
        chain_id: chains.get(at).map(ToString::to_string),
    });
    InspectDoc {
        reference: image.reference.clone(),
        image_id: image.image_id.map(|d| d.to_string()),
        manifest_digest: image.manifest_digest.map(|d| d.to_string()),
        platform: image.platform.clone(),
        layers: layers.collect(),
    }
}

fn of_record(record: &ImageRecord) -> InspectDoc {
    let image = &record.image;
    let diff_ids: Vec<DiffId> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let layers = image.layers.iter().zip(ChainId::of_layers(&diff_ids)).map(|(layer, chain_id)| InspectLayer {
        digest: Some(layer.digest.to_string()),
        media_type: layer.media_type.clone(),
        size: Some(layer.size),
        diff_id: Some(layer.diff_id.to_string()),
        chain_id: Some(chain_id.to_string()),
    });
    InspectDoc {
        reference: image.reference.clone(),
        image_id: Some(image.image_id.to_string()),
        manifest_digest: image.manifest_digest.map(|d| d.to_string()),
        platform: image::Platform {
            os: image.platform.os.clone(),
            architecture: image.platform.architecture.clone(),
            variant: image.platform.variant.clone(),
        },
        layers: layers.collect(),
    }
}

/// Lays the ids out; those of layers in full only with `full`, for three of them fill no terminal's line.
fn render(doc: &InspectDoc, full: bool) -> String {
    let unknown = || "unknown".to_owned();
    let mut out = String::new();
    for (name, value) in [
        ("reference", printable(&doc.reference)),
        ("image id", doc.image_id.clone().unwrap_or_else(unknown)),
        ("manifest", doc.manifest_digest.clone().unwrap_or_else(|| "none".to_owned())),
        ("platform", doc.platform.to_string()),
        ("layers", format!("{}, bottom first", doc.layers.len())),
    ] {
        out.push_str(&format!("{name:<10} {value}\n"));
    }
    if doc.layers.is_empty() {
        return out;
    }
    let (left, right) = (Align::Left, Align::Right);
    let columns =
        [("#", right), ("DIGEST", left), ("DIFF ID", left), ("CHAIN ID", left), ("SIZE", right), ("MEDIA TYPE", left)];
    let mut table = Table::new(&columns);
    let id = |id: &Option<String>| match (id, full) {
        (None, _) => unknown(),
        (Some(id), true) => id.clone(),
        (Some(id), false) => id.split_once(':').map_or("", |(_, hex)| hex).chars().take(12).collect(),
    };
    for (at, layer) in doc.layers.iter().enumerate() {
        table.row([
            (at + 1).to_string(),
            id(&layer.digest),
            id(&layer.diff_id),
            id(&layer.chain_id),
            layer.size.map_or_else(unknown, human_bytes),
            printable(&layer.media_type),
        ]);
    }
    out.push('\n');
    out.push_str(&table.render());
    if !full {
        out.push_str("\n-v shows whole digests\n");
    }
    out
}
