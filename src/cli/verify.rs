//! `verify`: are published layers still what was unpacked?

use serde::Serialize;

use super::Context;
use super::output::{self, human_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Damage, Depth, LayerOptions, LayerRef, Store};

/// Findings that are listed of one layer; more are only counted.
const LISTED: usize = 100;

#[derive(Serialize)]
struct Verified {
    deep: bool,
    layers: Vec<LayerDoc>,
    damaged: usize,
}

#[derive(Serialize)]
struct LayerDoc {
    diff_id: String,
    entries: u64,
    bytes: u64,
    damage: Vec<DamageDoc>,
    damage_count: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    used_by: Vec<String>,
}

#[derive(Serialize)]
struct DamageDoc {
    path: String,
    kind: &'static str,
    detail: String,
}

pub fn verify(context: &Context, image: Option<&str>, deep: bool) -> Result<u8> {
    let store = context.existing_store()?;
    let depth = if deep { Depth::Content } else { Depth::Names };
    let mut layers = Vec::new();
    for layer in chosen(&store, image)? {
        layers.push(look(context, &store, &layer, depth)?);
    }
    let damaged = layers.iter().filter(|layer| layer.damage_count > 0).count();
    let doc = Verified { deep, layers, damaged };
    if context.global.json {
        output::json(&doc)?;
    } else {
        output::text(&render(&doc))?;
        if damaged > 0 {
            output::note("hint: remove the damaged images with `unply rm`, run `unply gc`, and pull them again");
        }
    }
    Ok(if damaged > 0 { ErrorKind::Integrity.exit_code() } else { 0 })
}

/// Returns the layers of an image, bottom first, or all of the store.
fn chosen(store: &Store, image: Option<&str>) -> Result<Vec<LayerRef>> {
    let Some(image) = image else { return store.layers() };
    let record = store.find_image(image)?;
    let options = LayerOptions::from(&record.image.options);
    let mut out: Vec<LayerRef> = Vec::new();
    for described in &record.image.layers {
        let layer = store.layer(&described.diff_id, &options)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "a layer of the image is not in the store any more")
                .with_image(output::printable(image))
                .with_layer(described.diff_id)
                .with_hint("pull the image again")
        })?;
        if !out.iter().any(|have| have.id() == layer.id()) {
            out.push(layer);
        }
    }
    Ok(out)
}

fn look(context: &Context, store: &Store, layer: &LayerRef, depth: Depth) -> Result<LayerDoc> {
    let mut damage = Vec::new();
    let mut damage_count = 0;
    let mut found = |d: Damage| {
        damage_count += 1;
        if damage.len() < LISTED {
            let path = crate::error::escape(&d.path);
            damage.push(DamageDoc { path, kind: d.kind.code(), detail: d.detail });
        }
    };
    let result = store.verify_layer(layer, depth, context.signals.token(), &mut found);
    if let Err(e) = result {
        if e.kind() != ErrorKind::Integrity {
            return Err(e.with_layer(layer.diff_id()));
        }
        damage_count += 1;
        damage.push(DamageDoc { path: String::new(), kind: "record", detail: e.message().to_owned() });
    }
    let mut used_by = Vec::new();
    if damage_count > 0 {
        for record in store.images()? {
            let uses = record.image.layers.iter().any(|l| l.diff_id == layer.diff_id());
            if uses && LayerOptions::from(&record.image.options) == layer.record().options {
                used_by.extend(record.names.iter().map(|name| output::printable(name)));
            }
        }
    }
    let facts = layer.facts();
    let (entries, bytes) = (facts.entries, facts.content_bytes);
    Ok(LayerDoc { diff_id: layer.diff_id().to_string(), entries, bytes, damage, damage_count, used_by })
}

fn render(doc: &Verified) -> String {
    let mut text = String::new();
    for layer in doc.layers.iter().filter(|layer| layer.damage_count > 0) {
        text.push_str(&format!("layer {}", layer.diff_id));
        if !layer.used_by.is_empty() {
            text.push_str(&format!(" of {}", layer.used_by.join(", ")));
        }
        text.push_str(": damaged\n");
        for found in &layer.damage {
            let name = if found.path.is_empty() { String::new() } else { format!("\"{}\" ", found.path) };
            text.push_str(&format!("  {:<10} {name}{}\n", found.kind, found.detail));
        }
        let more = layer.damage_count - layer.damage.len() as u64;
        if more > 0 {
            text.push_str(&format!("  and {more} more\n"));
        }
    }
    let bytes: u64 = doc.layers.iter().map(|layer| layer.bytes).sum();
    let looked_at =
        if doc.deep { format!("{} of content read", human_bytes(bytes)) } else { "content not read".into() };
    let layers = doc.layers.len();
    let verdict = match doc.damaged {
        0 => "no damage".to_owned(),
        n => format!("{n} damaged"),
    };
    text.push_str(&format!("{layers} layer{}, {looked_at}: {verdict}\n", if layers == 1 { "" } else { "s" }));
    text
}
