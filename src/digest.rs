//! Digests as distinct types, and readers that hash what passes through them.
//!
//! Owns: the digest grammar, `BlobDigest`, `DiffId`, `ChainId`, `ImageId`, incremental hashing.
//! Refuses to know: files, images. Invariant: a value of these types always satisfies the grammar, so its text is
//! safe in a file name and in a message
//! (<https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests>).

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::error::{Error, ErrorKind};
use crate::sys::sha256;

/// A registered digest algorithm that unply computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, required by the image specification.
    Sha256,
    /// SHA-512, optional in the image specification.
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn len(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }
}

/// A digest: algorithm and value. The newtypes below say what was hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 64],
}

impl Digest {
    /// Returns the algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the value.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.len()]
    }

    /// Returns the value as lower-case hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        let mut out = String::with_capacity(self.as_bytes().len() * 2);
        for b in self.as_bytes() {
            out.push(char::from_digit(u32::from(b >> 4), 16).unwrap_or('0'));
            out.push(char::from_digit(u32::from(b & 15), 16).unwrap_or('0'));
        }
        out
    }

    /// Hashes `data` at once.
    pub fn of(algorithm: Algorithm, data: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(data);
        hasher.finish()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// Parses `sha256:<64 lower-case hex>` or `sha512:<128 lower-case hex>`.
    ///
    /// # Errors
    /// `Malformed` for any other text, upper-case hex included; `Unsupported` for a well-formed digest of another algorithm.
    fn from_str(s: &str) -> Result<Self, Error> {
        let malformed =
            || Error::new(ErrorKind::Malformed, format!("\"{}\" is not a digest", crate::error::escape(s.as_bytes())));
        let (name, hex) = s.split_once(':').ok_or_else(malformed)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other => {
                let grammatical = !other.is_empty()
                    && other.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+._-".contains(&b))
                    && !hex.is_empty()
                    && hex.bytes().all(|b| b.is_ascii_alphanumeric() || b"=_-".contains(&b));
                return Err(if grammatical {
                    Error::new(ErrorKind::Unsupported, format!("digest algorithm \"{other}\" is not supported"))
                } else {
                    malformed()
                });
            }
        };
        let hex = hex.as_bytes();
        if hex.len() != algorithm.len() * 2 {
            return Err(malformed());
        }
        let mut bytes = [0u8; 64];
        for (out, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            let mut value = 0u8;
            for &c in pair {
                let nibble = match c {
                    b'0'..=b'9' => c - b'0',
                    b'a'..=b'f' => c - b'a' + 10,
                    _ => return Err(malformed()),
                };
                value = value << 4 | nibble;
            }
            *out = value;
        }
        Ok(Digest { algorithm, bytes })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self, Error> {
                s.parse().map($name)
            }
        }
    };
}

digest_newtype! {
    /// The digest of a blob as stored or transferred (for a layer: of its compressed bytes).
    BlobDigest
}
digest_newtype! {
    /// The digest of a layer's decompressed tar stream, every byte of it
    /// (<https://github.com/opencontainers/image-spec/blob/main/config.md#layer-diffid>).
    DiffId
}
digest_newtype! {
    /// The identity of a stack of layers applied in order, bottom first
    /// (<https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid>).
    ChainId
}
digest_newtype! {
    /// The digest of an image's config document
    /// (<https://github.com/opencontainers/image-spec/blob/main/config.md#imageid>).
    ImageId
}

impl ChainId {
    /// Returns the chain id of the bottom layer alone, which is its diff_id.
    pub fn bottom(diff_id: DiffId) -> ChainId {
        ChainId(diff_id.0)
    }

    /// Returns the chain id of this chain with `diff_id` applied on top.
    pub fn extend(&self, diff_id: &DiffId) -> ChainId {
        ChainId(Digest::of(Algorithm::Sha256, format!("{self} {diff_id}").as_bytes()))
    }

    /// Returns the chain ids of every prefix of `diff_ids`, both bottom first.
    pub fn of_layers<'a>(diff_ids: impl IntoIterator<Item = &'a DiffId>) -> Vec<ChainId> {
        let mut out: Vec<ChainId> = Vec::new();
        for diff_id in diff_ids {
            let next = match out.last() {
                None => ChainId::bottom(*diff_id),
                Some(below) => below.extend(diff_id),
            };
            out.push(next);
        }
        out
    }

    /// Returns the id that stands for a stack of no layers: the digest of nothing.
    pub fn empty() -> ChainId {
        ChainId(Digest::of(Algorithm::Sha256, b""))
    }
}

/// Hashes incrementally.
#[derive(Clone)]
pub struct Hasher(HasherState);

#[derive(Clone)]
enum HasherState {
    Sha256(sha2::Sha256),
    /// The same where the CPU has no SHA instructions.
    #[cfg(target_arch = "x86_64")]
    Sha256Avx(ring::digest::Context),
    /// The same where several computations side by side are faster than one after another.
    Sha256Lane(Lane),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Creates a hasher.
    pub fn new(algorithm: Algorithm) -> Self {
        Hasher(match (algorithm, lanes()) {
            (Algorithm::Sha256, Some(lanes)) => HasherState::Sha256Lane(Lane::new(lanes)),
            #[cfg(target_arch = "x86_64")]
            (Algorithm::Sha256, _) if !std::arch::is_x86_feature_detected!("sha") => {
                HasherState::Sha256Avx(ring::digest::Context::new(&ring::digest::SHA256))
            }
            (Algorithm::Sha256, _) => HasherState::Sha256(sha2::Sha256::new()),
            (Algorithm::Sha512, _) => HasherState::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds `data`.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            HasherState::Sha256(h) => h.update(data),
            #[cfg(target_arch = "x86_64")]
            HasherState::Sha256Avx(h) => h.update(data),
            HasherState::Sha256Lane(h) => update_lanes(&mut [(h, data)]),
            HasherState::Sha512(h) => h.update(data),
        }
    }

    /// Returns the digest of everything added.
    pub fn finish(self) -> Digest {
        let mut bytes = [0u8; 64];
        let algorithm = match self.0 {
            HasherState::Sha256(h) => {
                bytes[..32].copy_from_slice(&h.finalize());
                Algorithm::Sha256
            }
            #[cfg(target_arch = "x86_64")]
            HasherState::Sha256Avx(h) => {
                bytes[..32].copy_from_slice(h.finish().as_ref());
                Algorithm::Sha256
            }
            HasherState::Sha256Lane(h) => {
                bytes[..32].copy_from_slice(&h.finish());
                Algorithm::Sha256
            }
            HasherState::Sha512(h) => {
                bytes.copy_from_slice(&h.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, bytes }
    }
}

/// Without optimisation lanes cost more than they save.
fn lanes() -> Option<sha256::Lanes> {
    if cfg!(debug_assertions) { None } else { sha256::Lanes::detect() }
}

/// Returns how many hashers [`update_together`] moves on in about the time of one: 1 where it gains nothing.
pub(crate) fn side_by_side() -> usize {
    if lanes().is_some() { sha256::MOST } else { 1 }
}

/// Adds to each hasher its own data, side by side as far as this CPU can; data of equal length is best.
pub(crate) fn update_together(all: &mut [(&mut Hasher, &[u8])]) {
    let mut lanes = Vec::with_capacity(all.len());
    for (hasher, data) in all {
        match hasher {
            Hasher(HasherState::Sha256Lane(lane)) => lanes.push((lane, *data)),
            other => other.update(data),
        }
    }
    update_lanes(&mut lanes);
}

/// SHA-256 of one stream, which may move on together with others.
#[derive(Clone)]
struct Lane {
    lanes: sha256::Lanes,
    state: sha256::State,
    /// The begin of a block whose end did not come yet.
    partial: [u8; sha256::BLOCK],
    have: usize,
    length: u64,
}

impl Lane {
    fn new(lanes: sha256::Lanes) -> Lane {
        Lane { lanes, state: sha256::INITIAL, partial: [0; sha256::BLOCK], have: 0, length: 0 }
    }

    /// Takes from the front of `data` what completes a block that began before.
    fn complete<'d>(&mut self, data: &'d [u8]) -> &'d [u8] {
        self.length = self.length.wrapping_add(data.len() as u64);
        if self.have == 0 {
            return data;
        }
        let data = self.keep(data);
        if self.have == sha256::BLOCK {
            let block = self.partial;
            self.lanes.compress(&mut [(&mut self.state, &block)]);
            self.have = 0;
        }
        data
    }

    /// Adds to the block under way and returns what does not belong to it.
    fn keep<'d>(&mut self, data: &'d [u8]) -> &'d [u8] {
        let (taken, rest) = data.split_at(data.len().min(sha256::BLOCK - self.have));
        if let Some(room) = self.partial.get_mut(self.have..self.have + taken.len()) {
            room.copy_from_slice(taken);
        }
        self.have += taken.len();
        rest
    }

    fn finish(mut self) -> [u8; 32] {
        let bits = self.length.wrapping_mul(8).to_be_bytes();
        // FIPS 180-4, section 5.1.1: a one bit, zeros up to eight bytes before the end of a block, the length in bits.
        let zeros = (2 * sha256::BLOCK - 9 - self.have) % sha256::BLOCK;
        let mut padding = [0u8; 2 * sha256::BLOCK];
        padding[0] = 0x80;
        padding[1 + zeros..9 + zeros].copy_from_slice(&bits);
        update_lanes(&mut [(&mut self, &padding[..9 + zeros])]);
        let mut out = [0; 32];
        for (to, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *to = word.to_be_bytes();
        }
        out
    }
}

fn update_lanes(all: &mut [(&mut Lane, &[u8])]) {
    for (lane, data) in all.iter_mut() {
        *data = lane.complete(data);
    }
    loop {
        let mut ready: Vec<(&mut Lane, &mut &[u8])> = all
            .iter_mut()
            .filter(|(_, data)| data.len() >= sha256::BLOCK)
            .map(|(lane, data)| (&mut **lane, data))
            .take(sha256::MOST)
            .collect();
        let Some(lanes) = ready.first().map(|(lane, _)| lane.lanes) else { break };
        let mut streams: Vec<_> = ready.iter_mut().map(|(lane, data)| (&mut lane.state, **data)).collect();
        let done = lanes.compress(&mut streams).saturating_mul(sha256::BLOCK);
        for (_, data) in ready {
            *data = data.get(done..).unwrap_or(&[]);
        }
    }
    for (lane, data) in all.iter_mut() {
        lane.keep(data);
    }
}

/// Hashes and counts what is read through it.
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// Wraps `inner`.
    pub fn new(inner: R, algorithm: Algorithm) -> Self {
        HashingReader { inner, hasher: Hasher::new(algorithm), count: 0 }
    }

    /// Returns how many bytes were read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the digest and number of the bytes read.
    pub fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.count)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn z14_grammar_before_a_digest_becomes_a_name() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(format!("sha256:{hex}").parse::<Digest>().unwrap().to_string(), format!("sha256:{hex}"));
        assert!(format!("sha512:{hex}{hex}").parse::<Digest>().is_ok());
        for bad in [
            "",
            "sha256",
            "sha256:",
            &hex[..],
            &format!("sha256:{}", &hex[1..]),
            &format!("sha256:{}", hex.to_uppercase()),
            &format!("sha256:../{hex}"),
            &format!("SHA256:{hex}"),
            &format!("sha256:{hex}0"),
            "sha256:../../etc/passwd",
        ] {
            assert_eq!(bad.parse::<Digest>().unwrap_err().kind(), ErrorKind::Malformed, "{bad}");
        }
        assert_eq!("blake3:abcd".parse::<Digest>().unwrap_err().kind(), ErrorKind::Unsupported);
    }

    /// Rule I18: the vector of the specification's own identity package.
    #[test]
    fn i18_chain_ids_follow_the_specification() {
        let d = |c: char| DiffId(format!("sha256:{}", c.to_string().repeat(64)).parse().unwrap());
        let ids = ChainId::of_layers(&[d('a'), d('b'), d('c')]);
        assert_eq!(ids[0].0, d('a').0);
        let second = Digest::of(Algorithm::Sha256, format!("{} {}", d('a'), d('b')).as_bytes());
        assert_eq!(ids[1].0, second);
        assert_eq!(ids[2].0, Digest::of(Algorithm::Sha256, format!("{} {}", second, d('c')).as_bytes()));
        // Made with sha256sum.
        let known = [
            "ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c",
            "c1377126441fb2f5ec2c21ae2a60255331d639e830f0ee1b40a36e52d4c40588",
        ];
        assert_eq!([ids[1].0.hex(), ids[2].0.hex()], known);
    }

    /// Whatever code the CPU gets, it is SHA-256.
    #[test]
    fn the_hasher_agrees_with_sha2_at_every_length_and_cut() {
        let data: Vec<u8> = (0..300u32).map(|n| (n * 7) as u8).collect();
        for end in 0..data.len() {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&data[..end / 3]);
            hasher.update(&data[end / 3..end]);
            assert_eq!(hasher.finish().as_bytes(), &sha2::Sha256::digest(&data[..end])[..]);
        }
    }

    #[test]
    fn hashers_that_move_on_together_agree_with_sha2() {
        let data: Vec<u8> = (0..20_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
        for count in [1, 3, 4, 5, 11] {
            let one = match sha256::Lanes::detect() {
                Some(lanes) => Hasher(HasherState::Sha256Lane(Lane::new(lanes))),
                None => Hasher::new(Algorithm::Sha256),
            };
            let mut hashers = vec![one; count];
            hashers.push(Hasher::new(Algorithm::Sha512));
            let mut fed = vec![Vec::new(); count + 1];
            for round in 0..9 {
                let pieces: Vec<&[u8]> =
                    (0..=count).map(|n| &data[n * 7..][..(round * 331 + n * n * 113) % 1900]).collect();
                let mut all: Vec<(&mut Hasher, &[u8])> = hashers.iter_mut().zip(pieces.iter().copied()).collect();
                update_together(&mut all);
                fed.iter_mut().zip(pieces).for_each(|(fed, piece)| fed.extend_from_slice(piece));
            }
            for (n, (hasher, fed)) in hashers.into_iter().zip(fed).enumerate() {
                match n < count {
                    true => assert_eq!(hasher.finish().as_bytes(), &sha2::Sha256::digest(&fed)[..], "{n} of {count}"),
                    false => assert_eq!(hasher.finish().as_bytes(), &sha2::Sha512::digest(&fed)[..]),
                }
            }
        }
    }

    #[test]
    fn hashing_reader_counts_and_hashes() {
        let mut r = HashingReader::new(&b"abc"[..], Algorithm::Sha256);
        io::copy(&mut r, &mut io::sink()).unwrap();
        let (digest, count) = r.finish();
        assert_eq!(count, 3);
        assert_eq!(digest.to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
