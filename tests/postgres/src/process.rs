//! PostgreSQL's programs: where they are, as whom they run, and who cleans up.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};

/// A program of PostgreSQL: on `PATH` beside `pg_config`, else the newest of Debian's.
pub(crate) fn program(name: &str) -> PathBuf {
    let told = Command::new("pg_config").arg("--bindir").output().ok().filter(|out| out.status.success());
    let told = told.map(|out| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()).join(name));
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .collect();
    found.sort();
    let program = told.into_iter().chain(found.into_iter().rev()).find(|path| path.exists());
    program
        .unwrap_or_else(|| panic!("PostgreSQL's {name} is missing: apt-get install postgresql (./test does)"))
}

/// Whom PostgreSQL runs as: not as root, which it refuses.
fn user() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    let named = |name| User::from_name(name).ok().flatten();
    Some(named("postgres").or_else(|| named("nobody")).expect("a user \"postgres\" or \"nobody\""))
}

/// Gives a directory to whom PostgreSQL runs as.
pub(crate) fn hand_over(path: &Path) {
    if let Some(user) = user() {
        chown(path, Some(user.uid), Some(user.gid)).expect("hand over a file to PostgreSQL's user");
    }
}

/// A command that runs as PostgreSQL's user, out of reach of the terminal's signals.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
        .current_dir("/")
        .env("LC_ALL", "C.UTF-8")
        .env_remove("PGOPTIONS")
        .stdin(Stdio::null())
        .process_group(0);
    command
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command:?}:\n{text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

/// A process and its children, PostgreSQL's sessions.
pub(crate) fn family(parent: u32) -> Vec<Pid> {
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        after_name.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let parent_pid = i32::try_from(parent).expect("a pid");
    [parent_pid].into_iter().chain(pids.filter(is_child)).map(Pid::from_raw).collect()
}

pub(crate) fn signal(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill(*pid, signal); // a session may have ended by itself
    }
}

/// Ends a cluster and removes its directory once the pipe to it is closed, be it because the test process died.
pub(crate) struct Watchdog {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    pub(crate) fn over(dir: &Path) -> Self {
        let script = r#"cat >/dev/null
            pid=$(head -n 1 "$0/data/postmaster.pid" 2>/dev/null)
            if [ -n "$pid" ]; then
                kill -CONT "$pid"; kill -QUIT "$pid"
                for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
                    kill -0 "$pid" || break; sleep 0.1
                done
            fi
            rm -rf "$0""#;
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(dir).process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = shell.spawn().expect("start a shell");
        let pipe = shell.stdin.take();
        Self { shell, pipe }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}
