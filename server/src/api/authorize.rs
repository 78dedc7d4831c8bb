//! The one gate in front of every RPC: finds out who calls, looks up the RPC's row, lets in or denies.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use svid_core::clock::Clock;
use svid_core::id::SpiffeId;
use svid_daemon::metrics::on_end;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::audit::Audit;
use super::caller::{Call, Peer, PeerCert, Role};
use super::metrics::RpcMetrics;
use super::status::{denial_reason, denied_because, too_stale, unavailable};
use super::table::{self, Callers, Method};
use super::vouch::Vouch;
use crate::attest::Clones;
use crate::directory::{AgentCert, AgentDenied, AgentRefusal, Directory};

/// Reads the peer from a connection's extensions.
pub type PeerSource = fn(&http::Extensions) -> Result<Peer, Status>;

/// Decides about calls.
pub struct Gate {
    directory: Directory,
    clock: Clock,
    admin_ids: HashSet<SpiffeId>,
    audit: bool,
    max_stale: Duration,
    vouch: Vouch,
    metrics: RpcMetrics,
    clones: Option<Clones>,
}

impl Gate {
    /// A gate that lets `admin_ids` in as admins. Without the database, callers over TCP are served from memory for
    /// `max_stale` at most. `vouch` answers for the authorities behind their certificates.
    pub fn new(
        directory: Directory,
        clock: Clock,
        admin_ids: impl IntoIterator<Item = SpiffeId>,
        audit: bool,
        max_stale: Duration,
        vouch: Vouch,
        metrics: RpcMetrics,
    ) -> Self {
        let admin_ids = admin_ids.into_iter().collect();
        Self { directory, clock, admin_ids, audit, max_stale, vouch, metrics, clones: None }
    }

    /// The same gate, which tells `clones` of old certificates.
    #[must_use]
    pub fn watching(self, clones: Clones) -> Self {
        Self { clones: Some(clones), ..self }
    }

    /// The decision, in SPIRE's order: any, local, configured admin, entries of the caller's ID, agent.
    async fn admit(&self, method: &'static Method, peer: Peer) -> Result<Call, (Status, Peer)> {
        let callers = method.callers;
        let admit = |peer, role, via| Ok(self.call(method, peer, role, via));
        if matches!(peer, Peer::Tls { .. }) && self.directory.staleness() > self.max_stale {
            return Err((too_stale(), peer));
        }
        if callers.include(Callers::ANY) {
            return admit(peer, Role::Nobody, "");
        }
        let cert = match &peer {
            Peer::Local(_) if callers.include(Callers::LOCAL) => {
                return admit(peer, Role::Local, "transport");
            }
            Peer::Tls { .. } if callers == Callers::LOCAL => return Err((not_on_this_port(method), peer)),
            Peer::Local(_) | Peer::Tls { identity: None, .. } => return Err((denied(method), peer)),
            Peer::Tls { identity: Some(cert), .. } => cert.clone(),
        };
        if let Err(status) = self.vouch.require(&cert) {
            return Err((status, peer));
        }
        // A connection may outlive the certificate it was opened with; an agent's end is judged below, with its reason.
        let live = cert.not_after > self.clock.unix();
        if live && callers.include(Callers::ADMIN) && self.admin_ids.contains(&cert.id) {
            return admit(peer, Role::Admin, "config");
        }
        if live && (callers.include(Callers::ADMIN) || callers.include(Callers::DOWNSTREAM)) {
            let entries = self.directory.entries_with_spiffe_id(&cert.id, self.clock.unix());
            if callers.include(Callers::ADMIN) && entries.iter().any(|entry| entry.spec.admin) {
                return admit(peer, Role::Admin, "entries");
            }
            let downstream: Vec<_> = entries.into_iter().filter(|entry| entry.spec.downstream).collect();
            if callers.include(Callers::DOWNSTREAM) && !downstream.is_empty() {
                let call = self.call(method, peer, Role::Downstream, "entries");
                return Ok(Call { downstream, ..call });
            }
        }
        if callers.include(Callers::AGENT) {
            return match self.check_agent(method, &peer, &cert).await {
                Ok(()) => admit(peer, Role::Agent, "datastore"),
                Err(status) => Err((status, peer)),
            };
        }
        Err((denied(method), peer))
    }

    fn call(&self, method: &'static Method, peer: Peer, role: Role, via: &'static str) -> Call {
        Call { method, peer, role, via, downstream: Vec::new(), audit: Audit::new(self.audit) }
    }

    async fn check_agent(&self, method: &Method, peer: &Peer, cert: &PeerCert) -> Result<(), Status> {
        let now = self.clock.unix();
        let PeerCert { id, serial, not_before, not_after, .. } = cert;
        let shown = AgentCert { id, serial, not_before: *not_before, not_after: *not_after };
        match self.directory.admit_agent(&shown, now).await {
            Ok(_) => Ok(()),
            Err(AgentRefusal::Unavailable(error)) => Err(unavailable(&error)),
            Err(AgentRefusal::Denied(why)) => {
                log_denied_agent(method, cert, why);
                if let (AgentDenied::NotActive, Some(clones)) = (why, &self.clones) {
                    clones.refused(cert, peer.address());
                }
                Err(denied_because(&denied_text(method), denial_reason(why)))
            }
        }
    }

    /// What is done once the answer's head is there: its status to the log, the audit line; and at its end the metrics.
    fn finished(
        self: Arc<Self>,
        method: &'static Method,
        call: &Call,
        response: http::Response<Body>,
        since: Instant,
    ) -> http::Response<Body> {
        let status = Status::from_header_map(response.headers());
        let (code, message) =
            status.as_ref().map_or((Code::Ok, ""), |status| (status.code(), status.message()));
        if code != Code::Ok {
            log_failed(method, &call.peer, code, message);
        }
        call.audit_call(code, message);
        if !self.metrics.is_enabled() {
            return response;
        }
        on_end(response, Code::Cancelled, move |code| self.metrics.record(method, code, since.elapsed()))
    }
}

fn denied_text(method: &Method) -> String {
    format!("authorization denied for method {}", method.path)
}

fn denied(method: &Method) -> Status {
    Status::permission_denied(denied_text(method))
}

/// The TCP port does not have these services at all; the text is gRPC's own.
fn not_on_this_port(method: &Method) -> Status {
    let service = method.path.trim_start_matches('/').split('/').next().unwrap_or_default();
    Status::unimplemented(format!("unknown service {service}"))
}

/// The sentences are those that SPIRE's users search for.
pub(super) fn log_denied_agent(method: &Method, cert: &PeerCert, why: AgentDenied) {
    let sentence = match why {
        AgentDenied::Expired => "Agent SVID is expired",
        AgentDenied::NotAttested => "Agent is not attested",
        AgentDenied::NotActive => "Agent SVID is not active",
        AgentDenied::Banned => "Agent is banned",
    };
    tracing::error!(
        service = method.service,
        method = method.name,
        caller_id = %cert.id,
        agent_id = %cert.id,
        svid_serial_num = %cert.serial,
        "{sentence}"
    );
}

fn log_failed(method: &Method, peer: &Peer, code: Code, message: &str) {
    let prefix = if code == Code::InvalidArgument { "Invalid argument: " } else { "" };
    let mut chars = message.chars();
    let sentence: String = match prefix {
        "" => chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).collect(),
        _ => message.to_owned(),
    };
    tracing::error!(
        service = method.service,
        method = method.name,
        caller_addr = match peer {
            Peer::Local(_) => None,
            Peer::Tls { address, .. } => Some(tracing::field::display(address)),
        },
        caller_id = peer.identity().map(|cert| cert.id.as_str()),
        status_code = ?code,
        "{prefix}{sentence}"
    );
}

/// Puts a [`Gate`] in front of a service.
#[derive(Clone)]
pub struct AuthorizeLayer {
    gate: Arc<Gate>,
    peer: PeerSource,
}

impl AuthorizeLayer {
    /// `peer` says who is at the other end of this listener's connections.
    pub fn new(gate: Arc<Gate>, peer: PeerSource) -> Self {
        Self { gate, peer }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;
    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, gate: self.gate.clone(), peer: self.peer }
    }
}

/// A service behind a [`Gate`].
#[derive(Clone)]
pub struct Authorize<S> {
    inner: S,
    gate: Arc<Gate>,
    peer: PeerSource,
}

impl<S> Service<http::Request<Body>> for Authorize<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let Some(method) = table::method(request.uri().path()) else {
            let text = format!("unknown method {}", request.uri().path());
            return Box::pin(async move { Ok(Status::unimplemented(text).into_http()) });
        };
        let gate = self.gate.clone();
        let peer = (self.peer)(request.extensions());
        // The clone takes the place of the service that was polled ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let since = Instant::now();
            let admitted = match peer {
                Ok(peer) => gate.admit(method, peer).await,
                Err(status) => return Ok(status.into_http()),
            };
            match admitted {
                Ok(call) => {
                    let call = Arc::new(call);
                    request.extensions_mut().insert(call.clone());
                    let response = inner.call(request).await?;
                    Ok(gate.finished(method, &call, response, since))
                }
                Err((status, peer)) => {
                    let response = status.into_http();
                    let call = gate.call(method, peer, Role::Nobody, "");
                    Ok(gate.finished(method, &call, response, since))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
