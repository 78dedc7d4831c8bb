//! `FetchX509SVID` and `FetchX509Bundles`.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::{StreamExt as _, stream};
use svid_core::bundle::Bundle;
use svid_core::selector::SelectorSet;
use svid_proto::Encoded;
use svid_proto::workload::{X509BundlesResponse, X509svid, X509svidResponse};
use tonic::{Response, Status};
use zeroize::Zeroize as _;

use super::bundles::BundleStream;
use super::gate::Gate;
use super::open::OpenStream;
use super::source::Updates;
use super::{Responses, WorkloadApi, hints};
use crate::cache::{Identity, WorkloadUpdate};
use crate::caller::Connection;

pub(crate) const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
pub(crate) const FETCH_X509_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";

impl WorkloadApi {
    /// `FetchX509SVID`: every update as long as there is an identity.
    pub(crate) async fn fetch_x509_svid(
        &self,
        caller: Arc<Connection>,
    ) -> Result<Response<Responses<Encoded>>, Status> {
        let selectors = self.gate.admit(&caller, FETCH_X509_SVID).await?;
        let updates = self.gate.source.subscribe(Arc::clone(&selectors));
        let session = Session {
            gate: Arc::clone(&self.gate),
            caller,
            selectors,
            updates,
            sent: None,
            _open: OpenStream::new(),
        };
        Ok(Response::new(session.into_stream()))
    }

    /// `FetchX509Bundles`: the own trust domain's and those the caller's identities federate with.
    pub(crate) async fn fetch_x509_bundles(
        &self,
        caller: Arc<Connection>,
    ) -> Result<Response<Responses<X509BundlesResponse>>, Status> {
        let stream = BundleStream::open(self, caller, FETCH_X509_BUNDLES, Bundle::x509_der).await?;
        Ok(Response::new(stream.into_responses(|bundles| X509BundlesResponse {
            bundles: bundles.into_iter().collect(),
            ..Default::default()
        })))
    }
}

/// One open stream. It runs only while the client reads.
struct Session {
    gate: Arc<Gate>,
    caller: Arc<Connection>,
    selectors: Arc<SelectorSet>,
    updates: Box<dyn Updates>,
    /// The revision that was sent last.
    sent: Option<u64>,
    _open: OpenStream,
}

impl Session {
    fn into_stream(self) -> Responses<Encoded> {
        stream::unfold(Some(self), |session| async move {
            let mut session = session?;
            match session.next().await {
                Ok(response) => Some((Ok(response), Some(session))),
                Err(status) => Some((Err(status), None)),
            }
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Encoded, Status> {
        let mut update = self.updates.next().await;
        while self.sent == Some(update.x509_revision) {
            update = self.updates.next().await;
        }
        self.sent = Some(update.x509_revision);
        if update.identities.is_empty() {
            return Err(self.gate.no_identity(&self.caller, &self.selectors));
        }
        let response = update.x509_response.get_or_init(|| encode(&update)).clone();
        self.gate.recheck(&self.caller)?;
        if !self.caller.is_agent() {
            log_fetched(&update, &self.caller);
        }
        Ok(response)
    }
}

fn log_fetched(update: &WorkloadUpdate, caller: &Connection) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let now = SystemTime::now();
    for identity in kept(update) {
        tracing::debug!(
            pid = caller.pid(),
            registered = true,
            count = update.identities.len(),
            spiffe_id = %identity.entry.spiffe_id,
            ttl = identity.x509.svid.life().remaining(now).as_secs_f64(),
            "Fetched X.509 SVID"
        );
    }
}

fn kept(update: &WorkloadUpdate) -> Vec<&Identity> {
    hints::unique(&update.identities, |identity| &identity.entry)
}

/// Encodes the answer once for all streams; the copies of the keys made on the way are wiped.
fn encode(update: &WorkloadUpdate) -> Encoded {
    let bundle = update.bundle.x509_der();
    let svids = kept(update).into_iter().map(|identity| X509svid {
        spiffe_id: identity.entry.spiffe_id.to_string(),
        x509_svid: identity.x509.svid.chain().to_concatenated_der(),
        x509_svid_key: identity.x509.key.secret_bytes().to_vec(),
        bundle: bundle.clone(),
        hint: identity.entry.hint.clone(),
    });
    let federated =
        update.federated.values().map(|bundle| (bundle.trust_domain.id().to_string(), bundle.x509_der()));
    let mut response = X509svidResponse {
        svids: svids.collect(),
        federated_bundles: federated.collect(),
        ..Default::default()
    };
    let encoded = Encoded::of(&response);
    response.svids.iter_mut().for_each(|svid| svid.x509_svid_key.zeroize());
    encoded
}
