//! What does a pull cost when every layer is there already: is it the image's documents and nothing that grows with the layers?
//! And what do listings, new snapshots and a dry collection cost in a store of 2,000 layers and 5,000 snapshots, on ext4 in memory?

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use testkit::image::{ImageSpec, OciLayout};
use unply::image::Reference;
use unply::store::{SnapshotKind, Store};
use unply::unpack::{Options, open_store, pull};

fn store(c: &mut Criterion) {
    let base = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm").to_path_buf() } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new().prefix("unply-bench-").tempdir_in(base).unwrap();
    let store = open_store(&dir.path().join("store"), false).unwrap();
    let options = Options { durable: false, ..Options::default() };
    let mut group = c.benchmark_group("store: pull of present layers");
    group.sample_size(20);
    for (layers, files) in [(1, 1), (1, 1_000), (30, 1)] {
        let tars: Vec<Vec<u8>> = (0..layers)
            .map(|n| {
                testkit::layer(&[common::entries(files, 64), vec![testkit::file(format!("layer-{n}"), "")]].concat())
            })
            .collect();
        let path = dir.path().join(format!("image-{layers}-{files}"));
        OciLayout::new(&path).unwrap().add(&ImageSpec::new(tars).tag("t")).unwrap();
        let reference: Reference = format!("oci:{}:t", path.display()).parse().unwrap();
        pull(&reference, &store, &options, &|_| {}).unwrap();
        group.bench_function(BenchmarkId::new(format!("{layers} layers"), format!("{files} files each")), |b| {
            b.iter(|| {
                let pulled = pull(&reference, &store, &options, &|_| {}).unwrap();
                assert!(pulled.layers.iter().all(|layer| layer.reused));
            });
        });
    }
    group.finish();
}

const LAYERS: usize = 2_000;
const SNAPSHOTS: usize = 5_000;

/// An ext4 in a file in memory: there a sync has its code to run and no disk to wait for.
struct Ext4(tempfile::TempDir);

impl Ext4 {
    /// Needs root and `mkfs.ext4`; `None` where they are not there.
    fn new() -> Option<Ext4> {
        let dir = tempfile::Builder::new().prefix("unply-bench-").tempdir_in("/dev/shm").ok()?;
        let (image, target) = (dir.path().join("image"), dir.path().join("m"));
        std::fs::File::create(&image).and_then(|file| file.set_len(2 << 30)).ok()?;
        std::fs::create_dir(&target).ok()?;
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let ready = run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))
            && run(Command::new("mount").args(["-o", "loop"]).args([&image, &target]));
        ready.then_some(Ext4(dir))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("m")
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // What is left of a benchmark shows in the mount table.
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

/// Layers of each image: what images have.
const HEIGHT: usize = 10;

/// Fills a store with images of layers of one file, and snapshots on them.
fn fill(root: &Path, work: &Path) -> Store {
    let store = open_store(root, false).unwrap();
    let options = Options { durable: false, ..Options::default() };
    for image in 0..LAYERS / HEIGHT {
        let tars: Vec<Vec<u8>> = (0..HEIGHT)
            .map(|n| testkit::layer(&[testkit::file(format!("f{n}"), format!("{image}").as_str())]))
            .collect();
        let path = work.join(format!("image-{image}"));
        OciLayout::new(&path).unwrap().add(&ImageSpec::new(tars).tag(format!("t{image}"))).unwrap();
        let reference: Reference = format!("oci:{}:t{image}", path.display()).parse().unwrap();
        let pulled = pull(&reference, &store, &options, &|_| {}).unwrap();
        for n in 0..SNAPSHOTS / (LAYERS / HEIGHT) {
            let key = format!("snapshot-{image}-{n}");
            pulled.chain.record_snapshot(&key, SnapshotKind::Active, Default::default()).unwrap();
        }
        // A tenth of the images go; their snapshots keep the layers.
        if image % 10 == 0 {
            store.remove_image(&pulled.record.image.image_id).unwrap();
        }
    }
    store
}

fn large(c: &mut Criterion) {
    let Some(disk) = Ext4::new() else {
        println!("SKIP: a large store: root and mkfs.ext4 are needed for an ext4 in memory");
        return;
    };
    let root = disk.path().join("store");
    fill(&root, &disk.path());
    let store = open_store(&root, true).unwrap();
    let mut group = c.benchmark_group(format!("store: {LAYERS} layers, {SNAPSHOTS} snapshots"));
    group.sample_size(20);
    group.bench_function("open", |b| b.iter(|| open_store(&root, true).unwrap()));
    group.bench_function("list layers", |b| b.iter(|| assert_eq!(store.layers().unwrap().len(), LAYERS)));
    group.bench_function("list snapshots", |b| b.iter(|| assert_eq!(store.snapshots().unwrap().len(), SNAPSHOTS)));
    group.bench_function("who needs what", |b| b.iter(|| assert_eq!(store.usage().unwrap().layers.len(), LAYERS)));
    group.bench_function("dry collection", |b| b.iter(|| store.gc(true).unwrap()));
    group.bench_function("check", |b| b.iter(|| assert_eq!(store.check().unwrap(), [])));
    let mut number = 0;
    let image = store.images().unwrap().swap_remove(0).image.image_id.to_string();
    let chain = unply::unpack::stored(&image, &store, &|_| {}).unwrap().chain;
    let mut prepare = || {
        number += 1;
        let key = format!("new-{number}");
        chain.record_snapshot(&key, SnapshotKind::Active, Default::default()).unwrap();
        key
    };
    group.bench_function("prepare, durable", |b| {
        b.iter_custom(|times| {
            let mut taken = Duration::ZERO;
            for _ in 0..times {
                let start = Instant::now();
                let key = prepare();
                taken += start.elapsed();
                store.remove_snapshot(&key).unwrap();
            }
            taken
        });
    });
    for words in [&["images"][..], &["layers"], &["snapshots"], &["gc", "--dry-run"]] {
        group.bench_function(format!("unply {}", words.join(" ")), |b| {
            b.iter(|| {
                let run = Command::new(env!("CARGO_BIN_EXE_unply")).env("UNPLY_ROOT", &root).args(words).output();
                assert!(run.unwrap().status.success());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, store, large);
criterion_main!(benches);
