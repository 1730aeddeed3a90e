//! unply
pub mod apply;
pub mod digest;
pub mod error;
pub mod fixup;
pub mod merge;
pub mod mount;
pub mod policy;
pub mod root;
pub mod sys;
pub mod tar;
