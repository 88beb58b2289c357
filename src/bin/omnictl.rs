//! The control tool; see `omni_inferd::ctl`.

fn main() -> std::process::ExitCode {
    omni_inferd::ctl::main(vec![omni_inferd::daemon::cli::command(), omni_inferd::proxy::cli::command()])
}
