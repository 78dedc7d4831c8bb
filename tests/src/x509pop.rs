//! The agent's half of the x509pop dialogue by hand, so that it can also be done wrongly.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use svid_proto::spire::api::server::agent::v1::{self as wire, agent_client::AgentClient};
use svid_proto::spire::api::types::AttestationData;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::client::{AttestedAgent, ClientCert, key_and_csr};

/// Attests with the certificates that `chain` holds (DER, leaf first) and signs with `key` (PKCS#8, P-256), whether
/// or not they belong together.
/// # Errors
/// The server's refusal.
pub async fn attest(channel: Channel, chain: &[Vec<u8>], key: &[u8]) -> Result<AttestedAgent, Status> {
    let certificates: Vec<String> = chain.iter().map(|der| STANDARD.encode(der)).collect();
    let payload = json!({ "certificates": certificates }).to_string().into_bytes();
    let (svid_key, csr) = key_and_csr();
    let data = AttestationData { r#type: "x509pop".into(), payload };
    let params = wire::attest_agent_request::Params {
        data: Some(data),
        params: Some(wire::AgentX509svidParams { csr }),
    };
    let (requests, stream) = mpsc::channel(2);
    let send = async |step| {
        let request = wire::AttestAgentRequest { step: Some(step) };
        requests.send(request).await.map_err(|_| Status::internal("the stream ended"))
    };
    send(wire::attest_agent_request::Step::Params(params)).await?;
    let mut answers = AgentClient::new(channel).attest_agent(ReceiverStream::new(stream)).await?.into_inner();
    loop {
        let answer = answers.message().await?.ok_or_else(|| Status::internal("no result"))?;
        match answer.step {
            Some(wire::attest_agent_response::Step::Challenge(challenge)) => {
                let response = respond(&challenge, key);
                send(wire::attest_agent_request::Step::ChallengeResponse(response)).await?;
            }
            Some(wire::attest_agent_response::Step::Result(result)) => {
                let svid = result.svid.ok_or_else(|| Status::internal("no SVID"))?;
                let id = svid.id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path));
                let cert = ClientCert { chain: svid.cert_chain, key: svid_key };
                return Ok(AttestedAgent { cert, id: id.unwrap_or_default() });
            }
            None => return Err(Status::internal("an empty step")),
        }
    }
}

fn respond(challenge: &[u8], key: &[u8]) -> Vec<u8> {
    let challenge: Value = serde_json::from_slice(challenge).expect("JSON");
    let nonce = challenge["ecdsa_signature"]["nonce"].as_str().expect("an ECDSA challenge");
    let own = [7u8; 32];
    // The signature's own hash is the one over both nonces.
    let signed = [STANDARD.decode(nonce).expect("base64").as_slice(), &own].concat();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key).expect("a P-256 key");
    let signature = pair.sign(&SystemRandom::new(), &signed).expect("sign");
    let (r, s) = signature.as_ref().split_at(32);
    let [nonce, r, s] = [&own[..], r, s].map(|bytes| STANDARD.encode(bytes));
    json!({ "ecdsa_signature": { "nonce": nonce, "r": r, "s": s } }).to_string().into_bytes()
}
