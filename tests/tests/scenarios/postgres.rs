//! Servers on a real PostgreSQL.

use std::fs;
use std::path::Path;

use spiffe::workload_api::WorkloadApiClient;
use svid_tests::pki::TestCa;
use svid_tests::postgres::{self, PASSWORD, Postgres, PostgresOptions};
use svid_tests::process::eventually;
use svid_tests::{Agent, AgentOptions, PATIENCE, Server, ServerOptions};
use tokio_stream::StreamExt;

fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_made_on_one_server_is_at_an_agent_of_the_other() {
    let database = postgres::database();
    // Both at once on an empty database: one of them makes the schema.
    let (one, two) = tokio::join!(Server::on(&database), Server::on(&database));
    // With a poll this slow only the watch stream can be what brings the entry.
    let options =
        AgentOptions { agent: "experimental { sync_interval = \"1h\" }".into(), ..Default::default() };
    let agent = Agent::join_with(&two, options).await;
    let client = WorkloadApiClient::connect_to(agent.endpoint()).await.expect("connect");
    two.entry("/first", &my_uid(), &[]).await;
    // A workload that asks before its entry has arrived is told that it has no identity.
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let mut updates = client.stream_x509_contexts().await.expect("a stream");
    let mut next = async |count: usize| {
        let awaited = async {
            loop {
                let update = updates.next().await.expect("open").expect("an update");
                if update.svids().len() == count {
                    return update;
                }
            }
        };
        tokio::time::timeout(PATIENCE, awaited).await.expect("in time")
    };
    next(1).await;
    one.entry("/second", &my_uid(), &[]).await;
    let update = next(2).await;
    let ids: Vec<String> = update.svids().iter().map(|svid| svid.spiffe_id().to_string()).collect();
    assert!(ids.contains(&"spiffe://example.org/second".to_owned()), "{ids:?}");
    assert_eq!(database.sql("SELECT count(*) FROM svid_servers"), "2");
}

fn options(connection_string: String) -> ServerOptions {
    ServerOptions { postgres: Some(connection_string), ..Default::default() }
}

/// What a server that must not start says.
async fn refusal(connection_string: String) -> String {
    let (code, log) = Server::prepare(&options(connection_string)).launch().end().await;
    assert_ne!(code, 0, "{log}");
    assert!(!log.contains(PASSWORD), "{log}");
    log
}

fn save(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).expect("write a file");
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_databases_certificate_is_checked() {
    let (ca, stranger) = (TestCa::new("database CA"), TestCa::new("somebody else"));
    let cert = ca.server(&["127.0.0.1"]);
    let tls = Some((cert.cert_pem.clone(), cert.key_pem.clone()));
    let cluster = Postgres::start_with(&PostgresOptions { tls, ..Default::default() });
    let dir = tempfile::tempdir().expect("temporary directory");
    let (good, bad) = (save(dir.path(), "ca.pem", &ca.pem()), save(dir.path(), "bad.pem", &stranger.pem()));
    let tcp = cluster.tcp_connection_string("postgres");

    let mut server =
        Server::start_with(options(format!("{tcp} sslmode=verify-full sslrootcert={good}"))).await;
    assert_eq!(
        cluster.sql(
            "postgres",
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'svid-server'"
        ),
        "t"
    );
    server.entry("/web", "unix:uid:1", &[]).await;
    let log = server.process().log().join("\n");
    assert!(!log.contains(PASSWORD), "{log}");
    server.stop().await;

    for mode in ["verify-full", "verify-ca", "require"] {
        let said = refusal(format!("{tcp} sslmode={mode} sslrootcert={bad}")).await;
        assert!(said.contains("certificate"), "{mode}: {said}");
    }
    let renamed = tcp.replace("127.0.0.1", "localhost");
    let said = refusal(format!("{renamed} sslmode=verify-full sslrootcert={good}")).await;
    assert!(said.contains("not valid for name"), "{said}");
    let url = format!("postgresql://svid:wrong-{PASSWORD}@127.0.0.1:{}/postgres", cluster.port);
    let said = refusal(url).await;
    assert!(said.contains("refuses this server's user, password or address"), "{said}");
}
