//! Layers applied: see `facts` for what applying one finds out.

pub mod facts;
pub use facts::*;
