//! Several servers on one database, and a server that loses it.

mod identity;
mod outage;
mod revoked;
mod together;

use serde_json::Value;
use svid_proto::spire::api::server::entry::v1::{GetAuthorizedEntriesRequest, entry_client::EntryClient};
use svid_proto::svid::sync::v1::{WatchRequest, WatchResponse, sync_client::SyncClient};
use svid_tests::process::run;
use svid_tests::{PATIENCE, Server};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

const ENTRIES: &str = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";

/// What `svidctl status` says of this server.
async fn status(server: &Server) -> Value {
    let socket = server.socket().display().to_string();
    let args = ["--server-socket", &socket, "--output", "json", "status"];
    serde_json::from_str(&run("svidctl", &args).await.ok()).expect("JSON")
}

/// A field of each server that `svidctl status` lists, this one first.
fn servers<'a>(status: &'a Value, field: &str) -> Vec<&'a str> {
    let servers = status["server"]["servers"].as_array().expect("a list");
    servers.iter().map(|server| server[field].as_str().expect("a text")).collect()
}

/// A watch that has greeted.
async fn watch(channel: &Channel) -> Streaming<WatchResponse> {
    let mut client = SyncClient::new(channel.clone());
    let mut stream = client.watch(WatchRequest::default()).await.expect("a stream").into_inner();
    stream.message().await.expect("open").expect("a first message");
    stream
}

/// The status that a watch ends with.
async fn end_of(mut stream: Streaming<WatchResponse>) -> Status {
    let read = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a reason"),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the stream ends")
}

/// The IDs of the entries that an agent may have.
async fn entries(channel: &Channel) -> Vec<String> {
    let mut client = EntryClient::new(channel.clone());
    let answer =
        client.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.expect("answered");
    answer.into_inner().entries.into_iter().map(|entry| entry.id).collect()
}
