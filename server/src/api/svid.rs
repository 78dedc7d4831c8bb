//! The SVID service: issuance. Source: `spire-server.md`, 1.9.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt as _};
use svid_core::clock::unix_seconds;
use svid_core::entry::{Entry, check_dns_name};
use svid_core::id::SpiffeId;
use svid_core::jwt::{JwtSvid, check_audience_length};
use svid_core::x509::{CsrError, PublicKey, VerifiedCsr, X509Svid};
use svid_proto::convert::{id_to_wire, require_workload, workload_id, x509_svid_to_wire};
use svid_proto::spire::api::server::svid::v1::{self as wire, svid_server::Svid};
use svid_proto::spire::api::types;
use tonic::{Code, Request, Response, Status};

use super::audit::hash_hex;
use super::caller::Call;
use super::status::{self, invalid, invalid_argument, item, item_ok};
use super::{Context, agent_of, call_of, service};
use crate::ca::{CaError, JwtSvidRequest, X509SvidRequest};

service!(SvidApi);

/// A batch of up to so many is signed where it arrived; more go to threads that may be kept busy.
const INLINE: usize = 4;
/// Items that one thread signs before the next waits in line: a batch cannot hold the threads for long.
const CHUNK: usize = 64;
const NOT_AUTHORIZED: &str = "entry not found or not authorized";
const NO_WIT: &str = "WIT functionality is disabled";

type Item = Result<types::X509svid, Status>;

/// Signs one item of a batch with a key that lives here. The entry decides everything but the key.
fn sign_item(context: &Context, agent: &SpiffeId, item: &wire::NewX509svidParams, now: SystemTime) -> Item {
    let (entry, key) = check_item(context, agent, item, now)?;
    let request = X509SvidRequest::for_entry(&entry.spec);
    let signed = context.ca.sign_workload_x509_inline(&request, key, now);
    signed_item(signed, &entry, agent)
}

/// As [`sign_item`], with a key that lives elsewhere.
async fn sign_item_awaited(context: &Context, agent: &SpiffeId, item: wire::NewX509svidParams) -> Item {
    let now = context.clock.now();
    let (entry, key) = check_item(context, agent, &item, now)?;
    let request = X509SvidRequest::for_entry(&entry.spec);
    let signed = context.ca.sign_workload_x509(&request, key, now).await;
    signed_item(signed, &entry, agent)
}

fn signed_item(signed: Result<X509Svid, CaError>, entry: &Entry, agent: &SpiffeId) -> Item {
    let svid = signed.map_err(|error| sign_failed(&error))?;
    log_issued(&svid, entry, agent);
    Ok(x509_svid_to_wire(&svid))
}

fn check_item(
    context: &Context,
    agent: &SpiffeId,
    item: &wire::NewX509svidParams,
    now: SystemTime,
) -> Result<(Entry, PublicKey), Status> {
    if item.entry_id.is_empty() {
        return Err(invalid_argument("missing entry ID"));
    }
    if item.csr.is_empty() {
        return Err(invalid_argument("missing CSR"));
    }
    let entry = context.directory.authorized_entry(agent, &item.entry_id, unix_seconds(now));
    let entry = entry.ok_or_else(|| Status::not_found(NOT_AUTHORIZED))?;
    let csr = VerifiedCsr::from_der(&item.csr).map_err(|error| bad_csr(&error, "invalid CSR signature"))?;
    Ok((entry, csr.into_public_key()))
}

fn sign_failed(error: &CaError) -> Status {
    match error {
        // It expired between the look-up and the signature.
        CaError::EntryExpired => Status::not_found(NOT_AUTHORIZED),
        error => status::ca("failed to sign X509-SVID", error),
    }
}

fn bad_csr(error: &CsrError, signature: &str) -> Status {
    match error {
        CsrError::Signature => invalid(signature, error),
        error => invalid("malformed CSR", error),
    }
}

fn log_issued(svid: &X509Svid, entry: &Entry, agent: &SpiffeId) {
    tracing::info!(
        spiffe_id = %svid.id(),
        entry_id = %entry.id,
        agent_id = %agent,
        serial_num = %svid.serial_decimal(),
        expiration = unix_seconds(svid.not_after()),
        revision_number = entry.revision,
        "Signed X509 SVID"
    );
}

/// Signs a whole batch, in order.
async fn sign_batch(
    context: &Arc<Context>,
    agent: &SpiffeId,
    params: Vec<wire::NewX509svidParams>,
) -> Vec<Item> {
    if !context.ca.signs_inline() {
        let sign = |item| sign_item_awaited(context, agent, item);
        return stream::iter(params).map(sign).buffered(CHUNK).collect().await;
    }
    if params.len() <= INLINE {
        let now = context.clock.now();
        return params.iter().map(|item| sign_item(context, agent, item, now)).collect();
    }
    let mut results = Vec::with_capacity(params.len());
    let mut tasks = Vec::with_capacity(params.len().div_ceil(CHUNK));
    let mut params = params.into_iter();
    loop {
        let chunk: Vec<_> = params.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        let (context, agent) = (context.clone(), agent.clone());
        let size = chunk.len();
        let task = tokio::task::spawn_blocking(move || {
            let now = context.clock.now();
            chunk.iter().map(|item| sign_item(&context, &agent, item, now)).collect::<Vec<_>>()
        });
        tasks.push((size, task));
    }
    for (size, task) in tasks {
        match task.await {
            Ok(chunk) => results.extend(chunk),
            Err(_) => results.extend((0..size).map(|_| Err(Status::internal("failed to sign X509-SVID")))),
        }
    }
    results
}

fn audit_item(call: &Call, params: &(String, Option<String>), result: &Item) {
    let (code, message) = match result {
        Ok(_) => (Code::Ok, ""),
        Err(status) => (status.code(), status.message()),
    };
    call.audit_item(code, message, |fields| {
        let (entry_id, csr) = params.clone();
        fields.entry_id = Some(entry_id);
        fields.csr = csr;
        if let Ok(svid) = result {
            fields.spiffe_id = svid.id.as_ref().map(|id| format!("spiffe://{}{}", id.trust_domain, id.path));
            fields.expires_at = Some(svid.expires_at.to_string());
        }
    });
}

fn to_result(call: &Call, result: Item) -> wire::batch_new_x509svid_response::Result {
    match result {
        Ok(svid) => wire::batch_new_x509svid_response::Result { status: Some(item_ok()), svid: Some(svid) },
        Err(status) => {
            tracing::error!(
                service = call.method.service,
                method = call.method.name,
                status_code = ?status.code(),
                "{}",
                status.message()
            );
            wire::batch_new_x509svid_response::Result { status: Some(item(&status)), svid: None }
        }
    }
}

fn jwt_to_wire(svid: JwtSvid) -> types::Jwtsvid {
    types::Jwtsvid {
        id: Some(id_to_wire(&svid.id)),
        issued_at: unix_seconds(svid.issued_at),
        expires_at: unix_seconds(svid.expires_at),
        token: svid.token,
        hint: String::new(),
    }
}

fn seconds(ttl: i32) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or_default())
}

/// The workload that a CSR for minting names.
fn minted_id(csr: &VerifiedCsr, context: &Context) -> Result<SpiffeId, Status> {
    match csr.uri_sans() {
        [] => return Err(invalid_argument("CSR URI SAN is required")),
        [_] => {}
        _ => return Err(invalid_argument("only one URI SAN is expected")),
    }
    let id = csr.spiffe_id().map_err(|error| invalid("CSR URI SAN is invalid", error))?;
    require_workload(&id, &context.trust_domain).map_err(|error| invalid("CSR URI SAN is invalid", error))?;
    for name in csr.dns_sans() {
        check_dns_name(name).map_err(|rule| invalid("CSR DNS name is invalid", rule))?;
    }
    refuse_wildcard_overlap(csr.dns_sans())?;
    Ok(id)
}

/// A wildcard next to a name it covers says the same thing twice; SPIRE refuses that.
fn refuse_wildcard_overlap(names: &[String]) -> Result<(), Status> {
    let covered = |wildcard: &str, name: &str| {
        name.split_once('.').is_some_and(|(first, rest)| first != "*" && rest == wildcard)
    };
    for wildcard in names.iter().filter_map(|name| name.strip_prefix("*.")) {
        if let Some(name) = names.iter().find(|name| covered(wildcard, name)) {
            let text = format!(
                "name {name:?} overlaps with an existing wildcard name in the list: wildcard overlap"
            );
            return Err(invalid(
                "CSR DNS name contains a wildcard that covers another non-wildcard name",
                text,
            ));
        }
    }
    Ok(())
}

impl SvidApi {
    async fn sign_jwt(&self, request: &JwtSvidRequest<'_>) -> Result<JwtSvid, Status> {
        if request.audience.is_empty() {
            return Err(invalid_argument("at least one audience is required"));
        }
        check_audience_length(request.audience).map_err(|error| invalid_argument(&error.to_string()))?;
        let signed = self.0.ca.sign_jwt(request, self.0.clock.now()).await;
        signed.map_err(|error| match error {
            CaError::EntryExpired => Status::not_found(NOT_AUTHORIZED),
            error => status::ca("failed to sign JWT-SVID", &error),
        })
    }

    fn require_jwt(&self) -> Result<(), Status> {
        match self.0.ca.config().disable_jwt_svids {
            true => Err(Status::unimplemented("JWT functionality is disabled")),
            false => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Svid for SvidApi {
    async fn mint_x509svid(
        &self,
        request: Request<wire::MintX509svidRequest>,
    ) -> Result<Response<wire::MintX509svidResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        call.audit.add(|fields| {
            fields.csr = Some(hash_hex(&request.csr));
            fields.ttl = Some(request.ttl.into());
        });
        if request.csr.is_empty() {
            return Err(invalid_argument("missing CSR"));
        }
        let csr = VerifiedCsr::from_der(&request.csr);
        let csr = csr.map_err(|error| bad_csr(&error, "failed to verify CSR signature"))?;
        let id = minted_id(&csr, &self.0)?;
        let svid = self.0.ca.mint_x509(&id, &csr, seconds(request.ttl), self.0.clock.now()).await;
        let svid = svid.map_err(|error| status::ca("failed to sign X509-SVID", &error))?;
        call.audit.add(|fields| {
            fields.spiffe_id = Some(id.to_string());
            fields.dns_name = Some(csr.dns_sans().join(","));
            fields.subject = Some(csr.subject());
            fields.expires_at = Some(unix_seconds(svid.not_after()).to_string());
        });
        tracing::info!(
            spiffe_id = %id,
            serial_num = %svid.serial_decimal(),
            expiration = unix_seconds(svid.not_after()),
            authorized_as = call.role.name(),
            "Signed X509 SVID"
        );
        Ok(Response::new(wire::MintX509svidResponse { svid: Some(x509_svid_to_wire(&svid)) }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<wire::MintJwtsvidRequest>,
    ) -> Result<Response<wire::MintJwtsvidResponse>, Status> {
        self.require_jwt()?;
        let call = call_of(&request)?;
        let request = request.into_inner();
        call.audit.add(|fields| {
            fields.audience = Some(request.audience.join(","));
            fields.ttl = Some(request.ttl.into());
        });
        let id = workload_id(request.id.as_ref(), &self.0.trust_domain)
            .map_err(|error| invalid("invalid SPIFFE ID", error))?;
        call.audit.add(|fields| fields.spiffe_id = Some(id.to_string()));
        let request = JwtSvidRequest {
            id: &id,
            audience: &request.audience,
            ttl: seconds(request.ttl),
            include_jti: false,
            not_after_limit: None,
        };
        let svid = self.sign_jwt(&request).await?;
        tracing::info!(
            spiffe_id = %id,
            expiration = unix_seconds(svid.expires_at),
            authorized_as = call.role.name(),
            "Signed JWT SVID"
        );
        Ok(Response::new(wire::MintJwtsvidResponse { svid: Some(jwt_to_wire(svid)) }))
    }

    async fn mint_witsvid(
        &self,
        _: Request<wire::MintWitsvidRequest>,
    ) -> Result<Response<wire::MintWitsvidResponse>, Status> {
        Err(Status::unimplemented(NO_WIT))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<wire::BatchNewX509svidRequest>,
    ) -> Result<Response<wire::BatchNewX509svidResponse>, Status> {
        let call = call_of(&request)?;
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(invalid_argument("missing parameters"));
        }
        self.0.limit(&call, params.len(), "certificate signing rate limiting").await?;
        let agent = agent_of(&call)?;
        let audited: Vec<_> = match call.audit.is_on() {
            true => params.iter().map(|item| (item.entry_id.clone(), Some(hash_hex(&item.csr)))).collect(),
            false => Vec::new(),
        };
        let results = sign_batch(&self.0, &agent.id, params).await;
        for (params, result) in audited.iter().zip(&results) {
            audit_item(&call, params, result);
        }
        let results = results.into_iter().map(|result| to_result(&call, result)).collect();
        Ok(Response::new(wire::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<wire::NewJwtsvidRequest>,
    ) -> Result<Response<wire::NewJwtsvidResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        call.audit.add(|fields| {
            fields.entry_id = Some(request.entry_id.clone());
            fields.audience = Some(request.audience.join(","));
        });
        self.0.limit(&call, 1, "JWT signing request rate limiting").await?;
        self.require_jwt()?;
        let agent = agent_of(&call)?;
        let entry = self.0.directory.authorized_entry(&agent.id, &request.entry_id, self.0.now_unix());
        let entry = entry.ok_or_else(|| Status::not_found(NOT_AUTHORIZED))?;
        let svid = self.sign_jwt(&JwtSvidRequest::for_entry(&entry.spec, &request.audience)).await?;
        call.audit.add(|fields| {
            fields.spiffe_id = Some(entry.spec.spiffe_id.to_string());
            fields.ttl = Some(entry.spec.jwt_svid_ttl.into());
        });
        tracing::info!(
            spiffe_id = %entry.spec.spiffe_id,
            entry_id = %entry.id,
            agent_id = %agent.id,
            expiration = unix_seconds(svid.expires_at),
            "Signed JWT SVID"
        );
        Ok(Response::new(wire::NewJwtsvidResponse { svid: Some(jwt_to_wire(svid)) }))
    }

    async fn batch_new_witsvid(
        &self,
        _: Request<wire::BatchNewWitsvidRequest>,
    ) -> Result<Response<wire::BatchNewWitsvidResponse>, Status> {
        Err(Status::unimplemented(NO_WIT))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<wire::NewDownstreamX509caRequest>,
    ) -> Result<Response<wire::NewDownstreamX509caResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        call.audit.add(|fields| {
            fields.csr = Some(hash_hex(&request.csr));
            fields.trust_domain_id = Some(self.0.trust_domain.id().to_string());
        });
        self.0.limit(&call, 1, "downstream CA signing rate limit").await?;
        let entry = call.downstream.first();
        let entry = entry.ok_or_else(|| Status::internal("caller is not a downstream workload"))?;
        // The call may have waited in line since it was let in.
        let now = self.0.clock.now();
        let entries = self.0.directory.entries_with_spiffe_id(&entry.spec.spiffe_id, unix_seconds(now));
        let entry = entries.into_iter().find(|entry| entry.spec.downstream);
        let entry = entry.ok_or_else(|| Status::permission_denied("caller is not a downstream workload"))?;
        if request.csr.is_empty() {
            return Err(invalid_argument("missing CSR"));
        }
        let csr = VerifiedCsr::from_der(&request.csr);
        let csr = csr.map_err(|error| bad_csr(&error, "invalid CSR signature"))?;
        let limit = X509SvidRequest::for_entry(&entry.spec).not_after_limit;
        let signed =
            self.0.ca.sign_downstream_ca(csr.into_public_key(), seconds(request.preferred_ttl), limit, now);
        let ca = signed.await.map_err(|error| status::ca("failed to sign downstream X.509 CA", &error))?;
        tracing::info!(spiffe_id = %entry.spec.spiffe_id, entry_id = %entry.id, "Signed X509 CA SVID");
        let bundle = self.0.directory.bundle(&self.0.trust_domain);
        let bundle = bundle.ok_or_else(|| Status::not_found("bundle not found"))?;
        // Tainted ones too: the chain may lead to one still.
        let roots = bundle.x509_authorities.iter();
        Ok(Response::new(wire::NewDownstreamX509caResponse {
            ca_cert_chain: ca.chain,
            x509_authorities: roots.map(|root| root.der().to_vec()).collect(),
        }))
    }
}
