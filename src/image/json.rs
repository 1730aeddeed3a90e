//! The JSON documents of an image, read strictly.
//!
//! Owns: the shapes of index, manifest, config, `oci-layout` and Docker's `manifest.json`; what is refused before any
//! of them is believed: invalid UTF-8, a key twice, a key that differs from a known one only in letter case (Go's
//! decoder would take it, so two tools would see two images), both `manifests` and `layers` in one document (I9,
//! CVE-2021-41190). Refuses to know: where the bytes come from. Sizes are limited by whoever reads them (I17).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::platform::Platform;
use crate::digest::BlobDigest;
use crate::error::{Error, ErrorKind, escape};

/// What a media type makes a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Index,
    Manifest,
    Other,
}

/// Classifies a media type; OCI and Docker schema 2 names are equal (I12).
pub(crate) fn kind_of(media_type: &str) -> Kind {
    match media_type {
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            Kind::Index
        }
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
            Kind::Manifest
        }
        _ => Kind::Other,
    }
}

/// Says whether a config of this media type describes a root file system.
pub(crate) fn is_config(media_type: &str) -> bool {
    // Docker before 1.10.3 pushed configs as octet-stream; the document itself still has to be one.
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
    )
}

/// Says whether a layer of this media type is a tar that unply decodes; the codec itself is sniffed (Z8).
pub(crate) fn is_layer(media_type: &str) -> bool {
    let Some(rest) = media_type.strip_prefix("application/vnd.") else { return false };
    matches!(
        rest,
        "oci.image.layer.v1.tar"
            | "oci.image.layer.v1.tar+gzip"
            | "oci.image.layer.v1.tar+zstd"
            | "oci.image.layer.nondistributable.v1.tar"
            | "oci.image.layer.nondistributable.v1.tar+gzip"
            | "oci.image.layer.nondistributable.v1.tar+zstd"
            | "docker.image.rootfs.diff.tar"
            | "docker.image.rootfs.diff.tar.gzip"
            | "docker.image.rootfs.diff.tar.zstd"
            | "docker.image.rootfs.foreign.diff.tar"
            | "docker.image.rootfs.foreign.diff.tar.gzip"
            | "docker.image.rootfs.foreign.diff.tar.zstd"
    )
}

/// Annotations that unply reads.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// A pointer to a blob
/// (<https://github.com/opencontainers/image-spec/blob/main/descriptor.md>).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(default, rename = "mediaType")]
    pub media_type: String,
    /// Kept as text: one entry with an unknown algorithm must not spoil its neighbours.
    digest: String,
    pub size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<PlatformJson>,
    #[serde(default)]
    data: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct PlatformJson {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
}

impl Descriptor {
    /// Returns the digest.
    ///
    /// # Errors
    /// `Malformed` for text that is no digest, `Unsupported` for an algorithm that is not computed here.
    pub fn digest(&self) -> Result<BlobDigest, Error> {
        self.digest.parse()
    }

    /// Returns the names that the entry of an `index.json` gives its image, the full one first (I2).
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for key in [CONTAINERD_NAME, REF_NAME] {
            if let Some(name) = self.annotations.as_ref().and_then(|a| a.get(key)).filter(|n| !n.is_empty())
                && !names.contains(name)
            {
                names.push(name.clone());
            }
        }
        names
    }

    /// Returns the platform, where it says one.
    pub fn platform(&self) -> Option<Platform> {
        let p = self.platform.as_ref()?;
        let platform =
            Platform::new(p.os.as_deref().unwrap_or(""), p.architecture.as_deref().unwrap_or(""), p.variant.as_deref());
        (!platform.is_unknown()).then_some(platform)
    }

    /// Says whether it is a statement about another manifest and not an image (I4).
    pub fn is_attestation(&self) -> bool {
        self.annotations.as_ref().is_some_and(|a| a.contains_key(REFERENCE_TYPE))
            || self
                .platform
                .as_ref()
                .is_some_and(|p| p.os.as_deref() == Some("unknown") && p.architecture.as_deref() == Some("unknown"))
    }

    /// Returns the embedded content, decoded and not yet verified (I8).
    ///
    /// # Errors
    /// `Malformed` when it is not base64.
    pub fn data(&self) -> Result<Option<Vec<u8>>, Error> {
        match &self.data {
            None => Ok(None),
            Some(text) => base64(text.as_bytes())
                .map(Some)
                .ok_or_else(|| malformed(format!("embedded data of {} is not base64", escape(self.digest.as_bytes())))),
        }
    }
}

/// An index or a manifest; which of the two is decided only after both were looked for (I9).
#[derive(Debug, Deserialize)]
pub(crate) struct Document {
    #[serde(default, rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(default, rename = "mediaType")]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

/// A manifest: the config and the layers, bottom first.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

const DOCUMENT_KEYS: &[&str] = &[
    "schemaVersion",
    "mediaType",
    "manifests",
    "config",
    "layers",
    "fsLayers",
    "digest",
    "size",
    "data",
    "platform",
    "os",
    "architecture",
    "variant",
    "annotations",
];

impl Document {
    fn parse(bytes: &[u8], what: &str, expected: Kind) -> Result<Document, Error> {
        let document: Document = parse_object(bytes, what, DOCUMENT_KEYS, &["annotations"])?;
        if document.fs_layers.is_some() || document.schema_version == Some(1) {
            return Err(Error::new(ErrorKind::Unsupported, format!("{what} is a Docker schema 1 document"))
                .with_hint("save or push the image again with a current tool"));
        }
        // Empty lists count: containerd refuses them as well (CVE-2021-41190), and another reader may look at the key alone.
        let index_like = document.manifests.is_some();
        let manifest_like = document.config.is_some() || document.layers.is_some();
        if index_like && manifest_like {
            return Err(malformed(format!("{what} is both an index and a manifest")));
        }
        if let Some(media_type) = document.media_type.as_deref().filter(|m| !m.is_empty())
            && kind_of(media_type) != expected
        {
            return Err(malformed(format!(
                "{what} should be {} but calls itself \"{}\"",
                article(expected),
                escape(media_type.as_bytes())
            )));
        }
        if (expected == Kind::Index && manifest_like) || (expected == Kind::Manifest && index_like) {
            return Err(malformed(format!("{what} should be {} but is not", article(expected))));
        }
        Ok(document)
    }

    /// Reads an index and returns its entries, in order.
    ///
    /// # Errors
    /// `Malformed` for anything ambiguous, `Unsupported` for schema 1.
    pub fn index(bytes: &[u8], what: &str) -> Result<Vec<Descriptor>, Error> {
        Ok(Document::parse(bytes, what, Kind::Index)?.manifests.unwrap_or_default())
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// `Malformed` for anything ambiguous, `Unsupported` for schema 1.
    pub fn manifest(bytes: &[u8], what: &str) -> Result<Manifest, Error> {
        let document = Document::parse(bytes, what, Kind::Manifest)?;
        let config = document.config.ok_or_else(|| malformed(format!("{what} has no config")))?;
        Ok(Manifest { config, layers: document.layers.unwrap_or_default() })
    }
}

fn article(kind: Kind) -> &'static str {
    if kind == Kind::Index { "an index" } else { "a manifest" }
}

/// The parts of an image config that unply needs
/// (<https://github.com/opencontainers/image-spec/blob/main/config.md>).
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    rootfs: Option<RootFs>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl Config {
    /// Reads a config.
    ///
    /// # Errors
    /// `Malformed` for anything ambiguous.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Config, Error> {
        let keys = ["os", "architecture", "variant", "rootfs", "type", "diff_ids", "config"];
        parse_object(bytes, what, &keys, &["config", "container_config", "history"])
    }

    /// Returns the platform; its words are empty where the config has none (I11).
    pub fn platform(&self) -> Platform {
        Platform::new(
            self.os.as_deref().unwrap_or(""),
            self.architecture.as_deref().unwrap_or(""),
            self.variant.as_deref(),
        )
    }

    /// Returns the diff_ids, bottom first, as text.
    ///
    /// # Errors
    /// `Malformed` without a `rootfs`, `Unsupported` when its type is not `layers`.
    pub fn diff_ids(&self, what: &str) -> Result<&[String], Error> {
        let rootfs = self.rootfs.as_ref().ok_or_else(|| malformed(format!("{what} has no rootfs")))?;
        match rootfs.kind.as_deref() {
            Some("layers") => Ok(rootfs.diff_ids.as_deref().unwrap_or(&[])),
            Some(other) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{what} has a rootfs of type \"{}\", not \"layers\"", escape(other.as_bytes())),
            )),
            None => Err(malformed(format!("{what} has a rootfs without a type"))),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// Checks the content of an `oci-layout` file (I1).
///
/// # Errors
/// `Malformed` when it is no such document, `Unsupported` for another version than 1.0.0.
pub(crate) fn check_layout(bytes: &[u8]) -> Result<(), Error> {
    let layout: Layout = parse_object(bytes, "oci-layout", &["imageLayoutVersion"], &[])?;
    if layout.version != "1.0.0" {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("image layout version \"{}\" is not 1.0.0", escape(layout.version.as_bytes())),
        ));
    }
    Ok(())
}

/// One image of Docker's `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct DockerImage {
    #[serde(rename = "Config")]
    pub config: String,
    #[serde(default, rename = "RepoTags")]
    repo_tags: Option<Vec<String>>,
    #[serde(default, rename = "Layers")]
    layers: Option<Vec<String>>,
}

impl DockerImage {
    /// Reads `manifest.json`; `null` is a list of none.
    ///
    /// # Errors
    /// `Malformed` for anything ambiguous.
    pub fn list(bytes: &[u8]) -> Result<Vec<DockerImage>, Error> {
        let list: Option<Vec<DockerImage>> = parse(bytes, "manifest.json", &["Config", "RepoTags", "Layers"], &[])?;
        Ok(list.unwrap_or_default())
    }

    /// Returns the names, which may be none.
    pub fn names(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or(&[])
    }

    /// Returns the member names of the layers, bottom first.
    pub fn layers(&self) -> &[String] {
        self.layers.as_deref().unwrap_or(&[])
    }
}

fn malformed(message: String) -> Error {
    Error::new(ErrorKind::Malformed, message)
}

/// Reads a document that is one JSON object; serde alone would take an array in its place.
fn parse_object<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str, keys: &[&str], free: &[&str]) -> Result<T, Error> {
    match bytes.iter().find(|b| !b" \t\r\n\xef\xbb\xbf".contains(b)) {
        Some(b'{') => parse(bytes, what, keys, free),
        _ => Err(malformed(format!("{what} is not a JSON object"))),
    }
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str, keys: &[&str], free: &[&str]) -> Result<T, Error> {
    let text = std::str::from_utf8(bytes).map_err(|err| {
        malformed(format!("{what} is not UTF-8")).with_offset(u64::try_from(err.valid_up_to()).unwrap_or(u64::MAX))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut scan = serde_json::Deserializer::from_str(text);
    Strict { keys, free }
        .deserialize(&mut scan)
        .and_then(|()| scan.end())
        .map_err(|err| malformed(format!("{what} is not a valid document")).with_source(err))?;
    serde_json::from_str(text).map_err(|err| malformed(format!("{what} is not a valid document")).with_source(err))
}

/// Keys of one object and elements of one list beyond which a document is refused: nobody writes so many, and each
/// one takes more memory than text.
const MAX_KEYS: usize = 65_536;
const MAX_ELEMENTS: usize = 65_536;

/// Walks a document without keeping it and refuses what two decoders would read differently.
#[derive(Clone, Copy)]
struct Strict<'k> {
    /// Keys that unply reads; a key that is one of them but for letter case is refused.
    keys: &'k [&'k str],
    /// Keys whose values hold words of the image's author (labels, annotations): any spelling goes there.
    free: &'k [&'k str],
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        use serde::de::Error as _;
        let mut count = 0usize;
        while seq.next_element_seed(self)?.is_some() {
            count += 1;
            if count > MAX_ELEMENTS {
                return Err(A::Error::custom(format!("more than {MAX_ELEMENTS} elements in one list")));
            }
        }
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        use serde::de::Error as _;
        let mut seen: HashSet<Cow<'de, str>> = HashSet::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if let Some(known) = self.keys.iter().find(|known| **known != key && folds_to(&key, known)) {
                let key = escape(key.as_bytes());
                return Err(A::Error::custom(format!("key \"{key}\" differs from \"{known}\" only in letter case")));
            }
            let inner = if self.free.contains(&&*key) { Strict { keys: &[], free: &[] } } else { self };
            if seen.len() >= MAX_KEYS {
                return Err(A::Error::custom(format!("more than {MAX_KEYS} keys in one object")));
            }
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("key \"{}\" stands there twice", escape(key.as_bytes()))));
            }
            seen.insert(key);
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// Says whether Go's decoder would take `key` for `known`: simple Unicode folding reaches ASCII from two letters more.
fn folds_to(key: &str, known: &str) -> bool {
    let mut wanted = known.chars();
    for c in key.chars() {
        let c = match c {
            'ſ' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        };
        if wanted.next().map(|w| w.to_ascii_lowercase()) != Some(c) {
            return false;
        }
    }
    wanted.next().is_none()
}

/// Decodes standard base64 with padding (RFC 4648, section 4).
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let digits = text.get(..text.len() - padding)?;
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0u32);
    for b in digits {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    // Left-over bits must be zero, or two texts would mean one content.
    (bits & ((1 << count) - 1) == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind<T: std::fmt::Debug>(r: Result<T, Error>) -> ErrorKind {
        r.unwrap_err().kind()
    }

    const D: &str = r#"{"mediaType":"x","digest":"sha256:00","size":1}"#;

    #[test]
    fn i17_duplicate_keys_and_case_twins_are_refused_at_any_depth() {
        for bad in [
            format!(r#"{{"manifests":[],"manifests":[{D}]}}"#),
            r#"{"manifests":[],"annotations":{"a":"1","a":"2"}}"#.to_owned(),
            r#"{"manifests":[],"x":{"y":[{"z":1,"z":2}]}}"#.to_owned(),
            format!(r#"{{"Manifests":[{D}]}}"#),
            format!(r#"{{"manifeſts":[{D}]}}"#),
            r#"{"manifests":[{"mediaType":"x","digest":"sha256:00","Size":1}]}"#.to_owned(),
            r#"{"manifests":[{"mediaType":"x","digest":"sha256:00","size":-1}]}"#.to_owned(),
            r#"{"manifests":[{"mediaType":"x","digest":"sha256:00","size":1.5}]}"#.to_owned(),
            r#"{"manifests":[]} trailing"#.to_owned(),
            "[".repeat(100_000),
            "[]".to_owned(),
        ] {
            assert_eq!(kind(Document::index(bad.as_bytes(), "index.json")), ErrorKind::Malformed, "{bad:.80}");
        }
        assert_eq!(kind(Document::index(b"{\"manifests\":[],\"a\":\"\xff\"}", "index.json")), ErrorKind::Malformed);
        assert!(Document::index(br#"{"manifests":[],"annotations":{"Size":"1","size":"2"}}"#, "i").is_ok());
        assert!(Document::index(br#"{"manifests":null,"schemaVersion":2}"#, "i").unwrap().is_empty());
        let labels =
            br#"{"os":"linux","config":{"Labels":{"OS":"x","Type":"y"}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        assert!(Config::parse(labels, "config").unwrap().diff_ids("config").unwrap().is_empty());
        assert_eq!(kind(Config::parse(br#"{"rootfs":{"type":"layers","Diff_IDs":[]}}"#, "c")), ErrorKind::Malformed);
    }

    #[test]
    fn i09_a_document_is_an_index_or_a_manifest_never_both() {
        let both = format!(r#"{{"manifests":[{D}],"config":{D},"layers":[{D}]}}"#);
        assert_eq!(kind(Document::index(both.as_bytes(), "x")), ErrorKind::Malformed);
        assert_eq!(kind(Document::manifest(both.as_bytes(), "x")), ErrorKind::Malformed);
        let index = format!(r#"{{"manifests":[{D}]}}"#);
        assert_eq!(kind(Document::manifest(index.as_bytes(), "x")), ErrorKind::Malformed);
        let manifest = format!(r#"{{"config":{D},"layers":[{D}]}}"#);
        assert_eq!(kind(Document::index(manifest.as_bytes(), "x")), ErrorKind::Malformed);
        assert!(Document::manifest(manifest.as_bytes(), "x").is_ok());
        let lying = format!(r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","config":{D},"layers":[{D}]}}"#);
        assert_eq!(kind(Document::manifest(lying.as_bytes(), "x")), ErrorKind::Malformed);
        // Docker and OCI words for one kind are interchangeable: real layouts mix them.
        let mixed = format!(
            r#"{{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{D},"layers":null}}"#
        );
        assert!(Document::manifest(mixed.as_bytes(), "x").unwrap().layers.is_empty());
        let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert_eq!(kind(Document::manifest(old, "x")), ErrorKind::Unsupported);
    }

    #[test]
    fn i01_layout_versions() {
        assert!(check_layout(br#"{"imageLayoutVersion": "1.0.0"}"#).is_ok());
        assert_eq!(kind(check_layout(br#"{"imageLayoutVersion": "2.0.0"}"#)), ErrorKind::Unsupported);
        assert_eq!(kind(check_layout(b"{}")), ErrorKind::Malformed);
    }

    #[test]
    fn i08_base64_is_strict() {
        assert_eq!(base64(b"e30=").unwrap(), b"{}");
        assert_eq!(base64(b"").unwrap(), b"");
        assert_eq!(base64(b"AAECA/8=").unwrap(), [0, 1, 2, 3, 255]);
        for bad in [&b"e30"[..], b"e3==", b"e31=", b"e3 =", b"====", b"=AAA", b"e-_="] {
            assert!(base64(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn i04_attestations_are_recognised() {
        let parse = |s: &str| serde_json::from_str::<Descriptor>(s).unwrap();
        assert!(
            parse(r#"{"digest":"","size":1,"platform":{"os":"unknown","architecture":"unknown"}}"#).is_attestation()
        );
        assert!(
            parse(r#"{"digest":"","size":1,"annotations":{"vnd.docker.reference.type":"attestation-manifest"}}"#)
                .is_attestation()
        );
        assert!(!parse(r#"{"digest":"","size":1,"platform":{"os":"linux","architecture":"amd64"}}"#).is_attestation());
    }
}
