//! PostgreSQL goes away and comes back while two servers write.

use svid_tests::calls::attested;
use svid_tests::postgres::{Postgres, Shutdown};
use svid_tests::{ServerOptions, until};

use crate::load::{Load, check, check_rows};
use crate::{authorized, blocking, federate, fresh_postgres, sign, start};

const DATABASE: &str = "postgres";

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_stopped_and_killed_under_load() {
    let mut postgres = fresh_postgres();
    let options =
        ServerOptions { postgres: Some(postgres.connection_string(DATABASE)), ..Default::default() };
    let [a, b] = start([options.clone(), options]).await;
    federate(&a).await;
    let web = a.entry("/web", "unix:uid:1", &[]).await;
    let (agent, at_a) = attested(&a).await;
    let channels = [at_a, agent.channel(&b).await];
    for channel in &channels {
        until("the entry is at both", || async { sign(channel, &web).await.is_ok() }).await;
    }
    let load = Load::on(&[&a, &b]);
    let blows: [fn(&mut Postgres); 3] =
        [|it| it.stop(Shutdown::Fast), |it| it.stop(Shutdown::Immediate), Postgres::kill];
    for blow in blows {
        load.acked(10).await;
        blocking(|| blow(&mut postgres));
        load.refused().await;
        for channel in &channels {
            sign(channel, &web).await.expect("signed from memory");
            assert!(authorized(channel).await.expect("from memory").contains(&"/web".to_owned()));
        }
        for server in [&a, &b] {
            let said = server
                .cli(&[
                    "entry",
                    "create",
                    "-parentID",
                    &server.id("/host"),
                    "-spiffeID",
                    &server.id("/x"),
                    "-selector",
                    "unix:uid:1",
                ])
                .await;
            assert!(said.code != 0 && said.stderr.contains("database is not available"), "{}", said.stderr);
            server.cli(&["healthcheck"]).await.ok();
        }
        blocking(|| postgres.start_again());
    }
    // Lost connections alone are no outage, and cost no more than another try.
    load.acked(10).await;
    blocking(|| postgres.hang_up());
    load.acked(10).await;

    let known = load.stop().await;
    check(&[&a, &b], &known).await;
    check_rows(|sql| blocking(|| postgres.sql(DATABASE, sql)));
    let last = b.entry("/last", "unix:uid:1", &[]).await;
    for channel in &channels {
        until("pushed again", || async { sign(channel, &last).await.is_ok() }).await;
    }
}
