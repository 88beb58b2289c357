//! The daemon and, as a hidden subcommand, its workers.

fn main() -> std::process::ExitCode {
    omni_inferd::daemon::main(omni_inferd::worker::run)
}
