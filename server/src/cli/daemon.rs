//! `run` and `validate`: their flags are read here, the work is done elsewhere.

use std::ffi::OsString;
use std::process::ExitCode;

use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::FlagSet;

use super::Handler;
use crate::config::{self, FlagError, RunFlags};

/// Runs the server until it is told to stop.
pub fn run(args: &[OsString]) -> ExitCode {
    match read(args, "run") {
        Ok(flags) => crate::run::run(flags),
        Err(code) => code,
    }
}

/// Says whether the configuration can be used.
pub fn validate(args: &[OsString]) -> ExitCode {
    let flags = match read(args, "validate") {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    match config::load(&flags) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("Warning: {warning}");
            }
            println!("SPIRE server configuration file is valid.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("SPIRE server configuration file is invalid: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Ends with an error and code 1.
pub fn fail(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("Error: {error}");
    ExitCode::FAILURE
}

/// A place in the list of commands for one that is run without it.
pub fn listed(name: &'static str, synopsis: &'static str) -> Command<Handler> {
    let handler: Handler = |_, _| {
        Box::pin(async {
            Err(CliError::new("this command has to be the first word after the program's name"))
        })
    };
    Command { name, synopsis, flags: FlagSet::new(name), handler }
}

fn read(args: &[OsString], name: &str) -> Result<RunFlags, ExitCode> {
    RunFlags::parse(args).map_err(|error| {
        let usage = FlagError::Help.to_string().replacen("run", name, 1);
        match error {
            FlagError::Help => {
                eprintln!("{usage}");
                ExitCode::SUCCESS
            }
            error => {
                eprintln!("{error}\n{usage}");
                ExitCode::FAILURE
            }
        }
    })
}
