//! Mixture of experts: the numbers of the routing and the tensors of a routed feed-forward layer, read and bound the same
//! way for every architecture that has one.

use super::binder::{Bias, Binder};
use super::{Error, FeedForward, Ffn, Hparams, Linear};
use crate::gguf::TensorInfo;

/// How the router's scores become probabilities, by `expert_gating_func`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// 1: softmax over all experts, then the best are chosen (Mixtral, Qwen, DeepSeek-V2).
    Softmax,
    /// 2: each expert's sigmoid (DeepSeek-V3, GLM-4.5).
    Sigmoid,
    /// 3: the best are chosen by score, then softmax over those (GPT-OSS).
    SoftmaxOfChosen,
}

/// The numbers of a model's routed layers, checked: `1 ≤ used ≤ experts`, groups divide the experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Routed experts per layer.
    pub experts: usize,
    /// Of these, used per token.
    pub used: usize,
    /// Width of a routed expert.
    pub d_ff: usize,
    /// Width of the shared experts together; 0 where there are none.
    pub shared_d_ff: usize,
    /// Leading layers with a dense feed-forward instead.
    pub dense_layers: usize,
    /// Scores to probabilities.
    pub gating: Gating,
    /// The chosen probabilities are divided by their sum.
    pub normalise: bool,
    /// Factor on the chosen probabilities.
    pub scale: f32,
    /// The experts stand in this many groups of equal size; 1 where they do not.
    pub groups: usize,
    /// Only experts of this many best groups can be chosen.
    pub groups_used: usize,
}

/// A routed feed-forward layer. A stack of matrices is one tensor: expert after expert, row after row.
#[derive(Clone, Debug)]
pub struct Experts<T> {
    /// `ffn_gate_inp` `[experts, d_model]`: the router.
    pub router: Linear<T>,
    /// `exp_probs_b.bias` `[experts]`, added to the probabilities for the choice alone (DeepSeek-V3, GLM-4.5).
    pub choice_bias: Option<T>,
    /// `ffn_gate_exps` `[experts * d_ff, d_model]`; `None` where `up` is `ffn_gate_up_exps` and holds both.
    pub gate: Option<Linear<T>>,
    /// `ffn_up_exps` `[experts * d_ff, d_model]`, or `ffn_gate_up_exps` `[experts * 2 * d_ff, d_model]`, each expert's
    /// gate first.
    pub up: Linear<T>,
    /// `ffn_down_exps` `[experts * d_model, d_ff]`.
    pub down: Linear<T>,
    /// What every token passes besides.
    pub shared: Option<Shared<T>>,
}

/// Experts that every token passes, as one feed-forward layer.
#[derive(Clone, Debug)]
pub struct Shared<T> {
    /// `ffn_{gate,up,down}_shexp`, of width `shared_d_ff`.
    pub ffn: Ffn<T>,
    /// `ffn_gate_inp_shexp.weight` `[1, d_model]`: its output is scaled by the sigmoid of this product (Qwen2-MoE).
    pub gate: Option<T>,
}

/// Whether the shared experts' output is scaled by a gate of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SharedGate {
    /// Added as it is.
    None,
    /// Scaled.
    Sigmoid,
}

/// The feed-forward layer of block `i`, dense or routed as the numbers say.
pub(super) fn feed_forward(
    b: &mut Binder,
    h: &Hparams,
    i: usize,
    gate: SharedGate,
) -> Result<FeedForward<TensorInfo>, Error> {
    Ok(match &h.routing {
        Some(routing) if i >= routing.dense_layers => {
            FeedForward::Experts(Box::new(experts(b, h.d_model, routing, i, gate)?))
        }
        _ => FeedForward::Dense(dense(b, h.d_model, h.d_ff, &|part| format!("blk.{i}.ffn_{part}"))?),
    })
}

/// `gate`, `up` and `down` of width `d_ff`, by the names that `at` gives them.
fn dense(b: &mut Binder, d_model: usize, d_ff: usize, at: &dyn Fn(&str) -> String) -> Result<Ffn<TensorInfo>, Error> {
    Ok(Ffn {
        gate: b.linear(&at("gate"), d_ff, d_model, Bias::Optional)?,
        up: b.linear(&at("up"), d_ff, d_model, Bias::Optional)?,
        down: b.linear(&at("down"), d_model, d_ff, Bias::Optional)?,
    })
}

fn experts(
    b: &mut Binder,
    d_model: usize,
    r: &Routing,
    i: usize,
    shared_gate: SharedGate,
) -> Result<Experts<TensorInfo>, Error> {
    let at = |name: &str| format!("blk.{i}.{name}");
    let (gate, up) = match b.optional_stack(&at("ffn_gate_up_exps"), r.experts, 2 * r.d_ff, d_model)? {
        Some(both) => (None, both),
        None => {
            let gate = b.stack(&at("ffn_gate_exps"), r.experts, r.d_ff, d_model)?;
            (Some(gate), b.stack(&at("ffn_up_exps"), r.experts, r.d_ff, d_model)?)
        }
    };
    Ok(Experts {
        router: b.linear(&at("ffn_gate_inp"), r.experts, d_model, Bias::Optional)?,
        choice_bias: b.optional_vector(&at("exp_probs_b.bias"), r.experts)?,
        gate,
        up,
        down: b.stack(&at("ffn_down_exps"), r.experts, d_model, r.d_ff)?,
        shared: if r.shared_d_ff > 0 {
            let gate =
                (shared_gate == SharedGate::Sigmoid).then(|| b.matrix(&at("ffn_gate_inp_shexp.weight"), 1, d_model));
            let name = |part: &str| format!("blk.{i}.ffn_{part}_shexp");
            Some(Shared { ffn: dense(b, d_model, r.shared_d_ff, &name)?, gate: gate.transpose()? })
        } else {
            None
        },
    })
}
