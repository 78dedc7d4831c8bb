//! Where lines go: standard output or a file that can be reopened.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;

use super::LogError;

/// An open log; each line is one `write(2)`.
#[derive(Debug)]
pub struct LogOutput {
    path: Option<PathBuf>,
    file: ArcSwap<File>,
}

impl LogOutput {
    /// Opens `path` for appending, or standard output.
    ///
    /// # Errors
    /// [`LogError::Open`].
    pub fn open(path: Option<&Path>) -> Result<Self, LogError> {
        let file = match path {
            Some(path) => open_file(path)?,
            None => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned();
                File::from(
                    stdout.map_err(|source| LogError::Open { path: "standard output".into(), source })?,
                )
            }
        };
        Ok(Self { path: path.map(Path::to_owned), file: ArcSwap::from_pointee(file) })
    }

    pub(super) fn reopen(&self) -> Result<(), LogError> {
        if let Some(path) = &self.path {
            self.file.store(open_file(path)?.into());
        }
        Ok(())
    }

    /// A full disk or a closed pipe loses the line: a log must not stop the service.
    pub(super) fn write_line(&self, line: &str) {
        let _ = (&**self.file.load()).write_all(line.as_bytes());
    }
}

fn open_file(path: &Path) -> Result<File, LogError> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o640).open(path);
    opened.map_err(|source| LogError::Open { path: path.into(), source })
}
