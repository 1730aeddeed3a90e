//! `mount`, `umount`.
//!
//! Every mount stands on a snapshot of the store, a read-only one on a view: the record is what keeps the layers from being
//! collected after this process has ended. A snapshot is found again by its upper directory in the mount table, a
//! view by the mount point in its label.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Context;
use super::args::{MountArgs, UmountArgs};
use super::output;
use crate::error::{Error, ErrorKind, Result, escape};
use crate::image::Reference;
use crate::mount::{self, MountInfo, MountPlan};
use crate::store::{SnapshotKind, SnapshotRecord, Store};
use crate::sys;
use crate::unpack::{self, Pulled, Snapshot};

/// The label that says where a snapshot was mounted last.
const MOUNT_POINT: &str = "unply.mount-point";

#[derive(Serialize)]
struct MountDoc {
    path: String,
    key: String,
    chain_id: Option<String>,
    read_only: bool,
    lowerdirs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upperdir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workdir: Option<String>,
}

pub fn mount(context: &Context, args: &MountArgs) -> Result<u8> {
    match (&args.image, &args.snapshot) {
        (Some(image), _) => mount_image(context, args, &image.parse()?),
        (None, Some(key)) => mount_kept(context, args, key),
        (None, None) => Err(Error::new(ErrorKind::Usage, "neither an image nor a snapshot is named")),
    }
}

fn mount_image(context: &Context, args: &MountArgs, reference: &Reference) -> Result<u8> {
    let dir = args.dir.as_deref().map(mount_point).transpose()?;
    let store = match context.store_of(reference)? {
        Some(store) => store,
        None => context.store()?,
    };
    let reporter = context.reporter();
    let pulled = unpack::pull(reference, &store, &context.options(), &|e| reporter.event(e))?;
    reporter.finish(&pulled.layers);
    context.signals.token().check()?;
    let (snapshot, fresh) = take_snapshot(&store, &pulled, args)?;
    let chain_id = Some(pulled.chain.chain_id().to_string());
    put_up(context, args, &store, snapshot, dir, chain_id, fresh).map_err(|e| e.with_image(reference))
}

/// Mounts a snapshot that was kept, whatever became of its image's name.
fn mount_kept(context: &Context, args: &MountArgs, key: &str) -> Result<u8> {
    let store = context.existing_store()?;
    let snapshot = Snapshot::open(&store, key)?;
    // It knows itself what it is.
    let read_only = args.read_only || snapshot.record().kind == SnapshotKind::View;
    mountable(&store, snapshot.record(), read_only)?;
    let image = snapshot.record().image_id.map(|id| store.find_image(&id.to_string()));
    let chain_id = image.and_then(|image| Some(image.ok()?.image.chain_id.to_string()));
    put_up(context, args, &store, snapshot, None, chain_id, false)
}

/// Mounts a snapshot; runs the command inside, where there is one.
fn put_up(
    context: &Context,
    args: &MountArgs,
    store: &Store,
    snapshot: Snapshot,
    dir: Option<PathBuf>,
    chain_id: Option<String>,
    fresh: bool,
) -> Result<u8> {
    let key = snapshot.record().key.clone();
    let target = dir.unwrap_or_else(|| snapshot.mount_path());
    let plan = snapshot.plan();
    let path = match label(store, &key, &target).and_then(|()| plan.attach(&target)) {
        Ok(attached) => attached.target().to_path_buf(),
        Err(e) => {
            drop(snapshot);
            if fresh && let Err(left) = store.remove_snapshot(&key) {
                output::note(format_args!("warning: snapshot {} is left behind: {left}", output::printable(&key)));
            }
            return Err(e);
        }
    };
    if args.command.is_empty() {
        report(context, &path, &key, chain_id, &plan)?;
        return Ok(0);
    }
    let code = run_inside(context, &path, &args.command);
    mount::detach(&path)?;
    drop(snapshot);
    if args.snapshot.is_none() || args.read_only {
        store.remove_snapshot(&key)?;
    }
    code
}

fn report(context: &Context, path: &Path, key: &str, chain_id: Option<String>, plan: &MountPlan) -> Result<()> {
    if !context.global.json {
        let mut line = path.as_os_str().as_encoded_bytes().to_vec();
        line.push(b'\n');
        return output::bytes(&line);
    }
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    output::json(MountDoc {
        path: path.to_string_lossy().into_owned(),
        key: key.to_owned(),
        chain_id,
        read_only: plan.upper.is_none(),
        lowerdirs: plan.lowers.iter().map(text).collect(),
        upperdir: plan.upper.as_ref().map(|upper| text(&upper.upper)),
        workdir: plan.upper.as_ref().map(|upper| text(&upper.work)),
    })
}

/// Checks the directory to mount at, before anything is pulled.
fn mount_point(dir: &Path) -> Result<PathBuf> {
    let path = std::fs::canonicalize(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, format!("{} does not exist", dir.display())).with_hint("make it first")
        }
        _ => Error::io(format!("resolve {}", dir.display()), e),
    })?;
    if !path.is_dir() {
        return Err(Error::new(ErrorKind::Usage, format!("{} is no directory", dir.display())));
    }
    match mount::find_mount(&path)? {
        Some(found) if is_ours(&found) => {
            Err(Error::new(ErrorKind::Busy, format!("an image is mounted at {} already", path.display()))
                .with_hint(format!("unply umount {}", path.display())))
        }
        _ => Ok(path),
    }
}

/// Makes the snapshot to be mounted, or takes the kept one; tells whether it is new.
fn take_snapshot(store: &Store, pulled: &Pulled, args: &MountArgs) -> Result<(Snapshot, bool)> {
    let make = |key: &str| match args.read_only {
        true => pulled.chain.view_snapshot(key),
        false => pulled.chain.snapshot(key),
    };
    let Some(key) = &args.snapshot else {
        loop {
            match pulled.chain.ephemeral_snapshot(&random_key(), args.read_only) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                other => return other.map(|snapshot| (snapshot, true)),
            }
        }
    };
    match make(key) {
        Ok(snapshot) => Ok((snapshot, true)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => kept(store, pulled, key, args.read_only).map(|s| (s, false)),
        Err(e) => Err(e),
    }
}

fn kept(store: &Store, pulled: &Pulled, key: &str, read_only: bool) -> Result<Snapshot> {
    let snapshot = Snapshot::open(store, key)?;
    let record = snapshot.record();
    let image_id = pulled.record.image.image_id;
    if record.image_id != Some(image_id) {
        let stands_on = record.image_id.map_or_else(|| "no image".to_owned(), |id| format!("image {id}"));
        let what = format!("snapshot \"{}\" stands on {stands_on}, not on {image_id}", output::printable(key));
        return Err(Error::new(ErrorKind::Usage, what));
    }
    mountable(store, record, read_only)?;
    Ok(snapshot)
}

/// Refuses what a kept snapshot cannot be mounted as.
fn mountable(store: &Store, record: &SnapshotRecord, read_only: bool) -> Result<()> {
    let key = output::printable(&record.key);
    let refuse = |kind, what: String| Err(Error::new(kind, format!("snapshot \"{key}\" {what}")));
    match (record.kind, read_only) {
        (SnapshotKind::Active, false) | (SnapshotKind::View, true) => {}
        (SnapshotKind::Active, true) => return refuse(ErrorKind::Usage, "is writable".to_owned()),
        (SnapshotKind::View, false) => return refuse(ErrorKind::Usage, "is read-only".to_owned()),
        (SnapshotKind::Committed, _) => return refuse(ErrorKind::Usage, "is committed".to_owned()),
    }
    // Two mounts of one upper directory would damage it.
    if let Some(mounted) = mount::overlay_mounts()?.iter().find(|m| is_of(m, record, store)) {
        return refuse(ErrorKind::Busy, format!("is mounted at {} already", mounted.target.display()));
    }
    Ok(())
}

fn random_key() -> String {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:012x}", hasher.finish() >> 16)
}

/// Notes where a snapshot is about to be mounted.
fn label(store: &Store, key: &str, target: &Path) -> Result<()> {
    let labels = BTreeMap::from([(MOUNT_POINT.to_owned(), escape(target.as_os_str().as_encoded_bytes()))]);
    store.update_snapshot(key, &labels, &[&format!("labels.{MOUNT_POINT}")]).map(drop)
}

fn is_labelled(record: &SnapshotRecord, target: &Path) -> bool {
    record.labels.get(MOUNT_POINT).is_some_and(|at| *at == escape(target.as_os_str().as_encoded_bytes()))
}

fn is_ours(mount: &MountInfo) -> bool {
    mount.fs_type == "overlay" && mount.source == mount::SOURCE
}

/// Tells whether `mount` is this snapshot's.
pub fn is_of(mount: &MountInfo, record: &SnapshotRecord, store: &Store) -> bool {
    match record.kind {
        SnapshotKind::Active => mount.uses(&record.upper_path(store)),
        SnapshotKind::View => {
            is_ours(mount) && mount.upper().is_none() && mount.uses(store.root()) && is_labelled(record, &mount.target)
        }
        SnapshotKind::Committed => false,
    }
}

/// Runs a command with the mount as its root; returns its exit code as a shell would.
fn run_inside(context: &Context, root: &Path, command: &[OsString]) -> Result<u8> {
    let Some((program, arguments)) = command.split_first() else { return Ok(0) };
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    sys::enter_root(&mut command, root, context.soft_files)?;
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            let code = if e.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            let what = format!("run {} inside the image", escape(program.as_encoded_bytes()));
            output::failure(&super::advise(Error::io(what, e)), context.global.json);
            return Ok(code);
        }
    };
    let status = context.signals.pass_on_to(&mut child).map_err(|e| Error::io("wait for the command", e))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

#[derive(Serialize)]
struct Unmounted {
    unmounted: Vec<UnmountedDoc>,
}

#[derive(Serialize)]
struct UnmountedDoc {
    path: String,
    key: Option<String>,
    removed: bool,
}

pub fn umount(context: &Context, args: &UmountArgs) -> Result<()> {
    let store = match context.existing_store() {
        Ok(store) => Some(store),
        // A mount of another store can be unmounted all the same.
        Err(e) if e.kind() == ErrorKind::NotFound && !args.all && !args.rm => None,
        Err(e) => return Err(e),
    };
    let records = store.as_ref().map(Store::snapshots).transpose()?.unwrap_or_default();
    let mut unmounted = Vec::new();
    let outcome = match (&args.dir, &store) {
        (Some(dir), _) => umount_one(dir, store.as_ref(), &records, args.rm).map(|doc| unmounted.push(doc)),
        (None, Some(store)) => umount_all(store, &records, args.rm, &mut unmounted),
        (None, None) => Ok(()),
    };
    outcome?;
    match context.global.json {
        true => output::json(Unmounted { unmounted }),
        false => Ok(()),
    }
}

fn umount_one(dir: &Path, store: Option<&Store>, records: &[SnapshotRecord], rm: bool) -> Result<UnmountedDoc> {
    let path = std::fs::canonicalize(dir).map_err(|e| Error::io(format!("resolve {}", dir.display()), e))?;
    let found = mount::find_mount(&path)?;
    let Some(found) = found else {
        // After a reboot the mount is gone and the snapshot is not.
        let mut left = records.iter().filter(|r| r.kind != SnapshotKind::Committed && is_labelled(r, &path));
        return match (store, left.next(), left.next()) {
            (Some(store), Some(record), None) if rm => finish(&path, store, Some(record), rm),
            (_, Some(record), _) => Err(Error::new(
                ErrorKind::NotFound,
                format!("nothing is mounted at {}, but snapshot \"{}\" was", path.display(), record.key),
            )
            .with_hint("--rm drops it")),
            _ => Err(Error::new(ErrorKind::NotFound, format!("nothing is mounted at {}", path.display()))),
        };
    };
    if !is_ours(&found) {
        let what = format!("what is mounted at {} ({}) is not unply's", path.display(), found.fs_type);
        return Err(Error::new(ErrorKind::Usage, what));
    }
    let record = store.and_then(|store| records.iter().find(|record| is_of(&found, record, store)));
    if record.is_none() && rm {
        let what = format!("the snapshot mounted at {} is not in this store", path.display());
        return Err(Error::new(ErrorKind::NotFound, what).with_hint("name its store with --root"));
    }
    mount::detach(&path)?;
    match store {
        Some(store) => finish(&path, store, record, rm),
        None => Ok(UnmountedDoc { path: path.to_string_lossy().into_owned(), key: None, removed: false }),
    }
}

/// Drops the snapshot of a mount that is gone: a view always, for it holds nothing of its own.
fn finish(path: &Path, store: &Store, record: Option<&SnapshotRecord>, rm: bool) -> Result<UnmountedDoc> {
    let mut removed = false;
    if let Some(record) = record.filter(|record| rm || record.kind == SnapshotKind::View) {
        store.remove_snapshot(&record.key)?;
        removed = true;
    }
    let key = record.map(|record| record.key.clone());
    Ok(UnmountedDoc { path: path.to_string_lossy().into_owned(), key, removed })
}

fn umount_all(store: &Store, records: &[SnapshotRecord], rm: bool, done: &mut Vec<UnmountedDoc>) -> Result<()> {
    let mut first = None;
    // The last one made is on top.
    for found in mount::overlay_mounts()?.iter().rev() {
        let Some(record) = records.iter().find(|record| is_of(found, record, store)) else { continue };
        match mount::detach(&found.target).and_then(|()| finish(&found.target, store, Some(record), rm)) {
            Ok(doc) => done.push(doc),
            Err(e) => {
                if let Some(earlier) = first.replace(e) {
                    output::note(earlier);
                }
            }
        }
    }
    first.map_or(Ok(()), Err)
}
