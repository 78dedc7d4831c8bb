//! A full disk: writes are refused in words, reading goes on, and nothing is there by halves.

use std::path::PathBuf;

use svid_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, ListEntriesRequest, entry_client::EntryClient,
};
use svid_proto::spire::api::types::{Entry, Selector, Spiffeid};
use svid_tests::client::unix;
use svid_tests::{Process, Server, ServerOptions, TRUST_DOMAIN, root};
use tokio::process::Command;

fn entry(n: usize) -> Entry {
    let id = |path: String| Some(Spiffeid { trust_domain: TRUST_DOMAIN.into(), path });
    let selector =
        |m: usize| Selector { r#type: "unix".into(), value: format!("path:/{}/{m}", "x".repeat(500)) };
    Entry {
        spiffe_id: id(format!("/full/{n}")),
        parent_id: id("/host".into()),
        selectors: (0..3).map(selector).collect(),
        ..Default::default()
    }
}

/// Creates entries until one is refused; returns how many were acknowledged and what the refusal said.
async fn fill(server: &Server) -> (usize, String) {
    let mut client = EntryClient::new(unix(&server.socket()).await);
    for n in 0..100_000 {
        let request = BatchCreateEntryRequest { entries: vec![entry(n)], output_mask: None };
        match client.batch_create_entry(request).await {
            Err(status) => return (n, format!("{:?} {}", status.code(), status.message())),
            Ok(answer) => {
                let status = answer.into_inner().results.remove(0).status.expect("a status");
                if status.code != 0 {
                    return (n, format!("{} {}", status.code, status.message));
                }
            }
        }
    }
    panic!("the disk never was full");
}

async fn count(server: &Server) -> usize {
    let mut client = EntryClient::new(unix(&server.socket()).await).max_decoding_message_size(64 << 20);
    let entries =
        client.list_entries(ListEntriesRequest::default()).await.expect("listed").into_inner().entries;
    assert!(entries.iter().all(|entry| entry.selectors.len() == 3), "an entry by halves");
    entries.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_nothing_else() {
    if !root("a small file system") {
        return;
    }
    let mut server = Server::prepare(&ServerOptions::default());
    let data = server.path().join("data");
    std::fs::create_dir(&data).expect("mkdir");
    // The mount lives and dies with the server.
    let script = format!(
        "mount -t tmpfs -o size=4m,mode=755 tmpfs '{}' && exec {}",
        data.display(),
        server.command_line()
    );
    let process = Process::start("svid-server", Command::new("unshare").args(["-m", "sh", "-c", &script]));
    server.adopt(process).await;
    let inside = PathBuf::from(format!("/proc/{}/root{}/filler", server.process().pid(), data.display()));
    // All the room but a little.
    std::fs::write(&inside, vec![0u8; 2 << 20]).expect("write the filler");

    let (acked, why) = fill(&server).await;
    assert!(acked > 0, "{why}");
    let why = why.to_lowercase();
    assert!(why.contains("full") || why.contains("space"), "{why}");
    assert_eq!(count(&server).await, acked);
    assert!(server.bundle_pem().await.contains("BEGIN CERTIFICATE"));
    server.cli(&["healthcheck"]).await.ok();

    // With room it goes on by itself.
    std::fs::remove_file(&inside).expect("remove the filler");
    let request = BatchCreateEntryRequest { entries: vec![entry(1_000_000)], output_mask: None };
    let mut client = EntryClient::new(unix(&server.socket()).await);
    let result = client.batch_create_entry(request).await.expect("answered").into_inner().results.remove(0);
    assert_eq!(result.status.expect("a status").code, 0);
    assert_eq!(count(&server).await, acked + 1);
}
