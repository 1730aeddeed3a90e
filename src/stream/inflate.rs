//! Raw inflate, by the library that this build chose.
//!
//! Owns: the choice between zlib-rs and, with the feature `isal`, ISA-L. Refuses to know: gzip's framing.

/// Which library inflates gzip layers in this build.
pub const INFLATED_BY: &str = if cfg!(feature = "isal") { "ISA-L" } else { "zlib-rs" };

/// How far one call of [`Inflate::run`] came.
pub(crate) struct Inflated {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
    /// The stream is at its end.
    pub(crate) ended: bool,
}

/// A deflate stream in the middle of its decompression.
#[cfg(not(feature = "isal"))]
pub(crate) struct Inflate(flate2::Decompress);

#[cfg(not(feature = "isal"))]
impl Inflate {
    pub(crate) fn new() -> Inflate {
        Inflate(flate2::Decompress::new(false))
    }

    /// Begins another stream.
    pub(crate) fn reset(&mut self) {
        self.0.reset(false);
    }

    /// Decompresses some of `input` into `output`, which is not empty.
    ///
    /// # Errors
    /// What is wrong with the stream, in words.
    pub(crate) fn run(&mut self, input: &[u8], output: &mut [u8]) -> Result<Inflated, String> {
        let (in_before, out_before) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, output, flate2::FlushDecompress::None);
        let status = status.map_err(|e| e.message().map_or_else(|| "bad deflate stream".to_owned(), str::to_owned))?;
        Ok(Inflated {
            consumed: (self.0.total_in() - in_before) as usize,
            produced: (self.0.total_out() - out_before) as usize,
            ended: status == flate2::Status::StreamEnd,
        })
    }

    /// Returns what was consumed of what stands behind the end: bytes, and how many of them. This library stops there.
    pub(crate) fn rest(&self) -> ([u8; 8], usize) {
        ([0; 8], 0)
    }
}

/// A deflate stream in the middle of its decompression.
#[cfg(feature = "isal")]
pub(crate) struct Inflate(crate::sys::isal::Inflate);

#[cfg(feature = "isal")]
impl Inflate {
    pub(crate) fn new() -> Inflate {
        Inflate(crate::sys::isal::Inflate::new())
    }

    /// Begins another stream.
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    /// Decompresses some of `input` into `output`, which is not empty.
    ///
    /// # Errors
    /// What is wrong with the stream, in words.
    pub(crate) fn run(&mut self, input: &[u8], output: &mut [u8]) -> Result<Inflated, String> {
        let crate::sys::isal::Inflated { consumed, produced, ended } = self.0.run(input, output)?;
        Ok(Inflated { consumed, produced, ended })
    }

    /// Returns what was consumed of what stands behind the end: bytes, and how many of them.
    pub(crate) fn rest(&self) -> ([u8; 8], usize) {
        self.0.rest()
    }
}
