//! What does laying down a layer cost per entry, without decompression and hashing: small files, big files, deep directories, hard
//! links, whiteouts? And what do more writers bring for small files?
//!
//! The scratch directory is in memory (`/dev/shm`) where there is one; `UNPLY_SCRATCH` names another place, such as an ext4.
//! Deleting it is outside the measured time.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use testkit::{EntrySpec, dir, file, hardlink, whiteout};
use unply::apply::{ApplyOptions, PlanOptions, Target, Writers, apply_layer};
use unply::policy::{Limits, Ownership, TreeOptions, WhiteoutForm, XattrFlavour};
use unply::root::Dir;
use unply::trace::LayerTrace;

fn options(writers: usize) -> ApplyOptions {
    let root = rustix::process::geteuid().is_root();
    ApplyOptions {
        plan: PlanOptions { tree: TreeOptions::default(), flavour: XattrFlavour::User, limits: Limits::default() },
        whiteouts: if root { WhiteoutForm::CharDevice } else { WhiteoutForm::Xattr },
        ownership: if root { Ownership::Keep } else { Ownership::Squash },
        skip_devices: true,
        tolerate_xattrs: true,
        sums: true,
        writers: Writers::exactly(writers, 32),
        trace: LayerTrace::default(),
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

fn scratch() -> tempfile::TempDir {
    let given = std::env::var_os("UNPLY_SCRATCH").map(PathBuf::from);
    let memory = PathBuf::from("/dev/shm");
    let base = given.unwrap_or_else(|| if memory.is_dir() { memory } else { std::env::temp_dir() });
    tempfile::Builder::new().prefix("unply-bench-").tempdir_in(base).unwrap()
}

fn bench(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, archive: &[u8], writers: usize) {
    let options = options(writers);
    let probe = scratch();
    group.throughput(Throughput::Elements(lay(probe.path(), archive, &options)));
    group.bench_function(name, |b| {
        b.iter_batched(
            scratch,
            |dir| {
                lay(dir.path(), archive, &options);
                dir
            },
            BatchSize::PerIteration,
        );
    });
}

/// 100 directories in one another, 20 files in each.
fn deep() -> Vec<EntrySpec> {
    let mut out = Vec::new();
    let mut parent = String::new();
    for n in 0..100 {
        parent.push_str(&format!("d{n}/"));
        out.push(dir(&parent));
        out.extend((0..20).map(|n| file(format!("{parent}f{n}"), common::content(512, n))));
    }
    out
}

/// 200 files of ten names each.
fn links() -> Vec<EntrySpec> {
    let mut out = vec![dir("store/"), dir("bin/")];
    for n in 0..200 {
        out.push(file(format!("store/{n}"), common::content(512, n)));
        out.extend((1..10).map(|link| hardlink(format!("bin/{n}-{link}"), format!("store/{n}"))));
    }
    out
}

/// 2,000 names hidden in 100 directories.
fn whiteouts() -> Vec<EntrySpec> {
    let each = |n: usize| {
        let parent = format!("d{n}");
        let hidden: Vec<EntrySpec> = (0..20).map(|n| whiteout(&parent, format!("gone{n}"))).collect();
        std::iter::once(dir(format!("{parent}/"))).chain(hidden)
    };
    (0..100).flat_map(each).collect()
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    group.sample_size(20);
    let small = testkit::layer(&common::entries(2_000, 512));
    bench(&mut group, "2,000 files of 512 B", &small, 0);
    bench(&mut group, "16 files of 1 MiB", &testkit::layer(&common::entries(16, 1 << 20)), 0);
    bench(&mut group, "100 directories in one another", &testkit::layer(&deep()), 0);
    bench(&mut group, "200 files and 1,800 hard links", &testkit::layer(&links()), 0);
    // Without root they are files with an xattr, which not every file system takes.
    if rustix::process::geteuid().is_root() {
        bench(&mut group, "2,000 whiteouts", &testkit::layer(&whiteouts()), 0);
    }
    let many = testkit::layer(&common::entries(10_000, 4_000));
    for writers in 0..=2 {
        bench(&mut group, &format!("10,000 files of 4 kB, {writers} more writers"), &many, writers);
    }
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);
