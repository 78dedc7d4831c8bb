//! A real Envoy, from the path in `SVID_TEST_ENVOY`, running from a copy of its own so that `unix:path` tells it apart.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use crate::Process;

/// A running Envoy.
pub struct Envoy {
    dir: TempDir,
    process: Option<Process>,
}

impl Envoy {
    /// Copies the program, and starts nothing: its path can be registered first. `None` when no Envoy was given.
    pub fn prepare() -> Option<Self> {
        let source = std::env::var_os("SVID_TEST_ENVOY").map(PathBuf::from)?;
        let dir = TempDir::with_prefix("svid-envoy-").expect("temporary directory");
        std::fs::copy(real_program(&source), dir.path().join("envoy")).expect("copy Envoy");
        Some(Self { dir, process: None })
    }

    /// The program's path, for a `unix:path` selector.
    pub fn program(&self) -> PathBuf {
        self.dir.path().join("envoy")
    }

    /// Starts it with this configuration.
    pub fn start(&mut self, config: &str) {
        let path = self.dir.path().join("envoy.yaml");
        std::fs::write(&path, config).expect("write the configuration");
        let mut command = Command::new(self.program());
        command.arg("-c").arg(path).args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "info"]);
        self.process = Some(Process::start("envoy", &mut command));
    }

    /// The running program.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("started")
    }
}

/// The Python package puts a launcher on the path and the program itself beside its modules.
fn real_program(launcher: &Path) -> PathBuf {
    let venv = launcher.ancestors().nth(2).unwrap_or(launcher);
    let found = std::fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    found
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.exists())
        .unwrap_or_else(|| launcher.to_owned())
}
