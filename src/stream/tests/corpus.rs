//! Real blobs against independent decoders and known digests.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn corpus() -> PathBuf {
    let root = std::env::var_os("UNPLY_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"), PathBuf::from);
    assert!(root.is_dir(), "the corpus of real images is not at {}; set UNPLY_CORPUS", root.display());
    root
}

fn read(path: &str) -> Vec<u8> {
    fs::read(corpus().join(path)).unwrap()
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else if path.is_file() {
            out.push(path);
        }
    }
}

/// What the decoders of the codec crates make of a blob.
fn independent(blob: &[u8]) -> Option<(Codec, Vec<u8>)> {
    let mut out = Vec::new();
    match blob {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut out).ok()?;
            Some((Codec::Gzip, out))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some((Codec::Zstd, zstd::stream::decode_all(blob).ok()?)),
        _ => None,
    }
}

/// Compares inline, pipelined and independent decoding; returns 1 if it was compressed.
fn compare(blob: &[u8], what: &dyn std::fmt::Debug) -> usize {
    let Some((codec, data)) = independent(blob) else { return 0 };
    for threads in [Threads::Inline, Threads::Pipelined] {
        let buffers = Buffers { chunk_bytes: 40_000, ..Buffers::default() };
        let expected = promise(blob, &data);
        let run = outcome(open(blob, 65_536, StreamOptions { threads, buffers, expected, ..Default::default() }));
        let report = run.result.unwrap_or_else(|err| panic!("{what:?}: {err:?}"));
        assert_eq!((report.codec, report.uncompressed_bytes), (codec, data.len() as u64), "{what:?}");
        assert!(run.bytes == data, "{what:?}");
    }
    1
}

#[test]
fn every_compressed_blob_of_the_corpus_decodes_as_elsewhere() {
    let mut paths = Vec::new();
    files(&corpus().join("images"), &mut paths);
    let mut compared = 0;
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        compared += compare(&bytes, &path);
        // Image archives hold their layers as members.
        if path.extension().is_some_and(|e| e == "tar") {
            let mut archive = tar::Archive::new(&bytes[..]);
            for entry in archive.entries().unwrap() {
                let Ok(mut entry) = entry else { break };
                let mut member = Vec::new();
                if entry.read_to_end(&mut member).is_ok() {
                    compared += compare(&member, &(&path, entry.path().unwrap()));
                }
            }
        }
    }
    assert!(compared > 60, "{compared}");
}

/// Digests made with `sha256sum` and `gzip -dc | sha256sum`.
#[test]
fn z01_z15_known_digests_of_multi_member_files() {
    for (path, digest, diff_id, len) in KNOWN {
        let blob = read(path);
        let expected = Expected {
            digest: Some(format!("sha256:{digest}").parse().unwrap()),
            size: Some(blob.len() as u64),
            diff_id: Some(format!("sha256:{diff_id}").parse().unwrap()),
        };
        let report = outcome(open(&blob, 4000, StreamOptions { expected, ..Default::default() })).result.unwrap();
        assert_eq!(report.uncompressed_bytes, *len, "{path}");
    }
}

const KNOWN: &[(&str, &str, &str, u64)] = &[
    (
        "images/nydus-tar/bgzip.tar.gz",
        "a80d0381360a230d28150ba76f109485360dde4dac8d5a9b0d39169d7e82df96",
        "dc3ca83b75c6987994b94b473765adac44db056bae676e0ffcb36a40113d9f4e",
        5153792,
    ),
    (
        "images/nydus-tar/zran-two-streams.tar.gz",
        "5f7e0bcb80041a7f4db24cb2e1c3789f7544db3d296d261354d46f6070ff27d0",
        "178d8c2e8a18b633ac67c56a2e44237d078ce0b8b8e04a463a8a3fb32d23e7c0",
        40960,
    ),
    (
        "images/nydus-tar/zran-zero-file.tar.gz",
        "78b60606d369a678ea5ce93dfeb4eb120da1f68a5ad694de0e8b1664671f88fe",
        "e9f867b7460aeb23d937481dd72c4363a275733cde645a8bbc747a7ed15b5073",
        266240,
    ),
    (
        "images/alpine-minirootfs-v3.20-x86_64/alpine-minirootfs-3.20.3-x86_64.tar.gz",
        "d4e6fd67dcf75e40c451560ac7265166c2b72a0f38ddc9aae756a7de3d1efa0c",
        "1bccf10afce5c1ffe31381419930ad565c1436eaeb1ca680494b0663e0028419",
        8089600,
    ),
];

/// zstd's own golden files hold valid frames; zstd 1.5.4 and older refuse the last one.
#[test]
fn z10_golden_frames_decode() {
    let golden = |name: &str| read(&format!("tars/zstd-golden/{name}.zst"));
    for (name, len) in [("block-128k", 131_068), ("empty-block", 0), ("rle-first-block", 1 << 20), ("zeroSeq_2B", 13)] {
        let blob = golden(name);
        let data = zstd::stream::decode_all(&blob[..]).unwrap();
        assert_eq!(data.len(), len, "{name}");
        compare(&blob, &name);
        if data.len() < 1 << 17 {
            assert_decodes(&blob, &data, Codec::Zstd);
        }
    }
}
/// Some blobs of this image are not what their names say, on purpose.
#[test]
fn z13_the_corrupted_image_is_refused_for_its_integrity() {
    let dir = corpus().join("images/grootfs-corrupted/blobs/sha256");
    let mut refused = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let blob = fs::read(&path).unwrap();
        let expected = Expected { digest: Some(format!("sha256:{name}").parse().unwrap()), ..Default::default() };
        let honest = sha256(&blob).hex() == name;
        let out = verified(&blob, expected);
        assert_eq!(out.result.is_ok(), honest, "{name}");
        if !honest {
            assert_eq!(out.kind(), ErrorKind::Integrity);
            refused += 1;
        }
    }
    assert!(refused >= 2, "{refused}");
}

fn verified(blob: &[u8], expected: Expected) -> Outcome {
    let run = |threads| {
        outcome(open(blob, 65_536, StreamOptions { threads, expected: expected.clone(), ..Default::default() }))
    };
    let inline = run(Threads::Inline);
    assert_eq!(inline, run(Threads::Pipelined));
    inline
}
