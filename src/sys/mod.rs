//! (to be written)
pub mod listen; // TCP sockets inherited by socket activation
