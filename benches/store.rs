//! What does a pull cost when every layer is there already: is it the image's documents and nothing that grows with the layers?

mod common;

use std::path::Path;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use testkit::image::{ImageSpec, OciLayout};
use unply::image::Reference;
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

criterion_group!(benches, store);
criterion_main!(benches);
