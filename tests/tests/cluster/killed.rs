//! Three servers, one killed at random: agents go on with another one, and nothing acknowledged is lost.

use std::sync::Arc;

use svid_tests::calls::attested;
use svid_tests::client::{AttestedAgent, careless_tls, tls};
use svid_tests::proxy::Proxy;
use svid_tests::{Agent, AgentOptions, ServerOptions, until};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;

use crate::load::{Load, check, check_rows};
use crate::{authorized, blocking, federate, fetched, my_uid, random_below, renew, sign, start};

const ROUNDS: usize = 2;
const SIMULATED: usize = 4;
/// Each so many turns an agent renews.
const RENEW_EACH: usize = 3;

/// An agent of the test's own, which goes from server to server.
struct Wanderer {
    agent: AttestedAgent,
    ports: Vec<u16>,
    entry: String,
    turns: watch::Sender<usize>,
    stop: Arc<watch::Sender<bool>>,
}

impl Wanderer {
    async fn run(mut self) {
        let mut attempt = 0;
        while !*self.stop.borrow() {
            attempt += 1;
            let port = self.ports[attempt % self.ports.len()];
            let Ok(channel) = tls(port, careless_tls(Some(&self.agent.cert))).await else { continue };
            let turn = async {
                assert!(authorized(&channel).await?.contains(&"/web".to_owned()), "the entry is gone");
                sign(&channel, &self.entry).await?;
                if attempt % RENEW_EACH == 0 {
                    renew(&channel, &self.agent).await.map(Some)
                } else {
                    Ok(None)
                }
            };
            match turn.await {
                Ok(renewed) => {
                    self.turns.send_modify(|turns| *turns += 1);
                    // Used at the next server, at once.
                    if let Some(renewed) = renewed {
                        self.agent = renewed;
                    }
                }
                Err(status) => {
                    let fatal = [Code::PermissionDenied, Code::Unauthenticated, Code::NotFound];
                    assert!(!fatal.contains(&status.code()), "{} at server {port}: {status}", self.agent.id);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_servers_is_killed() {
    let database = blocking(svid_tests::postgres::database);
    let options = || ServerOptions::on(&database);
    let mut servers = start([options(), options(), options()]).await;
    federate(&servers[0]).await;
    let web = servers[0].entry("/web", &my_uid(), &[]).await;
    let way = Proxy::to(servers[0].port).await;
    let options = AgentOptions { server_port: Some(way.port), ..Default::default() };
    let mut real = Agent::join_with(&servers[0], options).await;
    until("the agent has it", || async { fetched(&real).await.contains("/web") }).await;

    let stop = Arc::new(watch::Sender::new(false));
    let mut wanderers = JoinSet::new();
    let mut turns = Vec::new();
    for n in 0..SIMULATED {
        let (agent, _) = attested(&servers[n % servers.len()]).await;
        let sender = watch::Sender::new(0);
        turns.push(sender.subscribe());
        let ports = servers.iter().map(|server| server.port).collect();
        wanderers
            .spawn(Wanderer { agent, ports, entry: web.clone(), turns: sender, stop: stop.clone() }.run());
    }
    let load = Load::on_mortal(&servers.each_ref());
    for round in 0..ROUNDS {
        load.acked(5).await;
        let victim = random_below(servers.len());
        let (heir, other) = ((victim + 1) % servers.len(), (victim + 2) % servers.len());
        way.lead_to(servers[victim].port);
        servers[victim].kill().await;
        way.lead_to(servers[heir].port);
        // Another server's news reach the agent at the heir.
        let path = format!("/round{round}");
        servers[other].entry(&path, &my_uid(), &[]).await;
        until("the agent goes on", || async { fetched(&real).await.contains(&path) }).await;
        for at in [heir, other] {
            load.acked_at(at, 5).await;
        }
        for turns in &mut turns {
            let goal = *turns.borrow() + RENEW_EACH * 2;
            let waited = tokio::time::timeout(svid_tests::PATIENCE, turns.wait_for(|now| *now >= goal)).await;
            waited.expect("agents go on").expect("no agent was refused");
        }
        servers[victim].restart().await;
        load.acked_at(victim, 5).await;
    }
    stop.send_replace(true);
    while let Some(ended) = wanderers.join_next().await {
        ended.expect("no agent was refused");
    }
    let known = load.stop().await;
    check(&servers.each_ref(), &known).await;
    check_rows(|sql| blocking(|| database.sql(sql)));
    let log = real.process().log().join("\n");
    assert_eq!(log.matches("Node attestation was successful").count(), 1, "it stayed who it was:\n{log}");
}
