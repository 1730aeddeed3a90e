//! Cooperative cancellation: one flag, many readers.
//!
//! Owns: the flag and the error that a cancelled operation returns. Refuses to know: who cancels and why, signals,
//! threads. Invariant: once cancelled, a token and all its clones stay cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind};

/// Tells running work to stop; clones share one flag, and setting it is a single atomic store.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Creates a token that is not cancelled.
    pub fn new() -> Self {
        CancelToken::default()
    }

    /// Asks all work that holds a clone to stop. It never blocks and never allocates.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Tells whether [`CancelToken::cancel`] was called on this token or a clone.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Returns an error once the token is cancelled.
    ///
    /// # Errors
    /// `Cancelled`, and nothing else.
    pub fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::new(ErrorKind::Cancelled, "cancelled")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_flag_across_threads() {
        let token = CancelToken::new();
        assert!(token.check().is_ok());
        let clone = token.clone();
        std::thread::spawn(move || clone.cancel()).join().unwrap();
        assert_eq!(token.check().unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(token.clone().is_cancelled());
        assert!(!CancelToken::new().is_cancelled());
    }
}
