//! Reading the outside of an archive: what it is packed with, and its bytes without the packing.
//!
//! Owns: magic bytes, the decompression of whole archives. Refuses to know: members. The archive itself has no digest;
//! what matters in it has its own. So its trailer is checked when the stream is read to the end, and nothing more.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;
use zstd::zstd_safe::{get_error_name, zstd_sys::ZSTD_ErrorCode};

use crate::error::{Error, ErrorKind, from_io};
use crate::policy::{Limit, Limits};

/// What a stream of bytes is packed with, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Magic {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
    Other,
}

impl Magic {
    /// Looks at the first bytes, six if there are so many.
    pub fn of(head: &[u8]) -> Magic {
        match head {
            [0x1f, 0x8b, ..] => Magic::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Magic::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Magic::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Magic::Bzip2,
            _ => Magic::Other,
        }
    }
}

/// Looks at the first bytes of a regular file.
pub(crate) fn magic_at(file: &File) -> Result<Magic, Error> {
    let mut head = [0; 6];
    let mut have = 0;
    while let Some(rest) = head.get_mut(have..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(Error::io("reading the first bytes", err)),
        }
    }
    Ok(Magic::of(head.get(..have).unwrap_or(&[])))
}

/// Refuses what nothing here unpacks; nothing is ever piped through another program (CVE-2014-9357).
pub(crate) fn check_packing(magic: Magic) -> Result<(), Error> {
    let tool = match magic {
        Magic::Xz => "xz",
        Magic::Bzip2 => "bzip2",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Unsupported, format!("{tool} compression is not supported"))
        .with_hint(format!("pipe it in: {tool} -dc FILE | unply … - (layer:- for a single layer)")))
}

/// Says whether a block is a tar header by its checksum, summed over unsigned or signed bytes.
pub(crate) fn is_tar_header(block: &[u8]) -> bool {
    let (Some(block), Some(field)) = (block.get(..512), block.get(148..156)) else { return false };
    let digits: Vec<u8> = field.iter().copied().skip_while(|b| *b == b' ').take_while(u8::is_ascii_digit).collect();
    let Some(stated) = std::str::from_utf8(&digits).ok().and_then(|d| i64::from_str_radix(d, 8).ok()) else {
        return false;
    };
    let sum = |value: &dyn Fn(u8) -> i64| -> i64 {
        block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { value(*b) }).sum()
    };
    stated == sum(&|b| i64::from(b)) || stated == sum(&|b| i64::from(b.cast_signed()))
}

/// Counts what is read, for the ratio.
struct Counting {
    inner: Box<dyn Read + Send>,
    count: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

type Packed = BufReader<Counting>;

/// Where decoding stands. A unit is a gzip member or a zstd frame; an archive may have many.
enum State {
    Plain(Packed),
    Between(Magic, Packed),
    Gzip(Box<GzDecoder<Packed>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Packed>>),
    End,
}

/// The bytes of an archive without its compression.
pub(crate) struct Outer {
    state: State,
    limits: Limits,
    packed: Arc<AtomicU64>,
    produced: u64,
}

impl Outer {
    /// Looks at the first bytes and prepares to decode.
    ///
    /// # Errors
    /// `Unsupported` for xz and bzip2; I/O errors.
    pub fn new(reader: Box<dyn Read + Send>, limits: &Limits) -> Result<Outer, Error> {
        let packed = Arc::new(AtomicU64::new(0));
        // Six bytes are wanted at once, but a pipe may give fewer: they are read first and put in front again.
        let mut counting = Counting { inner: reader, count: Arc::clone(&packed) };
        let mut head = Vec::with_capacity(6);
        (&mut counting).take(6).read_to_end(&mut head).map_err(|err| from_io("reading the archive", err))?;
        let magic = Magic::of(&head);
        check_packing(magic)?;
        let Counting { inner, count } = counting;
        let inner = Box::new(io::Cursor::new(head).chain(inner));
        count.store(0, Ordering::Relaxed);
        let reader = BufReader::with_capacity(128 << 10, Counting { inner, count });
        Ok(Outer {
            state: if magic == Magic::Other { State::Plain(reader) } else { State::Between(magic, reader) },
            limits: limits.clone(),
            packed,
            produced: 0,
        })
    }

    /// Starts the next unit, or finds the end: nothing more, or only zero bytes.
    fn next_unit(&self, magic: Magic, mut reader: Packed) -> io::Result<State> {
        let first = reader.fill_buf()?.first().copied();
        match (first, magic) {
            (None, _) => Ok(State::End),
            (Some(0), _) => loop {
                let buf = reader.fill_buf()?;
                if buf.is_empty() {
                    return Ok(State::End);
                }
                if buf.iter().any(|b| *b != 0) {
                    return Err(malformed("bytes that belong to nothing follow the compressed archive").into());
                }
                let n = buf.len();
                reader.consume(n);
            },
            (Some(_), Magic::Gzip) => Ok(State::Gzip(Box::new(GzDecoder::new(reader)))),
            (Some(_), _) => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?.single_frame();
                decoder.window_log_max(self.limits.max_zstd_window_log)?;
                Ok(State::Zstd(Box::new(decoder)))
            }
        }
    }

    fn check_ratio(&self) -> Result<(), Error> {
        let packed = self.packed.load(Ordering::Relaxed).max(1);
        if self.produced > self.limits.ratio_floor && self.produced / packed > self.limits.max_ratio {
            let found = format_args!("{} ({} from {packed})", self.produced / packed, self.produced);
            return Err(self.limits.exceeded(Limit::Ratio, found));
        }
        Ok(())
    }
}

fn malformed(message: &str) -> Error {
    Error::new(ErrorKind::Malformed, message)
}

/// A decoder's own error means bad data, unless reading below it failed.
fn damaged(err: io::Error, limits: &Limits) -> io::Error {
    if err.kind() == io::ErrorKind::Interrupted
        || err.raw_os_error().is_some()
        || err.get_ref().is_some_and(|e| e.is::<Error>())
    {
        return err;
    }
    // libzstd's error comes through the decoder as its text only.
    let too_large = ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge as usize;
    if err.to_string() == get_error_name(too_large.wrapping_neg()) {
        let found = "more than that in the compressed archive";
        return limits.exceeded(Limit::ZstdWindow, found).into();
    }
    Error::new(ErrorKind::Malformed, "the compressed archive is damaged").with_source(err).into()
}

impl Read for Outer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let n = match &mut self.state {
                State::Plain(reader) => return reader.read(buf),
                State::End => return Ok(0),
                State::Between(..) => 0,
                State::Gzip(decoder) => decoder.read(buf).map_err(|e| damaged(e, &self.limits))?,
                State::Zstd(decoder) => decoder.read(buf).map_err(|e| damaged(e, &self.limits))?,
            };
            if n > 0 {
                self.produced = self.produced.saturating_add(n as u64);
                self.check_ratio()?;
                return Ok(n);
            }
            self.state = match std::mem::replace(&mut self.state, State::End) {
                State::Gzip(decoder) => self.next_unit(Magic::Gzip, decoder.into_inner())?,
                State::Zstd(decoder) => self.next_unit(Magic::Zstd, decoder.finish())?,
                State::Between(magic, reader) => self.next_unit(magic, reader)?,
                other => other,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    fn unpack(data: Vec<u8>, limits: &Limits) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let mut outer = Outer::new(Box::new(io::Cursor::new(data)), limits)?;
        outer.read_to_end(&mut out).map_err(|e| from_io("read", e))?;
        Ok(out)
    }

    #[test]
    fn z01_z02_z10_members_frames_skippable_frames_and_zero_padding() {
        let limits = Limits::default();
        assert_eq!(unpack(b"plain".to_vec(), &limits).unwrap(), b"plain");
        assert_eq!(unpack(Vec::new(), &limits).unwrap(), b"");
        let two = [gzip(b"one "), gzip(b""), gzip(b"two"), vec![0; 700]].concat();
        assert_eq!(unpack(two, &limits).unwrap(), b"one two");
        let z = |d: &[u8]| zstd::encode_all(d, 1).unwrap();
        let skip = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let frames = [skip.clone(), z(b"one "), z(b""), skip, z(b"two"), vec![0; 9]].concat();
        assert_eq!(unpack(frames, &limits).unwrap(), b"one two");
    }

    #[test]
    fn z03_z04_garbage_damage_and_other_packers_are_refused() {
        let limits = Limits::default();
        let kind = |data: Vec<u8>| unpack(data, &limits).unwrap_err().kind();
        assert_eq!(kind([gzip(b"x"), b"garbage".to_vec()].concat()), ErrorKind::Malformed);
        assert_eq!(kind([gzip(b"x"), vec![0, 0, 1]].concat()), ErrorKind::Malformed);
        let mut broken = gzip(b"hello");
        let n = broken.len();
        broken[n - 6] ^= 1;
        assert_eq!(kind(broken), ErrorKind::Malformed);
        let mut cut = zstd::encode_all(&[7u8; 9000][..], 1).unwrap();
        cut.pop();
        assert_eq!(kind(cut), ErrorKind::Malformed);
        assert_eq!(kind(b"\xfd7zXZ\0".to_vec()), ErrorKind::Unsupported);
        assert_eq!(kind(b"BZh91AY&SY".to_vec()), ErrorKind::Unsupported);
    }

    #[test]
    fn b01_a_bomb_around_the_archive_is_stopped() {
        let bomb = zstd::encode_all(io::repeat(0).take(8 << 20), 1).unwrap();
        let limits = Limits { ratio_floor: 1 << 20, max_ratio: 100, ..Limits::default() };
        assert_eq!(unpack(bomb, &limits).unwrap_err().kind(), ErrorKind::Limit);
    }
}
