//! The daemon: supervises one worker process per loaded model, routes requests to them, answers the control API. It
//! touches no tensor and reads no model file, so it does not die with one. Called by the binary.
//!
//! ```text
//! cli ─▶ server ─▶ main_loop (signals, reload, watchdog)
//!          │ access ─▶ router ─▶ forward ─▶ worker's socket
//!          │             └─▶ control, views, metrics
//!          └ registry ─▶ model ◀─▶ supervisor (a task per model) ─▶ process ─▶ worker
//!                                     └ lifecycle (pure)      vault ◀─┘ weights that outlive it
//! ```

mod access; // who may do what
pub mod cli; // command line
mod control; // the control API
pub mod exit; // exit codes
mod forward; // a request to a worker, its answer back
mod lifecycle; // a model's life as a pure state machine
mod lines; // bounded lines from a worker
mod log; // journal or standard error
mod logs; // the last lines, for omnictl logs
mod main_loop; // signals, reload, watchdog, drain
mod metrics; // Prometheus
mod model; // one model, as the rest sees it
mod process; // one worker process
mod registry; // all models
mod router; // path and method to endpoint
mod server; // start and end
mod supervisor; // one task per model
mod vault; // weights that outlive workers and daemon
mod views; // models, health, ready

pub use cli::{command, main};
use server::{Options, Source, run};
