//! `restore`: the server's own binary does it, because it knows the databases.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::args::{Args, Output, RestoreArgs};
use crate::connect::Failure;

const SERVER: &str = "svid-server";

/// Becomes `svid-server restore`. Returns only if that is not to be had.
pub fn run(args: &Args, restore: &RestoreArgs) -> Failure {
    let program = server_program();
    let error = command(&program, args, restore).exec();
    Failure::new(format!("cannot run {}: {error}", program.display()))
        .advise("A restore needs svid-server: install it beside svidctl, or where PATH finds it.")
}

/// The one of the same release: beside this program, else wherever PATH says.
fn server_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(SERVER));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| SERVER.into())
}

fn command(program: &PathBuf, args: &Args, restore: &RestoreArgs) -> Command {
    let mut command = Command::new(program);
    command.arg("restore").arg("-config").arg(&restore.config);
    let switches = [
        (restore.expand_env, "-expandEnv"),
        (restore.rehearse, "-rehearse"),
        (restore.accept_rollback, "-accept-rollback"),
        (restore.accept_new_ca, "-accept-new-ca"),
        (restore.yes, "-yes"),
    ];
    command.args(switches.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag));
    if args.output == Output::Json {
        command.args(["-output", "json"]);
    }
    command.arg("--").arg(&restore.file);
    command
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Command as Verb;

    fn line(line: &str) -> Vec<String> {
        let args = Args::parse_from(line.split(' '));
        let Verb::Restore(restore) = &args.command else { panic!("restore") };
        let command = command(&"svid-server".into(), &args, restore);
        command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn flags_are_handed_on() {
        assert_eq!(line("svidctl restore --config a.conf b"), ["restore", "-config", "a.conf", "--", "b"]);
        let all = "svidctl restore --config a --rehearse --accept-rollback --accept-new-ca --yes --expand-env -o json -- -b";
        let want = [
            "-expandEnv",
            "-rehearse",
            "-accept-rollback",
            "-accept-new-ca",
            "-yes",
            "-output",
            "json",
            "--",
            "-b",
        ];
        assert_eq!(line(all)[3..], want);
    }
}
