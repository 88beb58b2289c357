//! The gated delta net: every tier against the reference, which goes token by token; the closed form over a chunk against
//! both; and that neither the cut of a prompt, nor neighbours, nor threads change a bit.

use super::{Rng, cpu, tensor, tiers};
use crate::ops::cpu::Cpu;
use crate::ops::{Convolution, DeltaRule, DeltaShape, Regroup, StateLayer, StateSave, StateSeq, Tensor, reference};
use crate::quant::DType;

/// Shapes of Qwen3-Next and Qwen3.5, small, with both orders of heads.
fn shapes() -> [DeltaShape; 3] {
    let shape = DeltaShape { kernel: 4, key_heads: 2, value_heads: 4, key_dim: 16, value_dim: 32, tiled: false };
    let tiled = DeltaShape { kernel: 3, key_heads: 3, value_heads: 9, key_dim: 48, value_dim: 16, tiled: true };
    [shape, tiled, DeltaShape { key_dim: 128, value_dim: 128, ..shape }]
}

/// Inputs of a layer for some tokens, and what it makes of them: outputs and states.
struct Layer {
    shape: DeltaShape,
    conv: Tensor,
    rate: Tensor,
    bias: Tensor,
    x: Vec<f32>,
    alpha: Vec<f32>,
    beta: Vec<f32>,
}

const OFFSET: usize = 5;

impl Layer {
    fn new(shape: DeltaShape, tokens: usize) -> Layer {
        let mut rng = Rng::new(77);
        let heads = shape.value_heads;
        let mut scaled =
            |n: usize, scale: f32, shift: f32| -> Vec<f32> { rng.vec(n).iter().map(|x| x * scale + shift).collect() };
        let vector = |values: &[f32]| tensor(DType::F32, 1, values.len(), values);
        Layer {
            conv: tensor(
                DType::F32,
                shape.channels(),
                shape.kernel,
                &scaled(shape.channels() * shape.kernel, 1.0, 0.2),
            ),
            // Long memories and short ones.
            rate: vector(&scaled(heads, 0.5, -0.51)),
            bias: vector(&scaled(heads, 2.0, -2.0)),
            x: scaled(tokens * shape.channels(), 2.0, 0.0),
            alpha: scaled(tokens * heads, 3.0, 0.0),
            beta: scaled(tokens * heads, 3.0, 0.0),
            shape,
        }
    }

    fn slot_len(&self) -> usize {
        self.shape.state_len() + 2 * OFFSET
    }

    fn state<'a>(&self, memory: &'a mut [f32]) -> StateLayer<'a> {
        StateLayer { memory, slot_len: self.slot_len(), offset: OFFSET }
    }

    /// All operations in turn over the rows from `first` on that `seqs` cover.
    fn run(&self, cpu: Option<&Cpu>, first: usize, seqs: &[StateSeq], memory: &mut [f32]) -> Vec<f32> {
        let (shape, tokens) = (&self.shape, seqs.iter().map(|seq| seq.rows).sum::<usize>());
        let (channels, heads) = (shape.channels(), shape.value_heads);
        let part = |x: &[f32], width: usize| x[first * width..][..tokens * width].to_vec();
        let (mut x, mut alpha, mut beta) = (part(&self.x, channels), part(&self.alpha, heads), part(&self.beta, heads));
        let mut out = vec![f32::NAN; tokens * shape.values()];
        let convolution = Convolution { x: &mut x, weight: &self.conv, shape, state: self.state(memory), seqs };
        match cpu {
            Some(cpu) => cpu.convolution(convolution),
            None => reference::convolution(convolution),
        }
        match cpu {
            Some(cpu) => cpu.l2_norm(&mut x, channels, 2 * shape.key_heads, shape.key_dim),
            None => reference::l2_norm(&mut x, channels, 2 * shape.key_heads, shape.key_dim),
        }
        match cpu {
            Some(cpu) => cpu.delta_gates(&mut alpha, &mut beta, &self.rate, &self.bias),
            None => reference::delta_gates(&mut alpha, &mut beta, &self.rate, &self.bias),
        }
        let (qkv, decay, strength) = (&x[..], &alpha[..], &beta[..]);
        let rule = DeltaRule { qkv, decay, strength, shape, state: self.state(memory), seqs, out: &mut out };
        match cpu {
            Some(cpu) => cpu.delta_rule(rule),
            None => reference::delta_rule(rule),
        }
        out
    }
}

fn seq(rows: usize, slot: usize, fresh: bool) -> StateSeq {
    StateSeq { first_row: 0, rows, slot, fresh, save: None }
}

fn assert_close(got: &[f32], want: &[f32], bound: f32, what: &str) {
    let largest = want.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let off = got.iter().zip(want).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(off <= bound * largest && got.iter().all(|x| x.is_finite()), "{what}: off by {off} of {largest}");
}

#[test]
fn every_tier_equals_the_reference() {
    for shape in shapes() {
        let layer = Layer::new(shape, 70);
        // What lies in the slot of a fresh sequence is not looked at.
        let mut want_state = vec![f32::NAN; layer.slot_len()];
        let want = layer.run(None, 0, &[seq(70, 0, true)], &mut want_state);
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for isa in tiers() {
            let mut state = vec![f32::NAN; layer.slot_len()];
            let got = layer.run(Some(&cpu(isa, 2)), 0, &[seq(70, 0, true)], &mut state);
            assert_close(&got, &want, 3e-6, "outputs");
            let inner = OFFSET..OFFSET + shape.state_len();
            assert_close(&state[inner.clone()], &want_state[inner.clone()], 3e-6, "state");
            assert!(state[..OFFSET].iter().chain(&state[inner.end..]).all(|x| x.is_nan()), "it wrote beyond its part");
            let (got_first, state_first) = first.get_or_insert((got.clone(), state[inner.clone()].to_vec()));
            assert_eq!((&got, &state[inner]), (&*got_first, &state_first[..]), "tiers differ");
        }
    }
}

#[test]
fn cuts_neighbours_and_threads_change_no_bit() {
    for shape in shapes() {
        let layer = Layer::new(shape, 70);
        let isa = tiers().last().unwrap();
        let mut whole_state = vec![0.0; layer.slot_len()];
        let whole = layer.run(Some(&cpu(isa, 1)), 0, &[seq(70, 0, true)], &mut whole_state);
        for (threads, chunk) in [(1, 1), (2, 7), (3, 64), (5, 70)] {
            let (cpu, mut state, mut got) = (cpu(isa, threads), vec![0.0; 3 * layer.slot_len()], Vec::new());
            for start in (0..70).step_by(chunk) {
                // Twice over: the same sequence in two slots of one batch, from the same rows.
                let rows = chunk.min(70 - start);
                let one = layer.run(Some(&cpu), start, &[seq(rows, 2, start == 0)], &mut state);
                got.extend(one);
            }
            assert_eq!(got, whole, "{threads} threads, chunks of {chunk}");
            assert_eq!(state[2 * layer.slot_len()..], whole_state);
        }
        // Rows 0..30 and 30..70 as two sequences beside each other.
        let mut state = vec![0.0; 2 * layer.slot_len()];
        let seqs = [seq(30, 1, true), StateSeq { first_row: 30, ..seq(40, 0, true) }];
        let both = layer.run(Some(&cpu(isa, 2)), 0, &seqs, &mut state);
        assert_eq!(both[..30 * shape.values()], whole[..30 * shape.values()]);
        let mut alone = vec![0.0; layer.slot_len()];
        assert_eq!(both[30 * shape.values()..], layer.run(Some(&cpu(isa, 2)), 30, &[seq(40, 0, true)], &mut alone));
        assert_eq!(state[..layer.slot_len()], alone);
    }
}

#[test]
fn a_snapshot_is_the_state_behind_its_rows() {
    let layer = Layer::new(shapes()[0], 50);
    let len = layer.slot_len();
    for isa in tiers() {
        for rows in [1, 2, 31, 50] {
            let cpu = cpu(isa, 2);
            let mut plain = vec![0.0; len];
            let want = layer.run(Some(&cpu), 0, &[seq(50, 0, true)], &mut plain);
            let mut state = vec![0.0; 3 * len];
            let save = Some(StateSave { rows, slot: 2 });
            let got = layer.run(Some(&cpu), 0, &[StateSeq { save, ..seq(50, 0, true) }], &mut state);
            assert_eq!((&got, &state[..len]), (&want, &plain[..]), "a snapshot changes nothing");
            let mut part = vec![0.0; len];
            layer.run(Some(&cpu), 0, &[seq(rows, 0, true)], &mut part);
            assert_eq!(state[2 * len..], part, "behind {rows} rows");
            let mut by_reference = vec![0.0; 3 * len];
            layer.run(None, 0, &[StateSeq { save, ..seq(50, 0, true) }], &mut by_reference);
            assert_close(&part, &by_reference[2 * len..], 3e-6, "the reference's snapshot");
        }
    }
}

/// The closed form over a chunk (arXiv 2412.06464, section 3.3): with `G` the product of decays so far and `A` the strictly
/// lower triangle of `β_i (k_i·k_j) G_i/G_j`, the changes of all tokens solve `(I + A) δ = β (v - G Sᵀk)`, and the outputs are
/// `G Sᵀq + Σ_j≤i (q_i·k_j) G_i/G_j δ_j`.
#[test]
fn the_closed_form_over_chunks_agrees_with_token_by_token() {
    let shape = shapes()[2];
    let (tokens, chunk) = (160, 64);
    let layer = Layer::new(shape, tokens);
    let (channels, heads, dim) = (shape.channels(), shape.value_heads, shape.key_dim);
    let mut rng = Rng::new(5);
    let mut qkv = rng.vec(tokens * channels);
    reference::l2_norm(&mut qkv, channels, 2 * shape.key_heads, dim);
    let (mut decay, mut strength) = (layer.alpha.clone(), layer.beta.clone());
    reference::delta_gates(&mut decay, &mut strength, &layer.rate, &layer.bias);
    let (mut memory, mut out) = (vec![0.0; layer.slot_len()], vec![0.0; tokens * shape.values()]);
    let (state, seqs) = (layer.state(&mut memory), &[seq(tokens, 0, true)]);
    let rule = DeltaRule { qkv: &qkv, decay: &decay, strength: &strength, shape: &shape, state, seqs, out: &mut out };
    cpu(tiers().last().unwrap(), 2).delta_rule(rule);

    let at = |t: usize, from: usize, i: usize| f64::from(qkv[t * channels + from + i]);
    let (mut worst, mut largest) = (0.0f64, 0.0f64);
    for (head, column) in [(0, 0), (1, 127), (2, 64), (3, 5)] {
        let keys = shape.key_head(head) * dim;
        let dot =
            |a: (usize, usize), b: (usize, usize)| (0..dim).map(|i| at(a.0, a.1, i) * at(b.0, b.1, i)).sum::<f64>();
        let mut s = vec![0.0f64; dim];
        for start in (0..tokens).step_by(chunk) {
            let end = tokens.min(start + chunk);
            let (mut total, mut product) = (Vec::new(), 1.0);
            for t in start..end {
                product *= f64::from(decay[t * heads + head]);
                total.push(product);
            }
            let with = |t: usize, from: usize| (0..dim).map(|i| s[i] * at(t, from, i)).sum::<f64>();
            let mut changes: Vec<f64> = Vec::new();
            for t in start..end {
                let i = t - start;
                let earlier: f64 = (0..i)
                    .map(|j| {
                        dot((t, shape.keys() + keys), (start + j, shape.keys() + keys)) * total[i] / total[j]
                            * changes[j]
                    })
                    .sum();
                let v = at(t, 2 * shape.keys(), head * shape.value_dim + column);
                let seen = total[i] * with(t, shape.keys() + keys) + earlier;
                changes.push(f64::from(strength[t * heads + head]) * (v - seen));
                let read: f64 = (0..=i)
                    .map(|j| dot((t, keys), (start + j, shape.keys() + keys)) * total[i] / total[j] * changes[j])
                    .sum();
                let want = (total[i] * with(t, keys) + read) / (dim as f64).sqrt();
                let got = f64::from(out[t * shape.values() + head * shape.value_dim + column]);
                (worst, largest) = (worst.max((got - want).abs()), largest.max(want.abs()));
            }
            let last = total[total.len() - 1];
            let add = |i: usize| -> f64 {
                changes
                    .iter()
                    .enumerate()
                    .map(|(j, c)| at(start + j, shape.keys() + keys, i) * last / total[j] * c)
                    .sum()
            };
            s = (0..dim).map(|i| last * s[i] + add(i)).collect();
        }
    }
    println!("token by token is off by {:.1e} of the largest output", worst / largest);
    assert!(worst <= 2e-6 * largest, "{worst} of {largest}");
}

#[test]
fn gates_stay_within_their_range() {
    let rate = tensor(DType::F32, 1, 3, &[-1e-3, -1.0, -16.0]);
    let bias = tensor(DType::F32, 1, 3, &[0.0, 3.0, -3.0]);
    let inputs = [0.0, 1.0, -1.0, 80.0, -80.0, 1e30, -1e30, f32::MIN_POSITIVE, 20.0];
    let (mut alpha, mut beta) = (inputs, inputs);
    let (mut want_alpha, mut want_beta) = (inputs, inputs);
    reference::delta_gates(&mut want_alpha, &mut want_beta, &rate, &bias);
    cpu(tiers().last().unwrap(), 1).delta_gates(&mut alpha, &mut beta, &rate, &bias);
    for (got, want) in alpha.iter().chain(&beta).zip(want_alpha.iter().chain(&want_beta)) {
        assert!((got - want).abs() <= 1e-6 * want && (0.0..=1.0).contains(got), "{got} for {want}");
    }
}

#[test]
fn columns_are_taken_apart_and_gates_applied() {
    let mut rng = Rng::new(9);
    let x = rng.vec(40 * 6 * 100);
    let how = Regroup { groups: 6, stride: 100, first: 30, width: 17, at: 3 };
    let (mut want, mut got) = (vec![1.0; 40 * 110], vec![1.0; 40 * 110]);
    reference::regroup(&x, &how, &mut want, 110);
    let gate: Vec<f32> = rng.vec(x.len()).iter().map(|x| x * 20.0).collect();
    let mut scaled = x.clone();
    reference::sigmoid_mul(&mut scaled, &gate);
    for isa in tiers() {
        cpu(isa, 3).regroup(&x, &how, &mut got, 110);
        assert_eq!(got, want);
        let mut x = x.clone();
        cpu(isa, 3).sigmoid_mul(&mut x, &gate);
        assert_close(&x, &scaled, 1e-6, "sigmoid");
    }
}

#[test]
#[should_panic(expected = "two write to slot 1")]
fn two_sequences_cannot_share_a_slot() {
    let layer = Layer::new(shapes()[0], 4);
    let mut state = vec![0.0; 2 * layer.slot_len()];
    let save = Some(StateSave { rows: 1, slot: 1 });
    let seqs = [StateSeq { save, ..seq(2, 0, true) }, StateSeq { first_row: 2, ..seq(2, 1, true) }];
    layer.run(Some(&cpu(tiers().last().unwrap(), 1)), 0, &seqs, &mut state);
}
