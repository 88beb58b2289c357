//! The control tool; see `omni_inferd::ctl`.

/// Bounds what a chat template may take.
#[global_allocator]
static HEAP: omni_inferd::sys::heap::Metered = omni_inferd::sys::heap::Metered;

fn main() -> std::process::ExitCode {
    omni_inferd::ctl::main(vec![omni_inferd::daemon::command(), omni_inferd::proxy::cli::command()])
}
