//! What the cache holds and hands out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use svid_core::bundle::Bundle;
use svid_core::entry::EntryId;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::PrivateKeyDer;
use svid_core::selector::SelectorSet;
use svid_core::x509::svid::X509Svid;
use svid_proto::Encoded;
use zeroize::Zeroizing;

/// A registration entry as far as an agent is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentEntry {
    /// The entry's id.
    pub id: EntryId,
    /// The identity it grants.
    pub spiffe_id: SpiffeId,
    /// A workload must have all of these. Never empty.
    pub selectors: SelectorSet,
    /// Trust domains whose bundles belong to the identity.
    pub federates_with: Vec<TrustDomain>,
    /// The identity may use the server's admin APIs.
    pub admin: bool,
    /// The identity may ask the server for an intermediate CA.
    pub downstream: bool,
    /// For SVID stores only: never reaches the Workload API.
    pub store_svid: bool,
    /// Tells a workload which of its identities is meant for what. May be empty.
    pub hint: String,
    /// Grows with every change of the entry.
    pub revision: i64,
    /// Unix seconds; tells apart two entries that had the same id.
    pub created_at: i64,
    /// Fetch an SVID only once a workload wants it.
    pub disable_x509_svid_prefetch: bool,
}

/// A certificate chain and its key.
#[derive(Debug)]
pub struct X509Identity {
    /// The X509-SVID with its intermediates.
    pub svid: X509Svid,
    /// Its private key, PKCS#8.
    pub key: PrivateKeyDer,
}

/// One identity of a workload.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Why the workload has it.
    pub entry: Arc<AgentEntry>,
    /// The current SVID.
    pub x509: Arc<X509Identity>,
}

/// Everything a workload with one set of selectors is given. Built once, shared by all its subscribers.
#[derive(Debug)]
pub struct WorkloadUpdate {
    /// Sorted by entry id ascending; the first is the default identity.
    pub identities: Vec<Identity>,
    /// The own trust domain.
    pub bundle: Arc<Bundle>,
    /// The trust domains that the identities federate with.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// The Workload API's answer, encoded once by the first stream that needs it.
    pub x509_response: OnceLock<Encoded>,
    /// Another number if and only if what some subscriber sees is another.
    pub revision: u64,
    /// Another number if and only if what those see is another who follow X.509 only.
    pub x509_revision: u64,
}

impl WorkloadUpdate {
    /// When the first of the SVIDs ends; `None` without one.
    pub fn valid_until(&self) -> Option<SystemTime> {
        self.identities.iter().map(|identity| identity.x509.svid.life().not_after).min()
    }
}

/// All bundles the agent has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundles {
    /// The own trust domain's.
    pub own: Arc<Bundle>,
    /// Of the trust domains that some entry federates with.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Bundles {
    /// The bundle of `trust_domain`, if there is one.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        if self.own.trust_domain == *trust_domain {
            return Some(&self.own);
        }
        self.federated.get(trust_domain)
    }
}

/// A JWT-SVID as the server signed it. The token is wiped on drop and never shown.
#[derive(Clone)]
pub struct JwtSvid {
    /// The compact serialisation.
    pub token: Zeroizing<String>,
    /// The subject.
    pub id: SpiffeId,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("id", &self.id)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Why there is no JWT-SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtFetchError {
    /// The server refused, or could not be reached, for as long as the caller may wait.
    #[error("{message}")]
    Server {
        /// The server's gRPC code.
        code: tonic::Code,
        /// The server's words.
        message: String,
    },
    /// The server's answer breaks a rule.
    #[error("invalid JWT-SVID in the server's response: {0}")]
    Malformed(&'static str),
    /// The agent has no server connection yet, or is about to stop.
    #[error("the agent is not connected to a server")]
    NotReady,
}

/// How full the caches are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Entries that this agent may serve, without those for SVID stores.
    pub entries: usize,
    /// X509-SVIDs held for workloads.
    pub x509_svids: usize,
    /// JWT-SVIDs held.
    pub jwt_svids: usize,
    /// X509-SVIDs held for SVID stores; none are built in, so always 0.
    pub store_svids: usize,
}
