//! zstd frames around libzstd's streaming decoder.
//!
//! Owns: the framing of RFC 8878 (<https://www.rfc-editor.org/rfc/rfc8878>): any number of frames, skippable frames
//! anywhere, zero padding after the last one, and the window limit, which is checked on the frame header before libzstd
//! allocates anything.

use zstd::zstd_safe::{
    DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name, zstd_sys::ZSTD_ErrorCode,
};

use crate::cancel::CancelToken;
use crate::stream::decode::{DecodeError, Decoder, Step};
use crate::stream::report::Framing;
use crate::stream::window::{self, WindowMemory, WindowPlace};

pub(super) const FRAME: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Magic, descriptor, window, dictionary id and content size at their longest (a window excludes nothing else).
pub(super) const MAX_HEADER: usize = 4 + 1 + 1 + 4 + 8;
/// The smallest and largest limits that libzstd takes (`ZSTD_WINDOWLOG_ABSOLUTEMIN`, `ZSTD_WINDOWLOG_MAX_64`).
const WINDOW_LOGS: std::ops::RangeInclusive<u32> = 10..=31;

/// libzstd gives up a buffer that was too large for 128 frames in a row.
const PRIMED: u32 = 64;
/// As a number of frames: the context has to be a new one.
const STALE: u32 = u32::MAX;

fn new_context(log: u32) -> Result<DCtx<'static>, DecodeError> {
    let mut context = DCtx::try_create().ok_or(DecodeError::Memory("zstd"))?;
    context.set_parameter(DParameter::WindowLogMax(log)).map_err(of_libzstd)?;
    Ok(context)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a frame: the blob may end, unless a part of a header came already.
    Header,
    /// A complete frame header goes to libzstd, from `fed` on.
    Feeding {
        fed: usize,
    },
    Frame,
    Skippable {
        left: u32,
    },
    Padding,
}

/// A decoder of zstd blobs that start with a frame's or a skippable frame's magic bytes.
pub(super) struct Zstd {
    place: Place,
    context: DCtx<'static>,
    /// The right to a large window; goes after the context, which has it.
    large: Option<WindowPlace>,
    windows: WindowMemory,
    cancel: CancelToken,
    window_limit: u64,
    log: u32,
    /// Frames since the context was primed; see [`Zstd::prime`].
    unprimed: u32,
    header: [u8; MAX_HEADER],
    have: usize,
    framing: Framing,
}

impl Zstd {
    pub(super) fn new(max_window_log: u32, windows: WindowMemory, cancel: CancelToken) -> Result<Self, DecodeError> {
        let log = max_window_log.clamp(*WINDOW_LOGS.start(), *WINDOW_LOGS.end());
        let mut zstd = Zstd {
            place: Place::Header,
            context: new_context(log)?,
            large: None,
            windows,
            cancel,
            window_limit: 1 << log,
            log,
            unprimed: 0,
            header: [0; MAX_HEADER],
            have: 0,
            framing: Framing::default(),
        };
        zstd.prime()?;
        Ok(zstd)
    }

    /// Has libzstd keep a buffer for windows of [`window::FREE`] bytes. It would take one that fits a frame else, or keep that
    /// of an earlier frame: then what comes of a frame that lies about its content would depend on the frames before it,
    /// which another decoder may have decoded. Memory that is not written costs nothing.
    fn prime(&mut self) -> Result<(), DecodeError> {
        let exponent = self.log.min(window::FREE.ilog2()).saturating_sub(*WINDOW_LOGS.start()) as u8;
        let [a, b, c, d] = FRAME;
        self.run(&[a, b, c, d, 0, exponent << 3], &mut [0])?;
        self.context.reset(ResetDirective::SessionOnly).map_err(of_libzstd)?;
        self.unprimed = 0;
        Ok(())
    }

    /// Takes header bytes from `input` until the header is complete, then decides what it starts.
    fn header(&mut self, input: &mut &[u8]) -> Result<(), DecodeError> {
        loop {
            let seen = self.header.get(..self.have).unwrap_or(&[]);
            let needed = needed_header(seen)?;
            if seen.len() >= needed {
                return self.frame();
            }
            let n = (needed - seen.len()).min(input.len());
            if n == 0 {
                return Ok(());
            }
            let (taken, rest) = input.split_at(n);
            self.header[self.have..self.have + n].copy_from_slice(taken);
            self.have += n;
            *input = rest;
        }
    }

    fn frame(&mut self) -> Result<(), DecodeError> {
        let header = self.header.get(..self.have).unwrap_or(&[]);
        match *header {
            [0, 0, 0, 0] => {
                self.place = Place::Padding;
                self.framing.padding = 4;
                return Ok(());
            }
            [_, 0x2a, 0x4d, 0x18, a, b, c, d] => {
                self.have = 0;
                self.framing.starts_skippable |= self.framing.members == 0;
                self.framing.skippable += 1;
                self.place = Place::Skippable { left: u32::from_le_bytes([a, b, c, d]) };
                return Ok(());
            }
            _ => {}
        }
        let info = FrameInfo::parse(header);
        if info.dictionary != 0 {
            return Err(DecodeError::Dictionary(info.dictionary));
        }
        if info.window > self.window_limit {
            return Err(DecodeError::Window { needed: info.window, limit: self.window_limit });
        }
        if info.window > window::FREE && self.large.is_none() {
            self.large = Some(self.windows.take(&self.cancel).ok_or(DecodeError::Cancelled)?);
        }
        if self.unprimed >= PRIMED {
            if self.unprimed == STALE {
                self.context = new_context(self.log)?;
            }
            self.prime()?;
        }
        // A larger buffer than others have goes with its frame.
        self.unprimed = if info.window > window::FREE { STALE } else { self.unprimed + 1 };
        self.place = Place::Feeding { fed: 0 };
        Ok(())
    }

    /// Runs libzstd once on `input`; returns what it took, what it made, and whether the frame is complete.
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> Result<(Step, bool), DecodeError> {
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around(output);
        let hint = self.context.decompress_stream(&mut output, &mut input).map_err(of_libzstd)?;
        Ok((Step { consumed: input.pos(), produced: output.pos() }, hint == 0))
    }
}

impl Decoder for Zstd {
    fn decode(&mut self, all: &[u8], output: &mut [u8]) -> Result<Step, DecodeError> {
        let mut input = all;
        let mut produced = 0;
        loop {
            match self.place {
                Place::Header => {
                    // What is made is handed out before the framing behind it can be found wrong.
                    if input.is_empty() || produced > 0 {
                        break;
                    }
                    self.header(&mut input)?;
                }
                Place::Feeding { .. } | Place::Frame => {
                    let room = output.get_mut(produced..).unwrap_or(&mut []);
                    if room.is_empty() {
                        break;
                    }
                    let (step, complete) = if let Place::Feeding { fed } = self.place {
                        let header = self.header;
                        let (step, complete) = self.run(header.get(fed..self.have).unwrap_or(&[]), room)?;
                        let fed = fed + step.consumed;
                        self.place = if fed < self.have { Place::Feeding { fed } } else { Place::Frame };
                        if step == Step::default() && !complete {
                            let reason = "the frame header is not accepted".to_owned();
                            return Err(DecodeError::Data { codec: "zstd", reason });
                        }
                        (step, complete)
                    } else {
                        let (step, complete) = self.run(input, room)?;
                        input = input.get(step.consumed..).unwrap_or(&[]);
                        if step == Step::default() && !complete {
                            break;
                        }
                        (step, complete)
                    };
                    produced += step.produced;
                    if complete {
                        self.framing.members += 1;
                        self.have = 0;
                        self.place = Place::Header;
                        // A step that took or made nothing would mean that there is no progress.
                        if produced > 0 || input.len() < all.len() {
                            break;
                        }
                    }
                }
                Place::Skippable { left } => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    input = input.get(n..).unwrap_or(&[]);
                    // At most `left`, so it fits.
                    let left = left - n as u32;
                    self.place = if left == 0 { Place::Header } else { Place::Skippable { left } };
                    break;
                }
                Place::Padding => {
                    if input.iter().any(|&b| b != 0) {
                        return Err(DecodeError::Garbage("zstd frame"));
                    }
                    self.framing.padding = self.framing.padding.saturating_add(input.len() as u64);
                    input = &[];
                    break;
                }
            }
        }
        Ok(Step { consumed: all.len() - input.len(), produced })
    }

    fn framing(&self) -> Framing {
        let unread = if self.place == Place::Header { self.have as u64 } else { 0 };
        Framing { padding: self.framing.padding.saturating_add(unread), ..self.framing }
    }

    fn between(&self) -> bool {
        self.place == Place::Header && self.have == 0
    }

    fn restart(&mut self) -> Result<(), DecodeError> {
        self.context.reset(ResetDirective::SessionOnly).map_err(of_libzstd)?;
        self.place = Place::Header;
        self.have = 0;
        self.framing = Framing::default();
        Ok(())
    }

    fn count(&mut self, passed: Framing) {
        self.framing.starts_skippable |= passed.starts_skippable && self.framing.members == 0;
        self.framing.members = self.framing.members.saturating_add(passed.members);
        self.framing.skippable = self.framing.skippable.saturating_add(passed.skippable);
    }

    fn end(&self) -> Result<(), DecodeError> {
        match self.place {
            // Fewer than four zero bytes are padding as well.
            Place::Header if self.header.iter().take(self.have).all(|&b| b == 0) => Ok(()),
            Place::Padding => Ok(()),
            Place::Header if self.have < 4 => Err(DecodeError::Garbage("zstd frame")),
            Place::Header | Place::Feeding { .. } => Err(DecodeError::Truncated("a zstd frame header")),
            Place::Frame => Err(DecodeError::Truncated("a zstd frame")),
            Place::Skippable { .. } => Err(DecodeError::Truncated("a skippable zstd frame")),
        }
    }
}

/// Says how long the header that starts with `seen` is, as far as `seen` tells.
pub(super) fn needed_header(seen: &[u8]) -> Result<usize, DecodeError> {
    let Some((magic, rest)) = seen.split_first_chunk::<4>() else { return Ok(4) };
    match (*magic, rest.first()) {
        (FRAME, None) => Ok(5),
        (FRAME, Some(&descriptor)) => {
            let single_segment = descriptor & 0x20 != 0;
            let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
            let content = match descriptor >> 6 {
                0 => usize::from(single_segment),
                1 => 2,
                2 => 4,
                _ => 8,
            };
            Ok(5 + usize::from(!single_segment) + dictionary + content)
        }
        ([0x50..=0x5f, 0x2a, 0x4d, 0x18], _) => Ok(8),
        ([0, 0, 0, 0], _) => Ok(4),
        _ => Err(DecodeError::Garbage("zstd frame")),
    }
}

/// What a complete frame header asks for (RFC 8878, section 3.1.1.1).
pub(super) struct FrameInfo {
    pub(super) window: u64,
    pub(super) dictionary: u32,
    /// Bytes that the frame stands for.
    pub(super) content: Option<u64>,
    pub(super) checksum: bool,
}

impl FrameInfo {
    pub(super) fn parse(header: &[u8]) -> FrameInfo {
        let mut rest = header.get(4..).unwrap_or(&[]).iter().copied();
        let mut number = |bytes: u32| (0..bytes).fold(0u64, |n, i| n | u64::from(rest.next().unwrap_or(0)) << (8 * i));
        let descriptor = number(1) as u8;
        let single_segment = descriptor & 0x20 != 0;
        let window = if single_segment { None } else { Some(number(1)) };
        let dictionary = number([0, 1, 2, 4][usize::from(descriptor & 3)]) as u32;
        let content = match descriptor >> 6 {
            0 if !single_segment => None,
            0 => Some(number(1)),
            // Two bytes count from 256.
            1 => Some(number(2) + 256),
            2 => Some(number(4)),
            _ => Some(number(8)),
        };
        let window = match window {
            // Five bits of exponent and three of mantissa: at most 2^41 + 7 * 2^38.
            Some(byte) => {
                let base = 1u64 << (10 + (byte >> 3));
                base + (base / 8) * (byte & 7)
            }
            None => content.unwrap_or(0),
        };
        FrameInfo { window, dictionary, content, checksum: descriptor & 4 != 0 }
    }
}

fn of_libzstd(code: usize) -> DecodeError {
    let is = |error: ZSTD_ErrorCode| code.wrapping_neg() == error as usize;
    if is(ZSTD_ErrorCode::ZSTD_error_checksum_wrong) {
        DecodeError::FrameChecksum
    } else if is(ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
        DecodeError::Memory("zstd")
    } else {
        DecodeError::Data { codec: "zstd", reason: get_error_name(code).to_owned() }
    }
}
