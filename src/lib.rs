//! Container images into verified root file systems.
//!
//! unply streams gzip, zstd and plain layers, computes every digest and diff_id while it decompresses, applies whiteouts
//! and opaque directories, keeps each layer once (by diff_id), and stacks layers as overlayfs lower directories — or
//! flattens them into one directory. Both give the same tree. Nothing is visible before it is proved.
//!
//! # Use
//! [`pull`] brings an image into a [`Store`] and gives a [`Chain`]: take the directories and mount them yourself, take a
//! [mount plan](MountPlan), or have it mounted. [`unpack()`](unpack::unpack) needs no store and makes one directory.
//!
//! ```no_run
//! use unply::{Options, Reference, open_store, pull};
//!
//! # fn main() -> unply::Result<()> {
//! let image: Reference = "docker-archive:image.tar".parse()?;
//! let store = open_store("/var/lib/unply".as_ref(), true)?;
//! let pulled = pull(&image, &store, &Options::default(), &|_event| {})?;
//! println!("{} stacked from {:?}", pulled.chain.chain_id(), pulled.chain.lowerdirs()); // topmost first
//! let mounted = pulled.chain.view().attach("/mnt".as_ref())?; // read-only
//! mounted.detach()
//! # }
//! ```
//!
//! Everything blocks; [`CancelToken`] ends a call from another thread. Events ([`Event`]) report progress and everything
//! odd that was accepted. [`Error`] says which image, layer, entry and offset, and [`ErrorKind`] what kind of failure it was.
//! The library does not change its process: no working directory, umask, environment, signals or forks.
//!
//! # Modules
//! A module uses modules of lower levels only; `tests/architecture.rs` keeps that true, `ARCHITECTURE.md` explains it.
//!
//! | level | modules |
//! |---|---|
//! | 0 | [`error`] below all; [`digest`], [`policy`], [`cancel`], [`trace`], [`sys`] |
//! | 1 | [`tar`](mod@tar): blocks to entries. [`root`]: file operations by directory handle. [`mount`]: overlays |
//! | 2 | [`stream`]: blob to verified bytes. [`apply`]: the rules of one layer. [`merge`]: layers seen as one tree |
//! | 3 | [`image`]: sources and documents. [`store`]: what is kept on disk. [`fixup`]: what a layer could not know alone |
//! | 4 | [`unpack`](mod@unpack): the only orchestrator |
//! | 5 | [`mod@bench`]; [`lint`]: what is ambiguous or non-conforming, unpacking nothing |
//! | 6 | `cli`, the program |
//!
//! The names re-exported below are what most callers need.

pub mod apply;
pub mod bench;
pub mod cancel;
#[doc(hidden)]
pub mod cli;
pub mod digest;
pub mod error;
mod fail;
pub mod fixup;
pub mod image;
pub mod lint;
pub mod merge;
pub mod mount;
pub mod policy;
pub mod root;
pub mod store;
pub mod stream;
pub mod sys;
pub mod tar;
pub mod trace;
pub mod unpack;

pub use cancel::CancelToken;
pub use digest::{BlobDigest, ChainId, DiffId, ImageId};
pub use error::{Error, ErrorKind, Result};
pub use image::{Platform, Reference};
pub use mount::{Attached, MountPlan};
pub use policy::{Limits, TreeOptions};
pub use store::Store;
pub use unpack::{Chain, Event, Events, LayerOutcome, Options, Pulled, Snapshot, Unpacked, open_store, pull, stored};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
