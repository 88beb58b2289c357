//! The codebooks of the IQ types: the points that a run of eight (IQ3: four) elements may lie on. Facts of the format;
//! `codebooks.bin` holds them packed and is made by `scripts/goldens/codebooks.py`.
//!
//! A point is a little-endian word of magnitudes, one byte per element; IQ1's are its values -1, 0, 1 with 1 added.
//! Signs stand beside the index, seven or eight bits; of seven the last makes the number of minuses even.

const PACKED: &[u8; 9216] = include_bytes!("codebooks.bin");

/// Magnitudes of the two-bit types.
const TWO_BITS: [u8; 4] = [0x08, 0x19, 0x2b, 0];
/// IQ1: one more than the value.
const ONE_BIT: [u8; 4] = [0, 1, 2, 0];
/// Magnitudes of IQ3_XXS and IQ3_S.
const XXS: [u8; 8] = [0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e];
const ODD: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// Points of IQ2_XXS.
pub static IQ2_XXS: [u64; 256] = eights(0, TWO_BITS);
/// Points of IQ2_XS.
pub static IQ2_XS: [u64; 512] = eights(512, TWO_BITS);
/// Points of IQ2_S.
pub static IQ2_S: [u64; 1024] = eights(1536, TWO_BITS);
/// Points of IQ3_XXS.
pub static IQ3_XXS: [u32; 256] = fours(3584, XXS);
/// Points of IQ3_S.
pub static IQ3_S: [u32; 512] = fours(4096, ODD);
/// Points of IQ1_S and IQ1_M, 1 added.
pub static IQ1: [u64; 2048] = eights(5120, ONE_BIT);

/// Points of eight elements of two bits, from byte `at` on.
const fn eights<const N: usize>(at: usize, values: [u8; 4]) -> [u64; N] {
    let mut points = [0; N];
    let mut i = 0;
    while i < 8 * N {
        let value = values[(PACKED[at + i / 4] >> (2 * (i % 4)) & 3) as usize];
        points[i / 8] |= (value as u64) << (8 * (i % 8));
        i += 1;
    }
    points
}

/// Points of four elements of three bits in a nibble each, from byte `at` on.
const fn fours<const N: usize>(at: usize, values: [u8; 8]) -> [u32; N] {
    let mut points = [0; N];
    let mut i = 0;
    while i < 4 * N {
        let value = values[(PACKED[at + i / 2] >> (4 * (i % 2)) & 7) as usize];
        points[i / 4] |= (value as u32) << (8 * (i % 4));
        i += 1;
    }
    points
}

/// The signs of eight elements from the lowest seven bits of `seven`: the eighth makes their number even.
#[inline(always)]
pub fn even_signs(seven: u32) -> u8 {
    let seven = seven as u8 & 0x7f;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Eight bytes with those negated whose bit of `signs` is set; none of them may be 0.
#[inline(always)]
pub(super) fn signed(point: u64, signs: u8) -> [i8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // One bit of each byte at most; carried to the top it says that there was one.
    let bits = (u64::from(signs) * ONES) & 0x8040_2010_0804_0201;
    let minus = (((bits & !(ONES << 7)) + (ONES * 0x7f)) | bits) >> 7 & ONES;
    // Two's complement of single bytes: no carry leaves a byte, as none is 0.
    ((point ^ (minus * 0xff)) + minus).to_le_bytes().map(|byte| byte as i8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// The digests are those of the codebooks as PyPI gguf decodes them.
    #[test]
    fn codebooks_are_those_of_the_format() {
        let digest =
            |bytes: Vec<u8>| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let eights = |points: &[u64]| digest(points.iter().flat_map(|point| point.to_le_bytes()).collect());
        let fours = |points: &[u32]| digest(points.iter().flat_map(|point| point.to_le_bytes()).collect());
        assert_eq!(eights(&IQ2_XXS), "05826b5d3e472a3a78f196be62ac78acf81df0f909626e12ab9fa2a5d490dd54");
        assert_eq!(eights(&IQ2_XS), "06e47aaca60b4dc1d9b5a3f34540437058a6b142b4d7a59d5ded769b4d1bf1de");
        assert_eq!(eights(&IQ2_S), "e1aa1473412b0552c2174c30ef22ab4073f6a181b85a17056e8249bd2932fd88");
        assert_eq!(fours(&IQ3_XXS), "46e35f5a997efdee6c99ce57854c8a0d4f0ff8ca57e5e8a60c0793ea580acf5d");
        assert_eq!(fours(&IQ3_S), "bd1af4945a1717c65610b0284e4628b9a1ba3b306fae3a06f6e5f597356e349f");
        assert_eq!(eights(&IQ1), "bf92c60e2ed15644d2d948b652a55624cc35699ef5c8e0337258e332f8c47b48");
    }

    #[test]
    fn signs_negate_their_bytes() {
        for signs in 0..=255u8 {
            let point = 0x2b19_0801_3e7f_ff80u64;
            for (i, got) in signed(point, signs).into_iter().enumerate() {
                let byte = point.to_le_bytes()[i] as i8;
                assert_eq!(got, if signs >> i & 1 == 1 { byte.wrapping_neg() } else { byte }, "{signs:#x}, byte {i}");
            }
            assert_eq!(even_signs(u32::from(signs)) & 0x7f, signs & 0x7f);
            assert_eq!(even_signs(u32::from(signs)).count_ones() % 2, 0);
        }
    }
}
