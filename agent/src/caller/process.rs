//! The daemon's pinned process as the plugins see it.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use svid_daemon::log::chain;
use svid_daemon::peer::{CallerProcess, Exe};
use svid_plugin_api::{Caller, Executable, PluginError};

use super::{CallerChanged, Pinned};

/// What the kernel puts behind the path of a file that is gone from there.
const DELETED: &[u8] = b" (deleted)";

/// A pinned process, as the plugins' [`Caller`].
pub(crate) struct Process(pub(crate) Arc<CallerProcess>);

impl Caller for Process {
    fn pid(&self) -> i32 {
        // The kernel's pids are positive and end far below this.
        i32::try_from(self.0.pid()).unwrap_or_default()
    }

    fn uid(&self) -> u32 {
        self.0.uid()
    }

    fn gid(&self) -> u32 {
        self.0.gid()
    }

    fn groups(&self) -> &[u32] {
        self.0.groups()
    }

    fn read_proc(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        self.0.read(name, limit as u64)
    }

    fn executable(&self) -> Result<Executable, PluginError> {
        let exe = self.0.exe().map_err(|err| PluginError::internal(format!("path lookup: {err}")))?;
        prove_in_place(&exe)?;
        Ok(Executable { path: exe.path, file: exe.file })
    }
}

impl Pinned for Process {
    fn check(&self) -> Result<(), CallerChanged> {
        self.0.check().map_err(|err| CallerChanged(chain(&err).to_string()))
    }

    fn image(&self) -> io::Result<(u64, u64)> {
        // What it ran at connect: `check` refuses a process that runs another file since.
        self.0.program().ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))
    }
}

/// Proves that the file which runs is the one that everybody else finds at its path. A deleted file, one in another
/// mount namespace and one that is covered by a mount are not, and must not pass for what lies there.
fn prove_in_place(exe: &Exe) -> Result<(), PluginError> {
    let refuse =
        |why: &str| PluginError::denied(format!("path lookup: executable {}: {why}", exe.path.display()));
    let failed =
        |err: io::Error| PluginError::internal(format!("path lookup: {}: {err}", exe.path.display()));
    if exe.path.as_os_str().as_bytes().ends_with(DELETED) {
        return Err(refuse("it was deleted or replaced"));
    }
    if !exe.path.is_absolute() || exe.path == Path::new("/") {
        return Err(refuse("it is not reachable by path"));
    }
    let running = exe.file.metadata().map_err(failed)?;
    let there = std::fs::symlink_metadata(&exe.path).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            refuse("no such file where this agent looks")
        }
        _ => failed(err),
    })?;
    if running.nlink() == 0 {
        return Err(refuse("it was deleted or replaced"));
    }
    if (running.dev(), running.ino()) != (there.dev(), there.ino()) {
        return Err(refuse("another file lies there where this agent looks"));
    }
    Ok(())
}
