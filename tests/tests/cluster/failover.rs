//! Another PostgreSQL takes over: one that has all, and one that lags.

use svid_tests::calls::attested;
use svid_tests::postgres::{Postgres, Shutdown, Sync};
use svid_tests::proxy::Proxy;
use svid_tests::{Agent, Server, until};

use crate::load::{Load, all_entries, check, check_rows};
use crate::{authorized, blocking, federate, fetched, fresh_postgres, my_uid, start, through};

const DATABASE: &str = "postgres";
const EPOCH: &str = "SELECT encode(epoch, 'hex') FROM svid_log_counter";
/// How a server says that it loads everything again.
const ANEW: &str = "loading everything anew";
/// How it says that the database forgot something.
const ANOTHER_HISTORY: &str = "holds another history than before";

fn said(server: &mut Server, text: &str) -> usize {
    server.process().log().iter().filter(|line| line.contains(text)).count()
}

/// Kills the primary and lets a standby that was stopped or follows take over.
fn fail_over(primary: &mut Postgres, standby: &Postgres, way: &Proxy) {
    blocking(|| {
        primary.kill();
        standby.promote();
    });
    way.lead_to(standby.port);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_standby_takes_over_under_load() {
    let mut primary = fresh_postgres();
    let way = Proxy::to(primary.port).await;
    let standby = blocking(|| primary.standby(Sync::Synchronous));
    let [mut a, mut b] = start([through(&way, DATABASE), through(&way, DATABASE)]).await;
    federate(&a).await;
    let epoch = blocking(|| primary.sql(DATABASE, EPOCH));
    let load = Load::on(&[&a, &b]);
    load.acked(20).await;
    fail_over(&mut primary, &standby, &way);
    load.acked(20).await;
    let known = load.stop().await;
    check(&[&a, &b], &known).await;
    for server in [&mut a, &mut b] {
        assert_eq!(said(server, ANEW), 0, "nothing was lost, so nothing is loaded again");
    }
    assert_eq!(blocking(|| standby.sql(DATABASE, EPOCH)), epoch);
    check_rows(|sql| blocking(|| standby.sql(DATABASE, sql)));
}

/// The primary has it and the standby has not. Whoever is told that it is there must find it after a failover.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_synchronous_standby_does_not_have_is_not_acknowledged() {
    let mut primary = fresh_postgres();
    let way = Proxy::to(primary.port).await;
    let mut standby = blocking(|| primary.standby(Sync::Synchronous));
    let [server] = start([through(&way, DATABASE)]).await;
    server.entry("/before", "unix:uid:1", &[]).await;
    blocking(|| standby.stop(Shutdown::Immediate));

    let arguments = ["entry", "create", "-parentID", "spiffe://example.org/host", "-spiffeID"];
    let arguments = [&arguments[..], &["spiffe://example.org/doubtful", "-selector", "unix:uid:1"]].concat();
    let create = server.cli(&arguments);
    let lose_the_answer = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        until("a commit waits", || async { blocking(|| primary.sql(DATABASE, waiting)) != "0" }).await;
        blocking(|| primary.hang_up());
    };
    let (told, ()) = tokio::join!(create, lose_the_answer);
    let found = blocking(|| {
        primary.kill();
        standby.start_again();
        standby.promote();
        standby.sql(DATABASE, "SELECT count(*) FROM svid_entries WHERE spiffe_id LIKE '%/doubtful'")
    });
    assert!(told.code != 0 || found == "1", "acknowledged, and lost:\n{}", told.stdout);
    if told.code != 0 {
        assert!(told.stderr.contains("database is not available"), "{}", told.stderr);
    }
    // The server's memory may be ahead of the new primary; what it had too much goes.
    way.lead_to(standby.port);
    until("another try", || async { server.cli(&arguments).await.code == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lags_takes_over() {
    let mut primary = fresh_postgres();
    let way = Proxy::to(primary.port).await;
    let [mut a, mut b] = start([through(&way, DATABASE), through(&way, DATABASE)]).await;
    a.entry("/kept", &my_uid(), &[]).await;
    let doomed = a.entry("/doomed", &my_uid(), &[]).await;
    let (polling, at_a) = attested(&a).await;
    let at_b = polling.channel(&b).await;
    let agents = [Agent::join(&a).await, Agent::join(&b).await];
    for agent in &agents {
        until("the agent has both", || async { fetched(agent).await.contains("/doomed") }).await;
    }
    // From here on the standby gets nothing.
    let mut standby = blocking(|| {
        let mut standby = primary.standby(Sync::Asynchronous);
        standby.stop(Shutdown::Fast);
        standby
    });
    b.entry("/ghost", &my_uid(), &[]).await;
    for agent in &agents {
        until("the agent has the ghost", || async { fetched(agent).await.contains("/ghost") }).await;
    }
    let old_epoch = blocking(|| primary.sql(DATABASE, EPOCH));
    blocking(|| {
        primary.kill();
        standby.start_again();
        standby.promote();
    });
    way.lead_to(standby.port);

    // Both say so; one of them in the words for who noticed first.
    for server in [&mut a, &mut b] {
        server.process().wait_for(ANEW).await;
    }
    assert!(said(&mut a, ANOTHER_HISTORY) + said(&mut b, ANOTHER_HISTORY) > 0, "nobody noticed");
    for channel in [&at_a, &at_b] {
        until("gone for who polls", || async {
            authorized(channel).await.is_ok_and(|paths| !paths.contains(&"/ghost".to_owned()))
        })
        .await;
    }
    for agent in &agents {
        until("gone at the agent", || async {
            let has = fetched(agent).await;
            has.contains("/kept") && !has.contains("/ghost")
        })
        .await;
    }
    let epoch = blocking(|| standby.sql(DATABASE, EPOCH));
    assert_ne!(epoch, old_epoch, "agents would take positions of the old history for the new one's");

    // Life goes on at both: what is deleted is gone everywhere, and nobody begins yet another history.
    until("deleted", || async { a.cli(&["entry", "delete", "-entryID", &doomed]).await.code == 0 }).await;
    b.entry("/later", &my_uid(), &[]).await;
    for agent in &agents {
        until("what came after", || async {
            let has = fetched(agent).await;
            has.contains("/later") && !has.contains("/doomed")
        })
        .await;
    }
    let counts = [&mut a, &mut b].map(|server| said(server, ANEW));
    assert!(counts.iter().all(|count| *count <= 2), "they take turns: {counts:?}");
    assert_eq!(blocking(|| standby.sql(DATABASE, EPOCH)), epoch);
    let names = |entries: Vec<svid_proto::spire::api::types::Entry>| {
        let mut ids: Vec<String> = entries.into_iter().map(|entry| entry.id).collect();
        ids.sort();
        ids
    };
    assert_eq!(names(all_entries(&a).await), names(all_entries(&b).await));
}
