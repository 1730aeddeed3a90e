//! `unply bench`: what it reports and what it leaves behind. Counts and structure, never times.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::root_or_skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::image::{Compression, ImageSpec, OciLayout};
use testkit::{dir, file, hardlink, layer, symlink, whiteout};

/// An image `oci:image:t` of two layers, and a directory for temporary files that must be empty afterwards.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let place = Place(tempfile::Builder::new().prefix("unply-bench-test-").tempdir_in(base).unwrap());
        let bottom = layer(&[
            dir("etc/"),
            file("etc/name", "one"),
            file("etc/gone", "x"),
            file("etc/big", vec![7; 700_000]),
            symlink("etc/link", "name"),
            hardlink("etc/other", "etc/big"),
        ]);
        let top = layer(&[dir("etc/"), file("etc/name", "two"), whiteout("etc", "gone")]);
        let image = ImageSpec::new([bottom, top]).compression(Compression::Gzip).tag("t");
        OciLayout::new(place.path("image")).unwrap().add(&image).unwrap();
        std::fs::create_dir(place.path("tmp")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unply"));
        command.arg("bench").args(args).env("TMPDIR", self.path("tmp")).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str], code: i32) -> Output {
        let output = self.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        self.is_clean();
        output
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat(), 0);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// No temporary file, no mount and no loop device is left.
    #[track_caller]
    fn is_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("tmp")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
        let tmp = self.path("tmp").into_os_string().into_string().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&tmp), "{mounts}");
        // The kernel lets go of a loop device a moment after its last unmount.
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let loops = loop_files();
            let ours: Vec<_> = loops.iter().filter(|file| file.contains(&tmp)).collect();
            if ours.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{ours:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The files behind the loop devices of this machine.
fn loop_files() -> Vec<String> {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let file = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    devices.filter_map(|entry| file(entry.ok()?)).collect()
}

/// Whether a program is there; says SKIP where not, and fails there under `CI=true`.
fn program_or_skip(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|dir| dir.join(program).is_file()) {
        return true;
    }
    println!("SKIP: {test}: {program} is not installed");
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{test} must not be skipped in CI");
    false
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

const STAGES: [&str; 5] = ["read", "hash_blob", "inflate", "hash_tar", "create"];

#[test]
fn stages_are_reported_and_the_floor_follows_from_them() {
    let place = Place::new();
    let doc = place.json(&["oci:image:t", "--fs", "here", "--runs", "2", "--stages"]);
    assert_eq!((&doc["schema"], &doc["fs"], &doc["runs"]), (&Value::from(1), &Value::from("here"), &Value::from(2)));
    let image = &doc["images"][0];
    assert!(image.get("versus").is_none());
    let stages = &image["stages"];
    let layers = stages["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    let (mut sum, mut longest) = (0.0, 0f64);
    for (layer, outcome) in layers.iter().zip(image["layers"].as_array().unwrap()) {
        assert_eq!(layer["codec"], "gzip");
        for field in ["compressed_bytes", "uncompressed_bytes"] {
            assert_eq!(layer[field], outcome[field], "{field}");
        }
        let count = |field: &str| layer[field].as_u64().unwrap();
        let entries: u64 = ["files", "directories", "symlinks", "hard_links", "others"].map(count).iter().sum();
        assert_eq!(Value::from(entries), outcome["entries"]);
        for stage in STAGES {
            for field in ["cpu_seconds", "wall_seconds", "mb_per_second"] {
                assert!(number(&layer[stage][field]) >= 0.0, "{stage} {field}");
            }
            sum += number(&layer[stage]["cpu_seconds"]);
            longest = longest.max(number(&layer[stage]["cpu_seconds"]));
        }
        assert!(number(&layer["create"]["entries_per_second"]) > 0.0);
        assert!((0.0..=1.0).contains(&number(&layer["overlap"])));
        assert!(number(&layer["zstd"]["ratio"]) > 1.0 && number(&layer["zstd"]["mb_per_second"]) > 0.0);
    }
    let bottom = &layers[0];
    let counts =
        ["files", "directories", "symlinks", "hard_links", "others"].map(|field| bottom[field].as_u64().unwrap());
    assert_eq!(counts, [3, 1, 1, 1, 0]);
    assert_eq!(layers[1]["others"], 1, "a whiteout is no file");
    let (floor, cpus) = (number(&stages["floor_seconds"]), number(&stages["cpus"]));
    let expected = longest.max(sum / cpus);
    assert!(floor <= sum && (floor - expected).abs() <= 1e-9 + expected * 1e-6, "{floor} {expected} {sum}");
    assert!((number(&stages["efficiency"]) * number(&image["wall_seconds"]) / floor - 1.0).abs() < 1e-6);
    assert!(STAGES.contains(&stages["longest_stage"].as_str().unwrap()));
    assert!(!stages["verdicts"].as_array().unwrap().is_empty());
    let trace = stages["trace"].as_array().unwrap();
    assert!(!trace.is_empty());
    for span in trace {
        assert!(span["layer"].as_u64().unwrap() < 2 && number(&span["start"]) <= number(&span["end"]));
    }
}

#[test]
fn a_layer_that_an_image_has_twice_costs_nothing_the_second_time() {
    let place = Place::new();
    let again = layer(&[dir("a/"), file("a/f", vec![1; 50_000])]);
    OciLayout::new(place.path("twice")).unwrap().add(&ImageSpec::new([again.clone(), again]).tag("t")).unwrap();
    let doc = place.json(&["oci:twice:t", "--fs", "here", "--runs", "1", "--stages"]);
    let layers = &doc["images"][0]["stages"]["layers"];
    assert!(number(&layers[0]["hash_tar"]["cpu_seconds"]) > 0.0);
    assert_eq!(number(&layers[1]["hash_tar"]["cpu_seconds"]), 0.0);
}

#[test]
fn a_report_is_one_page_with_a_group_of_bars_for_each_layer() {
    let place = Place::new();
    // What an image is called is not ours.
    let name = "<img src=x onerror=alert(1)>&amp;";
    std::fs::rename(place.path("image"), place.path(name)).unwrap();
    place.run(&[&format!("oci:{name}:t"), "--fs", "here", "--runs", "1", "--report", "page.html"], 0);
    let page = std::fs::read_to_string(place.path("page.html")).unwrap();
    for outside in ["http:", "https:", "//", "src=", "href=", "url(", "@import", "<script", "<link", "<img"] {
        let allowed = if outside == "src=" { page.matches("&lt;img src=x").count() } else { 0 };
        assert_eq!(page.matches(outside).count(), allowed, "{outside}");
    }
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;&amp;amp;"));
    assert_eq!(page.matches("<g class=\"layer\">").count(), 2);
    for stage in ["read", "inflate", "hash", "write"] {
        assert_eq!(page.matches(&format!("<g class=\"{stage}\">")).count(), 2, "{stage}");
    }
    assert!(page.contains("<svg") && page.contains("milliseconds") && page.contains("prefers-color-scheme: dark"));
    for (open, close) in [("<svg", "</svg>"), ("<g ", "</g>"), ("<table>", "</table>"), ("<section>", "</section>")] {
        assert_eq!(page.matches(open).count(), page.matches(close).count(), "{open}");
    }
    // Nowhere to write is said before anything is measured.
    let output = place.run(&["oci:image:t", "--report", "no/such/page.html"], 3);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("measuring"), "{output:?}");
}

#[test]
fn other_tools_run_in_turns_and_their_trees_are_compared() {
    let test = "other_tools_run_in_turns_and_their_trees_are_compared";
    if !root_or_skip(test) || !program_or_skip(test, "bsdtar") {
        return;
    }
    let place = Place::new();
    let doc = place.json(&["oci:image:t", "--fs", "tmpfs", "--runs", "3", "--vs", "bsdtar"]);
    let rivals = doc["images"][0]["versus"].as_array().unwrap();
    assert_eq!(rivals.len(), 1);
    let rival = &rivals[0];
    assert_eq!((&rival["tool"], &rival["ours"], &rival["failed"]), (&"bsdtar".into(), &"pull".into(), &Value::Null));
    assert_eq!(rival["pairs"].as_array().unwrap().len(), 3);
    for pair in rival["pairs"].as_array().unwrap() {
        for side in ["ours", "theirs"] {
            assert!(number(&pair[side]["wall_seconds"]) > 0.0 && number(&pair[side]["cpu_seconds"]) > 0.0);
            assert!(pair[side]["peak_rss_bytes"].as_u64().unwrap() > 100 << 10);
        }
    }
    assert_eq!(doc["durable"], false);
    let ratio = |field: &str| number(&rival[field]);
    assert!(ratio("ratio_min") <= ratio("ratio") && ratio("ratio") <= ratio("ratio_max"));
    let trees = &rival["trees"];
    assert_eq!((&trees["entries"], &trees["unexplained"]), (&Value::from(9), &Value::from(0)), "{trees}");
    // bsdtar leaves the whiteout as a file, and writes it into a directory whose time it then restores.
    assert_eq!(trees["counts"]["whiteout"], 1, "{trees}");
    assert!(rival["leaves_out"].as_str().unwrap().contains("digest"));
}

/// Counted, not timed: the run of ours and the file system that the other tool wrote to are synced.
#[test]
fn durable_runs_are_synced_and_so_is_what_other_tools_wrote() {
    let test = "durable_runs_are_synced_and_so_is_what_other_tools_wrote";
    if !root_or_skip(test) || !program_or_skip(test, "bsdtar") || !program_or_skip(test, "strace") {
        return;
    }
    let place = Place::new();
    let syncs = |options: &[&str]| -> usize {
        let log = place.path("strace");
        let output = std::process::Command::new("strace")
            .args(["-f", "-e", "trace=syncfs", "-o"])
            .arg(&log)
            .arg(env!("CARGO_BIN_EXE_unply"))
            .args(["--progress", "none", "bench", "oci:image:t", "--fs", "tmpfs", "--runs", "1", "--vs", "bsdtar"])
            .args(options)
            .current_dir(place.path("."))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.contains("no syncs"), options.is_empty(), "{said}");
        std::fs::read_to_string(log).unwrap().matches("syncfs(").count()
    };
    assert_eq!(syncs(&[]), 0);
    // One for ours alone, one for ours and one for theirs in the pair.
    assert!(syncs(&["--durable"]) >= 3);
}

#[test]
fn a_tool_that_cannot_unpack_the_image_is_kept_with_what_it_said() {
    let place = Place::new();
    let script = place.path("broken");
    std::fs::write(&script, "#!/bin/sh\necho 'no such <codec>' >&2\necho 'gave up' >&2\nexit 9\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let vs = format!("oci-image={}", script.display());
    let doc = place.json(&["oci:image:t", "--fs", "here", "--runs", "2", "--vs", &vs]);
    let rival = &doc["images"][0]["versus"][0];
    let failed = rival["failed"].as_str().unwrap();
    assert!(failed.contains("exit status: 9: no such <codec>; gave up"), "{failed}");
    assert_eq!((&rival["trees"], rival["pairs"].as_array().unwrap().len()), (&Value::Null, 0));
}

#[test]
fn a_compressed_archive_is_measured_as_a_whole_but_not_by_stages() {
    let place = Place::new();
    let tar = ["-czf", "image.tar.gz", "-C", "image", "."];
    assert!(Command::new("tar").args(tar).current_dir(place.0.path()).status().unwrap().success());
    let doc = place.json(&["oci-archive:image.tar.gz", "--fs", "here", "--runs", "1"]);
    assert_eq!(doc["images"][0]["entries"], 9);
    place.run(&["oci-archive:image.tar.gz", "--fs", "here", "--runs", "1", "--stages"], 6);
}

#[test]
fn unknown_tools_are_usage_and_missing_ones_not_found() {
    let place = Place::new();
    place.run(&["oci:image:t", "--vs", "rsync"], 2);
    place.run(&["oci:image:t", "--fs", "floppy"], 2);
    let output = place.run(&["oci:image:t", "--fs", "here", "--vs", "oci-image=/nonexistent/driver"], 3);
    assert!(String::from_utf8_lossy(&output.stderr).contains("benches/compare"), "{output:?}");
    let output =
        place.command(&["oci:image:t", "--fs", "here", "--vs", "umoci", "--json"]).env("PATH", "/nowhere").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(3));
    let doc: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(doc["error"]["hint"].as_str().unwrap().contains("apt-get install umoci"), "{doc}");
}

#[test]
fn ext4_is_made_fresh_for_every_run_and_goes_again() {
    let test = "ext4_is_made_fresh_for_every_run_and_goes_again";
    if !root_or_skip(test) || !program_or_skip(test, "mkfs.ext4") {
        return;
    }
    if unply::sys::in_user_namespace() || !Path::new("/dev/loop-control").exists() {
        println!("SKIP: {test}: needs loop devices");
        return;
    }
    let place = Place::new();
    let doc = place.json(&["oci:image:t", "--fs", "ext4", "--runs", "2", "--stages"]);
    assert_eq!((&doc["fs"], &doc["images"][0]["entries"]), (&Value::from("ext4"), &Value::from(9)));
    // A run that fails cleans up as well: the second layer is damaged.
    let blobs = place.path("image/blobs/sha256");
    let mut files: Vec<_> = std::fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort_by_key(|path| path.metadata().unwrap().len());
    for path in files.iter().rev() {
        let mut content = std::fs::read(path).unwrap();
        if content.starts_with(&[0x1f, 0x8b]) {
            let end = content.len() - 6;
            content[end] ^= 1;
            std::fs::write(path, content).unwrap();
        }
    }
    place.run(&["oci:image:t", "--fs", "ext4", "--runs", "1"], 4);
}

#[test]
fn a_bench_that_is_interrupted_leaves_nothing() {
    let test = "a_bench_that_is_interrupted_leaves_nothing";
    if !root_or_skip(test) {
        return;
    }
    let place = Place::new();
    for fs in ["tmpfs", "ext4"] {
        if fs == "ext4" && (unply::sys::in_user_namespace() || !Path::new("/dev/loop-control").exists()) {
            continue;
        }
        let args = ["oci:image:t", "--fs", fs, "--runs", "1000", "--stages"];
        let child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        // Until it is in the middle of something.
        while std::fs::read_dir(place.path("tmp")).unwrap().count() == 0 {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(143), "{fs}");
        place.is_clean();
    }
}

#[test]
fn another_tool_that_is_interrupted_is_not_left_running() {
    let place = Place::new();
    let script = place.path("slow");
    std::fs::write(&script, "#!/bin/sh\necho $$ > \"${1%/*/*/*}/pid\"\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let vs = format!("oci-image={}", script.display());
    let args = ["oci:image:t", "--fs", "here", "--runs", "1", "--vs", &vs];
    let child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let pid = loop {
        match std::fs::read_to_string(place.path("tmp/pid")) {
            Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
            _ => assert!(began.elapsed() < Duration::from_secs(60)),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    std::fs::remove_file(place.path("tmp/pid")).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
    assert!(!Path::new("/proc").join(pid).exists());
    place.is_clean();
}
