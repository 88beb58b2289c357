//! What the operator places by hand: patterns over tensor names with a device each (`[[model.place]]`). They are honoured
//! to the layer's component; a pattern that matches nothing is a mistake, not a wish. Never on unless asked for.

use super::Device;
use super::host::Host;
use super::parts::{Component, Parts};
use crate::model::Bound;
use regex_automata::meta::Regex;
use serde::Serialize;
use std::collections::BTreeMap;

/// One `[[model.place]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// A regular expression; it need not match a whole name.
    pub tensors: String,
    /// Where what it matches goes.
    pub device: Device,
}

impl Rule {
    /// Reads a pattern and a device.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn parse(tensors: &str, device: &str) -> Result<Rule, String> {
        compile(tensors)?;
        Ok(Rule { tensors: tensors.into(), device: device.parse()? })
    }
}

/// A pattern as an automaton.
fn compile(pattern: &str) -> Result<Regex, String> {
    let why = |error: regex_automata::meta::BuildError| {
        let what = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
        format!("the pattern \"{pattern}\" is no regular expression: {}", what.replace('\n', " "))
    };
    Regex::new(pattern).map_err(why)
}

/// What rules say of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// By component and layer.
    places: BTreeMap<(Component, usize), Device>,
    /// What each rule does, for people.
    pub said: Vec<String>,
}

impl Fixed {
    /// Where a component of a layer must be; the router goes with the dense part.
    pub(super) fn of(&self, component: Component, layer: usize) -> Option<Device> {
        let own = self.places.get(&(component, layer)).copied();
        match component {
            Component::Dense => own.or_else(|| self.places.get(&(Component::Router, layer)).copied()),
            _ => own,
        }
    }
}

/// Applies rules to a model's tensors: the first that matches a tensor counts, and the component follows the first rule
/// that matches any of its tensors.
///
/// # Errors
/// A pattern that is none or matches no tensor, and a device that the host does not have.
pub fn resolve(rules: &[Rule], parts: &Parts, host: &Host) -> Result<Fixed, String> {
    for rule in rules {
        if let Device::Gpu(number) = rule.device
            && number >= host.gpus.len()
        {
            let there = match host.gpus.len() {
                0 => "no GPU".to_owned(),
                count => format!("gpu0 to gpu{}", count - 1),
            };
            return Err(format!("\"{}\" is to go to {}, but there is {there}", rule.tensors, rule.device));
        }
    }
    apply(rules, parts)
}

/// As [`resolve`], for a model on whatever host.
///
/// # Errors
/// A pattern that is none or matches no tensor.
pub fn resolve_names(rules: &[Rule], model: &Bound) -> Result<Fixed, String> {
    match rules.is_empty() {
        true => Ok(Fixed::default()),
        false => apply(rules, &Parts::new(model)),
    }
}

fn apply(rules: &[Rule], parts: &Parts) -> Result<Fixed, String> {
    let mut fixed = Fixed::default();
    for rule in rules {
        let pattern = compile(&rule.tensors)?;
        let matched = parts.tensors.iter().filter(|(name, ..)| pattern.is_match(name.as_str()));
        let mut touched: BTreeMap<(Component, usize), usize> = BTreeMap::new();
        matched.for_each(|(_, component, layer)| *touched.entry((*component, *layer)).or_default() += 1);
        if touched.is_empty() {
            let example = parts.tensors.last().map_or("", |(name, ..)| name);
            return Err(format!(
                "\"{}\" matches no tensor of {}; omnictl inspect lists types, names are like {example}",
                rule.tensors, parts.name
            ));
        }
        fixed.said.push(said(rule, &touched, parts, &fixed));
        for key in touched.into_keys() {
            fixed.places.entry(key).or_insert(rule.device);
        }
    }
    Ok(fixed)
}

/// What a rule does, in words.
fn said(rule: &Rule, touched: &BTreeMap<(Component, usize), usize>, parts: &Parts, fixed: &Fixed) -> String {
    let mut by_component: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (component, layer) in touched.keys() {
        by_component.entry(component.name()).or_default().push(*layer);
    }
    let words: Vec<String> = by_component
        .iter()
        .map(|(name, layers)| match *name {
            "embedding" | "head" => (*name).to_owned(),
            _ => format!("{name} of layers {}", runs(layers)),
        })
        .collect();
    let mut text = format!("by hand: \"{}\" puts {} on {}", rule.tensors, words.join(", "), rule.device);
    let whole = |key: &(Component, usize)| parts.tensors.iter().filter(|(_, c, layer)| (*c, *layer) == *key).count();
    if touched.iter().any(|(key, count)| *count < whole(key)) {
        text.push_str("; it matches only a part of some of them, the rest follows");
    }
    if touched.keys().any(|key| fixed.places.contains_key(key)) {
        text.push_str("; where an earlier pattern matched, that one counts");
    }
    text
}

impl Component {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Component::Embedding => "embedding",
            Component::Head => "head",
            Component::Attention => "attention",
            Component::Dense => "dense part",
            Component::Router => "router",
            Component::Experts => "experts",
        }
    }
}

/// Ascending numbers as runs: `0-2, 5`.
pub(super) fn runs(numbers: &[usize]) -> String {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match out.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            Some((_, last)) if *last == number => {}
            _ => out.push((number, number)),
        }
    }
    let run = |(first, last): (usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    out.into_iter().map(run).collect::<Vec<_>>().join(", ")
}
