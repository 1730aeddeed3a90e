//! How fast are the digests on this machine, alone and in the reader that counts as it hashes?
//!
//! SHA-256 bounds a layer twice (blob and diff_id); a CPU without SHA instructions shows here first.

use std::hint::black_box;
use std::io::{self, Read};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use unply::digest::{Algorithm, Digest, HashingReader};

fn digests(c: &mut Criterion) {
    let data = vec![0x5a; 1 << 20];
    let mut group = c.benchmark_group("digest");
    group.throughput(Throughput::Bytes(data.len() as u64));
    for (name, algorithm) in [("sha256", Algorithm::Sha256), ("sha512", Algorithm::Sha512)] {
        group.bench_function(BenchmarkId::new("of", name), |b| b.iter(|| Digest::of(algorithm, black_box(&data))));
        group.bench_function(BenchmarkId::new("reader", name), |b| {
            let mut buf = vec![0; 128 << 10];
            b.iter(|| {
                let mut reader = HashingReader::new(io::Cursor::new(black_box(&data)), algorithm);
                while reader.read(&mut buf).unwrap() > 0 {}
                reader.finish()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, digests);
criterion_main!(benches);
