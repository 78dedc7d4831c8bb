//! From an entry's creation on one server to the agents of all servers.

use std::time::Duration;

use anyhow::Result;
use svid_proto::convert::id_to_wire;
use tokio::time::Instant;

use super::Watch;
use super::fleet::{HANDSHAKES, behaviour, by_server};
use crate::cli::{Common, FleetArgs};
use crate::fleet::{Fleet, group};
use crate::report::Report;
use crate::site::{Site, selector};
use crate::stats::{Failure, Outcome};

/// Longer than this no agent may take to hear of an entry.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(common: &Common, args: &FleetArgs, rounds: usize, each: bool) -> Result<Report> {
    let others = common.entries.unwrap_or(0);
    let site = Site::open(common).await?;
    let nobody = site.id("/nobody");
    let other = |n| site.entry(&format!("/other/{n}"), &nobody, vec![selector("unix", format!("uid:{n}"))]);
    let mut ids = site.create((0..others).map(other).collect()).await?;
    let fleet = Fleet::start(common, &site, &args.dir, behaviour(args, Some(HANDSHAKES))).await?;
    fleet.ready().await?;
    let watch = Watch::server(common)?;
    fleet.board().begin(None);
    let (mut outcome, mut seen, began) = (Outcome::default(), Vec::new(), Instant::now());
    for round in 0..rounds {
        let only = each.then(|| round % fleet.len());
        let parent = match only {
            Some(number) => id_to_wire(&fleet.agent_id(number)?),
            None => group(fleet.site()),
        };
        // Named after this run: an earlier one of the same fleet had a round of this number, too.
        let entry = site.entry(&format!("/round/{round}"), &parent, vec![selector("unix", "uid:1")]);
        let path = entry.spiffe_id.as_ref().map(|id| id.path.clone()).unwrap_or_default();
        fleet.board().begin_round(path, only);
        ids.extend(site.create(vec![entry]).await?);
        let all = fleet.board().all_saw(PATIENCE).await;
        let (heard, left) = fleet.board().end_round();
        heard.iter().for_each(|sighting| outcome.add(sighting.after, Ok(1)));
        for _ in 0..left {
            outcome.add(PATIENCE, Err(Failure::new("NotHeard", "an agent did not hear of an entry")));
        }
        seen.extend(heard);
        if !all {
            break;
        }
    }
    outcome.wall = began.elapsed();
    let phase = fleet.board().end();
    for (code, errors) in phase.syncs.errors {
        outcome.add(Duration::ZERO, Err(Failure { code, text: errors.first }));
    }
    let mut report = watch.report("spread", "sightings", fleet.len(), outcome)?;
    report
        .notes
        .push("latency: from before the call that creates an entry to an agent that has it".to_owned());
    report.notes.push(format!("{rounds} entries one after the other, {others} other entries"));
    report.notes.extend(by_server(common, &seen));
    drop(fleet);
    site.delete(&ids).await?;
    Ok(report)
}
