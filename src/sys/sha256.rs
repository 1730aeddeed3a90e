//! Several SHA-256 computations side by side, one in each lane of the CPU's vector registers.
//!
//! Owns: the compression function of FIPS 180-4 (<https://doi.org/10.6028/NIST.FIPS.180-4>, section 6.2.2) over lanes, and the
//! question whether this CPU gains by it. Refuses to know: padding, digests, whose streams these are.
//!
//! One stream is a chain of dependent additions that leaves most of a CPU idle; streams that have nothing to do with each other
//! fill it. It pays where rotating is one instruction (AVX-512 VL) and there are no SHA instructions: there, eight streams
//! together take little longer than one of them alone. Elsewhere `Lanes::detect` returns `None` and nothing here runs.

/// The eight words of a computation under way.
pub(crate) type State = [u32; 8];

/// Bytes that the compression function takes at a time.
pub(crate) const BLOCK: usize = 64;

/// The most streams that one call takes.
pub(crate) const MOST: usize = 8;

/// The state before the first block.
pub(crate) const INITIAL: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

const K: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

/// Proof that this CPU has the instructions that the lanes are compiled for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes(());

impl Lanes {
    /// Asks the CPU; `None` where one stream after another is faster.
    pub(crate) fn detect() -> Option<Lanes> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let lanes = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && !has!("sha");
            lanes.then_some(Lanes(()))
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Moves each state on by its data: as many whole blocks as the shortest data has, of which the number is returned; at most
    /// [`MOST`] pairs are looked at.
    pub(crate) fn compress(self, streams: &mut [(&mut State, &[u8])]) -> usize {
        let blocks = streams.iter().take(MOST).map(|(_, data)| data.len() / BLOCK).min().unwrap_or(0);
        let mut words = [[0; MOST]; 8];
        // A lane without a stream reads what another one reads, and what it makes of it is left.
        let spare: &[u8] = streams.first().map_or(&[], |(_, data)| data);
        let mut data = [spare; MOST];
        for (lane, (state, bytes)) in streams.iter().take(MOST).enumerate() {
            data[lane] = bytes;
            for (row, word) in words.iter_mut().zip(**state) {
                row[lane] = word;
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Lanes` exists only where the CPU has all the features (`Lanes::detect`).
        #[expect(unsafe_code, reason = "the compiler cannot know that the CPU was asked")]
        unsafe {
            vectors::compress(&mut words, &data, blocks);
        }
        for (lane, (state, _)) in streams.iter_mut().take(MOST).enumerate() {
            for (row, word) in words.iter().zip(state.iter_mut()) {
                *word = row[lane];
            }
        }
        blocks
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::*;

    use super::{BLOCK, K, MOST};

    /// One word of every lane.
    type Row = __m256i;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn compress(words: &mut [[u32; MOST]; 8], data: &[&[u8]; MOST], blocks: usize) {
        let mut state = words.map(|row| pack(row));
        for number in 0..blocks {
            let mut w = load(data, number * BLOCK);
            let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = state;
            for (sixteen, k) in K.as_chunks::<16>().0.iter().enumerate() {
                // The names change their places instead of the values: eight rounds bring them home.
                macro_rules! round {
                    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $t:literal) => {
                        if sixteen > 0 {
                            let (x, y) = (w[($t + 1) & 15], w[($t + 14) & 15]);
                            let g0 =
                                xor(_mm256_ror_epi32::<7>(x), _mm256_ror_epi32::<18>(x), _mm256_srli_epi32::<3>(x));
                            let g1 =
                                xor(_mm256_ror_epi32::<17>(y), _mm256_ror_epi32::<19>(y), _mm256_srli_epi32::<10>(y));
                            w[$t] = add(add(w[$t], w[($t + 9) & 15]), add(g0, g1));
                        }
                        // What does not depend on the round before comes first.
                        let early = add($h, add(w[$t], _mm256_set1_epi32(k[$t] as i32)));
                        let s1 = xor(_mm256_ror_epi32::<6>($e), _mm256_ror_epi32::<11>($e), _mm256_ror_epi32::<25>($e));
                        let choose = _mm256_ternarylogic_epi32::<0xca>($e, $f, $g);
                        let t1 = add(add(early, choose), s1);
                        let s0 = xor(_mm256_ror_epi32::<2>($a), _mm256_ror_epi32::<13>($a), _mm256_ror_epi32::<22>($a));
                        let majority = _mm256_ternarylogic_epi32::<0xe8>($a, $b, $c);
                        $d = add($d, t1);
                        $h = add(t1, add(s0, majority));
                    };
                }
                round!(a b c d e f g h, 0);
                round!(h a b c d e f g, 1);
                round!(g h a b c d e f, 2);
                round!(f g h a b c d e, 3);
                round!(e f g h a b c d, 4);
                round!(d e f g h a b c, 5);
                round!(c d e f g h a b, 6);
                round!(b c d e f g h a, 7);
                round!(a b c d e f g h, 8);
                round!(h a b c d e f g, 9);
                round!(g h a b c d e f, 10);
                round!(f g h a b c d e, 11);
                round!(e f g h a b c d, 12);
                round!(d e f g h a b c, 13);
                round!(c d e f g h a b, 14);
                round!(b c d e f g h a, 15);
            }
            for (word, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
                *word = add(*word, new);
            }
        }
        *words = state.map(|row| unpack(row));
    }

    /// Reads the block at `at` of every lane: words of the same number into one row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn load(data: &[&[u8]; MOST], at: usize) -> [Row; 16] {
        let mut w = [_mm256_setzero_si256(); 16];
        // SHA-256 is big-endian.
        let swap = _mm256_set_epi64x(
            0x0c0d_0e0f_0809_0a0b,
            0x0405_0607_0001_0203,
            0x0c0d_0e0f_0809_0a0b,
            0x0405_0607_0001_0203,
        );
        for (half, rows) in w.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let start = at + half * BLOCK / 2;
            let lane = |n: usize| {
                let bytes = data[n].get(start..).and_then(|rest| rest.first_chunk::<32>()).unwrap_or(&[0; 32]);
                let [a, b, c, d] = *bytes.as_chunks::<8>().0 else { return _mm256_setzero_si256() };
                let word = i64::from_le_bytes;
                _mm256_shuffle_epi8(_mm256_set_epi64x(word(d), word(c), word(b), word(a)), swap)
            };
            // Eight rows of one lane each become eight rows of one word each: pairs of words, of pairs, of halves.
            let [l0, l1, l2, l3, l4, l5, l6, l7] =
                [lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7)];
            let (a0, a1) = (_mm256_unpacklo_epi32(l0, l1), _mm256_unpackhi_epi32(l0, l1));
            let (b0, b1) = (_mm256_unpacklo_epi32(l2, l3), _mm256_unpackhi_epi32(l2, l3));
            let (c0, c1) = (_mm256_unpacklo_epi32(l4, l5), _mm256_unpackhi_epi32(l4, l5));
            let (d0, d1) = (_mm256_unpacklo_epi32(l6, l7), _mm256_unpackhi_epi32(l6, l7));
            let (e0, e1) = (_mm256_unpacklo_epi64(a0, b0), _mm256_unpackhi_epi64(a0, b0));
            let (e2, e3) = (_mm256_unpacklo_epi64(a1, b1), _mm256_unpackhi_epi64(a1, b1));
            let (f0, f1) = (_mm256_unpacklo_epi64(c0, d0), _mm256_unpackhi_epi64(c0, d0));
            let (f2, f3) = (_mm256_unpacklo_epi64(c1, d1), _mm256_unpackhi_epi64(c1, d1));
            *rows = [
                _mm256_permute2x128_si256::<0x20>(e0, f0),
                _mm256_permute2x128_si256::<0x20>(e1, f1),
                _mm256_permute2x128_si256::<0x20>(e2, f2),
                _mm256_permute2x128_si256::<0x20>(e3, f3),
                _mm256_permute2x128_si256::<0x31>(e0, f0),
                _mm256_permute2x128_si256::<0x31>(e1, f1),
                _mm256_permute2x128_si256::<0x31>(e2, f2),
                _mm256_permute2x128_si256::<0x31>(e3, f3),
            ];
        }
        w
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn pack(row: [u32; MOST]) -> Row {
        let [a, b, c, d, e, f, g, h] = row.map(|word| word as i32);
        _mm256_setr_epi32(a, b, c, d, e, f, g, h)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn unpack(row: Row) -> [u32; MOST] {
        [
            _mm256_extract_epi32::<0>(row),
            _mm256_extract_epi32::<1>(row),
            _mm256_extract_epi32::<2>(row),
            _mm256_extract_epi32::<3>(row),
            _mm256_extract_epi32::<4>(row),
            _mm256_extract_epi32::<5>(row),
            _mm256_extract_epi32::<6>(row),
            _mm256_extract_epi32::<7>(row),
        ]
        .map(|word| word as u32)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn add(a: Row, b: Row) -> Row {
        _mm256_add_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn xor(a: Row, b: Row, c: Row) -> Row {
        _mm256_ternarylogic_epi32::<0x96>(a, b, c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(seed: u32, count: usize) -> Vec<u8> {
        (0..(count * BLOCK) as u32).map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 11) as u8).collect()
    }

    /// The reference compresses a block at a time.
    fn expected(data: &[u8]) -> State {
        let mut state = INITIAL;
        let (blocks, rest) = data.as_chunks::<BLOCK>();
        assert!(rest.is_empty());
        sha2::block_api::compress256(&mut state, blocks);
        state
    }

    #[test]
    fn every_stream_gets_sha_256_of_its_own_data_however_many_move_on_together() {
        let Some(lanes) = Lanes::detect() else { return println!("SKIP: this CPU hashes one stream after another") };
        for streams in 1..=MOST {
            let data: Vec<Vec<u8>> = (0..streams).map(|n| blocks(n as u32 * 77, 3 + n)).collect();
            let mut states = vec![INITIAL; streams];
            let mut jobs: Vec<(&mut State, &[u8])> =
                states.iter_mut().zip(&data).map(|(state, data)| (state, &data[..])).collect();
            assert_eq!(lanes.compress(&mut jobs), 3);
            for (state, data) in states.iter().zip(&data) {
                assert_eq!(*state, expected(&data[..3 * BLOCK]), "{streams} streams");
            }
        }
        assert_eq!(lanes.compress(&mut []), 0);
        assert_eq!(lanes.compress(&mut [(&mut INITIAL.clone(), &[0; 63])]), 0);
    }
}
