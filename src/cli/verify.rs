//! `verify`: are published layers still what was unpacked? `repair`: if not, make them so.

use serde::Serialize;

use super::Context;
use super::output::{self, human_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Reference;
use crate::store::{Damage, Depth, ImageLayer, ImageRecord, LayerOptions, LayerRef, Store};
use crate::unpack;

/// Findings that are listed of one layer; more are only counted.
const LISTED: usize = 100;

#[derive(Serialize)]
struct Verified {
    deep: bool,
    layers: Vec<LayerDoc>,
    fixups: Vec<FixupDoc>,
    damaged: usize,
}

#[derive(Serialize)]
struct FixupDoc {
    chain_id: String,
    image: String,
    damage: Vec<DamageDoc>,
    damage_count: u64,
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
    let images = match image {
        Some(image) => vec![store.find_image(image)?],
        None => store.images()?,
    };
    let mut fixups: Vec<FixupDoc> = Vec::new();
    for record in images {
        // What depends on damaged layers is judged once they are repaired.
        let whole = |layer: &ImageLayer| {
            let diff_id = layer.diff_id.to_string();
            layers.iter().any(|doc| doc.diff_id == diff_id && doc.damage_count == 0)
        };
        if record.image.layers.iter().all(whole) {
            look_at_fixups(context, &store, &record, depth, &mut fixups)?;
        }
    }
    let damaged = layers.iter().filter(|layer| layer.damage_count > 0).count()
        + fixups.iter().filter(|fixup| fixup.damage_count > 0).count();
    let doc = Verified { deep, layers, fixups, damaged };
    if context.global.json {
        output::json(&doc)?;
    } else {
        output::text(&render(&doc))?;
        if damaged > 0 {
            output::note("hint: `unply repair IMAGE` unpacks what is damaged again");
        }
    }
    Ok(if damaged > 0 { ErrorKind::Integrity.exit_code() } else { 0 })
}

fn look_at_fixups(
    context: &Context,
    store: &Store,
    record: &ImageRecord,
    depth: Depth,
    out: &mut Vec<FixupDoc>,
) -> Result<()> {
    let image = record.names.first().cloned().unwrap_or_else(|| record.image.image_id.to_string());
    let mut damage = Vec::new();
    let mut damage_count = 0;
    unpack::verify_fixups(store, record, depth, context.signals.token(), &mut |fixup, found| match found {
        Some(found) => {
            damage_count += 1;
            if damage.len() < LISTED {
                damage.push(DamageDoc::from(found));
            }
        }
        None => {
            let chain_id = fixup.record().chain_id.to_string();
            let (damage, damage_count) = (std::mem::take(&mut damage), std::mem::take(&mut damage_count));
            // Images that begin alike share it.
            if !out.iter().any(|doc| doc.chain_id == chain_id) {
                out.push(FixupDoc { chain_id, image: output::printable(&image), damage, damage_count });
            }
        }
    })
}

impl From<Damage> for DamageDoc {
    fn from(found: Damage) -> DamageDoc {
        DamageDoc { path: crate::error::escape(&found.path), kind: found.kind.code(), detail: found.detail }
    }
}

#[derive(Serialize)]
struct RepairedDoc {
    image_id: String,
    layers: Vec<String>,
    fixups: Vec<String>,
    remount: Vec<RemountDoc>,
}

#[derive(Serialize)]
struct RemountDoc {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<u32>,
}

pub fn repair(context: &Context, image: &str, from: Option<&str>) -> Result<()> {
    let store = context.existing_store()?;
    let record = store.find_image(image)?;
    let from: Option<Reference> = from.map(str::parse).transpose()?;
    let reporter = context.reporter();
    let done = unpack::repair(image, from.as_ref(), &store, &context.options(), &|e| reporter.event(e))?;
    reporter.finish(&[]);
    let doc = RepairedDoc {
        image_id: record.image.image_id.to_string(),
        layers: done.layers.iter().map(ToString::to_string).collect(),
        fixups: done.fixups.iter().map(ToString::to_string).collect(),
        remount: done
            .remount
            .iter()
            .map(|u| RemountDoc {
                path: crate::error::escape(u.target.as_os_str().as_encoded_bytes()),
                process: u.process,
            })
            .collect(),
    };
    if context.global.json {
        return output::json(&doc);
    }
    let mut text = String::new();
    for layer in &doc.layers {
        text.push_str(&format!("repaired layer {layer}\n"));
    }
    for fixup in &doc.fixups {
        text.push_str(&format!("repaired what corrects chain {fixup}\n"));
    }
    if text.is_empty() {
        text.push_str("no damage\n");
    }
    for mount in &doc.remount {
        let place = mount.process.map_or(String::new(), |id| format!(" in the mount namespace of process {id}"));
        text.push_str(&format!("remount {}{place}: it shows the damaged files until then\n", mount.path));
    }
    output::text(&text)
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
            damage.push(DamageDoc::from(d));
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
        list(&layer.damage, layer.damage_count, &mut text);
    }
    for fixup in doc.fixups.iter().filter(|fixup| fixup.damage_count > 0) {
        text.push_str(&format!("what corrects chain {} of {}: damaged\n", fixup.chain_id, fixup.image));
        list(&fixup.damage, fixup.damage_count, &mut text);
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

fn list(damage: &[DamageDoc], count: u64, text: &mut String) {
    for found in damage {
        let name = if found.path.is_empty() { String::new() } else { format!("\"{}\" ", found.path) };
        text.push_str(&format!("  {:<10} {name}{}\n", found.kind, found.detail));
    }
    let more = count - damage.len() as u64;
    if more > 0 {
        text.push_str(&format!("  and {more} more\n"));
    }
}
