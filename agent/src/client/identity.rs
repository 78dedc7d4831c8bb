//! Who the agent is.

use std::sync::Arc;

use svid_core::key::Signer;
use svid_core::x509::X509Svid;

/// The agent's own SVID and key.
#[derive(Clone, Debug)]
pub struct AgentIdentity {
    /// As the server returned it, leaf first.
    pub svid: X509Svid,
    /// The key behind the leaf.
    pub signer: Arc<dyn Signer>,
    /// The node may attest again at any time.
    pub reattestable: bool,
}
