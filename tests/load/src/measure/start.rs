//! From an empty directory to the first X.509-SVID in this process: server, join token, entry, agent.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use crate::ground::Ground;
use crate::report::Report;
use crate::site::own_selector;
use crate::stats::{Failure, Outcome};

async fn once(server_bin: &Path, agent_bin: &Path) -> Result<Duration> {
    let ground = Ground::new("example.org")?;
    let began = Instant::now();
    let (_server, site) = ground.server(server_bin, "", "").await?;
    let token = site.tokens(1).await?.pop().context("one token")?;
    site.create(vec![site.entry("/first", &site.agent_of(&token), vec![own_selector()])]).await?;
    let mut agent = ground.agent(agent_bin, "agent", &token)?;
    ground.first_svid(&mut agent, "agent").await?;
    Ok(began.elapsed())
}

pub(super) async fn run(server_bin: &Path, agent_bin: &Path, repeat: usize) -> Result<Report> {
    let mut outcome = Outcome::default();
    let mut seconds = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let from = Instant::now();
        match once(server_bin, agent_bin).await {
            Ok(took) => {
                outcome.add(took, Ok(1));
                seconds.push(format!("{:.3}", took.as_secs_f64()));
            }
            Err(error) => outcome.add(from.elapsed(), Err(Failure::new("NotStarted", format!("{error:#}")))),
        }
        outcome.wall += from.elapsed();
    }
    let mut report = Report::of("start", "starts", 1, outcome);
    report.notes.push(format!("seconds, in turn: {}", seconds.join(" ")));
    Ok(report)
}
