//! No damaged blob is ever published: bits flipped and ends cut off at random in layers, configs, manifests and nested indexes.
//!
//! Every blob of an OCI layout is promised by a digest, from `index.json` down. `index.json` and `oci-layout` themselves are
//! promised by nobody, as are the headers and the padding around the members of an archive: those are not damaged here.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::*;
use testkit::image::{Built, Compression, ImageSpec, OciLayout};
use testkit::random::Rng;
use testkit::{EntrySpec, dir, file, hardlink, symlink, whiteout};
use unply::error::{Error, ErrorKind};
use unply::image::Reference;
use unply::store::Store;
use unply::unpack::{self, Options};

const TRIES: usize = 1_000;

/// One layer, for intact layers of a damaged image may well be published.
fn image(compression: Compression) -> ImageSpec {
    let numbers: String = (0..1_500).map(|n| format!("{n} ")).collect();
    let mut noise = Rng::new(7);
    let noise: Vec<u8> = (0..3_000).map(|_| noise.below(256) as u8).collect();
    let entries: Vec<EntrySpec> = vec![
        dir("d/").mode(0o750),
        file("d/numbers", numbers),
        file("d/noise", noise).xattr("user.k", "v"),
        hardlink("d/link", "d/noise"),
        symlink("s", "d/numbers"),
        whiteout("d", "gone"),
        file("empty", ""),
    ];
    let image = ImageSpec::new([testkit::layer(&entries)]).tag("t").compression(compression);
    ImageSpec { nested: true, ..image }
}

/// What is tried on: an image, an empty store that stays empty, and a place for trees.
struct Bench {
    work: tempfile::TempDir,
    reference: Reference,
    store: Store,
    /// Blobs by what they are; the index that lists the manifest is the fourth.
    blobs: Vec<(&'static str, PathBuf, Vec<u8>)>,
}

fn options() -> Options {
    Options { durable: false, jobs: 1, ..Options::default() }
}

impl Bench {
    fn new(lab: &Lab, compression: Compression) -> Bench {
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let layout = work.path().join("image");
        let built = OciLayout::new(&layout).unwrap().add(&image(compression)).unwrap();
        let store = unpack::open_store(&work.path().join("store"), false).unwrap();
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
        let mut blobs: Vec<_> =
            blobs.map(|path| (what_is(&built, &path), path.clone(), std::fs::read(path).unwrap())).collect();
        blobs.sort();
        assert_eq!(blobs.iter().map(|b| b.0).collect::<Vec<_>>(), ["config", "index", "layer", "manifest"]);
        let reference = format!("oci:{}:t", layout.display()).parse().unwrap();
        Bench { work, reference, store, blobs }
    }

    /// Pulls, and now and then unpacks into a directory, an image with one damaged blob; nothing may come of it.
    fn refused(&self, path: &Path, bad: &[u8], flat: bool) -> Error {
        std::fs::write(path, bad).unwrap();
        let out = self.work.path().join("out");
        let result = if flat {
            unpack::unpack(&self.reference, &out, None, &options(), &|_| {}).map(|_| ())
        } else {
            unpack::pull(&self.reference, &self.store, &options(), &|_| {}).map(|_| ())
        };
        assert!(!out.exists(), "{}: a tree stands there", path.display());
        assert_eq!(self.store.layers().unwrap().len(), 0, "{}: a layer was published", path.display());
        assert_eq!(self.store.images().unwrap().len(), 0, "{}: an image was recorded", path.display());
        result.expect_err("damage was taken")
    }

    /// The intact image goes in, or nothing above has proved anything; and nothing was left lying about before.
    fn finish(self) {
        assert_eq!(self.store.check().unwrap(), []);
        let left = |name: &str| std::fs::read_dir(self.work.path().join("store").join(name)).unwrap().count();
        assert_eq!((left("staging"), left("l"), left("layers")), (0, 0, 0));
        for (_, path, good) in &self.blobs {
            std::fs::write(path, good).unwrap();
        }
        unpack::pull(&self.reference, &self.store, &options(), &|_| {}).unwrap();
        assert_eq!(self.store.layers().unwrap().len(), 1);
    }
}

fn what_is(built: &Built, path: &Path) -> &'static str {
    let name = path.file_name().unwrap().to_str().unwrap();
    match name {
        _ if built.layers.iter().any(|layer| layer == name) => "layer",
        _ if name == built.config => "config",
        _ if name == built.manifest => "manifest",
        _ => "index",
    }
}

/// Damages one blob after another, every other time the layer; returns how often which blob was refused.
fn damaged(bench: &Bench, seed: u64, damage: fn(&mut Rng, &mut Vec<u8>)) -> BTreeMap<&'static str, usize> {
    let mut random = Rng::new(seed);
    let mut counts = BTreeMap::new();
    for n in 0..TRIES {
        let (what, path, good) = match n % 2 {
            0 => bench.blobs.iter().find(|blob| blob.0 == "layer").unwrap(),
            _ => &bench.blobs[random.below(bench.blobs.len())],
        };
        let mut bad = good.clone();
        damage(&mut random, &mut bad);
        let error = bench.refused(path, &bad, n % 10 == 9);
        // What the damage looks like to a decoder does not matter where the digest says that it is damage.
        assert_eq!(error.kind(), ErrorKind::Integrity, "try {n} of seed {seed}, {what}: {error}");
        *counts.entry(*what).or_insert(0) += 1;
        std::fs::write(path, good).unwrap();
    }
    counts
}

fn every_damage_is_refused(test: &str, damage: fn(&mut Rng, &mut Vec<u8>)) {
    if !root_or_skip(test) {
        return;
    }
    let lab = Lab::new();
    for (seed, compression) in [(1, Compression::Gzip), (2, Compression::Zstd), (3, Compression::None)] {
        let bench = Bench::new(&lab, compression);
        let counts = damaged(&bench, seed, damage);
        println!("{test}, {compression:?}: {TRIES} tried, {} refused: {counts:?}", counts.values().sum::<usize>());
        assert_eq!(counts.values().sum::<usize>(), TRIES);
        assert!(counts["layer"] >= TRIES / 2, "{counts:?}");
        assert!(["config", "index", "manifest"].iter().all(|what| counts[what] >= TRIES / 20), "{counts:?}");
        bench.finish();
    }
}

#[test]
fn z13_every_flipped_bit_of_a_blob_is_refused() {
    every_damage_is_refused("z13_every_flipped_bit_of_a_blob_is_refused", |random, blob| {
        let bit = random.below(blob.len() * 8);
        blob[bit / 8] ^= 1 << (bit % 8);
    });
}

#[test]
fn z13_every_blob_cut_short_is_refused() {
    every_damage_is_refused("z13_every_blob_cut_short_is_refused", |random, blob| {
        blob.truncate(random.below(blob.len()));
    });
}
