//! What the benchmarks share: layers that look like layers, and the pull of a blob through a stream.

#![allow(dead_code)] // each benchmark uses its part

use std::io::BufRead;

use testkit::{EntrySpec, dir, file, symlink};
use unply::stream::{Decoders, LayerStream, StreamOptions, StreamReport, Threads};

/// Text that compresses about as well as what lies in images: words from a small dictionary, with numbers between.
pub fn content(bytes: usize, seed: u64) -> Vec<u8> {
    const WORDS: [&str; 8] = ["usr", "share", "return", "0x", "\n", "function(", "static", "\0\0\0\0"];
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(bytes + 16);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(WORDS[(state >> 20) as usize % WORDS.len()].as_bytes());
        out.extend_from_slice(&state.to_le_bytes()[..3]);
    }
    out.truncate(bytes);
    out
}

/// A layer of `files` files of `bytes` bytes, 32 to a directory, with a symlink for every sixteenth.
pub fn entries(files: usize, bytes: usize) -> Vec<EntrySpec> {
    let mut out = Vec::new();
    for n in 0..files {
        let parent = format!("usr/share/d{}", n / 32);
        if n % 32 == 0 {
            out.push(dir(format!("{parent}/")));
        }
        out.push(file(format!("{parent}/file-{n}"), content(bytes, n as u64)));
        if n % 16 == 0 {
            out.push(symlink(format!("{parent}/link-{n}"), format!("file-{n}")));
        }
    }
    out
}

/// Reads a blob to its proof.
pub fn read_through(blob: &[u8], threads: Threads) -> StreamReport {
    read_with(blob, StreamOptions { threads, ..StreamOptions::default() })
}

/// Reads a blob to its proof on threads, with so many decoders.
pub fn read_shared(blob: &[u8], decoders: usize) -> StreamReport {
    read_with(blob, StreamOptions { decoders: Decoders::new(decoders), ..StreamOptions::default() })
}

/// Packs what is like the files of a layer, headers included, each by itself.
pub fn by_file(tar: &[u8], pack: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let (mut rest, mut blob) = (tar, Vec::new());
    for size in [1_536, 512, 9_000, 3_000, 60_000, 700, 24_000, 250_000, 5_000, 2_000].into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (part, behind) = rest.split_at(size.min(rest.len()));
        blob.extend(pack(part));
        rest = behind;
    }
    blob
}

fn read_with(blob: &[u8], options: StreamOptions) -> StreamReport {
    let blob = Box::new(std::io::Cursor::new(blob.to_vec()));
    let mut stream = LayerStream::open(blob, options).unwrap();
    loop {
        let n = stream.fill_buf().unwrap().len();
        if n == 0 {
            break;
        }
        stream.consume(n);
    }
    stream.finish().unwrap()
}
