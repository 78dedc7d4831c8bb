//! `spire.agent.debug.v1.Debug`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use svid_core::clock::{Clock, unix_seconds};
use svid_core::x509::{self, ParsedCert, Roots};
use svid_daemon::log::chain;
use svid_proto::spire::agent::debug::v1::debug_server::Debug as DebugApi;
use svid_proto::spire::agent::debug::v1::get_info_response::Cert;
use svid_proto::spire::agent::debug::v1::{GetInfoRequest, GetInfoResponse};
use svid_proto::spire::api::types::Spiffeid;
use tonic::{Request, Response, Status, async_trait};

use super::{AgentFacts, Facts};
use crate::cache::Cache;

/// How long an answer is given again. Source: SPIRE.
const CACHE_LIFE: Duration = Duration::from_secs(5);

pub(super) struct DebugService {
    cache: Cache,
    facts: Arc<dyn AgentFacts>,
    clock: Clock,
    last: Mutex<Option<(Instant, GetInfoResponse)>>,
}

impl DebugService {
    pub(super) fn new(cache: Cache, facts: Arc<dyn AgentFacts>, clock: Clock) -> Self {
        Self { cache, facts, clock, last: Mutex::new(None) }
    }

    // SPIRE fills the deprecated count as well, and older tools read it.
    #[allow(deprecated)]
    fn info(&self) -> Result<GetInfoResponse, Status> {
        let (facts, stats) = (self.facts.facts(), self.cache.stats());
        let x509_svids = count(stats.x509_svids);
        Ok(GetInfoResponse {
            svid_chain: self.chain(&facts)?,
            uptime: i32::try_from(facts.uptime.as_secs()).unwrap_or(i32::MAX),
            svids_count: x509_svids,
            last_sync_success: facts.last_sync_success,
            cached_x509_svids_count: x509_svids,
            cached_jwt_svids_count: count(stats.jwt_svids),
            cached_svidstore_x509_svids_count: count(stats.store_svids),
        })
    }

    /// The agent's chain and, behind it, the root that it leads to.
    fn chain(&self, facts: &Facts) -> Result<Vec<Cert>, Status> {
        let chain = facts.svid.chain();
        let ders: Vec<&[u8]> = chain.iter().collect();
        x509::verify(&ders, &Roots::from_bundle(&facts.bundle), self.clock.now()).map_err(|err| {
            let error = chain_text(&err);
            tracing::error!(error, "Failed to verify agent SVID");
            Status::internal(format!("failed to verify agent SVID: {error}"))
        })?;
        let certs = chain.iter().map(ParsedCert::from_der).collect::<Result<Vec<_>, _>>();
        let mut certs = certs.map_err(|err| Status::internal(err.to_string()))?;
        let roots = facts.bundle.x509_authorities.iter().map(|authority| authority.parsed());
        let root = certs.last().and_then(|last| roots.into_iter().find(|root| signed(root, last)));
        certs.extend(root);
        Ok(certs.iter().map(describe).collect())
    }
}

fn chain_text(err: &x509::VerifyError) -> String {
    chain(err).to_string()
}

fn signed(root: &ParsedCert, last: &ParsedCert) -> bool {
    let same_key = match (root.subject_key_id(), last.authority_key_id()) {
        (Some(root), Some(last)) => root == last,
        _ => true,
    };
    same_key && root.subject_der() == last.issuer_der()
}

fn describe(cert: &ParsedCert) -> Cert {
    let id = cert.spiffe_id().ok();
    Cert {
        id: id.map(|id| Spiffeid { trust_domain: id.trust_domain_name().into(), path: id.path().into() }),
        expires_at: unix_seconds(cert.life().not_after),
        subject: cert.subject().into(),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[async_trait]
impl DebugApi for DebugService {
    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, info)) = last.as_ref().filter(|(at, _)| at.elapsed() < CACHE_LIFE) {
            return Ok(Response::new(info.clone()));
        }
        let info = self.info()?;
        *last = Some((Instant::now(), info.clone()));
        Ok(Response::new(info))
    }
}
