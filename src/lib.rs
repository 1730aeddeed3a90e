//! unply
pub mod apply;
pub mod digest;
pub mod error;
pub mod policy;
pub mod store;
pub mod stream;
