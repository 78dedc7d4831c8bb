//! Who is calling on a Unix socket, and the loop that accepts such callers.
//!
//! Reading `/proc/<pid>` of another user needs CAP_SYS_PTRACE for some files (`exe`); `status`, `stat`,
//! `cgroup` and `mountinfo` are open to all unless /proc is mounted with hidepid.

mod accept;
mod authority;
mod caller;
mod socket;
mod sys;

pub use accept::{PeerOptions, UnixConn, incoming};
pub use caller::{CallerProcess, Exe};
pub use socket::{BindError, SocketFile, adopt_private, bind_private, is_at};

/// Why a caller could not be identified. The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The caller's pid has no meaning here.
    #[error(
        "the caller is in another PID namespace and cannot be identified: share the host's PID namespace with this process (hostPID: true in Kubernetes, --pid=host for containers)"
    )]
    OtherPidNamespace,
    /// The process that connected has ended.
    #[error("the caller is gone")]
    Gone,
    /// The process is not who it was when it connected.
    #[error("the caller runs as {now_uid}:{now_gid} and connected as {uid}:{gid}")]
    ChangedUser {
        /// Effective user at connect.
        uid: u32,
        /// Effective group at connect.
        gid: u32,
        /// Effective user now.
        now_uid: u32,
        /// Effective group now.
        now_gid: u32,
    },
    /// The process runs another program now.
    #[error("the caller replaced its program since it connected")]
    ChangedProgram,
    /// A file of /proc had another form than the kernel documents, or was too long.
    #[error("unexpected content of /proc/{pid}/{file}")]
    Proc {
        /// The caller.
        pid: u32,
        /// File below its directory.
        file: &'static str,
    },
    /// A system call failed.
    #[error("cannot {what} of the caller")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests;
