//! omnictl: the commands. Each talks to the daemon over its socket, or works on a file without one.

pub mod inspect; // inspect
pub mod offline; // logits, perplexity and speed of a file, without a daemon
pub mod textcmds; // tokenize, detokenize, render, parse-chat
