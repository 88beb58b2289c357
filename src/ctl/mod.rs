//! (to be written)
pub mod textcmds; // tokenize, detokenize, render, parse-chat
