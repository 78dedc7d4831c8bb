//! Sockets that systemd made before this process started (socket activation): who connects while the agent restarts
//! waits instead of failing.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use svid_daemon::peer::is_at;
use tracing::info;

use crate::config::AgentConfig;

/// Why passed sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassedError {
    /// The variables of the protocol do not read.
    #[error("cannot read which sockets were passed in (LISTEN_FDS, LISTEN_FDNAMES)")]
    Protocol(#[source] std::io::Error),
    /// A socket that nobody asked for.
    #[error(
        "the socket passed in as {name:?} lies neither at socket_path nor at admin_socket_path; ListenStream= must name one of them"
    )]
    Unknown {
        /// `FileDescriptorName=` of its unit.
        name: String,
    },
}

/// The passed sockets.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    /// For the Workload API and SDS.
    pub(super) workload: Option<Arc<UnixListener>>,
    /// For the admin APIs.
    pub(super) admin: Option<Arc<UnixListener>>,
}

impl Passed {
    /// Takes what was passed. To be called once, before anything else opens files.
    /// # Errors
    /// [`PassedError`].
    pub(super) fn take(config: &AgentConfig) -> Result<Self, PassedError> {
        let mut passed = Self::default();
        for (fd, name) in sd_notify::listen_fds_with_names().map_err(PassedError::Protocol)? {
            // SAFETY: the manager opened these numbers for this process, and nothing else here uses them.
            let listener = Arc::new(UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) }));
            passed.keep(listener, name, config)?;
        }
        Ok(passed)
    }

    /// Where it lies decides what a socket is for; its name is for people.
    fn keep(
        &mut self,
        listener: Arc<UnixListener>,
        name: String,
        config: &AgentConfig,
    ) -> Result<(), PassedError> {
        let is_for = |path: &Path| is_at(&listener, path);
        if is_for(&config.socket_path) {
            self.workload = Some(listener);
        } else if config.admin_socket_path.as_deref().is_some_and(is_for) {
            self.admin = Some(listener);
        } else {
            return Err(PassedError::Unknown { name });
        }
        info!(name, "Using a socket passed in by the service manager");
        Ok(())
    }
}

/// Tells the service manager, if there is one that listens.
pub(super) fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "Cannot tell the service manager how the agent is doing");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{Overlay, parse};

    #[test]
    fn a_socket_is_what_its_path_says() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("admin")).unwrap();
        std::os::unix::fs::symlink(dir.path(), at("link")).unwrap();
        let text = format!(
            r#"agent {{
                data_dir = "x" server_address = "x" server_port = 1 trust_domain = "example.org"
                insecure_bootstrap = true socket_path = "{}" admin_socket_path = "{}"
            }}
            plugins {{
                KeyManager "memory" {{ plugin_data {{}} }} NodeAttestor "join_token" {{ plugin_data {{}} }}
                WorkloadAttestor "unix" {{ plugin_data {{}} }}
            }}"#,
            at("link/api.sock").display(),
            at("admin/admin.sock").display()
        );
        let config = parse(&text, Path::new("agent.conf"), &Overlay::default()).unwrap().config;
        let listener = |name: &str| Arc::new(UnixListener::bind(at(name)).unwrap());
        let mut passed = Passed::default();
        passed.keep(listener("api.sock"), "whatever".into(), &config).unwrap();
        passed.keep(listener("admin/admin.sock"), "admin".into(), &config).unwrap();
        assert!(passed.workload.is_some() && passed.admin.is_some());
        let refused = passed.keep(listener("other.sock"), "workload".into(), &config).unwrap_err();
        assert!(refused.to_string().contains("\"workload\" lies neither at socket_path"), "{refused}");
    }
}
