//! From an image to a chain in a store, or to a directory: the only orchestrator.
//!
//! Owns: which layers, how many at once, in which order; events; cancellation; the order of fix-ups in a chain.
//! Refuses to know: system calls.
//!
//! [`pull`] brings an image into a [`Store`] and returns its [`Chain`], which keeps its layers from being collected while it is
//! held, and from which a runtime takes a snapshot ([`Chain::snapshot`]) or a mount plan ([`Chain::view`]).
//! [`unpack`] makes a flattened directory and needs no store. Both give one tree.

pub(crate) mod archive;
mod chain;
mod flat;
pub(crate) mod layer;
mod pull;
mod repair;
mod room;
mod target;
#[cfg(test)]
mod tests_process;

use std::path::Path;

use crate::apply::Writers;
use crate::cancel::CancelToken;
use crate::digest::{BlobDigest, ChainId, DiffId, ImageId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{OpenOptions, Platform};
use crate::mount;
use crate::policy::{Limits, Ownership, TreeOptions, WhiteoutForm, XattrFlavour};
use crate::root::{Dir, Resolver};
use crate::store::{Flavour, Store};
use crate::sys;
use crate::trace::Trace;

pub use chain::{Chain, Snapshot, snapshot_plan};
pub use flat::{Unpacked, unpack};
pub use pull::{Pulled, pull, stored};
pub use repair::{Repaired, repair, verify_fixups};

/// How an image is brought in.
#[derive(Debug, Clone)]
pub struct Options {
    /// The platform asked for; `None` prefers this machine's.
    pub platform: Option<Platform>,
    /// Bounds on what the image may ask for.
    pub limits: Limits,
    /// Choices that change the tree.
    pub tree: TreeOptions,
    /// Layers at once; at least 1.
    pub jobs: usize,
    /// Threads that make small files beside those that read archives, of all layers together; `None` goes by `jobs` and by the
    /// CPUs there are.
    pub writers: Option<Writers>,
    /// What is published, or unpacked, survives a loss of power once the call returned.
    pub durable: bool,
    /// Ends the work from outside.
    pub cancel: CancelToken,
    /// How directories are opened; `None` finds out what the kernel has. Both are equally safe.
    pub resolver: Option<Resolver>,
    /// Records when which stage of which layer worked; off by default.
    pub trace: Trace,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            platform: None,
            limits: Limits::default(),
            tree: TreeOptions::default(),
            jobs: sys::available_cpus(),
            writers: None,
            durable: true,
            cancel: CancelToken::new(),
            resolver: None,
            trace: Trace::default(),
        }
    }
}

impl Options {
    /// Returns what opening an image takes of these.
    pub fn open_options(&self) -> OpenOptions {
        OpenOptions { platform: self.platform.clone(), limits: self.limits.clone(), cancel: self.cancel.clone() }
    }
}

/// What happens while an image is brought in; sent from several threads.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The image is known; its layers will be looked at.
    Image {
        /// Layers, bottom first: digest where known, compressed size where known.
        layers: Vec<(Option<BlobDigest>, Option<u64>)>,
    },
    /// A layer is being unpacked.
    LayerStarted {
        /// Which layer: its position in the image, 0 is the bottom; the member's position for a stream.
        index: usize,
        /// Tells how far it is.
        progress: crate::stream::StreamProgress,
    },
    /// A layer is done, or was there already.
    LayerDone {
        /// Which layer.
        index: usize,
        /// What it was.
        outcome: LayerOutcome,
    },
    /// Something odd was accepted or dropped.
    Warning {
        /// The layer, as far as it is known by then: diff_id, else blob digest.
        layer: Option<String>,
        /// What.
        warning: crate::apply::Warning,
    },
}

/// Takes events; called from several threads, so it must be quick.
pub type Events<'a> = &'a (dyn Fn(Event) + Sync);

/// One layer of a finished pull or unpack.
#[derive(Debug, Clone)]
pub struct LayerOutcome {
    /// Digest of the blob.
    pub digest: BlobDigest,
    /// Digest of the decompressed stream.
    pub diff_id: DiffId,
    /// The chain up to this layer.
    pub chain_id: ChainId,
    /// Size of the blob in bytes.
    pub compressed_bytes: u64,
    /// Size of the decompressed stream in bytes.
    pub uncompressed_bytes: u64,
    /// Entries in the archive.
    pub entries: u64,
    /// It was in the store already and was not read.
    pub reused: bool,
    /// Wall time from opening the blob to the proof.
    pub seconds: f64,
}

/// What an image turned out to be.
#[derive(Debug, Clone)]
pub struct Ids {
    /// Digest of the config.
    pub image_id: ImageId,
    /// All layers together.
    pub chain_id: ChainId,
}

/// Finds out which flavour layers need on the file system at `dir`, for the namespace that the caller is in.
///
/// # Errors
/// `NotFound` where the directory is missing; `Unsupported` where neither xattr namespace nor whiteouts can be stored.
pub fn flavour_for(dir: &Path) -> Result<Flavour> {
    flavour_of(sys::probe_store(dir)?, dir)
}

fn flavour_of(probe: sys::StoreProbe, dir: &Path) -> Result<Flavour> {
    let ownership = match sys::uid_map()? {
        sys::IdMap::Single(_) => Ownership::Squash,
        _ => Ownership::Keep,
    };
    let xattr = if probe.trusted_xattrs && !sys::in_user_namespace() {
        XattrFlavour::Trusted
    } else if probe.user_xattrs {
        XattrFlavour::User
    } else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} ({}) stores no xattrs that overlayfs can read", dir.display(), probe.fs_type),
        )
        .with_hint("choose a directory on ext4, xfs, btrfs or a recent tmpfs"));
    };
    if !probe.d_type {
        // Overlayfs tells a whiteout from a file by the type in the listing: it would show the names that it hides (N14).
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("listings of {} ({}) give no types, which overlayfs needs", dir.display(), probe.fs_type),
        )
        .with_hint("make the file system again with that feature: ext4 -O filetype, xfs -n ftype=1"));
    }
    let whiteouts = if probe.char_whiteouts { WhiteoutForm::CharDevice } else { WhiteoutForm::Xattr };
    Ok(Flavour { xattr, ownership, whiteouts })
}

/// Opens the store at `root`, making it with the flavour that fits this place and namespace where there is none.
///
/// # Errors
/// As [`flavour_for`] and [`Store::open`].
pub fn open_store(root: &Path, durable: bool) -> Result<Store> {
    if !root.exists() {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|e| Error::io(format!("create the store {}", root.display()), e))?;
    }
    let flavour = flavour_for(root)?;
    if flavour.whiteouts == WhiteoutForm::Xattr && !root.join("store.json").exists() {
        // Only where mounts can be made can it be known; elsewhere the store may still serve flat unpacking.
        if let Ok(overlay) = mount::probe_overlay(root, flavour.xattr) {
            whiteouts_work(&overlay, root)?;
        }
    }
    Store::open(root, flavour, durable)
}

/// Refuses a place for a store where deleted files would show in every mount.
fn whiteouts_work(overlay: &mount::OverlayProbe, dir: &Path) -> Result<()> {
    if overlay.xattr_whiteouts {
        return Ok(());
    }
    let message =
        format!("{} takes no whiteout devices, and this kernel's overlayfs knows no xattr whiteouts", dir.display());
    Err(Error::new(ErrorKind::Unsupported, message)
        .with_hint("Linux 6.7 knows them; or choose a directory where mknod c 0 0 works, such as one on ext4 or xfs"))
}

fn resolving(dir: Dir, resolver: Option<Resolver>) -> Dir {
    match resolver {
        Some(resolver) => dir.with_resolver(resolver),
        None => dir,
    }
}

/// Runs `work` on every job, at most `-j` at a time, in order; the first error ends what runs and what has not begun,
/// and is left in `failed`.
fn side_by_side<T: Sync>(
    bench: &layer::Bench<'_>,
    jobs: &[T],
    failed: &std::sync::Mutex<Option<Error>>,
    work: &(dyn Fn(&T) -> Result<()> + Sync),
) -> Result<()> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let fail = |e: Error| {
        let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        failed.get_or_insert(e);
        bench.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let has_failed = || failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some();
    let threads = bench.options.jobs.clamp(1, jobs.len().max(1));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|n| format!("unply-layer-{n}"))
        .build()
        .map_err(|e| Error::new(ErrorKind::Other, format!("start threads: {e}")))?;
    pool.scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|_| {
                while !has_failed() {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { break };
                    if let Err(e) = work(job) {
                        fail(e);
                    }
                }
            });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Backend;

    #[test]
    fn n14_a_place_where_neither_form_of_whiteout_works_is_refused_with_advice() {
        let mut probe = mount::OverlayProbe {
            backend: Backend::Classic,
            char_whiteouts: false,
            xattr_whiteouts: true,
            opaque: true,
            origin_filters: true,
            writable: false,
        };
        whiteouts_work(&probe, Path::new("/x")).unwrap();
        probe.xattr_whiteouts = false;
        let e = whiteouts_work(&probe, Path::new("/x")).unwrap_err();
        assert!(e.kind() == ErrorKind::Unsupported && e.hint().is_some_and(|hint| hint.contains("6.7")), "{e}");
    }
}
