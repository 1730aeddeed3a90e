//! unply

pub mod cancel;
pub mod digest;
pub mod error;
pub mod policy;
pub mod stream;
