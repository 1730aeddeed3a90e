//! unply
pub mod error;
pub mod policy;
pub mod tar;
