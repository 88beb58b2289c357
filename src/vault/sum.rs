//! A checksum at memory speed for weights: it finds what memory does by itself, not what somebody does on purpose.
//!
//! Eight lanes take the little-endian 64-bit words in turn: `lane = (lane ^ word) * ODD`, rotated. Each step can be undone, so
//! a change of any one word always changes its lane; the end folds lanes and length the same way.

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
const LANES: usize = 8;
const BLOCK: usize = 8 * LANES;

/// A sum of bytes that come in pieces; each but the last a multiple of 64 bytes.
#[derive(Clone, Debug)]
pub struct Sum {
    lanes: [u64; LANES],
    bytes: u64,
}

impl Default for Sum {
    fn default() -> Self {
        Sum { lanes: std::array::from_fn(|lane| lane as u64), bytes: 0 }
    }
}

impl Sum {
    /// Adds a piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        let mut blocks = piece.chunks_exact(BLOCK);
        blocks.by_ref().for_each(|block| self.block(block));
        let rest = blocks.remainder();
        if !rest.is_empty() {
            let mut block = [0; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            self.block(&block);
        }
    }

    fn block(&mut self, block: &[u8]) {
        for (lane, word) in self.lanes.iter_mut().zip(block.chunks_exact(8)) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            *lane = step(*lane, u64::from_le_bytes(bytes));
        }
    }

    /// The sum of all pieces.
    pub fn end(&self) -> u64 {
        self.lanes.iter().fold(self.bytes, |sum, lane| step(sum, *lane))
    }
}

fn step(state: u64, word: u64) -> u64 {
    (state ^ word).wrapping_mul(ODD).rotate_left(29)
}

/// The sum of bytes.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut sum = Sum::default();
    sum.add(bytes);
    sum.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_the_length_count() {
        let bytes: Vec<u8> = (0..300).map(|i| (i * 7) as u8).collect();
        let whole = sum(&bytes);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << bit;
                assert_ne!(sum(&other), whole, "bit {bit} of byte {at}");
            }
        }
        assert_ne!(sum(&[0; 64]), sum(&[0; 63]));
        assert_ne!(sum(&[]), sum(&[0]));
        let mut swapped = bytes.clone();
        swapped.swap(8, 72);
        assert_ne!(sum(&swapped), whole, "the order counts");
    }

    #[test]
    fn pieces_make_the_same_sum() {
        let bytes: Vec<u8> = (0..1000).map(|i| (i % 241) as u8).collect();
        let mut pieces = Sum::default();
        bytes.chunks(128).for_each(|piece| pieces.add(piece));
        assert_eq!(pieces.end(), sum(&bytes));
    }
}
