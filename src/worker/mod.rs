//! One model's process: engine thread, tokenizer, HTTP on a private Unix socket. Started by the daemon as
//! `omni-inferd worker`, with descriptor 3 the listening socket and descriptor 4 the control channel ([`protocol`]).

pub mod protocol;
