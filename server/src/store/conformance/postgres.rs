//! What only PostgreSQL can show: other servers, outages, lost answers, and another history.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use svid_core::clock::Clock;
use svid_test_postgres::{Database, Postgres, Shutdown};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::directory::Directory;

fn config(connection_string: &str) -> StoreConfig {
    let config = PostgresConfig::parse(connection_string, &|_| None).unwrap();
    StoreConfig::postgres(config.with_files(None, None).unwrap())
}

pub(super) async fn open(database: &Database) -> Store {
    Store::open(&config(&database.connection_string()), &td()).await.unwrap()
}

async fn create(store: &Store, name: &str) -> Result<Created, StoreError> {
    let named = item(Some(name), spec(&format!("/{name}")));
    store.create_entries(vec![named], 7).await.remove(0)
}

#[tokio::test]
async fn foreign_databases_are_refused_untouched() {
    let database = svid_test_postgres::database();
    database.sql("CREATE TABLE registered_entries (id INT); CREATE TABLE migrations (code_version TEXT)");
    let text = refusal(Store::open(&config(&database.connection_string()), &td()).await);
    assert!(text.contains("is a database of SPIRE"), "{text}");
    let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1";
    assert_eq!(database.sql(tables), "migrations\nregistered_entries");
}

#[tokio::test]
async fn other_schemas_and_trust_domains_are_refused() {
    let database = svid_test_postgres::database();
    // Somebody else's table of that name is nobody's business.
    database.sql("CREATE TABLE migrations (version INT)");
    let config = config(&database.connection_string());
    create(&open(&database).await, "a").await.unwrap();
    let renamed = Store::open(&config, &other()).await;
    assert!(refusal(renamed).contains("entries of trust domain \"example.org\""));
    let fixed = StoreConfig { migrate: false, ..config.clone() };
    assert!(Store::open(&fixed, &td()).await.is_ok(), "the schema is what it should be");
    database.sql("CREATE TABLE kept AS SELECT * FROM svid_migrations; DELETE FROM svid_migrations");
    let text = refusal(Store::open(&fixed, &td()).await);
    assert!(text.contains("disable_migration is set"), "{text}");
    database.sql("INSERT INTO svid_migrations SELECT * FROM kept");
    database.sql("INSERT INTO svid_migrations VALUES (9999, 'later', '', 0)");
    let text = refusal(Store::open(&config, &td()).await);
    assert!(text.contains("9999, which is newer"), "{text}");
}

#[tokio::test]
async fn servers_that_start_at_once_share_a_schema_and_an_epoch() {
    let database = svid_test_postgres::database();
    let opened = futures_util::future::join_all((0..6).map(|_| open(&database))).await;
    let heads = futures_util::future::join_all(opened.iter().map(Store::head)).await;
    let epochs: std::collections::HashSet<_> = heads.into_iter().map(|head| head.unwrap().epoch).collect();
    assert_eq!(epochs.len(), 1);
    let one = |n: usize| {
        let store = opened[n % opened.len()].clone();
        async move { create(&store, &format!("e{}", n / 2)).await.unwrap() }
    };
    let created = futures_util::future::join_all((0..60).map(one)).await;
    assert_eq!(created.iter().filter(|created| matches!(created, Created::New(_))).count(), 30);
    assert_eq!(opened[0].head().await.unwrap().seq, 30, "no gap, no line too many");
    assert_eq!(open(&database).await.head().await.unwrap().epoch, *epochs.iter().next().unwrap());
}

#[tokio::test]
async fn what_one_writes_wakes_the_other() {
    let database = svid_test_postgres::database();
    let (one, two) = (open(&database).await, open(&database).await);
    let mut sink = Count::default();
    let start = two.load(&mut sink).await.unwrap();
    let mut woken = two.committed();
    create(&one, "a").await.unwrap();
    loop {
        woken.changed().await.unwrap();
        if matches!(two.changes_after(start).await.unwrap(), Changes::Lines { lines, .. } if lines.len() == 1)
        {
            break;
        }
    }
}

/// Only one of two servers that see the rewritten history gives it a name, and both follow it from there.
#[tokio::test]
async fn a_rewritten_history_is_loaded_anew_by_all() {
    let database = svid_test_postgres::database();
    let (one, two) = (open(&database).await, open(&database).await);
    for name in ["a", "b", "c"] {
        create(&one, name).await.unwrap();
    }
    let before = one.head().await.unwrap();
    let mut directories = Vec::new();
    for store in [&one, &two] {
        let (directory, task) = Directory::start(store.clone(), &td(), Clock::system()).await.unwrap();
        tokio::spawn(task.run());
        directories.push(directory);
    }
    database.sql(
        "BEGIN; DELETE FROM svid_entries WHERE id IN ('b', 'c'); DELETE FROM svid_log WHERE seq > 1;
         UPDATE svid_log_counter SET seq = 1; COMMIT",
    );
    let mut epochs = Vec::new();
    for directory in &directories {
        while directory.position().epoch == before.epoch {
            directory.caught_up().await.unwrap();
        }
        epochs.push(directory.position().epoch);
    }
    for directory in &directories {
        directory.caught_up().await.unwrap();
        epochs.push(directory.position().epoch);
    }
    epochs.push(two.head().await.unwrap().epoch);
    epochs.dedup();
    assert_eq!(epochs.len(), 1, "one new epoch, and no other after it");
    create(&two, "b").await.unwrap();
    assert_eq!(two.head().await.unwrap().seq, 2);
}

#[tokio::test]
async fn an_outage_is_survived() {
    let mut postgres = Postgres::start();
    let store = Store::open(&config(&postgres.connection_string("postgres")), &td()).await.unwrap();
    create(&store, "a").await.unwrap();
    postgres.hang_up();
    create(&store, "b").await.unwrap();
    assert_eq!(store.head().await.unwrap().seq, 2, "a lost connection is no outage");
    postgres.stop(Shutdown::Fast);
    assert!(create(&store, "c").await.unwrap_err().is_unavailable());
    assert!(store.head().await.unwrap_err().is_unavailable());
    postgres.start_again();
    create(&store, "c").await.unwrap();
    postgres.kill();
    postgres.start_again();
    create(&store, "d").await.unwrap();
    assert_eq!(store.head().await.unwrap().seq, 4, "acknowledged means durable");
}

#[tokio::test]
async fn secrets_stay_out_of_errors() {
    let database = svid_test_postgres::database();
    let wrong = database.tcp_connection_string().replace("hush", "wrong-hush") + " sslmode=disable";
    let error = Store::open(&config(&wrong), &td()).await.err().unwrap();
    let text = format!("{error} {error:?} {}", svid_daemon::log::chain(&error));
    assert!(error.to_string().contains("refuses this server's user, password or address"), "{text}");
    assert!(!text.contains("hush"), "{text}");
    let missing = database.connection_string().replace(&database.name, "nowhere");
    let text = refusal(Store::open(&config(&missing), &td()).await);
    assert!(text.contains("no database of that name"), "{text}");
}

/// What a proxy does to the next commit.
const PASS: u8 = 0;
const LOSE_THE_ANSWER: u8 = 1;
const LOSE_THE_ORDER: u8 = 2;

/// Forwards connections to PostgreSQL and does once to a COMMIT what `trap` says.
async fn proxy(port: u16, trap: Arc<AtomicU8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let database = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(forward(client, database, trap.clone()));
        }
    });
    own
}

async fn forward(client: TcpStream, database: TcpStream, trap: Arc<AtomicU8>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_database, mut to_database) = database.into_split();
    let answers = tokio::spawn(async move { tokio::io::copy(&mut from_database, &mut to_client).await });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(size @ 1..) = from_client.read(&mut buffer).await {
        let is_commit = buffer[..size].windows(7).any(|word| word == b"COMMIT\0");
        match if is_commit { trap.swap(PASS, Ordering::SeqCst) } else { PASS } {
            LOSE_THE_ORDER => break,
            LOSE_THE_ANSWER => {
                answers.abort();
                let _ = answers.await;
                to_database.write_all(&buffer[..size]).await.unwrap();
                to_database.shutdown().await.unwrap();
                return;
            }
            _ => to_database.write_all(&buffer[..size]).await.unwrap(),
        }
    }
    answers.abort();
}

#[tokio::test]
async fn a_lost_answer_to_a_commit_is_looked_up() {
    let database = svid_test_postgres::database();
    let trap = Arc::new(AtomicU8::new(PASS));
    let port = proxy(database.postgres.port, trap.clone()).await;
    let direct = format!("port={} ", database.postgres.port);
    let text = database.tcp_connection_string().replace(&direct, &format!("port={port} sslmode=disable "));
    let store = Store::open(&config(&text), &td()).await.unwrap();
    trap.store(LOSE_THE_ANSWER, Ordering::SeqCst);
    assert!(matches!(create(&store, "a").await, Ok(Created::New(_))), "it is there, so it is acknowledged");
    assert_eq!(trap.load(Ordering::SeqCst), PASS, "the answer was lost");
    trap.store(LOSE_THE_ORDER, Ordering::SeqCst);
    assert!(create(&store, "b").await.unwrap_err().is_unavailable());
    assert!(matches!(create(&store, "b").await, Ok(Created::New(_))), "it was not there");
    assert_eq!(open(&database).await.head().await.unwrap().seq, 2);
}
