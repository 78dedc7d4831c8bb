//! Who is calling: the process at the other end of a connection, pinned when it connected.
//!
//! A [`Connection`] is one accepted connection of a Unix socket. Its caller is attested by the workload attestors
//! and, before every secret that is written to it, checked to be the same process under the same user and group.

mod attest;
mod process;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use svid_core::selector::SelectorSet;
use svid_daemon::peer::CallerProcess;
use svid_plugin_api::Caller;
use tonic::Status;

pub use attest::{AttestError, Attestors};

/// How long selectors hold for further calls on the same connection by the same process running the same file.
/// Facts besides these, such as the name of a user, may be as old.
const MEMO_LIFE: Duration = Duration::from_secs(5);

/// Why a caller is no longer the one that connected.
#[derive(Debug, thiserror::Error)]
#[error("the calling process is gone or has changed: {0}")]
pub struct CallerChanged(pub String);

/// A process that stays the same, or says that it did not.
pub trait Pinned: Caller + 'static {
    /// Proves that the process lives and has the user and group it connected with.
    /// # Errors
    /// [`CallerChanged`].
    fn check(&self) -> Result<(), CallerChanged>;
    /// Device and inode of the file that the process runs: another one after an exec of another file.
    /// # Errors
    /// If the agent may not look.
    fn image(&self) -> io::Result<(u64, u64)>;
}

/// What a connection's caller was found to be.
struct Memo {
    at: Instant,
    image: (u64, u64),
    selectors: Arc<SelectorSet>,
}

/// One connection and its caller.
pub struct Connection {
    process: Arc<dyn Pinned>,
    memo: Mutex<Option<Memo>>,
}

impl Connection {
    /// A connection that nobody attested yet.
    pub fn new(process: Arc<dyn Pinned>) -> Self {
        Self { process, memo: Mutex::new(None) }
    }

    /// A connection as the accept loop hands it out.
    pub fn from_process(process: Arc<CallerProcess>) -> Self {
        Self::new(Arc::new(process::Process(process)))
    }

    /// The caller's process ID.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// True if the agent itself calls, as its health check does.
    pub fn is_agent(&self) -> bool {
        u32::try_from(self.pid()) == Ok(std::process::id())
    }

    /// Proves that the caller is the one that connected.
    /// # Errors
    /// [`CallerChanged`].
    pub fn check(&self) -> Result<(), CallerChanged> {
        self.process.check()
    }

    fn remembered(&self, image: Option<(u64, u64)>) -> Option<Arc<SelectorSet>> {
        let memo = self.memo.lock().unwrap_or_else(PoisonError::into_inner);
        let memo = memo.as_ref().filter(|memo| Some(memo.image) == image && memo.at.elapsed() < MEMO_LIFE)?;
        Some(Arc::clone(&memo.selectors))
    }

    fn remember(&self, image: (u64, u64), selectors: Arc<SelectorSet>) {
        let memo = Memo { at: Instant::now(), image, selectors };
        *self.memo.lock().unwrap_or_else(PoisonError::into_inner) = Some(memo);
    }
}

/// What a client hears when attestation fails, whatever the reason.
pub(crate) fn attestation_failed() -> Status {
    Status::unavailable("workload attestation failed")
}

#[cfg(test)]
mod tests;
