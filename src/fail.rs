//! Named points between steps that a kill must not hurt, where a test may kill the process or make the step fail.
//!
//! In a normal build a point is an empty inline function. With `cfg(test)` or the feature `failpoints`:
//! `UNPLY_FAILPOINT=NAME#N` kills the process with SIGKILL when it gets there for the Nth time, `UNPLY_FAILPOINT_TRACE=FILE`
//! appends the name of every point passed, and [`inject`] makes a point fail once in the calling thread.

#[cfg(not(any(test, feature = "failpoints")))]
#[inline(always)]
pub(crate) fn fail_point(_name: &str) -> crate::error::Result<()> {
    Ok(())
}

#[cfg(any(test, feature = "failpoints"))]
pub(crate) fn fail_point(name: &str) -> crate::error::Result<()> {
    use std::io::Write as _;
    if let Some(path) = std::env::var_os("UNPLY_FAILPOINT_TRACE") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        if let Ok(mut file) = file {
            // A trace that cannot be written shows in the test that reads it.
            let _ = writeln!(file, "{name}");
        }
    }
    if let Some(wanted) = std::env::var("UNPLY_FAILPOINT").ok().filter(|w| !w.is_empty()) {
        let (wanted, nth) = wanted.split_once('#').unwrap_or((&wanted, "1"));
        let hits = || HITS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        if wanted == name && nth.parse().is_ok_and(|nth: u32| nth == hits()) {
            // Nothing runs after this: no destructor, no buffer flush, as with a kill from outside.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
    }
    INJECTED.with_borrow_mut(|injected| match injected.iter().position(|i| i == name) {
        Some(at) => {
            injected.swap_remove(at);
            Err(crate::error::Error::io(format!("injected at {name}"), std::io::Error::from_raw_os_error(libc::ENOSPC)))
        }
        None => Ok(()),
    })
}

/// How often the wanted point was passed; counts nothing where no point is wanted.
#[cfg(any(test, feature = "failpoints"))]
static HITS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

#[cfg(any(test, feature = "failpoints"))]
thread_local! {
    static INJECTED: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Makes the point `name` fail once, with ENOSPC, in this thread.
#[cfg(any(test, feature = "failpoints"))]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) fn inject(name: &str) {
    INJECTED.with_borrow_mut(|injected| injected.push(name.to_owned()));
}
