//! The bare system calls: the only `unsafe` of the crate.
//!
//! Each wrapper takes references and slices, so that the caller cannot hand the kernel a dangling pointer, and turns
//! the result into `io::Result` at once.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

// Numbers from 403 up are the same on every architecture (Documentation/process/adding-syscalls.rst), except that MIPS
// adds the base of its ABI. libc does not carry all of them for all targets yet.
const BASE: libc::c_long = if cfg!(any(target_arch = "mips64", target_arch = "mips64r6")) {
    5000
} else if cfg!(any(target_arch = "mips", target_arch = "mips32r6")) {
    4000
} else if cfg!(all(target_arch = "x86_64", target_pointer_width = "32")) {
    0x4000_0000
} else {
    0
};
const SYS_FCHMODAT2: libc::c_long = BASE + 452;
const SYS_SETXATTRAT: libc::c_long = BASE + 463;
const SYS_GETXATTRAT: libc::c_long = BASE + 464;
const SYS_LISTXATTRAT: libc::c_long = BASE + 465;
const SYS_REMOVEXATTRAT: libc::c_long = BASE + 466;

/// `struct xattr_args` of `linux/xattr.h`; a pointer travels as a 64-bit number on every architecture.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn len_u32(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))
}

/// `fchmodat2(dirfd, name, mode, AT_SYMLINK_NOFOLLOW)`, Linux 6.6.
pub(super) fn fchmodat2(dirfd: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: `dirfd` is open and `name` is NUL-terminated for the whole call; the kernel only reads them.
    let result = unsafe {
        libc::syscall(SYS_FCHMODAT2, dirfd.as_raw_fd(), name.as_ptr(), mode, libc::AT_SYMLINK_NOFOLLOW as libc::c_uint)
    };
    check(result).map(drop)
}

/// `setxattrat(dirfd, name, AT_SYMLINK_NOFOLLOW, xattr, {value, 0 flags})`, Linux 6.13.
pub(super) fn setxattrat(dirfd: BorrowedFd<'_>, name: &CStr, xattr: &CStr, value: &[u8]) -> io::Result<()> {
    let args = XattrArgs { value: value.as_ptr() as u64, size: len_u32(value.len())?, flags: 0 };
    // SAFETY: all pointers outlive the call; the kernel reads `args` with the size given and, through it, exactly
    // `value.len()` bytes of `value`.
    let result = unsafe {
        libc::syscall(
            SYS_SETXATTRAT,
            dirfd.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW as libc::c_uint,
            xattr.as_ptr(),
            std::ptr::from_ref(&args),
            size_of::<XattrArgs>(),
        )
    };
    check(result).map(drop)
}

/// `getxattrat(dirfd, name, AT_SYMLINK_NOFOLLOW, xattr, {buf})`, Linux 6.13; an empty `buf` asks for the size.
pub(super) fn getxattrat(dirfd: BorrowedFd<'_>, name: &CStr, xattr: &CStr, buf: &mut [u8]) -> io::Result<usize> {
    let args = XattrArgs { value: buf.as_mut_ptr() as u64, size: len_u32(buf.len())?, flags: 0 };
    // SAFETY: all pointers outlive the call; the kernel writes at most `buf.len()` bytes to `buf`, which is borrowed
    // exclusively and holds initialised bytes before and after.
    let result = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            dirfd.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW as libc::c_uint,
            xattr.as_ptr(),
            std::ptr::from_ref(&args),
            size_of::<XattrArgs>(),
        )
    };
    check(result)
}

/// `listxattrat(dirfd, name, AT_SYMLINK_NOFOLLOW, buf)`, Linux 6.13; an empty `buf` asks for the size.
pub(super) fn listxattrat(dirfd: BorrowedFd<'_>, name: &CStr, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `name` is NUL-terminated; the kernel writes at most `buf.len()` bytes to `buf`, borrowed exclusively.
    let result = unsafe {
        libc::syscall(
            SYS_LISTXATTRAT,
            dirfd.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW as libc::c_uint,
            buf.as_mut_ptr(),
            buf.len(),
        )
    };
    check(result)
}

/// `removexattrat(dirfd, name, AT_SYMLINK_NOFOLLOW, xattr)`, Linux 6.13.
pub(super) fn removexattrat(dirfd: BorrowedFd<'_>, name: &CStr, xattr: &CStr) -> io::Result<()> {
    // SAFETY: both strings are NUL-terminated and outlive the call; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            SYS_REMOVEXATTRAT,
            dirfd.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW as libc::c_uint,
            xattr.as_ptr(),
        )
    };
    check(result).map(drop)
}

/// Makes `command` start with `root` as its root and working directory, with no signal blocked and, where given, with
/// `soft_files` as its soft limit of open files.
pub(super) fn enter_root(command: &mut Command, root: OwnedFd, soft_files: Option<u64>) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let prepare = move || {
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(c".")?;
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        if let Some(soft) = soft_files {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
        }
        Ok(())
    };
    // SAFETY: `prepare` runs between fork and exec, where only async-signal-safe calls are allowed: it makes five bare
    // system calls on values that it owns or that live on its stack, allocates nothing and takes no lock; the errors it
    // returns are plain numbers.
    unsafe { command.pre_exec(prepare) };
}

/// Gives freed memory that the C library keeps back to the kernel (`man 3 malloc_trim`); other libraries keep little.
pub(super) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and touches free memory alone, under the library's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// `wait4(pid, 0)`: how a child ended, and what it and the children that it waited for used.
pub(super) fn wait4(pid: libc::pid_t) -> io::Result<(libc::c_int, libc::rusage)> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to writable memory of the right size that outlives the call.
        let result = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
        match check(result.into()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // SAFETY: every bit pattern is a valid `rusage`, which holds integers only; it began as zeros.
            other => return other.map(|_| (status, unsafe { usage.assume_init() })),
        }
    }
}
