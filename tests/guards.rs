//! What unpacking costs, in counts that do not depend on the machine: system calls a file, threads, memory.
//!
//! Times are the matter of `unply bench` and of `benches/`.

#[allow(unused)]
mod common;

use std::path::Path;
use std::process::Command;

use common::root_or_skip;
use testkit::image::{ImageSpec, OciLayout};
use testkit::{EntrySpec, dir, file, layer};

/// Whether programs can be traced; says SKIP where not, and fails there under `CI=true`.
fn strace_or_skip(test: &str) -> bool {
    if Command::new("strace").arg("-V").output().is_ok() {
        return true;
    }
    println!("SKIP: {test}: needs strace");
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{test} must not be skipped in CI");
    false
}

/// An image of these layers, as a reference.
fn image(dir: &Path, layers: Vec<Vec<EntrySpec>>) -> String {
    let blobs: Vec<_> = layers.iter().map(layer).collect();
    OciLayout::new(dir.to_path_buf()).unwrap().add(&ImageSpec::new(blobs).tag("t")).unwrap();
    format!("oci:{}:t", dir.display())
}

/// `count` files of 1,000 bytes, 40 to a directory, owned by who runs the test.
fn small_files(count: usize) -> Vec<EntrySpec> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut out = Vec::new();
    for n in 0..count {
        if n % 40 == 0 {
            out.push(dir(format!("d{}/", n / 40)));
        }
        out.push(file(format!("d{}/f{n}", n / 40), vec![b'x'; 1000]).owner(uid.into(), gid.into()));
    }
    out
}

/// Pulls an image under strace and returns what it wrote.
fn traced(work: &Path, options: &[&str], image: &str) -> String {
    let log = work.join("strace");
    let root = tempfile::tempdir_in(work).unwrap();
    let output = Command::new("strace")
        .args(["-f", "-o"])
        .arg(&log)
        .args(options)
        .arg(env!("CARGO_BIN_EXE_unply"))
        .arg("--root")
        .arg(root.path().join("store"))
        .args(["--progress", "none", "-j2", "--no-durable", "pull", image])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(log).unwrap()
}

/// Every call of every thread counts, waiting for each other included: what 4,000 files more cost, by file.
#[test]
fn a_small_file_costs_four_system_calls() {
    let test = "a_small_file_costs_four_system_calls";
    if !root_or_skip(test) || !strace_or_skip(test) {
        return;
    }
    let work = tempfile::tempdir_in("/dev/shm").unwrap();
    let calls = |count: usize| -> f64 {
        let image = image(&work.path().join(count.to_string()), vec![small_files(count)]);
        // Only a build with debug assertions asks with `fcntl` whether a descriptor that it closes is open.
        let summary = traced(work.path(), &["-c", "-e", "trace=!fcntl"], &image);
        let total = summary.lines().find(|line| line.ends_with(" total")).expect("a line of totals");
        // % time, seconds, microseconds a call, calls, perhaps errors.
        total.split_whitespace().nth(3).unwrap().parse().unwrap()
    };
    let (few, many) = (calls(2_000), calls(6_000));
    // A directory costs more than a file; there is one for 40 of them.
    let each = (many - few) / 4_000.0;
    println!("{few} calls for 2,000 files, {many} for 6,000: {each:.2} a file");
    assert!(each <= 4.5, "{each} system calls a file");
}

/// As many threads as `-j` asks for, whatever the image has: for each layer at work one that writes and one that decodes,
/// and those that compute digests.
#[test]
fn threads_do_not_grow_with_the_image() {
    let test = "threads_do_not_grow_with_the_image";
    if !root_or_skip(test) || !strace_or_skip(test) {
        return;
    }
    let work = tempfile::tempdir_in("/dev/shm").unwrap();
    let big = |n: usize| vec![file(format!("f{n}"), (0..600_000).map(|b| (b * 7 + n) as u8).collect::<Vec<u8>>())];
    let most = |layers: Vec<Vec<EntrySpec>>, name: &str| -> (i64, usize) {
        let image = image(&work.path().join(name), layers);
        let log = traced(work.path(), &["-e", "trace=clone,clone3,fork,vfork"], &image);
        let (mut now, mut most, mut started) = (1i64, 1i64, 0);
        for line in log.lines() {
            let began = line.contains("clone") && line.rsplit(" = ").next().is_some_and(|n| n.parse::<u32>().is_ok());
            if began {
                now += 1;
                started += 1;
            }
            now -= i64::from(line.contains("+++ exited"));
            most = most.max(now);
        }
        (most, started)
    };
    let (at_once, _) = most((0..12).map(big).collect(), "big");
    // The main thread, the one for signals, two layers with two threads each, two for digests.
    assert!((4..=8).contains(&at_once), "{at_once} threads at once");
    // A layer that fits one chunk is unpacked by the thread that took it.
    let (_, started) = most((0..40).map(|n| vec![file(format!("f{n}"), "x")]).collect(), "small");
    assert!(started <= 3, "{started} threads for 40 layers of one small file");
}

/// Four times the bytes and four times the files take no more memory.
#[test]
fn memory_does_not_grow_with_the_image() {
    if !root_or_skip("memory_does_not_grow_with_the_image") {
        return;
    }
    let work = tempfile::tempdir_in("/dev/shm").unwrap();
    let peak = |times: usize| -> u64 {
        let mut entries = vec![file("big", vec![7u8; times * (16 << 20)])];
        entries.extend(small_files(times * 2_000));
        let image = image(&work.path().join(times.to_string()), vec![entries]);
        let output = Command::new(env!("CARGO_BIN_EXE_unply"))
            .args(["--json", "--progress", "none", "-j2", "bench", "--runs", "1", "--fs", "here", &image])
            .env("TMPDIR", work.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let doc: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        doc["images"][0]["peak_rss_bytes"].as_u64().unwrap()
    };
    let (small, large) = (peak(1), peak(4));
    println!("peak memory {small} and {large} bytes");
    assert!(large < 48 << 20, "{large} bytes at most");
    assert!(large < small + (4 << 20), "{small} bytes, and {large} for four times the image");
}
