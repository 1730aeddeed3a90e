//! Waiting for a child and learning what it used.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{SysError, raw};

/// How a child ended, and what it and the children that it waited for used.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Processor time, user and system.
    pub cpu: Duration,
    /// Most memory resident at once in one process, in bytes.
    pub peak_rss_bytes: u64,
}

/// Waits until `child` has ended, but no longer than `patience`; tells whether it has. It is not reaped.
///
/// # Errors
/// What `poll` answers. Where the kernel has no `pidfd_open` (before Linux 5.3) it says `true` at once, and
/// [`end_of`] does the waiting.
pub fn ended_within(child: &Child, patience: Duration) -> Result<bool, SysError> {
    let Ok(fd) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return Ok(true) };
    let patience = Timespec::try_from(patience).map_err(|e| SysError::new("poll", io::Error::other(e)))?;
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience)) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(SysError::new("poll", e)),
    }
}

/// Gives freed memory back to the kernel, so that what is resident is what is in use.
pub fn trim_heap() {
    raw::trim_heap();
}

/// Waits until `child` has ended, and reaps it.
///
/// # Errors
/// What `wait4` answers.
pub fn end_of(child: Child) -> Result<Ended, SysError> {
    let pid = child.id();
    let fail = |e: io::Error| SysError::new("wait4", e).arg(pid);
    let number = libc::pid_t::try_from(pid).map_err(|e| fail(io::Error::other(e)))?;
    let (status, usage) = raw::wait4(number).map_err(fail)?;
    let time = |t: libc::timeval| {
        let micros = u64::try_from(t.tv_usec).unwrap_or_default();
        Duration::from_secs(u64::try_from(t.tv_sec).unwrap_or_default()) + Duration::from_micros(micros)
    };
    Ok(Ended {
        status: ExitStatus::from_raw(status),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or_default().saturating_mul(1024),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_and_the_children_it_waited_for_are_counted() {
        let script = "sh -c 'n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done'; exit 3";
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        while !ended_within(&child, Duration::from_millis(50)).unwrap() {}
        let ended = end_of(child).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert!(ended.cpu > Duration::ZERO && ended.peak_rss_bytes > 100 << 10, "{ended:?}");
    }

    #[test]
    fn patience_ends_before_a_child_that_waits() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(!ended_within(&child, Duration::from_millis(10)).unwrap());
        drop(child.stdin.take());
        assert!(ended_within(&child, Duration::from_secs(60)).unwrap());
        assert!(end_of(child).unwrap().status.success());
    }
}
