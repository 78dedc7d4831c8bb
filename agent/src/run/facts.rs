//! What the running agent knows of itself.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_daemon::peer::CallerProcess;
use svid_daemon::tls::{OwnSvid, Roots, TlsError};

use super::budget::Budget;
use crate::admin::{AgentFacts, Facts};
use crate::cache::Cache;
use crate::client::ServerClient;
use crate::sync::SyncStatus;

/// Reads the facts from the parts that know them.
pub(super) struct LiveFacts {
    client: ServerClient,
    cache: Cache,
    status: SyncStatus,
    clock: Clock,
    started: Instant,
    identification: &'static str,
}

/// For the metrics listener: the agent's SVID and the bundles it knows.
pub(super) fn own_svid(client: &ServerClient, cache: &Cache) -> OwnSvid {
    let (client, bundles) = (client.clone(), cache.bundles());
    OwnSvid {
        identity: Box::new(move || client.current_identity().for_tls()),
        bundles: Arc::new(move |asked: &TrustDomain| {
            let bundles = Arc::clone(&bundles.borrow());
            let bundle = match bundles.own.trust_domain == *asked {
                true => Some(&bundles.own),
                false => bundles.federated.get(asked),
            };
            let ders = bundle?.x509_authorities.iter().map(svid_core::bundle::X509Authority::der);
            Roots::from_ders(ders).ok().map(Arc::new)
        }),
    }
}

/// As [`own_svid`], before there is one. Only for listeners that do not ask for it.
pub(super) fn no_svid() -> OwnSvid {
    OwnSvid {
        identity: Box::new(|| Err(TlsError::Malformed("the agent has no SVID yet".into()))),
        bundles: Arc::new(|_: &TrustDomain| None),
    }
}

/// How this kernel lets callers be pinned, tried out on a socket of our own.
fn identification() -> &'static str {
    let probe = UnixStream::pair().ok().and_then(|(one, _other)| CallerProcess::identify(one.as_fd()).ok());
    match probe {
        Some(caller) if caller.has_socket_pidfd() => "pidfd",
        Some(_) => "pidfd_open and start time",
        None => "not known",
    }
}

impl LiveFacts {
    pub(super) fn new(client: ServerClient, cache: Cache, status: SyncStatus, clock: Clock) -> Self {
        Self { client, cache, status, clock, started: Instant::now(), identification: identification() }
    }
}

impl AgentFacts for LiveFacts {
    fn facts(&self) -> Facts {
        let identity = self.client.current_identity();
        let bundle = Arc::clone(&self.cache.bundles().borrow().own);
        let budget = Budget::of(&self.client, &self.cache, self.clock.now());
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
            first_svid_end: self.cache.first_end(),
            last_contact: self.client.last_contact(),
            warnings: budget.warning().into_iter().collect(),
        }
    }
}
