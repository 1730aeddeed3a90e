//! Other programs, run to their end and measured.

use std::fs::File;
use std::io::{Read, Seek as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::ground::last_line;
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::sys;

/// What programs used.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Used {
    /// Wall time in seconds.
    pub wall_seconds: f64,
    /// Processor time of all of them, with the children that they waited for, in seconds.
    pub cpu_seconds: f64,
    /// Most memory resident at once in one process, in bytes: looked at every 10 ms, or what the kernel counted where that
    /// is above what this process had; of one that was too short to be looked at at most this.
    pub peak_rss_bytes: u64,
}

impl Used {
    /// Joins what ran side by side or one after another; the wall time stays.
    pub(super) fn and(self, other: Used) -> Used {
        Used {
            wall_seconds: self.wall_seconds,
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            peak_rss_bytes: self.peak_rss_bytes.max(other.peak_rss_bytes),
        }
    }
}

/// How often a wait looks how much memory is resident, and whether it was cancelled.
const LOOK: Duration = Duration::from_millis(10);

/// Returns the most memory a running process had resident at once, in bytes; 0 where it has ended.
fn resident(pid: u32) -> u64 {
    super::high_water(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
}

/// Children that are killed and reaped unless they were waited for.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs commands, the output of each being the input of the next, and waits for all of them; the wall time is left 0.
///
/// # Errors
/// `Cancelled`; `Other` with what the first one that did not succeed said last.
pub(super) fn pipeline(commands: Vec<Command>, cancel: &CancelToken) -> Result<Used> {
    cancel.check()?;
    let said = tempfile::tempfile().map_err(|e| Error::io("create a temporary file", e))?;
    let copy = |file: &File| file.try_clone().map_err(|e| Error::io("dup", e));
    let mut running = Running(Vec::new());
    let mut names = Vec::new();
    let last = commands.len().saturating_sub(1);
    let mut input = Stdio::null();
    for (at, mut command) in commands.into_iter().enumerate() {
        let name = command.get_program().to_string_lossy().into_owned();
        // English messages, and names in UTF-8: bsdtar wants to convert those of PAX headers.
        command.env("LC_ALL", "C.UTF-8").stdin(std::mem::replace(&mut input, Stdio::null())).stderr(copy(&said)?);
        command.stdout(if at == last { Stdio::null() } else { Stdio::piped() });
        let mut child = command.spawn().map_err(|e| Error::io(format!("start {name}"), e))?;
        if let Some(output) = child.stdout.take() {
            input = output.into();
        }
        running.0.push(child);
        names.push(name);
    }
    let (mut used, mut failed) = (Used::default(), None);
    let (mut peak, own) = (0, resident(std::process::id()));
    running.0.reverse();
    for name in &names {
        let Some(child) = running.0.last() else { break };
        while !sys::ended_within(child, LOOK)? {
            // Before its `exec` a child shows the memory of whoever started it.
            let ours = resident(std::process::id());
            for seen in running.0.iter().map(|child| resident(child.id())).filter(|seen| *seen != ours) {
                peak = peak.max(seen);
            }
            cancel.check()?;
        }
        let Some(child) = running.0.pop() else { break };
        let ended = sys::end_of(child)?;
        // What the kernel counts for a child begins with the memory of whoever started it: only above that it is its own.
        if ended.peak_rss_bytes > own {
            peak = peak.max(ended.peak_rss_bytes);
        }
        used = used.and(Used { cpu_seconds: ended.cpu.as_secs_f64(), ..Used::default() });
        // The first of a pipe ends by SIGPIPE where a later one failed: the later one says why.
        if !ended.status.success() {
            failed = Some(format!("{name}: {}", ended.status));
        }
    }
    // The keyboard's Ctrl-C ends them too.
    cancel.check()?;
    match failed {
        None => Ok(Used { peak_rss_bytes: if peak > 0 { peak } else { own }, ..used }),
        Some(what) => Err(Error::new(ErrorKind::Other, format!("{what}: {}", gist(said)))),
    }
}

/// Returns the first and the last line of what programs said: the first tells what began it, the last what came of it.
fn gist(mut said: File) -> String {
    let mut text = Vec::new();
    // Without their words the status has to say it.
    let _ = said.rewind();
    let _ = Read::by_ref(&mut said).take(4096).read_to_end(&mut text);
    let mut lines = text.split(|b| *b == b'\n');
    let first = last_line(lines.find(|line| !line.is_empty()).unwrap_or_default());
    let length = said.metadata().map_or(0, |m| m.len());
    let _ = said.seek(std::io::SeekFrom::Start(length.saturating_sub(4096)));
    text.clear();
    let _ = said.read_to_end(&mut text);
    let last = last_line(&text);
    if first == last { last } else { format!("{first}; {last}") }
}

/// A program that runs beside others until it is dropped.
pub(super) struct Daemon(Child);

impl Daemon {
    pub fn start(command: &mut Command) -> Result<Daemon> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Daemon).map_err(|e| Error::io(format!("start {name}"), e))
    }

    /// Returns what it used so far, with the children that it waited for; the peak is that of itself.
    pub fn used(&self) -> Result<Used> {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.0.id());
            std::fs::read_to_string(&path).map_err(|e| Error::io(format!("read {path}"), e))
        };
        let stat = read("stat")?;
        // Fields 14 to 17 of proc_pid_stat(5); the name before them may hold anything but ends with the last `)`.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
        let ticks: u64 = fields.skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
        let hertz = rustix::param::clock_ticks_per_second().max(1);
        let peak_rss_bytes = super::high_water(&read("status")?);
        Ok(Used { wall_seconds: 0.0, cpu_seconds: ticks as f64 / hertz as f64, peak_rss_bytes })
    }

    /// Tells whether it still runs.
    pub fn is_running(&self) -> Result<bool> {
        Ok(!sys::ended_within(&self.0, Duration::ZERO)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // It may have ended by itself; it is not reaped yet, so the number is nobody else's.
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
        }
        if !sys::ended_within(&self.0, Duration::from_secs(5)).unwrap_or(false) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_pipe_runs_to_its_end_and_says_who_failed() {
        let cancel = CancelToken::new();
        let used = pipeline(vec![sh("echo hello"), sh("read x; [ $x = hello ]")], &cancel).unwrap();
        assert!(used.peak_rss_bytes > 0);
        let e = pipeline(vec![sh("yes"), sh("echo 'no room' >&2; exit 2")], &cancel).unwrap_err();
        assert!(e.to_string().contains("exit status: 2: no room"), "{e}");
        assert!(pipeline(vec![Command::new("/nonexistent/x")], &cancel).is_err());
    }

    #[test]
    fn a_cancelled_pipe_is_killed() {
        let cancel = CancelToken::new();
        let token = cancel.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            token.cancel();
        });
        let e = pipeline(vec![sh("sleep 600"), sh("cat")], &cancel).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn a_daemon_ends_with_its_owner() {
        let daemon = Daemon::start(&mut sh("exec sleep 600")).unwrap();
        let proc = format!("/proc/{}", daemon.0.id());
        assert!(daemon.is_running().unwrap() && daemon.used().unwrap().peak_rss_bytes > 0);
        drop(daemon);
        assert!(!std::path::Path::new(&proc).exists());
    }
}
