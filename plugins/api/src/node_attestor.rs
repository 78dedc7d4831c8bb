//! How a node proves what it is: the server's half and the agent's half.

use std::net::IpAddr;

use async_trait::async_trait;
use svid_core::id::{SpiffeId, TrustDomain};

use crate::PluginError;

/// Longest attestation payload or challenge answer in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;

/// What is known about an attestation besides its payload.
#[derive(Clone, Debug)]
pub struct AttestContext {
    /// The server's trust domain.
    pub trust_domain: TrustDomain,
    /// Where the connection comes from.
    pub client_ip: Option<IpAddr>,
}

/// What the server's half found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestedNode {
    /// The agent's SPIFFE ID.
    pub agent_id: SpiffeId,
    /// Values of selectors whose type is the attestor's name.
    pub selector_values: Vec<String>,
    /// The same node may attest again at any time.
    pub can_reattest: bool,
}

/// The way to the agent during an attestation.
#[async_trait]
pub trait Challenger: Send {
    /// Sends a challenge and waits for its answer.
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, PluginError>;
}

/// The server's half.
#[async_trait]
pub trait ServerNodeAttestor: Send + Sync {
    /// The plugin's name, which is also the type of its payloads and selectors.
    fn name(&self) -> &str;
    /// Judges a payload, asking back as often as needed. Identity comes from what was proved and nothing else.
    async fn attest(
        &self,
        context: &AttestContext,
        payload: &[u8],
        challenger: &mut dyn Challenger,
    ) -> Result<AttestedNode, PluginError>;
}

/// The agent's half.
#[async_trait]
pub trait AgentNodeAttestor: Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &str;
    /// Begins one attestation.
    async fn begin(&self) -> Result<Box<dyn AttestSession>, PluginError>;
}

/// One attestation, seen from the agent.
#[async_trait]
pub trait AttestSession: Send {
    /// The first payload. Never empty: servers refuse that.
    fn payload(&self) -> &[u8];
    /// Answers a challenge.
    async fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, PluginError>;
}
