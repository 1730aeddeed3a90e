//! What does an entry cost before anything is written: plain ustar headers, PAX headers, and the tar crate on both?

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use testkit::{EntrySpec, file};
use unply::policy::Limits;
use unply::tar::{Parser, Step};

const ENTRIES: u64 = 2_000;

fn parse(archive: &[u8]) -> u64 {
    let mut parser = Parser::new(&Limits::default());
    let (mut at, mut entries) = (0, 0);
    while let Some(block) = archive.get(at..at + 512) {
        at += 512;
        match parser.block(block.try_into().unwrap()).unwrap() {
            Step::More => {}
            Step::End => break,
            Step::Skip(bytes) => at += bytes as usize,
            Step::Entry(entry) => {
                entries += 1;
                at += entry.stored.next_multiple_of(512) as usize;
            }
        }
    }
    entries
}

fn tar_parse(c: &mut Criterion) {
    let plain = |n: u64| file(format!("usr/share/doc/package-{n}/copyright"), "x");
    let pax = |n: u64| plain(n).mtime_nanos(1_700_000_000, 123_456_789).xattr("user.checksum", format!("{n:032}"));
    let mut group = c.benchmark_group("tar_parse");
    group.throughput(Throughput::Elements(ENTRIES));
    for (name, make) in [("ustar", &plain as &dyn Fn(u64) -> EntrySpec), ("pax", &pax)] {
        let entries: Vec<EntrySpec> = (0..ENTRIES).map(make).collect();
        let archive = testkit::layer(&entries);
        assert_eq!(parse(&archive), ENTRIES);
        group.bench_function(name, |b| b.iter(|| parse(black_box(&archive))));
        group.bench_function(format!("{name}, tar crate"), |b| {
            b.iter(|| {
                let mut archive = tar::Archive::new(black_box(&archive[..]));
                archive.entries().unwrap().map(|e| e.unwrap().path_bytes().len()).sum::<usize>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, tar_parse);
criterion_main!(benches);
