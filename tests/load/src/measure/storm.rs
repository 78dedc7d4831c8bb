//! Agents that have their SVIDs connect at once, as after an outage.

use anyhow::Result;

use super::Watch;
use super::fleet::{behaviour, by_server, until_synced};
use crate::cli::{Common, FleetArgs};
use crate::fleet::Fleet;
use crate::report::Report;
use crate::site::Site;

pub(super) async fn run(common: &Common, args: &FleetArgs) -> Result<Report> {
    let site = Site::open(common).await?;
    let watch = Watch::server(common)?;
    let fleet = Fleet::start(common, &site, &args.dir, behaviour(args, None)).await?;
    fleet.board().all_synced(common.limit()).await;
    let mut phase = fleet.board().end();
    let outcome = until_synced(&mut phase);
    let mut report = watch.report("storm", "agents synced", fleet.len(), outcome)?;
    report.notes.push("latency: from the start to an agent's first whole sync".to_owned());
    report.notes.extend(by_server(common, &phase.back));
    Ok(report)
}
