//! `snapshots`, `snapshot …`: containerd's snapshot contract for scripts.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::Context;
use super::args::{LabelChange, ListArgs, NewSnapshotArgs, SnapshotCommand};
use super::mounts;
use super::output::{self, Align, Table, age, human_bytes, printable, short};
use super::stored;
use crate::error::{Error, ErrorKind, Result, escape};
use crate::mount::{ContainerdMount, MountInfo, overlay_mounts};
use crate::store::{Base, NewSnapshot, SnapshotFilter, SnapshotKind, SnapshotRecord, Store, Time};
use crate::unpack;

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
    labels: BTreeMap<String, String>,
    created: Time,
    updated: Time,
    bytes: u64,
    inodes: u64,
    mounted_at: Vec<String>,
}

impl SnapshotDoc {
    fn new(store: &Store, record: SnapshotRecord, mounts: &[MountInfo]) -> Result<SnapshotDoc> {
        let usage = store.usage_of(&record)?;
        let mounted_at = mounts
            .iter()
            .filter(|mount| mounts::is_of(mount, &record, store))
            .map(|mount| escape(mount.target.as_os_str().as_encoded_bytes()))
            .collect();
        Ok(SnapshotDoc {
            key: record.key,
            kind: record.kind,
            image_id: record.image_id.map(|id| id.to_string()),
            parent: record.parent,
            labels: record.labels,
            created: record.created,
            updated: record.updated,
            bytes: usage.bytes,
            inodes: usage.inodes,
            mounted_at,
        })
    }
}

/// Lists the snapshots that fit.
pub fn list(context: &Context, args: &ListArgs) -> Result<()> {
    let filter = SnapshotFilter::parse(&args.filters)?;
    let store = context.existing_store()?;
    let mounts = overlay_mounts()?;
    let mut docs = Vec::new();
    let mut table = Table::new(&[
        ("KEY", Align::Left),
        ("KIND", Align::Left),
        ("PARENT", Align::Left),
        ("IMAGE", Align::Left),
        ("SIZE", Align::Right),
        ("MADE", Align::Right),
        ("MOUNTED AT", Align::Left),
    ]);
    for record in store.snapshots()?.into_iter().filter(|record| filter.fits(record)) {
        let image = record.image_id.map(|id| short(&id.0));
        let doc = match SnapshotDoc::new(&store, record, &mounts) {
            // Somebody removed it just now.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        let none = || "-".to_owned();
        table.row([
            printable(&doc.key),
            doc.kind.word().to_owned(),
            doc.parent.as_deref().map_or_else(none, printable),
            image.unwrap_or_else(none),
            human_bytes(doc.bytes),
            age(doc.created.0),
            if doc.mounted_at.is_empty() { none() } else { doc.mounted_at.join(", ") },
        ]);
        docs.push(doc);
    }
    match context.global.json {
        true => output::json(Snapshots { snapshots: docs }),
        false => output::text(&table.render()),
    }
}

/// Does one thing to snapshots.
pub fn run(context: &Context, command: SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Prepare(args) => make(context, args, SnapshotKind::Active),
        SnapshotCommand::View(args) => make(context, args, SnapshotKind::View),
        SnapshotCommand::Commit { name, key, parent, labels } => {
            let store = context.existing_store()?;
            let labels = labels.into_iter().collect();
            let record = store.commit_snapshot_onto(&name, &key, parent.as_deref(), labels)?;
            shown(context, &store, record)
        }
        SnapshotCommand::Rm { keys } => remove(context, &keys),
        SnapshotCommand::Stat { key } => stat(context, &key),
        SnapshotCommand::Label { key, changes } => label(context, &key, changes),
        SnapshotCommand::Usage { key } => usage(context, &key),
        SnapshotCommand::Mounts { key, dir } => print_mounts(context, &key, dir.as_deref()),
        SnapshotCommand::List(args) => list(context, &args),
    }
}

fn make(context: &Context, args: NewSnapshotArgs, kind: SnapshotKind) -> Result<()> {
    // Nothing needs to be there for a snapshot of nothing, not even the store.
    let store = if args.image.is_none() && args.parent.is_none() { context.store() } else { context.existing_store() }?;
    let labels = args.labels.into_iter().collect();
    let record = match args.image {
        Some(image) => {
            let reporter = context.reporter();
            let id = stored::find(&store, &image)?.image.image_id.to_string();
            let pulled = unpack::stored(&id, &store, &|e| reporter.event(e))?;
            pulled.chain.record_snapshot(&args.key, kind, labels)?
        }
        None => {
            // An empty parent is containerd's way to say none.
            let base = args.parent.filter(|parent| !parent.is_empty()).map_or(Base::Empty, Base::Snapshot);
            store.create_snapshot(NewSnapshot { key: args.key, kind, base, root: None, labels })?
        }
    };
    shown(context, &store, record)
}

/// Prints the key of a snapshot, or all about it.
fn shown(context: &Context, store: &Store, record: SnapshotRecord) -> Result<()> {
    match context.global.json {
        true => output::json(SnapshotDoc::new(store, record, &overlay_mounts()?)?),
        false => output::text(&format!("{}\n", printable(&record.key))),
    }
}

#[derive(Serialize)]
struct Removed<'a> {
    removed: &'a [String],
}

fn remove(context: &Context, keys: &[String]) -> Result<()> {
    let store = context.existing_store()?;
    // One name that is not there, and nothing goes.
    for key in keys {
        store.snapshot(key).map(drop).or_else(|e| match e.kind() {
            ErrorKind::Malformed => Ok(()),
            _ => Err(e),
        })?;
    }
    for key in keys {
        store.remove_snapshot(key)?;
        if !context.global.json {
            output::text(&format!("removed {}\n", printable(key)))?;
        }
    }
    match context.global.json {
        true => output::json(Removed { removed: keys }),
        false => Ok(()),
    }
}

fn stat(context: &Context, key: &str) -> Result<()> {
    let store = context.existing_store()?;
    let doc = SnapshotDoc::new(&store, store.snapshot(key)?, &overlay_mounts()?)?;
    if context.global.json {
        return output::json(doc);
    }
    let none = || "-".to_owned();
    let mut text = String::new();
    for (name, value) in [
        ("key", printable(&doc.key)),
        ("kind", doc.kind.word().to_owned()),
        ("parent", doc.parent.as_deref().map_or_else(none, printable)),
        ("image", doc.image_id.clone().unwrap_or_else(none)),
        ("made", age(doc.created.0)),
        ("changed", age(doc.updated.0)),
        ("size", format!("{}, {} inodes", human_bytes(doc.bytes), doc.inodes)),
        ("mounted", if doc.mounted_at.is_empty() { none() } else { doc.mounted_at.join(", ") }),
    ] {
        text.push_str(&format!("{name:<8} {value}\n"));
    }
    for (key, value) in &doc.labels {
        text.push_str(&format!("label    {}={}\n", printable(key), printable(value)));
    }
    output::text(&text)
}

fn label(context: &Context, key: &str, changes: Vec<LabelChange>) -> Result<()> {
    let store = context.existing_store()?;
    let paths: Vec<String> = changes.iter().map(|change| format!("labels.{}", change.key)).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    // The last change of a label wins.
    let values: BTreeMap<String, Option<String>> = changes.into_iter().map(|c| (c.key, c.value)).collect();
    let values = values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let record = store.update_snapshot(key, &values, &paths)?;
    if context.global.json {
        return shown(context, &store, record);
    }
    let line = |(key, value): (&String, &String)| format!("{}={}\n", printable(key), printable(value));
    output::text(&record.labels.iter().map(line).collect::<String>())
}

#[derive(Serialize)]
struct UsageDoc<'a> {
    key: &'a str,
    bytes: u64,
    inodes: u64,
}

fn usage(context: &Context, key: &str) -> Result<()> {
    let usage = context.existing_store()?.snapshot_usage(key)?;
    match context.global.json {
        true => output::json(UsageDoc { key, bytes: usage.bytes, inodes: usage.inodes }),
        false => output::text(&format!("{}, {} inodes\n", human_bytes(usage.bytes), usage.inodes)),
    }
}

#[derive(Serialize)]
struct MountsDoc<'a> {
    key: &'a str,
    target: String,
    mounts: [ContainerdMount; 1],
}

fn print_mounts(context: &Context, key: &str, dir: Option<&Path>) -> Result<()> {
    let store = context.existing_store()?;
    let plan = unpack::snapshot_plan(&store, key)?;
    let default = store.snapshot(key)?.mount_path(&store);
    let target = dir.unwrap_or(&default);
    let target = target.to_str().ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{} is no text", escape(target.as_os_str().as_encoded_bytes())))
    })?;
    if context.global.json {
        let mounts = [plan.render_containerd()?];
        return output::json(MountsDoc { key, target: target.to_owned(), mounts });
    }
    let options = quoted(&plan.render_mount8()?);
    let line = format!("mount -t overlay -o {options} {} {}\n", crate::mount::SOURCE, quoted(target));
    output::text(&line)
}

/// Quotes a word for a shell where it needs that.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/.,:=+-_@%".contains(&b);
    match word.bytes().all(plain) && !word.is_empty() && !word.starts_with('-') {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
