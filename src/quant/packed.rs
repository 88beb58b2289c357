//! The packed layout of a matrix: sixteen rows side by side, four bytes of each, in as many bytes as GGUF needs. One rule
//! for every block type, so that a kernel's lane is a row: one 64-byte load brings the same columns of sixteen rows.
//!
//! ```text
//! matrix   | panel: rows 0..16 | panel: rows 16..32 | … | the last rows % 16 rows as in GGUF |
//!
//! panel    | block 0 of 16 rows | block 1 | … | block n-1 | rest 0 | rest 1 | … | rest n-1 |   16 · GGUF's bytes of a row
//!
//! block    dword 0 of row 0, row 1, … row 15 | dword 1 of row 0, … row 15 | … | dword k-1     64 bytes a dword
//! rest     what is no whole dword of row 0, row 1, … row 15                                   16 · (bytes % 4) bytes
//! ```
//! A block of GGUF is cut to `k = bytes / 4` dwords in their order; the `bytes % 4` that are left (the F16 factor of
//! Q4_0, Q5_0, Q8_0 at the block's start, of Q3_K and Q6_K at its end) are its rest. The rests stand behind all blocks, so
//! that every vector is aligned to 64 bytes when the panel is.
//!
//! | type | bytes | vectors a block | rest, bytes a row |
//! |---|---|---|---|
//! | Q4_0, Q5_0, Q8_0 | 18, 22, 34 | 4, 5, 8 | 2 |
//! | Q4_1, Q5_1 | 20, 24 | 5, 6 | – |
//! | Q2_K, Q4_K, Q5_K | 84, 144, 176 | 21, 36, 44 | – |
//! | Q3_K, Q6_K | 110, 210 | 27, 52 | 2 |
//!
//! This is the specification in plain code; `ops::cpu` packs at memory speed and multiplies. Whoever stores packed weights
//! stores [`VERSION`] with them.

use super::DType;

/// Version of the layout. Another rule is another number.
pub const VERSION: u32 = 1;

/// Rows of a panel.
pub const ROWS: usize = 16;

/// Bytes of a vector: a dword of each row.
pub const VECTOR: usize = 4 * ROWS;

/// Bytes of the largest block that is packed.
pub const LARGEST_BLOCK: usize = 292;

/// How a matrix's bytes are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Row after row, as in GGUF.
    #[default]
    Plain,
    /// Panels of [`ROWS`] rows, [`VERSION`] of this module.
    Packed,
}

/// How a type's block is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Elements per block.
    pub len: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// Whole dwords per block.
    pub dwords: usize,
    /// Bytes that are left.
    pub rest: usize,
    /// Where in the block they stand.
    pub rest_at: usize,
}

impl Cut {
    /// How blocks of `dtype` are cut; `None` for types without blocks (floats, integers), which are not packed.
    pub const fn of(dtype: DType) -> Option<Cut> {
        let (len, bytes) = (dtype.block_len(), dtype.block_bytes());
        if len == 1 {
            return None;
        }
        let rest = bytes % 4;
        let at_end = matches!(dtype, DType::Q3_K | DType::Q6_K | DType::TQ1_0 | DType::TQ2_0);
        Some(Cut { len, bytes, dwords: bytes / 4, rest, rest_at: if at_end { bytes - rest } else { 0 } })
    }

    /// Bytes of a panel of rows of `blocks` blocks.
    pub const fn panel_bytes(&self, blocks: usize) -> usize {
        ROWS * blocks * self.bytes
    }

    /// Byte of a panel at which dword `i` of block `b` of row `r` stands.
    pub const fn dword_at(&self, b: usize, i: usize, r: usize) -> usize {
        (b * self.dwords + i) * VECTOR + 4 * r
    }

    /// Byte of a panel at which the rest of block `b` of row `r` stands.
    pub const fn rest_at(&self, blocks: usize, b: usize, r: usize) -> usize {
        blocks * self.dwords * VECTOR + (b * ROWS + r) * self.rest
    }

    /// Byte of a block at which dword `i` starts.
    const fn in_block(&self, i: usize) -> usize {
        if 4 * i < self.rest_at { 4 * i } else { 4 * i + self.rest }
    }

    /// Packs [`ROWS`] rows of GGUF to a panel, equally long.
    ///
    /// # Panics
    /// When the lengths differ or are not sixteen rows of whole blocks.
    pub fn pack(&self, rows: &[u8], panel: &mut [u8]) {
        let blocks = self.blocks(rows.len(), panel.len());
        for (r, row) in rows.chunks_exact(blocks * self.bytes).enumerate() {
            for (b, block) in row.chunks_exact(self.bytes).enumerate() {
                for i in 0..self.dwords {
                    panel[self.dword_at(b, i, r)..][..4].copy_from_slice(&block[self.in_block(i)..][..4]);
                }
                panel[self.rest_at(blocks, b, r)..][..self.rest].copy_from_slice(&block[self.rest_at..][..self.rest]);
            }
        }
    }

    /// Block `b` of row `r` of a panel of rows of `blocks` blocks, as GGUF has it, to `block` (`self.bytes` long).
    ///
    /// # Panics
    /// When the panel or `block` is too short.
    pub fn block(&self, panel: &[u8], blocks: usize, b: usize, r: usize, block: &mut [u8]) {
        for i in 0..self.dwords {
            block[self.in_block(i)..][..4].copy_from_slice(&panel[self.dword_at(b, i, r)..][..4]);
        }
        block[self.rest_at..][..self.rest].copy_from_slice(&panel[self.rest_at(blocks, b, r)..][..self.rest]);
    }

    /// Row `r` of a panel as GGUF has it.
    ///
    /// # Panics
    /// When the panel is not [`ROWS`] times as long as the row.
    pub fn unpack_row(&self, panel: &[u8], r: usize, row: &mut [u8]) {
        let blocks = self.blocks(ROWS * row.len(), panel.len());
        for (b, block) in row.chunks_exact_mut(self.bytes).enumerate() {
            self.block(panel, blocks, b, r, block);
        }
    }

    /// Blocks of a row of a panel.
    fn blocks(&self, rows: usize, panel: usize) -> usize {
        assert_eq!(rows, panel, "sixteen rows and their panel are equally long");
        let blocks = panel / self.panel_bytes(1);
        assert_eq!(panel, self.panel_bytes(blocks), "{panel} bytes are not sixteen rows of blocks of {}", self.bytes);
        blocks
    }
}

/// Packs a matrix `[rows, cols]` of GGUF's layout to `packed`, equally long: whole panels, and the last rows as they are.
///
/// # Panics
/// When the type has no blocks or the lengths do not fit together.
pub fn pack(dtype: DType, cols: usize, rows: &[u8], packed: &mut [u8]) {
    assert_eq!(rows.len(), packed.len(), "the packed matrix is as long as the plain one");
    let Some((cut, row)) = Cut::of(dtype).zip(dtype.row_bytes(cols)) else {
        panic!("{cols} columns of {dtype} are not packed")
    };
    let panel = ROWS * row.max(1);
    let (panels, tail) = packed.split_at_mut(rows.len() / panel * panel);
    panels.chunks_exact_mut(panel).zip(rows.chunks_exact(panel)).for_each(|(panel, rows)| cut.pack(rows, panel));
    tail.copy_from_slice(&rows[panels.len()..]);
}
