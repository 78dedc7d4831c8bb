//! Who the agent is.

use std::sync::Arc;

use svid_core::key::Signer;
use svid_core::x509::X509Svid;
use svid_daemon::tls::{Identity, TlsError};

use super::signing::TlsKey;

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

impl AgentIdentity {
    /// As TLS connections show it.
    /// # Errors
    /// [`TlsError::Config`] for an RSA key.
    pub fn for_tls(&self) -> Result<Identity, TlsError> {
        let key = TlsKey::new(Arc::clone(&self.signer))?;
        Identity::from_signing_key(self.svid.chain().iter(), Arc::new(key))
    }
}
