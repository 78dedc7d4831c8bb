//! Attests a fleet and keeps it.

use std::path::Path;

use anyhow::Result;

use super::Watch;
use crate::cli::{Common, FleetArgs};
use crate::drive::closed;
use crate::fleet::{Behaviour, Phase, Sighting, make};
use crate::report::Report;
use crate::site::Site;
use crate::stats::{Failure, Latency, Outcome};

/// Entries of each agent, besides the one that makes it a member of the group.
const ENTRIES: usize = 19;
/// Connections at the same time where a storm is not what is measured.
pub(super) const HANDSHAKES: usize = 64;

pub(super) async fn run(common: &Common, dir: &Path) -> Result<Report> {
    let entries = common.entries.unwrap_or(ENTRIES);
    let site = Site::open(common).await?;
    let mut making = make(common, &site, dir, entries).await?;
    let watch = Watch::server(common)?;
    let makers = std::mem::take(&mut making.makers);
    let callers = makers.len();
    let outcome = closed(makers, common.limit()).await;
    let mut report = watch.report("fleet", "agents", callers, outcome)?;
    making.finish(report.units)?;
    report.notes.push(format!("{} entries each; agents and entries stay", entries + 1));
    Ok(report)
}

/// How the agents of `args` behave. `handshakes`: unless the command line says.
pub(super) fn behaviour(args: &FleetArgs, handshakes: Option<usize>) -> Behaviour {
    Behaviour {
        protocol: args.protocol,
        every: std::time::Duration::from_secs_f64(args.every),
        svids: args.svids,
        handshakes: args.handshakes.or(handshakes),
    }
}

/// A phase whose latencies are those until agents were synced.
pub(super) fn until_synced(phase: &mut Phase) -> Outcome {
    let mut outcome = std::mem::take(&mut phase.syncs);
    outcome.latencies = phase.back.iter().map(|sighting| sighting.after).collect();
    outcome.units = outcome.latencies.len() as u64;
    if let Some(last) = outcome.latencies.iter().max() {
        outcome.wall = *last;
    }
    for _ in 0..phase.left {
        outcome.add(std::time::Duration::ZERO, Err(Failure::new("NotSynced", "not synced in time")));
    }
    outcome
}

/// A line for each server about what was seen there.
pub(super) fn by_server(common: &Common, seen: &[Sighting]) -> Vec<String> {
    let line = |(number, server): (usize, &String)| {
        let at = seen.iter().filter(|sighting| sighting.server == number).map(|sighting| sighting.after);
        let Latency { calls, p50, p99, max } = Latency::of(at.collect())?;
        Some(format!("at {server}: p50 {p50}, p99 {p99}, max {max} ms ({calls})"))
    };
    common.server.iter().enumerate().filter_map(line).collect()
}
