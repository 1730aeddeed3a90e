//! unply
pub mod error;
pub mod mount;
pub mod policy;
pub mod sys;
