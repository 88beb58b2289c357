//! Linux, close to the kernel: besides the kernels the only place where `unsafe` is allowed. Knows no model.

pub mod affinity; // CPU lists, the CPUs a process may use, binding a thread
pub mod arena; // memory for weights on the largest pages, sealed and passed on
pub mod heap; // a limit on what one piece of work may hold; giving memory back to the host
pub mod inherit; // descriptors a worker was started with
pub mod listen; // sockets inherited by socket activation
pub mod memory; // anonymous mappings, and how much memory there is
pub mod net; // Unix sockets: binding, peer credentials
pub mod notify; // the service manager: ready, reloading, stopping, status, watchdog
pub mod numa; // on which nodes memory lies
pub mod pass; // messages with descriptors
pub mod process; // children that inherit descriptors and die with their parent
pub mod topology; // sockets, NUMA nodes, caches, cores and their siblings, the cgroup's quota
pub mod uring; // many reads in flight from one thread
