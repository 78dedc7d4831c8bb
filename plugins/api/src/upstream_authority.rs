//! Who signs a server's own CA.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use svid_core::bundle::X509Authority;
use tokio::sync::watch;

use crate::PluginError;

/// A signed CA certificate and the roots it leads to.
#[derive(Clone, Debug)]
pub struct MintedCa {
    /// The CA's certificate in DER, then the intermediates up to, and without, the root.
    pub chain: Vec<Vec<u8>>,
    /// The upstream roots at this moment. Never empty.
    pub roots: Vec<X509Authority>,
}

/// Signs CA certificates for the server.
#[async_trait]
pub trait UpstreamAuthority: Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &str;
    /// Has `csr` (PKCS#10 DER) signed. `ttl` is a wish: the chain that comes back may end sooner; zero leaves it to the
    /// plugin. The same CSR may come again, also in a later process, when an answer was lost: what shall make that one
    /// request to the upstream (an idempotency token) is to be derived from the CSR.
    /// # Errors
    /// [`PluginError`]. [`crate::PluginCode`] tells whether the upstream may have signed all the same.
    async fn mint_x509_ca(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, PluginError>;
    /// The upstream roots: the current set at once, later sets as they arrive. Empty until first known.
    fn roots(&self) -> watch::Receiver<Arc<[X509Authority]>>;
}
