//! `FetchJWTSVID`, `FetchJWTBundles` and `ValidateJWTSVID`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use svid_core::bundle::Bundle;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::jwt;
use svid_proto::workload::{
    JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};
use tonic::{Response, Status};

use super::bundles::BundleStream;
use super::{Responses, WorkloadApi, hints};
use crate::caller::Connection;

pub(crate) const FETCH_JWT_SVID: &str = "/SpiffeWorkloadAPI/FetchJWTSVID";
pub(crate) const FETCH_JWT_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchJWTBundles";
/// How far a verifier's clock may be off. Source: go-jose's default, which SPIRE uses.
const LEEWAY: Duration = Duration::from_secs(60);
/// Claims that a token of a foreign trust domain always shows.
const OPEN_CLAIMS: [&str; 3] = ["sub", "exp", "aud"];

impl WorkloadApi {
    /// `FetchJWTSVID`: one for each of the caller's identities, or for the one it names.
    pub(crate) async fn fetch_jwt_svid(
        &self,
        caller: Arc<Connection>,
        request: JwtsvidRequest,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        // Tokens are kept, and one caller's must not fill the memory that all share.
        jwt::check_audience_length(&request.audience)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let wanted = wanted_id(&request.spiffe_id)?;
        let selectors = self.gate.admit(&caller, FETCH_JWT_SVID).await?;
        // The filter comes before the choice, as in SPIRE: an identity that lost its hint cannot be asked for.
        let entries = hints::unique(self.gate.source.matching_entries(&selectors), |entry| entry);
        let mut svids = Vec::new();
        for entry in entries.iter().filter(|entry| wanted.as_ref().is_none_or(|id| *id == entry.spiffe_id)) {
            let svid = self.gate.source.jwt_svid(entry, &request.audience).await.map_err(|err| {
                tracing::error!(pid = caller.pid(), spiffe_id = %entry.spiffe_id, error = %err, "Could not fetch JWT-SVID");
                Status::unavailable(format!("could not fetch JWT-SVID: {err}"))
            })?;
            svids.push(Jwtsvid {
                spiffe_id: entry.spiffe_id.to_string(),
                svid: svid.token.as_str().to_owned(),
                hint: entry.hint.clone(),
            });
        }
        if svids.is_empty() {
            return Err(self.gate.no_identity(&caller, &selectors));
        }
        self.gate.recheck(&caller)?;
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    /// `FetchJWTBundles`.
    pub(crate) async fn fetch_jwt_bundles(
        &self,
        caller: Arc<Connection>,
    ) -> Result<Response<Responses<JwtBundlesResponse>>, Status> {
        let jwks = |bundle: &Bundle| jwt::jwks_json(bundle).into_bytes();
        let stream = BundleStream::open(self, caller, FETCH_JWT_BUNDLES, jwks).await?;
        Ok(Response::new(
            stream.into_responses(|bundles| JwtBundlesResponse { bundles: bundles.into_iter().collect() }),
        ))
    }

    /// `ValidateJWTSVID`: works without an identity, with the own bundle and those the caller's identities federate
    /// with.
    pub(crate) async fn validate_jwt_svid(
        &self,
        caller: Arc<Connection>,
        request: ValidateJwtsvidRequest,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        if request.svid.is_empty() {
            return Err(Status::invalid_argument("svid must be specified"));
        }
        let selectors = self.gate.attest(&caller).await?;
        let update = self.gate.source.current(&selectors);
        let bundles = std::iter::once(&update.bundle).chain(update.federated.values());
        let keys: HashMap<TrustDomain, Arc<Bundle>> =
            bundles.map(|bundle| (bundle.trust_domain.clone(), Arc::clone(bundle))).collect();
        let audience = [request.audience];
        let valid = jwt::validate(&request.svid, &keys, &audience, self.options.clock.now(), LEEWAY)
            .map_err(|err| {
                tracing::warn!(pid = caller.pid(), error = %err, "Failed to validate JWT");
                Status::invalid_argument(err.to_string())
            })?;
        let id = valid.id().clone();
        let claims = self.visible_claims(&id, valid.into_claims());
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: id.to_string(),
            claims: Some(to_struct(claims)),
        }))
    }

    /// All claims of the own trust domain's tokens; of others only what everybody may see, and what is configured.
    fn visible_claims(
        &self,
        id: &SpiffeId,
        mut claims: serde_json::Map<String, Value>,
    ) -> serde_json::Map<String, Value> {
        if !id.is_member_of(&self.options.trust_domain) {
            let allowed = &self.options.allowed_foreign_jwt_claims;
            claims.retain(|name, _| OPEN_CLAIMS.contains(&name.as_str()) || allowed.contains(name));
        }
        if let Some(audience @ Value::String(_)) = claims.get_mut("aud") {
            *audience = Value::Array(vec![audience.take()]);
        }
        claims
    }
}

fn wanted_id(text: &str) -> Result<Option<SpiffeId>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|err| Status::invalid_argument(format!("invalid requested SPIFFE ID: {err}")))
}

fn to_struct(claims: serde_json::Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: claims.into_iter().map(|(name, value)| (name, to_value(value))).collect() }
}

/// Depth is bounded by the parser that made the value.
fn to_value(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(to_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}
