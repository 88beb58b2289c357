//! TCP in front of the daemon's Unix socket; see `omni_inferd::proxy`.

fn main() -> std::process::ExitCode {
    omni_inferd::proxy::cli::main()
}
