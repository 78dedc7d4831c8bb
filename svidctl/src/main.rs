//! The tool people look through: status, entries, agents, SVIDs. It also writes configurations for Envoy.

mod agents;
mod args;
mod authorized;
mod backup;
mod ca;
mod connect;
mod entries;
mod envoy;
mod federation;
mod render;
mod restore;
mod status;
mod status_gather;
mod status_servers;
mod svid;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use connect::Failure;
use render::Screen;

fn main() -> ExitCode {
    let args = Args::parse();
    let out = std::io::stdout();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut screen = Screen { out: Box::new(out), output: args.output, colour };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return say(&Failure::new(error)),
    };
    match runtime.block_on(run(&args, &mut screen)).and_then(|()| Ok(screen.out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => say(&failure),
    }
}

fn say(failure: &Failure) -> ExitCode {
    // Nothing is left to do when standard error is gone.
    let _ = writeln!(std::io::stderr(), "{failure}");
    ExitCode::FAILURE
}

async fn run(args: &Args, screen: &mut Screen) -> Result<(), Failure> {
    match &args.command {
        Command::Status => status::run(args, screen).await,
        Command::Entry(command) => entries::run(args, command, screen).await,
        Command::Agent(command) => agents::run(args, command, screen).await,
        Command::Federation(command) => federation::run(args, command, screen).await,
        Command::Ca(command) => ca::run(args, command, screen).await,
        Command::Backup(command) => backup::run(args, command, screen).await,
        Command::Restore(command) => Err(restore::run(args, command)),
        Command::Svid(command) => svid::run(args, command, screen).await,
        Command::Envoy(command) => envoy::run(args, command, screen),
    }
}
