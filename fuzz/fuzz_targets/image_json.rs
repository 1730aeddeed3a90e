//! Arbitrary documents in an OCI layout and in a docker archive: an image or a typed error, never a panic.
//!
//! The input is up to four documents with a byte 0xff between them: index, manifest, config, Docker's manifest.json. In
//! them `@M`, `@C` and `@L` stand for the digests of the manifest, the config and a layer that is there, `@m`, `@c` and
//! `@l` for their sizes, so that documents stay connected when they change.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use unply::error::ErrorKind;
use unply::image::{self, OpenOptions, Reference, Source};
use unply_fuzz::replace;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = unply_fuzz::scratch();
    std::fs::create_dir_all(dir.join("layout/blobs/sha256")).unwrap();
    std::fs::write(dir.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    dir
});

static LAYER: LazyLock<Vec<u8>> = LazyLock::new(|| testkit::layer(&[testkit::file("f", "x")]));

fn look(reference: &str) {
    let reference: Reference = reference.parse().unwrap();
    match image::open(&reference, &OpenOptions::default()) {
        Ok(Source::Image(image)) => {
            for index in 0..image.layers.len().min(20) {
                if let Ok(mut blob) = image.open_layer(index) {
                    std::io::copy(&mut blob, &mut std::io::sink()).unwrap();
                }
            }
            if let Some(id) = image.image_id {
                assert_eq!(id.to_string(), format!("sha256:{}", testkit::sha256_hex(&image.config_raw)));
            }
        }
        Ok(Source::Stream(_)) => panic!("a plain file or directory is no stream"),
        Err(e) => {
            assert_ne!(e.kind(), ErrorKind::Other, "{e}");
            assert!(!e.to_string().contains('\n') && !e.to_string().contains('\u{1b}'), "unprintable: {e:?}");
        }
    }
}

fn put(dir: &Path, bytes: &[u8]) -> String {
    let hex = testkit::sha256_hex(bytes);
    std::fs::write(dir.join("layout/blobs/sha256").join(&hex), bytes).unwrap();
    hex
}

fn fill(text: &[u8], letter: u8, hex: &str, size: usize) -> Vec<u8> {
    let text = replace(text, &[b'@', letter], format!("sha256:{hex}").as_bytes());
    replace(&text, &[b'@', letter.to_ascii_lowercase()], size.to_string().as_bytes())
}

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(4, |b| *b == 0xff);
    let mut next = || parts.next().unwrap_or_default();
    let (index, manifest, config, docker) = (next(), next(), next(), next());
    let dir = &*DIR;
    let layer = put(dir, &LAYER);
    let config = fill(config, b'L', &layer, LAYER.len());
    let config_hex = put(dir, &config);
    let filled = |text: &[u8]| fill(&fill(text, b'L', &layer, LAYER.len()), b'C', &config_hex, config.len());
    let manifest = filled(manifest);
    let manifest_hex = put(dir, &manifest);
    std::fs::write(dir.join("layout/index.json"), fill(&filled(index), b'M', &manifest_hex, manifest.len())).unwrap();
    look(&format!("oci:{}", dir.join("layout").display()));

    let file = |name: String, bytes: &[u8]| testkit::file(name, bytes);
    let archive = testkit::layer(&[
        file("manifest.json".into(), &filled(docker)),
        file(format!("{config_hex}.json"), &config),
        file("layer.tar".into(), &LAYER),
        testkit::symlink("link.tar", "layer.tar"),
    ]);
    std::fs::write(dir.join("archive.tar"), archive).unwrap();
    look(&format!("docker-archive:{}", dir.join("archive.tar").display()));
    for hex in [manifest_hex, config_hex] {
        let _ = std::fs::remove_file(dir.join("layout/blobs/sha256").join(hex)); // may be one file
    }
});
