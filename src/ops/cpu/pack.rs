//! Packing at memory speed: GGUF rows to panels ([`crate::quant::packed`]). Called by `load` while it reads.

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::isa::Isa;
use crate::quant::DType;
use crate::quant::packed::{Cut, ROWS};

/// Packs whole panels, sixteen rows of `cols` columns each, from GGUF's layout. Source and target are equally long; use
/// it on any run of whole panels, from any thread.
///
/// # Panics
/// When the type is not packed, or the bytes are not whole panels.
pub fn pack_panels(dtype: DType, cols: usize, rows: &[u8], panels: &mut [u8]) {
    let Some((cut, row)) = Cut::of(dtype).zip(dtype.row_bytes(cols)) else {
        panic!("{cols} columns of {dtype} are not packed")
    };
    let panel = ROWS * row.max(1);
    assert!(rows.len().is_multiple_of(panel), "{} bytes are not panels of {panel}", rows.len());
    assert_eq!(rows.len(), panels.len(), "packed rows are as long as plain ones");
    let wide = Isa::Avx512.on_host();
    for (rows, panel) in rows.chunks_exact(panel).zip(panels.chunks_exact_mut(panel)) {
        #[cfg(target_arch = "x86_64")]
        if wide {
            // SAFETY: the host has AVX-512; both are a panel of rows of these columns.
            unsafe { avx512::pack(&cut, cols / cut.len, rows, panel) };
            continue;
        }
        cut.pack(rows, panel);
    }
}
