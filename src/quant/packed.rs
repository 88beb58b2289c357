//! The packed layout of a matrix: sixteen rows side by side, four bytes of each, in as many bytes as GGUF needs. One rule
//! for every block type, so that a kernel's lane is a row: one 64-byte load brings the same columns of sixteen rows.
//!
//! ```text
//! matrix   | panel: rows 0..16 | panel: rows 16..32 | … | the last rows % 16 rows as in GGUF |
//!
//! panel    | block 0 of 16 rows | block 1 | … | block n-1 |                                  16 · GGUF's bytes of a row
//!
//! block    | vector 0 | vector 1 | … | vector k-1 | rest |                                  16 · GGUF's bytes of a block
//! vector   the same dword of row 0, row 1, … row 15                                                         64 bytes
//! rest     what is no whole dword of row 0, row 1, … row 15                                   16 · (bytes % 4) bytes
//! ```
//! A block of GGUF is cut to `k = bytes / 4` dwords; the `bytes % 4` that are left (the F16 factor of Q4_0, Q5_0, Q8_0 at
//! the block's start, of Q3_K and Q6_K at its end) are its rest. Vectors stand in the order in which a kernel wants them,
//! so that it reads a panel from front to back: a core that skips back and forth gets a third of its bandwidth. That is
//! the dwords' own order but in four types, which have their factors at the end or some bits apart from the others:
//!
//! | type | bytes | vectors a block | rest, bytes a row | dwords in their order |
//! |---|---|---|---|---|
//! | Q4_0, Q5_0, Q8_0 | 18, 22, 34 | 4, 5, 8 | 2 | as in GGUF |
//! | Q4_1, Q5_1 | 20, 24 | 5, 6 | – | as in GGUF |
//! | Q4_K | 144 | 36 | – | as in GGUF |
//! | Q2_K | 84 | 21 | – | factors 20; scales 0..4; weights 4..20 |
//! | Q3_K | 110 | 27 | 2 | scales 24..27; third bits 0..8 and weights 8..16 in turn; weights 16..24 |
//! | Q5_K | 176 | 44 | – | scales 0..4; fifth bits 4..12 and nibbles 12..20 in turn; nibbles 20..44 |
//! | Q6_K | 210 | 52 | 2 | scales 48..52; nibbles 0..8 and upper bits 32..40 in turn; 8..16; 16..24 and 40..48 in turn; 24..32 |
//!
//! This is the specification in plain code; `ops::cpu` packs at memory speed and multiplies. Whoever stores packed weights
//! stores [`VERSION`] with them.

use super::DType;

/// Version of the layout. Another rule is another number.
pub const VERSION: u32 = 2;

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

/// Most dwords of a block.
const MOST_DWORDS: usize = LARGEST_BLOCK / 4;

/// Dwords `from..from + count`, each followed by one from `beside` on where there is such.
struct Run {
    from: usize,
    beside: Option<usize>,
    count: usize,
}

const fn run(from: usize, count: usize) -> Run {
    Run { from, beside: None, count }
}

const fn in_turn(from: usize, beside: usize, count: usize) -> Run {
    Run { from, beside: Some(beside), count }
}

const fn order<const N: usize>(runs: &[Run]) -> [u8; N] {
    let (mut order, mut at, mut i) = ([0; N], 0, 0);
    while i < runs.len() {
        let mut k = 0;
        while k < runs[i].count {
            order[at] = (runs[i].from + k) as u8;
            at += 1;
            if let Some(beside) = runs[i].beside {
                order[at] = (beside + k) as u8;
                at += 1;
            }
            k += 1;
        }
        i += 1;
    }
    assert!(at == N, "every dword has its place");
    order
}

static AS_IN_GGUF: [u8; MOST_DWORDS] = order(&[run(0, MOST_DWORDS)]);
static Q2_K: [u8; 21] = order(&[run(20, 1), run(0, 20)]);
static Q3_K: [u8; 27] = order(&[run(24, 3), in_turn(0, 8, 8), run(16, 8)]);
static Q5_K: [u8; 44] = order(&[run(0, 4), in_turn(4, 12, 8), run(20, 24)]);
static Q6_K: [u8; 52] = order(&[run(48, 4), in_turn(0, 32, 8), run(8, 8), in_turn(16, 40, 8), run(24, 8)]);

/// How a type's block is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Elements per block.
    pub len: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// Bytes that are no whole dword.
    pub rest: usize,
    /// Where in the block they stand.
    pub rest_at: usize,
    /// Which dword each of a block's vectors holds.
    pub dwords: &'static [u8],
}

impl Cut {
    /// How blocks of `dtype` are cut; `None` for types without blocks (floats, integers), which are not packed.
    pub fn of(dtype: DType) -> Option<Cut> {
        let (len, bytes) = (dtype.block_len(), dtype.block_bytes());
        if len == 1 {
            return None;
        }
        let rest = bytes % 4;
        let at_end = matches!(dtype, DType::Q3_K | DType::Q6_K | DType::TQ1_0 | DType::TQ2_0);
        let dwords = match dtype {
            DType::Q2_K => &Q2_K[..],
            DType::Q3_K => &Q3_K,
            DType::Q5_K => &Q5_K,
            DType::Q6_K => &Q6_K,
            _ => &AS_IN_GGUF[..bytes / 4],
        };
        Some(Cut { len, bytes, rest, rest_at: if at_end { bytes - rest } else { 0 }, dwords })
    }

    /// Byte of a panel at which vector `i` of block `b` stands; behind the last vector stands the rest.
    pub const fn vector_at(&self, b: usize, i: usize) -> usize {
        b * ROWS * self.bytes + i * VECTOR
    }

    /// Byte of a panel at which the rest of block `b` of row `r` stands.
    const fn rest_of(&self, b: usize, r: usize) -> usize {
        self.vector_at(b, self.dwords.len()) + r * self.rest
    }

    /// Byte of a block at which dword `i` starts.
    pub const fn in_block(&self, i: usize) -> usize {
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
                for (i, &dword) in self.dwords.iter().enumerate() {
                    let from = &block[self.in_block(usize::from(dword))..][..4];
                    panel[self.vector_at(b, i) + 4 * r..][..4].copy_from_slice(from);
                }
                panel[self.rest_of(b, r)..][..self.rest].copy_from_slice(&block[self.rest_at..][..self.rest]);
            }
        }
    }

    /// Block `b` of row `r` of a panel as GGUF has it, to `block` (`self.bytes` long).
    ///
    /// # Panics
    /// When the panel or `block` is too short.
    pub fn block(&self, panel: &[u8], b: usize, r: usize, block: &mut [u8]) {
        for (i, &dword) in self.dwords.iter().enumerate() {
            let from = &panel[self.vector_at(b, i) + 4 * r..][..4];
            block[self.in_block(usize::from(dword))..][..4].copy_from_slice(from);
        }
        block[self.rest_at..][..self.rest].copy_from_slice(&panel[self.rest_of(b, r)..][..self.rest]);
    }

    /// Row `r` of a panel as GGUF has it.
    ///
    /// # Panics
    /// When the panel is not [`ROWS`] times as long as the row.
    pub fn unpack_row(&self, panel: &[u8], r: usize, row: &mut [u8]) {
        self.blocks(ROWS * row.len(), panel.len());
        for (b, block) in row.chunks_exact_mut(self.bytes).enumerate() {
            self.block(panel, b, r, block);
        }
    }

    /// Blocks of a row of a panel.
    fn blocks(&self, rows: usize, panel: usize) -> usize {
        assert_eq!(rows, panel, "sixteen rows and their panel are equally long");
        let one = ROWS * self.bytes;
        assert!(panel.is_multiple_of(one), "{panel} bytes are not sixteen rows of blocks of {}", self.bytes);
        panel / one
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
