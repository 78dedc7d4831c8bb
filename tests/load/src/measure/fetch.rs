//! Workload API: a new connection, attestation and the first X.509-SVID, again and again.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

use super::Watch;
use crate::cli::Common;
use crate::drive::{Caller, closed, offered};
use crate::report::Report;
use crate::site::{Site, own_selector};
use crate::stats::Failure;
use crate::workload::{Stream, holds};

/// What an agent that polls may take to learn of an entry, and more.
const PATIENCE: Duration = Duration::from_secs(60);

struct Fetcher {
    socket: PathBuf,
}

impl Caller for Fetcher {
    async fn call(&mut self) -> Option<Result<u64, Failure>> {
        let fetched = async {
            let mut stream = Stream::open(&self.socket).await?;
            stream.next().await.map(|_| 1)
        };
        Some(fetched.await)
    }
}

/// An entry for this process below the real agent, once its SVID is there. Gives the entry's ID.
pub(super) async fn own_entry(site: &Site, common: &Common, path: &str) -> Result<String> {
    let agent = site.real_agent(common).await?;
    let ids = site.create(vec![site.entry(path, &agent, vec![own_selector()])]).await?;
    let arrived = wait_for(common, &site.id(path).path).await;
    let arrived = arrived.with_context(|| {
        format!("no SVID from {} for an entry below {agent:?}", common.agent_socket.display())
    });
    if arrived.is_err() {
        site.delete(&ids).await?;
    }
    arrived?;
    ids.into_iter().next().context("one entry")
}

async fn wait_for(common: &Common, path: &str) -> Result<(), Failure> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let first = async { Stream::open(&common.agent_socket).await?.next().await }.await;
        match first {
            Ok(answer) if holds(&answer, path) => return Ok(()),
            Err(failure) if failure.code == "Connect" || Instant::now() > give_up => return Err(failure),
            Ok(_) if Instant::now() > give_up => {
                return Err(Failure::new("NoAnswer", "other SVIDs, not this one"));
            }
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
}

pub(super) async fn run(common: &Common, rate: Option<f64>) -> Result<Report> {
    let callers = common.callers.unwrap_or(50);
    let site = Site::open(common).await?;
    let id = own_entry(&site, common, "/fetch").await?;
    let fetchers = (0..callers).map(|_| Fetcher { socket: common.agent_socket.clone() }).collect();
    let watch = Watch::agent(common)?;
    let outcome = match rate {
        Some(rate) => offered(fetchers, rate, common.limit()).await,
        None => closed(fetchers, common.limit()).await,
    };
    let mut report = watch.report("fetch", "first SVIDs", callers, outcome)?;
    report.notes.push(match rate {
        Some(rate) => format!("{rate} /s offered; latency counts from when a fetch was due"),
        None => "saturated".to_owned(),
    });
    site.delete(&[id]).await?;
    Ok(report)
}
