//! Packing at memory speed: GGUF rows to panels ([`crate::quant::packed`]). Called by `load` while it reads.

use crate::quant::DType;
use crate::quant::packed;

/// Packs whole panels, sixteen rows of `cols` columns each, from GGUF's layout. Source and target are equally long; use
/// it on any run of whole panels, from any thread.
///
/// # Panics
/// When the type is not packed, or the bytes are not whole panels.
pub fn pack_panels(dtype: DType, cols: usize, rows: &[u8], panels: &mut [u8]) {
    let panel = packed::ROWS * dtype.row_bytes(cols).unwrap_or(0).max(1);
    assert!(rows.len().is_multiple_of(panel), "{} bytes are not panels of {panel}", rows.len());
    packed::pack(dtype, cols, rows, panels);
}
