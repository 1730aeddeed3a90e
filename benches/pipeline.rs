//! What do more threads bring, and what does it matter in how many layers an image comes? The same 2,048 files of 16 KiB, in gzip
//! layers, pulled into an empty store in memory without syncs: 1, 2, 4 and 8 layers with 1 to 4 jobs.
//!
//! Jobs are layers at once; the stages inside a layer have threads of their own, so one job keeps more than one CPU busy. Deleting the store is not timed.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use testkit::image::{Compression, ImageSpec, OciLayout};
use unply::image::Reference;
use unply::unpack::{Options, open_store, pull};

const FILES: usize = 2_048;
const BYTES: usize = 16 << 10;

/// Makes an image whose layers have unlike content, as large together whatever their number.
fn image(dir: &Path, layers: usize) -> (Reference, u64) {
    let mut bytes = 0;
    let layers = (0..layers).map(|number| {
        let files = (0..FILES / layers).map(|n| {
            let n = number * FILES + n;
            testkit::file(format!("d{}/f{n}", n / 32), common::content(BYTES, n as u64))
        });
        let tar = testkit::layer(&files.collect::<Vec<_>>());
        bytes += tar.len() as u64;
        tar
    });
    let spec = ImageSpec::new(layers.collect::<Vec<_>>()).compression(Compression::Gzip).tag("t");
    OciLayout::new(dir).unwrap().add(&spec).unwrap();
    (format!("oci:{}:t", dir.display()).parse().unwrap(), bytes)
}

fn pipeline(c: &mut Criterion) {
    let base = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm").to_path_buf() } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new().prefix("unply-bench-").tempdir_in(base).unwrap();
    let mut group = c.benchmark_group("pipeline");
    group.sample_size(10);
    for layers in [1, 2, 4, 8] {
        let (reference, bytes) = image(&dir.path().join(format!("image-{layers}")), layers);
        group.throughput(Throughput::Bytes(bytes));
        for jobs in 1..=4 {
            let options = Options { durable: false, jobs, ..Options::default() };
            let id = BenchmarkId::new(format!("{layers} layers"), format!("{jobs} jobs"));
            group.bench_function(id, |b| {
                b.iter_custom(|rounds| {
                    let mut taken = Duration::ZERO;
                    for _ in 0..rounds {
                        let root = dir.path().join("store");
                        let store = open_store(&root, false).unwrap();
                        let begun = Instant::now();
                        let pulled = pull(&reference, &store, &options, &|_| {}).unwrap();
                        taken += begun.elapsed();
                        assert_eq!(pulled.layers.len(), layers);
                        drop(pulled);
                        std::fs::remove_dir_all(&root).unwrap();
                    }
                    taken
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
