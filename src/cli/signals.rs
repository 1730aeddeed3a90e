//! SIGINT, SIGTERM and SIGHUP become cancellation.
//!
//! Owns: one thread that waits for signals, which of them came, and to whom they are passed on. Invariants: the signals are
//! blocked in every thread made after [`Signals::watch`]; a second one ends the process at once, which is safe because
//! the store and the target survive any kill.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::cancel::CancelToken;
use crate::error::{Error, Result};

/// What the watching thread found.
#[derive(Debug, Clone)]
pub struct Signals(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    token: CancelToken,
    first: AtomicI32,
    child: Mutex<Option<Pid>>,
}

impl Signals {
    /// Blocks the signals and begins to wait for them; to be called before any other thread exists.
    pub fn watch() -> Result<Signals> {
        let at = |call: &str, e: nix::Error| Error::io(call, e.into());
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        let set = ignored(set);
        set.thread_block().map_err(|e| at("block signals", e))?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).map_err(|e| at("signalfd", e))?;
        let shared = Arc::new(Shared { token: CancelToken::new(), first: AtomicI32::new(0), child: Mutex::new(None) });
        let signals = Signals(shared);
        let watcher = signals.clone();
        std::thread::Builder::new()
            .name("unply-signals".to_owned())
            .spawn(move || watcher.wait(&fd))
            .map_err(|e| Error::io("start a thread", e))?;
        Ok(signals)
    }

    fn wait(&self, fd: &SignalFd) {
        loop {
            let Ok(Some(info)) = fd.read_signal() else { continue };
            let Some(signal) = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok()) else {
                continue;
            };
            let child = self.child();
            if let Some(pid) = *child {
                // A terminal signals the whole foreground group, the child included.
                if info.ssi_code <= 0 {
                    // It may be gone already.
                    let _ = kill(pid, signal);
                }
                continue;
            }
            drop(child);
            if self.0.first.swap(signal as i32, Ordering::AcqRel) != 0 {
                std::process::exit(128 + signal as i32);
            }
            self.0.token.cancel();
        }
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Pid>> {
        self.0.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the token that the first signal cancels.
    pub fn token(&self) -> &CancelToken {
        &self.0.token
    }

    /// Returns the exit code that the first signal asks for.
    pub fn exit_code(&self) -> Option<u8> {
        match self.0.first.load(Ordering::Acquire) {
            0 => None,
            signal => u8::try_from(128 + signal).ok(),
        }
    }

    /// Passes signals on to a child until it has ended, instead of cancelling anything; returns how it ended.
    pub fn pass_on_to(&self, child: &mut std::process::Child) -> std::io::Result<std::process::ExitStatus> {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let pid = i32::try_from(child.id()).map(Pid::from_raw).map_err(std::io::Error::other)?;
        *self.child() = Some(pid);
        // A signal that came before the child did.
        if let Some(signal) = self.exit_code().and_then(|code| Signal::try_from(i32::from(code) - 128).ok()) {
            let _ = kill(pid, signal);
        }
        // The child is not reaped before nobody can signal its number any more.
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::Error::EINTR) {}
        *self.child() = None;
        child.wait()
    }
}

/// Leaves out what the caller ignores, as `nohup` does with SIGHUP.
fn ignored(set: SigSet) -> SigSet {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    set.iter().filter(|signal| mask >> (*signal as i32 - 1) & 1 == 0).collect()
}
