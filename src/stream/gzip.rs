//! gzip members around raw inflate.
//!
//! Owns: the framing of RFC 1952 (<https://www.rfc-editor.org/rfc/rfc1952>): headers with every optional field, any
//! number of members (empty ones included), trailers, zero padding after the last one. Memory does not
//! depend on the input: names and extra fields are skipped, not kept.

use crc32fast::Hasher as Crc;

use crate::stream::decode::{DecodeError, Decoder, Step};
use crate::stream::inflate::Inflate;
use crate::stream::report::Framing;

const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// CRC-32 and length.
const TRAILER: usize = 8;
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// Where in a member the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The ten bytes every header has.
    Fixed,
    ExtraLength,
    Extra {
        left: u16,
    },
    Name,
    Comment,
    HeaderCrc,
    Body,
    Trailer,
    /// After a member: the blob may end, another member or padding may follow.
    Between,
    Padding,
}

/// A decoder of gzip blobs that start with the magic bytes.
pub(super) struct Gzip {
    place: Place,
    inflate: Inflate,
    body_crc: Crc,
    /// Decompressed bytes of the member, modulo 2³² as in its trailer.
    body_length: u32,
    header_crc: Crc,
    flags: u8,
    /// Bytes of a fixed-size field that came so far.
    field: [u8; 10],
    have: usize,
    members: u64,
    padding: u64,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Gzip {
            place: Place::Fixed,
            inflate: Inflate::new(),
            body_crc: Crc::new(),
            body_length: 0,
            header_crc: Crc::new(),
            flags: 0,
            field: [0; 10],
            have: 0,
            members: 0,
            padding: 0,
        }
    }

    /// Begins a member. There is one for every 64 KiB in bgzf: the state is reused.
    fn begin(&mut self) {
        self.inflate.reset();
        self.body_crc.reset();
        self.body_length = 0;
        self.header_crc.reset();
        self.have = 0;
        self.place = Place::Fixed;
    }

    /// Collects a field of `N` bytes from the front of `input`; `None` until it is complete.
    fn collect<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        let n = (N - self.have).min(input.len());
        let (taken, rest) = input.split_at(n);
        self.field[self.have..self.have + n].copy_from_slice(taken);
        self.have += n;
        *input = rest;
        if self.have < N {
            return None;
        }
        self.have = 0;
        self.field.first_chunk::<N>().copied()
    }

    /// Collects header bytes, which the header's checksum covers.
    fn collect_header<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        let field = self.collect::<N>(input)?;
        self.header_crc.update(&field);
        Some(field)
    }

    /// Skips a text that ends with a zero byte; tells whether the end was there.
    fn skip_text(&mut self, input: &mut &[u8]) -> bool {
        let end = input.iter().position(|&b| b == 0);
        let (text, rest) = input.split_at(end.map_or(input.len(), |i| i + 1));
        self.header_crc.update(text);
        *input = rest;
        end.is_some()
    }

    /// Names the optional field after `place` that the flags announce.
    fn after(&self, place: Place) -> Place {
        let fields =
            [(Place::ExtraLength, FEXTRA), (Place::Name, FNAME), (Place::Comment, FCOMMENT), (Place::HeaderCrc, FHCRC)];
        let done = match place {
            Place::Fixed => 0,
            Place::ExtraLength | Place::Extra { .. } => 1,
            Place::Name => 2,
            Place::Comment => 3,
            _ => 4,
        };
        fields[done..].iter().find(|(_, flag)| self.flags & flag != 0).map_or(Place::Body, |&(place, _)| place)
    }

    fn fixed_header(&mut self, header: [u8; 10]) -> Result<(), DecodeError> {
        let [magic1, magic2, method, flags, ..] = header;
        if [magic1, magic2] != MAGIC {
            return Err(DecodeError::Garbage("gzip member"));
        }
        if method != 8 {
            return Err(DecodeError::Method(method));
        }
        if flags & RESERVED != 0 {
            return Err(DecodeError::ReservedFlags(flags));
        }
        self.flags = flags;
        Ok(())
    }

    fn trailer(&mut self, trailer: [u8; TRAILER]) -> Result<(), DecodeError> {
        let [c0, c1, c2, c3, l0, l1, l2, l3] = trailer;
        let (crc, length) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([l0, l1, l2, l3]));
        let found = self.body_crc.clone().finalize();
        if crc != found {
            return Err(DecodeError::Crc { expected: crc, found });
        }
        if length != self.body_length {
            return Err(DecodeError::Length { expected: length, found: self.body_length });
        }
        Ok(())
    }

    /// Inflates once; `Ok(None)` when there is neither input to take nor room to fill.
    fn body(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<Option<usize>, DecodeError> {
        let step = self.inflate.run(input, output).map_err(|reason| DecodeError::Data { codec: "gzip", reason })?;
        let (consumed, produced) = (step.consumed, step.produced);
        *input = input.get(consumed..).unwrap_or(&[]);
        self.body_crc.update(output.get(..produced).unwrap_or(&[]));
        // Only its low 32 bits are in the trailer (RFC 1952, ISIZE).
        self.body_length = self.body_length.wrapping_add(produced as u32);
        if step.ended {
            // Eight bytes at most, and the trailer has eight.
            let (rest, length) = self.inflate.rest();
            self.field[..TRAILER].copy_from_slice(&rest);
            self.have = length;
            self.place = Place::Trailer;
        } else if consumed == 0 && produced == 0 {
            return Ok(None);
        }
        Ok(Some(produced))
    }
}

impl Decoder for Gzip {
    fn decode(&mut self, all: &[u8], output: &mut [u8]) -> Result<Step, DecodeError> {
        let mut input = all;
        let mut produced = 0;
        loop {
            if self.place == Place::Body {
                let room = output.get_mut(produced..).unwrap_or(&mut []);
                if room.is_empty() {
                    break;
                }
                match self.body(&mut input, room)? {
                    Some(n) => produced += n,
                    None => break,
                }
                continue;
            }
            // What is made is handed out before the framing behind it can be found wrong.
            let complete = self.place == Place::Trailer && self.have == TRAILER;
            if (input.is_empty() && !complete) || produced > 0 {
                break;
            }
            match self.place {
                Place::Fixed => {
                    if let Some(header) = self.collect_header(&mut input) {
                        self.fixed_header(header)?;
                        self.place = self.after(Place::Fixed);
                    }
                }
                Place::ExtraLength => {
                    if let Some(length) = self.collect_header(&mut input) {
                        self.place = Place::Extra { left: u16::from_le_bytes(length) };
                    }
                }
                Place::Extra { left } => {
                    let (skipped, rest) = input.split_at(usize::from(left).min(input.len()));
                    self.header_crc.update(skipped);
                    input = rest;
                    // At most `left`, so it fits.
                    let left = left - skipped.len() as u16;
                    self.place = if left == 0 { self.after(Place::ExtraLength) } else { Place::Extra { left } };
                }
                Place::Name | Place::Comment => {
                    if self.skip_text(&mut input) {
                        self.place = self.after(self.place);
                    }
                }
                Place::HeaderCrc => {
                    if let Some(stated) = self.collect(&mut input) {
                        let (expected, found) = (u16::from_le_bytes(stated), self.header_crc.clone().finalize() as u16);
                        if expected != found {
                            return Err(DecodeError::HeaderCrc { expected, found });
                        }
                        self.place = Place::Body;
                    }
                }
                Place::Body => {}
                Place::Trailer => {
                    if let Some(trailer) = self.collect(&mut input) {
                        self.trailer(trailer)?;
                        self.members += 1;
                        self.place = Place::Between;
                        break;
                    }
                }
                Place::Between => match input.first() {
                    Some(0) => self.place = Place::Padding,
                    Some(0x1f) => {
                        self.begin();
                    }
                    _ => return Err(DecodeError::Garbage("gzip member")),
                },
                Place::Padding => {
                    if input.iter().any(|&b| b != 0) {
                        return Err(DecodeError::Garbage("gzip member"));
                    }
                    self.padding = self.padding.saturating_add(input.len() as u64);
                    input = &[];
                }
            }
        }
        Ok(Step { consumed: all.len() - input.len(), produced })
    }

    fn framing(&self) -> Framing {
        Framing { members: self.members, padding: self.padding, ..Framing::default() }
    }

    fn between(&self) -> bool {
        self.place == Place::Between
    }

    fn restart(&mut self) -> Result<(), DecodeError> {
        self.begin();
        (self.members, self.padding) = (0, 0);
        Ok(())
    }

    fn count(&mut self, passed: Framing) {
        self.members = self.members.saturating_add(passed.members);
    }

    fn end(&self) -> Result<(), DecodeError> {
        match self.place {
            Place::Between | Place::Padding => Ok(()),
            Place::Body => Err(DecodeError::Truncated("the data of a gzip member")),
            Place::Trailer => Err(DecodeError::Truncated("a gzip trailer")),
            // The magic bytes are what tells another member from garbage.
            Place::Fixed if self.members > 0 && (self.have < 2 || !self.field.starts_with(&MAGIC)) => {
                Err(DecodeError::Garbage("gzip member"))
            }
            _ => Err(DecodeError::Truncated("a gzip header")),
        }
    }
}
