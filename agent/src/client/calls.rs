//! The RPCs, one method each.

use async_trait::async_trait;
use svid_core::bundle::Bundle;
use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_core::x509::X509Svid;
use svid_proto::convert::{bundle_from_wire, id_from_wire};
use svid_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use svid_proto::spire::api::server::agent::v1::{AgentX509svidParams, PostStatusRequest, RenewAgentRequest};
use svid_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use svid_proto::spire::api::server::bundle::v1::{GetBundleRequest, GetFederatedBundleRequest};
use svid_proto::spire::api::server::svid::v1::batch_new_x509svid_response;
use svid_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use svid_proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use svid_proto::spire::api::types;
use tonic::transport::Channel;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::attest::read_chain;
use super::{ClientError, ServerClient};
use crate::cache::{JwtFetchError, JwtSource, JwtSvid};

/// What the server has for another trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FederatedBundle {
    /// This.
    Present(Bundle),
    /// Nothing, or nothing any more.
    Absent,
    /// Something that cannot be read: what was there before is still the best known.
    Malformed,
}

impl ServerClient {
    /// Tells the server which version this agent is.
    /// # Errors
    /// [`ClientError`].
    pub async fn post_status(&self, version: &str) -> Result<(), ClientError> {
        let request = PostStatusRequest { agent_version: version.to_owned(), ..Default::default() };
        self.call(|channel| async move { AgentClient::new(channel).post_status(request).await }).await?;
        Ok(())
    }

    /// A new SVID for the key in `csr`, for agents that cannot attest again.
    /// # Errors
    /// [`ClientError`].
    pub async fn renew_agent(&self, csr: Vec<u8>) -> Result<X509Svid, ClientError> {
        let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr }) };
        let answer =
            self.call(|channel| async move { AgentClient::new(channel).renew_agent(request).await }).await?;
        let svid = answer.into_inner().svid;
        let svid = svid.ok_or_else(|| ClientError::Malformed("renewal without SVID".into()))?;
        read_chain(svid.cert_chain)
    }

    /// The own trust domain's bundle.
    /// # Errors
    /// [`ClientError`].
    pub async fn bundle(&self) -> Result<Bundle, ClientError> {
        read_bundle(&self.call(get_bundle).await?, self.dialer().trust_domain())
    }

    /// The bundle of a trust domain that some entry federates with.
    /// # Errors
    /// [`ClientError`].
    pub async fn federated_bundle(&self, trust_domain: &TrustDomain) -> Result<FederatedBundle, ClientError> {
        let request = GetFederatedBundleRequest {
            trust_domain: trust_domain.as_str().to_owned(),
            ..Default::default()
        };
        let answer = self
            .call(|channel| async move { BundleClient::new(channel).get_federated_bundle(request).await });
        match answer.await {
            Ok(bundle) => Ok(read_bundle(bundle.get_ref(), trust_domain).map_or_else(
                |error| {
                    tracing::warn!(%error, %trust_domain, "Received malformed bundle from SPIRE server; are the server and agent versions compatible?");
                    FederatedBundle::Malformed
                },
                FederatedBundle::Present,
            )),
            Err(ClientError::Status { code: Code::NotFound, message }) => {
                tracing::warn!(error = %message, %trust_domain, "Federated bundle not found");
                Ok(FederatedBundle::Absent)
            }
            Err(error) => Err(error),
        }
    }

    /// SVIDs for these entries and CSRs; the results stand in the same order.
    /// # Errors
    /// [`ClientError`]; [`ClientError::Malformed`] if the number of results is another.
    pub async fn batch_new_x509_svid(
        &self,
        params: Vec<NewX509svidParams>,
    ) -> Result<Vec<batch_new_x509svid_response::Result>, ClientError> {
        let count = params.len();
        let request = BatchNewX509svidRequest { params };
        let answer = self
            .call(|channel| async move { SvidClient::new(channel).batch_new_x509svid(request).await })
            .await?;
        let results = answer.into_inner().results;
        if results.len() != count {
            let message = format!("{} results for {count} X.509-SVID requests", results.len());
            return Err(ClientError::Malformed(message));
        }
        Ok(results)
    }

    async fn new_jwt_svid(&self, entry: &EntryId, audience: &[String]) -> Result<JwtSvid, JwtFetchError> {
        let request = NewJwtsvidRequest { entry_id: entry.as_str().to_owned(), audience: audience.to_vec() };
        let answer =
            self.call(|channel| async move { SvidClient::new(channel).new_jwtsvid(request).await }).await;
        let answer = answer.map_err(|error| JwtFetchError::Server {
            code: error.code(),
            message: format!("failed to fetch JWT-SVID: {error}"),
        })?;
        read_jwt_svid(answer.into_inner().svid)
    }
}

pub(super) async fn get_bundle(channel: Channel) -> Result<types::Bundle, Status> {
    Ok(BundleClient::new(channel).get_bundle(GetBundleRequest::default()).await?.into_inner())
}

/// The bundle of `trust_domain` from a server of ours or of SPIRE, which says of its authorities which ones are
/// tainted. Another trust domain's is refused: its authorities must not speak for this one.
pub(super) fn read_bundle(wire: &types::Bundle, trust_domain: &TrustDomain) -> Result<Bundle, ClientError> {
    let mut bundle = bundle_from_wire(wire).map_err(|error| ClientError::Malformed(error.to_string()))?;
    if bundle.trust_domain != *trust_domain {
        let message = format!("the bundle is that of {}, not of {trust_domain}", bundle.trust_domain);
        return Err(ClientError::Malformed(message));
    }
    let tainted = wire.x509_authorities.iter().filter(|authority| authority.tainted);
    let tainted: Vec<&[u8]> = tainted.map(|authority| authority.asn1.as_slice()).collect();
    for authority in &mut bundle.x509_authorities {
        authority.tainted = tainted.contains(&authority.der());
    }
    for authority in &mut bundle.jwt_authorities {
        let is_same = |key: &&types::JwtKey| key.key_id == authority.key_id;
        authority.tainted = wire.jwt_authorities.iter().find(is_same).is_some_and(|key| key.tainted);
    }
    Ok(bundle)
}

fn read_jwt_svid(svid: Option<types::Jwtsvid>) -> Result<JwtSvid, JwtFetchError> {
    let svid = svid.ok_or(JwtFetchError::Malformed("missing SVID"))?;
    if svid.issued_at == 0 {
        return Err(JwtFetchError::Malformed("missing issued at"));
    }
    if svid.expires_at == 0 {
        return Err(JwtFetchError::Malformed("missing expires at"));
    }
    if svid.expires_at < svid.issued_at {
        return Err(JwtFetchError::Malformed("issued after it has expired"));
    }
    let id = id_from_wire(svid.id.as_ref()).map_err(|_| JwtFetchError::Malformed("invalid SPIFFE ID"))?;
    Ok(JwtSvid {
        token: Zeroizing::new(svid.token),
        id,
        issued_at: svid.issued_at,
        expires_at: svid.expires_at,
    })
}

#[async_trait]
impl JwtSource for ServerClient {
    fn is_reachable(&self) -> bool {
        self.is_connected()
    }

    async fn fetch(&self, entry: &EntryId, audience: &[String]) -> Result<JwtSvid, JwtFetchError> {
        let mut backoff = crate::backoff::Backoff::new(JWT_RETRY, JWT_RETRY_MAX);
        loop {
            match self.new_jwt_svid(entry, audience).await {
                Err(JwtFetchError::Server { code, .. }) if may_succeed_later(code) => backoff.wait().await,
                result => return result,
            }
        }
    }
}

const JWT_RETRY: std::time::Duration = std::time::Duration::from_secs(1);
const JWT_RETRY_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Which codes are worth another try. Source: SPIRE's agent, which also repeats refusals.
fn may_succeed_later(code: Code) -> bool {
    !matches!(
        code,
        Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::InvalidArgument
            | Code::Unimplemented
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use svid_proto::convert::bundle_to_wire;

    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn only_the_trust_domain_that_was_asked_for() {
        let ca = TestCa::new("example.org");
        let wire = bundle_to_wire(&ca.bundle());
        assert_eq!(read_bundle(&wire, &ca.trust_domain).unwrap().trust_domain, ca.trust_domain);
        let refused = read_bundle(&wire, &"other.org".parse().unwrap()).unwrap_err();
        assert!(
            matches!(&refused, ClientError::Malformed(message) if message.contains("example.org, not of other.org"))
        );
    }
}
