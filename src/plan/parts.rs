//! A bound model taken apart for the planner: bytes and elements of all that can be placed by itself, summed from the tensor
//! directory to the byte. Nothing is estimated from the name of a quantisation.

use crate::model::{Bound, Hparams};
use serde::Serialize;
use std::ops::AddAssign;

/// Weights that stay together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Weights {
    /// Bytes as they lie in the file.
    pub bytes: u64,
    /// Elements: as many multiplications and additions each per token.
    pub elements: u64,
}

impl AddAssign for Weights {
    fn add_assign(&mut self, other: Weights) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.elements = self.elements.saturating_add(other.elements);
    }
}

/// What can be placed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The embedding, where it is not the head: of it one row per token is read.
    Embedding,
    /// The head with the last norm, and what rotary embedding needs; a tied embedding is here.
    Head,
    /// A layer's mixer and norms; its KV cache and recurrent state follow it.
    Attention,
    /// A layer's dense feed-forward, or its shared experts.
    Dense,
    /// A layer's router; it goes where the dense part goes.
    Router,
    /// A layer's routed experts: gate, up and down of all.
    Experts,
}

/// One layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerParts {
    /// Mixer and norms.
    pub attention: Weights,
    /// Dense or shared feed-forward.
    pub dense: Weights,
    /// Router.
    pub router: Weights,
    /// One routed expert: its part of gate, up and down with biases.
    pub expert: Weights,
    /// Routed experts; 0 for a dense layer.
    pub experts: usize,
    /// Elements that attention multiplies with per token and token of context: scores and values of all heads.
    pub scores: u64,
    /// It keeps keys and values.
    pub cached: bool,
    /// It sees so many tokens at most.
    pub window: Option<usize>,
    /// Bytes of recurrent state of one sequence.
    pub state: u64,
}

/// A model, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// `general.name`.
    pub name: String,
    /// The embedding where it is not the head, else nothing.
    pub embedding: Weights,
    /// The head and what is around it.
    pub head: Weights,
    /// The layers.
    pub layers: Vec<LayerParts>,
    /// Experts that a token uses in each layer with experts.
    pub used: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Context the model was trained for, tokens.
    pub trained: usize,
    /// Every tensor: its name, what it belongs to, and its layer (0 outside of layers).
    pub tensors: Vec<(String, Component, usize)>,
}

/// A field's component, by its path; that of the one before for factors beside a matrix.
fn component(path: &str, before: Component) -> Component {
    match path {
        "embedding" => Component::Embedding,
        "layers.scale" => before,
        "layers.experts.choice_bias" => Component::Router,
        "layers.ffn_norm" | "layers.ffn_post_norm" => Component::Dense,
        _ if path.starts_with("layers.experts.router") => Component::Router,
        _ if path.starts_with("layers.experts.shared") || path.starts_with("layers.ffn.") => Component::Dense,
        _ if path.starts_with("layers.experts.") => Component::Experts,
        _ if path.starts_with("layers.") => Component::Attention,
        _ => Component::Head,
    }
}

impl Parts {
    /// Takes a model apart.
    pub fn new(model: &Bound) -> Parts {
        let h = &model.hparams;
        let experts = h.routing.map_or(0, |routing| routing.experts);
        let mut parts = Parts {
            name: h.name.clone(),
            embedding: Weights::default(),
            head: Weights::default(),
            layers: (0..h.layers).map(|layer| layer_numbers(h, layer)).collect(),
            used: h.routing.map_or(0, |routing| routing.used),
            d_model: h.d_model,
            trained: h.context,
            tensors: Vec::new(),
        };
        let tied = model.output.is_none();
        let (mut next, mut at, mut what) = (0, 0, Component::Head);
        model.for_each(|path, tensor| {
            if path == "layers.attn_norm" {
                (at, next) = (next, next + 1);
            }
            what = component(path, what);
            if tied && what == Component::Embedding {
                what = Component::Head;
            }
            let weights = Weights { bytes: tensor.size, elements: tensor.elements() };
            let layer = &mut parts.layers[at];
            match what {
                Component::Embedding => parts.embedding += weights,
                Component::Head => parts.head += weights,
                Component::Attention => layer.attention += weights,
                Component::Dense => layer.dense += weights,
                Component::Router => layer.router += weights,
                // Stacks are cut evenly: each expert has as many rows of them.
                Component::Experts => {
                    layer.experts = experts;
                    let count = experts.max(1) as u64;
                    layer.expert += Weights { bytes: weights.bytes / count, elements: weights.elements / count };
                }
            }
            parts.tensors.push((tensor.name.clone(), what, at));
        });
        parts
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.base().bytes + layer.expert.bytes * layer.experts as u64);
        layers.sum::<u64>() + self.embedding.bytes + self.head.bytes
    }

    /// Bytes of all routed experts.
    pub fn expert_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.expert.bytes * layer.experts as u64).sum()
    }

    /// Layers that keep keys and values.
    pub(super) fn cached(&self) -> u64 {
        self.layers.iter().filter(|layer| layer.cached).count() as u64
    }
}

impl LayerParts {
    /// All of it but the routed experts.
    pub fn base(&self) -> Weights {
        let mut all = self.attention;
        all += self.dense;
        all += self.router;
        all
    }

    /// The feed-forward part of it.
    pub fn feed_forward(&self) -> Weights {
        let mut all = self.dense;
        all += self.router;
        all
    }
}

/// What of a layer follows from the model's numbers.
fn layer_numbers(h: &Hparams, layer: usize) -> LayerParts {
    let recurrent = h.recurrence.as_ref().filter(|recurrence| !recurrence.attention[layer]);
    let state =
        recurrent.map_or(0, |_| h.state_bytes() / h.recurrence.as_ref().map_or(1, |r| r.layers().max(1)) as u64);
    // Of latent attention: keys and values are made for all heads in prompts.
    let (key, value) = h.latent.map_or((h.key_dim, h.value_dim), |latent| (latent.key(), latent.value));
    let cached = recurrent.is_none();
    LayerParts {
        scores: if cached { (h.heads * (key + value)) as u64 } else { 0 },
        cached,
        window: if cached { h.window_of(layer) } else { None },
        state,
        ..LayerParts::default()
    }
}
