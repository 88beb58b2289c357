//! Linux, close to the kernel: the only place besides the kernels where `unsafe` is allowed. Knows no model.

pub mod heap; // gives freed memory back to the host
pub mod listen; // TCP sockets inherited by socket activation
pub mod net; // Unix sockets: binding, inherited descriptors, peer credentials
pub mod notify; // the service manager: ready, reloading, stopping, status, watchdog
pub mod process; // children that inherit descriptors and die with their parent
