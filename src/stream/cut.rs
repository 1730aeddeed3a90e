//! Where the members of a blob end, found without decompressing.
//!
//! Owns: hopping over zstd frames and bgzf members, which state their size, and guessing the ends of other gzip members.
//! Refuses to know: who decodes what lies between. Memory does not depend on the blob.
//!
//! Invariants: what is found is advice. An end in a gzip blob may be none, and a size may be a lie: only a decoder that
//! stands between two members at an end confirms it. Every byte is looked at once.

use crate::stream::report::Codec;
use crate::stream::source::Source;
use crate::stream::zstandard::{FRAME, FrameInfo, MAX_HEADER, needed_header};

/// What looking for the end of the next member came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It ends before this offset, and stands for about so many bytes.
    End { at: u64, bytes: u64 },
    /// That is behind what was read so far.
    More,
    /// It must be left to the serial decoder.
    Never,
}

/// Finds the ends of members one after another.
pub(super) enum Cutter {
    Gzip(Members),
    Zstd(Frames),
}

impl Cutter {
    /// Begins at `offset`, where a member does; `None` where there are no members. Windows over `window` are left alone.
    pub(super) fn new(codec: Codec, offset: u64, window: u64) -> Option<Cutter> {
        match codec {
            Codec::Plain => None,
            Codec::Gzip => Some(Cutter::Gzip(Members { start: offset, at: offset, head: None })),
            Codec::Zstd => Some(Cutter::Zstd(Frames { at: offset, window, inside: None })),
        }
    }

    /// Looks for the end of the next member in what was read of the blob.
    pub(super) fn next(&mut self, blob: &Source) -> Found {
        match self {
            Cutter::Gzip(members) => members.next(blob),
            Cutter::Zstd(frames) => frames.next(blob),
        }
    }

    /// Returns the offset up to which everything was looked at.
    pub(super) fn seen(&self) -> u64 {
        match self {
            Cutter::Gzip(members) => members.at,
            Cutter::Zstd(frames) => frames.at,
        }
    }
}

/// Copies `N` bytes from `offset` on; `None` unless all are there.
fn bytes<const N: usize>(blob: &Source, offset: u64) -> Option<[u8; N]> {
    let mut out = [0; N];
    (copy(blob, offset, &mut out) == N).then_some(out)
}

/// Copies what is there from `offset` on; returns how much.
fn copy(blob: &Source, offset: u64, out: &mut [u8]) -> usize {
    let mut have = 0;
    while have < out.len() {
        let found = blob.at(offset.saturating_add(have as u64));
        let room = out.get_mut(have..).unwrap_or(&mut []);
        let n = found.len().min(room.len());
        if n == 0 {
            break;
        }
        for (to, from) in room.iter_mut().zip(found) {
            *to = *from;
        }
        have += n;
    }
    have
}

const FEXTRA: u8 = 1 << 2;
/// A gzip header without optional fields, and a trailer.
const HEADER: u64 = 10;
const TRAILER: u64 = 8;
/// Bytes that one byte of deflate data can stand for at most.
const MAX_RATIO: u64 = 1032;

/// gzip members. One of bgzf states its size in its header; any other one seems to end where the next header is: the same
/// flags and remarks, and before it a length that the bytes between can stand for.
pub(super) struct Members {
    start: u64,
    /// Where the search goes on.
    at: u64,
    /// The flags, XFL and OS that the member at `start` has.
    head: Option<[u8; 3]>,
}

impl Members {
    fn next(&mut self, blob: &Source) -> Found {
        let head = match self.head {
            Some(head) => head,
            None => {
                let Some([0x1f, 0x8b, 8, flags, _, _, _, _, xfl, os]) = bytes(blob, self.start) else {
                    return if blob.end() < self.start.saturating_add(HEADER) { Found::More } else { Found::Never };
                };
                match self.stated_size(blob, flags) {
                    Some(None) => return Found::More,
                    Some(Some(size)) => {
                        let end = self.start.saturating_add(size);
                        // Its last four bytes are the length.
                        return match bytes(blob, end.saturating_sub(4)) {
                            Some(length) => self.found(end, u32::from_le_bytes(length).into()),
                            None => Found::More,
                        };
                    }
                    None => {}
                }
                self.at = self.start.saturating_add(HEADER + TRAILER);
                *self.head.insert([flags, xfl, os])
            }
        };
        loop {
            let rest = blob.at(self.at);
            if rest.is_empty() {
                return Found::More;
            }
            let Some(skipped) = rest.iter().position(|&byte| byte == 0x1f) else {
                self.at = self.at.saturating_add(rest.len() as u64);
                continue;
            };
            self.at = self.at.saturating_add(skipped as u64);
            let Some([_, magic, method, flags, _, _, _, _, xfl, os]) = bytes::<10>(blob, self.at) else {
                return Found::More;
            };
            if [magic, method] == [0x8b, 8]
                && [flags, xfl, os] == head
                && let Some(length) = bytes(blob, self.at.saturating_sub(4))
            {
                let length = u64::from(u32::from_le_bytes(length));
                if length <= (self.at - self.start).saturating_mul(MAX_RATIO) {
                    return self.found(self.at, length);
                }
            }
            self.at = self.at.saturating_add(1);
        }
    }

    /// Returns the size that a member of bgzf states: `None` if it states none, `Some(None)` if that is not there yet.
    fn stated_size(&self, blob: &Source, flags: u8) -> Option<Option<u64>> {
        if flags & FEXTRA == 0 {
            return None;
        }
        let Some([_, _, b'B', b'C', 2, 0, low, high]) = bytes::<8>(blob, self.start.saturating_add(HEADER)) else {
            let short = blob.end() < self.start.saturating_add(HEADER + 8);
            return short.then_some(None);
        };
        let size = u64::from(u16::from_le_bytes([low, high])) + 1;
        (size >= HEADER + 8 + TRAILER).then_some(Some(size))
    }

    fn found(&mut self, at: u64, bytes: u64) -> Found {
        *self = Members { start: at, at, head: None };
        Found::End { at, bytes }
    }
}

/// zstd frames, by the sizes of their blocks (RFC 8878, section 3.1.1.2).
pub(super) struct Frames {
    /// What is looked at next: a header of a frame or of a block, or the end of a frame.
    at: u64,
    window: u64,
    /// The frame that `at` is inside of.
    inside: Option<Frame>,
}

struct Frame {
    /// Bytes that a block can stand for at most.
    block: u64,
    /// Bytes that it stands for, if it says so.
    content: Option<u64>,
    checksum: bool,
    bytes: u64,
    /// `at` is its end.
    complete: bool,
}

impl Frames {
    fn next(&mut self, blob: &Source) -> Found {
        loop {
            let Some(frame) = &mut self.inside else {
                match self.header(blob) {
                    Some(found) => return found,
                    None => continue,
                }
            };
            if frame.complete {
                if self.at > blob.end() {
                    return Found::More;
                }
                let bytes = frame.content.unwrap_or(frame.bytes);
                self.inside = None;
                return Found::End { at: self.at, bytes };
            }
            let Some([a, b, c]) = bytes(blob, self.at) else { return Found::More };
            let header = u32::from_le_bytes([a, b, c, 0]);
            let size = u64::from(header >> 3);
            let (held, made) = match header >> 1 & 3 {
                0 => (size, size),
                1 => (1, size),
                // How much it is nobody says; most blocks are content with this.
                2 => (size, frame.block.min(size * 8 + 512)),
                _ => return Found::Never,
            };
            frame.bytes = frame.bytes.saturating_add(made);
            frame.complete = header & 1 != 0;
            let checksum = if frame.complete && frame.checksum { 4 } else { 0 };
            self.at = self.at.saturating_add(3 + held + checksum);
        }
    }

    /// Enters the frame at `at`; returns why not.
    fn header(&mut self, blob: &Source) -> Option<Found> {
        let mut header = [0; MAX_HEADER];
        let have = copy(blob, self.at, &mut header);
        let seen = header.get(..have).unwrap_or(&[]);
        let Ok(needed) = needed_header(seen) else { return Some(Found::Never) };
        let Some(header) = seen.get(..needed) else { return Some(Found::More) };
        let at = self.at.saturating_add(needed as u64);
        if let [_, 0x2a, 0x4d, 0x18, a, b, c, d] = *header {
            let size = u32::from_le_bytes([a, b, c, d]);
            self.at = at.saturating_add(size.into());
            self.inside = Some(Frame { block: 0, content: Some(0), checksum: false, bytes: 0, complete: true });
            return None;
        }
        if !header.starts_with(&FRAME) {
            return Some(Found::Never);
        }
        let info = FrameInfo::parse(header);
        if info.dictionary != 0 || info.window > self.window {
            return Some(Found::Never);
        }
        let block = info.window.min(128 << 10);
        self.at = at;
        self.inside = Some(Frame { block, content: info.content, checksum: info.checksum, bytes: 0, complete: false });
        None
    }
}
