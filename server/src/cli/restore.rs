//! `restore`: a backup into the database of a server that is stopped. `svidctl restore` becomes this.

use std::ffi::OsString;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use svid_daemon::flags::{FlagError, FlagSet, Parsed};
use svid_daemon::log::chain;

use super::{daemon, restore_print};
use crate::config::{self, RunFlags};
use crate::run::restore::{Consent, Restore, RestoreFailure, Told};

fn flag_set() -> FlagSet {
    FlagSet::new("restore [flags] FILE")
        .string("config", config::DEFAULT_CONFIG_PATH, "Path to the server's configuration file")
        .bool("expandEnv", "Expand environment variables in the configuration file")
        .bool("rehearse", "Read, compare and report; write nothing")
        .bool(
            "accept-rollback",
            "Restore although what was deleted or revoked after the backup may come back, and newer changes get lost",
        )
        .bool("accept-new-ca", "Restore although this server has no key of the trust domain and has to make a new CA")
        .bool("yes", "Do not ask")
        .output()
}

/// Runs the command; `args` begin with its name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let texts: Result<Vec<_>, _> = args.into_iter().skip(1).map(OsString::into_string).collect();
    let Ok(texts) = texts else { return daemon::fail("argument is not valid UTF-8") };
    let flags = match flag_set().parse(&texts) {
        Ok(flags) => flags,
        Err(FlagError::Help) => {
            eprint!("{}", flag_set().usage());
            return ExitCode::SUCCESS;
        }
        Err(error) => return daemon::fail(format_args!("{error}\n{}", flag_set().usage().trim_end())),
    };
    let [file] = flags.args() else {
        return daemon::fail(format_args!("name one backup file\n{}", flag_set().usage().trim_end()));
    };
    match restore(&flags, file.into()) {
        Ok(code) => code,
        Err(error) => daemon::fail(error),
    }
}

fn restore(flags: &Parsed, file: PathBuf) -> Result<ExitCode, String> {
    let run_flags = RunFlags {
        config: Some(flags.str("config").into()),
        expand_env: flags.bool("expandEnv"),
        ..RunFlags::default()
    };
    let loaded = config::load(&run_flags).map_err(|error| error.to_string())?;
    let consent = Consent {
        rehearsal: flags.bool("rehearse"),
        rollback: flags.bool("accept-rollback"),
        new_ca: flags.bool("accept-new-ca"),
    };
    let told = |error: RestoreFailure| chain(&error).to_string();
    let restore = Restore::prepare(loaded.config, &file, consent).map_err(told)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let ahead = runtime.block_on(restore.rehearse()).map_err(told)?;
    if consent.rehearsal || !ahead.report.accepted {
        print(flags, &ahead)?;
        return Ok(if ahead.report.accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if !flags.bool("yes") {
        eprint!("{}", restore_print::text(&ahead));
        ask(&ahead.report.backup.trust_domain)?;
    }
    eprintln!("Restoring; until it is done, the database stays as it is.");
    let done = runtime.block_on(restore.run()).map_err(told)?;
    print(flags, &done)?;
    Ok(if done.report.restored { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(flags: &Parsed, told: &Told) -> Result<(), String> {
    let text = match flags.str("output") {
        "json" => serde_json::to_string(told).map_err(|error| error.to_string())? + "\n",
        _ => restore_print::text(told),
    };
    io::stdout().write_all(text.as_bytes()).map_err(|error| error.to_string())
}

/// Only who types the trust domain's name means it.
fn ask(trust_domain: &str) -> Result<(), String> {
    if !io::stdin().is_terminal() {
        return Err("nobody can be asked, since standard input is no terminal: give --yes to restore".into());
    }
    eprint!("\nType the name of the trust domain to restore: ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| error.to_string())?;
    if answer.trim() == trust_domain { Ok(()) } else { Err("nothing was restored".into()) }
}
