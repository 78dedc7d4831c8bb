//! A real Envoy, running from a copy of its own so that `unix:path` tells it apart.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use crate::Process;

/// Which of the Envoys that `./test` installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The newest one, at `SVID_TEST_ENVOY`.
    New,
    /// The oldest one that is looked after, at `SVID_TEST_ENVOY_OLD`.
    Old,
}

/// A running Envoy.
pub struct Envoy {
    dir: TempDir,
    process: Option<Process>,
}

impl Envoy {
    /// Copies the program, and starts nothing: its path can be registered first. `None` when no Envoy was given.
    pub fn prepare() -> Option<Self> {
        Self::prepare_version(Version::New)
    }

    /// As [`Envoy::prepare`], for one of the two.
    pub fn prepare_version(version: Version) -> Option<Self> {
        let source = program(version)?;
        let dir = TempDir::with_prefix("svid-envoy-").expect("temporary directory");
        std::fs::copy(source, dir.path().join("envoy")).expect("copy Envoy");
        Some(Self { dir, process: None })
    }

    /// Its directory: the program, the configuration and what a scenario adds.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The program's path, for a `unix:path` selector.
    pub fn program(&self) -> PathBuf {
        self.dir.path().join("envoy")
    }

    /// Starts it with this configuration.
    pub fn start(&mut self, config: &str) {
        let path = self.dir.path().join("envoy.yaml");
        std::fs::write(&path, config).expect("write the configuration");
        self.start_by(Command::new(self.program()), &path);
    }

    /// Starts it by a command that is the program, or becomes it.
    pub fn start_by(&mut self, mut command: Command, config: &Path) {
        command.arg("-c").arg(config).args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "info"]);
        self.process = Some(Process::start("envoy", &mut command));
    }

    /// The running program.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("started")
    }
}

/// Path of an installed Envoy, if it was given.
pub fn program(version: Version) -> Option<PathBuf> {
    let variable = match version {
        Version::New => "SVID_TEST_ENVOY",
        Version::Old => "SVID_TEST_ENVOY_OLD",
    };
    std::env::var_os(variable).map(|path| real_program(Path::new(&path)))
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
