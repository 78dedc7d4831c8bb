//! The command line: SPIRE's verbs, texts and exit codes.

mod admin;
mod api;
mod daemon;
mod fetch_x509;
mod health;
mod jwt;
mod socket;
mod text;
mod watch;
mod x509_text;

use std::io::Write;
use std::process::ExitCode;

use svid_daemon::cli::{Cli, Command, Selected};
use svid_daemon::flags::{FlagSet, Parsed};

use crate::config::Loaded;

/// What a command may touch besides the network.
pub(crate) struct Env<'a> {
    /// Standard output.
    pub out: &'a mut dyn Write,
    /// Standard error.
    pub err: &'a mut dyn Write,
    /// Environment variables.
    pub var: &'a dyn Fn(&str) -> Option<String>,
    /// What `run` does.
    pub run: Run,
}

impl Env<'_> {
    /// Says on standard error why a command failed, and gives its exit code.
    pub(crate) fn fail(&mut self, text: impl std::fmt::Display) -> i32 {
        // Nothing is left to do when standard error is gone.
        let _ = writeln!(self.err, "{text}");
        1
    }
}

/// Runs the agent with a checked configuration and gives the exit code.
pub type Run = fn(Loaded) -> i32;

type Handler = fn(&Parsed, &mut Env<'_>) -> i32;

/// Runs the command that `args` (without the program's name) asks for; `run` is the agent itself.
pub fn main(args: &[String], run: Run) -> ExitCode {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let var = |name: &str| std::env::var(name).ok();
    let code = dispatch(args, &mut Env { out: &mut out, err: &mut err, var: &var, run });
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn dispatch(args: &[String], env: &mut Env<'_>) -> i32 {
    let cli = Cli { name: "svid-agent", version: env!("CARGO_PKG_VERSION"), commands: commands() };
    match cli.select(args, env.err) {
        Selected::Run(handler, flags) => handler(&flags, env),
        Selected::Exit(code) => code,
    }
}

fn commands() -> Vec<Command<Handler>> {
    let command =
        |name, synopsis, flags: FlagSet, handler: Handler| Command { name, synopsis, flags, handler };
    vec![
        command("run", "Runs the agent", daemon::flags("run"), daemon::run),
        command(
            "validate",
            "Validates an agent configuration file",
            daemon::flags("validate"),
            daemon::validate,
        ),
        command("healthcheck", "Determines agent health status", health::flags(), health::run),
        command(
            "api fetch",
            "Fetches X509 SVIDs from the Workload API",
            fetch_x509::flags(),
            fetch_x509::run,
        ),
        command(
            "api fetch x509",
            "Fetches X509 SVIDs from the Workload API",
            fetch_x509::flags(),
            fetch_x509::run,
        ),
        command("api fetch jwt", "Fetches a JWT SVID from the Workload API", jwt::fetch_flags(), jwt::fetch),
        command("api validate jwt", "Validates a JWT SVID", jwt::validate_flags(), jwt::validate),
        command(
            "api watch",
            "Attaches to the Workload API and prints updates as they're received",
            socket::flags(FlagSet::new("watch")),
            watch::run,
        ),
        command(
            "debug getinfo",
            "Prints debug information about the agent",
            admin::flags("debug getinfo"),
            admin::get_info,
        ),
        command("logger get", "Gets the logger details", admin::flags("logger get"), admin::logger_get),
        command("logger set", "Sets the logger details", admin::set_flags(), admin::logger_set),
        command(
            "logger reset",
            "Reset the logger details to launch level",
            admin::flags("logger reset"),
            admin::logger_reset,
        ),
    ]
}

#[cfg(test)]
mod tests;
