//! The daemon as a process, with workers that speak the protocol and obey the words in their model file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod control;
mod experts;
mod fake;
mod harness;
mod host;
mod real;
mod serving;
mod supervision;
mod vault;
