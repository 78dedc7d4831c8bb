//! Connections to PostgreSQL that end in the middle of a message, in either direction.

use svid_tests::proxy::{Direction, Proxy};
use svid_tests::until;

use crate::load::{Load, check, check_rows};
use crate::{blocking, federate, random_below, start, through};

const CUTS: usize = 40;
/// Several times what one transaction of the load sends.
const LONGEST: usize = 12_000;

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_at_any_byte() {
    let database = blocking(svid_tests::postgres::database);
    let way = Proxy::to(database.postgres.port).await;
    let [mut server] = start([through(&way, &database.name)]).await;
    federate(&server).await;
    let load = Load::on(&[&server]);
    for cut in 0..CUTS {
        load.acked(1).await;
        let direction = if cut % 2 == 0 { Direction::There } else { Direction::Back };
        way.cut_after(direction, random_below(LONGEST));
        until("the cut", || async { way.was_cut() }).await;
    }
    load.acked(1).await;
    let known = load.stop().await;
    check(&[&server], &known).await;
    check_rows(|sql| blocking(|| database.sql(sql)));
    let log = server.process().log().join("\n");
    assert!(!log.contains("panicked") && !log.contains("loading everything anew"), "{log}");
}
