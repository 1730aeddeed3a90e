//! Numbers of tar headers and PAX records, checked digit by digit.
//!
//! Owns: octal and base-256 header fields over their full width, PAX decimals, PAX times. Refuses to know: what a
//! number is for; its caller names the range. Invariant: nothing wraps and nothing is cut off — a number that does
//! not fit `i128` is reported as `i128::MAX`, which no caller accepts.

use super::Timestamp;
use super::error::{Error, Place};

/// The largest owner or group; the next number means "unchanged" to chown (M5, CVE-2024-40635).
const MAX_ID: i128 = u32::MAX as i128 - 1;

/// The largest device numbers that `makedev` keeps on Linux (M6).
pub(super) const MAX_MAJOR: i128 = 4_095;
/// See [`MAX_MAJOR`].
pub(super) const MAX_MINOR: i128 = 1_048_575;

/// Decodes a header field: octal digits, or base-256 when the top bit of the first byte is set.
///
/// Spaces and NULs around the digits are skipped, an empty field is 0 (as in every reader), what stands behind a NUL
/// is ignored. Digits after an inner space are no number: readers disagree about them. Base-256 is two's complement
/// with bit 6 of the first byte as its sign (<https://www.gnu.org/software/tar/manual/html_node/Extensions.html>).
pub(super) fn field(raw: &[u8]) -> Option<i128> {
    if raw.first().is_some_and(|b| b & 0x80 != 0) { base256(raw) } else { octal(raw) }
}

fn octal(raw: &[u8]) -> Option<i128> {
    let start = raw.iter().position(|b| !matches!(b, b' ' | 0)).unwrap_or(raw.len());
    let text = raw.get(start..)?;
    let text = text.split(|&b| b == 0).next().unwrap_or_default().trim_ascii_end();
    text.iter().try_fold(0i128, |value, &b| match b {
        b'0'..=b'7' => Some(value.saturating_mul(8).saturating_add(i128::from(b - b'0'))),
        _ => None,
    })
}

fn base256(raw: &[u8]) -> Option<i128> {
    // Header fields are at most 12 bytes; 16 would already lose bits.
    if raw.len() > 15 {
        return None;
    }
    let (&first, rest) = raw.split_first()?;
    let negative = first & 0x40 != 0;
    // Bit 7 only marks the encoding: the sign bit takes its place.
    let top = if negative { i128::from(first as i8) } else { i128::from(first & 0x3f) };
    Some(rest.iter().fold(top, |value, &b| value << 8 | i128::from(b)))
}

/// Decodes an unsigned decimal of a PAX record or a sparse map: digits only, no sign, no blanks, at least one digit.
///
/// Too large a value saturates; signs are refused because parsers disagree about them.
pub(super) fn decimal(text: &[u8]) -> Option<i128> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0i128, |value, &b| {
        let digit = b.is_ascii_digit().then(|| i128::from(b - b'0'))?;
        Some(value.saturating_mul(10).saturating_add(digit))
    })
}

/// Decodes a PAX time: optional `-`, digits, optional fraction. Digits behind the ninth of the fraction are cut off;
/// a time beyond `i64` seconds saturates, keeping its sign (rule M9).
pub(super) fn pax_time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (text.get(..dot)?, text.get(dot + 1..)?),
        None => (text, &b""[..]),
    };
    let whole = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0u32, |value, i| value * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0')));
    let (seconds, nanos) = match (negative, nanos) {
        (false, nanos) => (whole, nanos),
        (true, 0) => (-whole, 0),
        (true, nanos) => ((-whole).saturating_sub(1), 1_000_000_000 - nanos),
    };
    Some(match i64::try_from(seconds) {
        Ok(seconds) => Timestamp { seconds, nanos },
        Err(_) => saturated(seconds),
    })
}

/// Turns whole seconds into a time, saturating at the ends of `i64`.
pub(super) fn whole_seconds(seconds: i128) -> Timestamp {
    i64::try_from(seconds).map_or_else(|_| saturated(seconds), |seconds| Timestamp { seconds, nanos: 0 })
}

fn saturated(seconds: i128) -> Timestamp {
    Timestamp { seconds: if seconds < 0 { i64::MIN } else { i64::MAX }, nanos: 0 }
}

/// Checks that a number lies between 0 and `max`.
pub(super) fn ranged(found: i128, field: &'static str, max: i128, at: &Place) -> Result<u64, Error> {
    match u64::try_from(found) {
        Ok(value) if found <= max => Ok(value),
        _ => Err(Error::OutOfRange { at: at.clone(), field, found, max }),
    }
}

/// Checks that a number of 32 bits lies between 0 and `max`.
pub(super) fn small(found: i128, field: &'static str, max: i128, at: &Place) -> Result<u32, Error> {
    match u32::try_from(found) {
        Ok(value) if found <= max => Ok(value),
        _ => Err(Error::OutOfRange { at: at.clone(), field, found, max }),
    }
}

/// Checks an owner or group.
pub(super) fn id(found: i128, field: &'static str, at: &Place) -> Result<u32, Error> {
    small(found, field, MAX_ID, at)
}
