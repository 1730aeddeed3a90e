//! What does a gzip blob cost from first byte to proof, inline and on threads, in one piece and in many, and how much of it is
//! the inflating alone?
//!
//! The bare row is the codec's crate over the same bytes: the difference is hashing twice and handing over.

mod common;

use std::hint::black_box;
use std::io::Read;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use unply::stream::Threads;

fn inflate(c: &mut Criterion) {
    let tar = testkit::layer(&common::entries(64, 64 << 10));
    let blob = testkit::gzip(&tar);
    let mut group = c.benchmark_group("inflate");
    group.sample_size(20).throughput(Throughput::Bytes(tar.len() as u64));
    group.bench_function("bare", |b| {
        let mut buf = vec![0; 128 << 10];
        b.iter(|| {
            let mut decoder = flate2::read::MultiGzDecoder::new(black_box(&blob[..]));
            while decoder.read(&mut buf).unwrap() > 0 {}
        });
    });
    group.bench_function("inline", |b| b.iter(|| common::read_through(black_box(&blob), Threads::Inline)));
    group.bench_function("pipelined", |b| b.iter(|| common::read_through(black_box(&blob), Threads::Pipelined)));
    // Members of unlike sizes, as of files; and of 64 KiB.
    let by_file = common::by_file(&tar, testkit::gzip);
    let even: Vec<u8> = tar.chunks(64 << 10).flat_map(testkit::gzip).collect();
    for decoders in [1, 3] {
        group.bench_function(format!("members-by-file/{decoders}"), |b| {
            b.iter(|| common::read_shared(black_box(&by_file), decoders));
        });
        group.bench_function(format!("members-of-64-kib/{decoders}"), |b| {
            b.iter(|| common::read_shared(black_box(&even), decoders));
        });
    }
    group.finish();
}

criterion_group!(benches, inflate);
criterion_main!(benches);
