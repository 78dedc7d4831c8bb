//! The way to the sockets, and errors that say what to do next.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::Channel;

/// Largest answer: listings outgrow gRPC's 4 MiB.
pub const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Why nothing came of a command, and what to do about it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    what: String,
    advice: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error: {}", self.what)?;
        self.advice.iter().try_for_each(|advice| write!(f, "\n{advice}"))
    }
}

impl Failure {
    /// A failure that speaks for itself.
    pub fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), advice: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// What went wrong, without the advice.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(error)
    }
}

/// Which socket something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The server's admin socket.
    Server,
    /// The agent's Workload API socket.
    Agent,
    /// The agent's admin socket.
    AgentAdmin,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "the server's admin socket",
            Self::Agent => "the agent's Workload API socket",
            Self::AgentAdmin => "the agent's admin socket",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Server => "--server-socket",
            Self::Agent => "--agent-socket",
            Self::AgentAdmin => "--agent-admin-socket",
        }
    }

    fn daemon(self) -> &'static str {
        match self {
            Self::Server => "svid-server",
            Self::Agent | Self::AgentAdmin => "svid-agent",
        }
    }

    fn setting(self) -> &'static str {
        match self {
            Self::Server | Self::Agent => "socket_path",
            Self::AgentAdmin => "admin_socket_path",
        }
    }
}

/// A channel to whoever listens at `path`. One connection is tried first, so that its error can be explained.
///
/// # Errors
/// Nobody listens, or this user may not connect.
pub async fn dial(who: Who, path: &Path) -> Result<Channel, Failure> {
    match UnixStream::connect(path).await {
        Ok(_) => Ok(svid_daemon::net::unix_channel(path)),
        Err(error) => Err(refused(who, path, &error)),
    }
}

fn refused(who: Who, path: &Path, error: &io::Error) -> Failure {
    let (what, path_text) = (who.name(), path.display());
    let (flag, daemon, setting) = (who.flag(), who.daemon(), who.setting());
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(format!("{what} {path_text} does not exist")).advise(format!(
            "Is {daemon} running on this machine? It listens at `{setting}` of its configuration; name that path \
             with {flag}."
        )),
        io::ErrorKind::ConnectionRefused => {
            Failure::new(format!("nobody listens on {what} {path_text}")).advise(format!(
                "{daemon} has stopped, or is not ready yet: look at its log. The file alone is what is left of it."
            ))
        }
        io::ErrorKind::PermissionDenied => {
            Failure::new(format!("this user may not connect to {what} {path_text}")).advise(owner(path))
        }
        _ => Failure::new(format!("cannot connect to {what} {path_text}: {error}"))
            .advise(format!("Check the path given with {flag}.")),
    }
}

fn owner(path: &Path) -> String {
    let named = |uid: u32, gid: u32| {
        format!("It belongs to uid {uid} and gid {gid}: run this as that user, or as a member of that group.")
    };
    match std::fs::metadata(path) {
        Ok(facts) => named(facts.uid(), facts.gid()),
        Err(_) => match path.parent().map(std::fs::metadata) {
            Some(Ok(facts)) => format!("Its directory is closed. {}", named(facts.uid(), facts.gid())),
            _ => "Its directory is closed to this user: run this as the user the daemon runs as.".into(),
        },
    }
}

/// An RPC's error for people.
pub fn rpc(who: Who, status: &tonic::Status) -> Failure {
    let failure = Failure::new(format!("{} answered {:?}: {}", who.name(), status.code(), status.message()));
    match status.code() {
        Code::Unimplemented => {
            failure.advise(format!("Is that {}? {} names another.", who.name(), who.flag()))
        }
        Code::PermissionDenied if who == Who::Server => failure
            .advise("The admin socket allows everything, so this is another socket: check --server-socket."),
        Code::Unavailable => {
            failure.advise(format!("Try again; if it stays, look at the log of {}.", who.daemon()))
        }
        _ => failure,
    }
}

/// Whether the peer does not know the RPC: it is stock SPIRE, or an older release of ours.
pub fn is_unknown(status: &tonic::Status) -> bool {
    status.code() == Code::Unimplemented
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_socket_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let failure = dial(Who::Server, &path).await.map(|_| ()).unwrap_err();
        let want = format!(
            "Error: the server's admin socket {} does not exist\nIs svid-server running on this machine? It listens \
             at `socket_path` of its configuration; name that path with --server-socket.",
            path.display()
        );
        assert_eq!(failure.to_string(), want);
    }

    #[tokio::test]
    async fn a_socket_left_behind_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let failure = dial(Who::Agent, &path).await.map(|_| ()).unwrap_err().to_string();
        assert!(failure.starts_with("Error: nobody listens on the agent's Workload API socket"), "{failure}");
        assert!(failure.contains("svid-agent has stopped"), "{failure}");
    }
}
