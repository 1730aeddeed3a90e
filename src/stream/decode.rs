//! One step of decompression as a function of bytes, and the codecs' common vocabulary.
//!
//! Owns: the [`Decoder`] contract, the reasons to refuse a blob, sniffing. Refuses to know: where bytes come from,
//! digests, threads.

use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind};
use crate::policy::Limit;
use crate::stream::report::{Codec, Framing};
use crate::stream::window::{self, WindowMemory};
use crate::stream::{gzip, zstandard};

/// How far one call of [`Decoder::decode`] came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// Bytes written at the start of the output.
    pub produced: usize,
}

/// Turns the bytes of a blob into the bytes it stands for, at the caller's pace.
///
/// The caller offers input and room; the decoder takes what it can of both. A step that neither consumes nor produces
/// anything means that the decoder wants more input; if there is none, the caller asks [`Decoder::end`] whether
/// the blob may stop here. A step ends where a member or frame does. After an error a decoder is not used again, unless
/// it is restarted.
pub trait Decoder: Send {
    /// Decodes some of `input` into `output`, which is not empty.
    ///
    /// # Errors
    /// Whatever the codec's format forbids, as soon as it is seen.
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, DecodeError>;

    /// Checks that the input may end here.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] inside a member or a frame.
    fn end(&self) -> Result<(), DecodeError>;

    /// Returns how the input was packed so far.
    fn framing(&self) -> Framing {
        Framing::default()
    }

    /// Tells whether it stands where a member or frame ends and another one may begin, so that what follows means to it
    /// what it means to a new decoder.
    fn between(&self) -> bool {
        false
    }

    /// Makes it a new decoder with the memory of the old one, also after an error.
    ///
    /// # Errors
    /// Whatever makes it unusable for good.
    fn restart(&mut self) -> Result<(), DecodeError> {
        Ok(())
    }

    /// Counts whole members and frames that another decoder decoded, while it stands between them.
    fn count(&mut self, _passed: Framing) {}
}

/// Why a blob is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The blob stops inside a member or frame, so that its trailer is not there.
    #[error("the blob ends inside {0}")]
    Truncated(&'static str),
    /// The data does not have the CRC-32 that its trailer states.
    #[error("crc32 of the data is {found:08x}, the gzip trailer says {expected:08x}")]
    Crc {
        /// From the trailer.
        expected: u32,
        /// Of the decompressed member.
        found: u32,
    },
    /// The data does not have the length that its trailer states.
    #[error("length of the data is {found} modulo 2^32, the gzip trailer says {expected}")]
    Length {
        /// From the trailer.
        expected: u32,
        /// Of the decompressed member.
        found: u32,
    },
    /// A zstd frame does not have the checksum it states.
    #[error("the data does not match the checksum of its zstd frame")]
    FrameChecksum,
    /// A gzip header does not have the CRC-16 it states.
    #[error("crc16 of the gzip header is {found:04x}, the header says {expected:04x}")]
    HeaderCrc {
        /// From the header.
        expected: u16,
        /// Of the header's bytes.
        found: u16,
    },
    /// A gzip member is compressed with something else than deflate.
    #[error("gzip compression method {0} is not deflate")]
    Method(u8),
    /// A gzip header has flags that RFC 1952 reserves.
    #[error("reserved flags are set in the gzip header: {0:#04x}")]
    ReservedFlags(u8),
    /// The compressed data is not what the format allows.
    #[error("{codec} data is damaged: {reason}")]
    Data {
        /// Word for the format.
        codec: &'static str,
        /// What the library says.
        reason: String,
    },
    /// Bytes that are neither another member or frame nor zero padding.
    #[error("bytes after the last {0} are neither another one nor zero padding")]
    Garbage(&'static str),
    /// A zstd frame needs more memory than allowed.
    #[error("{}: {needed}, the limit is {limit}", Limit::ZstdWindow.bounds())]
    Window {
        /// Bytes that the frame asks for.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A zstd frame refers to a dictionary, which no layer format provides.
    #[error("zstd frame needs dictionary {0}")]
    Dictionary(u32),
    /// The decompression library has no memory left.
    #[error("no memory for the {0} decoder")]
    Memory(&'static str),
    /// Cancelled while it waited for memory.
    #[error("cancelled")]
    Cancelled,
}

impl DecodeError {
    /// Tells whether it is the trailer that is wrong or missing: the witness of a blob that has no promised digest.
    pub fn is_trailer(&self) -> bool {
        matches!(
            self,
            DecodeError::Truncated(_)
                | DecodeError::Crc { .. }
                | DecodeError::Length { .. }
                | DecodeError::FrameChecksum
        )
    }

    /// Turns the reason into the public error; `offset` counts bytes of the blob.
    pub(super) fn at(self, offset: u64) -> Error {
        let kind = match self {
            DecodeError::Window { .. } => ErrorKind::Limit,
            DecodeError::Memory(_) => ErrorKind::Other,
            DecodeError::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Malformed,
        };
        let error = Error::new(kind, format!("{self} (near byte {offset} of the blob)"));
        match self {
            DecodeError::Window { .. } => error.with_hint(Limit::ZstdWindow.advice()),
            _ => error,
        }
    }
}

/// Bytes that [`sniff`] wants to see.
pub(super) const SNIFF_BYTES: usize = 10;

/// Tells the codec by the first bytes of a blob, whatever a media type says.
///
/// A tar header that starts with one of these byte strings would be an entry of a most unusual name; all popular
/// engines decide likewise. An empty blob is an empty plain layer.
///
/// # Errors
/// `Unsupported` for xz and bzip2.
pub(super) fn sniff(head: &[u8]) -> Result<Codec, Error> {
    let unsupported = |name: &str| {
        Err(Error::new(ErrorKind::Unsupported, format!("the layer is compressed with {name}"))
            .with_hint("recompress it with gzip or zstd"))
    };
    match head {
        [0x1f, 0x8b, ..] => Ok(Codec::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Codec::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
        // A name may well start with "BZh": only the first block's or the end's magic makes it bzip2.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => unsupported("bzip2"),
        _ => Ok(Codec::Plain),
    }
}

/// Creates the serial decoder of `codec`, which is the authority for any faster one.
///
/// # Errors
/// `Other` when the library has no memory.
pub(super) fn decoder(
    codec: Codec,
    max_zstd_window_log: u32,
    windows: WindowMemory,
    cancel: &CancelToken,
) -> Result<Box<dyn Decoder>, Error> {
    Ok(match codec {
        Codec::Plain => Box::new(Plain),
        Codec::Gzip => Box::new(gzip::Gzip::new()),
        Codec::Zstd => {
            let decoder = zstandard::Zstd::new(max_zstd_window_log, windows, cancel.clone());
            Box::new(decoder.map_err(|e| e.at(0))?)
        }
    })
}

/// Creates a decoder of members and frames of `codec` that holds no large window, to run beside others of its stream.
///
/// # Errors
/// As [`decoder`].
pub(super) fn beside(codec: Codec, max_zstd_window_log: u32) -> Result<Box<dyn Decoder>, DecodeError> {
    Ok(match codec {
        Codec::Plain => Box::new(Plain),
        Codec::Gzip => Box::new(gzip::Gzip::new()),
        Codec::Zstd => {
            let log = max_zstd_window_log.min(window::FREE.ilog2());
            Box::new(zstandard::Zstd::new(log, WindowMemory::default(), CancelToken::new())?)
        }
    })
}

/// No compression.
struct Plain;

impl Decoder for Plain {
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, DecodeError> {
        let n = input.len().min(output.len());
        output[..n].copy_from_slice(&input[..n]);
        Ok(Step { consumed: n, produced: n })
    }

    fn end(&self) -> Result<(), DecodeError> {
        Ok(())
    }
}
