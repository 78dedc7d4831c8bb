//! Whose id and whose trust domain it is.

use std::path::Path;

use svid_tests::process::{Process, bin};
use svid_tests::{Server, ServerOptions, postgres};
use tokio::process::Command;

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for file in std::fs::read_dir(from).expect("a directory") {
        let file = file.expect("a file");
        if file.file_type().expect("a type").is_file() {
            std::fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_directory_is_refused() {
    let database = postgres::database();
    let original = Server::on(&database).await;
    let mut copy = Server::prepare(&ServerOptions::on(&database));
    copy_files(&original.path().join("data"), &copy.path().join("data"));
    let (code, said) = copy.launch().end().await;
    assert_eq!(code, 1, "{said}");
    for words in ["is a copy of its data directory", "Stop that server", "remove the file"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(!said.contains("Starting Server APIs"), "{said}");
    original.cli(&["healthcheck"]).await.ok();
    // As it says: a server of its own.
    std::fs::remove_file(copy.path().join("data/server-id")).expect("remove");
    let process = copy.launch();
    copy.adopt(process).await;
    copy.cli(&["healthcheck"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_id_was_taken_stops() {
    let database = postgres::database();
    let server = Server::prepare(&ServerOptions::on(&database));
    let mut process = server.launch();
    process.wait_for_lines("Starting Server APIs", 2).await;
    database.sql("UPDATE svid_servers SET holder = 'another'");
    let (code, said) = process.end().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("another server has taken server id"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_trust_domain_is_not_begun_anew_unnoticed() {
    let mut server = Server::start().await;
    server.stop().await;
    for file in ["datastore.sqlite3", "datastore.sqlite3-wal", "datastore.sqlite3-shm"] {
        let _ = std::fs::remove_file(server.path().join("data").join(file));
    }
    let (code, said) = server.launch().end().await;
    assert_eq!(code, 1, "{said}");
    for words in ["knows nothing of that trust domain", "svidctl restore", "-newTrustDomain"] {
        assert!(said.contains(words), "{said}");
    }
    let mut command = Command::new(bin("svid-server"));
    command.arg("run").arg("-config").arg(server.config()).arg("-newTrustDomain");
    server.adopt(Process::start("svid-server", &mut command)).await;
    server.stop().await;
    server.restart().await;
}
