//! The daemon as a process, with workers that speak the protocol and obey the words in their model file.

mod control;
mod fake;
mod harness;
mod host;
mod real;
mod serving;
mod supervision;
