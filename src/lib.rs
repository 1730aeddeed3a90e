//! unply
pub mod apply;
pub mod bench;
pub mod cancel;
#[doc(hidden)]
pub mod cli;
pub mod digest;
pub mod error;
pub mod fixup;
pub mod image;
pub mod merge;
pub mod mount;
pub mod policy;
pub mod root;
pub mod store;
pub mod stream;
pub mod sys;
pub mod tar;
pub mod unpack;
