//! A server without its database beside one that has it.

use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_tests::calls::{attested, reason};
use svid_tests::client::attest_by_token;
use svid_tests::proxy::Proxy;
use svid_tests::{ServerOptions, until};
use tonic::Code;

use crate::{authorized, blocking, renew, sign, start, through};

const MAX_STALE: &str = "experimental { max_stale = \"6s\" }";

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_where_the_database_is_wins() {
    let database = blocking(svid_tests::postgres::database);
    let way = Proxy::to(database.postgres.port).await;
    let cut_off = ServerOptions { server: MAX_STALE.into(), ..through(&way, &database.name) };
    let [a, b] = start([ServerOptions::on(&database), cut_off]).await;
    let web = a.entry("/web", "unix:uid:1", &[]).await;
    let (bad, bad_at_a) = attested(&a).await;
    let (honest, honest_at_a) = attested(&a).await;
    let renewed = renew(&honest_at_a, &honest).await.expect("renewed");
    // The log is in order: with this line b has all that was before.
    a.entry("/mark", "unix:uid:1", &[]).await;
    let bad_at_b = bad.channel(&b).await;
    until("b has all", || async {
        authorized(&bad_at_b).await.is_ok_and(|paths| paths.contains(&"/mark".to_owned()))
    })
    .await;
    let token = a.token().await;

    way.cut();
    // The first use of the new certificate, at a server that cannot write it down.
    let honest_at_b = renewed.channel(&b).await;
    sign(&honest_at_b, &web).await.expect("from memory");
    a.cli(&["agent", "ban", "-spiffeID", &bad.id]).await.ok();
    let refused = sign(&bad_at_a, &web).await.expect_err("banned");
    assert_eq!(reason(&refused), Some(Reason::AgentBanned));
    // What needs the database waits for it, and no agent loses its identity over that.
    let refused = attest_by_token(b.port, &token).await.err().expect("no database");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let refused = renew(&honest_at_b, &renewed).await.err().expect("no database");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let honest_at_a = renewed.channel(&a).await;
    sign(&honest_at_a, &web).await.expect("an honest agent, whom b knew first");
    let refused = authorized(&honest.channel(&a).await.clone()).await.expect_err("its old certificate");
    assert_eq!(reason(&refused), Some(Reason::AgentNotActive));

    until("b is too old", || async { sign(&honest_at_b, &web).await.is_err() }).await;
    let fresh = bad.channel(&b).await;
    for channel in [&honest_at_b, &bad_at_b, &fresh] {
        for status in [sign(channel, &web).await.err(), authorized(channel).await.err()] {
            let status = status.expect("nothing from memory that is too old");
            assert_eq!(status.code(), Code::Unavailable, "{status}");
        }
    }
    way.lead_to(database.postgres.port);
    until("b goes on", || async { sign(&honest_at_b, &web).await.is_ok() }).await;
    for channel in [&bad_at_b, &bad.channel(&b).await] {
        let refused = sign(channel, &web).await.expect_err("banned");
        assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, Some(Reason::AgentBanned)));
    }
    sign(&honest_at_a, &web).await.expect("good at both");
    attest_by_token(b.port, &token).await.expect("the token was not spent meanwhile");
}
