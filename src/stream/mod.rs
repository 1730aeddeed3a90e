//! Blobs read once: see `report` for what a fully read blob proves.

pub mod report;
pub use report::*;
