//! The daemon and, as a hidden subcommand, its workers.

/// Bounds what a chat template may take.
#[global_allocator]
static HEAP: omni_inferd::sys::heap::Metered = omni_inferd::sys::heap::Metered;

fn main() -> std::process::ExitCode {
    omni_inferd::daemon::main(omni_inferd::worker::run)
}
