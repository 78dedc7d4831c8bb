//! Requests that a browser could be tricked into: without the security header nothing is said.
//! Conformance rows: `workload_api_grpc` wa-01 to wa-21 in `vectors.json`; WE 3 and 6.

use svid_tests::calls::{SECURITY_HEADER, call, fetch_x509};
use svid_tests::{Agent, Server, client, until};
use tonic::Code;

const RPCS: &[&str] =
    &["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_the_header() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    server.entry("/me", &format!("unix:uid:{}", nix::unistd::geteuid()), &[]).await;
    let channel = client::unix(&agent.socket()).await;
    until("an SVID", || async { fetch_x509(&channel).await.is_ok() }).await;
    let name = SECURITY_HEADER.0;
    let wrong: &[&[(&str, &str)]] = &[
        &[],
        &[(name, "false")],
        &[(name, "")],
        &[(name, "1")],
        &[(name, "True")],
        &[(name, "false"), (name, "true")],
        &[(name, "true"), (name, "false")],
        &[("broker.spiffe.io", "true")],
    ];
    for rpc in RPCS {
        let path = format!("/SpiffeWorkloadAPI/{rpc}");
        for metadata in wrong {
            let status = call(&channel, &path, metadata).await.expect_err(rpc);
            assert_eq!(status.code(), Code::InvalidArgument, "{rpc} {metadata:?}: {status}");
            assert_eq!(status.message(), "security header missing from request", "{rpc} {metadata:?}");
        }
    }
    let more = [SECURITY_HEADER, ("x-other", "1"), ("authorization", "Bearer x")];
    call(&channel, "/SpiffeWorkloadAPI/FetchX509SVID", &more).await.expect("other metadata is ignored");
    let status = call(&channel, "/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID", &[SECURITY_HEADER]).await;
    assert_eq!(status.expect_err("no such service").code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_an_entry() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    let channel = client::unix(&agent.socket()).await;
    for rpc in ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"] {
        let status = call(&channel, &format!("/SpiffeWorkloadAPI/{rpc}"), &[SECURITY_HEADER]).await;
        let status = status.expect_err(rpc);
        // The Rust `spiffe` crate reads these words.
        assert_eq!(
            (status.code(), status.message()),
            (Code::PermissionDenied, "no identity issued"),
            "{rpc}"
        );
    }
}
