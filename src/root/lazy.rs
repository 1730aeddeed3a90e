//! Directories known by the way to them, for walks that are wider or deeper than descriptors reach.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Dir;
use crate::error::Result;

/// Descriptors that one set of lazy directories holds at most, besides those it was made from.
const HELD: usize = 64;

/// Levels opened by one call on the way down, so that the way back up finds a handle near.
const HOP: usize = 32;

/// The open ones among many [`LazyDir`]s, the least recently used first.
#[derive(Debug, Default)]
pub struct Handles {
    next: AtomicU64,
    open: Mutex<Vec<(u64, Dir)>>,
}

impl Handles {
    fn find(&self, id: u64) -> Option<Dir> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let at = open.iter().rposition(|(held, _)| *held == id)?;
        let found = open.remove(at);
        let dir = found.1.clone();
        open.push(found);
        Some(dir)
    }

    fn keep(&self, id: u64, dir: &Dir) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= HELD {
            open.remove(0);
        }
        open.push((id, dir.clone()));
    }
}

/// A directory that is opened when it is needed, and perhaps again after that; cheap to clone.
///
/// It names a place: nothing on the way to it may be renamed or replaced while it is used.
#[derive(Debug, Clone)]
pub struct LazyDir(Arc<Node>);

#[derive(Debug)]
struct Node {
    /// Never used twice: a handle cannot be mistaken for that of a directory that stood there before.
    id: u64,
    handles: Arc<Handles>,
    up: Up,
}

#[derive(Debug)]
enum Up {
    Open(Dir),
    In(LazyDir, Vec<u8>),
}

impl LazyDir {
    /// Starts from an open directory, which stays open.
    pub fn new(dir: Dir, handles: &Arc<Handles>) -> LazyDir {
        LazyDir::node(handles, Up::Open(dir))
    }

    /// Returns the directory `name` in this one; nothing is opened yet.
    pub fn child(&self, name: &[u8]) -> LazyDir {
        LazyDir::node(&self.0.handles, Up::In(self.clone(), name.to_vec()))
    }

    fn node(handles: &Arc<Handles>, up: Up) -> LazyDir {
        let id = handles.next.fetch_add(1, Ordering::Relaxed);
        LazyDir(Arc::new(Node { id, handles: handles.clone(), up }))
    }

    /// Opens the directory, never following a symlink.
    ///
    /// # Errors
    /// As [`Dir::open_below`].
    pub fn open(&self) -> Result<Dir> {
        let mut way: Vec<&LazyDir> = Vec::new();
        let mut here = self;
        let mut dir = loop {
            match &here.0.up {
                Up::Open(dir) => break dir.clone(),
                Up::In(parent, _) => {
                    if let Some(dir) = self.0.handles.find(here.0.id) {
                        break dir;
                    }
                    way.push(here);
                    here = parent;
                }
            }
        };
        way.reverse();
        for hop in way.chunks(HOP) {
            let names: Vec<&[u8]> =
                hop.iter().map(|d| if let Up::In(_, name) = &d.0.up { &name[..] } else { b"" }).collect();
            dir = dir.open_below(&names.join(&b'/'))?;
            if let Some(last) = hop.last() {
                self.0.handles.keep(last.0.id, &dir);
            }
        }
        Ok(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_and_wide_walk_holds_few_descriptors() {
        let place = tempfile::tempdir().unwrap();
        let top = Dir::open(place.path()).unwrap();
        let handles = Arc::new(Handles::default());
        let mut all = vec![LazyDir::new(top, &handles)];
        for depth in 0..300 {
            let above = all.last().unwrap().clone();
            let dir = above.open().unwrap();
            for name in [&b"w"[..], b"d"] {
                assert!(dir.make_dir(name, 0o700).unwrap());
                dir.open_child(name).unwrap().make_file(format!("{depth}").as_bytes(), 0o600).unwrap().unwrap();
                all.push(above.child(name));
            }
        }
        // Up again, in an order that finds nothing held.
        for (at, lazy) in all.iter().enumerate().skip(1).rev().step_by(7) {
            let name = format!("{}", (at - 1) / 2);
            assert!(lazy.open().unwrap().stat(name.as_bytes()).unwrap().is_some(), "{at}");
        }
        assert!(handles.open.lock().unwrap().len() <= HELD);
    }
}
