//! A fleet that has nothing new to hear, as most of the time.

use anyhow::Result;
use tokio::time::sleep;

use super::Watch;
use super::fleet::{HANDSHAKES, behaviour};
use crate::cli::{Common, FleetArgs, Protocol};
use crate::drive::Progress;
use crate::fleet::Fleet;
use crate::report::Report;
use crate::site::Site;

pub(super) async fn run(common: &Common, args: &FleetArgs) -> Result<Report> {
    let site = Site::open(common).await?;
    let fleet = Fleet::start(common, &site, &args.dir, behaviour(args, Some(HANDSHAKES))).await?;
    fleet.ready().await?;
    if args.protocol != Protocol::Watch {
        sleep(std::time::Duration::from_secs_f64(args.every)).await; // until they are spread evenly
    }
    let watch = Watch::server(common)?;
    fleet.board().begin(None);
    let progress = Progress::start(common.limit());
    sleep(common.limit()).await;
    drop(progress);
    let phase = fleet.board().end();
    let mut report = watch.report("poll", "syncs", fleet.len(), phase.syncs)?;
    report.notes.push(format!("{} connections ended and were made anew", phase.lost));
    Ok(report)
}
