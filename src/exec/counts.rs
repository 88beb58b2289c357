//! How often each expert of each layer was chosen since the model was loaded. One thread counts, any may read.

use super::experts::rule;
use crate::model::Hparams;
use crate::ops::Routes;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Choices by layer and expert. A token makes as many choices per layer as it uses experts.
#[derive(Debug)]
pub struct RoutingCounts {
    experts: usize,
    used: usize,
    /// The model's first layer with experts; all behind it have some.
    first: usize,
    /// `[layers with experts, experts]`.
    counts: Vec<AtomicU64>,
}

impl RoutingCounts {
    /// Zeros; `None` for a model without experts.
    pub(super) fn new(h: &Hparams) -> Option<RoutingCounts> {
        let routing = h.routing.as_ref()?;
        let rule = rule(routing);
        let counts = (0..routed_layers(h) * rule.experts).map(|_| AtomicU64::new(0)).collect();
        Some(RoutingCounts {
            experts: rule.experts,
            used: rule.used,
            first: routing.dense_layers.min(h.layers),
            counts,
        })
    }

    /// Bytes that [`RoutingCounts::new`] reserves.
    pub(super) fn bytes(h: &Hparams) -> u64 {
        let experts = h.routing.as_ref().map_or(0, |routing| routing.experts) as u64;
        experts.saturating_mul(routed_layers(h) as u64).saturating_mul(size_of::<AtomicU64>() as u64)
    }

    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        (self.counts.capacity() * size_of::<AtomicU64>()) as u64
    }

    /// Counts a layer's choices in a step. Called by one thread alone, so that no addition needs to be atomic.
    pub(super) fn add(&self, layer: usize, routes: &Routes) {
        let own = &self.counts[(layer - self.first) * self.experts..][..self.experts];
        for (expert, pairs) in routes.active() {
            own[expert].store(own[expert].load(Relaxed) + pairs.len() as u64, Relaxed);
        }
    }

    /// Experts that a token uses in each layer.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Each layer with experts, by its number in the model, and how often each of its experts was chosen.
    pub fn layers(&self) -> impl Iterator<Item = (usize, Vec<u64>)> + '_ {
        let counts = |layer: &[AtomicU64]| layer.iter().map(|count| count.load(Relaxed)).collect();
        self.counts.chunks_exact(self.experts).enumerate().map(move |(nth, layer)| (self.first + nth, counts(layer)))
    }
}

fn routed_layers(h: &Hparams) -> usize {
    h.routing.as_ref().map_or(0, |routing| h.layers.saturating_sub(routing.dense_layers))
}
