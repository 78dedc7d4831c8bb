//! What every database must do about answers that got lost, renewals in flight and old certificates.

#![allow(clippy::unwrap_used)]

use svid_core::clock::Clock;
use svid_core::id::SpiffeId;

use crate::directory::Directory;
use crate::store::db::args;
use crate::store::writer::{Tx, Write};
use crate::store::{Admitted, Answered, Kind, NewNode, Serial, Store, StoreError};

const AGENT: &str = "/spire/agent/join_token/t";

fn id() -> SpiffeId {
    SpiffeId::from_parts("example.org", AGENT).unwrap()
}

fn node(serial: &str, key: u8) -> NewNode {
    NewNode {
        id: id(),
        attestation_type: "join_token".into(),
        serial: serial.into(),
        expires_at: 2000,
        can_reattest: false,
        selectors: Default::default(),
        key_hash: [key; 32],
    }
}

async fn token(store: &Store, expires_at: i64) {
    store.create_join_token("t", expires_at, None, 7).await.unwrap();
}

/// The outcome as a short text: `new`, the serial number that was given before, or the refusal.
async fn attest(store: &Store, serial: &str, key: u8, now: i64) -> String {
    told(store.attest_with_join_token("t", node(serial, key), now).await)
}

fn told(outcome: Result<Admitted, StoreError>) -> String {
    match outcome {
        Ok(Admitted::New) => "new".into(),
        Ok(Admitted::Again(Answered { serial, answered_at, expires_at })) => {
            format!("{serial} of {answered_at} until {expires_at}")
        }
        Err(StoreError::TokenUnknown) => "unknown".into(),
        Err(StoreError::CannotReattest) => "cannot reattest".into(),
        Err(error) => error.to_string(),
    }
}

async fn serials(store: &Store) -> (String, String) {
    match store.node(&id()).await.unwrap().unwrap().serial {
        Serial::Banned => Default::default(),
        Serial::Active { current, next } => (current, next.map(|(next, _)| next).unwrap_or_default()),
    }
}

pub(super) async fn a_lost_answer_is_given_again(store: Store) {
    token(&store, 1000).await;
    assert_eq!(attest(&store, "1", 1, 50).await, "new");
    for now in [50, 60, 349] {
        assert_eq!(attest(&store, "2", 1, now).await, "1 of 50 until 2000", "{now}");
    }
    assert_eq!(attest(&store, "2", 2, 60).await, "unknown", "another key");
    assert_eq!(attest(&store, "2", 1, 350).await, "unknown", "five minutes");
    let by_plugin = NewNode { attestation_type: "tofu".into(), ..node("2", 1) };
    assert_eq!(told(store.attest_node(by_plugin, 60).await), "cannot reattest", "another kind of proof");
    assert_eq!(serials(&store).await, ("1".into(), String::new()));
    // A new token of the same name is a new attestation, whoever comes.
    token(&store, 90).await;
    assert_eq!(attest(&store, "3", 3, 60).await, "new");
    assert_eq!(attest(&store, "4", 1, 60).await, "unknown");
    assert_eq!(attest(&store, "4", 3, 89).await, "3 of 60 until 2000");
    assert_eq!(attest(&store, "4", 3, 90).await, "unknown", "the token's own end");
}

pub(super) async fn an_answer_ends_with_its_first_use(store: Store) {
    token(&store, 1000).await;
    assert_eq!(attest(&store, "1", 1, 50).await, "new");
    store.mark_used(vec![(id(), "0".into())]).await.unwrap();
    assert!(!store.node(&id()).await.unwrap().unwrap().used);
    assert_eq!(attest(&store, "2", 1, 60).await, "1 of 50 until 2000", "another certificate was used");
    store.mark_used(vec![(id(), "1".into())]).await.unwrap();
    assert!(store.node(&id()).await.unwrap().unwrap().used);
    assert_eq!(attest(&store, "2", 1, 60).await, "unknown");

    store.delete_node(&id()).await.unwrap();
    assert_eq!(attest(&store, "2", 1, 60).await, "unknown", "evicted");
    token(&store, 1000).await;
    assert_eq!(attest(&store, "3", 1, 60).await, "new");
    store.renew_node(&id(), "3", "", "4", 3000).await.unwrap();
    assert_eq!(attest(&store, "5", 1, 60).await, "unknown", "renewed, so it was used");

    store.delete_node(&id()).await.unwrap();
    token(&store, 1000).await;
    assert_eq!(attest(&store, "6", 1, 60).await, "new");
    store.ban_node(&id()).await.unwrap();
    assert_eq!(attest(&store, "7", 1, 60).await, "agent is banned");
}

pub(super) async fn proofs_of_one_use_without_a_token(store: Store) {
    let attest = async |serial, key, now| {
        let node = NewNode { attestation_type: "tofu".into(), ..node(serial, key) };
        told(store.attest_node(node, now).await)
    };
    assert_eq!(attest("1", 1, 50).await, "new");
    assert_eq!(attest("2", 1, 60).await, "1 of 50 until 2000");
    assert_eq!(attest("2", 2, 60).await, "cannot reattest");
    assert_eq!(attest("2", 1, 350).await, "cannot reattest");
    store.delete_node(&id()).await.unwrap();
    let again = |serial: &str| NewNode { can_reattest: true, ..node(serial, 1) };
    for serial in ["3", "4"] {
        assert_eq!(told(store.attest_node(again(serial), 60).await), "new", "it may give its proof twice");
    }
}

pub(super) async fn renewals_in_flight(store: Store) {
    token(&store, 1000).await;
    assert_eq!(attest(&store, "1", 1, 50).await, "new");
    store.renew_node(&id(), "1", "", "2", 3000).await.unwrap();
    // The answer was lost: the agent asks again with what it has, and the newer answer counts.
    store.renew_node(&id(), "1", "2", "3", 3000).await.unwrap();
    assert_eq!(serials(&store).await, ("1".into(), "3".into()));
    // A call that came in before either and was held up must not take away what was answered meanwhile.
    for seen in ["", "2"] {
        let late = store.renew_node(&id(), "1", seen, "4", 3000).await;
        assert!(matches!(late, Err(StoreError::Overtaken)), "{late:?}");
    }
    assert!(matches!(store.renew_node(&id(), "2", "3", "5", 3000).await, Err(StoreError::NotFound(_))));
    assert_eq!(serials(&store).await, ("1".into(), "3".into()));
    // Used on another server, which did not write it yet.
    store.renew_node(&id(), "3", "3", "6", 4000).await.unwrap();
    assert_eq!(serials(&store).await, ("3".into(), "6".into()));
    assert!(store.node(&id()).await.unwrap().unwrap().used);
    assert!(matches!(store.renew_node(&id(), "1", "6", "7", 3000).await, Err(StoreError::NotFound(_))));
    assert!(store.activate_serial(&id(), "6").await.unwrap());
    assert!(store.node(&id()).await.unwrap().unwrap().used);
    // Whether that was written before or not.
    store.renew_node(&id(), "6", "6", "8", 4000).await.unwrap();
    assert_eq!(serials(&store).await, ("6".into(), "8".into()));
}

pub(super) async fn old_certificates_are_noticed(store: Store) {
    let suspect = async |serial: &str, is_known| {
        let noted = store.suspect_clone(&id(), serial, is_known, 77).await.unwrap();
        let node = store.node(&id()).await.unwrap();
        (noted, node.map(|node| node.suspected_at))
    };
    assert_eq!(suspect("1", true).await, (false, None));
    token(&store, 1000).await;
    assert_eq!(attest(&store, "2", 1, 50).await, "new");
    assert_eq!(suspect("1", false).await, (false, Some(0)), "the agent may never have got the current one");
    store.renew_node(&id(), "2", "", "3", 3000).await.unwrap();
    assert_eq!(suspect("2", false).await, (false, Some(0)));
    assert_eq!(suspect("3", false).await, (false, Some(0)));
    assert_eq!(suspect("1", false).await, (true, Some(77)), "2 was used: it renewed");
    store.delete_node(&id()).await.unwrap();
    token(&store, 1000).await;
    assert_eq!(attest(&store, "4", 1, 50).await, "new");
    assert_eq!(suspect("1", true).await, (true, Some(77)), "this process saw it in use");
    store.ban_node(&id()).await.unwrap();
    assert!(!suspect("1", true).await.0);
}

/// Makes a node one that came back with a backup of this moment.
struct MarkRestored(SpiffeId, i64);

#[async_trait::async_trait]
impl Write for MarkRestored {
    type Out = ();
    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let sql = "UPDATE svid_nodes SET adopt_from = $2 WHERE spiffe_id = $1";
        tx.conn.execute(sql, args![self.0.as_str(), self.1]).await?;
        tx.log(Kind::Node, self.0.as_str());
        Ok(())
    }
}

impl Store {
    /// As a restore leaves a node.
    pub(crate) async fn mark_restored(&self, id: &SpiffeId, moment: i64) {
        self.write(MarkRestored(id.clone(), moment)).await.unwrap();
    }
}

pub(super) async fn restored_nodes_take_one_unknown_certificate(store: Store) {
    let adopt = async |serial: &str| store.adopt_serial(&id(), serial, 4000).await.unwrap();
    assert!(!adopt("9").await, "there is no such node");
    token(&store, 1000).await;
    assert_eq!(attest(&store, "1", 1, 50).await, "new");
    assert!(!adopt("9").await, "it did not come back with a backup");
    store.mark_restored(&id(), 60).await;
    store.renew_node(&id(), "1", "", "2", 3000).await.unwrap();
    assert!(!adopt("9").await, "it has renewed since");
    store.mark_restored(&id(), 60).await;
    for known in ["1", "2"] {
        assert!(!adopt(known).await, "{known} is known");
    }
    assert!(adopt("9").await);
    let node = store.node(&id()).await.unwrap().unwrap();
    assert_eq!(node.serial, Serial::Active { current: "9".into(), next: None });
    assert_eq!((node.expires_at, node.used, node.adopt_from), (4000, true, 0));
    assert!(!adopt("8").await, "the first one only");
    store.mark_restored(&id(), 60).await;
    store.renew_node(&id(), "9", "", "10", 5000).await.unwrap();
    store.mark_restored(&id(), 60).await;
    assert!(store.activate_serial(&id(), "10").await.unwrap());
    assert!(!adopt("8").await, "it has renewed since");
    store.mark_restored(&id(), 60).await;
    token(&store, 1000).await;
    assert_eq!(attest(&store, "11", 1, 50).await, "new");
    assert!(!adopt("8").await, "it has attested since");
    store.mark_restored(&id(), 60).await;
    store.ban_node(&id()).await.unwrap();
    assert!(!adopt("8").await, "a ban wins");
}

/// Two servers on one database.
struct Pair {
    stores: [Store; 2],
    directories: [Directory; 2],
}

impl Pair {
    async fn new(database: &svid_test_postgres::Database) -> Self {
        let stores = [super::postgres::open(database).await, super::postgres::open(database).await];
        let mut directories = Vec::new();
        for store in &stores {
            let (directory, task) =
                Directory::start(store.clone(), &super::td(), Clock::system()).await.unwrap();
            tokio::spawn(task.run());
            directories.push(directory);
        }
        let directories = directories.try_into().unwrap_or_else(|_| panic!("two"));
        Self { stores, directories }
    }

    /// What a server says to an agent's call, without a word on whether it is the first.
    async fn call(&self, server: usize, serial: &str) -> Result<(), String> {
        let answer = self.directories[server].verify_agent(&id(), serial, 5000, 50).await;
        answer.map(drop).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn two_servers_and_one_token() {
    let database = svid_test_postgres::database();
    let pair = Pair::new(&database).await;
    token(&pair.stores[0], 1000).await;
    let attempts = (0..200_u8).map(|n| {
        let (store, number) = (pair.stores[usize::from(n % 2)].clone(), n.to_string());
        async move { (attest(&store, &number, n, 50).await, n) }
    });
    let told = futures_util::future::join_all(attempts).await;
    let winners: Vec<u8> = told.iter().filter(|(told, _)| told == "new").map(|(_, n)| *n).collect();
    let [winner] = winners[..] else { panic!("{winners:?}") };
    assert_eq!(told.iter().filter(|(told, _)| told == "unknown").count(), 199);
    assert_eq!(serials(&pair.stores[0]).await, (winner.to_string(), String::new()));
    // Its answer got lost: any server gives it again, to nobody else.
    let again = format!("{winner} of 50 until 2000");
    for store in &pair.stores {
        assert_eq!(attest(store, "x", winner, 60).await, again);
        assert_eq!(attest(store, "x", winner.wrapping_add(1), 60).await, "unknown");
    }
    // Attested at one, it works with the other, and then the answer is over.
    pair.call(1, &winner.to_string()).await.unwrap();
    while attest(&pair.stores[0], "x", winner, 60).await == again {
        tokio::task::yield_now().await; // written behind
    }
    assert_eq!(attest(&pair.stores[0], "x", winner, 60).await, "unknown");
}

#[tokio::test]
async fn an_agent_goes_on_with_any_server() {
    let database = svid_test_postgres::database();
    let pair = Pair::new(&database).await;
    token(&pair.stores[0], 1000).await;
    assert_eq!(attest(&pair.stores[0], "1", 1, 50).await, "new");
    pair.call(1, "1").await.unwrap();
    // Each renewal at another server than its first use, at once.
    for n in 1..20_usize {
        let (old, new) = (n.to_string(), (n + 1).to_string());
        let (here, there) = (n % 2, (n + 1) % 2);
        pair.stores[here].renew_node(&id(), &old, "", &new, 3000).await.unwrap();
        pair.call(there, &old).await.unwrap();
        pair.call(there, &new).await.unwrap();
        pair.call(here, &new).await.unwrap();
        assert_eq!(pair.call(there, &old).await.unwrap_err(), "agent SVID is not active");
        let current = async || serials(&pair.stores[0]).await;
        while current().await != (new.clone(), String::new()) {
            tokio::task::yield_now().await; // written behind
        }
        assert_eq!(pair.call(here, &old).await.unwrap_err(), "agent SVID is not active");
    }
    pair.stores[0].ban_node(&id()).await.unwrap();
    // The other one hears of it by the log, without a denial before.
    while let Ok(()) = pair.call(1, "20").await {
        tokio::task::yield_now().await;
    }
    assert_eq!(pair.call(1, "20").await.unwrap_err(), "agent is banned");
}
