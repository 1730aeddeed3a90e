//! One layer as a one-layer image.
//!
//! Owns: the synthesised config. Refuses to know: what the layer contains.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex};

use super::outer::{Magic, check_packing, magic_at};
use super::platform::Platform;
use super::{Image, LayerBlobs, LayerDescriptor, OpenOptions, Place};
use crate::digest::DiffId;
use crate::error::Error;

/// Writes the config of an image that consists of one bare layer, the same bytes for the same layer and platform for
/// all time, so that the image id is stable:
///
/// ```text
/// {"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:…"]}}
/// ```
///
/// A platform with a variant has `,"variant":"v7"` behind the operating system. There are no dates, no spaces and no
/// final newline.
pub fn synthesise_config(diff_id: DiffId, platform: &Platform) -> Vec<u8> {
    // JSON strings of plain words; a `Value` writes itself without any way to fail.
    let text = |s: &str| serde_json::Value::from(s).to_string();
    let variant = platform.variant.as_deref().map(|v| format!(",\"variant\":{}", text(v))).unwrap_or_default();
    format!(
        "{{\"architecture\":{},\"os\":{}{variant},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{diff_id}\"]}}}}",
        text(&platform.architecture),
        text(&platform.os),
    )
    .into_bytes()
}

/// Makes an image of a file that holds one layer.
pub(crate) fn from_file(file: Arc<File>, size: u64, options: &OpenOptions) -> Result<Image, Error> {
    let magic = magic_at(&file)?;
    check_packing(magic)?;
    Ok(image(LayerBlobs::at(Place::File(file)), Some(size), magic, options))
}

/// Makes an image of a stream that holds one layer; it can be opened once.
pub(crate) fn from_stream(reader: Box<dyn Read + Send>, options: &OpenOptions) -> Image {
    image(LayerBlobs::at(Place::Once(Mutex::new(Some(reader)))), None, Magic::Other, options)
}

fn image(blobs: LayerBlobs, size: Option<u64>, magic: Magic, options: &OpenOptions) -> Image {
    Image {
        reference: String::new(),
        names: Vec::new(),
        manifest_digest: None,
        image_id: None,
        platform: options.platform.clone().unwrap_or_else(Platform::host),
        layers: vec![LayerDescriptor {
            digest: None,
            size,
            media_type: match magic {
                Magic::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
                Magic::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
                _ => "application/vnd.oci.image.layer.v1.tar",
            }
            .to_owned(),
            diff_id: None,
        }],
        config_raw: Vec::new(),
        manifest_raw: None,
        blobs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Digest};

    #[test]
    fn the_synthesised_config_is_fixed_byte_for_byte() {
        let diff_id = DiffId(Digest::of(Algorithm::Sha256, b""));
        let text = |p: &str| String::from_utf8(synthesise_config(diff_id, &p.parse().unwrap())).unwrap();
        assert_eq!(
            text("linux/amd64"),
            "{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"]}}"
        );
        assert!(
            text("linux/arm/v7")
                .starts_with("{\"architecture\":\"arm\",\"os\":\"linux\",\"variant\":\"v7\",\"rootfs\"")
        );
        assert_eq!(
            Digest::of(Algorithm::Sha256, text("linux/amd64").as_bytes()).to_string(),
            "sha256:f1c6cdd9970ec550cf99058a66cec4d54374db8772997cac592b570e38669f28"
        );
        super::super::json::Config::parse(text("linux/arm/v7").as_bytes(), "config").unwrap();
    }
}
