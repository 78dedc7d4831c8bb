//! An authority that is tainted, and then revoked, under the feet of its agents.

use svid_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, RenewAgentRequest, agent_client::AgentClient,
};
use svid_tests::Server;
use svid_tests::calls::{attested, call};
use svid_tests::client::{AttestedAgent, ClientCert, careless_tls, key_and_csr, tls};
use tonic::Code;

use super::{ENTRIES, end_of, status, watch};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_authority_ends_what_it_vouched_for() {
    let server = Server::start().await;
    let (late, open) = attested(&server).await;
    let (quick, before) = attested(&server).await;
    let authority = async |field: &str| {
        let status = status(&server).await;
        status["server"]["servers"][0][field].as_str().expect("an ID").to_owned()
    };
    let old = authority("x509_active").await;
    server.cli(&["localauthority", "x509", "prepare"]).await.ok();
    let next = authority("x509_prepared").await;
    server.cli(&["localauthority", "x509", "activate", "-authorityID", &next]).await.ok();
    let stream = watch(&open).await;

    // Tainted: told to renew, and served meanwhile.
    server.cli(&["localauthority", "x509", "taint", "-authorityID", &old]).await.ok();
    for channel in [&open, &before, &late.channel(&server).await] {
        call(channel, ENTRIES, &[]).await.expect("served");
    }
    let (key, csr) = key_and_csr();
    let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr }) };
    let renewed = AgentClient::new(before.clone()).renew_agent(request).await.expect("renewed").into_inner();
    let chain = renewed.svid.expect("an SVID").cert_chain;
    let quick = AttestedAgent { cert: ClientCert { chain, key }, id: quick.id };
    let after = quick.channel(&server).await;
    call(&after, ENTRIES, &[]).await.expect("served");

    // Revoked: what it signed counts for nothing, on open streams and connections too.
    server.cli(&["localauthority", "x509", "revoke", "-authorityID", &old]).await.ok();
    assert_eq!(end_of(stream).await.code(), Code::Unauthenticated);
    for channel in [&open, &before] {
        let refused = call(channel, ENTRIES, &[]).await.expect_err("revoked");
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        assert!(refused.details().is_empty(), "an agent would drop its identity");
    }
    // On a new connection the handshake fails, which the client may see only with its first call.
    if let Ok(channel) = tls(server.port, careless_tls(Some(&late.cert))).await {
        call(&channel, ENTRIES, &[]).await.expect_err("no handshake");
    }
    call(&after, ENTRIES, &[]).await.expect("signed by its successor");
}
