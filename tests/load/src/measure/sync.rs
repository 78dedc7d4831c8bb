//! SyncAuthorizedEntries and GetBundle of agents whose entries do not change, as stock agents ask every 5 s. An agent
//! that is sent revisions knows them already and asks for nothing more.

use anyhow::Result;
use svid_proto::spire::api::server::bundle::v1::{GetBundleRequest, bundle_client::BundleClient};
use svid_proto::spire::api::server::entry::v1::SyncAuthorizedEntriesRequest;
use svid_proto::spire::api::server::entry::v1::entry_client::EntryClient;

use super::Watch;
use crate::cli::Common;
use crate::conn::{Http2, origin};
use crate::drive::{Caller, closed, offered};
use crate::fleet::AGENT_MASK;
use crate::report::Report;
use crate::site::{Site, selector, wait_until_authorised};
use crate::stats::Failure;

struct Agent {
    entries: EntryClient<Http2>,
    bundles: BundleClient<Http2>,
    /// Entries it has to hear of each time.
    expect: usize,
}

impl Agent {
    fn new(connection: Http2, expect: usize) -> Self {
        Self {
            entries: EntryClient::with_origin(connection.clone(), origin()),
            bundles: BundleClient::with_origin(connection, origin()),
            expect,
        }
    }

    async fn sync(&mut self) -> Result<u64, Failure> {
        let request = SyncAuthorizedEntriesRequest { output_mask: Some(AGENT_MASK), ids: Vec::new() };
        let mut answers =
            self.entries.sync_authorized_entries(tokio_stream::once(request)).await?.into_inner();
        let mut heard = 0;
        while let Some(answer) = answers.message().await? {
            heard += answer.entries.len().max(answer.entry_revisions.len());
            if !answer.more {
                break;
            }
        }
        if heard != self.expect {
            return Err(Failure::new("BadAnswer", format!("{heard} entries instead of {}", self.expect)));
        }
        self.bundles.get_bundle(GetBundleRequest { output_mask: None }).await?;
        Ok(1)
    }
}

/// Agents that sync in turn.
struct Syncer {
    agents: Vec<Agent>,
    next: usize,
}

impl Caller for Syncer {
    async fn call(&mut self) -> Option<Result<u64, Failure>> {
        let at = self.next % self.agents.len().max(1);
        self.next += 1;
        Some(self.agents.get_mut(at)?.sync().await)
    }
}

/// `agents` over `callers` in turn.
fn deal(agents: Vec<Agent>, callers: usize) -> Vec<Syncer> {
    let mut syncers: Vec<_> = (0..callers).map(|_| Syncer { agents: Vec::new(), next: 0 }).collect();
    for (n, agent) in agents.into_iter().enumerate() {
        syncers[n % callers].agents.push(agent);
    }
    syncers
}

pub(super) async fn run(common: &Common, pace: f64, others: usize) -> Result<Report> {
    let (count, per_agent) = (common.agents.unwrap_or(200).max(1), common.entries.unwrap_or(50));
    let callers = if pace > 0.0 { count } else { common.callers.unwrap_or(2).min(count) };
    let site = Site::open(common).await?;
    let nobody = site.id("/nobody");
    let other = |n| site.entry(&format!("/other/{n}"), &nobody, vec![selector("unix", format!("uid:{n}"))]);
    let mut ids = site.create((0..others).map(other).collect()).await?;
    let (mut agents, mut last) = (Vec::with_capacity(count), None);
    for (number, agent) in site.agents(count).await?.into_iter().enumerate() {
        let entry = |n| {
            let selectors =
                vec![selector("unix", format!("uid:{n}")), selector("unix", "path:/usr/bin/workload")];
            site.entry(&format!("/agent/{number}/{n}"), &agent.id, selectors)
        };
        ids.extend(site.create((0..per_agent).map(entry).collect()).await?);
        let connection = agent.connect().await?;
        agents.push(Agent::new(connection.clone(), per_agent));
        last = Some(connection);
    }
    if let Some(connection) = last {
        wait_until_authorised(connection, per_agent).await?;
    }
    let syncers = deal(agents, callers);
    let watch = Watch::server(common)?;
    let outcome = match pace > 0.0 {
        true => offered(syncers, count as f64 / pace, common.limit()).await,
        false => closed(syncers, common.limit()).await,
    };
    let mut report = watch.report("sync", "syncs", callers, outcome)?;
    report.notes.push(format!("{count} agents of {per_agent} entries, {others} entries of others"));
    site.delete(&ids).await?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn callers_without_agents_end() {
        let mut syncers = deal(Vec::new(), 2);
        assert_eq!(syncers.len(), 2);
        assert!(syncers[0].call().await.is_none());
    }
}
