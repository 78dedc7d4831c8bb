#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use super::*;
use crate::peer::{CallerProcess, PeerOptions, bind_private};
use crate::tls::tests::{TestCa, td};
use crate::tls::{
    ServerTrust, SpiffeClientVerifier, SpiffeServerVerifier, TlsPolicy, client_config, server_config,
};

/// Answers each request with what the connection knows about the caller, in a header.
#[derive(Clone)]
struct WhoAmI;

impl tonic::server::NamedService for WhoAmI {
    const NAME: &'static str = "test.WhoAmI";
}

impl tower::Service<http::Request<tonic::body::Body>> for WhoAmI {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let tcp = request.extensions().get::<Arc<TcpPeer>>();
        let unix = request.extensions().get::<Arc<CallerProcess>>();
        let who = match (tcp, unix) {
            (Some(tcp), _) => tcp.peer.as_ref().map_or("nobody".to_owned(), |peer| peer.id.to_string()),
            (_, Some(unix)) => unix.pid().to_string(),
            _ => "unknown".to_owned(),
        };
        std::future::ready(Ok(http::Response::builder()
            .header("who", who)
            .body(tonic::body::Body::empty())
            .unwrap()))
    }
}

async fn who(channel: tonic::transport::Channel) -> Result<String, tonic::transport::Error> {
    let request = http::Request::post("http://x/test.WhoAmI/Ask").body(tonic::body::Body::empty()).unwrap();
    let response = channel.oneshot(request).await?;
    let who = response.headers()["who"].to_str().unwrap().to_owned();
    let _ = response.into_body().collect().await;
    Ok(who)
}

#[tokio::test]
async fn over_tls_with_and_without_a_certificate() {
    let ca = TestCa::new("a.test");
    let verifier = Arc::new(SpiffeClientVerifier::new(td("a.test"), [], ca.bundles("a.test")));
    let identity = ca.issue(&["spiffe://a.test/spire/server"]);
    let config = server_config(&identity, verifier, TlsPolicy::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let conns = incoming(listener, TcpOptions::default(), move || Some(Arc::clone(&config)));
    tokio::spawn(tcp_server().add_service(WhoAmI).serve_with_incoming(conns));
    let channel = |issuer: &TestCa, id: Option<&str>| {
        let verifier = SpiffeServerVerifier::new(td("a.test"), ServerTrust::Bundle(issuer.bundles("a.test")));
        let identity = id.map(|id| issuer.issue(&[id]));
        let config = client_config(identity.as_ref(), Arc::new(verifier), TlsPolicy::default()).unwrap();
        tls_channel(address.to_string(), move || Arc::clone(&config))
    };
    assert_eq!(who(channel(&ca, None)).await.unwrap(), "nobody");
    let agent = "spiffe://a.test/spire/agent/x";
    assert_eq!(who(channel(&ca, Some(agent))).await.unwrap(), agent);
    let stranger = who(channel(&TestCa::new("a.test"), None)).await.unwrap_err();
    assert!(crate::tls::is_unknown_authority(&stranger), "{stranger:?}");
}

#[tokio::test]
async fn over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = bind_private(&path, 0o777, 0o755).unwrap();
    let conns = crate::peer::incoming(listener, PeerOptions::default());
    tokio::spawn(unix_server().add_service(WhoAmI).serve_with_incoming(conns));
    assert_eq!(who(unix_channel(&path)).await.unwrap(), std::process::id().to_string());
}

/// A port that allows one stranger at a time, and its accepted connections.
async fn narrow_port(
    ca: &TestCa,
) -> (std::net::SocketAddr, impl futures_util::Stream<Item = std::io::Result<TlsConn>> + use<>) {
    let verifier = Arc::new(SpiffeClientVerifier::new(td("a.test"), [], ca.bundles("a.test")));
    let identity = ca.issue(&["spiffe://a.test/spire/server"]);
    let config = server_config(&identity, verifier, TlsPolicy::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = TcpOptions { max_unauthenticated_per_address: 1, ..TcpOptions::default() };
    (address, incoming(listener, options, move || Some(Arc::clone(&config))))
}

#[tokio::test]
async fn silence_and_crowds_are_cut_off() {
    let (address, _conns) = narrow_port(&TestCa::new("a.test")).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut crowd = TcpStream::connect(address).await.unwrap();
    let mut byte = [0u8];
    // The second finds no slot and ends while the first still has its time.
    assert_eq!(crowd.read(&mut byte).await.unwrap_or(0), 0);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(silent.read(&mut byte).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn tls_without_a_request_is_cut_off() {
    let ca = TestCa::new("a.test");
    let (address, conns) = narrow_port(&ca).await;
    let trust = ServerTrust::Bundle(ca.bundles("a.test"));
    let verifier = Arc::new(SpiffeServerVerifier::new(td("a.test"), trust));
    let config = client_config(None, verifier, TlsPolicy::default()).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("x").unwrap();
    let _client = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
    let mut conn = Box::pin(conns).next().await.unwrap().unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    let error = conn.read(&mut [0u8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}
