//! `gem{v,m}_{f32,f16,bf16}_f32_avx512`, `gem{v,m}_bf16_bf16_avx512bf16`: float weights, four rows by six tokens in
//! registers; see [`crate::ops::cpu::float`].
//!
//! F32, F16 and BF16 weights are widened and multiplied with F32 activations. Where the CPU has `vdpbf16ps`, BF16 weights
//! meet activations rounded to BF16 (seven bits behind the point, as the weights), two columns a lane and twice as many
//! at a time; subnormal numbers count as zero. F16 weights do not: they have three bits more, which rounding would lose.

use crate::ops::cpu::acts::Acts;
use crate::ops::cpu::float::{self, Dot, Sums};
use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Rows of a tile.
const R: usize = 4;

/// Loads of a float type.
pub(super) trait Load {
    /// Bytes of an element.
    const BYTES: usize;
    /// Sixteen elements.
    ///
    /// # Safety
    /// AVX-512 and that many readable bytes.
    unsafe fn load(p: *const u8) -> __m512;
}

pub(super) struct F32;
impl Load for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's word.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }
}

pub(super) struct F16;
impl Load for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's word.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
}

pub(super) struct Bf16;
impl Load for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's word.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
}

/// Weights of a type times F32.
struct Widened<W>(PhantomData<W>);

// SAFETY of all blocks below: by the caller's word, as the trait says.
impl<W: Load> Dot for Widened<W> {
    const BYTES: usize = W::BYTES;
    const COLS: usize = 16;
    const HALVES: usize = 1;
    const TILE: usize = 6;
    type Act = f32;
    type Sum = __m512;
    type Half = __m512;

    fn acts(acts: &Acts<'_>) -> (*const f32, usize) {
        (acts.x.as_ptr(), acts.cols)
    }
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn get(p: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn put(p: *mut f32, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn weights(p: *const u8, _half: usize) -> __m512 {
        // SAFETY: see above.
        unsafe { W::load(p) }
    }
    #[inline(always)]
    unsafe fn activations(p: *const f32, _half: usize) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn multiply(w: __m512, a: __m512, sum: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(w, a, sum) }
    }
    #[inline(always)]
    unsafe fn add(lanes: &[Sums; 16]) -> [f32; 16] {
        // SAFETY: see above.
        unsafe { add_lanes(lanes) }
    }
}

/// BF16 times BF16.
struct Rounded;

// SAFETY of all blocks below: as above.
impl Dot for Rounded {
    const BYTES: usize = 2;
    const COLS: usize = 32;
    const HALVES: usize = 1;
    const TILE: usize = 6;
    type Act = u16;
    type Sum = __m512;
    type Half = __m512bh;

    fn acts(acts: &Acts<'_>) -> (*const u16, usize) {
        (acts.bf16.as_ptr(), acts.cols.next_multiple_of(Self::COLS))
    }
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn get(p: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn put(p: *mut f32, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn weights(p: *const u8, _half: usize) -> __m512bh {
        // SAFETY: see above; both are 64 bytes of any pattern.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn activations(p: *const u16, _half: usize) -> __m512bh {
        // SAFETY: see above.
        unsafe { Self::weights(p.cast(), 0) }
    }
    #[inline(always)]
    unsafe fn multiply(w: __m512bh, a: __m512bh, sum: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_dpbf16_ps(sum, w, a) }
    }
    #[inline(always)]
    unsafe fn add(lanes: &[Sums; 16]) -> [f32; 16] {
        // SAFETY: see above.
        unsafe { add_lanes(lanes) }
    }
}

/// All rows of a float type.
///
/// # Safety
/// As `Kernel`, with AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
pub(super) unsafe fn rows<W: Load>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { float::rows::<Widened<W>, R>(rows) }
}

/// All rows of BF16, activations in BF16.
///
/// # Safety
/// As `Kernel`, with AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")]
pub(super) unsafe fn bf16_rows(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { float::rows::<Rounded, R>(rows) }
}

/// Rounds a row to BF16, nearest even; subnormal numbers become zero, a NaN stays one. Zeros follow.
///
/// # Safety
/// AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn round(x: &[f32], out: &mut [u16]) {
    out[x.len()..].fill(0);
    for (x, out) in x.chunks(16).zip(out.chunks_mut(16)) {
        let mask = ((1u32 << x.len()) - 1) as __mmask16;
        // SAFETY: `x.len()` numbers in and out, at most sixteen; both vectors are 32 bytes of any pattern.
        unsafe {
            let words = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x.as_ptr()));
            let words = std::mem::transmute::<__m256bh, __m256i>(words);
            _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, words);
        }
    }
}

/// Adds each row's lanes pairwise at distances 8, 4, 2, 1: two, then four, eight and sixteen rows in one vector.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn add_lanes(lanes: &[Sums; 16]) -> [f32; 16] {
    // SAFETY: 64 bytes each.
    let v: [__m512; 16] = std::array::from_fn(|r| unsafe { _mm512_loadu_ps(lanes[r].as_ptr()) });
    // Row r and r + 8: [r's lanes 0..8, then those of r + 8].
    let eight: [__m512; 8] = std::array::from_fn(|r| {
        let (a, b) = (v[r], v[r + 8]);
        _mm512_add_ps(_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
    });
    // Quarters hold four lanes of rows r, r + 8, r + 4, r + 12.
    let four: [__m512; 4] = std::array::from_fn(|r| {
        let (a, b) = (eight[r], eight[r + 4]);
        _mm512_add_ps(_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    });
    // Quarters hold two lanes of a row, two of the one that is two further on.
    let two: [__m512; 2] = std::array::from_fn(|r| {
        let (a, b) = (four[r], four[r + 2]);
        _mm512_add_ps(_mm512_shuffle_ps::<0b01_00_01_00>(a, b), _mm512_shuffle_ps::<0b11_10_11_10>(a, b))
    });
    // Quarters hold rows 0, 2, 1, 3 past their first, which are 0, 8, 4, 12.
    let (a, b) = (two[0], two[1]);
    let one = _mm512_add_ps(_mm512_shuffle_ps::<0b10_00_10_00>(a, b), _mm512_shuffle_ps::<0b11_01_11_01>(a, b));
    let order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    let mut out = [0.0; 16];
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(order, one)) };
    out
}
