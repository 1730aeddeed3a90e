//! `images`, `layers`, `rm`, `gc`: what the store holds.

use std::collections::HashMap;

use serde::Serialize;

use super::Context;
use super::output::{self, Align, Table, age, human_bytes, printable, short};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Durable, ImageRecord, ImageUsage, Store, User};

#[derive(Serialize)]
struct Images {
    images: Vec<ImageDoc>,
}

#[derive(Serialize)]
struct ImageDoc {
    image_id: String,
    names: Vec<String>,
    chain_id: String,
    layers: Vec<String>,
    bytes: u64,
    exclusive_bytes: u64,
    shared_bytes: u64,
}

pub fn images(context: &Context) -> Result<()> {
    let usage = context.existing_store()?.usage()?;
    if context.global.json {
        let doc = |usage: &ImageUsage| ImageDoc {
            image_id: usage.record.image.image_id.to_string(),
            names: usage.record.names.clone(),
            chain_id: usage.record.image.chain_id.to_string(),
            layers: usage.record.image.layers.iter().map(|layer| layer.diff_id.to_string()).collect(),
            bytes: usage.exclusive.saturating_add(usage.shared),
            exclusive_bytes: usage.exclusive,
            shared_bytes: usage.shared,
        };
        return output::json(Images { images: usage.images.iter().map(doc).collect() });
    }
    let mut table = Table::new(&[
        ("IMAGE ID", Align::Left),
        ("PLATFORM", Align::Left),
        ("LAYERS", Align::Right),
        ("SIZE", Align::Right),
        ("SHARED", Align::Right),
        ("PULLED", Align::Right),
        ("NAME", Align::Left),
    ]);
    for usage in &usage.images {
        let image = &usage.record.image;
        let platform = &image.platform;
        let platform = crate::image::Platform::new(&platform.os, &platform.architecture, platform.variant.as_deref());
        let cells = |name: String| {
            [
                short(&image.image_id.0),
                platform.to_string(),
                image.layers.len().to_string(),
                human_bytes(usage.exclusive.saturating_add(usage.shared)),
                human_bytes(usage.shared),
                age(usage.record.updated.0),
                name,
            ]
        };
        if usage.record.names.is_empty() {
            table.row(cells("-".to_owned()));
        }
        for name in &usage.record.names {
            table.row(cells(printable(name)));
        }
    }
    output::text(&table.render())
}

#[derive(Serialize)]
struct Layers {
    layers: Vec<LayerDoc>,
}

#[derive(Serialize)]
struct LayerDoc {
    diff_id: String,
    entries: u64,
    bytes: u64,
    exclusive_bytes: u64,
    shared_bytes: u64,
    durable: bool,
    used_by: Vec<String>,
}

pub fn layers(context: &Context) -> Result<()> {
    let usage = context.existing_store()?.usage()?;
    let names: HashMap<_, _> = usage
        .images
        .iter()
        .filter_map(|usage| Some((usage.record.image.image_id, usage.record.names.first()?)))
        .collect();
    let mut docs = Vec::new();
    let mut table = Table::new(&[
        ("DIFF ID", Align::Left),
        ("ENTRIES", Align::Right),
        ("SIZE", Align::Right),
        ("IMAGES", Align::Right),
        ("DURABLE", Align::Left),
        ("USED BY", Align::Left),
    ]);
    for used in &usage.layers {
        let layer = &used.layer;
        let durable = *layer.durable() == Durable::Yes;
        let (entries, bytes, images) = (layer.facts().entries, used.bytes(), used.images());
        if context.global.json {
            let (exclusive_bytes, shared_bytes) = if images > 1 { (0, bytes) } else { (bytes, 0) };
            docs.push(LayerDoc {
                diff_id: layer.diff_id().to_string(),
                entries,
                bytes,
                exclusive_bytes,
                shared_bytes,
                durable,
                used_by: used.users.iter().map(full).collect(),
            });
            continue;
        }
        let mut shown: Vec<String> = Vec::new();
        for user in used.users.iter().take(2) {
            shown.push(match user {
                User::Image(id) => {
                    names.get(id).map_or_else(|| format!("image:{}", short(&id.0)), |name| printable(name))
                }
                other => full(other),
            });
        }
        let mut users = shown.join(", ");
        match (users.is_empty(), used.users.len().saturating_sub(2)) {
            (true, _) => users.push('-'),
            (false, 0) => {}
            (false, more) => users.push_str(&format!(" and {more} more")),
        }
        let yes_no = if durable { "yes" } else { "no" };
        table.row([
            short(&layer.diff_id().0),
            entries.to_string(),
            human_bytes(bytes),
            images.to_string(),
            yes_no.to_owned(),
            users,
        ]);
    }
    match context.global.json {
        true => output::json(Layers { layers: docs }),
        false => output::text(&table.render()),
    }
}

/// Writes a user of a layer as JSON has it.
fn full(user: &User) -> String {
    match user {
        User::Image(id) => format!("image:{id}"),
        User::Snapshot(key) => format!("snapshot:{}", printable(key)),
        User::Mount(target) => format!("mount:{}", crate::error::escape(target.as_os_str().as_encoded_bytes())),
        User::Pin => "pin".to_owned(),
    }
}

#[derive(Serialize)]
struct Removed {
    removed: Vec<RemovedDoc>,
}

#[derive(Serialize)]
struct RemovedDoc {
    image_id: String,
    untagged: Vec<String>,
    deleted: bool,
}

pub fn rm(context: &Context, images: &[String]) -> Result<()> {
    let store = context.existing_store()?;
    // All or nothing, as far as one can look ahead.
    for image in images {
        find(&store, image)?;
    }
    let mut removed = Vec::new();
    let mut text = String::new();
    for image in images {
        let record = match find(&store, image) {
            Ok(record) => record,
            // Two arguments meant one image.
            Err(e) if e.kind() == ErrorKind::NotFound && !removed.is_empty() => continue,
            Err(e) => return Err(e),
        };
        let image_id = record.image.image_id;
        let doc = if record.names.contains(image) {
            let deleted = store.untag(image)?;
            RemovedDoc { image_id: image_id.to_string(), untagged: vec![image.clone()], deleted }
        } else {
            store.remove_image(&image_id)?;
            RemovedDoc { image_id: image_id.to_string(), untagged: record.names, deleted: true }
        };
        for name in &doc.untagged {
            text.push_str(&format!("untagged {}\n", printable(name)));
        }
        if doc.deleted {
            text.push_str(&format!("removed {}\n", doc.image_id));
        }
        removed.push(doc);
    }
    match context.global.json {
        true => output::json(Removed { removed }),
        false => output::text(&text),
    }
}

/// Finds an image by name, by id, or by the very reference that it was pulled by.
pub fn find(store: &Store, image: &str) -> Result<ImageRecord> {
    match store.find_image(image) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let mut same = store.images()?.into_iter().filter(|record| record.image.reference == image);
            match (same.next(), same.next()) {
                (Some(one), None) => Ok(one),
                (Some(_), Some(_)) => {
                    Err(Error::new(ErrorKind::NotFound, "several images were pulled by this reference")
                        .with_image(printable(image))
                        .with_hint("name one by its id"))
                }
                _ => Err(e),
            }
        }
        other => other,
    }
}

#[derive(Serialize)]
struct Freed {
    dry_run: bool,
    layers: Vec<FreedDoc>,
    fixups: Vec<FreedDoc>,
    leftovers: Vec<String>,
    bytes: u64,
}

#[derive(Serialize)]
struct FreedDoc {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain_id: Option<String>,
    bytes: u64,
}

pub fn gc(context: &Context, dry_run: bool) -> Result<()> {
    let store = context.existing_store()?;
    let report = store.gc(dry_run)?;
    let layers = report.layers.iter().map(|freed| FreedDoc {
        id: freed.id.to_string(),
        diff_id: freed.key.map(|key| key.to_string()),
        chain_id: None,
        bytes: freed.bytes,
    });
    let fixups = report.fixups.iter().map(|freed| FreedDoc {
        id: freed.id.to_string(),
        diff_id: None,
        chain_id: freed.key.map(|key| key.to_string()),
        bytes: freed.bytes,
    });
    let leftover = |path: &std::path::PathBuf| crate::error::escape(path.as_os_str().as_encoded_bytes());
    let doc = Freed {
        dry_run,
        layers: layers.collect(),
        fixups: fixups.collect(),
        leftovers: report.leftovers.iter().map(leftover).collect(),
        bytes: report.bytes,
    };
    if context.global.json {
        return output::json(doc);
    }
    let mut text = String::new();
    let (verb, would) = if dry_run { ("would free", "would be freed") } else { ("freed", "freed") };
    for layer in &doc.layers {
        let id = layer.diff_id.as_ref().unwrap_or(&layer.id);
        text.push_str(&format!("{verb} layer {id} {}\n", human_bytes(layer.bytes)));
    }
    for fixup in &doc.fixups {
        let id = fixup.chain_id.as_ref().unwrap_or(&fixup.id);
        text.push_str(&format!("{verb} fix-up of {id} {}\n", human_bytes(fixup.bytes)));
    }
    for path in &doc.leftovers {
        text.push_str(&format!("{verb} {path}\n"));
    }
    text.push_str(&format!("{} {would}\n", human_bytes(doc.bytes)));
    output::text(&text)
}
