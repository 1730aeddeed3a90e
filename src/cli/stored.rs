//! `images`, `layers`, `snapshots`, `rm`, `gc`: what the store holds.

use std::collections::HashMap;

use serde::Serialize;

use super::Context;
use super::mounts;
use super::output::{self, Align, Table, age, human_bytes, printable, short};
use crate::digest::DiffId;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Durable, ImageRecord, LayerOptions, Lower, SnapshotKind, Store};

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
}

pub fn images(context: &Context) -> Result<()> {
    let store = context.existing_store()?;
    let records = store.images()?;
    if context.global.json {
        let doc = |record: &ImageRecord| ImageDoc {
            image_id: record.image.image_id.to_string(),
            names: record.names.clone(),
            chain_id: record.image.chain_id.to_string(),
            layers: record.image.layers.iter().map(|layer| layer.diff_id.to_string()).collect(),
        };
        return output::json(Images { images: records.iter().map(doc).collect() });
    }
    let sizes: HashMap<DiffId, u64> =
        store.layers()?.iter().map(|layer| (layer.diff_id(), layer.facts().content_bytes)).collect();
    let mut table = Table::new(&[
        ("IMAGE ID", Align::Left),
        ("PLATFORM", Align::Left),
        ("LAYERS", Align::Right),
        ("SIZE", Align::Right),
        ("PULLED", Align::Right),
        ("NAME", Align::Left),
    ]);
    for record in &records {
        let image = &record.image;
        let mut distinct: Vec<DiffId> = image.layers.iter().map(|layer| layer.diff_id).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let bytes = distinct.iter().filter_map(|diff_id| sizes.get(diff_id)).sum();
        let platform = &image.platform;
        let platform = crate::image::Platform::new(&platform.os, &platform.architecture, platform.variant.as_deref());
        let cells = |name: String| {
            [
                short(&image.image_id.0),
                platform.to_string(),
                image.layers.len().to_string(),
                human_bytes(bytes),
                age(record.updated.0),
                name,
            ]
        };
        if record.names.is_empty() {
            table.row(cells("-".to_owned()));
        }
        for name in &record.names {
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
    durable: bool,
    used_by: Vec<String>,
}

pub fn layers(context: &Context) -> Result<()> {
    let store = context.existing_store()?;
    let (images, snapshots) = (store.images()?, store.snapshots()?);
    let mut docs = Vec::new();
    let mut table = Table::new(&[
        ("DIFF ID", Align::Left),
        ("ENTRIES", Align::Right),
        ("SIZE", Align::Right),
        ("DURABLE", Align::Left),
        ("USED BY", Align::Left),
    ]);
    for layer in store.layers()? {
        let mut used_by = Vec::new();
        let mut shown = Vec::new();
        for record in &images {
            let options = LayerOptions::from(&record.image.options);
            let has = record.image.layers.iter().any(|l| l.diff_id == layer.diff_id());
            if has && options == layer.record().options {
                used_by.push(format!("image:{}", record.image.image_id));
                let id = || format!("image:{}", short(&record.image.image_id.0));
                shown.push(record.names.first().map_or_else(id, |name| printable(name)));
            }
        }
        for snapshot in &snapshots {
            if snapshot.lowers.contains(&Lower::Layer(layer.id())) {
                used_by.push(format!("snapshot:{}", snapshot.key));
                shown.push(format!("snapshot:{}", printable(&snapshot.key)));
            }
        }
        let durable = *layer.durable() == Durable::Yes;
        let (entries, bytes) = (layer.facts().entries, layer.facts().content_bytes);
        let more = shown.len().saturating_sub(2);
        shown.truncate(2);
        let mut users = shown.join(", ");
        match (users.is_empty(), more) {
            (true, _) => users.push('-'),
            (false, 0) => {}
            (false, more) => users.push_str(&format!(" and {more} more")),
        }
        let yes_no = if durable { "yes" } else { "no" };
        table.row([short(&layer.diff_id().0), entries.to_string(), human_bytes(bytes), yes_no.to_owned(), users]);
        docs.push(LayerDoc { diff_id: layer.diff_id().to_string(), entries, bytes, durable, used_by });
    }
    match context.global.json {
        true => output::json(Layers { layers: docs }),
        false => output::text(&table.render()),
    }
}

#[derive(Serialize)]
struct Snapshots {
    snapshots: Vec<SnapshotDoc>,
}

#[derive(Serialize)]
struct SnapshotDoc {
    key: String,
    kind: SnapshotKind,
    image_id: Option<String>,
    parent: Option<String>,
    bytes: u64,
    inodes: u64,
    mounted_at: Vec<String>,
}

pub fn snapshots(context: &Context) -> Result<()> {
    let store = context.existing_store()?;
    let mounts = crate::mount::overlay_mounts()?;
    let mut docs = Vec::new();
    let mut table = Table::new(&[
        ("KEY", Align::Left),
        ("KIND", Align::Left),
        ("IMAGE", Align::Left),
        ("SIZE", Align::Right),
        ("MADE", Align::Right),
        ("MOUNTED AT", Align::Left),
    ]);
    for record in store.snapshots()? {
        let usage = store.snapshot_usage(&record.key)?;
        let mounted_at: Vec<String> = mounts
            .iter()
            .filter(|mount| mounts::is_of(mount, &record, &store))
            .map(|mount| crate::error::escape(mount.target.as_os_str().as_encoded_bytes()))
            .collect();
        let kind = match record.kind {
            SnapshotKind::Active => "active",
            SnapshotKind::View => "view",
            SnapshotKind::Committed => "committed",
        };
        let none = || "-".to_owned();
        table.row([
            printable(&record.key),
            kind.to_owned(),
            record.image_id.map_or_else(none, |id| short(&id.0)),
            human_bytes(usage.bytes),
            age(record.created.0),
            if mounted_at.is_empty() { none() } else { mounted_at.join(", ") },
        ]);
        docs.push(SnapshotDoc {
            key: record.key,
            kind: record.kind,
            image_id: record.image_id.map(|id| id.to_string()),
            parent: record.parent,
            bytes: usage.bytes,
            inodes: usage.inodes,
            mounted_at,
        });
    }
    match context.global.json {
        true => output::json(Snapshots { snapshots: docs }),
        false => output::text(&table.render()),
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
fn find(store: &Store, image: &str) -> Result<ImageRecord> {
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
        text.push_str(&format!("{verb} fix-up of {}\n", fixup.chain_id.as_ref().unwrap_or(&fixup.id)));
    }
    for path in &doc.leftovers {
        text.push_str(&format!("{verb} {path}\n"));
    }
    text.push_str(&format!("{} {would}\n", human_bytes(doc.bytes)));
    output::text(&text)
}
