//! The SPIFFE identity server: a trust domain's authority.

use std::process::ExitCode;

fn main() -> ExitCode {
    svid_server::cli::main(std::env::args_os().skip(1).collect())
}
