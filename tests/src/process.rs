//! A started program: its log is read line by line, and it ends with its handle.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::PATIENCE;

/// The directory with the built binaries: `SVID_BIN_DIR`, or the one this test was built into.
pub fn bin(name: &str) -> PathBuf {
    let dir = std::env::var_os("SVID_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let exe = std::env::current_exe().expect("the test's own path");
        exe.ancestors().nth(2).expect("target/<profile>/deps/<test>").to_owned()
    });
    let path = dir.join(name);
    assert!(path.exists(), "{} is not built; run: cargo build --release --workspace", path.display());
    path
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    lines: watch::Receiver<Arc<Vec<String>>>,
}

impl Process {
    /// Starts `command` with its output captured.
    pub fn start(name: &str, command: &mut Command) -> Self {
        Self::start_with_input(name, command, Stdio::null())
    }

    /// As [`Process::start`], with something at its standard input.
    pub fn start_with_input(name: &str, command: &mut Command, input: Stdio) -> Self {
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        let (sender, lines) = watch::channel(Arc::new(Vec::new()));
        let sender = Arc::new(sender);
        collect(child.stdout.take().expect("piped"), sender.clone());
        collect(child.stderr.take().expect("piped"), sender);
        Self { name: name.to_owned(), child, lines }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("still running")
    }

    /// Everything printed so far.
    pub fn log(&self) -> Arc<Vec<String>> {
        self.lines.borrow().clone()
    }

    /// Waits until at least `count` lines hold `text`, and returns the last of them.
    pub async fn wait_for_lines(&mut self, text: &str, count: usize) -> String {
        let name = self.name.clone();
        let found = async {
            loop {
                let hits: Vec<String> = self
                    .lines
                    .borrow_and_update()
                    .iter()
                    .filter(|line| line.contains(text))
                    .cloned()
                    .collect();
                if hits.len() >= count {
                    return hits.last().cloned().unwrap_or_default();
                }
                if self.lines.changed().await.is_err() {
                    panic!("{name} ended before it printed {text:?}:\n{}", self.lines.borrow().join("\n"));
                }
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(line) => line,
            Err(_) => panic!("{name} never printed {text:?}:\n{}", self.log().join("\n")),
        }
    }

    /// Waits for one line with `text`.
    pub async fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_lines(text, 1).await
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("signal");
    }

    /// Waits for the end.
    pub async fn wait(&mut self) -> ExitStatus {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => status.expect("wait"),
            Err(_) => panic!("{} did not end:\n{}", self.name, self.log().join("\n")),
        }
    }

    /// Waits for the end and for the last line; returns the exit code (-1 after a signal) and all that was printed.
    pub async fn end(mut self) -> (i32, String) {
        let status = self.wait().await;
        let all_read = async { while self.lines.changed().await.is_ok() {} };
        // A child that kept the pipe open may hold it longer.
        let _ = tokio::time::timeout(PATIENCE, all_read).await;
        (status.code().unwrap_or(-1), self.log().join("\n"))
    }

    /// kill -9, and waits until the process is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("kill");
    }

    /// Asks to stop and waits for a clean end.
    pub async fn stop(mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.wait().await;
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.log().join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, self.log().join("\n"));
        }
    }
}

fn collect(stream: impl AsyncRead + Unpin + Send + 'static, sender: Arc<watch::Sender<Arc<Vec<String>>>>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            sender.send_modify(|all| Arc::make_mut(all).push(line));
        }
    });
}

/// What a command that was run to its end said.
pub struct Output {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a command that must succeed.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "exit {}:\n{}{}", self.code, self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs one of our binaries to its end.
pub async fn run(name: &str, args: &[&str]) -> Output {
    run_at(&bin(name), args).await
}

/// Runs any program to its end.
pub async fn run_at(program: &Path, args: &[&str]) -> Output {
    let run = Command::new(program).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(PATIENCE, run).await.expect("the command ended").expect("the command started");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a command until it succeeds: the agent may still be fetching what was registered a moment ago.
pub async fn eventually<F: Future<Output = Output>>(run: impl Fn() -> F) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let out = run().await;
        if out.code == 0 {
            return out.stdout;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}{}", out.stdout, out.stderr);
        tokio::task::yield_now().await;
    }
}
