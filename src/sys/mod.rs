//! Linux: which CPUs there are and which thread runs where.

pub mod affinity; // CPU lists, the CPUs a process may use, binding a thread
pub mod topology; // physical cores and their siblings, the cgroup's quota
