//! Who may call what, asked of the real port: every RPC, by every kind of caller. Source: `spire-server.md`, 1.4.

use svid_proto::rpc::all_methods;
use svid_tests::Server;
use svid_tests::calls::{attested, call, mint};
use svid_tests::client::{careless_tls, tls};
use tonic::Code;
use tonic::transport::Channel;

/// Open to all, even without a certificate.
const ANYBODY: &[&str] = &["agent.v1.Agent/AttestAgent", "bundle.v1.Bundle/GetBundle"];
/// Besides, to attested agents.
const AGENTS: &[&str] = &[
    "agent.v1.Agent/RenewAgent",
    "agent.v1.Agent/PostStatus",
    "bundle.v1.Bundle/GetFederatedBundle",
    "entry.v1.Entry/GetAuthorizedEntries",
    "entry.v1.Entry/SyncAuthorizedEntries",
    "svid.v1.SVID/BatchNewX509SVID",
    "svid.v1.SVID/NewJWTSVID",
    "svid.v1.SVID/BatchNewWITSVID",
    "svid.sync.v1.Sync/Watch",
];
/// Besides, to holders of downstream entries.
const DOWNSTREAM: &[&str] = &[
    "bundle.v1.Bundle/PublishJWTAuthority",
    "bundle.v1.Bundle/PublishWITAuthority",
    "svid.v1.SVID/NewDownstreamX509CA",
];
/// On the admin socket only.
const LOCAL: &[&str] =
    &["spire.api.server.logger.v1.", "spire.api.server.debug.v1.", "grpc.health.v1.", "svid.status.v1."];

fn short(path: &str) -> &str {
    let path = path.trim_start_matches('/');
    path.strip_prefix("spire.api.server.").unwrap_or(path)
}

/// Calls everything; `allowed` says what must not be denied.
async fn check(who: &str, channel: &Channel, allowed: impl Fn(&str) -> bool) {
    let served = ["spire.api.server.", "svid.sync.v1."];
    let mut wrong = Vec::new();
    for method in all_methods() {
        let code = match call(channel, &method.full, &[]).await {
            Ok(()) => Code::Ok,
            Err(status) => status.code(),
        };
        let path = method.full.trim_start_matches('/');
        let is_local = LOCAL.iter().any(|prefix| path.starts_with(prefix));
        let is_served = served.iter().any(|prefix| path.starts_with(prefix)) && !is_local;
        let right = match () {
            () if !is_served => code == Code::Unimplemented,
            () if allowed(short(path)) => {
                !matches!(code, Code::PermissionDenied | Code::Unknown | Code::Unavailable)
            }
            () => code == Code::PermissionDenied,
        };
        if !right {
            wrong.push(format!("{path}: {code:?}"));
        }
    }
    assert!(wrong.is_empty(), "{who}:\n{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_by_every_kind_of_caller() {
    let server = Server::start().await;
    let nobody = tls(server.port, careless_tls(None)).await.expect("connect");
    check("nobody", &nobody, |path| ANYBODY.contains(&path)).await;

    let workload = tls(server.port, careless_tls(Some(&mint(&server, "/web").await))).await.expect("connect");
    check("a workload", &workload, |path| ANYBODY.contains(&path)).await;

    let (_agent, agent) = attested(&server).await;
    check("an agent", &agent, |path| ANYBODY.contains(&path) || AGENTS.contains(&path)).await;

    server.entry("/down", "unix:uid:1", &["-downstream"]).await;
    let downstream =
        tls(server.port, careless_tls(Some(&mint(&server, "/down").await))).await.expect("connect");
    check("a downstream server", &downstream, |path| ANYBODY.contains(&path) || DOWNSTREAM.contains(&path))
        .await;

    server.entry("/admin", "unix:uid:1", &["-admin"]).await;
    let admin = tls(server.port, careless_tls(Some(&mint(&server, "/admin").await))).await.expect("connect");
    let only_agents = |path: &str| AGENTS.contains(&path) && path != "bundle.v1.Bundle/GetFederatedBundle";
    check("an admin", &admin, |path| !only_agents(path) && !DOWNSTREAM.contains(&path)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_is_one_no_longer_when_its_entry_is_gone() {
    let server = Server::start().await;
    let id = server.entry("/admin", "unix:uid:1", &["-admin"]).await;
    let admin = tls(server.port, careless_tls(Some(&mint(&server, "/admin").await))).await.expect("connect");
    let list = "/spire.api.server.agent.v1.Agent/ListAgents";
    call(&admin, list, &[]).await.expect("an admin");
    server.cli(&["entry", "delete", "-entryID", &id]).await.ok();
    // The admin command returned, so the open connection is judged by the new state.
    let status = call(&admin, list, &[]).await.expect_err("no admin");
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}
