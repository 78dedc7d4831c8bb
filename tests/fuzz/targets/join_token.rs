//! The first message of an attestation, and the agent ID that a join token makes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use svid_core::id::SpiffeId;
use svid_proto::spire::api::server::agent::v1::AttestAgentRequest;
use svid_proto::spire::api::server::agent::v1::attest_agent_request::Step;

const TRUST_DOMAIN: &str = "example.org";

/// The server's rule: a token is one segment of a path.
fn agent_of(token: &[u8]) -> Option<SpiffeId> {
    let token = std::str::from_utf8(token).ok().filter(|token| !token.contains('/'))?;
    SpiffeId::from_parts(TRUST_DOMAIN, &format!("/spire/agent/join_token/{token}")).ok()
}

fn check(token: &[u8]) {
    let Some(id) = agent_of(token) else { return };
    assert!(id.is_agent(), "{id}");
    assert_eq!(id.path().split('/').count(), 5, "{id}");
    assert_eq!(id.trust_domain_name(), TRUST_DOMAIN);
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let Ok(request) = AttestAgentRequest::decode(bytes) else { return };
    if let Some(Step::Params(params)) = &request.step
        && let Some(data) = &params.data
    {
        check(&data.payload);
    }
    let again = AttestAgentRequest::decode(request.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(&request));
});

svid_fuzz::seeds!("join_token": "request", "slash", "token");
