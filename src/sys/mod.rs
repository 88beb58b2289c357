//! (to be written)
pub mod heap; // gives freed memory back to the host
pub mod listen; // TCP sockets inherited by socket activation
