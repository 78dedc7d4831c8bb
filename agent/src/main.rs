//! The SPIFFE identity agent: one per node, serves workloads and Envoy.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    svid_agent::cli::main(&args, svid_agent::run::run)
}
