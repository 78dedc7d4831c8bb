//! A server without its database.

use std::sync::Arc;

use svid_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, RenewAgentRequest, agent_client::AgentClient,
};
use svid_proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams, svid_client::SvidClient,
};
use svid_proto::spire::api::types::permission_denied_details::Reason;
use svid_tests::calls::{attested, call, reason};
use svid_tests::client::{attest_by_token, key_and_csr};
use svid_tests::postgres::Postgres;
use svid_tests::{Server, ServerOptions, until};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::Channel;

use super::{ENTRIES, end_of, entries, status};

async fn sign(channel: &Channel, entry_id: &str) -> Result<i32, tonic::Status> {
    let params = vec![NewX509svidParams { entry_id: entry_id.to_owned(), csr: key_and_csr().1 }];
    let request = BatchNewX509svidRequest { params };
    let answer = SvidClient::new(channel.clone()).batch_new_x509svid(request).await?.into_inner();
    Ok(answer.results[0].status.as_ref().expect("a status").code)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_serves_for_max_stale_and_no_longer() {
    let database = Arc::new(Postgres::start()).fresh_database();
    let server = "experimental { max_stale = \"25s\" }".to_owned();
    let server = Server::start_with(ServerOptions { server, ..ServerOptions::on(&database) }).await;
    let (_, channel) = attested(&server).await;
    let id = server.entry("/web", "unix:uid:1", &[]).await;
    let token = server.token().await;
    let stream = super::watch(&channel).await;
    // Connections stay open and nobody answers: the worst kind of an outage.
    database.postgres.freeze();
    assert_eq!(sign(&channel, &id).await.expect("signed"), 0);
    let request = NewJwtsvidRequest { entry_id: id.clone(), audience: vec!["x".into()] };
    SvidClient::new(channel.clone()).new_jwtsvid(request).await.expect("signed");
    assert!(entries(&channel).await.contains(&id));
    // What writes is refused soon, and with nothing over which an agent would drop its identity.
    let params = Some(AgentX509svidParams { csr: key_and_csr().1 });
    let mut agents = AgentClient::new(channel.clone());
    let renew = agents.renew_agent(RenewAgentRequest { params });
    let ban = server.id("/spire/agent/none");
    let ban = ["agent", "ban", "-spiffeID", &ban];
    let (renewed, attested, changed, shown) =
        tokio::join!(renew, attest_by_token(server.port, &token), server.cli(&ban), status(&server));
    assert_eq!(renewed.expect_err("not stored").code(), Code::Unavailable);
    assert_eq!(attested.err().expect("not stored").code(), Code::Unavailable);
    assert_ne!(changed.code, 0, "{}", changed.stdout);
    assert_eq!(shown["server"]["database_reachable"], false);
    assert_eq!(shown["server"]["max_stale_s"], 25);
    assert!(shown["warnings"].to_string().contains("database cannot be reached"), "{shown}");
    // Longer than that, nobody is served and no stream stays open.
    assert_eq!(end_of(stream).await.code(), Code::Unavailable);
    for refused in [sign(&channel, &id).await.map(drop), call(&channel, ENTRIES, &[]).await] {
        assert_eq!(refused.expect_err("too old").code(), Code::Unavailable);
    }
    database.postgres.thaw();
    until("served again", || async { sign(&channel, &id).await.is_ok_and(|code| code == 0) }).await;
    until("the token is good still", || async { attest_by_token(server.port, &token).await.is_ok() }).await;
}

/// The way to a database that can be cut.
struct Wire {
    port: u16,
    open: watch::Sender<bool>,
}

impl Wire {
    async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                tokio::spawn(async move {
                    if !*is_open.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { port, open }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_made_meanwhile_on_a_server_that_has_the_database_wins() {
    let database = Arc::new(Postgres::start()).fresh_database();
    let direct = database.tcp_connection_string();
    let port = direct.split(' ').find_map(|part| part.strip_prefix("port=")).expect("a port");
    let wire = Wire::to(port.parse().expect("a number")).await;
    let through = direct.replace(&format!("port={port}"), &format!("port={}", wire.port));
    let one = Server::on(&database).await;
    let (agent, _) = attested(&one).await;
    let (honest, _) = attested(&one).await;
    let through = format!("{through} sslmode=disable");
    let two = Server::start_with(ServerOptions { postgres: Some(through), ..ServerOptions::default() }).await;
    let (at_two, honest_at_two) = (agent.channel(&two).await, honest.channel(&two).await);
    let stream = super::watch(&at_two).await;
    wire.open.send_replace(false);
    until("the loss is noticed", || async { status(&two).await["server"]["database_reachable"] == false })
        .await;
    one.cli(&["agent", "ban", "-spiffeID", &agent.id]).await.ok();
    call(&at_two, ENTRIES, &[]).await.expect("it cannot know");
    call(&honest_at_two, ENTRIES, &[]).await.expect("served");
    // A denial from memory could be wrong: nothing that an agent would act on.
    let unknown = attested(&one).await.0;
    let refused = call(&unknown.channel(&two).await, ENTRIES, &[]).await.expect_err("not in memory");
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, None));
    wire.open.send_replace(true);
    assert_eq!(reason(&end_of(stream).await), Some(Reason::AgentBanned));
    assert_eq!(reason(&call(&at_two, ENTRIES, &[]).await.expect_err("banned")), Some(Reason::AgentBanned));
    call(&honest_at_two, ENTRIES, &[]).await.expect("served");
    call(&unknown.channel(&two).await, ENTRIES, &[]).await.expect("known by now");
}
