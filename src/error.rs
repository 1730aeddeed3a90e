//! The one error type of the public API.
//!
//! Owns: what kind of failure happened (which decides the exit code) and the context an operator needs:
//! image, layer, entry, offset and what to do. Modules keep small enums of their own where callers branch
//! and turn them into this type at their edge.

use std::fmt;
use std::io;

/// What went wrong, as far as a caller would branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Wrong use of an argument or an option.
    Usage,
    /// An image, tag, platform, blob or store object is not there.
    NotFound,
    /// A digest, size or diff_id does not match; nothing was published.
    Integrity,
    /// Malformed, ambiguous or hostile input; nothing was published.
    Malformed,
    /// Input over a limit; nothing was published.
    Limit,
    /// The caller lacks a privilege.
    NotPermitted,
    /// The kernel, the file system or this version cannot do it.
    Unsupported,
    /// No space or no inodes left; finished layers are kept.
    NoSpace,
    /// Something is in use or locked.
    Busy,
    /// Something of that name exists already.
    AlreadyExists,
    /// A store object is in a state in which this cannot be done to it.
    FailedPrecondition,
    /// A registry or the network failed.
    Network,
    /// The caller cancelled.
    Cancelled,
    /// Any other failure.
    Other,
}

impl ErrorKind {
    /// Returns the stable word that JSON errors carry as `code`.
    pub fn code(self) -> &'static str {
        match self {
            ErrorKind::Usage => "usage",
            ErrorKind::NotFound => "not-found",
            ErrorKind::Integrity => "integrity",
            ErrorKind::Malformed => "malformed",
            ErrorKind::Limit => "limit",
            ErrorKind::NotPermitted => "not-permitted",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::NoSpace => "no-space",
            ErrorKind::Busy => "busy",
            ErrorKind::AlreadyExists => "already-exists",
            ErrorKind::FailedPrecondition => "failed-precondition",
            ErrorKind::Network => "network",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Other => "other",
        }
    }

    /// Returns the process exit code of the command-line contract.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Usage | ErrorKind::FailedPrecondition => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::Integrity => 4,
            ErrorKind::Malformed | ErrorKind::Limit => 5,
            ErrorKind::NotPermitted | ErrorKind::Unsupported => 6,
            ErrorKind::NoSpace => 7,
            ErrorKind::Busy => 8,
            ErrorKind::Network => 9,
            ErrorKind::Cancelled => 130,
            ErrorKind::AlreadyExists | ErrorKind::Other => 1,
        }
    }
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    image: Option<String>,
    layer: Option<String>,
    entry: Option<String>,
    offset: Option<u64>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A failure with its context: which image, which layer, which entry, at which offset, and what to do next.
#[derive(Debug)]
pub struct Error(Box<Inner>);

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an error of `kind` with a message in lower case.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            image: None,
            layer: None,
            entry: None,
            offset: None,
            hint: None,
            source: None,
        }))
    }

    /// Creates an error from a failed system call or I/O operation; `what` says what was attempted on what.
    pub fn io(what: impl Into<String>, err: std::io::Error) -> Self {
        let kind = kind_of_io(&err);
        Error::new(kind, what).with_source(err)
    }

    /// Names the image (the reference as the user gave it).
    pub fn with_image(mut self, image: impl fmt::Display) -> Self {
        self.0.image.get_or_insert_with(|| image.to_string());
        self
    }

    /// Names the layer (its blob digest or diff_id).
    pub fn with_layer(mut self, layer: impl fmt::Display) -> Self {
        self.0.layer.get_or_insert_with(|| layer.to_string());
        self
    }

    /// Names the archive entry; bytes that are not printable are escaped.
    pub fn with_entry(mut self, entry: &[u8]) -> Self {
        self.0.entry.get_or_insert_with(|| escape(entry));
        self
    }

    /// Gives the offset in bytes within the decompressed layer.
    pub fn with_offset(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Says what to do next.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert(hint.into());
        self
    }

    /// Keeps the cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Replaces the kind and the message; used when damage turns out to be a wrong digest. Where the damage was noticed
    /// goes into the new message, since it is not where the blob is wrong.
    pub fn reclassified(mut self, kind: ErrorKind, message: impl fmt::Display) -> Self {
        let Inner { image, layer, .. } = &mut *self.0;
        let (image, layer) = (image.take(), layer.take());
        let mut new = Error::new(kind, format!("{message} (noticed by: {self})"));
        (new.0.image, new.0.layer) = (image, layer);
        new
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the bare message, without context, with its cause.
    pub fn message(&self) -> String {
        match &self.0.source {
            Some(source) => format!("{}: {source}", self.0.message),
            None => self.0.message.clone(),
        }
    }

    /// Returns the image reference the error is about.
    pub fn image(&self) -> Option<&str> {
        self.0.image.as_deref()
    }

    /// Returns the layer the error is about.
    pub fn layer(&self) -> Option<&str> {
        self.0.layer.as_deref()
    }

    /// Returns the archive entry the error is about, escaped for printing.
    pub fn entry(&self) -> Option<&str> {
        self.0.entry.as_deref()
    }

    /// Returns the offset in the decompressed layer, in bytes.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// Returns what to do next.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if let Some(image) = &inner.image {
            write!(f, "image {image}: ")?;
        }
        if let Some(layer) = &inner.layer {
            write!(f, "layer {layer}: ")?;
        }
        if let Some(entry) = &inner.entry {
            write!(f, "entry \"{entry}\"")?;
            if let Some(offset) = inner.offset {
                write!(f, " at offset {offset}")?;
            }
            write!(f, ": ")?;
        } else if let Some(offset) = inner.offset {
            write!(f, "offset {offset}: ")?;
        }
        f.write_str(&self.message())?;
        if let Some(hint) = &inner.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}

/// Classifies an I/O error; an [`Error`] carried inside keeps its own kind.
fn kind_of_io(err: &std::io::Error) -> ErrorKind {
    if let Some(inner) = err.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        return inner.kind();
    }
    match err.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
        Some(libc::EPERM | libc::EACCES) => ErrorKind::NotPermitted,
        // A file too large (EFBIG) is one that this file system cannot hold, however empty it is.
        Some(libc::EROFS | libc::ENOSYS | libc::EOPNOTSUPP | libc::EFBIG) => ErrorKind::Unsupported,
        Some(libc::EBUSY | libc::ETXTBSY) => ErrorKind::Busy,
        Some(libc::ENOENT) => ErrorKind::NotFound,
        Some(libc::EEXIST) => ErrorKind::AlreadyExists,
        Some(_) => ErrorKind::Other,
        // Whoever wrapped it with a path kept only its kind.
        None => match err.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::FileTooLarge => ErrorKind::Unsupported,
            io::ErrorKind::ResourceBusy => ErrorKind::Busy,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            _ => ErrorKind::Other,
        },
    }
}

/// Takes an [`Error`] out of an `io::Error` that carries one, or wraps it with `what`.
pub fn from_io(what: &str, err: std::io::Error) -> Error {
    match err.downcast::<Error>() {
        Ok(inner) => inner,
        Err(err) => Error::io(what, err),
    }
}

impl From<Error> for std::io::Error {
    fn from(err: Error) -> Self {
        std::io::Error::other(err)
    }
}

/// Escapes bytes for a message or a log: printable UTF-8 as it is, everything else as `\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '"' => out.push_str("\\\""),
                c if c.is_control() => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_was_wrapped_with_a_path_keeps_its_kind() {
        for (errno, kind) in [
            (libc::ENOSPC, ErrorKind::NoSpace),
            (libc::EDQUOT, ErrorKind::NoSpace),
            (libc::EROFS, ErrorKind::Unsupported),
            (libc::EACCES, ErrorKind::NotPermitted),
            (libc::EIO, ErrorKind::Other),
        ] {
            let wrapped = io::Error::new(io::Error::from_raw_os_error(errno).kind(), "at path x");
            assert_eq!(Error::io("create", wrapped).kind(), kind, "errno {errno}");
        }
    }

    #[test]
    fn display_names_image_layer_entry_offset_cause_and_hint() {
        let err = Error::new(ErrorKind::Malformed, "hard link target is missing")
            .with_image("oci:x:latest")
            .with_layer("sha256:ab")
            .with_entry(b"a\nb\xff")
            .with_offset(512)
            .with_hint("rebuild the image");
        assert_eq!(
            err.to_string(),
            "image oci:x:latest: layer sha256:ab: entry \"a\\nb\\xff\" at offset 512: hard link target is missing; rebuild the image"
        );
        assert_eq!(err.kind().exit_code(), 5);
    }

    #[test]
    fn r29_a_wrong_digest_does_not_stand_at_the_offset_where_damage_was_noticed() {
        let damage = Error::new(ErrorKind::Malformed, "no header").with_layer("sha256:ab").with_offset(512);
        let err = damage.reclassified(ErrorKind::Integrity, "the blob's digest is x, expected y");
        let shown = "layer sha256:ab: the blob's digest is x, expected y (noticed by: offset 512: no header)";
        assert_eq!((err.to_string().as_str(), err.kind(), err.offset()), (shown, ErrorKind::Integrity, None));
    }

    #[test]
    fn kind_survives_a_trip_through_io_error() {
        let io: std::io::Error = Error::new(ErrorKind::Integrity, "x").into();
        assert_eq!(
            Error::io("read", std::io::Error::other(Error::new(ErrorKind::Limit, "y"))).kind(),
            ErrorKind::Limit
        );
        assert_eq!(from_io("read", io).kind(), ErrorKind::Integrity);
        assert_eq!(Error::io("write", std::io::Error::from_raw_os_error(libc::ENOSPC)).kind(), ErrorKind::NoSpace);
    }
}
