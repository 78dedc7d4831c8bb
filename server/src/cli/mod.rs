//! SPIRE's command line: the same verbs, flags, texts, JSON and exit codes.
//!
//! Everything but `run`, `validate` and `restore` speaks to the admin socket of a running server.

mod agent;
mod agent_purge;
mod authority;
mod bundle;
mod client;
mod daemon;
mod entry;
mod entry_print;
mod entry_show;
mod federation;
mod logger;
mod mint;
mod ops;
mod restore;
mod restore_print;
mod session;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use futures_util::future::LocalBoxFuture;
use svid_core::clock::Clock;
use svid_daemon::cli::{Cli, CliError, Command, Selected, exit_code};
use svid_daemon::flags::{FlagSet, Parsed};

use crate::config::DEFAULT_SOCKET_PATH;
use session::Session;

type Outcome = Result<(), CliError>;
type Handler = for<'r, 'a> fn(&'r mut Session<'a>, &'r Parsed) -> LocalBoxFuture<'r, Outcome>;

/// Where a command reads and writes, and which environment it sees.
struct Surroundings<'a> {
    stdin: &'a mut dyn Read,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    env: &'a dyn Fn(&str) -> Option<String>,
    clock: Clock,
}

/// Runs the command that `args` (without the program's name) ask for.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match args.first().and_then(|word| word.to_str()) {
        Some("run") => return daemon::run(&args[1..]),
        Some("validate") => return daemon::validate(&args[1..]),
        Some("restore") => return restore::main(args),
        _ => {}
    }
    let args = match args.into_iter().map(OsString::into_string).collect::<Result<Vec<_>, _>>() {
        Ok(args) => args,
        Err(_) => return daemon::fail("argument is not valid UTF-8"),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return daemon::fail(error),
    };
    let surroundings = Surroundings {
        stdin: &mut io::stdin(),
        out: &mut io::stdout(),
        err: &mut io::stderr(),
        env: &|name| std::env::var(name).ok(),
        clock: Clock::system(),
    };
    let code = runtime.block_on(execute(&args, surroundings));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

async fn execute(args: &[String], surroundings: Surroundings<'_>) -> i32 {
    let cli = Cli { name: "svid-server", version: env!("CARGO_PKG_VERSION"), commands: commands() };
    let (handler, flags) = match cli.select(args, surroundings.err) {
        Selected::Run(handler, flags) => (*handler, flags),
        Selected::Exit(code) => return code,
    };
    let socket = match client::socket_path(flags.str("socketPath"), flags.str("instance"), surroundings.env) {
        Ok(socket) => socket,
        Err(error) => return exit_code(Err(error), surroundings.err),
    };
    let Surroundings { stdin, out, err, env: _, clock } = surroundings;
    let mut session = Session { socket, stdin, out, err, clock };
    let result = handler(&mut session, &flags).await;
    exit_code(result, session.err)
}

/// The flags that every command has.
fn bare_flags(name: &'static str) -> FlagSet {
    FlagSet::new(name)
        .string("socketPath", DEFAULT_SOCKET_PATH, "Path to the SPIRE Server API socket")
        .string(
            "instance",
            "",
            "Instance name to substitute into socket templates (env SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE).",
        )
}

fn flags(name: &'static str) -> FlagSet {
    bare_flags(name).output()
}

fn command(name: &'static str, synopsis: &'static str, flags: FlagSet, handler: Handler) -> Command<Handler> {
    Command { name, synopsis, flags, handler }
}

fn commands() -> Vec<Command<Handler>> {
    let mut all = vec![
        daemon::listed("run", "Runs the server"),
        daemon::listed("validate", "Validates a SPIRE server configuration file"),
        daemon::listed("restore", "Restores a backup into the database of a server that is stopped"),
    ];
    all.extend(entry::commands());
    all.extend(agent::commands());
    all.extend(bundle::commands());
    all.extend(federation::commands());
    all.extend(mint::commands());
    all.extend(authority::commands());
    all.extend(logger::commands());
    all.extend(ops::commands());
    all
}
