//! What in an image is ambiguous, non-conforming, or understood differently by other tools; nothing is unpacked.
//!
//! Owns: the codes of findings and what is known about each ([`Code`]), the order in which an image is looked at, how much of
//! what was found is kept. Refuses to know: the rules themselves. Names and whiteouts are judged by the plan that `apply`
//! follows, headers by the parser, chains of layers by the replay that makes fix-ups; so what unply does with an
//! entry and what is said about it cannot drift apart.
//!
//! Invariants:
//! * Nothing is written: no store, no target, no temporary file.
//! * Digests, sizes and diff_ids are verified on the way, as in an unpack.
//! * A layer that is refused ends the look at how layers depend on each other, not the look at single layers.
//! * Memory, beyond that of a stream: some 400 bytes for each entry of the layer at hand and for each name of the chain
//!   below it, measured with 200,000 entries; of each code the first [`LISTED`] findings. `Limits::max_layer_memory` bounds
//!   the journals, and apart from them the names of the chain, for all layers together.

mod chain;
mod code;
mod image;
mod scan;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicU64;

use crate::digest::{BlobDigest, DiffId, ImageId};
use crate::error::{Error, ErrorKind, Result, escape};
use crate::fixup::NameChain;
use crate::image::{Image, LayerDescriptor, Reference, Source};
use crate::stream::Expected;
use crate::unpack::Options;
use crate::unpack::archive::{check, each_layer, judge};
use crate::unpack::layer::{layer_name, mismatch};

pub use code::{Code, Severity};
use scan::Scanned;

/// Findings of one code that are kept; further ones are counted.
pub const LISTED: u64 = 100;

/// Bytes of a name or a text that a finding keeps.
const MAX_TEXT: usize = 4096;

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub code: Code,
    /// In which layer, 0 is the bottom; `None` for the image as a whole.
    pub layer: Option<usize>,
    /// The entry's name without `./` and the like, at most 4,096 bytes of it; empty where it is about no entry.
    pub path: Vec<u8>,
    /// What exactly was found.
    pub detail: String,
    /// Its severity: that of the code, or [`Severity::Error`] for what the options refuse.
    pub severity: Severity,
    /// Numbers of its rules, the one that says most first.
    pub rules: Vec<String>,
}

/// What is known of a layer that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSummary {
    /// Digest of the blob, where it is known.
    pub digest: Option<BlobDigest>,
    /// Digest of the decompressed stream, promised or found.
    pub diff_id: Option<DiffId>,
    /// Media type.
    pub media_type: String,
    /// Size of the blob in bytes, where it was read to its end.
    pub compressed_bytes: Option<u64>,
    /// Size of the decompressed stream in bytes, where it was read to its end.
    pub uncompressed_bytes: Option<u64>,
    /// Entries read.
    pub entries: u64,
}

/// Everything found in one image.
#[derive(Debug)]
pub struct Report {
    /// The reference it was opened by, in its canonical form.
    pub reference: String,
    /// Digest of the config.
    pub image_id: Option<ImageId>,
    /// The layers, bottom first.
    pub layers: Vec<LayerSummary>,
    /// The first [`LISTED`] findings of each code: those of the image first, then by layer, bottom first.
    pub findings: Vec<Finding>,
    /// How many there were of each code.
    pub counts: BTreeMap<Code, u64>,
    /// Why unpacking the image would fail, with the same options: the first reason there is.
    pub error: Option<Error>,
}

impl Report {
    /// Returns how many findings there are of each severity.
    pub fn by_severity(&self) -> BTreeMap<Severity, u64> {
        let mut out = BTreeMap::new();
        let severities: BTreeMap<Code, Severity> = self.findings.iter().map(|f| (f.code, f.severity)).collect();
        for (code, count) in &self.counts {
            *out.entry(severities.get(code).copied().unwrap_or(code.severity())).or_insert(0) += count;
        }
        out
    }
}

/// Looks at the image that `reference` names.
///
/// # Errors
/// What opening an image answers; `Unsupported` for an image of a store, which keeps no archives; failures of reading and
/// `Cancelled`. What is wrong with the image itself is in [`Report::error`].
pub fn lint(reference: &Reference, options: &Options) -> Result<Report> {
    if let Reference::Stored(name) = reference {
        let message = format!("\"{}\" names an image in the store, which keeps no archives", escape(name.as_bytes()));
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("look at where it came from: oci:DIR, an archive, or a pipe"));
    }
    let named = |e: Error| e.with_image(reference);
    match crate::image::open(reference, &options.open_options())? {
        Source::Image(image) => Lint::new(options).image(image).map_err(named),
        Source::Stream(stream) => {
            let spent = AtomicU64::new(0);
            let scan = |_: usize, (): &(), expected: Expected, blob| scan::scan(blob, expected, options, &spent);
            let collected = each_layer(stream, &options.cancel, &|_| Ok(()), &scan).map_err(named)?;
            Lint::new(options).collected(collected).map_err(named)
        }
    }
}

/// Findings in the order found, capped per code.
#[derive(Debug, Default)]
struct Findings {
    list: Vec<Finding>,
    counts: BTreeMap<Code, u64>,
}

impl Findings {
    fn add(&mut self, code: Code, path: &[u8], detail: impl Into<String>) {
        self.push(code, path, || (detail.into(), code.rules().map(str::to_owned).collect()));
    }

    /// Adds what ends in exit code 3 to 6, with the rules that its message names.
    fn refuse(&mut self, error: &Error, path: &[u8]) {
        let code = match error.kind() {
            ErrorKind::Malformed => Code::Refused,
            ErrorKind::Limit => Code::OverLimit,
            ErrorKind::Integrity => Code::Integrity,
            _ => Code::Unusable,
        };
        self.push(code, path, || {
            let mut rules = rules_in(&error.message());
            if rules.is_empty() {
                rules.extend(code.rules().map(str::to_owned));
            }
            (error.message(), rules)
        });
    }

    fn push(&mut self, code: Code, path: &[u8], say: impl FnOnce() -> (String, Vec<String>)) {
        let count = self.counts.entry(code).or_default();
        *count += 1;
        if *count <= LISTED {
            let (mut detail, rules) = say();
            if detail.len() > MAX_TEXT {
                let end = (0..=MAX_TEXT).rev().find(|at| detail.is_char_boundary(*at)).unwrap_or(0);
                detail.truncate(end);
                detail.push('…');
            }
            let path = match path.get(..MAX_TEXT) {
                Some(start) if path.len() > MAX_TEXT => [start, "…".as_bytes()].concat(),
                _ => path.to_vec(),
            };
            let severity = code.severity();
            self.list.push(Finding { code, layer: None, path, detail, severity, rules });
        }
    }

    /// Takes over the findings of layer `layer`.
    fn append(&mut self, layer: usize, of_layer: Findings) {
        let mut room: BTreeMap<Code, u64> = BTreeMap::new();
        for (code, count) in of_layer.counts {
            let before = self.counts.entry(code).or_default();
            room.insert(code, LISTED.saturating_sub(*before));
            *before += count;
        }
        self.list.extend(of_layer.list.into_iter().filter_map(|finding| {
            let left = room.get_mut(&finding.code).filter(|left| **left > 0)?;
            *left -= 1;
            Some(Finding { layer: Some(layer), ..finding })
        }));
    }
}

/// Returns the rules that a message names in parentheses, as `(W11)` or `(S8, R-5)`.
fn rules_in(message: &str) -> Vec<String> {
    let is_rule = |word: &&str| {
        let digits = word.strip_prefix(|c: char| c.is_ascii_uppercase()).unwrap_or_default();
        let digits = digits.strip_prefix('-').unwrap_or(digits);
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let groups = message.split('(').skip(1).filter_map(|rest| rest.split_once(')')).map(|(group, _)| group);
    groups.flat_map(|group| group.split([',', ' '])).filter(is_rule).map(str::to_owned).collect()
}

/// A look at one image.
struct Lint<'a> {
    options: &'a Options,
    /// `None` once a layer is missing in it.
    chain: Option<NameChain>,
    seen: HashSet<DiffId>,
    findings: Findings,
    layers: Vec<LayerSummary>,
    error: Option<Error>,
}

impl<'a> Lint<'a> {
    fn new(options: &'a Options) -> Lint<'a> {
        Lint {
            options,
            chain: Some(NameChain::new(options.tree.lower_symlinks, &options.limits)),
            seen: HashSet::new(),
            findings: Findings::default(),
            layers: Vec::new(),
            error: None,
        }
    }

    fn image(mut self, mut image: Image) -> Result<Report> {
        image::look(&image, &mut self.findings);
        let spent = AtomicU64::new(0);
        for at in 0..image.layers.len() {
            let Some(layer) = image.layers.get(at).cloned() else { break };
            let expected = match layer.diff_id {
                Some(diff_id) => Expected { digest: layer.digest, size: layer.size, diff_id: Some(diff_id) },
                // Nobody promises anything about a single layer.
                None => Expected::default(),
            };
            let scanned = match image.open_layer(at) {
                Ok(blob) => scan::scan(blob, expected.clone(), self.options, &spent)?,
                Err(e) => Scanned::broken(bad_layer(e)?),
            };
            let diff_id = scanned.report.as_ref().map(|report| report.diff_id);
            self.layer(at, &layer, &expected, scanned)?;
            if let (Some(diff_id), None) = (diff_id, layer.diff_id) {
                image.settle_layer(diff_id)?;
            }
        }
        Ok(self.report(&image))
    }

    fn collected(mut self, collected: scan::Collected) -> Result<Report> {
        let scan::Collected { image, layers, tokens } = collected;
        image::look(&image, &mut self.findings);
        let mut uses: BTreeMap<usize, usize> = BTreeMap::new();
        layers.iter().for_each(|token| *uses.entry(*token).or_default() += 1);
        let mut passed: Vec<Option<_>> = Vec::with_capacity(tokens.len());
        for (at, (name, token)) in tokens.into_iter().enumerate() {
            if let (false, Ok(((), Scanned { error: Some(e), .. }))) = (uses.contains_key(&at), &token.result) {
                self.findings.add(Code::UnusedMember, &name, format!("looks like a layer and is damaged: {e}"));
            }
            passed.push(uses.contains_key(&at).then_some((name, token)));
        }
        for (at, token) in layers.iter().enumerate() {
            let Some(layer) = image.layers.get(at) else { break };
            let expected = Expected { digest: layer.digest, size: layer.size, diff_id: layer.diff_id };
            let last_use = uses.get_mut(token).is_none_or(|left| {
                *left = left.saturating_sub(1);
                *left == 0
            });
            let Some(slot) = passed.get_mut(*token) else { continue };
            let Some((name, token)) = slot else { continue };
            let mut scanned = match &mut token.result {
                Ok(((), scanned)) if last_use => std::mem::take(scanned),
                Ok(((), scanned)) => scanned.again(),
                Err(_) => continue,
            };
            if let Some(error) = scanned.error.take() {
                scanned.error = Some(judge(token.raw, error.with_entry(name), &expected));
            } else if let Some(Err(error)) = scanned.report.as_ref().map(|report| check(report, &expected)) {
                scanned.error = Some(error);
            }
            self.layer(at, layer, &expected, scanned)?;
            if last_use {
                *slot = None;
            }
        }
        Ok(self.report(&image))
    }

    /// Takes what one layer gave, and looks at it on top of those below.
    fn layer(&mut self, at: usize, layer: &LayerDescriptor, expected: &Expected, scanned: Scanned) -> Result<()> {
        let Scanned { mut findings, journal, marks, report, entries, mut refusal, error } = scanned;
        if let Some(diff_id) = layer.diff_id
            && !self.seen.insert(diff_id)
        {
            // What is in it was said before.
            findings = Findings::default();
            findings.add(Code::RepeatedLayer, b"", "the image has this layer below already");
        }
        image::look_at_layer(layer, self.options, report.as_ref(), entries, &mut findings);
        if let Some(detail) = report.as_ref().and_then(|report| mismatch(&layer.media_type, report)) {
            findings.add(Code::MediaTypeMismatch, b"", detail);
        }
        let mut error = error;
        if error.is_some() {
            // What lies above cannot be judged without it.
            self.chain = None;
        } else if let Some(chain) = &mut self.chain {
            match chain::look(chain, &journal, &marks, &mut findings) {
                Ok(refused) => refusal = refusal.or(refused),
                Err(e) => {
                    self.chain = None;
                    error = Some(bad_layer(e)?);
                }
            }
        }
        if let Some(e) = &error {
            findings.refuse(e, b"");
        }
        self.findings.append(at, findings);
        let name = layer_name(expected).unwrap_or_else(|| format!("number {}", at + 1));
        self.error = self.error.take().or(error).or(refusal).map(|e| e.with_layer(name));
        self.layers.push(LayerSummary {
            digest: layer.digest.or(report.as_ref().map(|r| r.digest)),
            diff_id: layer.diff_id.or(report.as_ref().map(|r| r.diff_id)),
            media_type: layer.media_type.clone(),
            compressed_bytes: report.as_ref().map(|r| r.compressed_bytes),
            uncompressed_bytes: report.as_ref().map(|r| r.uncompressed_bytes),
            entries,
        });
        Ok(())
    }

    fn report(self, image: &Image) -> Report {
        let Findings { mut list, counts } = self.findings;
        let mut error = self.error;
        if self.options.tree.strict {
            for finding in list.iter_mut().filter(|f| f.code.strict_refuses()) {
                finding.severity = Severity::Error;
                error.get_or_insert_with(|| {
                    let message = format!("{}, which --strict refuses", finding.detail);
                    Error::new(ErrorKind::Malformed, message).with_entry(&finding.path)
                });
            }
        }
        Report {
            reference: image.reference.clone(),
            image_id: image.image_id,
            layers: self.layers,
            findings: list,
            counts,
            error: error.map(|e| e.with_image(&image.reference)),
        }
    }
}

/// Lets through what is the layer's fault, and returns any other error.
fn bad_layer(error: Error) -> Result<Error> {
    use ErrorKind::{Integrity, Limit, Malformed, NotFound, Unsupported};
    match error.kind() {
        Integrity | Limit | Malformed | NotFound | Unsupported => Ok(error),
        _ => Err(error),
    }
}
