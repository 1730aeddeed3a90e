//! Layers as bytes, end to end: odd archives and blobs of testkit, and every file of the corpus's `tars/`, unpacked flat,
//! mounted read-only and read-write, and in user namespaces, against the reference model.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use common::*;
use testkit::cases::{Means, archives};
use testkit::image::{Breakage, Compression, ImageSpec, LayerSpec, OciLayout};
use testkit::model::Model;
use testkit::{EntrySpec, compare, dir, file, layer};
use unply::apply::Warning;
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::policy::Limits;
use unply::tar::{EntryKind, Parser, Step};
use unply::unpack::{self, Event, Options};

fn quick() -> Options {
    Options { durable: false, jobs: 2, ..Options::default() }
}

/// Puts one layer into an image of its own below `work`.
fn image_of(work: &Path, layer: &LayerSpec) -> Reference {
    let mut image = ImageSpec::new(Vec::<Vec<u8>>::new()).tag("t");
    image.layers.push(layer.clone());
    let layout = work.join("image");
    OciLayout::new(&layout).unwrap().add(&image).unwrap();
    format!("oci:{}:t", layout.display()).parse().unwrap()
}

/// Unpacks into `out` and returns the result with the warnings on the way.
fn warnings_of(reference: &Reference, out: &Path) -> (unply::error::Result<()>, Vec<Warning>) {
    let warnings = Mutex::new(Vec::new());
    let result = unpack::unpack(reference, out, None, &quick(), &|event| {
        if let Event::Warning { warning, .. } = event {
            warnings.lock().unwrap().push(warning);
        }
    });
    (result.map(drop), warnings.into_inner().unwrap())
}

fn entries_in(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|n| n.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_archive_means_what_the_rules_say() {
    if !root_or_skip("every_archive_means_what_the_rules_say") {
        return;
    }
    let lab = Lab::new();
    let only = std::env::var("UNPLY_CASE").ok();
    let mut wrong = Vec::new();
    for archive in archives() {
        let name = archive.name;
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        if let Means::Entries(entries) = &archive.means
            && !lab.can_hold(std::slice::from_ref(entries))
        {
            continue;
        }
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let reference = image_of(work.path(), &archive.layer);
        let store = work.path().join("store");
        let result = every_way_of(work.path(), &store, &reference, &quick(), &|p| lab.describe(p));
        let (_, warnings) = warnings_of(&reference, &work.path().join("again"));
        match (&archive.means, result) {
            (Means::Entries(entries), Ok(trees)) => {
                let model = Model::of_image(Default::default(), std::slice::from_ref(entries)).unwrap().tree();
                let expected = lab.comparable(model);
                for (way, tree) in trees {
                    let differences = compare(&expected, &lab.comparable(tree));
                    wrong.extend(differences.iter().take(8).map(|d| format!("{name}, {way}: {d}")));
                }
            }
            (Means::Refused(code), Err(e)) => {
                if e.kind().exit_code() != *code {
                    wrong.push(format!("{name}: exit {} instead of {code}: {e}", e.kind().exit_code()));
                }
                let kept = unpack::open_store(&store, false).unwrap();
                assert!(kept.layers().unwrap().is_empty(), "{name}: a refused layer is in the store");
                assert_eq!(kept.check().unwrap(), [], "{name}");
            }
            (Means::Entries(_), Err(e)) => wrong.push(format!("{name}: refused: {e}")),
            (Means::Refused(_), Ok(_)) => wrong.push(format!("{name}: accepted")),
        }
        if !lab.in_user_namespace && matches!(archive.means, Means::Entries(_)) {
            let kinds: BTreeSet<&str> = warnings.iter().map(|w| w.kind).collect();
            if kinds != archive.warns.iter().copied().collect() {
                wrong.push(format!("{name}: warnings {warnings:?} instead of {:?}", archive.warns));
            }
        }
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

// ---- the corpus ----

/// What a file of the corpus must give as a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layer {
    /// A tree of this many names, the root not counted: the names of the archive, cleaned, with the directories they imply.
    Names(usize),
    /// As `Names`, with files too large to read; their sizes are compared, and that they take no space.
    Huge(usize),
    /// The image is refused with this exit code.
    Exit(u8),
}
use Layer::{Exit, Huge, Names};

const CORPUS: &[(&str, Layer)] = &[
    ("cpython/testtar.tar", Exit(5)), // OutOfRange
    ("go-archive-tar/example_test.go", Exit(5)),
    ("go-archive-tar/fuzz_test.go", Exit(5)),
    ("go-archive-tar/reader_test.go", Exit(5)),
    ("go-archive-tar/strconv_test.go", Exit(5)),
    ("go-archive-tar/tar_test.go", Exit(5)),
    ("go-archive-tar/testdata/file-and-dir.tar", Names(2)),
    ("go-archive-tar/testdata/gnu-incremental.tar", Huge(3)),
    ("go-archive-tar/testdata/gnu-long-nul.tar", Names(1)),
    ("go-archive-tar/testdata/gnu-multi-hdrs.tar", Names(3)),
    ("go-archive-tar/testdata/gnu-nil-sparse-data.tar", Names(1)),
    ("go-archive-tar/testdata/gnu-nil-sparse-hole.tar", Names(1)),
    ("go-archive-tar/testdata/gnu-not-utf8.tar", Names(1)),
    ("go-archive-tar/testdata/gnu-sparse-big.tar", Huge(1)),
    ("go-archive-tar/testdata/gnu-utf8.tar", Names(1)),
    ("go-archive-tar/testdata/gnu.tar", Names(2)),
    ("go-archive-tar/testdata/hardlink.tar", Names(2)),
    ("go-archive-tar/testdata/hdr-only.tar", Names(8)),
    ("go-archive-tar/testdata/invalid-go17.tar", Names(2)),
    ("go-archive-tar/testdata/issue10968.tar", Exit(5)), // OutOfRange
    ("go-archive-tar/testdata/issue11169.tar", Exit(5)), // Truncated
    ("go-archive-tar/testdata/issue12435.tar", Exit(5)), // OutOfRange
    ("go-archive-tar/testdata/neg-size.tar", Exit(5)),   // OutOfRange
    ("go-archive-tar/testdata/nil-uid.tar", Names(1)),
    ("go-archive-tar/testdata/pax-bad-hdr-file.tar", Exit(5)), // PaxRecord
    ("go-archive-tar/testdata/pax-bad-hdr-large.tar.bz2", Exit(6)), // bzip2 (Z9)
    ("go-archive-tar/testdata/pax-bad-mtime-file.tar", Exit(5)), // PaxValue
    ("go-archive-tar/testdata/pax-global-records.tar", Names(4)), // the global path is not applied
    ("go-archive-tar/testdata/pax-multi-hdrs.tar", Exit(5)),   // SecondPaxHeader
    ("go-archive-tar/testdata/pax-nil-sparse-data.tar", Names(1)),
    ("go-archive-tar/testdata/pax-nil-sparse-hole.tar", Names(1)),
    ("go-archive-tar/testdata/pax-nul-path.tar", Exit(5)), // PaxNul
    ("go-archive-tar/testdata/pax-nul-xattrs.tar", Exit(5)), // PaxNul
    ("go-archive-tar/testdata/pax-path-hdr.tar", Exit(5)), // Dangling
    ("go-archive-tar/testdata/pax-pos-size-file.tar", Names(1)),
    ("go-archive-tar/testdata/pax-records.tar", Names(1)),
    ("go-archive-tar/testdata/pax-sparse-big.tar", Huge(1)), // 60 GB of holes
    ("go-archive-tar/testdata/pax.tar", Names(3)),
    ("go-archive-tar/testdata/small.txt", Exit(5)),
    ("go-archive-tar/testdata/small2.txt", Exit(5)),
    ("go-archive-tar/testdata/sparse-formats.tar", Names(5)),
    ("go-archive-tar/testdata/star.tar", Names(2)),
    ("go-archive-tar/testdata/trailing-slash.tar", Names(30)),
    ("go-archive-tar/testdata/ustar-file-devs.tar", Names(1)),
    ("go-archive-tar/testdata/ustar-file-reg.tar", Names(1)),
    ("go-archive-tar/testdata/ustar.tar", Names(16)),
    ("go-archive-tar/testdata/v7.tar", Names(2)),
    ("go-archive-tar/testdata/writer-big-long.tar", Exit(5)), // T3
    ("go-archive-tar/testdata/writer-big.tar", Exit(5)),      // T3
    ("go-archive-tar/testdata/writer.tar", Names(3)),
    ("go-archive-tar/testdata/xattrs.tar", Names(2)),
    ("go-archive-tar/writer_test.go", Exit(5)),
    ("libarchive/test_acl_pax_nfs4.tar", Names(1)),
    ("libarchive/test_acl_pax_posix1e.tar", Names(1)),
    ("libarchive/test_compat_gtar_1.tar", Names(2)),
    ("libarchive/test_compat_gtar_2.tar", Names(1)),
    ("libarchive/test_compat_mac-1.tar", Names(15)),
    ("libarchive/test_compat_mac-2.tar", Names(4)),
    ("libarchive/test_compat_perl_archive_tar.tar", Names(1)),
    ("libarchive/test_compat_plexus_archiver_tar.tar", Exit(5)), // ZeroBlock
    ("libarchive/test_compat_solaris_tar_acl.tar", Exit(5)),     // UnsupportedType
    ("libarchive/test_compat_star_acl_nfs4.tar", Names(3)),
    ("libarchive/test_compat_star_acl_posix1e.tar", Names(3)),
    ("libarchive/test_compat_tar_directory_1.tar", Names(2)),
    ("libarchive/test_compat_tar_hardlink_1.tar", Names(4)),
    ("libarchive/test_pax_filename_encoding.tar", Names(1)),
    ("libarchive/test_pax_xattr_header_all.tar", Names(1)),
    ("libarchive/test_pax_xattr_header_libarchive.tar", Names(1)),
    ("libarchive/test_pax_xattr_header_schily.tar", Names(1)),
    ("libarchive/test_read_format_gtar_filename_cp866.tar", Names(2)),
    ("libarchive/test_read_format_gtar_filename_eucjp.tar", Names(2)),
    ("libarchive/test_read_format_gtar_filename_koi8r.tar", Names(2)),
    ("libarchive/test_read_format_gtar_redundant_L.tar", Names(6)),
    ("libarchive/test_read_format_gtar_sparse_1_13.tar", Huge(3)),
    ("libarchive/test_read_format_gtar_sparse_1_17.tar", Huge(3)),
    ("libarchive/test_read_format_gtar_sparse_1_17_posix00.tar", Huge(3)),
    ("libarchive/test_read_format_gtar_sparse_1_17_posix01.tar", Huge(3)),
    ("libarchive/test_read_format_gtar_sparse_1_17_posix10.tar", Huge(3)),
    ("libarchive/test_read_format_gtar_sparse_1_17_posix10_modified.tar", Exit(5)), // SparseMap
    ("libarchive/test_read_format_gtar_sparse_length.tar", Names(4)), // no GNU.sparse.name: the header's own name
    ("libarchive/test_read_format_gtar_sparse_reuse.tar", Names(1)),
    ("libarchive/test_read_format_gtar_sparse_skip_entry.tar", Exit(5)), // SparseMap
    ("libarchive/test_read_format_tar_V_negative_size.tar", Exit(5)),    // OutOfRange
    ("libarchive/test_read_format_tar_acl_oob_read.tar", Exit(5)),       // PaxRecord
    ("libarchive/test_read_format_tar_concatenated.tar", Names(1)),
    ("libarchive/test_read_format_tar_empty_filename.tar", Names(0)),
    ("libarchive/test_read_format_tar_empty_pax.tar", Names(0)),
    ("libarchive/test_read_format_tar_empty_with_gnulabel.tar", Names(0)), // a volume label is no entry (T12)
    ("libarchive/test_read_format_tar_filename_koi8r.tar", Names(2)),
    ("libarchive/test_read_format_tar_invalid_pax_size.tar", Exit(5)), // PaxValue
    ("libarchive/test_read_format_tar_mac_metadata_1.tar", Names(2)),
    ("libarchive/test_read_format_tar_pax_g_large.tar", Exit(5)), // Limit
    ("libarchive/test_read_format_tar_pax_negative_time.tar", Names(1)),
    ("libarchive/test_read_format_tar_pax_sun_holesdata.tar", Names(1)),
    ("libarchive/test_read_format_tar_pax_timestamps.tar", Exit(5)), // PaxValue
    ("libarchive/test_read_format_tar_timestamp_overflow.tar", Exit(5)), // NotANumber
    ("libarchive/test_read_format_ustar_filename_cp866.tar", Names(2)),
    ("libarchive/test_read_format_ustar_filename_eucjp.tar", Names(2)),
    ("libarchive/test_read_format_ustar_filename_koi8r.tar", Names(2)),
    ("libarchive/test_read_pax_empty_val_no_nl.tar", Exit(5)), // PaxRecord
    ("libarchive/test_read_pax_xattr_rht_security_selinux.tar", Names(1)),
    ("libarchive/test_read_pax_xattr_schily.tar", Names(1)),
    ("tar-rs/7z_long_path.tar", Names(2)),
    ("tar-rs/all.rs", Exit(5)),
    ("tar-rs/biguid_gnu.tar", Names(1)),
    ("tar-rs/biguid_pax.tar", Names(1)),
    ("tar-rs/directory.tar", Names(3)),
    ("tar-rs/duplicate_dirs.tar", Names(1)),
    ("tar-rs/empty_filename.tar", Names(0)),
    ("tar-rs/file_times.tar", Names(1)),
    ("tar-rs/link.tar", Names(2)),
    ("tar-rs/pax.tar", Names(3)),
    ("tar-rs/pax2.tar", Names(16)),
    ("tar-rs/pax_size.tar", Names(1)),
    ("tar-rs/reading_files.tar", Names(2)),
    ("tar-rs/simple.tar", Names(3)),
    ("tar-rs/simple_missing_last_header.tar", Names(3)),
    ("tar-rs/spaces.tar", Names(1)),
    ("tar-rs/sparse-1.tar", Names(1)),
    ("tar-rs/sparse-large.tar", Huge(1)),
    ("tar-rs/sparse.tar", Names(4)),
    ("tar-rs/xattrs.tar", Names(2)),
    ("tokio-tar/7z_long_path.tar", Names(2)),
    ("tokio-tar/all.rs", Exit(5)),
    ("tokio-tar/diff-014-unterminated-pax.tar", Exit(5)), // PaxRecord
    ("tokio-tar/diff-024-pending-pax-boundary.tar", Exit(5)), // Dangling
    ("tokio-tar/diff-039-truncated-entry-body.tar", Exit(5)), // T3
    ("tokio-tar/directory.tar", Names(3)),
    ("tokio-tar/duplicate_dirs.tar", Names(1)),
    ("tokio-tar/empty_filename.tar", Names(0)),
    ("tokio-tar/file_times.tar", Names(1)),
    ("tokio-tar/link.tar", Names(2)),
    ("tokio-tar/pax-header-precedence.tar", Names(3)),
    ("tokio-tar/pax-hidden-entry.tar", Names(3)),
    ("tokio-tar/pax-overrides-extension-header.tar", Names(2)),
    ("tokio-tar/pax-phantom-entry.tar", Names(2)),
    ("tokio-tar/pax.tar", Names(3)),
    ("tokio-tar/pax2.tar", Names(12)),
    ("tokio-tar/paxlongname.tar", Names(1)),
    ("tokio-tar/reading_files.tar", Names(2)),
    ("tokio-tar/simple.tar", Names(3)),
    ("tokio-tar/simple_missing_last_header.tar", Names(3)),
    ("tokio-tar/spaces.tar", Names(1)),
    ("tokio-tar/sparse-1.tar", Names(1)),
    ("tokio-tar/sparse-large.tar", Huge(1)),
    ("tokio-tar/sparse.tar", Names(4)),
    ("tokio-tar/xattrs.tar", Names(2)),
    ("zstd-golden/block-128k.zst", Names(0)), // zeros
    ("zstd-golden/empty-block.zst", Names(0)),
    ("zstd-golden/rle-first-block.zst", Names(0)), // a MiB of zeros
    ("zstd-golden/zeroSeq_2B.zst", Exit(5)),
];

/// What an archive holds, and names and sizes of the files in it that were left empty.
type Read = (Vec<EntrySpec>, Vec<(Vec<u8>, u64)>);

/// Reads an archive with the product's parser into what the model takes; `None` where the parser refuses. Files over
/// `most` bytes are left empty and listed.
fn entries_of(archive: &[u8], most: u64) -> Option<Read> {
    let mut parser = Parser::new(&Limits::default());
    let (mut entries, mut huge) = (Vec::new(), Vec::new());
    let mut rest = archive;
    loop {
        let Some((block, after)) = rest.split_at_checked(512) else {
            return (rest.is_empty() && parser.finish().is_ok()).then_some((entries, huge));
        };
        rest = after;
        match parser.block(block.try_into().unwrap()).ok()? {
            Step::More => {}
            Step::Skip(bytes) => rest = rest.get(bytes as usize..)?,
            Step::End => return Some((entries, huge)),
            Step::Entry(entry) => {
                let data = rest.get(..entry.stored as usize)?;
                rest = &rest[data.len().next_multiple_of(512).min(rest.len())..];
                let kind = match entry.kind {
                    EntryKind::File { size, .. } if size > most => {
                        huge.push((entry.path.clone(), size));
                        testkit::EntryKind::File(Vec::new())
                    }
                    EntryKind::File { sparse: None, .. } => testkit::EntryKind::File(data.to_vec()),
                    EntryKind::File { size, sparse: Some(regions) } => {
                        let (mut content, mut at) = (vec![0; size as usize], 0);
                        for region in regions {
                            let (offset, length) = (region.offset as usize, region.length as usize);
                            content[offset..offset + length].copy_from_slice(&data[at..at + length]);
                            at += length;
                        }
                        testkit::EntryKind::File(content)
                    }
                    EntryKind::HardLink { target } => testkit::EntryKind::HardLink(target),
                    EntryKind::Symlink { target } => testkit::EntryKind::Symlink(target),
                    EntryKind::CharDevice { major, minor } => testkit::EntryKind::Char(major, minor),
                    EntryKind::BlockDevice { major, minor } => testkit::EntryKind::Block(major, minor),
                    EntryKind::Directory => testkit::EntryKind::Dir,
                    EntryKind::Fifo => testkit::EntryKind::Fifo,
                };
                let mut spec = EntrySpec::new(&entry.path, kind)
                    .mode(entry.mode)
                    .owner(entry.uid.into(), entry.gid.into())
                    .mtime_nanos(entry.mtime.seconds, entry.mtime.nanos);
                spec.xattrs = entry.xattrs;
                entries.push(spec);
            }
        }
    }
}

fn files_below(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, out) } else { out.push(path) }
    }
}

#[test]
fn corpus_every_file_of_tars_gives_what_the_rules_ask_for_as_a_layer() {
    if !root_or_skip("corpus_every_file_of_tars_gives_what_the_rules_ask_for_as_a_layer") {
        return;
    }
    let lab = Lab::new();
    let root = corpus().join("tars");
    let mut present = Vec::new();
    files_below(&root, &mut present);
    let present: BTreeSet<String> =
        present.iter().map(|p| p.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect();
    let listed: BTreeSet<String> = CORPUS.iter().map(|(p, _)| (*p).to_owned()).collect();
    assert_eq!(listed.len(), CORPUS.len(), "no file twice");
    let mut wrong: Vec<String> =
        present.symmetric_difference(&listed).map(|p| format!("{p}: only in one place")).collect();
    for name in &present {
        let want = CORPUS.iter().find(|(path, _)| path == name).map(|(_, want)| *want);
        let (found, more) = corpus_file(&lab, &root.join(name));
        wrong.extend(more.into_iter().map(|line| format!("{name}: {line}")));
        if want != Some(found) {
            wrong.push(format!("(\"{name}\", {found:?}), // instead of {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

/// Unpacks one file as a layer every way; what came out, and how it differs from the model.
fn corpus_file(lab: &Lab, path: &Path) -> (Layer, Vec<String>) {
    const MOST: u64 = 64 << 20;
    let bytes = std::fs::read(path).unwrap();
    let work = tempfile::tempdir_in(lab.path()).unwrap();
    let reference: Reference = format!("layer:{}", path.display()).parse().unwrap();
    let tar = match bytes.get(..4) {
        Some([0x28, 0xb5, 0x2f, 0xfd]) => zstd::decode_all(&bytes[..]).unwrap(),
        _ => bytes,
    };
    let read = entries_of(&tar, MOST);
    let store = work.path().join("store");
    let describe = |p: &Path| lab.describe(p);
    let mut wrong = Vec::new();
    if let Some((entries, huge)) = &read
        && !huge.is_empty()
    {
        // Hashing terabytes of zeros tells nothing.
        let flat = work.path().join("flat");
        unpack::unpack(&reference, &flat, None, &quick(), &|_| {}).unwrap();
        for (name, size) in huge {
            use std::os::unix::fs::MetadataExt as _;
            let meta = std::fs::metadata(flat.join(std::str::from_utf8(name).unwrap())).unwrap();
            if meta.len() != *size || meta.blocks() * 512 > 1 << 20 {
                wrong.push(format!("{} bytes, {} on disk, not {size}", meta.len(), meta.blocks() * 512));
            }
        }
        return (Huge(entries.len()), wrong);
    }
    let model = read.as_ref().map(|(entries, _)| Model::of_image(Default::default(), std::slice::from_ref(entries)));
    match (every_way_of(work.path(), &store, &reference, &quick(), &describe), model) {
        (Ok(trees), Some(Ok(model))) => {
            let model = model.tree();
            for (way, tree) in &trees {
                wrong.extend(compare(&model, tree).iter().take(4).map(|d| format!("{way}: {d}")));
            }
            (Names(trees[0].1.0.len() - 1), wrong)
        }
        (Ok(_), Some(Err(refusal))) => (Names(0), vec![format!("accepted, the model says {refusal}")]),
        (Ok(_), None) => (Names(0), vec!["accepted, the parser refuses it".into()]),
        (Err(e), model) => {
            if let Some(Ok(_)) = model {
                wrong.push(format!("refused, the model accepts: {e}"));
            }
            (Exit(e.kind().exit_code()), wrong)
        }
    }
}

// ---- what the table cannot say ----

/// M10: the archive's atime, else its mtime; the change time is the kernel's.
#[test]
fn m10_atime_is_the_archives_or_the_mtime() {
    use std::os::unix::fs::MetadataExt as _;
    if !root_or_skip("m10_atime_is_the_archives_or_the_mtime") {
        return;
    }
    let lab = Lab::new();
    let tar = testkit::tar::TarBuilder::new()
        .pax(&[("mtime", "100.25"), ("atime", "200.5"), ("ctime", "300"), ("LIBARCHIVE.creationtime", "50")])
        .entry(&file("both", "x"))
        .pax(&[("mtime", "100.25")])
        .entry(&file("one", "x"))
        .pax(&[("atime", "50")])
        .entry(&dir("d/").mtime(70))
        .entry(&testkit::symlink("l", "one").mtime(80))
        .finish();
    let reference = image_of(lab.path(), &LayerSpec::new(tar));
    let out = lab.path().join("out");
    unpack::unpack(&reference, &out, None, &quick(), &|_| {}).unwrap();
    let times = |name: &str| {
        let meta = out.join(name).symlink_metadata().unwrap();
        ((meta.mtime(), meta.mtime_nsec()), (meta.atime(), meta.atime_nsec()))
    };
    assert_eq!(times("both"), ((100, 250_000_000), (200, 500_000_000)));
    assert_eq!(times("one"), ((100, 250_000_000), (100, 250_000_000)));
    assert_eq!(times("d"), ((70, 0), (50, 0)));
    assert_eq!(times("l"), ((80, 0), (80, 0)));
    let made = out.join("both").metadata().unwrap().ctime();
    assert!(made > 1_000_000_000, "the time of change cannot be set");
}

/// M17: a user namespace may not set most of `security.*`; that costs a warning, not the image.
#[test]
fn m17_security_xattrs_that_may_not_be_set_are_a_warning_without_root() {
    if !root_or_skip("m17_security_xattrs_that_may_not_be_set_are_a_warning_without_root") {
        return;
    }
    let lab = Lab::new();
    let entry = |name: &str| file(name, "x").xattr("security.ima", [3, 1]).xattr("user.k", "v");
    let reference = image_of(lab.path(), &LayerSpec::new(layer(&[entry("a"), entry("b"), entry("c")])));
    let out = lab.path().join("out");
    let (result, warnings) = warnings_of(&reference, &out);
    result.unwrap();
    let tree = lab.describe(&out);
    let refused: Vec<_> = warnings.iter().filter(|w| w.kind == "xattr-unsupported").collect();
    for name in ["a", "b", "c"] {
        let xattrs = &tree.get(name.as_bytes()).unwrap().xattrs;
        assert_eq!(xattrs.contains_key(&b"security.ima"[..]), !lab.in_user_namespace, "{name}");
        assert!(xattrs.contains_key(&b"user.k"[..]), "{name}");
    }
    // M19: the first is named, the rest are counted.
    assert_eq!(refused.len(), if lab.in_user_namespace { 2 } else { 0 }, "{refused:?}");
    if let [first, rest] = &refused[..] {
        assert!(first.path == b"a" && rest.detail.starts_with("2 more xattrs security.*"), "{refused:?}");
    }
}

#[test]
fn m19_xattrs_of_a_namespace_that_is_not_there_are_told_once() {
    if !root_or_skip("m19_xattrs_of_a_namespace_that_is_not_there_are_told_once") {
        return;
    }
    let lab = Lab::new();
    let mut entries: Vec<_> = (0..40).map(|n| file(format!("f{n:02}"), "x").xattr("nowhere.k", "v")).collect();
    // As many namespaces as one likes.
    entries.extend((0..40).map(|n| file(format!("g{n:02}"), "x").xattr(format!("n{n}.k"), "v").xattr("user.k", "v")));
    let reference = image_of(lab.path(), &LayerSpec::new(layer(&entries)));
    let out = lab.path().join("out");
    let (result, warnings) = warnings_of(&reference, &out);
    result.unwrap();
    let refused: Vec<_> = warnings.iter().filter(|w| w.kind == "xattr-unsupported").collect();
    assert!(refused.len() <= 16, "{refused:?}");
    assert!(refused[0].path == b"f00" && refused[0].detail.contains("nowhere.k"), "{refused:?}");
    assert!(refused.iter().any(|w| w.detail.starts_with("39 more xattrs nowhere.*")), "{refused:?}");
    let tree = lab.describe(&out);
    assert_eq!(tree.0.values().filter(|node| node.xattrs.contains_key(&b"user.k"[..])).count(), 40);
}

/// A file system in a file, mounted here.
fn file_system(lab: &Lab, name: &str, mebibytes: u64, options: &[&str]) -> PathBuf {
    use std::process::Command;
    let image = lab.path().join(format!("{name}.img"));
    std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).args(options).arg(&image).status().unwrap();
    assert!(made.success(), "mkfs.ext4 {options:?}");
    let place = lab.path().join(name);
    std::fs::create_dir(&place).unwrap();
    let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place).status().unwrap();
    assert!(mounted.success(), "mount -o loop");
    place
}

/// Whether file systems can be mounted from a file: by root of the machine only.
fn loop_or_skip(test: &str, lab: &Lab) -> bool {
    if lab.in_user_namespace || !Path::new("/dev/loop-control").exists() {
        println!("SKIP: {test}: needs loop devices");
        assert!(
            lab.in_user_namespace || std::env::var_os("CI").is_none_or(|v| v != "true"),
            "{test} must not be skipped in CI"
        );
        return false;
    }
    true
}

fn unmount(place: &Path) {
    rustix::mount::unmount(place, rustix::mount::UnmountFlags::empty()).unwrap();
}

#[test]
fn m19_a_file_system_without_xattrs_is_refused_by_name() {
    if !root_or_skip("m19_a_file_system_without_xattrs_is_refused_by_name") {
        return;
    }
    let lab = Lab::new();
    if lab.in_user_namespace {
        return; // ramfs is the machine's root's to mount
    }
    let place = lab.path().join("ramfs");
    std::fs::create_dir(&place).unwrap();
    rustix::mount::mount("none", &place, "ramfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let reference = image_of(lab.path(), &LayerSpec::new(layer(&[file("a", "1")])));
    let e = unpack::unpack(&reference, &place.join("out"), None, &quick(), &|_| {}).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
    assert!(e.to_string().contains("xattrs") && e.hint().is_some(), "{e}");
    let e = unpack::open_store(&place.join("store"), false).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
    assert_eq!(entries_in(&place), ["store"], "an empty directory at most");
    unmount(&place);
}

#[test]
fn m21_an_xattr_too_large_for_the_file_system_is_told_as_such() {
    let name = "m21_an_xattr_too_large_for_the_file_system_is_told_as_such";
    if !root_or_skip(name) {
        return;
    }
    let lab = Lab::new();
    if !loop_or_skip(name, &lab) {
        return;
    }
    let place = file_system(&lab, "ext4", 16, &["-O", "^has_journal,^ea_inode"]);
    let with = |length: usize| {
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let entries = [file("a", "1").xattr("user.k", vec![7; length])];
        let reference = image_of(work.path(), &LayerSpec::new(layer(&entries)));
        unpack::unpack(&reference, &place.join("out"), None, &quick(), &|_| {})
    };
    let e = with(60_000).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "the disk is not full: {e}");
    assert!(e.to_string().contains("user.k") && e.to_string().contains("60000 bytes"), "{e}");
    assert!(e.to_string().contains("entry \"a\""), "{e}");
    assert_eq!(entries_in(&place), ["lost+found"]);
    let e = with(70 << 10).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Malformed, "no file system of Linux holds it: {e}");
    with(500).unwrap();
    unmount(&place);
}

/// ext4 ends in 2446, and with small inodes in 2038.
#[test]
fn m09_times_that_the_file_system_does_not_hold_are_saturated_with_a_warning() {
    use std::os::unix::fs::MetadataExt as _;
    let name = "m09_times_that_the_file_system_does_not_hold_are_saturated_with_a_warning";
    if !root_or_skip(name) {
        return;
    }
    let lab = Lab::new();
    if !loop_or_skip(name, &lab) {
        return;
    }
    let far = 1 << 40;
    let entries = [
        file("far", "").mtime(far),
        dir("d/").mtime(far),
        testkit::symlink("l", "x").mtime(-far),
        file("near", "").mtime(5_000_000_000),
        file("old", "").mtime(-5),
    ];
    let reference = image_of(lab.path(), &LayerSpec::new(layer(&entries)));
    let place = file_system(&lab, "ext4", 16, &["-O", "^has_journal"]);
    let (result, warnings) = warnings_of(&reference, &place.join("out"));
    result.unwrap();
    let told: BTreeSet<&[u8]> =
        warnings.iter().filter(|w| w.kind == "mtime-saturated").map(|w| w.path.trim_ascii_end()).collect();
    let mtime = |n: &str| place.join("out").join(n).symlink_metadata().unwrap().mtime();
    assert_eq!(
        ["far", "d", "l", "near", "old"].map(mtime),
        [15_032_385_535, 15_032_385_535, -2_147_483_648, 5_000_000_000, -5]
    );
    assert_eq!(told, BTreeSet::from([&b"far"[..], b"d", b"l"]), "{warnings:?}");
    unmount(&place);
}

#[test]
fn n14_a_file_system_whose_listings_give_no_types_is_refused() {
    let name = "n14_a_file_system_whose_listings_give_no_types_is_refused";
    if !root_or_skip(name) {
        return;
    }
    let lab = Lab::new();
    if !loop_or_skip(name, &lab) {
        return;
    }
    let reference = image_of(lab.path(), &LayerSpec::new(layer(&[file("a", "1")])));
    for (feature, fits) in [("^filetype", false), ("filetype", true)] {
        let place = file_system(&lab, if fits { "types" } else { "no-types" }, 16, &["-O", feature]);
        assert_eq!(unply::sys::probe_store(&place).unwrap().d_type, fits);
        let store = unpack::open_store(&place.join("store"), false).map(drop);
        let flat = unpack::unpack(&reference, &place.join("out"), None, &quick(), &|_| {}).map(drop);
        for result in [store, flat] {
            match result {
                Ok(()) => assert!(fits),
                Err(e) => {
                    assert!(!fits && e.kind() == ErrorKind::Unsupported, "{e}");
                    assert!(e.to_string().contains("types") && e.hint().unwrap().contains("filetype"), "{e}");
                }
            }
        }
        assert_eq!(place.join("out").exists(), fits);
        unmount(&place);
    }
}

/// M22: neither `SCHILY.fflags` nor anything else makes a file that root cannot remove.
#[test]
fn m22_no_flag_of_the_archive_reaches_the_file() {
    if !root_or_skip("m22_no_flag_of_the_archive_reaches_the_file") {
        return;
    }
    let lab = Lab::new();
    let tar = testkit::tar::TarBuilder::new()
        .pax(&[("SCHILY.fflags", "immutable,append,nodump")])
        .entry(&file("a", "x"))
        .pax(&[("SCHILY.fflags", "immutable")])
        .entry(&dir("d/"))
        .finish();
    let reference = image_of(lab.path(), &LayerSpec::new(tar));
    let out = lab.path().join("out");
    unpack::unpack(&reference, &out, None, &quick(), &|_| {}).unwrap();
    for name in ["a", "d"] {
        let flags = rustix::fs::ioctl_getflags(std::fs::File::open(out.join(name)).unwrap());
        assert!(flags.is_err() || flags == Ok(rustix::fs::IFlags::empty()), "{name}: {flags:?}");
    }
    std::fs::remove_dir_all(&out).unwrap();
}

/// Z12, Z17: both digests of a layer are known only at its end, and both must match before anything is published.
#[test]
fn z12_z17_a_digest_that_does_not_match_leaves_nothing() {
    if !root_or_skip("z12_z17_a_digest_that_does_not_match_leaves_nothing") {
        return;
    }
    let lab = Lab::new();
    let tars = || [layer(&[file("a", vec![5; 300_000])]), layer(&[file("b", "2")])];
    let breakages = [
        Breakage::WrongDiffId(0),
        Breakage::WrongDiffId(1),
        Breakage::FlippedBit(0),
        Breakage::FlippedBit(1),
        Breakage::ShortBlob(0),
        Breakage::WrongSize(1),
    ];
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for breakage in breakages {
            let work = tempfile::tempdir_in(lab.path()).unwrap();
            let image = ImageSpec::new(tars()).tag("t").compression(compression).broken(breakage);
            OciLayout::new(work.path().join("image")).unwrap().add(&image).unwrap();
            let reference: Reference = format!("oci:{}:t", work.path().join("image").display()).parse().unwrap();
            let what = format!("{compression:?} {breakage:?}");
            let e = unpack::unpack(&reference, &work.path().join("out"), None, &quick(), &|_| {}).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Integrity, "{what}: {e}");
            assert_eq!(entries_in(work.path()), ["image"], "{what}");
            let store = unpack::open_store(&work.path().join("store"), false).unwrap();
            let e = unpack::pull(&reference, &store, &quick(), &|_| {}).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Integrity, "{what}: {e}");
            let bad = match breakage {
                Breakage::WrongDiffId(n)
                | Breakage::FlippedBit(n)
                | Breakage::ShortBlob(n)
                | Breakage::WrongSize(n) => n,
                _ => unreachable!(),
            };
            // the other layer may stay.
            let right = image.diff_ids();
            for kept in store.layers().unwrap() {
                assert_ne!(kept.diff_id().to_string(), format!("sha256:{}", right[bad]), "{what}");
            }
            assert!(store.layers().unwrap().len() <= 1 && store.images().unwrap().is_empty(), "{what}");
            assert_eq!(store.check().unwrap(), [], "{what}");
        }
    }
}

/// B9: nothing is set aside for a size that the archive only states.
#[test]
fn b09_a_stated_size_takes_no_space() {
    use testkit::tar::{Header, TarBuilder, field};
    let name = "b09_a_stated_size_takes_no_space";
    if !root_or_skip(name) {
        return;
    }
    let lab = Lab::new();
    if !loop_or_skip(name, &lab) {
        return;
    }
    let place = file_system(&lab, "ext4", 16, &["-O", "^has_journal"]);
    let stated = |size: u64| {
        let header = Header::new(b'0', "a").base256(field::SIZE, size.into());
        TarBuilder::new().header(&header).raw([7; 1024]).unfinished()
    };
    for size in [1 << 30, 1 << 45, i64::MAX as u64] {
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let reference = image_of(work.path(), &LayerSpec::new(stated(size)));
        let e = unpack::unpack(&reference, &place.join("out"), None, &quick(), &|_| {}).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Malformed, "{size}: {e}");
        assert_eq!(entries_in(&place), ["lost+found"]);
    }
    // A hole is free, up to what the file system can address.
    let hole = |size: u64| {
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let size = size.to_string();
        let tar = TarBuilder::new()
            .pax(&[("GNU.sparse.size", size.as_str()), ("GNU.sparse.map", &format!("{size},0"))])
            .entry(&file("a", ""))
            .finish();
        let reference = image_of(work.path(), &LayerSpec::new(tar));
        unpack::unpack(&reference, &place.join("out"), None, &quick(), &|_| {})
    };
    let e = hole(i64::MAX as u64).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
    assert_eq!(entries_in(&place), ["lost+found"]);
    hole(1 << 40).unwrap();
    assert_eq!(std::fs::metadata(place.join("out/a")).unwrap().len(), 1 << 40);
    unmount(&place);
}

#[test]
fn the_same_inside_a_user_namespace() {
    in_user_namespace(&[
        "every_archive_means_what_the_rules_say",
        "m17_security_xattrs_that_may_not_be_set_are_a_warning_without_root",
        "m19_xattrs_of_a_namespace_that_is_not_there_are_told_once",
        "m22_no_flag_of_the_archive_reaches_the_file",
        "m10_atime_is_the_archives_or_the_mtime",
    ]);
}
