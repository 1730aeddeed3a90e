//! A failed system call with its name and arguments.

use std::ffi::CStr;
use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, escape};

/// A failed system call; prints as strace does: `openat2(3, "a/b", O_PATH|O_DIRECTORY) = -1 ENOENT`.
#[derive(Debug)]
pub struct SysError {
    call: &'static str,
    args: String,
    source: io::Error,
}

impl SysError {
    /// Creates the error of `call`, with no arguments yet; they are added left to right.
    pub fn new(call: &'static str, err: impl Into<io::Error>) -> Self {
        SysError { call, args: String::new(), source: err.into() }
    }

    /// Adds a descriptor argument.
    pub fn fd(self, fd: BorrowedFd<'_>) -> Self {
        let raw = fd.as_raw_fd();
        if raw == libc::AT_FDCWD { self.arg("AT_FDCWD") } else { self.arg(raw) }
    }

    /// Adds a path argument, quoted and escaped.
    pub fn path(self, path: impl AsRef<Path>) -> Self {
        self.bytes(path.as_ref().as_os_str().as_bytes())
    }

    /// Adds a byte string argument, quoted and escaped.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        self.arg(format_args!("\"{}\"", escape(bytes)))
    }

    /// Adds a C string argument, quoted and escaped.
    pub fn cstr(self, text: &CStr) -> Self {
        self.bytes(text.to_bytes())
    }

    /// Adds an argument as it prints: flags, a mode, a length.
    pub fn arg(mut self, arg: impl fmt::Display) -> Self {
        if !self.args.is_empty() {
            self.args.push_str(", ");
        }
        // Writing to a String cannot fail.
        let _ = write!(self.args, "{arg}");
        self
    }

    /// Returns the error number, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Returns the name of the call.
    pub fn call(&self) -> &'static str {
        self.call
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}) = -1 ", self.call, self.args)?;
        match self.errno() {
            Some(errno) => write!(f, "{:?}", nix::errno::Errno::from_raw(errno)),
            None => write!(f, "{}", self.source),
        }
    }
}

impl std::error::Error for SysError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<SysError> for Error {
    /// Converts with the kind that the error number stands for; the cause is the `io::Error`.
    fn from(err: SysError) -> Self {
        let what = err.to_string();
        Error::io(what, err.source)
    }
}

impl From<SysError> for io::Error {
    /// Keeps the error number in reach through `kind()` and the call in the text.
    fn from(err: SysError) -> Self {
        io::Error::new(err.source.kind(), err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::os::fd::AsFd;

    #[test]
    fn a_failed_call_prints_like_strace_and_keeps_its_kind() {
        let dir = std::fs::File::open("/").unwrap();
        let err = SysError::new("openat2", io::Error::from_raw_os_error(libc::ENOENT))
            .fd(dir.as_fd())
            .path("a/\"b\n")
            .arg("O_PATH|O_DIRECTORY");
        let shown = err.to_string();
        assert_eq!(
            shown,
            format!(r#"openat2({}, "a/\"b\n", O_PATH|O_DIRECTORY) = -1 ENOENT"#, dir.as_fd().as_raw_fd())
        );
        assert_eq!(err.errno(), Some(libc::ENOENT));
        let err = Error::from(err);
        assert_eq!(err.kind(), ErrorKind::NotFound);
        assert!(err.to_string().starts_with(&shown), "{err}");
    }

    #[test]
    fn the_error_number_decides_the_kind() {
        for (errno, kind) in [
            (libc::ENOSPC, ErrorKind::NoSpace),
            (libc::EDQUOT, ErrorKind::NoSpace),
            (libc::EPERM, ErrorKind::NotPermitted),
            (libc::EROFS, ErrorKind::Unsupported),
            (libc::EBUSY, ErrorKind::Busy),
            (libc::EEXIST, ErrorKind::AlreadyExists),
            (libc::EIO, ErrorKind::Other),
        ] {
            let err = SysError::new("x", io::Error::from_raw_os_error(errno));
            assert_eq!(Error::from(err).kind(), kind, "errno {errno}");
        }
    }
}
