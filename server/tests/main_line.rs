//! The main line over real sockets: entry, attestation, sync, SVIDs, push, ban.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use svid_core::key::{KeyType, LocalKey};
use svid_core::x509::csr::make_csr;
use svid_daemon::net::{tls_channel, unix_channel};
use svid_daemon::tls::{Identity, ServerTrust, SpiffeServerVerifier, TlsPolicy, client_config};
use svid_proto::google::rpc;
use svid_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use svid_proto::spire::api::server::agent::v1::{self as agent, attest_agent_request, attest_agent_response};
use svid_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use svid_proto::spire::api::server::entry::v1::{self as entry};
use svid_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use svid_proto::spire::api::server::svid::v1::{self as svid};
use svid_proto::spire::api::types;
use svid_proto::svid::sync::v1::WatchRequest;
use svid_proto::svid::sync::v1::sync_client::SyncClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.path().join("server.conf");
        std::fs::write(&config, text(dir.path(), port)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_svid-server"))
            .arg("run")
            .arg("-config")
            .arg(&config)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, dir, port };
        // The socket is there before the port answers, and both before the first RPC does.
        while !server.dir.path().join("run/api.sock").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server
    }

    fn local(&self) -> Channel {
        unix_channel(self.dir.path().join("run/api.sock"))
    }

    fn remote(&self, identity: Option<&Identity>) -> Channel {
        let verifier =
            SpiffeServerVerifier::new("example.org".parse().unwrap(), ServerTrust::InsecureBootstrap);
        let config = client_config(identity, Arc::new(verifier), TlsPolicy::default()).unwrap();
        tls_channel(format!("127.0.0.1:{}", self.port), move || config.clone())
    }
}

fn text(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "server {{
            bind_address = \"127.0.0.1\"
            bind_port = {port}
            trust_domain = \"example.org\"
            data_dir = \"{dir}/data\"
            socket_path = \"{dir}/run/api.sock\"
            ratelimit {{ attestation = false }}
        }}
        plugins {{
            DataStore \"sql\" {{ plugin_data {{
                database_type = \"sqlite3\", connection_string = \"{dir}/data/datastore.sqlite3\"
            }} }}
            KeyManager \"memory\" {{ plugin_data {{}} }}
            NodeAttestor \"join_token\" {{ plugin_data {{}} }}
        }}"
    )
}

fn csr(key: &LocalKey) -> Vec<u8> {
    make_csr(key, None, &[]).unwrap()
}

fn id(path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: "example.org".into(), path: path.into() }
}

fn web(parent: &types::Spiffeid, name: &str) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id(name)),
        parent_id: Some(parent.clone()),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1".into() }],
        ..Default::default()
    }
}

async fn attest(channel: Channel, token: &str, key: &LocalKey) -> Result<types::X509svid, Status> {
    let params = attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: "join_token".into(), payload: token.into() }),
        params: Some(agent::AgentX509svidParams { csr: csr(key) }),
    };
    let request = agent::AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) };
    let mut answers = AgentClient::new(channel).attest_agent(tokio_stream::once(request)).await?.into_inner();
    match answers.message().await?.and_then(|answer| answer.step) {
        Some(attest_agent_response::Step::Result(result)) => Ok(result.svid.unwrap()),
        other => panic!("no result: {other:?}"),
    }
}

async fn create(channel: Channel, entry: types::Entry) -> types::Entry {
    let request = entry::BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let mut results =
        EntryClient::new(channel).batch_create_entry(request).await.unwrap().into_inner().results;
    let result = results.remove(0);
    assert_eq!(result.status.unwrap().code, 0);
    result.entry.unwrap()
}

fn reason(status: &Status) -> types::permission_denied_details::Reason {
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let details = rpc::Status::decode(status.details()).unwrap().details;
    types::PermissionDeniedDetails::decode(details[0].value.as_slice()).unwrap().reason()
}

#[tokio::test]
async fn an_entry_becomes_an_svid_until_the_agent_is_banned() {
    let server = Server::start().await;
    let mut admin = AgentClient::new(server.local());
    let token = admin.create_join_token(agent::CreateJoinTokenRequest { ttl: 60, ..Default::default() });
    let token = token.await.unwrap().into_inner().value;
    let agent_id = id(&format!("/spire/agent/join_token/{token}"));
    let created = create(server.local(), web(&agent_id, "/web")).await;

    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let svid = attest(server.remote(None), &token, &key).await.unwrap();
    assert_eq!(svid.id.as_ref(), Some(&agent_id));
    let other = LocalKey::generate(KeyType::EcP256).unwrap();
    let again = attest(server.remote(None), &token, &other).await.expect_err("a token is good once");
    assert_eq!(again.code(), Code::InvalidArgument);
    assert_eq!(again.message(), "failed to attest: join token does not exist or has already been used");

    let pkcs8 = key.private_key().secret_bytes();
    let identity = Identity::from_pkcs8(svid.cert_chain.iter().map(Vec::as_slice), pkcs8).unwrap();
    let channel = server.remote(Some(&identity));
    let mut entries = EntryClient::new(channel.clone());
    let sync = tokio_stream::once(entry::SyncAuthorizedEntriesRequest::default());
    let mut answers = entries.sync_authorized_entries(sync).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().entries, std::slice::from_ref(&created));
    let listed =
        entries.list_entries(entry::ListEntriesRequest::default()).await.expect_err("an agent is no admin");
    assert_eq!(listed.code(), Code::PermissionDenied);

    let mut svids = SvidClient::new(channel.clone());
    let workload = LocalKey::generate(KeyType::EcP256).unwrap();
    let params = |entry_id: &str| svid::NewX509svidParams { entry_id: entry_id.into(), csr: csr(&workload) };
    let params = (0..9).map(|_| params(&created.id)).chain([params("other")]).collect();
    let batch =
        svids.batch_new_x509svid(svid::BatchNewX509svidRequest { params }).await.unwrap().into_inner();
    let (last, good) = batch.results.split_last().unwrap();
    assert!(good.iter().all(|result| result.svid.as_ref().is_some_and(|svid| svid.id == Some(id("/web")))));
    let status = last.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (5, "entry not found or not authorized"));
    let request = svid::NewJwtsvidRequest { entry_id: created.id.clone(), audience: vec!["db".into()] };
    assert!(svids.new_jwtsvid(request.clone()).await.unwrap().into_inner().svid.is_some());

    let mut watch = SyncClient::new(channel).watch(WatchRequest::default()).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert!(first.snapshot && first.revisions.len() == 1, "{first:?}");
    let pushed = create(server.local(), web(&agent_id, "/pushed")).await;
    while watch.message().await.unwrap().unwrap().upserts != [pushed.clone()] {}

    admin.ban_agent(agent::BanAgentRequest { id: Some(agent_id) }).await.unwrap();
    let ended = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), types::permission_denied_details::Reason::AgentBanned);
    let refused = svids.new_jwtsvid(request).await.expect_err("banned");
    assert_eq!(reason(&refused), types::permission_denied_details::Reason::AgentBanned);
}
