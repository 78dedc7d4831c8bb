//! Node attestation: a connection of its own, without a certificate.

use svid_core::bundle::Bundle;
use svid_core::id::TrustDomain;
use svid_core::x509::{CertChain, X509Svid};
use svid_plugin_api::AgentNodeAttestor;
use svid_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use svid_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, attest_agent_request, attest_agent_response,
};
use svid_proto::spire::api::types::AttestationData;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::dial::Connection;
use super::{ClientError, Dialer, RPC_TIMEOUT, SharedRoots, calls};

/// What an attestation brings.
#[derive(Clone, Debug)]
pub struct Attested {
    /// The agent's new SVID.
    pub svid: X509Svid,
    /// The node may attest again at any time.
    pub reattestable: bool,
}

/// A connection for one attestation.
pub struct AttestChannel {
    connection: Connection,
    trust_domain: TrustDomain,
}

type Response = svid_proto::spire::api::server::agent::v1::AttestAgentResponse;

impl AttestChannel {
    /// Connects; `roots` of `None` takes the server's word (insecure bootstrap).
    /// # Errors
    /// [`ClientError::UnknownAuthority`] and [`ClientError::Connect`].
    pub async fn connect(dialer: &Dialer, roots: Option<&SharedRoots>) -> Result<Self, ClientError> {
        let connection = dialer.connect(roots, None).await?;
        Ok(Self { connection, trust_domain: dialer.trust_domain().clone() })
    }

    /// Whose server this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Attests with `attestor`; `csr` carries the new key.
    /// # Errors
    /// [`ClientError`].
    pub async fn attest(
        &self,
        attestor: &dyn AgentNodeAttestor,
        csr: Vec<u8>,
    ) -> Result<Attested, ClientError> {
        let timed = tokio::time::timeout(RPC_TIMEOUT, self.attest_slowly(attestor, csr));
        timed.await.map_err(|_| ClientError::Timeout(RPC_TIMEOUT))?
    }

    async fn attest_slowly(
        &self,
        attestor: &dyn AgentNodeAttestor,
        csr: Vec<u8>,
    ) -> Result<Attested, ClientError> {
        let mut session = attestor.begin().await?;
        if session.payload().is_empty() {
            return Err(ClientError::Malformed("the node attestor has no payload".into()));
        }
        let data =
            AttestationData { r#type: attestor.name().to_owned(), payload: session.payload().to_vec() };
        let params =
            attest_agent_request::Params { data: Some(data), params: Some(AgentX509svidParams { csr }) };
        let (requests, stream) = mpsc::channel(1);
        let first = AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) };
        // There is room for one, and the receiver is alive.
        let _ = requests.send(first).await;
        let answer =
            AgentClient::new(self.connection.channel.clone()).attest_agent(ReceiverStream::new(stream)).await;
        let mut answers: Streaming<Response> = answer.map_err(|status| self.judge(&status))?.into_inner();
        loop {
            let answer = answers.message().await.map_err(|status| self.judge(&status))?;
            let step = answer.and_then(|answer| answer.step);
            match step {
                Some(attest_agent_response::Step::Challenge(challenge)) => {
                    let response = session.respond(&challenge).await?;
                    let step = attest_agent_request::Step::ChallengeResponse(response);
                    // A server that hung up says why in the next answer.
                    let _ = requests.send(AttestAgentRequest { step: Some(step) }).await;
                }
                Some(attest_agent_response::Step::Result(result)) => return read_result(result),
                None => return Err(ClientError::Malformed("attestation ended without a result".into())),
            }
        }
    }

    /// The server's bundle, over the same connection.
    /// # Errors
    /// [`ClientError`].
    pub async fn bundle(&self) -> Result<Bundle, ClientError> {
        let timed = tokio::time::timeout(RPC_TIMEOUT, calls::get_bundle(self.connection.channel.clone()));
        let bundle = timed.await.map_err(|_| ClientError::Timeout(RPC_TIMEOUT))?;
        calls::read_bundle(&bundle.map_err(|status| self.judge(&status))?, &self.trust_domain)
    }

    fn judge(&self, status: &Status) -> ClientError {
        match self.connection.last_error.take() {
            Some(error) => error.into(),
            None => ClientError::from_status(status),
        }
    }
}

fn read_result(result: attest_agent_response::Result) -> Result<Attested, ClientError> {
    let svid = result.svid.ok_or_else(|| ClientError::Malformed("attestation result without SVID".into()))?;
    Ok(Attested { svid: read_chain(svid.cert_chain)?, reattestable: result.reattestable })
}

/// An agent's chain from the wire.
pub(super) fn read_chain(certs: Vec<Vec<u8>>) -> Result<X509Svid, ClientError> {
    let chain = CertChain::from_certs(certs).map_err(|error| ClientError::Malformed(error.to_string()))?;
    X509Svid::parse(chain).map_err(|error| ClientError::Malformed(error.to_string()))
}
