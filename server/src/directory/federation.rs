//! Federation relationships as the log has them, and who waits for changes of them.

use svid_core::federation::Relationship;
use svid_core::id::TrustDomain;
use tokio::sync::watch;

use super::{Directory, Listing, Page};
use crate::store::StoredRelationship;

impl Directory {
    /// The stored relationship with a trust domain.
    pub fn relationship(&self, trust_domain: &TrustDomain) -> Option<Relationship> {
        self.0.read().relationships.get(trust_domain).map(|stored| stored.relationship.clone())
    }

    /// A page of the stored relationships, in order of creation.
    pub fn list_relationships(&self, page: Page) -> Listing<Relationship> {
        let mut found: Vec<StoredRelationship> = {
            let state = self.0.read();
            state.relationships.values().filter(|stored| stored.row > page.after).cloned().collect()
        };
        found.sort_unstable_by_key(|stored| stored.row);
        let next = match page.size {
            0 => None,
            size => {
                found.truncate(size);
                found.last().map(|stored| stored.row)
            }
        };
        Listing { items: found.into_iter().map(|stored| stored.relationship).collect(), next }
    }

    /// Marked as changed whenever a relationship or a bundle did.
    pub fn federation_changes(&self) -> watch::Receiver<()> {
        self.0.federation.subscribe()
    }
}
