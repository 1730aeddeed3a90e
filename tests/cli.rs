//! What scripts may rely on: standard output, exit codes, JSON, signals, of the program itself.

mod common;

use std::io::{PipeWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{corpus, root_or_skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::image::{Breakage, Compression, DockerForm, DockerOptions, ImageSpec, OciLayout, docker_archive};
use testkit::{chr, dir, file, layer, sha256_hex, whiteout};

/// A directory of its own with a store in it.
struct Place(tempfile::TempDir);

/// How a run ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn new(output: Output) -> Ended {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ended = Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!ended.stdout.contains('\x1b') && !ended.stderr.contains('\x1b'), "no terminal, no colour: {ended:?}");
        ended
    }

    #[track_caller]
    fn with(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// The one document on standard output.
    #[track_caller]
    fn json(&self) -> Value {
        assert!(self.stdout.ends_with('\n') && self.stdout.lines().count() == 1, "one line: {self:?}");
        let value: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!(value["schema"], 1);
        value
    }

    fn line(&self) -> &str {
        self.stdout.strip_suffix('\n').unwrap_or_else(|| panic!("a line: {self:?}"))
    }
}

impl Place {
    fn new() -> Place {
        let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        Place(tempfile::Builder::new().prefix("unply-cli-").tempdir_in(base).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unply"));
        command.env("UNPLY_ROOT", self.path("store")).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        Ended::new(self.command().args(args).output().unwrap())
    }

    /// Runs with `input` on standard input.
    fn feed(&self, args: &[&str], input: &[u8]) -> Ended {
        let mut child = self
            .command()
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A program that needs no more of it may have gone.
                let _ = stdin.write_all(input);
            });
            child.wait_with_output().unwrap()
        });
        Ended::new(output)
    }

    /// Runs a shell script in a mount namespace of its own; `$unply` is the program.
    fn script(&self, script: &str) -> Ended {
        let output = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-euc", script])
            .env("unply", env!("CARGO_BIN_EXE_unply"))
            .env("UNPLY_ROOT", self.path("store"))
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Ended::new(output)
    }

    /// Writes a layout `oci:image` and returns what was built.
    fn layout(&self, image: &ImageSpec) -> testkit::image::Built {
        OciLayout::new(self.path("image")).unwrap().add(image).unwrap()
    }
}

fn bottom() -> Vec<u8> {
    layer(&[dir("etc/"), file("etc/name", "one"), file("etc/gone", "x"), dir("mnt/")])
}

fn top() -> Vec<u8> {
    layer(&[file("etc/name", "two"), whiteout("etc", "gone")])
}

fn image() -> ImageSpec {
    ImageSpec::new([bottom(), top()]).tag("t")
}

fn sha(hex: &str) -> String {
    format!("sha256:{hex}")
}

fn chain_id(diff_ids: &[String]) -> String {
    let mut chain = sha(&diff_ids[0]);
    for diff_id in &diff_ids[1..] {
        chain = sha(&sha256_hex(format!("{chain} sha256:{diff_id}").as_bytes()));
    }
    chain
}

#[track_caller]
fn keys(value: &Value, expected: &[&str]) {
    let mut found: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = expected.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{value}");
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn unpack_prints_the_chain_id_alone() {
    if !root_or_skip("unpack_prints_the_chain_id_alone") {
        return;
    }
    let place = Place::new();
    let built = place.layout(&image());
    let ended = place.run(&["unpack", "oci:image", "rootfs"]).with(0);
    assert_eq!(ended.line(), chain_id(&built.diff_ids));
    assert_eq!(ended.stderr, "");
    assert_eq!(std::fs::read_to_string(place.path("rootfs/etc/name")).unwrap(), "two");
    assert!(!place.path("rootfs/etc/gone").exists());
    assert_eq!(place.names(), ["image", "rootfs"], "nothing is left beside the target, and no store was made");
}

#[test]
fn a_target_that_is_not_empty_is_left_alone() {
    if !root_or_skip("a_target_that_is_not_empty_is_left_alone") {
        return;
    }
    let place = Place::new();
    place.layout(&image());
    std::fs::create_dir(place.path("rootfs")).unwrap();
    std::fs::write(place.path("rootfs/mine"), "x").unwrap();
    let ended = place.run(&["unpack", "oci:image", "rootfs", "--json"]).with(1);
    assert_eq!(ended.json()["error"]["code"], "already-exists");
    assert!(ended.stderr.contains("is not empty; choose a directory that is absent or empty"), "{ended:?}");
    assert_eq!(std::fs::read_dir(place.path("rootfs")).unwrap().count(), 1);
    assert_eq!(place.names(), ["image", "rootfs"]);
}

#[test]
fn the_documents_of_unpack_pull_and_inspect_are_those_of_the_contract() {
    if !root_or_skip("the_documents_of_unpack_pull_and_inspect_are_those_of_the_contract") {
        return;
    }
    let place = Place::new();
    let built = place.layout(&image());
    let outcome = ["schema", "image_id", "chain_id", "layers", "warnings", "warning_counts"];
    let outcome_layer =
        ["digest", "diff_id", "chain_id", "compressed_bytes", "uncompressed_bytes", "entries", "reused", "seconds"];
    let check = |doc: &Value, reused: bool| {
        keys(doc, &outcome);
        assert_eq!(doc["image_id"], sha(&built.config));
        assert_eq!(doc["chain_id"], chain_id(&built.diff_ids));
        for (at, layer) in doc["layers"].as_array().unwrap().iter().enumerate() {
            keys(layer, &outcome_layer);
            assert_eq!(layer["digest"], sha(&built.layers[at]));
            assert_eq!(layer["diff_id"], sha(&built.diff_ids[at]));
            assert_eq!(layer["chain_id"], chain_id(&built.diff_ids[..=at]));
            assert_eq!(layer["reused"], reused);
        }
        assert_eq!(doc["layers"][1]["entries"], 2);
        assert_eq!(doc["layers"][0]["uncompressed_bytes"], bottom().len());
    };
    check(&place.run(&["unpack", "--json", "oci:image:t", "rootfs"]).with(0).json(), false);
    check(&place.run(&["pull", "oci:image:t", "--json"]).with(0).json(), false);
    check(&place.run(&["pull", "oci:image:t", "--json"]).with(0).json(), true);
    assert_eq!(place.run(&["pull", "oci:image:t"]).with(0).line(), sha(&built.config));

    let id = format!("id:{}", &built.config[..12]);
    for reference in ["oci:image:t", "image", &id] {
        let doc = place.run(&["inspect", reference, "--json"]).with(0).json();
        keys(&doc, &["schema", "reference", "image_id", "manifest_digest", "platform", "layers"]);
        assert_eq!(doc["image_id"], sha(&built.config));
        assert_eq!(doc["manifest_digest"], sha(&built.manifest));
        assert_eq!(doc["platform"], serde_json::json!({ "os": "linux", "architecture": "amd64" }));
        let top = &doc["layers"][1];
        keys(top, &["digest", "media_type", "size", "diff_id", "chain_id"]);
        assert_eq!(top["digest"], sha(&built.layers[1]));
        assert_eq!(top["diff_id"], sha(&built.diff_ids[1]));
        assert_eq!(top["chain_id"], chain_id(&built.diff_ids));
        assert_eq!(top["media_type"], "application/vnd.oci.image.layer.v1.tar+gzip");
        assert!(top["size"].as_u64().unwrap() > 0);
        let table = place.run(&["inspect", reference, "-v"]).with(0);
        assert!(table.stdout.contains(&sha(&built.diff_ids[1])), "{table:?}");
    }
}

#[test]
fn inspect_of_a_single_layer_computes_what_nobody_promised() {
    let place = Place::new();
    let tar = bottom();
    std::fs::write(place.path("layer.tar.gz"), testkit::gzip(&tar)).unwrap();
    for reference in ["layer:layer.tar.gz", "./layer.tar.gz", "layer:-"] {
        let doc = place.feed(&["inspect", reference, "--json"], &testkit::gzip(&tar)).with(0).json();
        let layer = &doc["layers"][0];
        assert_eq!(layer["diff_id"], sha(&sha256_hex(&tar)), "{reference}");
        assert_eq!(layer["digest"], sha(&sha256_hex(&testkit::gzip(&tar))));
        assert_eq!(doc["manifest_digest"], Value::Null);
        assert!(doc["image_id"].as_str().unwrap().starts_with("sha256:"));
    }
}

#[test]
fn the_store_lists_drops_and_collects() {
    if !root_or_skip("the_store_lists_drops_and_collects") {
        return;
    }
    let place = Place::new();
    let built = place.layout(&image());
    place.run(&["pull", "oci:image"]).with(0);
    let images = place.run(&["images", "--json"]).with(0).json();
    keys(&images, &["schema", "images"]);
    let sizes = ["bytes", "exclusive_bytes", "shared_bytes"];
    keys(&images["images"][0], &[&["image_id", "names", "chain_id", "layers"][..], &sizes].concat());
    assert_eq!(images["images"][0]["layers"][0], sha(&built.diff_ids[0]), "bottom first");
    let layers = place.run(&["layers", "--json"]).with(0).json();
    keys(&layers, &["schema", "layers"]);
    for layer in layers["layers"].as_array().unwrap() {
        keys(layer, &[&["diff_id", "entries"][..], &sizes, &["durable", "used_by"]].concat());
        assert_eq!(layer["durable"], true);
        assert_eq!(layer["used_by"], serde_json::json!([format!("image:sha256:{}", built.config)]));
    }
    let table = place.run(&["images"]).with(0).stdout;
    assert!(table.starts_with("IMAGE ID") && table.contains(&built.config[..12]), "{table}");

    let dry = place.run(&["gc", "--dry-run", "--json"]).with(0).json();
    assert_eq!(dry["layers"], serde_json::json!([]));
    let removed = place.run(&["rm", &format!("id:{}", built.config), "--json"]).with(0).json();
    keys(&removed["removed"][0], &["image_id", "untagged", "deleted"]);
    assert_eq!(removed["removed"][0]["deleted"], true);
    place.run(&["rm", &format!("id:{}", built.config)]).with(3);
    for dry_run in [true, false] {
        let args: &[&str] = if dry_run { &["gc", "--json", "--dry-run"] } else { &["gc", "--json"] };
        let gc = place.run(args).with(0).json();
        keys(&gc, &["schema", "dry_run", "layers", "fixups", "leftovers", "bytes"]);
        assert_eq!(gc["dry_run"], dry_run);
        assert_eq!(gc["layers"].as_array().unwrap().len(), 2);
    }
    let layers = place.run(&["layers", "--json"]).with(0).json();
    assert_eq!(layers["layers"], serde_json::json!([]));
}

#[test]
fn rm_finds_an_image_by_the_reference_it_was_pulled_by() {
    if !root_or_skip("rm_finds_an_image_by_the_reference_it_was_pulled_by") {
        return;
    }
    let place = Place::new();
    place.layout(&image());
    place.run(&["pull", "oci:image:t"]).with(0);
    place.run(&["rm", "oci:image:t", "nothing"]).with(3);
    place.run(&["rm", "oci:image:t"]).with(0);
    assert_eq!(place.run(&["images", "--json"]).with(0).json()["images"], serde_json::json!([]));
}

#[test]
fn exit_2_usage() {
    let place = Place::new();
    for args in [
        &["frob"][..],
        &[],
        &["unpack", "oci:image"],
        &["inspect", "id:123"],
        &["inspect", ""],
        &["images", "--progress", "maybe"],
        &["images", "-j", "0"],
        &["images", "--max-zstd-window", "3M"],
        &["pull", "--platform", "amd64", "oci:image"],
        &["umount"],
        &["umount", "--all", "dir"],
        &["bench", "-"],
    ] {
        let ended = place.run(args).with(2);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
    let ended = place.run(&["frob", "--json"]).with(2);
    assert_eq!(ended.json()["error"]["code"], "usage");
    place.run(&["--help"]).with(0);
    assert!(place.run(&["--version"]).with(0).stdout.starts_with("unply "));
}

#[test]
fn exit_3_not_found_says_what_is_there() {
    let place = Place::new();
    let mut layout = OciLayout::new(place.path("image")).unwrap();
    layout.add(&image()).unwrap();
    layout.add(&ImageSpec::new([top()]).tag("other")).unwrap();
    let ambiguous = place.run(&["inspect", "oci:image", "--json"]).with(3);
    let hint = ambiguous.json()["error"]["hint"].as_str().unwrap().to_owned();
    assert!(hint.contains("t @sha256:") && hint.contains("other @sha256:"), "{hint}");
    let missing = place.run(&["inspect", "oci:image:nope"]).with(3);
    assert!(missing.stderr.contains("nope") && missing.stderr.contains("other"), "{missing:?}");
    for args in [
        &["inspect", "oci:nowhere"][..],
        &["inspect", "nowhere"],
        &["unpack", "./nowhere", "rootfs"],
        &["pull", "nowhere"],
        &["images"],
        &["gc"],
        &["inspect", "--platform", "linux/s390x", "oci:image:t"],
    ] {
        let ended = place.run(args).with(3);
        assert!(ended.stderr.starts_with("unply: ") && ended.stdout.is_empty(), "{ended:?}");
    }
    assert_eq!(place.names(), ["image"], "a failed look-up makes no store");
}

#[test]
fn exit_4_integrity_publishes_nothing() {
    if !root_or_skip("exit_4_integrity_publishes_nothing") {
        return;
    }
    for breakage in [Breakage::FlippedBit(1), Breakage::WrongDiffId(1), Breakage::WrongSize(1), Breakage::ShortBlob(1)]
    {
        let place = Place::new();
        let built = place.layout(&image().broken(breakage));
        let ended = place.run(&["unpack", "oci:image", "rootfs", "--json"]).with(4);
        let error = &ended.json()["error"];
        assert_eq!(error["code"], "integrity", "{breakage:?}");
        assert_eq!(error["layer"], sha(&built.layers[1]));
        assert_eq!(error["image"], "oci:image");
        assert!(ended.stderr.contains(&sha(&built.layers[1])), "{ended:?}");
        assert_eq!(place.names(), ["image"], "{breakage:?}");
        place.run(&["pull", "oci:image"]).with(4);
        assert_eq!(place.run(&["images", "--json"]).with(0).json()["images"], serde_json::json!([]));
    }
}

#[test]
fn exit_5_malformed_or_over_a_limit() {
    if !root_or_skip("exit_5_malformed_or_over_a_limit") {
        return;
    }
    let place = Place::new();
    place.layout(&image());
    std::fs::write(place.path("text"), "no tar at all\n".repeat(100)).unwrap();
    assert_eq!(place.run(&["unpack", "layer:text", "x", "--json"]).with(5).json()["error"]["code"], "malformed");
    let limits: &[&[&str]] = &[
        &["--max-entries", "1"],
        &["--max-layer-bytes", "1K"],
        &["--max-path-bytes", "2"],
        &["--max-json-bytes", "9"],
    ];
    for limit in limits {
        let args = [&["unpack", "oci:image", "x", "--json"][..], limit].concat();
        let ended = place.run(&args).with(5);
        assert_eq!(ended.json()["error"]["code"], "limit", "{ended:?}");
    }
    assert_eq!(place.names(), ["image", "text"]);
}

#[test]
fn exit_6_unsupported() {
    let place = Place::new();
    std::fs::write(place.path("a.tar.xz"), b"\xfd7zXZ\0 and so on, long enough to be looked at").unwrap();
    let ended = place.run(&["inspect", "a.tar.xz", "--json"]).with(6);
    assert_eq!(ended.json()["error"]["code"], "unsupported");
    assert!(ended.json()["error"]["hint"].as_str().unwrap().contains("xz -dc"), "{ended:?}");
}

#[test]
fn exit_7_when_the_result_cannot_be_written() {
    let place = Place::new();
    place.layout(&image());
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = place.command().args(["inspect", "oci:image"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn a_reader_that_went_away_is_success() {
    let place = Place::new();
    place.layout(&image());
    for args in [&["inspect", "oci:image"][..], &["inspect", "oci:image", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.command().args(args).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = place.command().args(["inspect", "nowhere"]).stderr(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "no panic where nobody reads the message");
}

#[test]
fn an_archive_on_standard_input_in_whatever_order() {
    if !root_or_skip("an_archive_on_standard_input_in_whatever_order") {
        return;
    }
    for form in [DockerForm::Legacy, DockerForm::Combined] {
        for manifest_first in [true, false] {
            let place = Place::new();
            let spec = image().tag("repo:1").compression(Compression::None);
            let archive = docker_archive(std::slice::from_ref(&spec), DockerOptions { form, manifest_first });
            let case = format!("{form:?}, manifest first: {manifest_first}");
            let chain = chain_id(&spec.diff_ids());
            assert_eq!(place.feed(&["unpack", "-", "rootfs"], &archive).with(0).line(), chain, "{case}");
            assert_eq!(std::fs::read_to_string(place.path("rootfs/etc/name")).unwrap(), "two", "{case}");
            let pulled = place.feed(&["pull", "-:repo:1", "--json"], &testkit::zstd(&archive)).with(0).json();
            assert_eq!(pulled["chain_id"], chain, "{case}");
            let inspected = place.feed(&["inspect", "-", "--json"], &testkit::gzip(&archive)).with(0).json();
            assert_eq!(inspected["layers"][1]["chain_id"], chain, "{case}");
            assert_eq!(inspected["layers"][0]["digest"], sha(&spec.diff_ids()[0]), "of a plain tar both are one");
            assert_eq!(place.names(), ["rootfs", "store"], "{case}: the archive is stored nowhere");
            place.feed(&["unpack", "-:repo:2", "x"], &archive).with(3);
            // Cut within a layer.
            let (tar, at) =
                (bottom(), |bytes: &[u8], of: &[u8]| bytes.windows(of.len()).position(|w| w == of).unwrap());
            place.feed(&["unpack", "-", "x"], &archive[..at(&archive, &tar) + 1000]).with(5);
            assert_eq!(place.names(), ["rootfs", "store"], "{case}");
        }
    }
}

/// The same, though whoever runs the tests ignores signals, as a shell does for its jobs in the background.
fn heeding_signals(command: &Command) -> Command {
    let mut out = Command::new("env");
    out.arg("--default-signal=INT,TERM").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => out.env(name, value),
            None => out.env_remove(name),
        };
    }
    command.get_current_dir().map(|dir| out.current_dir(dir));
    out
}

#[test]
fn a_signal_ends_a_stalled_run_and_leaves_nothing() {
    if !root_or_skip("a_signal_ends_a_stalled_run_and_leaves_nothing") {
        return;
    }
    let archive = docker_archive(&[image()], DockerOptions::default());
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        for (command, half) in [("unpack", true), ("unpack", false), ("pull", true)] {
            let place = Place::new();
            let (input, writer): (_, PipeWriter) = std::io::pipe().unwrap();
            let mut command_line = heeding_signals(&place.command());
            command_line.args([command, "-"]).args((command == "unpack").then_some("rootfs"));
            let child = command_line
                .args(["--json", "--progress", "plain"])
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            drop(command_line);
            if half {
                (&writer).write_all(&archive[..archive.len() / 2]).unwrap();
            }
            let place_of_work = if command == "unpack" { place.path("") } else { place.path("store/staging") };
            wait_for("the run begins", || {
                std::fs::read_dir(&place_of_work)
                    .is_ok_and(|mut names| names.any(|n| n.unwrap().file_name().as_encoded_bytes().contains(&b'-')))
                    || command == "pull" && place_of_work.exists()
            });
            std::thread::sleep(Duration::from_millis(200));
            let sent = Instant::now();
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
            let ended = Ended::new(child.wait_with_output().unwrap()).with(code);
            assert!(sent.elapsed() < Duration::from_secs(10));
            assert_eq!(ended.json()["error"]["code"], "cancelled");
            drop(writer);
            let left: &[&str] = if command == "unpack" { &[] } else { &["store"] };
            assert_eq!(place.names(), left, "{signal} {command} {half}");
            if command == "pull" {
                assert_eq!(std::fs::read_dir(place.path("store/staging")).unwrap().count(), 0);
                assert_eq!(std::fs::read_dir(place.path("store/layers")).unwrap().count(), 0);
            }
        }
    }
}

#[test]
fn warnings_are_events_listed_and_counted() {
    if !root_or_skip("warnings_are_events_listed_and_counted") {
        return;
    }
    let place = Place::new();
    let devices: Vec<_> = (0..150).map(|n| chr(format!("dev/null\n{n}"), 0, 0)).collect();
    let built = place.layout(&ImageSpec::new([bottom(), layer(&devices)]).tag("t"));
    let ended = place.run(&["unpack", "oci:image", "rootfs", "--json"]).with(0);
    let doc = ended.json();
    let counts = doc["warning_counts"].as_object().unwrap();
    assert_eq!(counts.values().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>(), [150], "{counts:?}");
    let warnings = doc["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 100);
    keys(&warnings[0], &["layer", "path", "kind", "detail"]);
    assert_eq!(warnings[0]["layer"], sha(&built.diff_ids[1]), "the diff_id, whatever the event said");
    assert_eq!(warnings[0]["path"], "dev/null\\n0");
    assert_eq!(Some(&warnings[0]["kind"].as_str().unwrap().to_owned()), counts.keys().next());
    assert!(ended.stderr.contains("140 more") && ended.stderr.contains("dev/null\\n9"), "{}", ended.stderr);
    let verbose = place.run(&["unpack", "oci:image", "again", "-v"]).with(0);
    assert!(verbose.stderr.contains("dev/null\\n149"));
    let progress = place.run(&["unpack", "oci:image", "third", "--progress", "json"]).with(0);
    let events: Vec<Value> = progress.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).count();
    assert_eq!((of("image"), of("layer-started"), of("layer-done"), of("warning")), (1, 2, 2, 150));
}

#[test]
fn mount_and_umount() {
    if !root_or_skip("mount_and_umount") {
        return;
    }
    let place = Place::new();
    let built = place.layout(&image());
    let ended = place
        .script(
            r#"
            path=$("$unply" mount oci:image)
            test "$(cat "$path/etc/name")" = two; test ! -e "$path/etc/gone"
            echo new > "$path/etc/mine"
            "$unply" umount "$path"
            test ! -e "$path/etc"

            mkdir target other
            "$unply" mount --json --snapshot kept oci:image target > mount.json
            echo kept > target/file
            "$unply" snapshots --json > snapshots.json
            code=0; "$unply" mount oci:image target || code=$?; test $code = 8
            code=0; "$unply" mount --snapshot kept oci:image other || code=$?; test $code = 8
            code=0; "$unply" mount --read-only --snapshot kept oci:image other || code=$?; test $code = 2
            "$unply" umount target
            "$unply" mount --snapshot kept oci:image other
            test "$(cat other/file)" = kept
            "$unply" umount --rm --json other > umount.json
            code=0; "$unply" umount other || code=$?; test $code = 3

            "$unply" mount --read-only --json oci:image target > view.json
            ! touch target/x 2>/dev/null
            "$unply" rm t
            "$unply" gc --json > gc.json
            test "$(cat target/etc/name)" = two
            "$unply" mount --read-only oci:image other
            "$unply" umount --all
            test ! -e target/etc; test ! -e other/etc
            mount -t tmpfs none target
            code=0; "$unply" umount target || code=$?; test $code = 2
            code=0; "$unply" mount oci:image nowhere || code=$?; test $code = 3
            "#,
        )
        .with(0);
    assert!(ended.stderr.contains("mounted at"), "{ended:?}");
    let read =
        |name: &str| -> Value { serde_json::from_str(&std::fs::read_to_string(place.path(name)).unwrap()).unwrap() };
    let mount = read("mount.json");
    let fields = ["schema", "path", "key", "chain_id", "read_only", "lowerdirs", "upperdir", "workdir"];
    keys(&mount, &fields);
    assert_eq!(mount["path"], place.text("target"));
    assert_eq!(mount["key"], "kept");
    assert_eq!(mount["read_only"], false);
    assert_eq!(mount["chain_id"], chain_id(&built.diff_ids));
    let topmost = mount["lowerdirs"][0].as_str().unwrap();
    assert!(Path::new(topmost).starts_with(place.path("store/l")));
    let view = read("view.json");
    keys(&view, &fields[..6]);
    assert_eq!(view["read_only"], true);
    let snapshots = read("snapshots.json");
    assert_eq!(snapshots["snapshots"].as_array().unwrap().len(), 2);
    let kept = &snapshots["snapshots"][1];
    let times = ["labels", "created", "updated"];
    keys(kept, &[&["key", "kind", "image_id", "parent"][..], &times, &["bytes", "inodes", "mounted_at"]].concat());
    assert_eq!(kept["mounted_at"], serde_json::json!([place.text("target")]));
    let umount = read("umount.json");
    assert_eq!(umount["unmounted"][0]["key"], "kept");
    assert_eq!(umount["unmounted"][0]["removed"], true);
    assert_eq!(read("gc.json")["layers"], serde_json::json!([]), "a mounted view keeps its layers");
    let left = place.run(&["snapshots", "--json"]).with(0).json();
    assert_eq!(left["snapshots"].as_array().unwrap().len(), 1, "views go when they are unmounted: {left}");
}

#[test]
fn umount_rm_drops_the_snapshot_of_a_mount_that_a_reboot_took() {
    if !root_or_skip("umount_rm_drops_the_snapshot_of_a_mount_that_a_reboot_took") {
        return;
    }
    let place = Place::new();
    place.layout(&image());
    // The mount goes with its namespace.
    place.script(r#"mkdir target; "$unply" mount --read-only oci:image target"#).with(0);
    let ended = place.run(&["umount", "target"]).with(3);
    assert!(ended.stderr.contains("--rm"), "{ended:?}");
    place.run(&["umount", "--rm", "target"]).with(0);
    assert_eq!(place.run(&["snapshots", "--json"]).with(0).json()["snapshots"], serde_json::json!([]));
}

#[test]
fn a_command_runs_inside_and_its_exit_code_is_ours() {
    if !root_or_skip("a_command_runs_inside_and_its_exit_code_is_ours") {
        return;
    }
    if !cfg!(target_arch = "x86_64") {
        println!("SKIP: a_command_runs_inside_and_its_exit_code_is_ours: the image's programs are for amd64");
        return;
    }
    let place = Place::new();
    let image = corpus().join("images/dive/test-docker-image.tar");
    std::os::unix::fs::symlink(image, place.path("busybox.tar")).unwrap();
    let ended = place.script(
        r#"
        "$unply" mount busybox.tar -- sh -c 'pwd; test ! -e /proc/self; echo $0 "$@"' a --json 'b c'
        code=0; "$unply" mount busybox.tar -- sh -c 'exit 7' || code=$?; test $code = 7
        code=0; "$unply" mount busybox.tar -- sh -c 'kill -9 $$' || code=$?; test $code = 137
        code=0; "$unply" mount busybox.tar -- /nowhere || code=$?; test $code = 127
        code=0; "$unply" mount busybox.tar -- /etc/passwd || code=$?; test $code = 126
        "$unply" snapshots --json > none.json
        "$unply" mount --snapshot k busybox.tar -- sh -c 'echo kept > /file'
        "$unply" mount --snapshot k busybox.tar -- cat /file
        # Signals are the command's.
        "$unply" mount busybox.tar -- sh -c 'trap "exit 9" TERM; echo ready > /ready; while :; do sleep 1; done' &
        sleep 2; kill -TERM $!; code=0; wait $! || code=$?; test $code = 9
        ! grep unply /proc/self/mountinfo
        "#,
    );
    let ended = ended.with(0);
    assert_eq!(ended.stdout, "/\na --json b c\nkept\n");
    let none: Value = serde_json::from_str(&std::fs::read_to_string(place.path("none.json")).unwrap()).unwrap();
    assert_eq!(none["snapshots"], serde_json::json!([]), "without a key nothing is kept");
}

#[test]
fn r31_owners_are_squashed_with_one_counted_warning() {
    if !root_or_skip("r31_owners_are_squashed_with_one_counted_warning") {
        return;
    }
    let place = Place::new();
    let layer = layer(&[file("a", "").owner(5, 6), file("b", "").owner(0, 0), file("c", "").owner(7, 0)]);
    place.layout(&ImageSpec::new([layer]).tag("t"));
    let output = Command::new("unshare")
        .args(["-Ur", env!("CARGO_BIN_EXE_unply"), "unpack", "--json", "oci:image", "rootfs"])
        .current_dir(place.0.path())
        .output()
        .unwrap();
    let doc = Ended::new(output).with(0).json();
    assert_eq!(doc["warning_counts"], serde_json::json!({"owners-squashed": 1}), "{doc}");
    let warning = &doc["warnings"][0];
    assert_eq!(warning["path"], "a");
    assert!(warning["detail"].as_str().unwrap().starts_with("2 entries"), "{warning}");
    let owner = std::fs::metadata(place.path("rootfs/a")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), nix::unistd::geteuid().as_raw());
}

#[test]
fn options_and_the_environment_name_the_store() {
    if !root_or_skip("options_and_the_environment_name_the_store") {
        return;
    }
    let place = Place::new();
    place.layout(&image());
    place.run(&["--root", "elsewhere", "pull", "oci:image", "--no-durable", "-j1"]).with(0);
    assert!(place.path("elsewhere/store.json").exists() && !place.path("store").exists());
    let layers = place.run(&["layers", "--json", "--root", "elsewhere"]).with(0).json();
    assert_eq!(layers["layers"][0]["durable"], false);
    let wrong = place.run(&["pull", "oci:image", "--root", "image"]).with(2);
    assert!(wrong.stderr.contains("is no store and not empty"), "{wrong:?}");
}

#[test]
fn verify_names_the_damage() {
    if !root_or_skip("verify_names_the_damage") {
        return;
    }
    let place = Place::new();
    place.layout(&image());
    place.run(&["pull", "oci:image"]).with(0);
    let clean = place.run(&["verify", "--deep"]).with(0);
    assert!(clean.stdout.ends_with(": no damage\n"), "{clean:?}");
    let trees: Vec<PathBuf> =
        std::fs::read_dir(place.path("store/l")).unwrap().map(|e| e.unwrap().path().join("etc/name")).collect();
    let victim = trees.iter().find(|path| path.exists()).unwrap();
    let before = std::fs::metadata(victim).unwrap();
    let mut content = std::fs::read(victim).unwrap();
    content[0] ^= 1;
    std::fs::write(victim, content).unwrap();
    std::fs::File::open(victim).unwrap().set_modified(before.modified().unwrap()).unwrap();
    place.run(&["verify"]).with(0);
    let found = place.run(&["verify", "--deep", "--all"]).with(4);
    assert!(found.stdout.contains("content    \"etc/name\" has other content than was unpacked"), "{found:?}");
    let name = place.run(&["images", "--json"]).json()["images"][0]["names"][0].as_str().unwrap().to_owned();
    let found = place.run(&["verify", "--deep", "--json", &name]).with(4).json();
    assert_eq!(found["damaged"], 1);
    let layers = found["layers"].as_array().unwrap();
    let layer = layers.iter().find(|layer| layer["damage_count"] == 1).unwrap();
    assert_eq!((&layer["damage"][0]["kind"], &layer["used_by"][0]), (&Value::from("content"), &Value::from(name)));
    place.run(&["verify", "nothing"]).with(3);
    place.run(&["verify", "--all", "nothing"]).with(2);
}

#[test]
fn bench_measures_and_leaves_nothing() {
    if !root_or_skip("bench_measures_and_leaves_nothing") {
        return;
    }
    let place = Place::new();
    place.layout(&image());
    std::fs::create_dir(place.path("tmp")).unwrap();
    for fs in ["here", "tmpfs"] {
        let args = ["bench", "oci:image", "--runs", "2", "--json", "--fs", fs];
        let output = place.command().args(args).env("TMPDIR", place.path("tmp")).output().unwrap();
        let doc = Ended::new(output).with(0).json();
        assert_eq!((&doc["fs"], &doc["runs"]), (&Value::from(fs), &Value::from(2)));
        let image = &doc["images"][0];
        assert_eq!(image["entries"], 6);
        assert_eq!(image["layers"].as_array().unwrap().len(), 2);
        for number in ["wall_seconds", "uncompressed_mb_per_second", "entries_per_second"] {
            assert!(image[number].as_f64().unwrap() > 0.0, "{number}: {image}");
        }
        assert!(image["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
        assert_eq!(std::fs::read_dir(place.path("tmp")).unwrap().count(), 0);
    }
    assert_eq!(place.names(), ["image", "tmp"]);
}
