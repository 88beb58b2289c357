//! The fast operations on x86-64: instruction sets chosen at run time, own pinned thread pool.
