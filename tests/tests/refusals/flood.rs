//! Hostile callers of the TCP port. While they are at it every honest agent is answered.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::ServerName;
use svid_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, RenewAgentRequest, agent_client::AgentClient,
};
use svid_proto::spire::api::server::entry::v1::{
    ListEntriesRequest, entry_client::EntryClient, list_entries_request,
};
use svid_proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewX509svidParams, svid_client::SvidClient,
};
use svid_proto::spire::api::types::{Selector, SelectorMatch};
use svid_tests::calls::{attested, call, mint};
use svid_tests::client::{AttestedAgent, careless_tls, key_and_csr, tls};
use svid_tests::{PATIENCE, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tonic::Code;

use crate::wire::{self, rsa_csr};

/// Where the attackers are: honest agents have another address.
const HOSTILE: &str = "127.0.0.2:0";
/// Connections without a certificate that one address may have.
const CAP: usize = 512;

async fn connect(port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(HOSTILE.parse().expect("an address")).expect("bind");
    socket.connect(([127, 0, 0, 1], port).into()).await.expect("connect")
}

async fn connect_tls(port: u16) -> std::io::Result<TlsStream<TcpStream>> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(careless_tls(None)));
    connector.connect(ServerName::try_from("x").expect("a name"), connect(port).await).await
}

/// An honest agent's work: new connections and signatures, each of which must succeed.
async fn honest(server: &Server, agent: &AttestedAgent, entry: &str) {
    for _ in 0..30 {
        let channel = agent.channel(server).await;
        call(&channel, "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", &[])
            .await
            .expect("answered");
        for _ in 0..5 {
            let params = vec![NewX509svidParams { entry_id: entry.to_owned(), csr: key_and_csr().1 }];
            let request = BatchNewX509svidRequest { params };
            let answer =
                SvidClient::new(channel.clone()).batch_new_x509svid(request).await.expect("answered");
            assert!(answer.into_inner().results[0].svid.is_some());
        }
    }
}

type Attack<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Runs the attack over and over until the honest agent has done its work, and at least once to its end.
async fn during<'a>(server: &Server, attack: impl Fn() -> Attack<'a>) {
    let (agent, _) = attested(server).await;
    let entry = server.entry("/honest", "unix:uid:1", &[]).await;
    let mut work = std::pin::pin!(honest(server, &agent, &entry));
    let mut worked = false;
    loop {
        let mut attack = attack();
        tokio::select! {
            () = &mut attack => {}
            () = &mut work, if !worked => {
                worked = true;
                attack.await;
            }
        }
        if worked {
            break;
        }
    }
    server.cli(&["healthcheck"]).await.ok();
}

/// Reads until the server ends the connection.
async fn cut_off(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut sink = vec![0u8; 16 * 1024];
    while matches!(stream.read(&mut sink).await, Ok(read) if read > 0) {}
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not in time"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes() {
    let server = Server::start().await;
    let port = server.port;
    during(&server, || {
        Box::pin(async move {
            let mut open = Vec::new();
            for at in 0..CAP + 100 {
                let mut stream = connect(port).await;
                if at % 2 == 0 {
                    // The first bytes of a ClientHello that never goes on.
                    let _ = stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await;
                }
                open.push(stream);
            }
            // Beyond the cap nobody is kept waiting.
            let mut ends: FuturesUnordered<_> = open.iter_mut().map(cut_off).collect();
            in_time("connections beyond the cap", ends.next()).await;
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets() {
    let server = Server::start().await;
    let port = server.port;
    during(&server, || {
        Box::pin(async move {
            let Ok(stream) = connect_tls(port).await else { return };
            let (mut reader, mut writer) = tokio::io::split(stream);
            let reset = async {
                writer.write_all(wire::PREFACE).await?;
                for number in 0..200_000u32 {
                    let stream_id = number * 2 + 1;
                    let path = "/spire.api.server.bundle.v1.Bundle/GetBundle";
                    writer.write_all(&wire::request(stream_id, path)).await?;
                    writer.write_all(&wire::reset(stream_id)).await?;
                }
                writer.flush().await
            };
            let cut = in_time("the end of a connection of resets", async {
                tokio::select! {
                    sent = reset => sent.is_err(),
                    () = cut_off(&mut reader) => true,
                }
            });
            assert!(cut.await, "200,000 resets were taken");
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_floods() {
    let server = Server::start().await;
    let port = server.port;
    during(&server, || {
        Box::pin(async move {
            let Ok(stream) = connect_tls(port).await else { return };
            let (mut reader, mut writer) = tokio::io::split(stream);
            let flood = async {
                writer.write_all(wire::PREFACE).await?;
                writer.write_all(&wire::open_headers(1, "/x/y")).await?;
                for _ in 0..8192 {
                    writer.write_all(&wire::continuation(1)).await?;
                }
                writer.flush().await
            };
            let cut = in_time("the end of a connection of headers", async {
                tokio::select! {
                    sent = flood => sent.is_err(),
                    () = cut_off(&mut reader) => true,
                }
            });
            assert!(cut.await, "64 MiB of headers were taken");
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn giant_rsa_csrs() {
    let server = Server::start().await;
    let (agent, _) = attested(&server).await;
    let entry = server.entry("/victim", "unix:uid:1", &[]).await;
    let csr = rsa_csr(16_384);
    let (server, agent, entry, csr) = (&server, &agent, &entry, &csr);
    during(server, || {
        Box::pin(async move {
            let channel = agent.channel(server).await;
            let item = NewX509svidParams { entry_id: entry.clone(), csr: csr.clone() };
            let request = BatchNewX509svidRequest { params: vec![item; 500] };
            let answer =
                SvidClient::new(channel.clone()).batch_new_x509svid(request).await.expect("answered");
            for result in answer.into_inner().results {
                let status = result.status.expect("a status");
                assert_eq!(status.code, Code::InvalidArgument as i32, "{}", status.message);
                assert!(status.message.contains("key type is not allowed"), "{}", status.message);
            }
            let params = Some(AgentX509svidParams { csr: csr.clone() });
            let renewed = AgentClient::new(channel).renew_agent(RenewAgentRequest { params }).await;
            assert_eq!(renewed.expect_err("refused").code(), Code::InvalidArgument);
        })
    })
    .await;
}

fn selectors(bytes: usize) -> ListEntriesRequest {
    let selector = |n: usize| Selector { r#type: "unix".into(), value: format!("uid:{n:0>20}") };
    let selectors = (0..bytes / 40).map(selector).collect();
    let by_selectors = Some(SelectorMatch { selectors, r#match: 0 });
    let filter = list_entries_request::Filter { by_selectors, ..Default::default() };
    ListEntriesRequest { filter: Some(filter), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn selector_lists_of_four_mebibytes() {
    let server = Server::start().await;
    let (agent, _) = attested(&server).await;
    server.entry("/admin", "unix:uid:1", &["-admin"]).await;
    let admin = mint(&server, "/admin").await;
    let (server, agent, admin) = (&server, &agent, &admin);
    during(server, || {
        Box::pin(async move {
            for (bytes, whole) in [(4 << 20, true), (5 << 20, false)] {
                let list = async |channel| EntryClient::new(channel).list_entries(selectors(bytes)).await;
                let nobody = tls(server.port, careless_tls(None)).await.expect("connect");
                assert!(list(nobody).await.is_err());
                assert_eq!(
                    list(agent.channel(server).await).await.expect_err("denied").code(),
                    Code::PermissionDenied
                );
                let trusted = tls(server.port, careless_tls(Some(admin))).await.expect("connect");
                match list(trusted).await {
                    Ok(_) => assert!(whole),
                    Err(status) => {
                        let taken = matches!(status.code(), Code::InvalidArgument) && whole;
                        let refused = matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted);
                        assert!(taken || refused, "{bytes}: {status}");
                    }
                }
            }
        })
    })
    .await;
}
