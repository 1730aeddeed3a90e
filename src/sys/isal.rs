//! Raw inflate by ISA-L, whose decoder for x86-64 is written in assembly.
//!
//! Owns: one decompression state and the calls on it. Refuses to know: gzip's framing.

#![allow(unsafe_code)]

use std::ptr::{null, null_mut};

use isal_sys::igzip_lib as isal;

/// A raw deflate stream in the middle of its decompression.
pub(crate) struct Inflate {
    state: Box<isal::inflate_state>,
}

// SAFETY: the state belongs to its owner alone; the pointers in it are null between calls.
unsafe impl Send for Inflate {}

/// How far one call came.
pub(crate) struct Inflated {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
    /// The stream is at its end, and so much of what was consumed stands behind it.
    pub(crate) ended: bool,
}

impl Inflate {
    pub(crate) fn new() -> Inflate {
        // SAFETY: numbers, arrays of numbers, unions of those, and raw pointers: zeros are a value of each.
        let state: isal::inflate_state = unsafe { std::mem::MaybeUninit::zeroed().assume_init() };
        let mut state = Box::new(state);
        // SAFETY: it writes into the state, which is ours.
        unsafe { isal::isal_inflate_init(&mut *state) };
        Inflate { state }
    }

    /// Begins another stream.
    pub(crate) fn reset(&mut self) {
        // SAFETY: it writes into the state, which was initialised.
        unsafe { isal::isal_inflate_reset(&mut *self.state) };
    }

    /// Decompresses some of `input` into `output`.
    ///
    /// # Errors
    /// What is wrong with the stream, in words.
    pub(crate) fn run(&mut self, input: &[u8], output: &mut [u8]) -> Result<Inflated, &'static str> {
        // Lengths are 32 bits there; what does not fit waits for the next call.
        let offered = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(output.len()).unwrap_or(u32::MAX);
        let state = &mut *self.state;
        state.next_in = input.as_ptr().cast_mut();
        state.avail_in = offered;
        state.next_out = output.as_mut_ptr();
        state.avail_out = room;
        // SAFETY: the state was initialised; the two ranges are borrowed for the call, the input is only read.
        let result = unsafe { isal::isal_inflate(state) };
        let consumed = offered.saturating_sub(state.avail_in) as usize;
        let produced = room.saturating_sub(state.avail_out) as usize;
        (state.next_in, state.next_out) = (null::<u8>().cast_mut(), null_mut());
        match result {
            // The numbers of `igzip_lib.h`.
            -1 => Err("invalid block"),
            -2 => Err("invalid symbol"),
            -3 => Err("invalid distance, too far back"),
            ..0 => Err("invalid stream"),
            _ => {
                let ended = state.block_state == isal::isal_block_state_ISAL_BLOCK_FINISH;
                Ok(Inflated { consumed, produced, ended })
            }
        }
    }

    /// Returns what was consumed of what stands behind the end of the stream: bytes, and how many of them.
    pub(crate) fn rest(&self) -> ([u8; 8], usize) {
        let bits = u32::try_from(self.state.read_in_length).unwrap_or(0).min(64);
        // The last byte of the stream may have bits left over.
        let bytes = self.state.read_in.checked_shr(bits % 8).unwrap_or(0);
        (bytes.to_le_bytes(), (bits / 8) as usize)
    }
}
