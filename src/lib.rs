//! unply

pub mod digest;
pub mod error;
pub mod image;
pub mod policy;
pub mod tar;
