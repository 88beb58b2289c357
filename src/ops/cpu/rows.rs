//! Factors of whole rows and of single elements: what little a forward pass does besides norms, activations and sums.

use super::Cpu;
use super::acts::Parts;
use super::vector::exp;
use crate::ops::profile::Work;

impl Cpu {
    /// `x = cap · tanh(x / cap)`.
    pub fn soft_cap(&self, x: &mut [f32], cap: f32) {
        let _watch = self.observer.watch(|| Work::elementwise("soft_cap", x.len(), 1));
        let (len, x) = (x.len(), Parts::new(x));
        // A tanh costs as much as some sixteen other operations.
        self.each(len, 16, &|range| {
            // SAFETY: each element belongs to one range.
            unsafe { x.part(range.start, range.len()) }.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        });
    }

    /// `x = x · (1 + scale · ln(1 + ⌊position / every⌋))` for each row of `x` `[positions, width]`.
    pub fn grow_queries(&self, x: &mut [f32], positions: &[u32], scale: f32, every: u32) {
        let factor = |row: usize| 1.0 + scale * (1.0 + (positions[row] / every) as f32).ln();
        self.scale_rows("grow_queries", x, positions.len(), &factor);
    }

    /// `x = x · sigmoid(gate)` for each row of `x` `[gates, width]`.
    pub fn gate_rows(&self, x: &mut [f32], gate: &[f32]) {
        self.scale_rows("gate_rows", x, gate.len(), &|row| 1.0 / (1.0 + exp(-gate[row])));
    }

    /// Multiplies each of `rows` rows by its factor.
    fn scale_rows(&self, op: &'static str, x: &mut [f32], rows: usize, factor: &(dyn Fn(usize) -> f32 + Sync)) {
        let _watch = self.observer.watch(|| Work::elementwise(op, x.len(), 1));
        let width = x.len() / rows.max(1);
        assert_eq!(x.len(), rows * width, "{} elements are not {rows} rows", x.len());
        let x = Parts::new(x);
        self.each(rows, width, &|range| {
            for row in range {
                let factor = factor(row);
                if factor != 1.0 {
                    // SAFETY: each row belongs to one range.
                    unsafe { x.part(row * width, width) }.iter_mut().for_each(|x| *x *= factor);
                }
            }
        });
    }
}
