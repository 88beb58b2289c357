//! The daemon as a process, with workers that speak the protocol and obey the words in their model file.

#![allow(clippy::unwrap_used, reason = "in a test, what does not hold ends it")]

mod control;
mod fake;
mod harness;
mod host;
mod real;
mod serving;
mod supervision;
