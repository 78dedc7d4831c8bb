//! `svid.status.v1.AgentStatus`, for `svidctl status`.

use std::sync::Arc;

use svid_core::clock::unix_seconds;
use svid_core::id::TrustDomain;
use svid_proto::spire::api::types::Spiffeid;
use svid_proto::svid::status::v1::agent_status_server::AgentStatus;
use svid_proto::svid::status::v1::{GetAgentStatusRequest, GetAgentStatusResponse};
use tonic::{Request, Response, Status, async_trait};

use super::AgentFacts;
use crate::cache::Cache;
use crate::workload_api::open_streams;

pub(super) struct StatusService {
    trust_domain: TrustDomain,
    cache: Cache,
    facts: Arc<dyn AgentFacts>,
}

impl StatusService {
    pub(super) fn new(trust_domain: TrustDomain, cache: Cache, facts: Arc<dyn AgentFacts>) -> Self {
        Self { trust_domain, cache, facts }
    }
}

#[async_trait]
impl AgentStatus for StatusService {
    async fn get_status(
        &self,
        _: Request<GetAgentStatusRequest>,
    ) -> Result<Response<GetAgentStatusResponse>, Status> {
        let (facts, stats) = (self.facts.facts(), self.cache.stats());
        let id = facts.svid.id();
        Ok(Response::new(GetAgentStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            trust_domain: self.trust_domain.to_string(),
            uptime_s: i64::try_from(facts.uptime.as_secs()).unwrap_or(i64::MAX),
            agent_id: Some(Spiffeid { trust_domain: id.trust_domain_name().into(), path: id.path().into() }),
            svid_expires_at: unix_seconds(facts.svid.not_after()),
            reattestable: facts.reattestable,
            server_address: facts.server_address,
            connected: facts.connected,
            watch_active: facts.watch_active,
            last_sync_success: facts.last_sync_success,
            entries_count: stats.entries as u64,
            cached_x509_svids_count: stats.x509_svids as u64,
            cached_jwt_svids_count: stats.jwt_svids as u64,
            cached_svidstore_x509_svids_count: stats.store_svids as u64,
            peer_identification: facts.peer_identification,
            open_streams_count: open_streams(),
            warnings: facts.warnings,
            first_svid_expires_at: facts.first_svid_end.map_or(0, unix_seconds),
            last_server_contact: facts.last_contact.map_or(0, unix_seconds),
        }))
    }
}
