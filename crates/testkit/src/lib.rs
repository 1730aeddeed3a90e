//! Test support for an engine that applies container image layers, written without a line of that engine.
//!
//! * [`tar`](mod@tar) builds archives byte by byte, right ones and wrong ones.
//! * [`image`] wraps them into OCI layouts and `docker save` archives, with right digests or broken ones.
//! * [`tree`] is what a root file system looks like; [`describe()`] reads one from disk, [`tree::compare`] tells two apart.
//! * [`model`] is the reference model: `docs/spec-notes.md` as an in-memory program, the second implementation of that page.
//! * [`snapshotter`] is containerd's snapshot contract as a trait, and the suite that any implementation of it has to pass.
//! * [`cases`] is the catalogue of rules written as data, [`random`] makes images that nobody thought of.
//!
//! Everything panics freely: a mistake in a test's own data should be loud.

pub mod cases;
pub mod describe;
pub mod entry;
pub mod image;
pub mod model;
pub mod random;
pub mod snapshotter;
pub mod tar;
pub mod tree;

pub use describe::{DescribeOptions, describe};
pub use entry::{EntryKind, EntrySpec, blk, chr, dir, fifo, file, hardlink, opaque, symlink, whiteout};
pub use tar::{gzip, layer, sha256, sha256_hex, zstd};
pub use tree::{Tree, assert_same, compare};
