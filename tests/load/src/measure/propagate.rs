//! From an entry's creation to its SVID in a stream that was open before.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, timeout};

use super::Watch;
use super::fetch::own_entry;
use crate::cli::Common;
use crate::drive::Progress;
use crate::report::Report;
use crate::site::{Site, own_selector, selector};
use crate::stats::{Failure, Outcome};
use crate::workload::{Stream, holds};

/// Longer than this an SVID may not take.
const PATIENCE: Duration = Duration::from_secs(60);

async fn wait_for(stream: &mut Stream, path: &str) -> Result<(), Failure> {
    let arrived = async {
        loop {
            if holds(&stream.next().await?, path) {
                return Ok(());
            }
        }
    };
    let late = |_| Err(Failure::new("NoAnswer", format!("no SVID within {} s", PATIENCE.as_secs())));
    timeout(PATIENCE, arrived).await.unwrap_or_else(late)
}

pub(super) async fn run(common: &Common, rounds: usize) -> Result<Report> {
    let others = common.entries.unwrap_or(0);
    let site = Site::open(common).await?;
    let agent = site.real_agent(common).await?;
    let nobody = site.id("/nobody");
    let other = |n| site.entry(&format!("/other/{n}"), &nobody, vec![selector("unix", format!("uid:{n}"))]);
    let mut ids = site.create((0..others).map(other).collect()).await?;
    ids.push(own_entry(&site, common, "/waiting").await?); // so that the stream opens
    let mut stream = Stream::open(&common.agent_socket).await?;
    let watch = Watch::server(common)?;
    let progress = Progress::start(common.limit());
    let (mut outcome, began) = (Outcome::default(), Instant::now());
    for round in 0..rounds {
        if began.elapsed() >= common.limit() {
            break;
        }
        let path = format!("/round/{round}");
        let entry = site.entry(&path, &agent, vec![own_selector()]);
        let from = Instant::now();
        let made = site.create(vec![entry]).await?;
        let arrived = wait_for(&mut stream, &site.id(&path).path).await;
        let broken = arrived.is_err();
        outcome.add(from.elapsed(), arrived.map(|()| 1));
        site.delete(&made).await?;
        if broken {
            break;
        }
    }
    drop(progress);
    outcome.wall = began.elapsed();
    let mut report = watch.report("propagate", "SVIDs", 1, outcome)?;
    report.notes.push(format!("{others} other entries; the CPU is the server's"));
    site.delete(&ids).await?;
    Ok(report)
}
