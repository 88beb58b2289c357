//! (to be written)
pub mod inspect; // inspect
pub mod textcmds; // tokenize, detokenize, render, parse-chat
