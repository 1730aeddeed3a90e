//! `lint`: each code by an image that has it, what it says of whatever is refused, that it writes nothing, its memory.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::corpus;
use serde_json::Value;
use testkit::image::{Breakage, Compression, ImageSpec, LayerSpec, OciLayout, oci_archive};
use testkit::model::{self, Model};
use testkit::tar::{Header, TarBuilder, field};
use testkit::{
    EntrySpec, blk, cases, chr, dir, file, gzip, hardlink, layer, opaque, random, sha256_hex, symlink, whiteout, zstd,
};
use unply::image::Reference;
use unply::lint::{Code, LISTED, Report, Severity, lint};
use unply::policy::{Limits, TreeOptions};
use unply::unpack::Options;

fn temp() -> tempfile::TempDir {
    let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("unply-lint-").tempdir_in(base).unwrap()
}

fn lint_at(path: &Path, options: &Options) -> Report {
    let reference: Reference = format!("oci:{}", path.display()).parse().unwrap();
    lint(&reference, options).unwrap_or_else(|e| panic!("{e}"))
}

fn lint_image(image: &ImageSpec, options: &Options) -> Report {
    let dir = temp();
    OciLayout::new(dir.path()).unwrap().add(image).unwrap();
    lint_at(dir.path(), options)
}

fn lint_layers(layers: &[Vec<EntrySpec>], options: &Options) -> Report {
    lint_image(&ImageSpec::new(layers.iter().map(layer)), options)
}

fn codes(report: &Report) -> BTreeSet<Code> {
    report.counts.keys().copied().collect()
}

/// What an image is made of, and how it is looked at.
enum Of {
    Layers(Vec<Vec<EntrySpec>>),
    Tar(Vec<u8>),
    Image(ImageSpec),
    /// An image whose config, then manifest, has a text replaced.
    Edited(ImageSpec, [(&'static str, &'static str); 2]),
    Limited(Vec<EntrySpec>, Limits),
}

impl Of {
    fn report(self) -> Report {
        let default = Options::default();
        match self {
            Of::Layers(layers) => lint_layers(&layers, &default),
            Of::Tar(tar) => lint_image(&ImageSpec::new([tar]), &default),
            Of::Image(image) => lint_image(&image, &default),
            Of::Edited(image, edits) => {
                let dir = temp();
                OciLayout::new(dir.path()).unwrap().add(&image).unwrap();
                edit(dir.path(), edits);
                lint_at(dir.path(), &default)
            }
            Of::Limited(entries, limits) => lint_layers(&[entries], &Options { limits, ..default }),
        }
    }
}

/// Replaces a text in the config and one in the manifest of the only image, and puts digests and sizes right.
fn edit(layout: &Path, [config, manifest]: [(&str, &str); 2]) {
    let read = |name: &str| std::fs::read_to_string(layout.join(name)).unwrap();
    let digest = |text: &str| text.split("sha256:").nth(1).unwrap()[..64].to_owned();
    let store = |old: &str, text: String, within: &str| -> String {
        let new = sha256_hex(text.as_bytes());
        let old_size = read(&format!("blobs/sha256/{old}")).len();
        std::fs::write(layout.join("blobs/sha256").join(&new), &text).unwrap();
        let at = format!("sha256:{old}\",\"size\":{old_size}");
        assert!(within.contains(&at), "{at} in {within}");
        within.replace(&at, &format!("sha256:{new}\",\"size\":{}", text.len()))
    };
    let replaced = |text: &str, (from, to): (&str, &str)| {
        assert!(text.contains(from), "{from} in {text}");
        text.replace(from, to)
    };
    let index = read("index.json");
    let old_manifest = digest(&index);
    let text = read(&format!("blobs/sha256/{old_manifest}"));
    let old_config = digest(&text);
    let text = store(&old_config, replaced(&read(&format!("blobs/sha256/{old_config}")), config), &text);
    let text = store(&old_manifest, replaced(&text, manifest), &index);
    std::fs::write(layout.join("index.json"), text).unwrap();
}

/// A tar of one odd entry.
fn tar(build: impl FnOnce(TarBuilder) -> TarBuilder) -> Of {
    Of::Tar(build(TarBuilder::new()).finish())
}

fn blob(tar: Vec<u8>, blob: Vec<u8>, compression: Compression) -> Of {
    let spec = LayerSpec::new(tar).compression(compression).blob(blob);
    Of::Image(ImageSpec { layers: vec![spec], ..ImageSpec::default() })
}

/// A file and so many links to it, every other one to the link before.
fn many_links(count: usize) -> Vec<EntrySpec> {
    let target = |n: usize| if n.is_multiple_of(2) || n < 2 { "f".to_owned() } else { format!("l{}", n - 1) };
    std::iter::once(file("f", "1")).chain((0..count).map(|n| hardlink(format!("l{n}"), target(n)))).collect()
}

fn usr() -> Vec<EntrySpec> {
    vec![dir("usr/"), dir("usr/lib/"), file("usr/lib/y", "y"), symlink("lib", "usr/lib")]
}

/// Images, the codes each is made for, and the codes that come with them.
#[expect(clippy::too_many_lines, reason = "a table")]
fn images() -> Vec<(Code, &'static [Code], Of)> {
    use Code::*;
    let f = || file("f", "1");
    let plain = || ImageSpec::new([layer(&[file("f", "1")])]);
    let same = ("architecture", "architecture");
    let media = ("mediaType", "mediaType");
    let skippable = |n: u32| [&[0x50, 0x2a, 0x4d, 0x18][..], &n.to_le_bytes(), &vec![7; n as usize]].concat();
    let two = |of: Code, with: &'static [Code], lower: Vec<EntrySpec>, upper: Vec<EntrySpec>| {
        (of, with, Of::Layers(vec![lower, upper]))
    };
    let one = |of: Code, with: &'static [Code], entries: Vec<EntrySpec>| (of, with, Of::Layers(vec![entries]));
    let lower = || vec![dir("d/"), file("d/old", "old")];
    let deep = (0..50).map(|_| "n".repeat(100)).collect::<Vec<_>>().join("/");
    let capability = [&0x0300_0000u32.to_le_bytes()[..], &[0; 16], &7u32.to_le_bytes()].concat();
    let tar_f = layer(&[f()]);
    let half = tar_f.len() / 2;
    let stargz = layer(&[f(), file("stargz.index.json", "{}")]);
    let sparse = pax(&[
        ("GNU.sparse.major", "0"),
        ("GNU.sparse.minor", "1"),
        ("GNU.sparse.size", "1024"),
        ("GNU.sparse.map", "512,512"),
    ]);
    vec![
        two(WhiteoutAfterEntry, &[], vec![f()], vec![f(), whiteout("", "f")]),
        two(WhiteoutThenDirectory, &[], lower(), vec![whiteout("", "d"), dir("d/"), file("d/new", "")]),
        two(WhiteoutWithEntriesBelow, &[ImpliedDirectory], lower(), vec![whiteout("", "d"), file("d/new", "")]),
        two(WhiteoutBelowWhiteout, &[], lower(), vec![whiteout("", "d"), whiteout("d", "old")]),
        two(OpaqueRoot, &[], lower(), vec![opaque(""), f()]),
        two(WhiteoutInOpaque, &[], lower(), vec![dir("d/"), whiteout("d", "old"), opaque("d"), file("d/n", "")]),
        two(WhiteoutOfNothing, &[], lower(), vec![whiteout("d", "nope")]),
        two(WhiteoutWithoutDirectory, &[], lower(), vec![whiteout("x/y", "z")]),
        two(OpaqueWithoutDirectory, &[], lower(), vec![opaque("x/y")]),
        two(NestedWhiteout, &[], lower(), vec![file("d/.wh..wh.foo", "")]),
        one(AufsLeftover, &[], vec![f(), file(".wh..wh.aufs", "")]),
        two(OddWhiteout, &[], vec![f()], vec![file(".wh.f", "data")]),
        one(BelowWhiteout, &[], vec![f(), file(".wh.a/b", "")]),
        two(WhiteoutThroughSymlink, &[], usr(), vec![whiteout("lib", "y")]),
        two(MarkerBelowFile, &[], vec![f()], vec![whiteout("f", "b")]),
        two(DeviceZero, &[], vec![f()], vec![chr("f", 0, 0)]),
        one(OpaqueOverEntry, &[], vec![file("x", ""), opaque("x")]),
        two(OverlayXattr, &[], lower(), vec![dir("d/").xattr("trusted.overlay.opaque", "y")]),
        two(UserOverlayXattr, &[], lower(), vec![dir("d/").xattr("user.overlay.opaque", "y")]),
        two(LinkIntoLower, &[], vec![f()], vec![hardlink("g", "f")]),
        one(LinkTargetSpelling, &[], vec![f(), hardlink("g", "/f")]),
        one(LinkTargetClamped, &[NameClamped], vec![f(), hardlink("g", "../f")]),
        one(LinkToSymlink, &[], vec![symlink("s", "x"), hardlink("g", "s")]),
        one(LinkForward, &[], vec![hardlink("g", "f"), f()]),
        one(LinkToSelf, &[Duplicate], vec![f(), hardlink("f", "f")]),
        one(LinkMetadata, &[], vec![f(), hardlink("g", "f").mode(0o600)]),
        (
            LinkSize,
            &[],
            tar(|t| {
                t.entry(&f()).header(
                    &Header::new(b'1', "g").octal(field::MTIME, 1_000_000_000).raw(field::LINKNAME, "f").size(1),
                )
            }),
        ),
        one(ManyLinks, &[], many_links(65_000)),
        one(SymlinkReplaced, &[], vec![symlink("s", "t"), dir("s/")]),
        two(ThroughLowerSymlink, &[], usr(), vec![file("lib/x", "")]),
        one(ThroughSymlink, &[], vec![dir("run/"), symlink("var", "/run"), file("var/x", "")]),
        one(ThroughDanglingSymlink, &[ImpliedDirectory], vec![symlink("var", "run"), file("var/x", "")]),
        two(LowerSymlinkReplaced, &[], usr(), vec![dir("lib/")]),
        one(NameClamped, &[], vec![file("../f", "")]),
        one(DotDotName, &[], vec![file("d/../f", "")]),
        one(AbsoluteName, &[], vec![file("/f", "")]),
        one(ParentReplaced, &[ImpliedDirectory], vec![f(), file("f/x", "")]),
        one(LongPath, &[ImpliedDirectory], vec![file(deep, "")]),
        one(OddName, &[], vec![file("a\nb", "")]),
        two(ImpliedParent, &[], vec![dir("d/").mode(0o700)], vec![file("d/x", "")]),
        one(ImpliedDirectory, &[], vec![file("d/x", "")]),
        one(RootEntry, &[], vec![dir("./").mode(0o700)]),
        one(RootLink, &[], vec![hardlink("./", ".")]),
        one(Duplicate, &[], vec![f(), f()]),
        one(PlaceTaken, &[], vec![file("d/x", ""), symlink("d", "e")]),
        two(PlaceTaken, &[], lower(), vec![file("d/x", ""), symlink("d", "e")]),
        one(OddTime, &[], vec![f().mtime(-5)]),
        (LibarchiveXattr, &[], tar(|t| t.pax(&[("LIBARCHIVE.xattr.user.k", "dg==")]).entry(&f()))),
        (PaxKeyNotApplied, &[], tar(|t| t.pax(&[("SCHILY.fflags", "nodump")]).entry(&f()))),
        one(SelinuxLabel, &[], vec![f().xattr("security.selinux", "x")]),
        one(ForeignCapability, &[], vec![f().xattr("security.capability", capability)]),
        one(SecurityXattr, &[], vec![f().xattr("security.ima", "x")]),
        one(UserXattr, &[], vec![symlink("s", "t").xattr("user.k", "v")]),
        one(Nfs4Acl, &[], vec![f().xattr("system.nfs4_acl", "x")]),
        one(LargeXattr, &[], vec![f().xattr("user.k", vec![b'v'; 60_000])]),
        (NoEndBlocks, &[], Of::Tar(TarBuilder::new().entry(&f()).unfinished())),
        (DataAfterEnd, &[], Of::Tar([layer(&[f()]), layer(&[f()])].concat())),
        (SlashDirectory, &[], tar(|t| t.header(&Header::new(b'0', "d/")))),
        (ContiguousFile, &[], tar(|t| t.header(&Header::new(b'7', "f")))),
        (VolumeLabel, &[], tar(|t| t.header(&Header::new(b'V', "label")).entry(&f()))),
        (Dumpdir, &[], tar(|t| t.header(&Header::new(b'D', "d/")))),
        (SolarisHeader, &[], tar(|t| t.pax_of_type(b'X', pax(&[("mtime", "5")])).entry(&f()))),
        (GlobalPaxHeader, &[], tar(|t| t.pax_global(&[("uid", "7")]).entry(&f()))),
        (SparseFile, &[], tar(|t| t.pax_of_type(b'x', sparse).member(Header::new(b'0', "f"), [1; 512]))),
        (GnuSparse, &[], tar(|t| t.header(&gnu_sparse()).data([1; 512]))),
        (SizeIgnored, &[], tar(|t| t.header(&Header::new(b'5', "d/").size(5)))),
        (EmptyName, &[], tar(|t| t.header(&Header::new(b'5', "").octal(field::MODE, 0o755)))),
        (
            SeveralMembers,
            &[],
            blob(tar_f.clone(), [gzip(&tar_f[..half]), gzip(&tar_f[half..])].concat(), Compression::Gzip),
        ),
        (Padding, &[], blob(tar_f.clone(), [gzip(&tar_f), vec![0; 100]].concat(), Compression::Gzip)),
        (EmptyLayer, &[], Of::Tar(vec![0; 1024])),
        (MediaTypeMismatch, &[], blob(tar_f.clone(), zstd(&tar_f), Compression::Gzip)),
        (SkippableFirst, &[], blob(tar_f.clone(), [skippable(9), zstd(&tar_f)].concat(), Compression::Zstd)),
        (
            LazyPulling,
            &[],
            blob(stargz.clone(), [gzip(&stargz[..half]), gzip(&stargz[half..])].concat(), Compression::Gzip),
        ),
        (LazyPulling, &[], blob(tar_f.clone(), [zstd(&tar_f), skippable(40)].concat(), Compression::Zstd)),
        (ForeignLayer, &[], Of::Edited(plain(), [same, ("image.layer.v1", "image.layer.nondistributable.v1")])),
        (NoPlatform, &[], Of::Edited(plain(), [("\"os\":\"linux\",", ""), media])),
        (HistoryMismatch, &[], Of::Edited(plain(), [("\"history\":[", "\"history\":[{},"), media])),
        (NoLayers, &[], Of::Image(ImageSpec::default())),
        (RepeatedLayer, &[], Of::Layers(vec![vec![f()], vec![dir("d/")], vec![f()]])),
        (ManyLayers, &[], Of::Layers((0..129).map(|n| vec![file(format!("f{n}"), "")]).collect())),
        (NearLimit, &[], Of::Limited(vec![f()], Limits { max_depth: 1, ..Limits::default() })),
        one(Refused, &[], vec![f(), file("d/.wh.", ""), file("d/.wh..", "")]),
        (Refused, &[], tar(|t| t.header(&Header::new(b'Z', "f")))),
        one(Refused, &[], vec![hardlink("g", "nothing")]),
        (OverLimit, &[], Of::Limited(vec![f(), file("ab/cd", "")], Limits { max_path_bytes: 4, ..Limits::default() })),
        (Integrity, &[], Of::Image(plain().broken(Breakage::WrongDiffId(0)))),
        (Unusable, &[], Of::Image(plain().broken(Breakage::MissingBlob(0)))),
    ]
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    testkit::tar::pax_records(records)
}

/// An old GNU sparse file: 1,024 bytes, of which the second half is stored.
fn gnu_sparse() -> Header {
    Header::new(b'S', "f")
        .raw(field::MAGIC, testkit::tar::MAGIC_GNU)
        .size(512)
        .octal((386, 12), 512)
        .octal((398, 12), 512)
        .octal((483, 12), 1024)
}

#[test]
fn each_code_has_an_image_that_has_nothing_else() {
    let mut wrong = Vec::new();
    // The last two need what a layout does not have; they have tests of their own.
    let mut covered = BTreeSet::from([Code::UncommonDigest, Code::UnusedMember]);
    for (code, with, of) in images() {
        covered.insert(code);
        let report = of.report();
        let expected: BTreeSet<Code> = with.iter().copied().chain([code]).collect();
        if codes(&report) != expected {
            wrong.push(format!("{code}: {:#?}", report.findings));
        }
        let refused = code.severity() == Severity::Error;
        if report.error.is_some() != refused {
            wrong.push(format!("{code}: the error is {:?}", report.error));
        }
        for finding in &report.findings {
            if finding.rules.is_empty() && !matches!(finding.code, Code::Unusable | Code::Refused) {
                wrong.push(format!("{code}: no rule: {finding:?}"));
            }
        }
    }
    let missing: Vec<&Code> = Code::ALL.iter().filter(|code| !covered.contains(code)).collect();
    assert!(missing.is_empty(), "no image for {missing:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Nothing of these is a finding: a check that speaks of everything is worth nothing.
#[test]
fn what_conforming_builders_write_gives_nothing() {
    // As many names as ext4 holds.
    assert_eq!(codes(&Of::Layers(vec![many_links(64_999)]).report()), BTreeSet::new());
    let lower = vec![dir("d/"), file("d/a", "a"), file("d/b", "b"), dir("e/"), file("e/x", ""), symlink("l", "d")];
    let upper = vec![
        dir("d/").mode(0o750).mtime(5),
        whiteout("d", "a"),
        file("d/c", "c").xattr("user.k", "v"),
        hardlink("d/c2", "d/c"),
        dir("e/"),
        opaque("e"),
        file("e/y", "y"),
        dir("new/"),
        opaque("new"),
        whiteout("", "l"),
        dir("dev/"),
        chr("dev/null", 1, 3),
        blk("dev/loop0", 7, 0),
        dir("./"),
    ];
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let image = ImageSpec::new([layer(&lower), layer(&upper)]).compression(compression);
        let report = lint_image(&image, &Options::default());
        assert_eq!(report.findings, [], "{compression:?}");
        assert!(report.error.is_none());
    }
}

#[test]
fn real_images_are_not_buried_in_findings() {
    let images = corpus().join("images");
    let lint = |name: &str| {
        let reference: Reference = images.join(name).to_str().unwrap().parse().unwrap();
        lint(&reference, &Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    for clean in [
        "alpine-minirootfs-v3.20-x86_64/alpine-minirootfs-3.20.3-x86_64.tar.gz",
        "dive/test-docker-image.tar",
        "dive/test-oci-zstd-image.tar",
    ] {
        assert_eq!(lint(clean).findings, [], "{clean}");
    }
    assert_eq!(codes(&lint("dive/test-kaniko-image.tar")), BTreeSet::from([Code::AbsoluteName]));
    assert_eq!(codes(&lint("dive/test-oci-estargz-image.tar")), BTreeSet::from([Code::LazyPulling]));
    let concat = lint("claircore/concat.tar");
    assert_eq!(codes(&concat), BTreeSet::from([Code::RootEntry, Code::Duplicate, Code::SymlinkReplaced]));
}

/// Checks what lint says against what the model does; returns what is wrong.
fn against_the_model(name: &str, layers: &[Vec<EntrySpec>], options: model::Options) -> Option<String> {
    let tree = common::tree_options(options);
    let report = lint_layers(layers, &Options { tree, ..Options::default() });
    let found = |at_least| report.findings.iter().any(|f| f.severity >= at_least);
    let refused = Model::of_image(options, layers).is_err();
    let strict = Model::of_image(model::Options { strict: true, ..options }, layers).is_err();
    let complaint = match () {
        () if refused != report.error.is_some() => "refused by one of lint and model",
        () if refused && !found(Severity::Error) => "refused without an error",
        () if !refused && found(Severity::Error) => "accepted with an error",
        () if strict && !found(Severity::Nonconforming) => "refused by --strict, and nothing found",
        () => return None,
    };
    Some(format!("{name}: {complaint}: {:?}; {:#?}", report.error, report.findings))
}

/// The verdict of lint is that of the reference model, and what `--strict` refuses is never passed over in silence.
#[test]
fn what_is_refused_is_reported_for_every_case_and_for_random_images() {
    let mut wrong = Vec::new();
    for case in cases::all() {
        wrong.extend(against_the_model(case.name, &case.layers, case.options));
    }
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (first, count) = (number("UNPLY_SEED", 1), number("UNPLY_IMAGES", 400));
    let mut strict = 0;
    for seed in first..first + count {
        let layers = random::random_image(seed);
        for is_strict in [false, true] {
            let options = model::Options { strict: is_strict, ..model::Options::default() };
            strict += usize::from(is_strict && Model::of_image(options, &layers).is_err());
            wrong.extend(against_the_model(&format!("seed {seed}, strict {is_strict}"), &layers, options));
        }
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.iter().take(5).cloned().collect::<String>());
    assert!(strict as u64 > count / 20, "only {strict} of {count} images were refused by --strict");
}

/// Everything that unpacking warns of is a finding of the same code.
#[test]
fn every_warning_of_an_unpack_is_a_finding() {
    if !common::root_or_skip("every_warning_of_an_unpack_is_a_finding") {
        return;
    }
    let lab = common::Lab::new();
    let (mut wrong, mut kinds) = (Vec::new(), BTreeSet::new());
    let mut images: Vec<_> = cases::all().into_iter().map(|c| (c.name.to_owned(), c.layers)).collect();
    images.extend((1..60).map(|seed| (format!("seed {seed}"), random::random_image(seed))));
    for (name, layers) in images {
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        OciLayout::new(work.path().join("i")).unwrap().add(&ImageSpec::new(layers.iter().map(layer)).tag("t")).unwrap();
        let reference: Reference = format!("oci:{}:t", work.path().join("i").display()).parse().unwrap();
        let options = Options { durable: false, jobs: 1, ..Options::default() };
        let warned = std::sync::Mutex::new(BTreeSet::new());
        let unpacked = unply::unpack::unpack(&reference, &work.path().join("o"), None, &options, &|event| {
            if let unply::unpack::Event::Warning { warning, .. } = event {
                warned.lock().unwrap().insert(warning.kind);
            }
        });
        if unpacked.is_err() {
            continue;
        }
        let report = lint(&reference, &options).unwrap();
        let found: BTreeSet<&str> = report.counts.keys().map(|c| c.word()).collect();
        for kind in warned.into_inner().unwrap() {
            kinds.insert(kind);
            // Lint tells apart how a place came to be taken twice.
            let taken = ["duplicate", "symlink-replaced", "place-taken", "parent-replaced", "opaque-over-entry"];
            // What a place does not hold, it holds elsewhere.
            let of_the_place = ["mtime-saturated", "xattr-unsupported", "too-many-links"].contains(&kind);
            let same = of_the_place
                || found.contains(kind)
                || kind == "duplicate" && taken.iter().any(|code| found.contains(code));
            if !same {
                wrong.push(format!("{name}: warning {kind} is not among {found:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(kinds.len() > 8, "only {kinds:?} were met");
}

#[test]
fn r03_a_hard_link_that_lands_elsewhere_is_told_by_unpack_and_by_lint() {
    if !common::root_or_skip("r03_a_hard_link_that_lands_elsewhere_is_told_by_unpack_and_by_lint") {
        return;
    }
    let lab = common::Lab::new();
    let layers = [usr(), vec![file("f", ""), hardlink("lib/g", "f")]];
    OciLayout::new(lab.path().join("i")).unwrap().add(&ImageSpec::new(layers.iter().map(layer))).unwrap();
    let reference: Reference = format!("oci:{}", lab.path().join("i").display()).parse().unwrap();
    let options = Options { durable: false, ..Options::default() };
    let told = std::sync::Mutex::new(Vec::new());
    unply::unpack::unpack(&reference, &lab.path().join("o"), None, &options, &|event| {
        if let unply::unpack::Event::Warning { warning, .. } = event {
            told.lock().unwrap().push((warning.kind, warning.path));
        }
    })
    .unwrap();
    assert_eq!(told.into_inner().unwrap(), [("through-lower-symlink", b"lib/g".to_vec())]);
    assert_eq!(codes(&lint(&reference, &options).unwrap()), BTreeSet::from([Code::ThroughLowerSymlink]));
}

#[test]
fn the_first_hundred_of_a_code_are_listed_and_all_are_counted() {
    let twice = |n: usize| vec![file(format!("f{n}"), ""), file(format!("f{n}"), "")];
    let layers: Vec<Vec<EntrySpec>> = [0..60, 60..120, 120..130].map(|r| r.flat_map(twice).collect()).into();
    let report = lint_layers(&layers, &Options::default());
    assert_eq!(report.counts, BTreeMap::from([(Code::Duplicate, 130)]));
    assert_eq!(report.findings.len() as u64, LISTED);
    let of_layer = |at| report.findings.iter().filter(|f| f.layer == Some(at)).count();
    assert_eq!([of_layer(0), of_layer(1), of_layer(2)], [60, 40, 0]);
    assert_eq!(report.by_severity(), BTreeMap::from([(Severity::Ambiguous, 130)]));
}

/// A repeated layer is read again for the chain, and its own findings are told once.
#[test]
fn a_repeated_layer_is_told_once() {
    let odd = vec![file("f", "1"), file("f", "2")];
    let report = lint_layers(&[odd.clone(), vec![file("g", "")], odd], &Options::default());
    assert_eq!(report.counts, BTreeMap::from([(Code::Duplicate, 1), (Code::RepeatedLayer, 1)]));
}

#[test]
fn strict_makes_errors_of_what_it_refuses() {
    let layers = [vec![file("f", "1"), file("f", "2"), file("a/../b", "")]];
    assert!(lint_layers(&layers, &Options::default()).error.is_none());
    let tree = TreeOptions { strict: true, ..TreeOptions::default() };
    let report = lint_layers(&layers, &Options { tree, ..Options::default() });
    let severities: BTreeMap<Code, Severity> = report.findings.iter().map(|f| (f.code, f.severity)).collect();
    assert_eq!(severities[&Code::Duplicate], Severity::Error);
    assert_eq!(severities[&Code::DotDotName], Severity::Nonconforming);
    assert_eq!(report.error.unwrap().kind(), unply::ErrorKind::Malformed);
}

#[test]
fn a_refusal_does_not_end_the_look() {
    // Refused by its name, its type and its chain: one layer each, with something to find behind it.
    let twice = || [file("f", "1"), file("f", "2")];
    let broken = TarBuilder::new().entry(&file("a", "")).header(&Header::new(b'Z', "z")).finish();
    let tars = [
        layer(&[&[file(".wh.", "")][..], &twice()].concat()),
        layer(&[&[hardlink("g", "nothing")][..], &[file("x", ""), file("x", "")]].concat()),
        broken,
        layer(&[&twice()[..], &[hardlink("h", "nothing either")]].concat()),
    ];
    let report = lint_image(&ImageSpec::new(tars), &Options::default());
    let refused: Vec<(Option<usize>, &str)> = report
        .findings
        .iter()
        .filter(|f| f.code == Code::Refused)
        .map(|f| (f.layer, f.rules.first().map_or("", String::as_str)))
        .collect();
    // Behind the layer that ends early nobody knows what a hard link into lower layers finds.
    assert_eq!(refused, [(Some(0), "W11"), (Some(1), "L2"), (Some(2), "T11")]);
    assert_eq!(report.counts[&Code::Duplicate], 3);
    let error = report.error.unwrap();
    assert_eq!(error.kind(), unply::ErrorKind::Malformed);
    assert!(error.to_string().contains("W11"), "{error}");
}

/// An archive on a pipe is read once, in whatever order it comes, and gives what the layout gives.
#[test]
fn a_stream_gives_the_findings_of_a_layout() {
    let bottom = layer(&usr());
    let top = layer(&[file("lib/x", ""), file("lib/x", ""), whiteout("no", "thing")]);
    let image = ImageSpec::new([bottom, top]).tag("t");
    let dir = temp();
    let archive = dir.path().join("image.tar.gz");
    std::fs::write(&archive, gzip(&oci_archive(std::slice::from_ref(&image)))).unwrap();
    let reference: Reference = format!("oci-archive:{}", archive.display()).parse().unwrap();
    let streamed = lint(&reference, &Options::default()).unwrap();
    let direct = lint_image(&image, &Options::default());
    assert_eq!(streamed.findings, direct.findings);
    assert_eq!(streamed.layers, direct.layers);
    assert_eq!(streamed.image_id, direct.image_id);
    assert_eq!(streamed.findings.len(), 4, "{:#?}", streamed.findings);

    let broken = image.broken(Breakage::WrongDiffId(1));
    std::fs::write(&archive, gzip(&oci_archive(&[broken]))).unwrap();
    let report = lint(&reference, &Options::default()).unwrap();
    assert_eq!(report.error.unwrap().kind(), unply::ErrorKind::Integrity);
    assert_eq!(report.counts[&Code::Integrity], 1);
}

#[test]
fn a_damaged_member_that_nobody_needs_is_no_error() {
    let image = ImageSpec::new([layer(&[file("f", "")])]).tag("t");
    let mut archive = oci_archive(std::slice::from_ref(&image));
    archive.truncate(archive.len() - 1024);
    let damaged = TarBuilder::new().entry(&file("blobs/sha256/stray", b"\x1f\x8b\x08 no gzip at all")).finish();
    let dir = temp();
    let path = dir.path().join("image.tar.gz");
    std::fs::write(&path, gzip(&[archive, damaged].concat())).unwrap();
    let reference: Reference = format!("oci-archive:{}", path.display()).parse().unwrap();
    let report = lint(&reference, &Options::default()).unwrap();
    assert_eq!(codes(&report), BTreeSet::from([Code::UnusedMember]));
    assert!(report.error.is_none());
}

#[test]
fn z14_other_digests_than_sha_256_are_noted() {
    use unply::digest::{Algorithm, Digest};
    let dir = temp();
    let image = ImageSpec::new([layer(&[file("f", "")])]);
    let built = OciLayout::new(dir.path()).unwrap().add(&image).unwrap();
    let old = format!("sha256:{}", built.layers[0]);
    let bytes = std::fs::read(dir.path().join("blobs/sha256").join(&built.layers[0])).unwrap();
    let new = Digest::of(Algorithm::Sha512, &bytes).to_string();
    std::fs::create_dir(dir.path().join("blobs/sha512")).unwrap();
    std::fs::write(dir.path().join("blobs/sha512").join(new.strip_prefix("sha512:").unwrap()), bytes).unwrap();
    edit(dir.path(), [("os", "os"), (&old, &new)]);
    let report = lint_at(dir.path(), &Options::default());
    assert_eq!(codes(&report), BTreeSet::from([Code::UncommonDigest]));
}

/// Names remembered for 200,000 entries, counted by the kernel; README of the module says what they cost.
#[test]
fn memory_is_bounded_for_a_layer_of_200_000_entries() {
    const NAME: &str = "memory_is_bounded_for_a_layer_of_200_000_entries";
    if let Ok(image) = std::env::var("UNPLY_LINT_CHILD") {
        let peak = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
            peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = peak();
        let report = lint(&format!("layer:{image}").parse().unwrap(), &Options::default()).unwrap();
        assert_eq!((report.layers[0].entries, report.findings.len()), (200_200, 0));
        let kib = peak() - before;
        println!("peak {kib} KiB more");
        assert!(kib < 112 << 10, "peak {kib} KiB more");
        return;
    }
    let dir_ = temp();
    let path = dir_.path().join("layer.tar.gz");
    let mut entries = Vec::new();
    for d in 0..200 {
        entries.push(dir(format!("usr/share/some-package-{d}/").trim_start_matches("usr/share/")));
        entries.extend((0..1000).map(|n| file(format!("some-package-{d}/file-number-{n}.txt"), "")));
    }
    std::fs::write(&path, gzip(&layer(&entries))).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("UNPLY_LINT_CHILD", &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    println!("{text}");
}

/// An image that names nodes without end is refused before they fill the memory.
#[test]
fn the_nodes_of_a_chain_are_bounded() {
    let deep = |n: usize| file(format!("{n}/{}", "d/".repeat(500)) + "f", "");
    let limits = Limits { max_layer_memory: 1 << 20, ..Limits::default() };
    let options = Options { limits, ..Options::default() };
    let report = lint_layers(&[(0..20).map(deep).collect()], &options);
    assert_eq!(report.error.unwrap().kind(), unply::ErrorKind::Limit);
    assert_eq!(report.counts[&Code::OverLimit], 1);
}

/// Names that an image makes long cannot fill the memory through what is said about them.
#[test]
fn long_names_are_cut_in_findings() {
    let name = "ö".repeat(20_000).into_bytes().chunks(200).collect::<Vec<_>>().join(&b'/');
    let report = lint_layers(
        &[vec![file(["/", "x/../"].concat().into_bytes().into_iter().chain(name).collect::<Vec<_>>(), "")]],
        &Options::default(),
    );
    let lengths: Vec<(usize, usize)> = report.findings.iter().map(|f| (f.path.len(), f.detail.len())).collect();
    assert!(report.counts.contains_key(&Code::LongPath) && report.counts.contains_key(&Code::DotDotName));
    assert!(lengths.iter().all(|(path, detail)| *path <= 4100 && *detail <= 4100), "{lengths:?}");
    assert!(lengths.iter().any(|(path, detail)| *path > 4000 && *detail > 4000), "{lengths:?}");
}

/// The program, in a place where nothing can be written.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(image: &ImageSpec) -> Place {
        let dir = temp();
        OciLayout::new(dir.path().join("image")).unwrap().add(image).unwrap();
        std::fs::create_dir(dir.path().join("cwd")).unwrap();
        Place { dir }
    }

    fn lint(&self, args: &[&str]) -> Output {
        let image = format!("oci:{}", self.dir.path().join("image").display());
        Command::new(env!("CARGO_BIN_EXE_unply"))
            .arg("lint")
            .arg(image)
            .args(args)
            .current_dir(self.dir.path().join("cwd"))
            .env("UNPLY_ROOT", self.dir.path().join("store"))
            .env("HOME", "/proc")
            // Nobody writes there, not even root.
            .env("TMPDIR", "/proc")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_command_writes_nothing() {
    let place = Place::new(&ImageSpec::new([layer(&usr()), layer(&[file("lib/x", "")])]));
    let everything = || {
        let mut out = BTreeMap::new();
        let mut left = vec![place.dir.path().to_path_buf()];
        while let Some(path) = left.pop() {
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                left.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
            use std::os::unix::fs::MetadataExt as _;
            out.insert(path, (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.size()));
        }
        out
    };
    let before = everything();
    for args in [&[][..], &["--json"], &["--deny"]] {
        let output = place.lint(args);
        assert_eq!(output.status.code(), Some(if args == ["--deny"] { 5 } else { 0 }), "{output:?}");
    }
    assert_eq!(everything(), before);
}

#[test]
fn the_table_and_the_document_say_the_same() {
    let place = Place::new(&ImageSpec::new([layer(&usr()), layer(&[file("lib/x\n", "")])]));
    let output = place.lint(&[]);
    let table = text(&output.stdout);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(place.lint(&[]).stdout, output.stdout, "it must not change from run to run");
    for line in [
        "layer 2 of 2, ",
        "ambiguous  S6    through-lower-symlink  lib/x\\n  lands at \"usr/lib/x\\n\"",
        "info       T21   odd-name               lib/x\\n",
        "through-lower-symlink (S6, R-3)\n  unply: lands where the symlink leads",
        "2 layers, 2 findings: 0 error, 1 ambiguous, 0 nonconforming, 1 info\n",
    ] {
        assert!(table.contains(line), "{line} in\n{table}");
    }
    let output = place.lint(&["--json"]);
    let doc: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<String>>().join(" ");
    assert_eq!(keys(&doc), "denied finding_counts findings image_id layers reference schema severity_counts");
    assert_eq!(keys(&doc["findings"][0]), "code detail elsewhere here layer layer_index path rules severity");
    assert_eq!(keys(&doc["layers"][0]), "compressed_bytes diff_id digest entries media_type uncompressed_bytes");
    assert_eq!((&doc["schema"], &doc["denied"]), (&Value::from(1), &Value::from(false)));
    assert_eq!(doc["finding_counts"], serde_json::json!({"odd-name": 1, "through-lower-symlink": 1}));
    assert_eq!(doc["severity_counts"], serde_json::json!({"ambiguous": 1, "info": 1}));
    let finding = &doc["findings"][1];
    assert_eq!(finding["code"], "through-lower-symlink");
    assert_eq!(finding["rules"], serde_json::json!(["S6", "R-3"]));
    assert_eq!((&finding["layer_index"], &finding["layer"]), (&Value::from(1), &doc["layers"][1]["diff_id"]));
    assert_eq!(finding["path"], "lib/x\\n");
}

#[test]
fn deny_decides_the_exit_code() {
    let place = Place::new(&ImageSpec::new([layer(&usr()), layer(&[file("lib/x", ""), file("a\nb", "")])]));
    for (arg, code) in [
        ("--deny", 5),
        ("--deny=info", 5),
        ("--deny=ambiguous", 5),
        ("--deny=error", 0),
        ("--deny=S6", 5),
        ("--deny=R-3", 5),
        ("--deny=T24", 5),
        ("--deny=W4", 0),
        ("--deny=W4,odd-name", 5),
        ("--deny=through-lower-symlink", 5),
        ("--deny=duplicate", 0),
        ("--deny=nonsense", 2),
    ] {
        let output = place.lint(&[arg]);
        assert_eq!(output.status.code(), Some(code), "{arg}: {output:?}");
    }
    let only_info = Place::new(&ImageSpec::new([layer(&[file("a\nb", "")])]));
    assert_eq!(only_info.lint(&["--deny"]).status.code(), Some(0));
    assert_eq!(only_info.lint(&["--deny=info"]).status.code(), Some(5));
}

#[test]
fn a_malformed_image_ends_with_its_own_exit_code_and_what_was_found() {
    let spec = || ImageSpec::new([layer(&[file("f", ""), file("f", "")]), layer(&[file("g", "")])]);
    let bad = ImageSpec::new([layer(&[file("f", ""), file("f", "")]), layer(&[file(".wh.", "")])]);
    for (image, code, word) in [
        (spec().broken(Breakage::WrongDiffId(1)), 4, "integrity"),
        (spec().broken(Breakage::FlippedBit(1)), 4, "integrity"),
        (spec().broken(Breakage::MissingBlob(1)), 3, "not-found"),
        (bad, 5, "malformed"),
    ] {
        let place = Place::new(&image);
        let output = place.lint(&["--json"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let doc: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(doc["error"]["code"], word);
        assert_eq!(doc["finding_counts"]["duplicate"], 1);
        assert_eq!(doc["severity_counts"]["error"], 1);
        let output = place.lint(&[]);
        assert_eq!(output.status.code(), Some(code));
        assert!(
            text(&output.stdout).contains("duplicate") && text(&output.stderr).contains("layer sha256:"),
            "{output:?}"
        );
    }
}

#[test]
fn an_image_of_the_store_cannot_be_looked_at() {
    let place = Place::new(&ImageSpec::default());
    let run = |image: &str| {
        Command::new(env!("CARGO_BIN_EXE_unply"))
            .args(["lint", image])
            .env("UNPLY_ROOT", place.dir.path().join("store"))
            .output()
            .unwrap()
    };
    assert_eq!(run("id:0123456789ab").status.code(), Some(3));
    assert_eq!(run("oci:/nowhere").status.code(), Some(3));
    let stored = lint(&Reference::Stored("x".into()), &Options::default()).unwrap_err();
    assert_eq!(stored.kind(), unply::ErrorKind::Unsupported);
}
