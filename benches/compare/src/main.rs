//! Unpacks layers with the crate `oci-image`, some at once: `unply-compare-oci-image STORE JOBS (BLOB DIGEST DIFF_ID)…`.
//!
//! Layers are begun in the order given and land in `STORE/layers/HEX-OF-DIFF_ID`, in overlayfs form, which the crate
//! publishes once the archive has the diff_id. Blobs are symlinked into its store, which saves it a copy and its check of
//! the blob's digest.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use oci_image::{Digest, ImageLayer, Layout, LayerStore, OverlayXattr, UnpackOptions};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("unply-compare-oci-image: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> Result<()> {
    let [store, jobs, layers @ ..] = args.as_slice() else { return Err("STORE JOBS (BLOB DIGEST DIFF_ID)…".into()) };
    let jobs: usize = jobs.parse()?;
    let store = LayerStore::open(Path::new(store))?;
    let mut work = Vec::new();
    for layer in layers.chunks(3) {
        let [blob, digest, diff_id] = layer else { return Err("three arguments a layer".into()) };
        let blob = PathBuf::from(blob);
        let layer = ImageLayer { blob: digest_of(digest)?, diff_id: digest_of(diff_id)? };
        let place = store.blob_path(&layer.blob);
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::os::unix::fs::symlink(blob, place) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
            _ => work.push(layer),
        }
    }
    let options =
        UnpackOptions { layout: Layout::Overlay(OverlayXattr::Trusted), same_owner: true, ..UnpackOptions::default() };
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, work.len().max(1)) {
            scope.spawn(|| {
                while let Some(layer) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(e) = store.unpack_layer(layer, &options) {
                        *failed.lock().unwrap() = Some(e);
                        break;
                    }
                }
            });
        }
    });
    match failed.into_inner()? {
        Some(e) => Err(e.into()),
        None => Ok(()),
    }
}

fn digest_of(text: &str) -> Result<Digest> {
    Ok(text.parse().map_err(|_| format!("no digest: {text}"))?)
}
