//! How a node becomes an agent: the AttestAgent dialogue, and the renewal of an agent's certificate.
//! Source: `spire-server.md`, section 5. Nothing is signed before its serial number is stored.

mod clones;
mod dialogue;

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use svid_core::clock::unix_seconds;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::selector::{Selector, SelectorSet};
use svid_core::x509::{Authority, Prepared, PublicKey, VerifiedCsr, X509Svid};
use svid_plugin_api::ServerNodeAttestor;
use tonic::Status;

use crate::api::Context;
use crate::api::caller::PeerCert;
use crate::api::status::{self, invalid};
use crate::ca::CaError;
use crate::store::{Admitted, Answered, NewNode, StoreError};

pub use clones::Clones;
pub use dialogue::serve;

/// The type of join token payloads. They are handled here, whether configured or not, as in SPIRE.
pub const JOIN_TOKEN: &str = "join_token";

/// The node attestors besides join tokens.
#[derive(Clone, Default)]
pub struct Attestors(Vec<Arc<dyn ServerNodeAttestor>>);

impl Attestors {
    /// Attestors in the configuration's order.
    pub fn new(attestors: Vec<Arc<dyn ServerNodeAttestor>>) -> Self {
        Self(attestors)
    }

    fn named(&self, name: &str) -> Option<&Arc<dyn ServerNodeAttestor>> {
        self.0.iter().find(|attestor| attestor.name() == name)
    }
}

/// What an attestation found out, before anything is stored.
struct Attested {
    /// The attestor's name.
    kind: String,
    id: SpiffeId,
    selector_values: Vec<String>,
    can_reattest: bool,
    /// Consumed in the transaction that creates the node.
    join_token: Option<String>,
}

fn csr_key(csr: &[u8]) -> Result<PublicKey, Status> {
    let csr = VerifiedCsr::from_der(csr).map_err(|error| invalid("failed to parse CSR", error))?;
    Ok(csr.into_public_key())
}

fn sign_failed(error: &CaError) -> Status {
    status::ca("failed to sign X509 SVID", error)
}

fn selectors(attested: &Attested, id_as_selector: bool) -> Result<SelectorSet, Status> {
    let own = attested.selector_values.iter().map(|value| Selector::new(&attested.kind, value));
    let id = id_as_selector.then(|| Selector::new("spiffe_id", attested.id.as_str()));
    let all: Result<Vec<_>, _> = own.chain(id).collect();
    let all =
        all.map_err(|error| Status::internal(format!("node attestor gave an invalid selector: {error}")))?;
    Ok(all.into_iter().collect())
}

/// The rules for IDs that attestors produce.
fn check_id(trust_domain: &TrustDomain, attested: &Attested) -> Result<(), Status> {
    let id = &attested.id;
    if *id == trust_domain.server_id() {
        return Err(Status::internal("agent ID cannot collide with the server ID"));
    }
    if let Err(error) = id.require_member(trust_domain) {
        return Err(Status::internal(format!("failed to sign X509 SVID: {error}")));
    }
    // SPIRE lets these pass with the warning below. An agent that has a workload's ID could pass for that workload.
    if !id.path().starts_with("/spire/agent/") {
        return Err(Status::internal("the node attestor gave an agent ID outside the agents' namespace"));
    }
    if !id.path().starts_with(&format!("/spire/agent/{}/", attested.kind)) {
        tracing::warn!(
            agent_id = %id,
            node_attestor_type = %attested.kind,
            "The node attestor produced an invalid agent ID; future releases will enforce that agent IDs are within \
             the reserved agent namespace for the node attestor"
        );
    }
    Ok(())
}

/// Prepares the SVID, stores its serial number together with the node, and only then signs. An answer that got lost is
/// given again: the same certificate, signed once more.
async fn admit(context: &Context, attested: &Attested, csr: &[u8]) -> Result<X509Svid, Status> {
    check_id(&context.trust_domain, attested)?;
    let selectors = selectors(attested, context.agent_spiffe_id_as_selector)?;
    let key = csr_key(csr)?;
    let now = context.clock.now();
    let snapshot = context.ca.snapshot();
    let authority = snapshot.x509_authority(now).map_err(|error| sign_failed(&error))?;
    let prepared = context.ca.prepare_agent_x509(authority, &attested.id, key.clone(), now);
    let prepared = prepared.map_err(|error| sign_failed(&error))?;
    let node = NewNode {
        id: attested.id.clone(),
        attestation_type: attested.kind.clone(),
        serial: prepared.serial_decimal(),
        expires_at: unix_seconds(prepared.life().not_after),
        can_reattest: attested.can_reattest,
        selectors,
        key_hash: sha256(key.spki()),
    };
    let stored = match &attested.join_token {
        Some(token) => context.store.attest_with_join_token(token, node, unix_seconds(now)).await,
        None => context.store.attest_node(node, unix_seconds(now)).await,
    };
    let (prepared, why) = match stored.map_err(|error| not_stored(&error))? {
        Admitted::New => (prepared, "attestation"),
        Admitted::Again(answer) => {
            if is_used(context, &attested.id) {
                return Err(not_stored(&used_up(attested)));
            }
            (again(context, authority, &attested.id, key, &answer)?, "lost answer")
        }
    };
    let svid = context.ca.sign_agent_x509(prepared).await.map_err(|error| sign_failed(&error))?;
    log_issued(&svid, why);
    Ok(svid)
}

/// The certificate was used a moment ago, which may not be in the database yet.
fn is_used(context: &Context, agent: &SpiffeId) -> bool {
    context.directory.node(agent).is_some_and(|node| node.used)
}

fn used_up(attested: &Attested) -> StoreError {
    match attested.join_token {
        Some(_) => StoreError::TokenUnknown,
        None => StoreError::CannotReattest,
    }
}

fn again<'a>(
    context: &Context,
    authority: &'a Authority,
    agent: &SpiffeId,
    key: PublicKey,
    answer: &Answered,
) -> Result<Prepared<'a>, Status> {
    let Answered { serial, answered_at, expires_at } = answer;
    let prepared =
        context.ca.prepare_agent_x509_again(authority, agent, key, serial, *answered_at, *expires_at);
    prepared.map_err(|error| sign_failed(&error))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn not_stored(error: &StoreError) -> Status {
    match error {
        StoreError::Banned => Status::permission_denied("failed to attest: agent is banned"),
        StoreError::TokenUnknown => {
            Status::invalid_argument("failed to attest: join token does not exist or has already been used")
        }
        StoreError::TokenExpired => Status::invalid_argument("join token expired"),
        StoreError::CannotReattest => Status::permission_denied(format!("failed to attest: {error}")),
        error => status::store("failed to create attested agent", error),
    }
}

/// A new SVID for an agent that has one. The old one stays good until the new one is used. `seen` is the next serial
/// number that the node had when the call came in, or empty.
/// # Errors
/// SPIRE's statuses; `Unavailable` if another renewal was answered meanwhile.
pub async fn renew(context: &Context, caller: &PeerCert, seen: &str, csr: &[u8]) -> Result<X509Svid, Status> {
    let agent = &caller.id;
    let key = csr_key(csr)?;
    let now = context.clock.now();
    let snapshot = context.ca.snapshot();
    let authority = snapshot.x509_authority(now).map_err(|error| sign_failed(&error))?;
    let prepared = context.ca.prepare_agent_x509(authority, agent, key, now);
    let prepared = prepared.map_err(|error| sign_failed(&error))?;
    let expires_at = unix_seconds(prepared.life().not_after);
    let stored =
        context.store.renew_node(agent, &caller.serial, seen, &prepared.serial_decimal(), expires_at).await;
    stored.map_err(|error| match error {
        StoreError::Banned => Status::permission_denied("failed to update agent: agent is banned"),
        error => status::store_or_not_found("failed to update agent", "agent not found", &error),
    })?;
    let svid = context.ca.sign_agent_x509(prepared).await.map_err(|error| sign_failed(&error))?;
    log_issued(&svid, "renewal");
    Ok(svid)
}

fn log_issued(svid: &X509Svid, why: &'static str) {
    tracing::info!(
        spiffe_id = %svid.id(),
        agent_id = %svid.id(),
        serial_num = %svid.serial_decimal(),
        expiration = unix_seconds(svid.not_after()),
        reason = why,
        "Signed agent X509 SVID"
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Attested, check_id};

    #[test]
    fn agents_stay_in_their_namespace() {
        let trust_domain = "example.org".parse().unwrap();
        for (id, is_fine) in [
            ("spiffe://example.org/spire/agent/x509pop/a", true),
            ("spiffe://example.org/spire/agent/other/a", true),
            ("spiffe://example.org/spire/agent", false),
            ("spiffe://example.org/spire/server", false),
            ("spiffe://example.org/workload", false),
            ("spiffe://other.test/spire/agent/x509pop/a", false),
        ] {
            let attested = Attested {
                kind: "x509pop".into(),
                id: id.parse().unwrap(),
                selector_values: Vec::new(),
                can_reattest: false,
                join_token: None,
            };
            let refused = check_id(&trust_domain, &attested).err().map(|status| status.code());
            assert_eq!(refused, (!is_fine).then_some(tonic::Code::Internal), "{id}");
        }
    }
}
