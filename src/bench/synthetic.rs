//! Images made for measuring, the same bytes on every machine.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::layout::{Blob, Layout};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::image::{Platform, Reference, Selector};
use crate::stream::Codec;

/// What an image is made of; each is bound by another stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Two layers like a distribution: directories, symlinks, hard links, files of all sizes; the second replaces and
    /// deletes some of the first.
    Distro,
    /// One layer like a `node_modules`: 19,200 files, half of them below 600 bytes: bound by file creation.
    SmallFiles,
    /// One layer of four libraries of 25 to 50 MB: bound by decompression.
    BigFiles,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Shape; 3] = [Shape::Distro, Shape::SmallFiles, Shape::BigFiles];

    /// Returns the shape's name.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Distro => "distro",
            Shape::SmallFiles => "small-files",
            Shape::BigFiles => "big-files",
        }
    }
}

/// Writes an OCI layout with one image into the empty directory `dir` and returns the reference to it.
///
/// # Errors
/// Those of writing files.
pub fn synthesise(shape: Shape, dir: &Path) -> Result<Reference> {
    let made = Layout::new(dir).and_then(|layout| Made { layout }.make(shape));
    made.map_err(|e| Error::io(format!("write a synthetic image to {}", dir.display()), e))?;
    Ok(Reference::OciDir { dir: dir.to_path_buf(), selector: Selector::None })
}

struct Made<'a> {
    layout: Layout<'a>,
}

impl Made<'_> {
    fn make(&self, shape: Shape) -> io::Result<()> {
        let layers = match shape {
            Shape::Distro => vec![self.layer(distro_bottom)?, self.layer(distro_top)?],
            Shape::SmallFiles => vec![self.layer(small_files)?],
            Shape::BigFiles => vec![self.layer(big_files)?],
        };
        let platform = Platform::host();
        let diff_ids: Vec<String> = layers.iter().map(|(_, diff_id)| diff_id.to_string()).collect();
        let config = json!({
            "architecture": platform.architecture, "os": platform.os,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let blobs: Vec<Blob> = layers.into_iter().map(|(blob, _)| blob).collect();
        self.layout.finish(config.to_string().as_bytes(), &blobs).map(drop)
    }

    /// Writes one gzip layer; returns its blob and its diff_id.
    fn layer(&self, content: impl Fn(&mut Layer<'_>) -> io::Result<()>) -> io::Result<(Blob, Digest)> {
        let path = self.layout.dir.join("unfinished");
        let mut blob = Hashing::new(BufWriter::new(fs::File::create(&path)?));
        let mut plain = Hashing::new(GzEncoder::new(&mut blob, Compression::new(6)));
        {
            let mut layer = Layer { tar: Builder::new(&mut plain), random: 0x9e37_79b9_7f4a_7c15 };
            content(&mut layer)?;
            layer.tar.finish()?;
        }
        let (gzip, diff_id, _) = plain.finish();
        gzip.finish()?;
        let (mut file, digest, size) = blob.finish();
        file.flush()?;
        fs::rename(path, self.layout.blob(&digest))?;
        Ok((Blob { digest, size, codec: Codec::Gzip }, diff_id))
    }
}

/// Hashes what is written through it.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Hashing { inner, hasher: Hasher::new(Algorithm::Sha256), bytes: 0 }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or(buf));
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Layer<'a> {
    tar: Builder<&'a mut dyn Write>,
    random: u64,
}

impl Layer<'_> {
    /// xorshift64*: fast, and the same everywhere.
    fn word(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns one of the sizes, or something between it and the next.
    fn size(&mut self, sizes: &[u64]) -> u64 {
        let word = self.word();
        let at = usize::try_from(word % sizes.len().max(1) as u64).unwrap_or(0);
        let low = sizes.get(at).copied().unwrap_or(0);
        let high = sizes.get(at + 1).copied().unwrap_or(low);
        low + (word >> 32) % high.saturating_sub(low).max(1) / 2
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    fn dir(&mut self, path: &str) -> io::Result<()> {
        self.tar.append_data(&mut Self::header(EntryType::Directory, 0o755, 0), path, io::empty())
    }

    fn link(&mut self, kind: EntryType, path: &str, target: &str) -> io::Result<()> {
        self.tar.append_link(&mut Self::header(kind, 0o777, 0), path, target)
    }

    fn file(&mut self, path: &str, size: u64) -> io::Result<()> {
        let content = Content { random: self.word() | 1, left: size, piece: [0; 64], at: 64 };
        self.tar.append_data(&mut Self::header(EntryType::Regular, 0o644, size), path, content)
    }
}

/// Bytes that compress about as well as programs do, by two to three times.
struct Content {
    random: u64,
    left: u64,
    piece: [u8; 64],
    at: usize,
}

impl io::Read for Content {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        for out in buf.iter_mut() {
            if self.left == 0 {
                break;
            }
            if self.at == self.piece.len() {
                self.refill();
            }
            *out = self.piece[self.at];
            self.at += 1;
            self.left -= 1;
            done += 1;
        }
        Ok(done)
    }
}

impl Content {
    fn refill(&mut self) {
        const WORDS: &[u8; 64] = b"mov call ret push pop lea test jne xor add sub cmp nop int shl .";
        self.at = 0;
        self.piece = *WORDS;
        for chunk in self.piece.chunks_exact_mut(8).step_by(2) {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            chunk.copy_from_slice(&self.random.to_le_bytes());
        }
    }
}

/// Sizes of files in bytes: the middles of sixteen equal parts of the files of real layers, smallest first. The first is
/// a Debian base layer, the second an application's `node_modules`.
const DISTRO_SIZES: [u64; 16] =
    [94, 323, 553, 676, 864, 1194, 1584, 2004, 2548, 3571, 5394, 9116, 16_358, 22_776, 44_016, 123_192];
const MODULE_SIZES: [u64; 16] = [48, 48, 66, 122, 197, 319, 404, 513, 603, 704, 838, 1056, 1389, 1949, 3866, 17_938];

/// Sizes in bytes of large libraries as language images have them.
const LIBRARY_SIZES: [u64; 4] = [25_409_073, 31_642_640, 39_976_976, 50_060_337];

fn distro_bottom(layer: &mut Layer<'_>) -> io::Result<()> {
    for path in ["usr", "usr/bin", "usr/lib", "usr/share", "etc", "var"] {
        layer.dir(&format!("{path}/"))?;
    }
    layer.link(EntryType::Symlink, "bin", "usr/bin")?;
    layer.link(EntryType::Symlink, "lib", "usr/lib")?;
    for package in 0..400 {
        let dir = format!("usr/share/package-{package}");
        layer.dir(&format!("{dir}/"))?;
        for n in 0..14 {
            let size = layer.size(&DISTRO_SIZES);
            layer.file(&format!("{dir}/file-{n}"), size)?;
        }
        let size = layer.size(&DISTRO_SIZES);
        layer.file(&format!("usr/bin/program-{package}"), size)?;
        if package % 100 == 0 {
            layer.link(EntryType::Link, &format!("usr/bin/alias-{package}"), &format!("usr/bin/program-{package}"))?;
        }
        layer.link(EntryType::Symlink, &format!("usr/lib/lib-{package}.so"), &format!("lib-{package}.so.1"))?;
        let size = layer.size(&DISTRO_SIZES);
        layer.file(&format!("usr/lib/lib-{package}.so.1"), size)?;
    }
    // What lies above the last of sixteen parts is most of the bytes.
    for (n, size) in [4_472_989, 3_832_160, 3_808_560].into_iter().enumerate() {
        layer.file(&format!("usr/lib/large-{n}.so"), size)?;
    }
    Ok(())
}

fn distro_top(layer: &mut Layer<'_>) -> io::Result<()> {
    layer.dir("etc/")?;
    for n in 0..200 {
        let size = layer.word() % 3_000;
        layer.file(&format!("etc/config-{n}"), size)?;
    }
    for package in 0..50 {
        let dir = format!("usr/share/package-{package}");
        layer.file(&format!("{dir}/.wh.file-3"), 0)?;
        layer.file(&format!("{dir}/file-4"), 5_000)?;
    }
    layer.dir("usr/share/package-60/")?;
    layer.file("usr/share/package-60/.wh..wh..opq", 0)
}

fn small_files(layer: &mut Layer<'_>) -> io::Result<()> {
    for dir in 0..1600 {
        layer.dir(&format!("app/node_modules/module-{dir}/"))?;
        layer.dir(&format!("app/node_modules/module-{dir}/dist/"))?;
        for n in 0..12 {
            let size = layer.size(&MODULE_SIZES);
            let below = if n % 3 == 0 { "" } else { "dist/" };
            layer.file(&format!("app/node_modules/module-{dir}/{below}file-{n}.js"), size)?;
        }
    }
    Ok(())
}

fn big_files(layer: &mut Layer<'_>) -> io::Result<()> {
    for (n, size) in LIBRARY_SIZES.into_iter().enumerate() {
        layer.file(&format!("library-{n}.so"), size)?;
    }
    Ok(())
}
