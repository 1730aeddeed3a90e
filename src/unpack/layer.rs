//! One blob into one place: stream, apply, prove.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::apply::{ApplyOptions, LayerFacts, PlanOptions, Target, Warning, apply_layer};
use crate::error::{Error, ErrorKind, Result};
use crate::policy::XattrFlavour;
use crate::root::Dir;
use crate::store::Flavour;
use crate::stream::{Buffers, Codec, Expected, LayerStream, StreamOptions, StreamReport, Threads};

use super::{Event, Events, Options};

/// What every layer of one run has in common.
pub(super) struct Bench<'a> {
    pub options: &'a Options,
    pub flavour: Flavour,
    pub events: Events<'a>,
    /// The layer directories are kept in a store, where they may be verified later.
    pub keeps: bool,
    /// Another layer failed: this one is not needed any more.
    pub stop: AtomicBool,
}

/// A layer that was applied and proved.
pub(super) struct Laid {
    pub facts: LayerFacts,
    pub report: StreamReport,
    pub seconds: f64,
}

impl Bench<'_> {
    /// Unpacks `blob` into the empty directory `tree`; content for later fix-ups goes to `stash`, the journal to `journal`,
    /// neither of which exists yet.
    pub(super) fn lay(
        &self,
        index: usize,
        blob: Box<dyn Read + Send>,
        expected: Expected,
        tree: &Path,
        stash: &Path,
        journal: &Path,
    ) -> Result<Laid> {
        let name = layer_name(&expected);
        let result = self.lay_inner(index, blob, expected, tree, stash, journal, name.clone());
        result.map_err(|e| match name {
            Some(name) => e.with_layer(name),
            None => e.with_layer(format!("number {}", index + 1)),
        })
    }

    #[expect(clippy::too_many_arguments, reason = "three places and a blob")]
    fn lay_inner(
        &self,
        index: usize,
        blob: Box<dyn Read + Send>,
        expected: Expected,
        tree: &Path,
        stash: &Path,
        journal: &Path,
        name: Option<String>,
    ) -> Result<Laid> {
        let started = Instant::now();
        std::fs::create_dir(stash).map_err(|e| Error::io(format!("create {}", stash.display()), e))?;
        let target = Target { tree: Dir::open(tree)?, stash: Dir::open(stash)?, journal: new_file(journal)? };
        let mut stream = LayerStream::open(
            blob,
            StreamOptions {
                limits: self.options.limits.clone(),
                expected,
                threads: Threads::Pipelined,
                cancel: self.options.cancel.clone(),
                buffers: Buffers::default(),
            },
        )?;
        (self.events)(Event::LayerStarted { index, progress: stream.progress() });
        let user_namespace = self.flavour.xattr == XattrFlavour::User;
        let apply = ApplyOptions {
            plan: PlanOptions {
                tree: self.options.tree,
                flavour: self.flavour.xattr,
                limits: self.options.limits.clone(),
            },
            whiteouts: self.flavour.whiteouts,
            ownership: self.flavour.ownership,
            skip_devices: user_namespace,
            tolerate_xattrs: user_namespace,
            sums: self.keeps,
        };
        let mut warn = |warning: Warning| (self.events)(Event::Warning { layer: name.clone(), warning });
        let check = || match self.stop.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Cancelled, "another layer failed")),
            false => self.options.cancel.check(),
        };
        let applied = match apply_layer(&mut stream, target, &apply, &mut warn, &check) {
            Ok(applied) => applied,
            Err(e) => return Err(stream.damaged(e)),
        };
        let report = stream.finish()?;
        // An empty stash is nothing to keep.
        let _ = std::fs::remove_dir(stash);
        Ok(Laid { facts: applied.facts, report, seconds: started.elapsed().as_secs_f64() })
    }
}

/// Warns where a media type promises another codec than the magic bytes show (Z8, Z9); the bytes decide.
pub(super) fn warn_mismatch(media_type: &str, report: &StreamReport, events: Events<'_>) {
    let promised = match media_type.rsplit(['+', '.']).next() {
        Some("gzip") => Codec::Gzip,
        Some("zstd") => Codec::Zstd,
        Some("tar") => Codec::Plain,
        _ => return,
    };
    if promised != report.codec && report.compressed_bytes > 0 {
        let detail = format!("media type {media_type} promises {promised:?}, the blob is {:?}", report.codec);
        let warning = Warning::new("media-type-mismatch", b"", detail);
        events(Event::Warning { layer: Some(report.digest.to_string()), warning });
    }
}

/// Returns the name by which messages and events call a layer: its diff_id, else its blob's digest.
pub(super) fn layer_name(expected: &Expected) -> Option<String> {
    match (&expected.diff_id, &expected.digest) {
        (_, Some(digest)) => Some(digest.to_string()),
        (Some(diff_id), None) => Some(diff_id.to_string()),
        (None, None) => None,
    }
}

fn new_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|e| Error::io(format!("create {}", path.display()), e))
}
