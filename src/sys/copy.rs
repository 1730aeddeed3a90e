//! Copying a file's content between descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::SysError;

/// How the content of a file was carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyMethod {
    /// The two files share their blocks (`FICLONE`).
    Reflink,
    /// The kernel copied (`copy_file_range`), holes kept.
    CopyFileRange,
    /// At least part went through this process, holes kept.
    ReadWrite,
}

/// Bytes moved by one `read`/`write` pair.
const CHUNK: usize = 128 << 10;

/// Makes the content of `dst`, an empty file open for writing, equal to that of the regular file `src`.
///
/// Tries a reflink, then `copy_file_range`, then reading and writing; holes stay holes. Moves the offset of `src`.
/// The source is taken to be at rest: a file that shrinks meanwhile ends in a hole.
///
/// # Errors
/// What the kernel answers; `dst` may then hold a part.
pub fn reflink_or_copy(src: impl AsFd, dst: impl AsFd) -> Result<CopyMethod, SysError> {
    let (src, dst) = (src.as_fd(), dst.as_fd());
    if rustix::fs::ioctl_ficlone(dst, src).is_ok() {
        return Ok(CopyMethod::Reflink);
    }
    // Whatever the reason was (file system, mount, an old kernel): the copy below meets it again if it matters.
    copy_data(src, dst, CopyMethod::CopyFileRange)
}

fn copy_data(src: BorrowedFd<'_>, dst: BorrowedFd<'_>, mut method: CopyMethod) -> Result<CopyMethod, SysError> {
    let stat = rustix::fs::fstat(src).map_err(|e| SysError::new("fstat", e).fd(src))?;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    rustix::fs::ftruncate(dst, len).map_err(|e| SysError::new("ftruncate", e).fd(dst).arg(len))?;
    let mut at = 0;
    while let Some((start, end)) = next_data(src, at, len)? {
        if method == CopyMethod::CopyFileRange {
            at = copy_range(src, dst, start, end)?;
        } else {
            at = start;
        }
        if at < end {
            method = CopyMethod::ReadWrite;
            read_write(src, dst, at, end)?;
        }
        at = end;
    }
    Ok(method)
}

/// Returns the first run of data at or after `at`: its start and its end, both before `len`.
fn next_data(src: BorrowedFd<'_>, at: u64, len: u64) -> Result<Option<(u64, u64)>, SysError> {
    if at >= len {
        return Ok(None);
    }
    let start = match rustix::fs::seek(src, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system without SEEK_DATA: all of it is data.
        Err(Errno::INVAL) => return Ok(Some((at, len))),
        Err(e) => return Err(SysError::new("lseek", e).fd(src).arg(at).arg("SEEK_DATA")),
    };
    let end = rustix::fs::seek(src, SeekFrom::Hole(start))
        .map_err(|e| SysError::new("lseek", e).fd(src).arg(start).arg("SEEK_HOLE"))?;
    Ok((start < len).then_some((start, end.min(len))))
}

/// Copies within the kernel and returns how far it came; less than `end` means that this pair of files needs reading.
fn copy_range(src: BorrowedFd<'_>, dst: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64, SysError> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(src, Some(&mut from), dst, Some(&mut to), want) {
            // 0 before the end: /proc-like files, or a file system's refusal in disguise.
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM) => break,
            Err(e) => return Err(SysError::new("copy_file_range", e).fd(src).arg(from).fd(dst).arg(to).arg(want)),
        }
    }
    Ok(from)
}

fn read_write(src: BorrowedFd<'_>, dst: BorrowedFd<'_>, mut at: u64, end: u64) -> Result<(), SysError> {
    let mut buf = vec![0u8; CHUNK];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let got = match rustix::io::pread(src, buf.get_mut(..want).unwrap_or_default(), at) {
            Ok(0) => return Ok(()),
            Ok(got) => got,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(SysError::new("pread64", e).fd(src).arg(want).arg(at)),
        };
        let mut rest = buf.get(..got).unwrap_or_default();
        while !rest.is_empty() {
            match rustix::io::pwrite(dst, rest, at) {
                Ok(0) => {
                    let zero = io::Error::from(io::ErrorKind::WriteZero);
                    return Err(SysError::new("pwrite64", zero).fd(dst).arg(rest.len()).arg(at));
                }
                Ok(done) => {
                    at += done as u64;
                    rest = rest.get(done..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(SysError::new("pwrite64", e).fd(dst).arg(rest.len()).arg(at)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::fs::{FileExt, MetadataExt};

    /// Data, a 4 MiB hole, data, a hole at the end.
    fn sparse() -> (File, u64) {
        let file = tempfile::tempfile().unwrap();
        let len = 8 << 20;
        file.set_len(len).unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        file.write_all_at(&[2; 300_000], 4 << 20).unwrap();
        (file, len)
    }

    #[test]
    fn copies_are_equal_and_holes_stay_holes_on_every_way() {
        for method in [None, Some(CopyMethod::CopyFileRange), Some(CopyMethod::ReadWrite)] {
            let (src, len) = sparse();
            let mut dst = tempfile::tempfile().unwrap();
            match method {
                None => drop(reflink_or_copy(&src, &dst).unwrap()),
                Some(way) => assert_eq!(copy_data(src.as_fd(), dst.as_fd(), way).unwrap(), way),
            }
            let mut content = Vec::new();
            dst.read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, len);
            assert!(content[..5000].iter().all(|b| *b == 1) && content[5000..4 << 20].iter().all(|b| *b == 0));
            assert!(content[4 << 20..][..300_000].iter().all(|b| *b == 2));
            assert!(content[(4 << 20) + 300_000..].iter().all(|b| *b == 0));
            let blocks = dst.metadata().unwrap().blocks() * 512;
            assert!(blocks < 2 << 20, "{method:?}: {blocks} bytes allocated");
        }
    }

    #[test]
    fn an_empty_file_and_one_hole_are_copied() {
        for len in [0, 1 << 20] {
            let src = tempfile::tempfile().unwrap();
            src.set_len(len).unwrap();
            let dst = tempfile::tempfile().unwrap();
            reflink_or_copy(&src, &dst).unwrap();
            assert_eq!(dst.metadata().unwrap().len(), len);
        }
    }

    #[test]
    fn a_destination_that_cannot_be_written_is_an_error_that_names_the_call() {
        let (src, _) = sparse();
        let dst = File::open("/proc/self/exe").unwrap();
        let err = reflink_or_copy(&src, &dst).unwrap_err();
        assert!(err.to_string().starts_with("ftruncate("), "{err}");
    }
}
