//! The routed feed-forward layer of a step.

use super::buffers::{Buffers, Routed};
use super::forward::{Step, activate, product};
use crate::model::{self, Experts, Routing, Shared};
use crate::ops::{ExpertInput, ExpertMatMul, Gating, MatMul, RouteRule, Tensor};

/// The routing's numbers as the operations take them.
pub(super) fn rule(routing: &Routing) -> RouteRule {
    RouteRule {
        experts: routing.experts,
        used: routing.used,
        gating: match routing.gating {
            model::Gating::Softmax => Gating::Softmax,
            model::Gating::Sigmoid => Gating::Sigmoid,
            model::Gating::SoftmaxOfChosen => Gating::SoftmaxOfChosen,
        },
        normalise: routing.normalise,
        scale: routing.scale,
        groups: routing.groups,
        groups_used: routing.groups_used,
    }
}

impl Step<'_> {
    /// branch = Σ weight · down(activation(gate(branch), up(branch))) over each row's experts, and the shared ones' output
    pub(super) fn routed(&mut self, layer: usize, weights: &Experts<Tensor>, routing: &Routing) {
        if let Some(shared) = &weights.shared {
            self.shared(shared);
        }
        let Step { cpu, scratch, rows, counts, .. } = self;
        let Buffers { branch, routed: Some(routed), .. } = &mut *self.buffers else {
            unreachable!("a model with experts has their buffers")
        };
        let Routed { scores, routes, gate, up, down, shared, .. } = routed;
        let (branch, scores) = (branch.rows(*rows), scores.rows(*rows));

        cpu.matmul(branch, &mut [product(&weights.router, scores)], scratch);
        cpu.route(scores, weights.choice_bias.as_ref(), &rule(routing), routes);
        if let Some(counts) = counts {
            counts.add(layer, routes);
        }
        let pairs = routes.len();
        let (gate, up, down) = (gate.rows(pairs), up.rows(pairs), down.rows(pairs));
        // Where gate and up are one tensor, an expert's gate comes first.
        let d_ff = routing.d_ff;
        let (gate_linear, stride, up_first) = match &weights.gate {
            Some(gate) => (gate, d_ff, 0),
            None => (&weights.up, 2 * d_ff, d_ff),
        };
        let (weight, bias) = (&gate_linear.weight, gate_linear.bias.as_ref());
        let gate_job = ExpertMatMul { weight, bias, stride, first: 0, rows: d_ff, out: gate };
        let (weight, bias) = (&weights.up.weight, weights.up.bias.as_ref());
        let up_job = ExpertMatMul { weight, bias, stride, first: up_first, rows: d_ff, out: up };
        cpu.expert_matmul(ExpertInput::Rows(branch), routes, &mut [gate_job, up_job], scratch);
        activate(cpu, self.hparams.activation, gate, up);
        let (weight, bias, d_model) = (&weights.down.weight, weights.down.bias.as_ref(), self.hparams.d_model);
        let down_job = ExpertMatMul { weight, bias, stride: d_model, first: 0, rows: d_model, out: down };
        cpu.expert_matmul(ExpertInput::Pairs(gate), routes, &mut [down_job], scratch);
        cpu.combine(down, routes, branch);
        if weights.shared.is_some() {
            cpu.add(branch, shared.rows(*rows));
        }
    }

    /// shared = down(activation(gate(branch), up(branch))), scaled where the layer has a gate for it
    fn shared(&mut self, weights: &Shared<Tensor>) {
        let Step { cpu, scratch, rows, .. } = self;
        let Buffers { branch, gate, up, routed: Some(routed), .. } = &mut *self.buffers else {
            unreachable!("a model with experts has their buffers")
        };
        let (d_ff, branch) = (weights.ffn.gate.weight.rows, branch.rows(*rows));
        let (gate, up) = (gate.narrow(*rows, d_ff), up.narrow(*rows, d_ff));
        let out = routed.shared.rows(*rows);
        cpu.matmul(branch, &mut [product(&weights.ffn.gate, gate), product(&weights.ffn.up, up)], scratch);
        activate(cpu, self.hparams.activation, gate, up);
        cpu.matmul(gate, &mut [product(&weights.ffn.down, out)], scratch);
        let Some(weight) = &weights.gate else { return };
        let scale = routed.shared_gate.rows(*rows);
        cpu.matmul(branch, &mut [MatMul { weight, bias: None, out: scale }], scratch);
        cpu.gate_rows(out, scale);
    }
}
