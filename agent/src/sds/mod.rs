//! Envoy's Secret Discovery Service, version 3: state of the world, incremental and one-shot.
//!
//! The protocols are pure state machines (`sotw`, `delta`); this file attests the caller, feeds them with
//! requests and cache updates, and checks the caller again before each secret goes out.

mod delta;
mod resources;
mod respond;
mod sotw;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use svid_proto::Encoded;
use svid_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tonic::{Response, Status, Streaming};

use crate::cache::WorkloadUpdate;
use crate::caller::Connection;
use crate::config::SdsConfig;
use crate::workload_api::gate::Gate;
use crate::workload_api::open::OpenStream;
use crate::workload_api::source::Updates;

use delta::Delta;
use resources::{Form, Wanted, resolve};
use respond::Reply;
use sotw::Sotw;

/// Path of the service.
pub(crate) const PREFIX: &str = "/envoy.service.secret.v3.SecretDiscoveryService/";
pub(crate) const STREAM_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
pub(crate) const DELTA_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";
pub(crate) const FETCH_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets";
/// Most names one stream may ask for.
const MAX_NAMES: usize = 1024;
/// Refusals in a row after which a stream is answered only when there is something new. A client that refuses and
/// asks for something else each time would otherwise go round as fast as it can.
const MAX_REFUSALS: u32 = 16;

/// Why a stream of secrets ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SdsError {
    /// The caller's entries do not give it these names.
    #[error("workload is not authorized for the requested identities [{}]", quoted(.0))]
    NotAuthorized(Vec<String>),
    /// Bundles of several trust domains cannot stand in one plain list.
    #[error("unable to use \"SPIFFE validator\" on Envoy below 1.17")]
    NoValidator,
    /// More names than a stream may have.
    #[error("too many resource names: at most {MAX_NAMES} are allowed")]
    TooManyNames,
}

impl From<SdsError> for Status {
    fn from(error: SdsError) -> Self {
        let code = match error {
            SdsError::NotAuthorized(_) | SdsError::TooManyNames => tonic::Code::InvalidArgument,
            SdsError::NoValidator => tonic::Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" ")
}

fn new_nonce() -> String {
    let mut bytes = [0; 4];
    // The system's generator does not fail once the process runs; a nonce of zeros would still be a nonce.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    hex::encode(bytes)
}

/// A stream of encoded responses.
pub(crate) type Responses = Pin<Box<dyn Stream<Item = Result<Encoded, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub(crate) struct Sds {
    gate: Arc<Gate>,
    config: Arc<SdsConfig>,
}

impl Sds {
    pub(crate) fn new(gate: Arc<Gate>, config: SdsConfig) -> Self {
        Self { gate, config: Arc::new(config) }
    }

    /// `StreamSecrets`.
    pub(crate) async fn stream_secrets(
        &self,
        caller: Arc<Connection>,
        requests: Streaming<DiscoveryRequest>,
    ) -> Result<Response<Responses>, Status> {
        let selectors = self.gate.admit(&caller, STREAM_SECRETS).await?;
        let session = Session {
            gate: Arc::clone(&self.gate),
            caller,
            requests,
            updates: self.gate.source.subscribe(selectors),
            protocol: Sotw::new(Arc::clone(&self.config)),
            _open: OpenStream::new(),
        };
        Ok(Response::new(session.into_stream()))
    }

    /// `DeltaSecrets`. SPIRE does not have it.
    pub(crate) async fn delta_secrets(
        &self,
        caller: Arc<Connection>,
        requests: Streaming<DeltaDiscoveryRequest>,
    ) -> Result<Response<Responses>, Status> {
        let selectors = self.gate.admit(&caller, DELTA_SECRETS).await?;
        let session = Session {
            gate: Arc::clone(&self.gate),
            caller,
            requests,
            updates: self.gate.source.subscribe(selectors),
            protocol: Delta::new(Arc::clone(&self.config)),
            _open: OpenStream::new(),
        };
        Ok(Response::new(session.into_stream()))
    }

    /// `FetchSecrets`: what is there now.
    pub(crate) async fn fetch_secrets(
        &self,
        caller: Arc<Connection>,
        request: DiscoveryRequest,
    ) -> Result<Response<Encoded>, Status> {
        let selectors = self.gate.admit(&caller, FETCH_SECRETS).await?;
        let update = self.gate.source.current(&selectors);
        let names: std::collections::BTreeSet<String> =
            request.resource_names.into_iter().filter(|name| !name.is_empty()).collect();
        if names.len() > MAX_NAMES {
            return Err(SdsError::TooManyNames.into());
        }
        let wanted = if names.is_empty() { Wanted::All } else { Wanted::Named(&names) };
        let found = resolve(&self.config, &update, wanted, Form::of(&self.config, request.node.as_ref()))?;
        if !found.missing.is_empty() {
            return Err(SdsError::NotAuthorized(found.missing).into());
        }
        self.gate.recheck(&caller)?;
        let reply = Reply {
            version_info: String::new(),
            nonce: String::new(),
            type_url: request.type_url,
            resources: found.resources,
        };
        Ok(Response::new(reply.encode()))
    }
}

/// One of the two protocols.
trait Protocol: Send + 'static {
    type Request: Send + 'static;
    fn on_request(&mut self, request: Self::Request) -> Result<Option<Encoded>, SdsError>;
    fn on_update(&mut self, update: Arc<WorkloadUpdate>) -> Result<Option<Encoded>, SdsError>;
}

impl Protocol for Sotw {
    type Request = DiscoveryRequest;
    fn on_request(&mut self, request: DiscoveryRequest) -> Result<Option<Encoded>, SdsError> {
        Ok(Sotw::on_request(self, request)?.map(|reply| reply.encode()))
    }
    fn on_update(&mut self, update: Arc<WorkloadUpdate>) -> Result<Option<Encoded>, SdsError> {
        Ok(Sotw::on_update(self, update)?.map(|reply| reply.encode()))
    }
}

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<Encoded>, SdsError> {
        Ok(Delta::on_request(self, request)?.map(|reply| reply.encode()))
    }
    fn on_update(&mut self, update: Arc<WorkloadUpdate>) -> Result<Option<Encoded>, SdsError> {
        Ok(Delta::on_update(self, update)?.map(|reply| reply.encode()))
    }
}

/// One open stream. It runs only while the client reads, so a slow client holds back nothing but itself.
struct Session<P: Protocol> {
    gate: Arc<Gate>,
    caller: Arc<Connection>,
    requests: Streaming<P::Request>,
    updates: Box<dyn Updates>,
    protocol: P,
    _open: OpenStream,
}

impl<P: Protocol> Session<P> {
    fn into_stream(self) -> Responses {
        stream::unfold(Some(self), |session| async move {
            let mut session = session?;
            match session.next().await {
                Ok(None) => None,
                Ok(Some(response)) => Some((Ok(response), Some(session))),
                Err(status) => {
                    tracing::error!(
                        pid = session.caller.pid(),
                        error = status.message(),
                        "Error building stream secrets response"
                    );
                    Some((Err(status), None))
                }
            }
        })
        .boxed()
    }

    /// The next response; `None` when the client is done.
    async fn next(&mut self) -> Result<Option<Encoded>, Status> {
        loop {
            let response = tokio::select! {
                request = self.requests.next() => match request {
                    Some(Ok(request)) => self.protocol.on_request(request)?,
                    // The client went away, politely or not: nobody is left to tell.
                    Some(Err(_)) | None => return Ok(None),
                },
                update = self.updates.next() => self.protocol.on_update(update)?,
            };
            if let Some(response) = response {
                self.gate.recheck(&self.caller)?;
                return Ok(Some(response));
            }
        }
    }
}

#[cfg(test)]
mod tests;
