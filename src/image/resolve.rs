//! From an index to one image: index → nested index → manifest → config.
//!
//! Owns: selection by name, digest and platform (I2–I5), what is refused on the way (I6–I12), verification of every
//! document against its descriptor. Refuses to know: where blobs lie. Invariant: what [`resolve`] returns was read
//! from bytes whose size and digest matched, except the index itself, which nothing describes.

use std::cell::Cell;
use std::io::Read;

use super::json::{Config, Descriptor, Document, Kind, is_config, kind_of};
use super::platform::{Fit, Platform};
use super::reference::Selector;
use super::{Image, LayerDescriptor};
use crate::digest::{BlobDigest, DiffId, Digest, ImageId};
use crate::error::{Error, ErrorKind, escape, from_io};
use crate::policy::{Limit, Limits};

/// A blob ready to be read.
pub(crate) struct OpenBlob {
    /// Its actual size in bytes.
    pub size: u64,
    /// Its content, from the start.
    pub reader: Box<dyn Read + Send>,
}

/// Blobs by digest; unverified.
pub(crate) trait Blobs {
    /// Opens a blob; `None` when it is not there.
    fn open(&self, digest: &BlobDigest) -> Result<Option<OpenBlob>, Error>;
}

/// What the user asked for.
pub(crate) struct Wanted<'a> {
    pub selector: &'a Selector,
    pub platform: Option<&'a Platform>,
    pub limits: &'a Limits,
    /// Another document can name the layers if the manifest does not (moby#47065): then that is no damage.
    pub may_lack_layers: bool,
}

impl Wanted<'_> {
    /// The platform to rank by, and how strictly.
    pub fn platform(&self) -> (Platform, Fit) {
        match self.platform {
            Some(p) => (p.clone(), Fit::Asked),
            None => (Platform::host(), Fit::Machine),
        }
    }
}

/// Media types that mark a manifest as something else than an image (I7).
const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";

/// Bytes of documents read to find one image, in units of the limit on one of them; more is an attack on time.
const MAX_DOCUMENTS: u64 = 16;

/// One manifest to choose from for so many bytes of the limit on a document (65,536 of them by default): nested indexes
/// could name any number, and each one is kept.
const BYTES_PER_CANDIDATE: u64 = 320;

/// A manifest that may be the wanted one.
struct Candidate {
    descriptor: Descriptor,
    digest: BlobDigest,
    platform: Option<Platform>,
    /// Position in the top index; ties within one nested index go to the first, ties between groups are ambiguous.
    group: usize,
}

/// An entry of the top index, with equal digests merged.
struct Top {
    descriptor: Descriptor,
    digest: BlobDigest,
    names: Vec<String>,
}

struct Resolver<'a> {
    blobs: &'a dyn Blobs,
    wanted: &'a Wanted<'a>,
    tops: Vec<Top>,
    /// Entries of the top index that are neither index nor manifest.
    others: Vec<Descriptor>,
    read: Cell<u64>,
}

/// Finds the wanted image in the index `index_raw` and reads its manifest and config.
///
/// # Errors
/// `NotFound` listing what is there for an ambiguous or missing name, digest or platform, and for a missing blob;
/// `Integrity` for a document of another size or digest than its descriptor says; `Malformed`, `Limit`, `Unsupported`.
pub(crate) fn resolve(blobs: &dyn Blobs, index_raw: &[u8], wanted: &Wanted<'_>) -> Result<Image, Error> {
    let (tops, others) = merge(Document::index(index_raw, "index.json")?)?;
    let resolver = Resolver { blobs, wanted, tops, others, read: Cell::new(0) };
    let mut candidates = Vec::new();
    for group in resolver.select()? {
        if let Some(top) = resolver.tops.get(group) {
            resolver.expand(&top.descriptor, top.digest, group, 1, false, &mut candidates)?;
        }
    }
    let candidate = resolver.choose(candidates)?;
    resolver.image(candidate)
}

/// Drops attestations, merges equal digests, sets entries that are no image aside (I4, I6).
fn merge(entries: Vec<Descriptor>) -> Result<(Vec<Top>, Vec<Descriptor>), Error> {
    let mut tops: Vec<Top> = Vec::new();
    let mut by_digest = std::collections::HashMap::new();
    let mut others = Vec::new();
    for descriptor in entries.into_iter().filter(|d| !d.is_attestation()) {
        let digest = match descriptor.digest() {
            Ok(digest) if kind_of(&descriptor.media_type) != Kind::Other => digest,
            Err(err) if err.kind() != ErrorKind::Unsupported => return Err(err),
            _ => {
                others.push(descriptor);
                continue;
            }
        };
        let names = descriptor.names();
        let at = *by_digest.entry(digest).or_insert(tops.len());
        match tops.get_mut(at) {
            Some(top) => {
                for name in names {
                    if !top.names.contains(&name) {
                        top.names.push(name);
                    }
                }
            }
            None => tops.push(Top { descriptor, digest, names }),
        }
    }
    Ok((tops, others))
}

impl Resolver<'_> {
    /// Applies the selector to the top index; returns positions in it.
    fn select(&self) -> Result<Vec<usize>, Error> {
        let having = |test: &dyn Fn(&Top) -> bool| -> Vec<usize> {
            self.tops.iter().enumerate().filter(|(_, t)| test(t)).map(|(at, _)| at).collect()
        };
        let unsupported = |d: &Descriptor| {
            Error::new(
                ErrorKind::Unsupported,
                format!("media type \"{}\" is neither an index nor a manifest", escape(d.media_type.as_bytes())),
            )
        };
        match self.wanted.selector {
            Selector::Name(name) => {
                let mut found = having(&|t| t.names.contains(name));
                if found.is_empty() {
                    let wanted = familiar(name);
                    found = having(&|t| t.names.iter().any(|n| familiar(n) == wanted));
                }
                if !found.is_empty() {
                    return Ok(found);
                }
                if let Some(other) = self.others.iter().find(|d| d.names().contains(name)) {
                    return Err(unsupported(other));
                }
                Err(Error::new(ErrorKind::NotFound, format!("no image is named \"{}\"", escape(name.as_bytes())))
                    .with_hint(self.list_tops()))
            }
            Selector::Digest(digest) => {
                let found = having(&|t| t.digest == *digest);
                if !found.is_empty() {
                    return Ok(found);
                }
                if let Some(other) = self.others.iter().find(|d| d.digest().is_ok_and(|d| d == *digest)) {
                    return Err(unsupported(other));
                }
                // Perhaps something inside a nested index.
                Ok(having(&|t| kind_of(&t.descriptor.media_type) == Kind::Index))
            }
            Selector::None => {
                let Some(first) = self.tops.first() else {
                    return Err(match self.others.first() {
                        Some(other) => unsupported(other),
                        None => Error::new(ErrorKind::NotFound, "the index lists no image"),
                    });
                };
                if self.tops.iter().any(|t| t.names != first.names) {
                    let count = self.tops.len();
                    return Err(Error::new(ErrorKind::NotFound, format!("{count} images are here, which one?"))
                        .with_hint(self.list_tops()));
                }
                Ok(having(&|_| true))
            }
        }
    }

    /// Follows nested indexes down to manifests (I5).
    fn expand(
        &self,
        descriptor: &Descriptor,
        digest: BlobDigest,
        group: usize,
        depth: u32,
        named: bool,
        out: &mut Vec<Candidate>,
    ) -> Result<(), Error> {
        let named = named || !matches!(self.wanted.selector, Selector::Digest(d) if *d != digest);
        if kind_of(&descriptor.media_type) == Kind::Manifest {
            let max = self.wanted.limits.max_json_bytes / BYTES_PER_CANDIDATE;
            if out.len() as u64 >= max {
                return Err(self.too_much(format_args!("more than {max} manifests to choose from")));
            }
            if named {
                let platform = descriptor.platform();
                out.push(Candidate { descriptor: descriptor.clone(), digest, platform, group });
            }
            return Ok(());
        }
        let limits = self.wanted.limits;
        if depth >= limits.max_index_depth {
            return Err(limits.exceeded(Limit::IndexDepth, depth + 1));
        }
        let what = format!("index {digest}");
        let raw = self.document(descriptor, &what, Limit::JsonBytes)?;
        for entry in Document::index(&raw, &what)?.iter().filter(|d| !d.is_attestation()) {
            if kind_of(&entry.media_type) == Kind::Other {
                continue;
            }
            match entry.digest() {
                Ok(digest) => self.expand(entry, digest, group, depth + 1, named, out)?,
                Err(err) if err.kind() == ErrorKind::Unsupported => continue,
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    fn too_much(&self, found: std::fmt::Arguments<'_>) -> Error {
        self.wanted.limits.exceeded(Limit::JsonBytes, found)
    }

    /// Picks one manifest by platform (I3).
    fn choose(&self, mut candidates: Vec<Candidate>) -> Result<Candidate, Error> {
        if candidates.is_empty() {
            return Err(match self.wanted.selector {
                Selector::Digest(digest) => {
                    Error::new(ErrorKind::NotFound, format!("no image has the manifest digest {digest}"))
                        .with_hint(self.list_tops())
                }
                _ => Error::new(ErrorKind::NotFound, "the index lists no image"),
            });
        }
        let (platform, fit) = self.wanted.platform();
        let mut seen = std::collections::HashSet::new();
        candidates.retain(|c| seen.insert(c.digest));
        if candidates.len() == 1 && fit == Fit::Machine {
            // The only image there is, whatever it was built for: unpacking needs no CPU of its kind.
            return Ok(candidates.swap_remove(0));
        }
        let mut best: Option<(u32, usize)> = None;
        let mut ambiguous = false;
        for at in 0..candidates.len() {
            let Some(rank) = self.rank(&mut candidates, at, &platform, fit)? else { continue };
            match best {
                Some((r, _)) if r < rank => {}
                Some((r, first)) if r == rank => {
                    let group = |i: usize| candidates.get(i).map(|c| c.group);
                    ambiguous |= group(first) != group(at);
                }
                _ => {
                    best = Some((rank, at));
                    ambiguous = false;
                }
            }
        }
        match best {
            Some(_) if ambiguous => {
                Err(Error::new(ErrorKind::NotFound, format!("several images are here for {platform}, which one?"))
                    .with_hint(self.list_candidates(&candidates)))
            }
            Some((_, at)) => Ok(candidates.swap_remove(at)),
            None => Err(Error::new(ErrorKind::NotFound, format!("no image is here for {platform}"))
                .with_hint(self.list_candidates(&candidates))),
        }
    }

    fn rank(
        &self,
        candidates: &mut [Candidate],
        at: usize,
        platform: &Platform,
        fit: Fit,
    ) -> Result<Option<u32>, Error> {
        let alone = candidates.len() == 1;
        let Some(candidate) = candidates.get_mut(at) else { return Ok(None) };
        if candidate.platform.is_none() {
            candidate.platform = Some(self.config_platform(candidate)?);
        }
        Ok(match &candidate.platform {
            // A config that says nothing fits whatever was asked, when there is no other to choose.
            Some(p) if p.is_unknown() => alone.then_some(u32::MAX),
            Some(p) => platform.rank(p, fit),
            None => None,
        })
    }

    fn config_platform(&self, candidate: &Candidate) -> Result<Platform, Error> {
        let what = format!("manifest {}", candidate.digest);
        let raw = self.document(&candidate.descriptor, &what, Limit::ManifestBytes)?;
        let manifest = Document::manifest(&raw, &what)?;
        if !is_config(&manifest.config.media_type) {
            return Ok(Platform::new("", "", None));
        }
        let what = format!("config {}", manifest.config.digest()?);
        let raw = self.document(&manifest.config, &what, Limit::JsonBytes)?;
        Ok(Config::parse(&raw, &what)?.platform())
    }

    /// Reads manifest and config of the chosen candidate.
    fn image(&self, candidate: Candidate) -> Result<Image, Error> {
        let limits = self.wanted.limits;
        let manifest_what = format!("manifest {}", candidate.digest);
        let manifest_raw = self.document(&candidate.descriptor, &manifest_what, Limit::ManifestBytes)?;
        let manifest = Document::manifest(&manifest_raw, &manifest_what)?;
        let config_type = manifest.config.media_type.as_str();
        if !is_config(config_type) {
            let what = if config_type == EMPTY_CONFIG { "an artifact" } else { "something else" };
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{manifest_what} is not an image but {what}: its config is of type \"{}\"",
                    escape(config_type.as_bytes())
                ),
            ));
        }
        let config_digest = manifest.config.digest()?;
        let config_what = format!("config {config_digest}");
        let config_raw = self.document(&manifest.config, &config_what, Limit::JsonBytes)?;
        let config = Config::parse(&config_raw, &config_what)?;
        if self.wanted.may_lack_layers && manifest.layers.is_empty() && !config.diff_ids(&config_what)?.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, format!("{manifest_what} lists no layers, its config does")));
        }
        let diff_ids = diff_ids(&config, &config_what, manifest.layers.len(), limits)?;

        let mut layers = Vec::with_capacity(manifest.layers.len());
        let mut embedded = Vec::with_capacity(manifest.layers.len());
        for (descriptor, diff_id) in manifest.layers.iter().zip(diff_ids) {
            let digest = descriptor.digest()?;
            embedded.push(verified_data(descriptor, &format!("layer {digest}"))?);
            layers.push(LayerDescriptor {
                digest: Some(digest),
                size: Some(descriptor.size),
                media_type: descriptor.media_type.clone(),
                diff_id: Some(diff_id),
            });
        }
        let mut platform = config.platform();
        if let Some(said) = &candidate.platform {
            if platform.is_unknown() {
                platform = said.clone();
            } else if platform.variant.is_none() && platform.architecture == said.architecture {
                platform.variant = said.variant.clone();
            }
        }
        Ok(Image {
            reference: String::new(),
            names: self.tops.get(candidate.group).map(|t| t.names.clone()).unwrap_or_default(),
            manifest_digest: Some(candidate.digest),
            image_id: Some(ImageId(config_digest.0)),
            platform,
            layers,
            config_raw,
            manifest_raw: Some(manifest_raw),
            blobs: super::LayerBlobs::none(embedded),
        })
    }

    fn list_tops(&self) -> String {
        list(self.tops.iter().map(|t| describe(&t.names, &t.digest, t.descriptor.platform().as_ref())))
    }

    fn list_candidates(&self, candidates: &[Candidate]) -> String {
        let names = |c: &Candidate| self.tops.get(c.group).map_or(&[][..], |t| &t.names);
        list(candidates.iter().map(|c| describe(names(c), &c.digest, c.platform.as_ref())))
    }

    /// Reads a document, from its descriptor where it is embedded, and verifies it.
    fn document(&self, descriptor: &Descriptor, what: &str, limit: Limit) -> Result<Vec<u8>, Error> {
        let digest = descriptor.digest()?;
        let limits = self.wanted.limits;
        if descriptor.size > limits.get(limit) {
            return Err(over(what, descriptor.size, limits, limit));
        }
        // Opening a file costs too, so small documents count as a page.
        let read = self.read.get().saturating_add(descriptor.size.max(4096));
        if read > limits.max_json_bytes.saturating_mul(MAX_DOCUMENTS) {
            return Err(self.too_much(format_args!("more than {MAX_DOCUMENTS} times that in all documents")));
        }
        self.read.set(read);
        if let Some(data) = verified_data(descriptor, what)? {
            return Ok(data);
        }
        let blob = self.blobs.open(&digest)?.ok_or_else(|| missing(what))?;
        if blob.size != descriptor.size {
            return Err(wrong_size(what, descriptor.size, blob.size));
        }
        let raw = read_limited(blob.reader, what, limits, limit)?;
        verify(&raw, descriptor.size, &digest, what)?;
        Ok(raw)
    }
}

/// Parses a config's diff_ids and compares their number with that of the layers (I10), which is limited.
pub(crate) fn diff_ids(config: &Config, what: &str, layers: usize, limits: &Limits) -> Result<Vec<DiffId>, Error> {
    if layers > limits.max_layers {
        return Err(limits.exceeded(Limit::Layers, layers));
    }
    let texts = config.diff_ids(what)?;
    if texts.len() != layers {
        return Err(Error::new(
            ErrorKind::Malformed,
            format!("{what} lists {} diff_ids, the manifest {layers} layers", texts.len()),
        ));
    }
    texts.iter().map(|t| t.parse()).collect()
}

fn verified_data(descriptor: &Descriptor, what: &str) -> Result<Option<Vec<u8>>, Error> {
    let Some(data) = descriptor.data()? else { return Ok(None) };
    verify(&data, descriptor.size, &descriptor.digest()?, &format!("embedded {what}"))?;
    Ok(Some(data))
}

fn verify(raw: &[u8], size: u64, digest: &BlobDigest, what: &str) -> Result<(), Error> {
    let actual = u64::try_from(raw.len()).unwrap_or(u64::MAX);
    if actual != size {
        return Err(wrong_size(what, size, actual));
    }
    verify_digest(raw, digest, what)
}

/// Compares the content of a document with its digest.
pub(crate) fn verify_digest(raw: &[u8], digest: &BlobDigest, what: &str) -> Result<(), Error> {
    let found = Digest::of(digest.0.algorithm(), raw);
    if found != digest.0 {
        return Err(Error::new(ErrorKind::Integrity, format!("{what} has the digest {found}")));
    }
    Ok(())
}

/// Reads a document whole, at most `limit` bytes.
pub(crate) fn read_limited(reader: impl Read, what: &str, limits: &Limits, limit: Limit) -> Result<Vec<u8>, Error> {
    let mut raw = Vec::new();
    reader
        .take(limits.get(limit).saturating_add(1))
        .read_to_end(&mut raw)
        .map_err(|err| from_io(&format!("reading {what}"), err))?;
    let length = u64::try_from(raw.len()).unwrap_or(u64::MAX);
    if length > limits.get(limit) { Err(over(what, length, limits, limit)) } else { Ok(raw) }
}

fn over(what: &str, size: u64, limits: &Limits, limit: Limit) -> Error {
    limits.exceeded(limit, format_args!("{size} or more in {what}"))
}

fn wrong_size(what: &str, expected: u64, found: u64) -> Error {
    Error::new(ErrorKind::Integrity, format!("{what} is {found} bytes, its descriptor says {expected}"))
}

/// The blob of a document or layer is not there.
pub(crate) fn missing(what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("the blob of {what} is missing"))
}

/// Shortens a name to what users type: no default registry, with a tag.
pub(crate) fn familiar(name: &str) -> String {
    let short = name
        .strip_prefix("docker.io/")
        .or_else(|| name.strip_prefix("index.docker.io/"))
        .map_or(name, |rest| rest.strip_prefix("library/").unwrap_or(rest));
    let last = short.rsplit('/').next().unwrap_or(short);
    if last.contains([':', '@']) { short.to_owned() } else { format!("{short}:latest") }
}

/// How many lines a list in a message may have.
const MAX_LISTED: usize = 20;

/// Joins what is there for a hint.
pub(crate) fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let count = items.len();
    if count == 0 {
        return "nothing is here".to_owned();
    }
    let shown: Vec<String> = items.take(MAX_LISTED).collect();
    let more = count.saturating_sub(shown.len());
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("here: {}{tail}", shown.join(", "))
}

/// Makes a name from a document fit for a message.
pub(crate) fn short(name: &str) -> String {
    let mut out = escape(name.chars().take(200).collect::<String>().as_bytes());
    if out.len() < name.len() && name.chars().nth(200).is_some() {
        out.push('…');
    }
    out
}

fn describe(names: &[String], digest: &BlobDigest, platform: Option<&Platform>) -> String {
    let mut out = names.iter().take(4).map(|n| format!("{} ", short(n))).collect::<String>();
    out.push_str(&format!("@{digest}"));
    if let Some(platform) = platform {
        out.push_str(&format!(" ({platform})"));
    }
    out
}
