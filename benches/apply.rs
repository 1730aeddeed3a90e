//! What does laying down a layer cost per entry, without decompression and hashing: small files, big files?
//!
//! The scratch directory is in memory (`/dev/shm`) where there is one. Deleting it is outside the measured time.

mod common;

use std::fs::File;
use std::path::Path;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use unply::apply::{ApplyOptions, PlanOptions, Target, apply_layer};
use unply::policy::{Limits, Ownership, TreeOptions, WhiteoutForm, XattrFlavour};
use unply::root::Dir;

fn options() -> ApplyOptions {
    let root = rustix::process::geteuid().is_root();
    ApplyOptions {
        plan: PlanOptions { tree: TreeOptions::default(), flavour: XattrFlavour::User, limits: Limits::default() },
        whiteouts: WhiteoutForm::CharDevice,
        ownership: if root { Ownership::Keep } else { Ownership::Squash },
        skip_devices: true,
        tolerate_xattrs: true,
        sums: true,
    }
}

fn lay(at: &Path, archive: &[u8], options: &ApplyOptions) -> u64 {
    for name in ["tree", "stash"] {
        std::fs::create_dir(at.join(name)).unwrap();
    }
    let journal = File::options().read(true).write(true).create_new(true).open(at.join("journal")).unwrap();
    let dir = |name| Dir::open(&at.join(name)).unwrap();
    let target = Target { tree: dir("tree"), stash: dir("stash"), journal };
    apply_layer(&mut &archive[..], target, options, &mut |_| {}, &|| Ok(())).unwrap().facts.entries
}

fn apply(c: &mut Criterion) {
    let scratch = || {
        let base =
            if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm").to_path_buf() } else { std::env::temp_dir() };
        tempfile::Builder::new().prefix("unply-bench-").tempdir_in(base).unwrap()
    };
    let options = options();
    let mut group = c.benchmark_group("apply");
    group.sample_size(20);
    for (name, files, bytes) in [("2,000 files of 512 B", 2_000, 512), ("16 files of 1 MiB", 16, 1 << 20)] {
        let archive = testkit::layer(&common::entries(files, bytes));
        let probe = scratch();
        group.throughput(Throughput::Elements(lay(probe.path(), &archive, &options)));
        group.bench_function(name, |b| {
            b.iter_batched(
                scratch,
                |dir| {
                    lay(dir.path(), &archive, &options);
                    dir
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);
