//! Files that were damaged: the program says which, and does not go on as if they had not been there.

use std::path::PathBuf;

use svid_tests::{Agent, Process, Server, ServerOptions, root};
use tokio::process::Command;

async fn fails(process: Process, says: &[&str]) {
    let (code, log) = process.end().await;
    assert_eq!(code, 1, "{log}");
    for text in says {
        assert!(log.contains(text), "{text:?} is not in:\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_of_the_server() {
    let mut server = Server::start().await;
    server.stop().await;
    let keys = server.path().join("data/keys.json");
    let good = std::fs::read(&keys).expect("keys.json");
    for bad in [&b"{"[..], b"", b"{\"keys\": 7}", b"{\"keys\": {\"x\": \"AAAA\"}}", &good[..good.len() / 2]] {
        std::fs::write(&keys, bad).expect("write");
        fails(server.launch(), &["keys.json"]).await;
        assert_eq!(std::fs::read(&keys).expect("still there"), bad, "nothing is repaired by guessing");
    }
    std::fs::write(&keys, good).expect("write");
    let id = server.path().join("data/server-id");
    let good = std::fs::read(&id).expect("server-id");
    std::fs::write(&id, "nonsense").expect("write");
    fails(server.launch(), &["server-id", "UUID"]).await;
    std::fs::write(&id, good).expect("write");
    let database = server.path().join("data/datastore.sqlite3");
    let good = std::fs::read(&database).expect("a database");
    for side in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(server.path().join(format!("data/datastore.sqlite3{side}")));
    }
    std::fs::write(&database, "this is no database, whatever its name says".repeat(100)).expect("write");
    fails(server.launch(), &["datastore"]).await;
    std::fs::write(&database, good).expect("write");
    server.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_mistakes_names_all_of_them() {
    let server = Server::start_with(ServerOptions::default()).await;
    let cases: &[(&str, &[&str])] = &[
        ("server {", &["server.conf"]),
        ("server { trust_domain = \"UPPER\" }", &["trust_domain"]),
        ("", &["server section must be configured"]),
    ];
    for (text, says) in cases {
        let other = Server::prepare(&ServerOptions::default());
        std::fs::write(other.config(), text).expect("write");
        fails(other.launch(), says).await;
        let agent = Agent::prepare(&server, svid_tests::AgentOptions::default()).await;
        std::fs::write(agent.config(), text.replace("server", "agent")).expect("write");
        let says: Vec<String> = says.iter().map(|text| text.replace("server", "agent")).collect();
        let says: Vec<&str> = says.iter().map(String::as_str).collect();
        fails(agent.launch(&[]), &says).await;
    }
    let both = Server::prepare(&ServerOptions {
        server: "ca_ttl = \"often\"\nlog_format = \"xml\"\nagent_ttl = \"x\"".into(),
        ..Default::default()
    });
    fails(both.launch(), &["ca_ttl", "agent_ttl"]).await;
    let unknown = Server::prepare(&ServerOptions { server: "nonsense = 1".into(), ..Default::default() });
    fails(unknown.launch(), &["nonsense"]).await;
    let options = svid_tests::AgentOptions { agent: "nonsense = 1".into(), ..Default::default() };
    let unknown = Agent::prepare(&server, options).await;
    fails(unknown.launch(&[]), &["nonsense"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_of_the_agent() {
    let server = Server::start().await;
    let mut agent = Agent::join(&server).await;
    agent.stop().await;
    for name in ["agent-data.json", "keys.json"] {
        let path = agent.path().join("data").join(name);
        let good = std::fs::read(&path).expect(name);
        for bad in [&b"{"[..], &good[..good.len() / 2]] {
            std::fs::write(&path, bad).expect("write");
            fails(agent.launch(&[]), &[name]).await;
        }
        std::fs::write(&path, good).expect("write");
    }
    agent.start_with(&[]).await;
    agent.process().wait_for("SVID loaded").await;
}

/// Runs a program in a mount namespace of its own, where `dir` is read-only.
fn read_only(dir: PathBuf, command: &str) -> Process {
    let dir = dir.display();
    let script =
        format!("mount --bind '{dir}' '{dir}' && mount -o remount,ro,bind '{dir}' && exec {command}");
    Process::start("read-only", Command::new("unshare").args(["-m", "sh", "-c", &script]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_data_dir() {
    if !root("a read-only mount") {
        return;
    }
    let mut server = Server::start().await;
    let mut agent = Agent::join(&server).await;
    agent.stop().await;
    let command = format!(
        "'{}' run -config '{}'",
        svid_tests::process::bin("svid-agent").display(),
        agent.config().display()
    );
    fails(read_only(agent.path().join("data"), &command), &["data", "Read-only file system"]).await;
    server.stop().await;
    fails(read_only(server.path().join("data"), &server.command_line()), &["data", "Read-only file system"])
        .await;
}
