//! What the agent may serve: entries, their SVIDs and the bundles; who waits for what.

mod types;

pub use types::{
    AgentEntry, Bundles, CacheStats, Identity, JwtFetchError, JwtSvid, WorkloadUpdate, X509Identity,
};
