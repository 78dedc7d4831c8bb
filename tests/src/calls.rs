//! Calls that no honest client makes, and waiting for what has no event.

use std::time::Duration;

use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, SanType};
use svid_proto::spire::api::server::svid::v1::{MintX509svidRequest, svid_client::SvidClient};
use svid_proto::spire::api::types::PermissionDeniedDetails;
use svid_proto::spire::api::types::permission_denied_details::Reason;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::client::{AttestedAgent, ClientCert, careless_tls, tls, unix};
use crate::{PATIENCE, Server};

/// What a workload says with each request.
pub const SECURITY_HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// Sends one empty message to any RPC and waits for its first answer, of which nothing is kept.
/// # Errors
/// The status that the server ends the call with.
pub async fn call(channel: &Channel, path: &str, metadata: &[(&str, &str)]) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let mut request = Request::new(tokio_stream::once(()));
    for (key, value) in metadata {
        let key: AsciiMetadataKey = key.parse().expect("a metadata key");
        let value: AsciiMetadataValue = value.parse().expect("a metadata value");
        request.metadata_mut().append(key, value);
    }
    let path: PathAndQuery = path.parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
    answers.message().await.map(|_| ())
}

/// Asks for an X.509-SVID as an honest workload does.
/// # Errors
/// The agent's refusal.
pub async fn fetch_x509(channel: &Channel) -> Result<(), Status> {
    call(channel, "/SpiffeWorkloadAPI/FetchX509SVID", &[SECURITY_HEADER]).await
}

/// The reason that rides with a `PermissionDenied`.
pub fn reason(status: &Status) -> Option<Reason> {
    let status = svid_proto::google::rpc::Status::decode(status.details()).ok()?;
    let detail = status.details.iter().find(|any| any.type_url.ends_with("PermissionDeniedDetails"))?;
    PermissionDeniedDetails::decode(detail.value.as_slice()).ok().map(|details| details.reason())
}

/// An SVID for any workload ID, minted on the admin socket.
pub async fn mint(server: &Server, path: &str) -> ClientCert {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.subject_alt_names = vec![SanType::URI(server.id(path).as_str().try_into().expect("ascii"))];
    let csr = params.serialize_request(&key).expect("csr").der().to_vec();
    let request = MintX509svidRequest { csr, ttl: 0 };
    let answer = SvidClient::new(unix(&server.socket()).await).mint_x509svid(request).await.expect("minted");
    let svid = answer.into_inner().svid.expect("an SVID");
    ClientCert { chain: svid.cert_chain, key: key.serialize_der() }
}

impl AttestedAgent {
    /// A connection that shows this agent's certificate.
    pub async fn channel(&self, server: &Server) -> Channel {
        tls(server.port, careless_tls(Some(&self.cert))).await.expect("connect")
    }
}

/// An agent that attested with a fresh token, whose agent is also `/host`, and its connection.
pub async fn attested(server: &Server) -> (AttestedAgent, Channel) {
    let token = server.token().await;
    let agent = crate::client::attest_by_token(server.port, &token).await.expect("attested");
    let channel = agent.channel(server).await;
    (agent, channel)
}

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("fits")
}

/// Waits for a condition that nothing announces.
pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let met = async {
        while !condition().await {
            ticks.tick().await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, met).await.is_ok(), "{what}: never came true");
}

/// Body and status of an HTTP resource on this machine; `None` while nobody answers.
pub async fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}
