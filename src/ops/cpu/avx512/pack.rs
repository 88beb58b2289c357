//! Packing by transposing sixteen rows by sixteen dwords in registers.

use crate::quant::packed::{Cut, LARGEST_BLOCK, ROWS, VECTOR};
use std::arch::x86_64::*;

/// Packs sixteen rows of `blocks` blocks to a panel: [`Cut::pack`], which is the specification.
///
/// # Safety
/// AVX-512; both are sixteen rows of `blocks` blocks long.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn pack(cut: &Cut, blocks: usize, rows: &[u8], panel: &mut [u8]) {
    let row = blocks * cut.bytes;
    // A rest in front moves all dwords; one at the end, none.
    let first = if cut.rest_at == 0 { cut.rest } else { 0 };
    let dwords = cut.dwords.len();
    // Which vector takes a dword.
    let mut places = [0; LARGEST_BLOCK / 4];
    cut.dwords.iter().enumerate().for_each(|(i, &dword)| places[usize::from(dword)] = i);
    for b in 0..blocks {
        for i in (0..dwords).step_by(16) {
            let count = (dwords - i).min(16);
            let mask = ((1u32 << count) - 1) as __mmask16;
            // SAFETY: `count` dwords of each row's block, `count` vectors of the panel's.
            unsafe {
                let from = rows.as_ptr().add(b * cut.bytes + first + 4 * i);
                let v = std::array::from_fn(|r| _mm512_maskz_loadu_epi32(mask, from.add(r * row).cast()));
                let to = panel.as_mut_ptr().add(cut.vector_at(b, 0));
                for (v, place) in transpose(v).into_iter().zip(&places[i..i + count]) {
                    _mm512_storeu_si512(to.add(place * VECTOR).cast(), v);
                }
            }
        }
        if cut.rest > 0 {
            for r in 0..ROWS {
                let rest = &rows[r * row + b * cut.bytes + cut.rest_at..][..cut.rest];
                panel[cut.vector_at(b, dwords) + r * cut.rest..][..cut.rest].copy_from_slice(rest);
            }
        }
    }
}

/// Transposes 16 x 16 dwords.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(v: [__m512i; 16]) -> [__m512i; 16] {
    let mut quads = v;
    for i in 0..4 {
        let [a, b, c, d] = [v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        quads[4 * i] = _mm512_unpacklo_epi64(ab, cd);
        quads[4 * i + 1] = _mm512_unpackhi_epi64(ab, cd);
        let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        quads[4 * i + 2] = _mm512_unpacklo_epi64(ab, cd);
        quads[4 * i + 3] = _mm512_unpackhi_epi64(ab, cd);
    }
    // `quads[4i + c]` lane 4l + r now holds row 4i + r, column 4l + c: what is left is to transpose the lanes of four.
    let mut out = quads;
    for c in 0..4 {
        let [a, b, d, e] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let (ab, de) = (_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(d, e, 0x88));
        (out[c], out[8 + c]) = (_mm512_shuffle_i32x4(ab, de, 0x88), _mm512_shuffle_i32x4(ab, de, 0xdd));
        let (ab, de) = (_mm512_shuffle_i32x4(a, b, 0xdd), _mm512_shuffle_i32x4(d, e, 0xdd));
        (out[4 + c], out[12 + c]) = (_mm512_shuffle_i32x4(ab, de, 0x88), _mm512_shuffle_i32x4(ab, de, 0xdd));
    }
    out
}
