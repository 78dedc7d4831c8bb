//! What the running agent knows of itself.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use svid_daemon::peer::CallerProcess;

use crate::admin::{AgentFacts, Facts};
use crate::cache::Cache;
use crate::client::ServerClient;
use crate::sync::SyncStatus;

/// Reads the facts from the parts that know them.
pub(super) struct LiveFacts {
    client: ServerClient,
    cache: Cache,
    status: SyncStatus,
    started: Instant,
    identification: &'static str,
}

/// How this kernel lets callers be pinned, tried out on a socket of our own.
fn identification() -> &'static str {
    let probe = UnixStream::pair().ok().and_then(|(one, _other)| CallerProcess::identify(one.as_fd()).ok());
    match probe {
        Some(caller) if caller.has_socket_pidfd() => "pidfd of the socket",
        Some(_) => "pidfd of the process id, with its start time",
        None => "not known",
    }
}

impl LiveFacts {
    pub(super) fn new(client: ServerClient, cache: Cache, status: SyncStatus) -> Self {
        Self { client, cache, status, started: Instant::now(), identification: identification() }
    }
}

impl AgentFacts for LiveFacts {
    fn facts(&self) -> Facts {
        let identity = self.client.current_identity();
        let bundle = Arc::clone(&self.cache.bundles().borrow().own);
        let mut warnings = Vec::new();
        if !self.client.is_connected() {
            warnings.push("There is no connection to the server.".to_owned());
        }
        Facts {
            svid: Arc::new(identity.svid.clone()),
            bundle,
            uptime: self.started.elapsed(),
            last_sync_success: self.status.last_success().unwrap_or_default(),
            reattestable: identity.reattestable,
            server_address: self.client.dialer().target(),
            connected: self.client.is_connected(),
            watch_active: self.status.is_watching(),
            peer_identification: self.identification.to_owned(),
            warnings,
        }
    }
}
