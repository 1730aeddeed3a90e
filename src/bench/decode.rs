//! Decompression as bare as the libraries offer it: no engine, no threads, no checks, recycled buffers.
//!
//! Owns: the loops that stages are measured by. Refuses to know: whether a blob is what it should be, which a pull found
//! out before.

use std::io::{BufRead as _, BufReader, Read};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use crate::error::{Error, ErrorKind, Result, from_io};
use crate::policy::Limits;
use crate::stream::Codec;
use crate::stream::Inflate;

/// Bytes of each recycled buffer: as the engine's chunks, they fit a core's cache.
pub(super) const BUFFER: usize = 256 << 10;

/// What some work took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Processor time of the thread, in seconds.
    pub cpu_seconds: f64,
    /// Wall time in seconds.
    pub wall_seconds: f64,
}

/// Adds up what pieces of work on this thread took.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    cpu: Duration,
    wall: Duration,
}

impl Stopwatch {
    pub fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let wall = Instant::now();
        let cpu = thread_cpu();
        let out = work();
        self.cpu += thread_cpu().saturating_sub(cpu);
        self.wall += wall.elapsed();
        out
    }

    pub fn cost(&self) -> Cost {
        Cost { cpu_seconds: self.cpu.as_secs_f64(), wall_seconds: self.wall.as_secs_f64() }
    }
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Tells how a blob is packed by its first bytes.
pub(super) fn codec_of(head: &[u8]) -> Codec {
    match head {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
        _ => Codec::Plain,
    }
}

type Input = BufReader<Box<dyn Read + Send>>;

/// Decompresses `blob`, timing the library's calls alone, and hands every piece to `sink`.
pub(super) fn decode(
    blob: Box<dyn Read + Send>,
    limits: &Limits,
    watch: &mut Stopwatch,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Codec> {
    let mut input = BufReader::with_capacity(BUFFER, blob);
    let mut output = vec![0; BUFFER];
    let codec = codec_of(fill(&mut input)?);
    match codec {
        Codec::Gzip => gzip(&mut input, &mut output, watch, sink)?,
        Codec::Zstd => zstandard(&mut input, &mut output, limits, watch, sink)?,
        Codec::Plain => loop {
            let piece = fill(&mut input)?;
            if piece.is_empty() {
                break;
            }
            sink(piece)?;
            let n = piece.len();
            input.consume(n);
        },
    }
    Ok(codec)
}

fn fill(input: &mut Input) -> Result<&[u8]> {
    input.fill_buf().map_err(|e| from_io("read a layer", e))
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Malformed, format!("{what} changed while it was measured"))
}

fn gzip(
    input: &mut Input,
    output: &mut [u8],
    watch: &mut Stopwatch,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut inflate = Inflate::new();
    // Whatever follows a member and is none is padding.
    while fill(input)?.starts_with(&[0x1f]) {
        gzip_header(input).map_err(|e| from_io("read a gzip header", e))?;
        inflate.reset();
        loop {
            let piece = fill(input)?;
            let step = watch.time(|| inflate.run(piece, output)).map_err(|_| broken("a gzip member"))?;
            let stuck = piece.is_empty() && step.produced == 0;
            input.consume(step.consumed);
            sink(output.get(..step.produced).unwrap_or_default())?;
            match step.ended {
                true => break,
                false if stuck => return Err(broken("a gzip member")),
                false => {}
            }
        }
        let (mut trailer, have) = ([0; 8], inflate.rest().1);
        let left = trailer.get_mut(have..).unwrap_or_default();
        input.read_exact(left).map_err(|e| from_io("read a gzip trailer", e))?;
    }
    Ok(())
}

/// Skips a header of RFC 1952.
fn gzip_header(input: &mut Input) -> std::io::Result<()> {
    let mut fixed = [0; 10];
    input.read_exact(&mut fixed)?;
    let flags = fixed[3];
    if flags & 4 != 0 {
        let mut length = [0; 2];
        input.read_exact(&mut length)?;
        std::io::copy(&mut input.take(u16::from_le_bytes(length).into()), &mut std::io::sink())?;
    }
    for text in [8, 16] {
        if flags & text != 0 {
            input.skip_until(0)?;
        }
    }
    if flags & 2 != 0 {
        input.read_exact(&mut [0; 2])?;
    }
    Ok(())
}

fn zstandard(
    input: &mut Input,
    output: &mut [u8],
    limits: &Limits,
    watch: &mut Stopwatch,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let failed = |code| Error::new(ErrorKind::Malformed, format!("zstd: {}", get_error_name(code)));
    let mut context = DCtx::try_create().ok_or_else(|| Error::new(ErrorKind::Other, "no memory for zstd"))?;
    context.set_parameter(DParameter::WindowLogMax(limits.max_zstd_window_log.clamp(10, 31))).map_err(failed)?;
    loop {
        let piece = fill(input)?;
        let at_end = piece.is_empty();
        // Padding after the last frame.
        if piece.first() == Some(&0) && piece.iter().all(|b| *b == 0) {
            return Ok(());
        }
        let mut source = InBuffer::around(piece);
        let mut target = OutBuffer::around(&mut *output);
        watch.time(|| context.decompress_stream(&mut target, &mut source)).map_err(failed)?;
        let (taken, made) = (source.pos(), target.pos());
        input.consume(taken);
        sink(output.get(..made).unwrap_or_default())?;
        if at_end && made == 0 {
            return Ok(());
        }
    }
}

/// What a zstd layer of the same content would be like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZstdTwin {
    /// Bytes of the archive for each byte of the blob, at level 3.
    pub ratio: f64,
    /// Bytes of the archive that one core decodes in a second.
    pub bytes_per_second: f64,
}

/// Compresses a sample of an archive at level 3 and times its decoding.
pub(super) fn zstd_twin(sample: &[u8], limits: &Limits) -> Result<Option<ZstdTwin>> {
    if sample.is_empty() {
        return Ok(None);
    }
    let packed = zstd::bulk::compress(sample, 3).map_err(|e| Error::io("compress a sample", e))?;
    let mut watch = Stopwatch::default();
    let size = packed.len();
    decode(Box::new(std::io::Cursor::new(packed)), limits, &mut watch, &mut |_| Ok(()))?;
    let seconds = watch.cost().cpu_seconds;
    Ok((size > 0 && seconds > 0.0).then(|| ZstdTwin {
        ratio: sample.len() as f64 / size as f64,
        bytes_per_second: sample.len() as f64 / seconds,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn through(blob: Vec<u8>) -> (Codec, Vec<u8>) {
        let mut out = Vec::new();
        let mut watch = Stopwatch::default();
        let blob = Box::new(std::io::Cursor::new(blob));
        let codec = decode(blob, &Limits::default(), &mut watch, &mut |piece| {
            out.extend_from_slice(piece);
            Ok(())
        });
        (codec.unwrap(), out)
    }

    #[test]
    fn every_codec_member_frame_and_padding_is_decoded() {
        let text: Vec<u8> = (0..1_000_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        let (one, two) = text.split_at(text.len() / 3);
        let gzip = |data: &[u8]| {
            let header = flate2::GzBuilder::new().filename("a name").comment("b").extra(vec![7; 300]);
            let mut encoder = header.write(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |data: &[u8]| zstd::encode_all(data, 1).unwrap();
        assert_eq!(through(text.clone()), (Codec::Plain, text.clone()));
        assert_eq!(through([gzip(one), gzip(&[]), gzip(two), vec![0; 700]].concat()), (Codec::Gzip, text.clone()));
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        assert_eq!(through([skippable, zstd(one), zstd(two), vec![0; 700]].concat()), (Codec::Zstd, text));
    }

    #[test]
    fn a_sample_tells_of_its_zstd_twin() {
        let twin = zstd_twin(&vec![7; 1 << 20], &Limits::default()).unwrap().unwrap();
        assert!(twin.ratio > 10.0 && twin.bytes_per_second > 0.0, "{twin:?}");
        assert_eq!(zstd_twin(&[], &Limits::default()).unwrap().map(|twin| twin.ratio), None);
    }
}
