//! `bench`.

mod doc;
mod html;
mod text;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use self::doc::{BenchDoc, ImageDoc};
use super::Context;
use super::args::{BenchArgs, BenchFs};
use super::output::{self, note, printable};
use crate::bench::{self, BenchOptions, Place, Shape, Versus};
use crate::error::{Error, Result};
use crate::image::Reference;
use crate::policy::{Limit, Limits, LowerSymlinks, RootEntry, Selinux};
use crate::stream::INFLATED_BY;
use crate::unpack::Options;

pub fn bench(context: &Context, args: &BenchArgs) -> Result<()> {
    let references: Vec<Reference> = args.images.iter().map(|image| image.parse()).collect::<Result<_>>()?;
    // Before anything is measured: a page that cannot be written is no reason to wait.
    let page = args.report.as_deref().map(begin_page).transpose()?;
    let place = place(args.fs)?;
    let versus = match args.versus.as_slice() {
        [] => None,
        tools => Some(Versus { program: myself()?, options: passed_on(context), tools: tools.to_vec() }),
    };
    let stages = args.stages || page.is_some();
    let unpack = Options { durable: args.durable, ..context.options() };
    let options = BenchOptions { unpack, runs: args.runs, place, stages, versus };
    let tell = |text: &str| note(text);
    let mut images = Vec::new();
    for reference in &references {
        note(format_args!("measuring {}", printable(&reference.to_string())));
        images.push(ImageDoc::new(reference.to_string(), &bench::run(reference, &options, &tell)?));
    }
    if references.is_empty() {
        for shape in Shape::ALL {
            note(format_args!("making and measuring a synthetic image: {}", shape.name()));
            let dir = tempfile::Builder::new()
                .prefix("unply-bench-")
                .tempdir()
                .map_err(|e| Error::io("create a directory for a synthetic image", e))?;
            let reference = bench::synthesise(shape, dir.path())?;
            let report = bench::run(&reference, &options, &tell)?;
            images.push(ImageDoc::new(format!("synthetic:{}", shape.name()), &report));
        }
    }
    let (jobs, durable) = (options.unpack.jobs, options.unpack.durable);
    let doc = BenchDoc { fs: place.name(), runs: args.runs, jobs, durable, inflate: INFLATED_BY, images };
    if let (Some((page, path)), Some(_)) = (page, &args.report) {
        finish_page(page, &path, &html::render(&doc))?;
    }
    match context.global.json {
        true => output::json(doc),
        false => output::text(&text::render(&doc)),
    }
}

fn begin_page(path: &Path) -> Result<(NamedTempFile, PathBuf)> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new()
        .prefix(".unply-report-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map(|file| (file, path.to_path_buf()))
        .map_err(|e| Error::io(format!("write {}", path.display()), e))
}

fn finish_page(mut page: NamedTempFile, path: &Path, html: &str) -> Result<()> {
    page.write_all(html.as_bytes())
        .and_then(|()| page.persist(path).map(drop).map_err(|e| e.error))
        .map_err(|e| Error::io(format!("write {}", path.display()), e))
}

fn myself() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::io("find this program", e))
}

/// The options that change what is unpacked and how, for runs of this program beside other tools.
fn passed_on(context: &Context) -> Vec<OsString> {
    let global = &context.global;
    let mut out: Vec<OsString> = vec![format!("--jobs={}", context.options().jobs).into()];
    // The image that the others get has one platform only; it need not be asked for.
    let tree = global.tree();
    let mut choice = |is: bool, option: &str| {
        if is {
            out.push(option.into());
        }
    };
    choice(tree.strict, "--strict");
    choice(tree.root_entry == RootEntry::Apply, "--root-entry=apply");
    choice(tree.lower_symlinks == LowerSymlinks::Shadow, "--lower-symlinks=shadow");
    choice(tree.selinux == Selinux::Keep, "--selinux=keep");
    let (limits, default) = (global.limits.limits(), Limits::default());
    for limit in Limit::ALL {
        let value = limits.get(limit);
        if value != default.get(limit) {
            out.push(format!("--{}={value}", limit.flag()).into());
        }
    }
    out
}

/// Decides where runs write. Mounts are made in a mount namespace of this thread's own, so that none outlives it.
fn place(wanted: Option<BenchFs>) -> Result<Place> {
    let place = match wanted {
        Some(BenchFs::Here) => Place::Here,
        Some(BenchFs::Ext4) => Place::Ext4,
        Some(BenchFs::Tmpfs) | None => Place::Tmpfs,
    };
    match (own_mount_namespace(), wanted) {
        (Ok(()), _) => Ok(place),
        (Err(_), None | Some(BenchFs::Here)) => Ok(Place::Here),
        (Err(e), Some(_)) => Err(Error::io("enter a mount namespace", e.into()).with_hint("measure with --fs here")),
    }
}

fn own_mount_namespace() -> nix::Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}
