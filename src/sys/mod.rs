//! Linux, close to the kernel: the only place besides the kernels where `unsafe` is allowed. Knows no model.

pub mod affinity; // CPU lists, the CPUs a process may use, binding a thread
pub mod memory; // anonymous mappings, and how much memory there is
pub mod topology; // physical cores and their siblings, the cgroup's quota
