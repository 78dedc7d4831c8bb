//! Several servers on one PostgreSQL, and what goes wrong there: outages, failovers, killed servers, lost connections.

mod cuts;
mod failover;
mod full_disk;
mod killed;
mod load;
mod outages;
mod stale;

use svid_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, RenewAgentRequest, agent_client::AgentClient,
};
use svid_proto::spire::api::server::entry::v1::{GetAuthorizedEntriesRequest, entry_client::EntryClient};
use svid_proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewX509svidParams, svid_client::SvidClient,
};
use svid_tests::client::{AttestedAgent, ClientCert, key_and_csr};
use svid_tests::postgres::{PASSWORD, Postgres, USER};
use svid_tests::proxy::Proxy;
use svid_tests::{Agent, Server, ServerOptions};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Servers that start at once.
async fn start<const N: usize>(options: [ServerOptions; N]) -> [Server; N] {
    let started = futures_util::future::join_all(options.map(Server::start_with)).await;
    started.try_into().unwrap_or_else(|_| panic!("as many as were asked for"))
}

/// A server whose way to the database can be cut.
fn through(proxy: &Proxy, database: &str) -> ServerOptions {
    let port = proxy.port;
    let text = format!(
        "host=127.0.0.1 port={port} user={USER} password={PASSWORD} dbname={database} sslmode=disable"
    );
    ServerOptions { postgres: Some(text), ..Default::default() }
}

/// Runs what blocks for a second or so, as everything about PostgreSQL does.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn fresh_postgres() -> Postgres {
    blocking(Postgres::start)
}

/// Gives the trust domain that the load's entries federate with a bundle: another server's.
async fn federate(server: &Server) {
    let path = server.path().join("foreign.pem");
    std::fs::write(&path, svid_tests::pki::TestCa::new("foreign").pem()).expect("write");
    let (id, path) = (format!("spiffe://{}", load::FOREIGN), path.display().to_string());
    server.cli(&["bundle", "set", "-id", &id, "-path", &path]).await.ok();
}

/// An X.509-SVID for an entry, signed for an agent of the test's own.
async fn sign(channel: &Channel, entry_id: &str) -> Result<(), Status> {
    let params = vec![NewX509svidParams { entry_id: entry_id.to_owned(), csr: key_and_csr().1 }];
    let request = BatchNewX509svidRequest { params };
    let answer = SvidClient::new(channel.clone()).batch_new_x509svid(request).await?;
    let status = answer.into_inner().results.remove(0).status.expect("a status");
    match Code::from(status.code) {
        Code::Ok => Ok(()),
        code => Err(Status::new(code, status.message)),
    }
}

/// The paths of what an agent of the test's own may hand out, as a poll tells it.
async fn authorized(channel: &Channel) -> Result<Vec<String>, Status> {
    let request = GetAuthorizedEntriesRequest::default();
    let answer = EntryClient::new(channel.clone()).get_authorized_entries(request).await?;
    Ok(answer.into_inner().entries.into_iter().filter_map(|entry| Some(entry.spiffe_id?.path)).collect())
}

/// A new certificate for an agent of the test's own.
async fn renew(channel: &Channel, agent: &AttestedAgent) -> Result<AttestedAgent, Status> {
    let (key, csr) = key_and_csr();
    let params = Some(AgentX509svidParams { csr });
    let answer = AgentClient::new(channel.clone()).renew_agent(RenewAgentRequest { params }).await?;
    let svid = answer.into_inner().svid.expect("an SVID");
    Ok(AttestedAgent { cert: ClientCert { chain: svid.cert_chain, key }, id: agent.id.clone() })
}

/// What a real agent hands to the user who runs the tests.
async fn fetched(agent: &Agent) -> String {
    agent.cli(&["api", "fetch", "x509"]).await.stdout
}

/// The selector of the user who runs the tests.
fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

/// A number below `bound` that differs from run to run; the run prints it.
fn random_below(bound: usize) -> usize {
    let bytes = *uuid::Uuid::new_v4().as_bytes();
    let number = usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) % bound;
    println!("random: {number} of {bound}");
    number
}
