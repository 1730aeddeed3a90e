//! Bombs: each limit refuses what it is there for, early, in bounded memory and space, leaving nothing behind; and legal
//! images that look like bombs pass. Every bomb goes through the library and through the program's own flags.

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use common::{Lab, root_or_skip};
use testkit::image::{Compression, ImageSpec, LayerSpec, OciLayout, oci_archive};
use testkit::tar::{Header, TarBuilder, field};
use testkit::{EntrySpec, dir, file, layer, symlink};
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::policy::{Limit, Limits, Unit};
use unply::unpack::{self, Event, Options};

/// Memory that the program may take for its data, stacks of its threads included.
const MEMORY_KIB: u64 = 64 << 10;
/// Space for store, staging and target.
const SPACE: &str = "size=12m";

/// A layer that must be refused.
struct Bomb {
    name: &'static str,
    limit: Limit,
    /// What is asked for besides the defaults, which are too generous for a quick test.
    set: Vec<(Limit, u64)>,
    layers: Vec<LayerSpec>,
    /// Decompressed bytes of a layer that may be read before it is refused, with what threads read ahead.
    reads: u64,
    /// The layer alone is no bomb, only over the layers below: it may stay in the store (R-28).
    stays: bool,
}

fn bomb(name: &'static str, limit: Limit, set: &[(Limit, u64)], tar: Vec<u8>) -> Bomb {
    let both = [Compression::Gzip, Compression::Zstd];
    let layers = both.map(|c| LayerSpec::new(tar.clone()).compression(c)).to_vec();
    Bomb { name, limit, set: set.to_vec(), layers, reads: 3 << 20, stays: false }
}

/// What streams may read ahead of their consumer: eight chunks and the one in hand.
const AHEAD: u64 = 9 * (128 << 10);

fn bombs() -> Vec<Bomb> {
    let zeros = || layer(&[file("zeros", vec![0; 4 << 20])]);
    let many = |entry: &dyn Fn(usize) -> EntrySpec, n: usize| layer(&(0..n).map(entry).collect::<Vec<_>>());
    let x = || Header::new(b'0', "x");
    let long = "n/".repeat(40_000);
    let through_symlinks = layer(&[symlink("l", "n/".repeat(2000)), file("l/x", "")]);
    let xattr = |i: usize, bytes: usize| dir(format!("d{i}/")).xattr("user.x", vec![b'x'; bytes]);
    vec![
        bomb("decompressed_bytes", Limit::LayerBytes, &[(Limit::LayerBytes, 1 << 20)], zeros()),
        bomb("ratio", Limit::Ratio, &[(Limit::Ratio, 100), (Limit::RatioFloor, 1 << 20)], zeros()),
        bomb("entries", Limit::Entries, &[(Limit::Entries, 1000)], many(&|i| file(format!("f{i}"), ""), 10_000)),
        bomb(
            "directories_in_memory",
            Limit::LayerMemory,
            &[(Limit::LayerMemory, 1 << 20)],
            many(&|i| dir(format!("d{i}/")), 10_000),
        ),
        bomb(
            "implied_directories_in_memory",
            Limit::LayerMemory,
            &[(Limit::LayerMemory, 1 << 20)],
            many(&|i| file(format!("d{i}/f"), ""), 40_000),
        ),
        bomb(
            "xattrs_of_directories_in_memory",
            Limit::LayerMemory,
            &[(Limit::LayerMemory, 1 << 20)],
            many(&|i| xattr(i, 60_000), 200),
        ),
        bomb(
            "links_to_aufs_files_in_memory",
            Limit::LayerMemory,
            &[(Limit::LayerMemory, 1 << 20)],
            many(&|i| testkit::hardlink(format!("{}{i}", "long/".repeat(200)), ".wh..wh.plnk/1"), 10_000),
        ),
        bomb(
            "pax_header",
            Limit::MetadataBytes,
            &[],
            TarBuilder::new().pax(&[("comment", vec![b'c'; 2 << 20])]).member(x(), "").finish(),
        ),
        bomb(
            "long_name_of_8_eib",
            Limit::MetadataBytes,
            &[],
            TarBuilder::new().header(&Header::new(b'L', "n").base256(field::SIZE, i64::MAX.into())).finish(),
        ),
        bomb("extension_headers", Limit::ExtensionHeaders, &[], {
            let chain = (0..1000).fold(TarBuilder::new(), |tar, _| tar.pax_global(&[("comment", "c")]));
            chain.member(x(), "").finish()
        }),
        bomb("path_bytes", Limit::PathBytes, &[], layer(&[file(&long, "")])),
        bomb("path_depth", Limit::Depth, &[], layer(&[file("n/".repeat(1024) + "x", "")])),
        Bomb { stays: true, ..bomb("depth_through_symlinks", Limit::Depth, &[], through_symlinks) },
        bomb("sparse_regions", Limit::SparseRegions, &[], {
            let keys = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "1")];
            TarBuilder::new().pax(&keys).member(x(), format!("{:0<512}", format!("{}\n", u64::MAX))).finish()
        }),
        bomb("sparse_regions_one_by_one", Limit::SparseRegions, &[(Limit::SparseRegions, 1000)], {
            let map: String = (0..2000).map(|i| format!("{},1", 2 * i)).collect::<Vec<_>>().join(",");
            let keys = [("GNU.sparse.size", "4000"), ("GNU.sparse.map", &map)];
            TarBuilder::new().pax(&keys).member(x(), vec![0; 2000]).finish()
        }),
        bomb(
            "xattr_bytes",
            Limit::XattrBytes,
            &[(Limit::XattrBytes, 4096)],
            layer(&[file("x", "").xattr("user.a", [b'a'; 4000]).xattr("user.b", [b'b'; 4000])]),
        ),
        Bomb {
            name: "zstd_window",
            limit: Limit::ZstdWindow,
            set: Vec::new(),
            // A window of 256 MiB, and one raw block.
            layers: vec![LayerSpec::new([0; 1]).blob([0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3, 9, 0, 0, 0])],
            reads: 0,
            stays: false,
        },
    ]
}

fn options(set: &[(Limit, u64)]) -> Options {
    let mut limits = Limits::default();
    set.iter().for_each(|(limit, value)| limits.set(*limit, *value));
    Options { limits, durable: false, jobs: 2, ..Options::default() }
}

fn flags(set: &[(Limit, u64)]) -> Vec<String> {
    set.iter().map(|(limit, value)| format!("--{}={value}", limit.flag())).collect()
}

/// A small file system of its own inside a lab.
fn small(lab: &Lab) -> PathBuf {
    let small = lab.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let data = std::ffi::CString::new(SPACE).unwrap();
    rustix::mount::mount("small", &small, "tmpfs", rustix::mount::MountFlags::empty(), data.as_c_str()).unwrap();
    small
}

fn names(path: &Path) -> Vec<String> {
    std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn assert_clean(what: &str, small: &Path) {
    let left: Vec<String> = names(small).into_iter().filter(|n| n != "store").collect();
    assert!(left.is_empty(), "{what} left {left:?} behind");
    if small.join("store").exists() {
        let store = unpack::open_store(&small.join("store"), false).unwrap();
        assert_eq!(store.check().unwrap(), [], "{what}");
        if what.starts_with("depth_through_symlinks") {
            // Over other layers the symlink may be something else: the layer is good, the chain is not.
            store.gc(false).unwrap();
        }
        for place in ["staging", "l", "layers", "images"] {
            let left = names(&small.join("store").join(place));
            assert!(left.is_empty(), "{what} left {left:?} in {place}");
        }
    }
}

/// Runs the program with bounded memory; `input` is its standard input. Returns its exit code and what it said.
fn program(memory_kib: u64, small: &Path, args: &[&str], input: Option<&[u8]>) -> (Option<i32>, String) {
    let mut child = Command::new("sh")
        // Counts private writable memory: heap, stacks, anonymous maps. An allocation beyond it aborts.
        .args(["-c", "ulimit -d \"$0\" && exec \"$@\"", &memory_kib.to_string(), env!("CARGO_BIN_EXE_unply")])
        .args(args)
        .env("UNPLY_ROOT", small.join("store"))
        .current_dir(small)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that needs no more of it may have gone.
            scope.spawn(move || drop(stdin.write_all(input)));
        }
        child.wait_with_output().unwrap()
    });
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn refused(what: &str, text: &str, limit: Limit, value: u64) {
    for part in [limit.bounds(), &format!("the limit is {value}"), &format!("raise --{}", limit.flag()), "image "] {
        assert!(text.contains(part), "{what}: \"{part}\" is not in: {text}");
    }
}

#[test]
fn b_each_bomb_stops_early_in_bounded_memory_and_leaves_nothing() {
    if !root_or_skip("b_each_bomb_stops_early_in_bounded_memory_and_leaves_nothing") {
        return;
    }
    let lab = Lab::new();
    let small = small(&lab);
    let mut limits: Vec<Limit> = Vec::new();
    for bomb in bombs() {
        limits.push(bomb.limit);
        for spec in &bomb.layers {
            let what = format!("{} ({:?})", bomb.name, spec.compression);
            let options = options(&bomb.set);
            let max = options.limits.get(bomb.limit);
            let work = tempfile::tempdir_in(lab.path()).unwrap();
            let image = ImageSpec { layers: vec![spec.clone()], ..ImageSpec::default() }.tag("t");
            OciLayout::new(work.path().join("i")).unwrap().add(&image).unwrap();
            let name = format!("oci:{}:t", work.path().join("i").display());
            let reference: Reference = name.parse().unwrap();

            // In this process, where it can be seen how much was decompressed.
            let progress = Mutex::new(None);
            let watch = |event: Event| {
                if let Event::LayerStarted { progress: p, .. } = event {
                    *progress.lock().unwrap() = Some(p);
                }
            };
            let e = unpack::unpack(&reference, &small.join("out"), None, &options, &watch).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Limit, "{what}: {e}");
            refused(&what, &e.to_string(), bomb.limit, max);
            assert!(e.layer().is_some() && e.image().is_some(), "{what}: {e}");
            let produced = progress.lock().unwrap().take().map_or(0, |p| p.uncompressed_bytes());
            assert!(produced <= bomb.reads + AHEAD, "{what}: {produced} bytes were decompressed");
            assert_clean(&what, &small);

            // As a program: flat, into a store, from a pipe.
            let archive = oci_archive(std::slice::from_ref(&image));
            let flags = flags(&bomb.set);
            let runs: [(&[&str], Option<&[u8]>); 4] = [
                (&["unpack", &name, "out"], None),
                (&["pull", &name], None),
                (&["unpack", "-", "out"], Some(&archive)),
                (&["pull", "-"], Some(&archive)),
            ];
            for (run, input) in runs {
                let args: Vec<&str> = run.iter().copied().chain(flags.iter().map(String::as_str)).collect();
                let (code, text) = program(MEMORY_KIB, &small, &args, input);
                assert_eq!(code, Some(5), "{what} {args:?}: {text}");
                refused(&what, &text, bomb.limit, max);
                if bomb.stays && run[0] == "pull" {
                    let store = small.join("store");
                    assert!(
                        names(&store.join("staging")).is_empty() && names(&store.join("images")).is_empty(),
                        "{what}"
                    );
                    std::fs::remove_dir_all(store).unwrap();
                }
                assert_clean(&what, &small);
            }
        }
    }
    // What is not in the catalogue has a test of its own below.
    let elsewhere = [
        Limit::RatioFloor,
        Limit::ZstdMemory,
        Limit::JsonBytes,
        Limit::ManifestBytes,
        Limit::IndexDepth,
        Limit::ArchiveMembers,
        Limit::Layers,
    ];
    for limit in Limit::ALL {
        assert!(limits.contains(&limit) != elsewhere.contains(&limit), "{limit:?} has no bomb");
    }
}

/// Documents and archives, refused before a layer is looked at.
#[test]
fn b08_documents_and_archives_over_a_limit_are_refused() {
    if !root_or_skip("b08_documents_and_archives_over_a_limit_are_refused") {
        return;
    }
    let lab = Lab::new();
    let small = small(&lab);
    let layout = |name: &str, index: &str, blobs: &[&[u8]]| {
        let path = lab.path().join(name);
        std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(path.join("index.json"), index).unwrap();
        for blob in blobs {
            std::fs::write(path.join("blobs/sha256").join(testkit::sha256_hex(blob)), blob).unwrap();
        }
        format!("oci:{}", path.display())
    };
    let index_type = "application/vnd.oci.image.index.v1+json";
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let config_type = "application/vnd.oci.image.config.v1+json";
    let descriptor = |media_type: &str, blob: &[u8]| {
        let digest = testkit::sha256_hex(blob);
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{digest}","size":{}}}"#, blob.len())
    };
    let index = |media_type: &str, blob: &[u8]| format!(r#"{{"manifests":[{}]}}"#, descriptor(media_type, blob));
    let tar = layer(&[file("a", "x")]);
    let manifest = |config: &[u8], layers: usize| {
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar", &tar);
        let layers = vec![layer; layers].join(",");
        format!(r#"{{"schemaVersion":2,"config":{},"layers":[{layers}]}}"#, descriptor(config_type, config))
    };
    let config = |layers: usize, spaces: usize| {
        let diff_ids = vec![format!("\"sha256:{}\"", testkit::sha256_hex(&tar)); layers].join(",");
        let rootfs = format!(r#""rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}}"#);
        format!(r#"{{"os":"linux","architecture":"amd64",{rootfs}{}}}"#, " ".repeat(spaces)).into_bytes()
    };

    let big_index = layout("big-index", &format!(r#"{{"manifests":[]{}}}"#, " ".repeat(21 << 20)), &[]);
    let spaces = format!("{}{}", manifest(&config(1, 0), 1), " ".repeat(5 << 20));
    let big_manifest = layout("big-manifest", &index(manifest_type, spaces.as_bytes()), &[spaces.as_bytes()]);
    let padded = config(1, 21 << 20);
    let of_padded = manifest(&padded, 1);
    let big_config =
        layout("big-config", &index(manifest_type, of_padded.as_bytes()), &[of_padded.as_bytes(), &padded, &tar]);
    let mut nested = vec![manifest(&config(1, 0), 1)];
    for depth in 0..9 {
        let media_type = if depth == 0 { manifest_type } else { index_type };
        nested.push(index(media_type, nested[depth].as_bytes()));
    }
    let blobs: Vec<&[u8]> = nested.iter().map(|t| t.as_bytes()).collect();
    let deep = layout("deep", &nested[9], &blobs);
    let high = manifest(&config(1001, 0), 1001);
    let many_layers =
        layout("many-layers", &index(manifest_type, high.as_bytes()), &[high.as_bytes(), &config(1001, 0), &tar]);
    let members: Vec<EntrySpec> = (0..2000).map(|i| file(format!("blobs/sha256/{i}"), "")).collect();
    let archive = lab.path().join("members.tar");
    std::fs::write(&archive, layer(&members)).unwrap();
    let members = format!("oci-archive:{}", archive.display());

    type Set = &'static [(Limit, u64)];
    let cases: [(&str, &str, Limit, Set); 6] = [
        ("index", &big_index, Limit::JsonBytes, &[]),
        ("manifest", &big_manifest, Limit::ManifestBytes, &[]),
        ("config", &big_config, Limit::JsonBytes, &[]),
        ("index in index", &deep, Limit::IndexDepth, &[]),
        ("layers", &many_layers, Limit::Layers, &[]),
        ("members", &members, Limit::ArchiveMembers, &[(Limit::ArchiveMembers, 1000)]),
    ];
    for (what, image, limit, set) in cases {
        let max = options(set).limits.get(limit);
        let flags = flags(set);
        for run in [vec!["unpack", image, "out"], vec!["pull", image]] {
            let args: Vec<&str> = run.into_iter().chain(flags.iter().map(String::as_str)).collect();
            let (code, text) = program(MEMORY_KIB + (40 << 10), &small, &args, None);
            assert_eq!(code, Some(5), "{what}: {text}");
            refused(what, &text, limit, max);
            assert_clean(what, &small);
        }
        // The flag that the message names helps.
        let raise = format!("--{}={}", limit.flag(), 64 << 20);
        let (_, text) = program(1 << 20, &small, &["inspect", image, &raise], None);
        assert!(!text.contains("the limit is"), "{what}: {text}");
    }

    // JSON nesting is bounded by the parser, at 128 levels; no image needs a tenth of them.
    let nest = format!(r#"{{"manifests":[],"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let (code, text) = program(MEMORY_KIB, &small, &["inspect", &layout("nest", &nest, &[])], None);
    assert!(code == Some(5) && text.contains("recursion limit"), "{code:?} {text}");
}

/// B1: zeros compress 1,030 : 1 and are legal; so is a small layer of whatever ratio.
#[test]
fn b01_legal_zero_filled_layers_pass() {
    if !root_or_skip("b01_legal_zero_filled_layers_pass") {
        return;
    }
    let lab = Lab::new();
    let mut tar = Vec::new();
    let path = lab.path().join("zeros.tar.gz");
    let encoder = std::fs::File::create(&path).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(encoder, flate2::Compression::best());
    let size: u64 = 300 << 20;
    encoder.write_all(&Header::new(b'0', "zeros").size(size).block()).unwrap();
    tar.resize(1 << 20, 0);
    (0..300).for_each(|_| encoder.write_all(&tar).unwrap());
    encoder.write_all(&[0; 1024]).unwrap();
    encoder.finish().unwrap();
    let ratio = size / path.metadata().unwrap().len();
    assert!(ratio > 1000, "{ratio} : 1");
    let place = lab.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let name = format!("layer:{}", path.display());
    let (code, text) = program(MEMORY_KIB, &place, &["unpack", "--no-durable", &name, "out"], None);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(place.join("out/zeros").metadata().unwrap().len(), size);

    // Below the floor the ratio does not count: 4 MiB of zeros in zstd are 30,000 : 1.
    let image = ImageSpec::new([layer(&[file("zeros", vec![0; 4 << 20])])]).compression(Compression::Zstd).tag("t");
    OciLayout::new(place.join("i")).unwrap().add(&image).unwrap();
    for (floor, code) in [("4M", 5), ("8M", 0)] {
        let args = ["unpack", "oci:i", &format!("out{floor}"), "--ratio-floor", floor, "--no-durable"];
        let (ended, text) = program(MEMORY_KIB, &place, &args, None);
        assert_eq!(ended, Some(code), "{floor}: {text}");
    }
}

/// B9: nothing is allocated, in memory or on disk, by a size that the archive states.
#[test]
fn b09_stated_sizes_allocate_nothing() {
    if !root_or_skip("b09_stated_sizes_allocate_nothing") {
        return;
    }
    let lab = Lab::new();
    let small = small(&lab);
    let huge = |header: Header| header.base256(field::SIZE, i128::from(i64::MAX) - 511);
    let lies = [
        ("file", TarBuilder::new().header(&huge(Header::new(b'0', "f"))).data(vec![b'x'; 1024]).unfinished()),
        ("label", TarBuilder::new().header(&huge(Header::new(b'V', "v"))).data(vec![b'x'; 1024]).unfinished()),
        ("dump", TarBuilder::new().header(&huge(Header::new(b'D', "d"))).data(vec![b'x'; 1024]).unfinished()),
    ];
    for (what, tar) in lies {
        let path = lab.path().join(what);
        std::fs::write(&path, &tar).unwrap();
        let (code, text) = program(MEMORY_KIB, &small, &["unpack", &format!("layer:{}", path.display()), "out"], None);
        assert_eq!(code, Some(5), "{what}: {text}");
        assert_clean(what, &small);
    }
    // A hole costs nothing: 1 TiB of it on 12 MiB. More than the file system can address is its refusal (exit 6).
    for (real, code) in [(1u64 << 40, 0), (i64::MAX as u64, 6)] {
        let keys = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", &real.to_string())];
        let map = format!("{:0<512}{}", "1\n0\n512\n", "d".repeat(512));
        let path = lab.path().join("sparse");
        std::fs::write(&path, TarBuilder::new().pax(&keys).member(Header::new(b'0', "s"), map).finish()).unwrap();
        let args = ["unpack", "--no-durable", &format!("layer:{}", path.display()), "out"];
        let (ended, text) = program(MEMORY_KIB, &small, &args, None);
        // tmpfs holds a file of any size that the kernel can count.
        assert!(ended == Some(code) || ended == Some(0), "{real}: {ended:?} {text}");
        if ended == Some(0) {
            assert_eq!(small.join("out/s").metadata().unwrap().len(), real);
            std::fs::remove_dir_all(small.join("out")).unwrap();
        }
    }
}

/// B7: layers wait for each other when their windows do not fit the budget together, and none waits for ever.
#[test]
fn b07_many_large_windows_take_turns() {
    if !root_or_skip("b07_many_large_windows_take_turns") {
        return;
    }
    let lab = Lab::new();
    let layers = (0..6).map(|i| {
        let tar = layer(&[file(format!("f{i}"), "x")]);
        // A window of 128 MiB and one raw block.
        let size = u32::try_from(tar.len()).unwrap() << 3 | 1;
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3][..], &size.to_le_bytes()[..3], &tar].concat();
        LayerSpec::new(tar).compression(Compression::Zstd).blob(frame)
    });
    let image = ImageSpec { layers: layers.collect(), ..ImageSpec::default() }.tag("t");
    OciLayout::new(lab.path().join("i")).unwrap().add(&image).unwrap();
    for memory in ["0", "256M"] {
        let args = ["unpack", "--no-durable", "-j6", "--max-zstd-memory", memory, "oci:i", memory];
        let (code, text) = program(1 << 20, lab.path(), &args, None);
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(names(&lab.path().join(memory)).len(), 6);
    }
}

/// An archive that is cut off is malformed (exit 5), wherever the cut is, and not "no such image" (exit 3).
#[test]
fn t03_a_cut_archive_on_standard_input_is_malformed() {
    if !root_or_skip("t03_a_cut_archive_on_standard_input_is_malformed") {
        return;
    }
    let lab = Lab::new();
    let image = ImageSpec::new([layer(&[file("a", "x")]), layer(&[file("b", "y")])]).tag("t");
    let whole = oci_archive(&[image]);
    let end = whole.len() - 1024;
    let mut at = 512;
    while at < end {
        let (code, text) = program(MEMORY_KIB, lab.path(), &["unpack", "-", "out"], Some(&whole[..at]));
        assert_eq!(code, Some(5), "cut at {at} of {}: {text}", whole.len());
        assert!(!lab.path().join("out").exists());
        at += 512;
    }
    // Only the end marker is missing: nothing of the image is.
    let (code, text) = program(MEMORY_KIB, lab.path(), &["unpack", "--no-durable", "-", "out"], Some(&whole[..end]));
    assert_eq!(code, Some(0), "{text}");
    // What was never there is not found.
    let other = program(MEMORY_KIB, lab.path(), &["unpack", "-:other", "out2"], Some(&whole));
    assert_eq!(other.0, Some(3), "{}", other.1);
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[test]
fn the_documents_and_the_help_say_what_the_program_does() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/threat-model.md")).unwrap();
    let mut missing = Vec::new();
    for limit in Limit::ALL {
        let default = match (Limits::default().get(limit), limit.unit()) {
            (u64::MAX, _) => "none but the ratio".to_owned(),
            (n, Unit::Count) => grouped(n),
            (n, _) if n.trailing_zeros() >= 30 => format!("{} GiB", n >> 30),
            (n, _) if n.trailing_zeros() >= 20 => format!("{} MiB", n >> 20),
            (n, _) => format!("{} KiB", n >> 10),
        };
        let row = format!("| {} | {default} | `--{}` | {} |", limit.bounds(), limit.flag(), limit.stops());
        if !page.lines().any(|line| line == row) {
            missing.push(row);
        }
    }
    assert!(missing.is_empty(), "docs/threat-model.md lacks:\n{}", missing.join("\n"));
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains("| `--")).count();
    assert_eq!(rows, Limit::ALL.len(), "docs/threat-model.md has rows of limits that are not there");

    let help = Command::new(env!("CARGO_BIN_EXE_unply")).arg("--help").env("COLUMNS", "200").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    for limit in Limit::ALL {
        let text = format!("--{} ", limit.flag());
        let bounds = limit.bounds().to_lowercase();
        assert!(
            words.contains(&text) && words.contains(&format!("{bounds} [default: ")),
            "--help lacks {limit:?}:\n{help}"
        );
    }
}
