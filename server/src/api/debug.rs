//! The Debug service, on the admin socket.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use svid_core::clock::unix_seconds;
use svid_core::x509::ParsedCert;
use svid_proto::convert::id_to_wire;
use svid_proto::spire::api::server::debug::v1::{self as wire, debug_server::Debug};
use tonic::{Request, Response, Status};

use super::Context;
use crate::directory::{EntryFilter, NodeFilter};

/// As long as SPIRE keeps an answer.
const KEEP: Duration = Duration::from_secs(5);

type Kept = Option<(Instant, wire::GetInfoResponse)>;

/// The service of this file.
#[derive(Clone)]
pub struct DebugApi {
    context: Arc<Context>,
    kept: Arc<Mutex<Kept>>,
}

impl DebugApi {
    /// A service with nothing kept yet.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, kept: Arc::default() }
    }

    fn collect(&self) -> wire::GetInfoResponse {
        let context = &self.context;
        let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        wire::GetInfoResponse {
            svid_chain: self.svid_chain(),
            uptime: i32::try_from(context.started.elapsed().as_secs()).unwrap_or(i32::MAX),
            agents_count: count(context.directory.count_nodes(&NodeFilter::default())),
            federated_bundles_count: count(context.directory.list_bundles().len()),
            entries_count: count(context.directory.count_entries(&EntryFilter::default())),
        }
    }

    /// The server's own chain up to the root it leads to.
    fn svid_chain(&self) -> Vec<wire::get_info_response::Cert> {
        let identity = self.context.ca.server_identity().borrow().clone();
        let mut certs: Vec<ParsedCert> =
            identity.svid.chain().iter().filter_map(|der| ParsedCert::from_der(der).ok()).collect();
        let top = certs.last().and_then(ParsedCert::authority_key_id_hex);
        let bundle = self.context.directory.bundle(&self.context.trust_domain);
        let roots = bundle.iter().flat_map(|bundle| &bundle.x509_authorities).map(|root| root.parsed());
        certs.extend(roots.filter(|root| top.is_some() && root.subject_key_id_hex() == top).take(1));
        certs.iter().map(cert_to_wire).collect()
    }
}

fn cert_to_wire(cert: &ParsedCert) -> wire::get_info_response::Cert {
    wire::get_info_response::Cert {
        id: cert.spiffe_id().ok().map(|id| id_to_wire(&id)),
        expires_at: unix_seconds(cert.life().not_after),
        subject: cert.subject().to_owned(),
    }
}

#[tonic::async_trait]
impl Debug for DebugApi {
    async fn get_info(
        &self,
        _: Request<wire::GetInfoRequest>,
    ) -> Result<Response<wire::GetInfoResponse>, Status> {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((at, info)) = &*kept
            && at.elapsed() < KEEP
        {
            return Ok(Response::new(info.clone()));
        }
        let info = self.collect();
        *kept = Some((Instant::now(), info.clone()));
        Ok(Response::new(info))
    }
}
