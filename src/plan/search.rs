//! The search for the layout with the least predicted time per token: orders of GPUs, contiguous runs of whole layers on
//! them, and two ways to fill what is left of each with experts. Bounded: three GPUs are tried exhaustively, four on a grid,
//! more in the order of their bandwidth.
//!
//! What is never tried: a matrix cut over several GPUs (tensor parallelism), which makes the slowest card and two transfers
//! a layer the measure of all. Attention, dense part, router and head come before experts, and experts fill each GPU as far
//! as its reserve allows, however fast the CPU.

use super::Device;
use super::cost::Cost;
use super::layout::{DeviceBytes, LayerPlace, Layout, Share, tally};
use super::overrides::Fixed;
use super::parts::Component;
use super::setting::{Ask, Counts};

/// GPUs whose orders are all tried.
const PERMUTED: usize = 4;
/// Most cuts of the layers that are tried per order.
const CUTS: usize = 4000;

/// How a GPU is filled with experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// As many of each layer.
    Spread,
    /// All of one layer after the other.
    Layers,
}

/// A layout that fits.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub layout: Layout,
    pub bytes: Vec<DeviceBytes>,
    /// Predicted seconds per token at the beginning of a context.
    pub seconds: f64,
    pub fill: Fill,
    /// GPUs with layers, in order.
    pub gpus: Vec<usize>,
}

impl Found {
    /// How much of the model GPUs have: 2 all of it, 1 all but experts, 0 less.
    pub fn level(&self) -> usize {
        match (self.layout.uses_cpu(), self.layout.cpu_layers()) {
            (false, _) => 2,
            (true, 0) => 1,
            _ => 0,
        }
    }
}

/// What is searched over.
pub(super) struct Search<'a> {
    pub ask: &'a Ask<'a>,
    pub counts: Counts,
    pub fixed: &'a Fixed,
    pub cost: Cost<'a>,
    /// Host memory is no limit: to say what would be needed.
    pub boundless: bool,
}

impl Search<'_> {
    /// The fastest layout for each number of GPUs and way to fill them, fewest GPUs first.
    pub fn run(&self) -> Vec<Found> {
        let mut best: Vec<Found> = Vec::new();
        for order in orders(self.ask) {
            let found = self.cuts(&order).into_iter().flat_map(|homes| self.variants(&homes, &order));
            for next in found {
                let alike = |found: &&mut Found| found.gpus.len() == next.gpus.len() && found.fill == next.fill;
                match best.iter_mut().find(alike) {
                    Some(found) if better(&next, found) => *found = next,
                    Some(_) => {}
                    None => best.push(next),
                }
            }
        }
        best.sort_by_key(|found| found.gpus.len());
        best
    }

    /// Bytes on each device of the fastest layout; where no layout is possible, because something placed by hand has no room,
    /// of what was placed by hand and the rest on the CPU.
    pub fn fullest(&self) -> Vec<DeviceBytes> {
        let all = self.run();
        let fastest = all.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds));
        fastest.map_or_else(|| self.on_cpu(), |found| found.bytes.clone())
    }

    /// Everything on the CPU that is not placed by hand, whether it fits or not.
    fn on_cpu(&self) -> Vec<DeviceBytes> {
        let homes = vec![Device::Cpu; self.ask.parts.layers.len()];
        let mut layout = self.placed(&homes, self.head_of(&homes));
        for (place, layer) in layout.layers.iter_mut().zip(&self.ask.parts.layers) {
            if place.experts.is_empty() && layer.experts > 0 {
                place.experts.push(Share { device: Device::Cpu, first: 0, experts: layer.experts });
            }
        }
        tally(self.ask, &self.counts, &layout)
    }

    /// Ways to cut the layers into one run per GPU of `order`, as the home of each layer; with the last layers on the CPU
    /// where GPUs cannot have them all.
    fn cuts(&self, order: &[usize]) -> Vec<Vec<Device>> {
        let layers = self.ask.parts.layers.len();
        if order.is_empty() {
            return vec![vec![Device::Cpu; layers]];
        }
        if order.len() > layers {
            return Vec::new();
        }
        let mut cuts: Vec<Vec<Device>> = match order.len() {
            count if count <= PERMUTED => boundaries(layers, count),
            _ => vec![self.proportional(order)],
        }
        .into_iter()
        .map(|ends| homes(&ends, order))
        .collect();
        cuts.retain(|homes| self.base(homes, self.head_of(homes)).is_some());
        if cuts.is_empty() && !self.ask.request.gpu_only {
            cuts.extend(self.packed(order));
        }
        cuts
    }

    /// The ends of runs as long as each GPU's memory asks for.
    fn proportional(&self, order: &[usize]) -> Vec<usize> {
        let layers = self.ask.parts.layers.len();
        let room = |number: &usize| self.ask.memory(Device::Gpu(*number)) as f64;
        let all: f64 = order.iter().map(room).sum::<f64>().max(1.0);
        let mut so_far = 0.0;
        let end = |number: &usize| {
            so_far += room(number);
            (so_far / all * layers as f64).round() as usize
        };
        order.iter().map(end).collect()
    }

    /// As many first layers as fit on the GPUs of `order`, one after the other; the rest stays on the CPU.
    fn packed(&self, order: &[usize]) -> Option<Vec<Device>> {
        let layers = self.ask.parts.layers.len();
        let mut homes = vec![Device::Cpu; layers];
        let mut next = 0;
        for &number in order {
            let begin = next;
            while next < layers {
                homes[next] = Device::Gpu(number);
                if self.base(&homes, self.head_of(&homes)).is_none() {
                    homes[next] = Device::Cpu;
                    break;
                }
                next += 1;
            }
            // A GPU without a layer is another order's business.
            if next == begin {
                return None;
            }
        }
        Some(homes)
    }

    /// The head's place: with the last layer on a GPU.
    fn head_of(&self, homes: &[Device]) -> Device {
        let last = homes.iter().rev().find(|home| **home != Device::Cpu).copied();
        self.fixed.of(Component::Head, 0).unwrap_or(last.unwrap_or_default())
    }

    /// The layouts of these homes: both fills, and the head on the CPU where it has the last layers.
    fn variants(&self, homes: &[Device], order: &[usize]) -> Vec<Found> {
        let mut heads = vec![self.head_of(homes)];
        if homes.last() == Some(&Device::Cpu) && self.fixed.of(Component::Head, 0).is_none() && !order.is_empty() {
            heads.push(Device::Cpu);
        }
        let ways = heads.into_iter().flat_map(|head| [(head, Fill::Spread), (head, Fill::Layers)]);
        ways.filter_map(|(head, fill)| self.lay(homes, head, fill, order)).collect()
    }

    /// A layout whose experts are where the operator wants them, or nowhere yet.
    fn placed(&self, homes: &[Device], head: Device) -> Layout {
        let place = |(layer, home): (usize, &Device)| LayerPlace {
            attention: self.fixed.of(Component::Attention, layer).unwrap_or(*home),
            dense: self.fixed.of(Component::Dense, layer).unwrap_or(*home),
            experts: self.by_hand(layer).into_iter().collect(),
        };
        Layout {
            layers: homes.iter().enumerate().map(place).collect(),
            head,
            embedding: self.fixed.of(Component::Embedding, 0).unwrap_or(Device::Cpu),
        }
    }

    /// That layout and what it takes; `None` where a GPU has not the room.
    fn base(&self, homes: &[Device], head: Device) -> Option<(Layout, Vec<DeviceBytes>)> {
        let layout = self.placed(homes, head);
        let bytes = tally(self.ask, &self.counts, &layout);
        let fits = bytes[1..].iter().all(|gpu| gpu.taken() == 0 || gpu.left().is_some());
        fits.then_some((layout, bytes))
    }

    /// A layer's experts where the operator wants them.
    fn by_hand(&self, layer: usize) -> Option<Share> {
        let experts = self.ask.parts.layers[layer].experts;
        let device = self.fixed.of(Component::Experts, layer).filter(|_| experts > 0)?;
        Some(Share { device, first: 0, experts })
    }

    /// A whole layout; `None` where something has not the room.
    fn lay(&self, homes: &[Device], head: Device, fill: Fill, order: &[usize]) -> Option<Found> {
        let (mut layout, bytes) = self.base(homes, head)?;
        let parts = &self.ask.parts.layers;
        for (number, gpu) in bytes[1..].iter().enumerate() {
            let device = Device::Gpu(number);
            // What is not used already has neither buffers nor context.
            let room = if gpu.taken() == 0 { 0 } else { gpu.left().unwrap_or(0) };
            let own = |(place, layer): (&LayerPlace, &super::parts::LayerParts)| {
                let free = place.dense == device && place.experts.is_empty();
                if free { (layer.expert.bytes, layer.experts) } else { (0, 0) }
            };
            let wanted: Vec<(u64, usize)> = layout.layers.iter().zip(parts).map(own).collect();
            let counts = match fill {
                Fill::Spread => spread(&wanted, room),
                Fill::Layers => one_by_one(&wanted, room),
            };
            for (place, count) in layout.layers.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
                place.experts.push(Share { device, first: 0, experts: count });
            }
        }
        for (place, layer) in layout.layers.iter_mut().zip(parts) {
            let first: usize = place.experts.iter().map(|share| share.experts).sum();
            if first < layer.experts {
                place.experts.push(Share { device: Device::Cpu, first, experts: layer.experts - first });
            }
        }
        let bytes = tally(self.ask, &self.counts, &layout);
        let fits = self.boundless || bytes[0].left().is_some();
        if !fits || (self.ask.request.gpu_only && layout.uses_cpu() && !self.boundless) {
            return None;
        }
        let seconds = self.cost.decode(&layout, 0).total();
        Some(Found { layout, bytes, seconds, fill, gpus: order.to_vec() })
    }
}

/// Faster; of equally fast ones the one with fewer hops.
pub(super) fn better(one: &Found, other: &Found) -> bool {
    (one.seconds, one.layout.hops()) < (other.seconds, other.layout.hops())
}

/// As many experts of each layer as fit into `room`, by (bytes, experts) of each.
fn spread(wanted: &[(u64, usize)], room: u64) -> Vec<usize> {
    let at = |level: usize| wanted.iter().map(|(bytes, count)| bytes * level.min(*count) as u64).sum::<u64>();
    let most = wanted.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let level = super::largest(most, |level| at(level) <= room).unwrap_or(0);
    let mut left = room.saturating_sub(at(level));
    let one_more = |(bytes, count): &(u64, usize)| {
        let more = level < *count && *bytes <= left;
        left -= if more { *bytes } else { 0 };
        level.min(*count) + usize::from(more)
    };
    wanted.iter().map(one_more).collect()
}

/// All experts of the first layers, and what fits of the others.
fn one_by_one(wanted: &[(u64, usize)], room: u64) -> Vec<usize> {
    let mut left = room;
    let fill = |(bytes, count): &(u64, usize)| {
        let fits = left.checked_div(*bytes).map_or(0, |fits| fits.min(*count as u64));
        left -= fits * bytes;
        fits as usize
    };
    wanted.iter().map(fill).collect()
}

/// Each layer's home by the ends of the runs.
fn homes(ends: &[usize], order: &[usize]) -> Vec<Device> {
    let mut begin = 0;
    let run = |(end, number): (&usize, &usize)| {
        let length = end.saturating_sub(std::mem::replace(&mut begin, *end));
        std::iter::repeat_n(Device::Gpu(*number), length)
    };
    ends.iter().zip(order).flat_map(run).collect()
}

/// All ends of `runs` contiguous runs that cover `layers` layers, none empty; on a coarser grid where there are too many.
fn boundaries(layers: usize, runs: usize) -> Vec<Vec<usize>> {
    let count = |step: usize| {
        let places = (layers - 1) / step;
        (0..runs - 1).fold(1usize, |all, i| all * places.saturating_sub(i) / (i + 1))
    };
    let step = (1..layers).find(|step| count(*step) <= CUTS).unwrap_or(1);
    let mut all = vec![Vec::new()];
    for run in 1..runs {
        let longer = |ends: Vec<usize>| {
            let first = ends.last().copied().unwrap_or(0) + step;
            let last = layers.saturating_sub((runs - run) * step);
            (first..=last).step_by(step).map(move |end| [ends.clone(), vec![end]].concat())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all.into_iter().map(|ends| [ends, vec![layers]].concat()).collect()
}

/// Orders of GPUs to try: every subset in every order, or, of many, the fastest ones.
fn orders(ask: &Ask) -> Vec<Vec<usize>> {
    let gpus = &ask.host.gpus;
    let mut all = Vec::new();
    if !ask.request.gpu_only {
        all.push(Vec::new());
    }
    if gpus.len() > PERMUTED {
        let mut order: Vec<usize> = (0..gpus.len()).collect();
        order.sort_by(|a, b| gpus[*b].rates.read.total_cmp(&gpus[*a].rates.read));
        all.extend((1..=order.len()).map(|count| order[..count].to_vec()));
        return all;
    }
    let mut longest = vec![Vec::new()];
    for _ in 0..gpus.len() {
        let longer = |order: &Vec<usize>| {
            let rest = (0..gpus.len()).filter(|number| !order.contains(number));
            rest.map(|number| [order.as_slice(), &[number]].concat()).collect::<Vec<_>>()
        };
        longest = longest.iter().flat_map(longer).collect();
        all.extend(longest.iter().cloned());
    }
    all
}
