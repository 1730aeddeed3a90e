//! The rules, one line of text each for unply and the tools; evidence as recorded when the tools ran or were read.

pub mod images;
pub mod metadata;
pub mod mounts;
pub mod paths;
pub mod store;
pub mod tar;
pub mod whiteouts;
