//! Two servers act as one.

use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_tests::calls::{attested, call, reason};
use svid_tests::{Server, ServerOptions, postgres, until};

use super::{ENTRIES, end_of, entries, servers, status, watch};

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_act_as_one() {
    let database = postgres::database();
    let one = Server::on(&database).await;
    let (agent, at_one) = attested(&one).await;
    // The second one shows its authority to everybody before it opens its port.
    let mut two = Server::prepare(&ServerOptions::on(&database));
    let mut process = two.launch();
    process.wait_for("get time to learn of them").await;
    let certificates = async || one.bundle_pem().await.matches("BEGIN CERTIFICATE").count();
    until("both authorities at the first server", || async { certificates().await == 2 }).await;
    let is_open = process.log().iter().any(|line| line.contains("Starting Server APIs"));
    assert!(!is_open, "it serves before others know it:\n{}", process.log().join("\n"));
    two.adopt(process).await;

    // Its SVID is good at both, and what is registered at one is served at both.
    let at_two = agent.channel(&two).await;
    let id = two.entry("/web", "unix:uid:1", &[]).await;
    for channel in [&at_one, &at_two] {
        until("the entry", || async { entries(channel).await.contains(&id) }).await;
    }

    let both = status(&one).await;
    assert_eq!(servers(&both, "state"), ["this one", "running"]);
    for field in ["id", "x509_active", "jwt_active", "version", "address", "host"] {
        until(field, || async { servers(&status(&one).await, field).iter().all(|value| !value.is_empty()) })
            .await;
    }
    let both = status(&one).await;
    for field in ["id", "x509_active", "jwt_active", "address", "host"] {
        let values = servers(&both, field);
        assert_ne!(values[0], values[1], "{field}");
    }
    assert_eq!(
        servers(&status(&two).await, "id"),
        servers(&both, "id").into_iter().rev().collect::<Vec<_>>()
    );

    // A crashed server is back at once, with the authority it had.
    let bundle = one.bundle_pem().await;
    two.kill().await;
    two.restart().await;
    assert!(!two.process().log().iter().any(|line| line.contains("get time to learn of them")));
    assert_eq!(two.bundle_pem().await, bundle);

    // Banned at one, out at the other.
    let stream = watch(&agent.channel(&two).await).await;
    one.cli(&["agent", "ban", "-spiffeID", &agent.id]).await.ok();
    assert_eq!(reason(&end_of(stream).await), Some(Reason::AgentBanned));
    let refused = call(&agent.channel(&two).await, ENTRIES, &[]).await.expect_err("banned");
    assert_eq!(reason(&refused), Some(Reason::AgentBanned));

    two.stop().await;
    assert_eq!(servers(&status(&one).await, "state"), ["this one", "stopped"]);
}
