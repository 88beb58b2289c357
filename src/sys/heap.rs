//! The C library's heap: gives memory that a burst left behind back to the host. Called by the proxy once a crowd of
//! connections is gone; never on a path that somebody waits for.

/// Returns free pages in the middle of the heap to the kernel, which `free` alone does not do. Takes some milliseconds
/// per hundred MiB. Does nothing where the C library is not glibc.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
