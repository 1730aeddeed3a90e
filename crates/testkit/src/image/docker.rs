//! Archives as `docker save` writes them.

use super::json::{Json, array, object, string};
use super::{Breakage, Files, ImageSpec, Layout, flipped};
use crate::entry::EntrySpec;
use crate::tar::{TarBuilder, sha256_hex};
use crate::{dir, file, symlink};
use std::collections::BTreeMap;

/// Which `docker save` wrote the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DockerForm {
    /// Before Docker 25: one directory a layer with a `layer.tar`; a layer met before is a symlink to its first copy.
    #[default]
    Legacy,
    /// Docker 25 and later: an OCI layout whose `manifest.json` names its blobs.
    Combined,
}

/// How an archive is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DockerOptions {
    /// The form.
    pub form: DockerForm,
    /// `manifest.json` is the first member in place of the last but one.
    pub manifest_first: bool,
}

/// Makes a Docker archive of images; layers are not compressed, whatever their specs say.
///
/// [`Breakage::WrongSize`] means nothing in the legacy form, which states no sizes.
pub fn docker_archive(images: &[ImageSpec], options: DockerOptions) -> Vec<u8> {
    match options.form {
        DockerForm::Legacy => legacy(images, options.manifest_first),
        DockerForm::Combined => combined(images, options.manifest_first),
    }
}

fn manifest_entry(image: &ImageSpec, config: String, layers: Vec<String>) -> Json {
    object([
        ("Config", string(&config)),
        ("RepoTags", array(image.tag.iter().map(|tag| string(tag)))),
        ("Layers", array(layers.iter().map(|path| string(path)))),
    ])
}

/// `repositories`: names to tags to the topmost layer's id.
fn repositories(tops: &[(String, String)]) -> Json {
    let mut names: BTreeMap<&str, Vec<(&str, Json)>> = BTreeMap::new();
    for (reference, id) in tops {
        let (name, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
        names.entry(name).or_default().push((tag, string(id)));
    }
    object(names.into_iter().map(|(name, tags)| (name, object(tags))))
}

fn ordered(members: Vec<EntrySpec>, manifest: Json, repositories: Json, manifest_first: bool) -> Vec<u8> {
    let manifest = file("manifest.json", manifest.into_bytes());
    let (first, last) = if manifest_first { (Some(manifest), None) } else { (None, Some(manifest)) };
    let all = first.into_iter().chain(members).chain(last).chain([file("repositories", repositories.into_bytes())]);
    all.fold(TarBuilder::new(), |tar, entry| tar.entry(&entry)).finish()
}

fn legacy(images: &[ImageSpec], manifest_first: bool) -> Vec<u8> {
    let mut members: Vec<EntrySpec> = Vec::new();
    let mut copies: BTreeMap<String, String> = BTreeMap::new();
    let (mut entries, mut tops) = (Vec::new(), Vec::new());
    for image in images {
        let config_json = image.config_json();
        let config = sha256_hex(&config_json);
        let (mut parent, mut layers) = (String::new(), Vec::new());
        for (i, layer) in image.layers.iter().enumerate() {
            let diff_id = sha256_hex(&layer.tar);
            let id = sha256_hex(format!("{parent} {diff_id}").as_bytes());
            let path = format!("{id}/layer.tar");
            layers.push(path.clone());
            parent = id.clone();
            if members.iter().any(|entry| entry.path == path.as_bytes()) {
                continue;
            }
            let json = object([("id", string(&id)), ("os", string("linux"))]).into_bytes();
            members.extend([
                dir(format!("{id}/")),
                file(format!("{id}/VERSION"), "1.0"),
                file(format!("{id}/json"), json),
            ]);
            match copies.get(&diff_id) {
                Some(first) => members.push(symlink(path, format!("../{first}/layer.tar"))),
                None => {
                    members.extend(stored(image, i, &layer.tar).map(|bytes| file(path, bytes)));
                    copies.insert(diff_id, id);
                }
            }
        }
        let stored = if image.is(Breakage::FlippedConfig) { flipped(&config_json) } else { config_json };
        members.push(file(format!("{config}.json"), stored));
        tops.extend(image.tag.iter().map(|tag| (tag.clone(), parent.clone())));
        entries.push(manifest_entry(image, format!("{config}.json"), layers));
    }
    ordered(members, array(entries), repositories(&tops), manifest_first)
}

/// What is really written for a layer.
fn stored(image: &ImageSpec, i: usize, bytes: &[u8]) -> Option<Vec<u8>> {
    match () {
        () if image.is(Breakage::MissingBlob(i)) => None,
        () if image.is(Breakage::FlippedBit(i)) => Some(flipped(bytes)),
        () if image.is(Breakage::ShortBlob(i)) => Some(bytes[..bytes.len().saturating_sub(1)].to_vec()),
        () => Some(bytes.to_vec()),
    }
}

fn combined(images: &[ImageSpec], manifest_first: bool) -> Vec<u8> {
    let mut layout = Layout::default();
    let (mut entries, mut tops) = (Vec::new(), Vec::new());
    for image in images {
        let image = image.clone().compression(super::Compression::None);
        let built = layout.add(&image);
        let blob = |digest: &String| format!("blobs/sha256/{digest}");
        entries.push(manifest_entry(&image, blob(&built.config), built.layers.iter().map(blob).collect()));
        let top = built.layers.last().cloned().unwrap_or_default();
        tops.extend(image.tag.iter().map(|tag| (tag.clone(), top.clone())));
    }
    let files: Files = layout.finished();
    let directories = [dir("blobs/"), dir("blobs/sha256/")];
    let members = directories.into_iter().chain(files.iter().map(|(path, bytes)| file(path, bytes))).collect();
    ordered(members, array(entries), repositories(&tops), manifest_first)
}
