//! Why an archive is refused: one variant per refusal, with its place and what was found.

use crate::error::{self, ErrorKind, escape};
use crate::policy::Limit;

/// Where in the stream a refusal happened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Offset in the decompressed stream, in bytes: of the header block, or of the record inside an extension body.
    pub offset: u64,
    /// The entry's name as far as it was known; empty otherwise.
    pub entry: Vec<u8>,
}

/// A refusal of the tar parser.
///
/// The text of an error does not repeat its [`Place`]; the conversion into [`crate::error::Error`] carries it as context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A header's checksum is neither its unsigned nor its signed sum of bytes (T7, T8): the block is no header.
    #[error("header checksum is {}, expected {expected}", .found.map_or("not a number".to_owned(), |n| n.to_string()))]
    Checksum {
        /// Where.
        at: Place,
        /// The unsigned sum of the block's bytes.
        expected: u32,
        /// What the field says, if it is a number.
        found: Option<i128>,
    },
    /// A header field is no number.
    #[error("{field} field is not a number: \"{}\"", escape(.found))]
    NotANumber {
        /// Where.
        at: Place,
        /// Name of the field.
        field: &'static str,
        /// The field's bytes.
        found: Vec<u8>,
    },
    /// A number lies outside what it may be (T27, M5, M6, R-18).
    #[error("{field} is {}, expected 0 to {max}", Number(*.found))]
    OutOfRange {
        /// Where.
        at: Place,
        /// Name of the field or PAX key.
        field: &'static str,
        /// The value, `i128::MAX` when larger than that.
        found: i128,
        /// The largest value accepted.
        max: i128,
    },
    /// An entry type that no layer may hold (T11, T12, R-12).
    #[error("entry type \"{}\" is not supported", escape(&[*.found]))]
    UnsupportedType {
        /// Where.
        at: Place,
        /// The type flag.
        found: u8,
    },
    /// One zero block followed by something else (T6): readers disagree whether the archive ends there.
    #[error("a single zero block is followed by data, expected a second zero block or the end of the stream")]
    ZeroBlock {
        /// Where.
        at: Place,
    },
    /// The stream ends inside a header, an extension header or a map (T3).
    #[error("the stream ends inside {inside}")]
    Truncated {
        /// Where the missing part begins.
        at: Place,
        /// What was cut off.
        inside: &'static str,
    },
    /// An extension header that no entry follows (T30).
    #[error("extension header \"{}\" is followed by {before} instead of an entry", escape(&[*.found]))]
    Dangling {
        /// Where.
        at: Place,
        /// The extension header's type flag.
        found: u8,
        /// What follows it.
        before: &'static str,
    },
    /// A second PAX header for one entry (T17, R-16).
    #[error("a second PAX header for one entry is ambiguous; the first is at offset {first}")]
    SecondPaxHeader {
        /// Where.
        at: Place,
        /// Offset of the first one, in bytes.
        first: u64,
    },
    /// A name given by PAX and by a GNU header (T16, R-16).
    #[error("PAX {key} \"{}\" and GNU long name \"{}\" for one entry are ambiguous", escape(.pax), escape(.gnu))]
    AmbiguousName {
        /// Where.
        at: Place,
        /// `path` or `linkpath`.
        key: &'static str,
        /// What PAX says.
        pax: Vec<u8>,
        /// What GNU says.
        gnu: Vec<u8>,
    },
    /// A hard link whose PAX header gives it a size (L10): readers disagree whether data follows.
    #[error("entry of type \"{}\" with a PAX size of {found}, expected none or 0", escape(&[*.typeflag]))]
    SizeWithoutData {
        /// Where.
        at: Place,
        /// The type flag.
        typeflag: u8,
        /// The size, in bytes.
        found: u64,
    },
    /// A prefix under a magic that is neither POSIX's nor GNU's (T29): readers disagree whether it belongs to the name.
    #[error("prefix \"{}\" under the magic \"{}\" is ambiguous", escape(.prefix), escape(.magic))]
    AmbiguousPrefix {
        /// Where.
        at: Place,
        /// Magic and version.
        magic: Vec<u8>,
        /// The prefix.
        prefix: Vec<u8>,
    },
    /// A PAX record breaks its syntax (T19).
    #[error("malformed PAX record: {problem}")]
    PaxRecord {
        /// Where the record begins.
        at: Place,
        /// What is wrong.
        problem: &'static str,
    },
    /// A PAX value is not what its key needs.
    #[error("PAX {} is \"{}\", expected {expected}", escape(.key), escape(.found))]
    PaxValue {
        /// Where the record begins.
        at: Place,
        /// The key.
        key: Vec<u8>,
        /// The value's first bytes.
        found: Vec<u8>,
        /// What it should be.
        expected: &'static str,
    },
    /// A PAX key, or a value that names something, holds a NUL byte (T20).
    #[error("PAX {} holds a NUL byte", escape(.key))]
    PaxNul {
        /// Where the record begins.
        at: Place,
        /// The key.
        key: Vec<u8>,
    },
    /// A sparse map on something that is not a plain file of its format (T30).
    #[error("sparse map on an entry of type \"{}\": {problem}", escape(&[*.found]))]
    SparseCarrier {
        /// Where.
        at: Place,
        /// The type flag.
        found: u8,
        /// What is wrong.
        problem: &'static str,
    },
    /// A sparse map breaks its syntax or its arithmetic (T26).
    #[error("malformed sparse map: {problem} (found {}, limit {limit})", Number(*.found))]
    SparseMap {
        /// Where.
        at: Place,
        /// What is wrong.
        problem: &'static str,
        /// The number that breaks the rule.
        found: i128,
        /// The number it is measured against.
        limit: i128,
    },
    /// A symlink with an empty target, or one over 4,095 bytes (S1).
    #[error("symlink target has {found} bytes, expected 1 to {max}")]
    SymlinkTarget {
        /// Where.
        at: Place,
        /// Its length in bytes.
        found: usize,
        /// The longest accepted, in bytes.
        max: usize,
    },
    /// An xattr that Linux can store nowhere: a name over 255 bytes or a value over 65,536 (M21).
    #[error("{part} of xattr \"{}\" has {found} bytes, Linux stores at most {max}", escape(.name))]
    XattrTooLarge {
        /// Where the record begins.
        at: Place,
        /// `name` or `value`.
        part: &'static str,
        /// The name's first bytes.
        name: Vec<u8>,
        /// Length of that part in bytes.
        found: usize,
        /// The longest that Linux stores, in bytes.
        max: usize,
    },
    /// Too much of something; the only variant of kind `Limit` (B2 to B6).
    #[error("{}: {}, the limit is {limit}", .which.bounds(), Number(*.found))]
    Limit {
        /// Where.
        at: Place,
        /// Which limit.
        which: Limit,
        /// How much there is, or at least is.
        found: i128,
        /// The limit.
        limit: u64,
    },
}

/// Prints a saturated number honestly.
struct Number(i128);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == i128::MAX { f.write_str("too large to count") } else { self.0.fmt(f) }
    }
}

impl Error {
    /// Returns where it happened.
    pub fn at(&self) -> &Place {
        match self {
            Error::Checksum { at, .. }
            | Error::NotANumber { at, .. }
            | Error::OutOfRange { at, .. }
            | Error::UnsupportedType { at, .. }
            | Error::ZeroBlock { at }
            | Error::Truncated { at, .. }
            | Error::Dangling { at, .. }
            | Error::SecondPaxHeader { at, .. }
            | Error::AmbiguousName { at, .. }
            | Error::SizeWithoutData { at, .. }
            | Error::AmbiguousPrefix { at, .. }
            | Error::PaxRecord { at, .. }
            | Error::PaxValue { at, .. }
            | Error::PaxNul { at, .. }
            | Error::SparseCarrier { at, .. }
            | Error::SparseMap { at, .. }
            | Error::SymlinkTarget { at, .. }
            | Error::XattrTooLarge { at, .. }
            | Error::Limit { at, .. } => at,
        }
    }
}

impl Error {
    /// Returns the rule that the archive breaks.
    pub fn rule(&self) -> &'static str {
        match self {
            Error::Checksum { .. } => "T8",
            Error::NotANumber { .. } => "T27",
            Error::OutOfRange { field, .. } if matches!(*field, "uid" | "gid") => "M5",
            Error::OutOfRange { field, .. } if field.starts_with("device") => "M6",
            Error::OutOfRange { .. } => "T27",
            Error::UnsupportedType { .. } => "T11",
            Error::ZeroBlock { .. } => "T6",
            Error::Truncated { .. } => "T3",
            Error::Dangling { .. } | Error::SparseCarrier { .. } => "T30",
            Error::SecondPaxHeader { .. } => "T17",
            Error::AmbiguousName { .. } => "T16",
            Error::SizeWithoutData { typeflag: b'1', .. } => "L10",
            Error::SizeWithoutData { .. } => "T15",
            Error::AmbiguousPrefix { .. } => "T29",
            Error::PaxRecord { .. } | Error::PaxValue { .. } => "T19",
            Error::PaxNul { .. } => "T20",
            Error::SparseMap { .. } => "T26",
            Error::SymlinkTarget { .. } => "S1",
            Error::XattrTooLarge { .. } => "M21",
            Error::Limit { which, .. } => match which {
                Limit::Entries => "B2",
                Limit::ExtensionHeaders => "B4",
                Limit::PathBytes | Limit::Depth => "B5",
                Limit::SparseRegions => "B6",
                _ => "B3",
            },
        }
    }
}

impl From<Error> for error::Error {
    fn from(err: Error) -> Self {
        let kind = if matches!(err, Error::Limit { .. }) { ErrorKind::Limit } else { ErrorKind::Malformed };
        let out = error::Error::new(kind, format!("{err} ({})", err.rule())).with_offset(err.at().offset);
        let out = if let Error::Limit { which, .. } = &err { out.with_hint(which.advice()) } else { out };
        if err.at().entry.is_empty() { out } else { out.with_entry(&err.at().entry) }
    }
}
