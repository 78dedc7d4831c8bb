//! How an agent finds out what a calling process is.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use svid_core::selector::Selector;

use crate::PluginError;

/// A caller's executable, opened once. The path is the one in the agent's own root, and there lies this very file.
pub struct Executable {
    /// Where it lies.
    pub path: PathBuf,
    /// Its content.
    pub file: File,
}

/// The process at the other end of a socket, pinned when it connected so that no other can be taken for it.
/// Credentials are the kernel's word from that moment; files are read through the handle opened then.
pub trait Caller: Send + Sync {
    /// Process ID in the agent's pid namespace.
    fn pid(&self) -> i32;
    /// Effective user.
    fn uid(&self) -> u32;
    /// Effective group.
    fn gid(&self) -> u32;
    /// Supplementary groups.
    fn groups(&self) -> &[u32];
    /// Reads a small file below the pinned `/proc/<pid>`, such as `status` or `cgroup`; at most `limit` bytes.
    fn read_proc(&self, name: &str, limit: usize) -> io::Result<Vec<u8>>;
    /// Opens the executable and proves that it is the file at its path, not deleted, not bind-mounted over.
    fn executable(&self) -> Result<Executable, PluginError>;
}

/// Turns a caller into selectors.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync {
    /// The plugin's name, which is also the type of its selectors.
    fn name(&self) -> &str;
    /// What this caller is. An empty list says that the plugin knows nothing about it.
    async fn attest(&self, caller: &dyn Caller) -> Result<Vec<Selector>, PluginError>;
}
