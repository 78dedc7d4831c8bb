//! The CA's view of the server's store.

use std::time::SystemTime;

use async_trait::async_trait;
use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::clock::unix_seconds;
use svid_core::id::TrustDomain;

use super::{CaStore, CaStoreError};
use crate::store::{AuthorityRef, Store, StoreError};

/// The journal of one server and the bundle of its trust domain, in the server's store.
#[derive(Clone)]
pub struct StoredCa {
    store: Store,
    trust_domain: TrustDomain,
    server_id: String,
}

impl StoredCa {
    /// `server_id` names the journal.
    pub fn new(store: Store, trust_domain: TrustDomain, server_id: String) -> Self {
        Self { store, trust_domain, server_id }
    }

    async fn taint(&self, authority: AuthorityRef) -> Result<(), CaStoreError> {
        Ok(self.store.taint_authority(&self.trust_domain, authority).await.map(drop)?)
    }

    async fn revoke(&self, authority: AuthorityRef) -> Result<(), CaStoreError> {
        Ok(self.store.revoke_authority(&self.trust_domain, authority).await.map(drop)?)
    }
}

impl From<StoreError> for CaStoreError {
    fn from(error: StoreError) -> Self {
        let is_unavailable = error.is_unavailable();
        Self::new(error, is_unavailable)
    }
}

#[async_trait]
impl CaStore for StoredCa {
    async fn load_journal(&self) -> Result<Option<Vec<u8>>, CaStoreError> {
        Ok(self.store.load_journal(&self.server_id).await?)
    }

    async fn save_journal(&self, journal: &[u8]) -> Result<(), CaStoreError> {
        Ok(self.store.save_journal(&self.server_id, journal.to_vec()).await?)
    }

    async fn bundle(&self) -> Result<Option<Bundle>, CaStoreError> {
        Ok(self.store.bundle(&self.trust_domain).await?)
    }

    async fn has_audience(&self) -> Result<bool, CaStoreError> {
        let now = self.store.now().await?;
        Ok(self.store.has_audience(&self.server_id, now).await?)
    }

    async fn append_to_bundle(
        &self,
        x509: &[X509Authority],
        jwt: &[JwtAuthority],
    ) -> Result<(), CaStoreError> {
        Ok(self.store.append_bundle(&self.trust_domain, x509.to_vec(), jwt.to_vec()).await.map(drop)?)
    }

    async fn prune_bundle(&self, before: SystemTime) -> Result<bool, CaStoreError> {
        Ok(self.store.prune_bundle(&self.trust_domain, unix_seconds(before)).await?)
    }

    async fn taint_x509(&self, authority_id: &str) -> Result<(), CaStoreError> {
        self.taint(AuthorityRef::X509(authority_id.to_owned())).await
    }

    async fn revoke_x509(&self, authority_id: &str) -> Result<(), CaStoreError> {
        self.revoke(AuthorityRef::X509(authority_id.to_owned())).await
    }

    async fn taint_jwt(&self, authority_id: &str) -> Result<(), CaStoreError> {
        self.taint(AuthorityRef::Jwt(authority_id.to_owned())).await
    }

    async fn revoke_jwt(&self, authority_id: &str) -> Result<(), CaStoreError> {
        self.revoke(AuthorityRef::Jwt(authority_id.to_owned())).await
    }
}
