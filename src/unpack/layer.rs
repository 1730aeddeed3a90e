//! One blob into one place: stream, apply, prove.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::apply::{ApplyOptions, LayerFacts, PlanOptions, Target, Warning, Writers, apply_layer};
use crate::error::{Error, ErrorKind, Result};
use crate::policy::XattrFlavour;
use crate::root::{Dir, Resolver};
use crate::store::Flavour;
use crate::stream::{
    Buffers, Codec, Decoders, Expected, Hashers, LayerStream, StreamOptions, StreamReport, Threads, WindowMemory,
};

use super::{Event, Events, Options, resolving};

/// What every layer of one run has in common.
pub(super) struct Bench<'a> {
    pub options: &'a Options,
    pub flavour: Flavour,
    pub events: Events<'a>,
    /// The layer directories are kept in a store, where they may be verified later.
    pub keeps: bool,
    /// Another layer failed: this one is not needed any more.
    pub stop: AtomicBool,
    /// Memory for the zstd windows of all layers together.
    pub windows: WindowMemory,
    /// The threads that compute the digests of all layers together.
    pub hashers: Hashers,
    /// How many threads may decompress parts of layers, of all layers together.
    pub decoders: Decoders,
    /// How many threads may make small files, of all layers together.
    pub writers: Writers,
}

/// Where one layer goes.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// An empty directory that becomes the layer's.
    pub tree: Dir,
    /// A directory on the same file system for the journal and for content that later fix-ups may need.
    pub meta: Dir,
}

impl Place {
    pub(super) fn resolving(self, resolver: Option<Resolver>) -> Place {
        Place { tree: resolving(self.tree, resolver), meta: resolving(self.meta, resolver) }
    }

    /// Returns the directory with what later fix-ups may need; `None` where a finished layer left nothing there.
    pub(super) fn stash(&self) -> Result<Option<Dir>> {
        Ok(match self.meta.stat(STASH)? {
            Some(_) => Some(self.meta.open_child(STASH)?),
            None => None,
        })
    }

    /// Opens the journal for reading.
    pub(super) fn journal(&self) -> Result<File> {
        Ok(self.meta.open_file(JOURNAL)?.into())
    }
}

pub(super) const STASH: &[u8] = b"stash";
pub(super) const JOURNAL: &[u8] = b"entries";

/// A layer that was applied and proved.
pub(super) struct Laid {
    pub facts: LayerFacts,
    pub report: StreamReport,
    pub seconds: f64,
}

impl<'a> Bench<'a> {
    pub(super) fn new(options: &'a Options, flavour: Flavour, events: Events<'a>) -> Bench<'a> {
        let windows = WindowMemory::new(&options.limits);
        let threads = options.jobs.min(crate::sys::available_cpus());
        Bench {
            options,
            flavour,
            events,
            keeps: false,
            stop: AtomicBool::new(false),
            windows,
            hashers: Hashers::new(threads),
            decoders: Decoders::new(threads),
            writers: options.writers.clone().unwrap_or_else(|| Writers::new(threads)),
        }
    }

    /// Unpacks `blob` into `place`, which nothing was unpacked into before.
    pub(super) fn lay(
        &self,
        index: usize,
        blob: Box<dyn Read + Send>,
        expected: Expected,
        place: &Place,
    ) -> Result<Laid> {
        let name = layer_name(&expected);
        self.lay_inner(index, blob, expected, place, name.clone()).map_err(|e| match name {
            Some(name) => e.with_layer(name),
            None => e.with_layer(format!("number {}", index + 1)),
        })
    }

    fn lay_inner(
        &self,
        index: usize,
        blob: Box<dyn Read + Send>,
        expected: Expected,
        place: &Place,
        name: Option<String>,
    ) -> Result<Laid> {
        let started = Instant::now();
        let place = place.clone().resolving(self.options.resolver);
        let stash = place.meta.new_dir(STASH, 0o700)?;
        let journal = place.meta.new_file(JOURNAL)?.into();
        let target = Target { tree: place.tree, stash, journal };
        let mut stream = LayerStream::open(
            blob,
            StreamOptions {
                limits: self.options.limits.clone(),
                expected,
                threads: Threads::Pipelined,
                cancel: self.options.cancel.clone(),
                buffers: Buffers::default(),
                windows: self.windows.clone(),
                hashers: self.hashers.clone(),
                decoders: self.decoders.clone(),
                trace: self.options.trace.layer(index),
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
            writers: self.writers.clone(),
            trace: self.options.trace.layer(index),
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
        let _ = place.meta.remove_dir(STASH);
        Ok(Laid { facts: applied.facts, report, seconds: started.elapsed().as_secs_f64() })
    }
}

/// Warns where a media type promises another codec than the magic bytes show (Z8, Z9); the bytes decide.
pub(super) fn warn_mismatch(media_type: &str, report: &StreamReport, events: Events<'_>) {
    if let Some(detail) = mismatch(media_type, report) {
        let warning = Warning::new("media-type-mismatch", b"", detail);
        events(Event::Warning { layer: Some(report.digest.to_string()), warning });
    }
}

/// Says how a media type contradicts the magic bytes; `None` where it does not.
pub(crate) fn mismatch(media_type: &str, report: &StreamReport) -> Option<String> {
    let promised = match media_type.rsplit(['+', '.']).next() {
        Some("gzip") => Codec::Gzip,
        Some("zstd") => Codec::Zstd,
        Some("tar") => Codec::Plain,
        _ => return None,
    };
    (promised != report.codec && report.compressed_bytes > 0)
        .then(|| format!("media type {media_type} promises {promised:?}, the blob is {:?}", report.codec))
}

/// Returns the name by which messages and events call a layer: its diff_id, else its blob's digest.
pub(crate) fn layer_name(expected: &Expected) -> Option<String> {
    match (&expected.diff_id, &expected.digest) {
        (_, Some(digest)) => Some(digest.to_string()),
        (Some(diff_id), None) => Some(diff_id.to_string()),
        (None, None) => None,
    }
}
