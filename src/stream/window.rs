//! Memory for zstd windows, shared by the streams of one run.
//!
//! Owns: how many decoders may hold a large window at once. Refuses to know: what is decoded. A decoder takes its place
//! once, for the largest window that the limits allow, and keeps it until it is dropped: nobody waits for a second
//! place while holding a first one, so that waiting always ends. Windows up to [`FREE`] need no place: RFC 8878 asks
//! every decoder to support them, and nearly every layer is content with that.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cancel::CancelToken;
use crate::policy::Limits;

/// The largest window that needs no place, in bytes (RFC 8878, section 3.1.1.1.2).
pub(super) const FREE: u64 = 8 << 20;

/// How long a waiting decoder goes without looking at its cancel token.
const PATIENCE: Duration = Duration::from_millis(50);

/// A budget for zstd windows over 8 MiB, in bytes; clones share it.
///
/// Streams that share one must be read by threads of their own: one that waits for its place goes on when another one
/// of the budget was dropped.
#[derive(Debug, Clone)]
pub struct WindowMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Mutex<u64>,
    freed: Condvar,
}

impl WindowMemory {
    /// Makes a budget of [`Limits::max_zstd_memory`] for windows of the largest size allowed; one of them always fits.
    pub fn new(limits: &Limits) -> WindowMemory {
        let window = 1u64.checked_shl(limits.max_zstd_window_log).unwrap_or(u64::MAX);
        WindowMemory::of_places((limits.max_zstd_memory / window).max(1))
    }

    fn of_places(places: u64) -> WindowMemory {
        WindowMemory(Arc::new(Shared { free: Mutex::new(places), freed: Condvar::new() }))
    }

    /// Waits for a place; `None` when cancelled meanwhile.
    pub(super) fn take(&self, cancel: &CancelToken) -> Option<WindowPlace> {
        let mut free = self.free();
        while *free == 0 {
            if cancel.is_cancelled() {
                return None;
            }
            let waited = self.0.freed.wait_timeout(free, PATIENCE);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        Some(WindowPlace(self.clone()))
    }

    fn free(&self) -> MutexGuard<'_, u64> {
        // A number cannot be left half written.
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for WindowMemory {
    /// Makes a budget without bounds, for a stream that is alone.
    fn default() -> Self {
        WindowMemory::of_places(u64::MAX)
    }
}

/// The right to hold one large window; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct WindowPlace(WindowMemory);

impl Drop for WindowPlace {
    fn drop(&mut self) {
        let mut free = self.0.free();
        *free = free.saturating_add(1);
        drop(free);
        self.0.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_places_than_the_budget_has_windows() {
        let limits = Limits { max_zstd_window_log: 20, max_zstd_memory: 3 << 20, ..Limits::default() };
        let memory = WindowMemory::new(&limits);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let place = memory.take(&CancelToken::new()).unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                    now.fetch_sub(1, Ordering::SeqCst);
                    drop(place);
                });
            }
        });
        assert!((1..=3).contains(&most.into_inner()));
        assert_eq!(*memory.free(), 3, "every place came back");
    }

    #[test]
    fn one_window_always_fits_and_waiting_can_be_cancelled() {
        let limits = Limits { max_zstd_memory: 0, ..Limits::default() };
        let memory = WindowMemory::new(&limits);
        let cancel = CancelToken::new();
        let held = memory.take(&cancel).unwrap();
        cancel.cancel();
        assert!(memory.take(&cancel).is_none());
        drop(held);
        assert!(memory.take(&cancel).is_some());
    }
}
