//! A server is killed, and its agents turn to another.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Watch;
use super::fleet::{behaviour, by_server, until_synced};
use crate::cli::{Common, FleetArgs};
use crate::fleet::Fleet;
use crate::report::Report;
use crate::site::Site;

pub(super) async fn run(common: &Common, args: &FleetArgs, victim: usize) -> Result<Report> {
    let dead = victim.saturating_sub(1);
    ensure!(
        common.server.len() == common.admin_socket.len() && common.server.len() > 1,
        "give several servers, with --server A,B and --admin-socket A,B"
    );
    ensure!(dead < common.server.len(), "--victim {victim}: there are {} servers", common.server.len());
    let site = Site::open(common).await?;
    let fleet = Fleet::start(common, &site, &args.dir, behaviour(args, None)).await?;
    fleet.ready().await?;
    let mut watch = Watch::server(common)?;
    let pid = watch.release(dead).context("no process to kill")?;
    fleet.board().begin(Some(dead));
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("cannot kill the server")?;
    fleet.board().all_synced(common.limit()).await;
    let mut phase = fleet.board().end();
    let lost = phase.lost;
    let outcome = until_synced(&mut phase);
    let mut report = watch.report("takeover", "agents synced", fleet.len(), outcome)?;
    report.notes.push(format!("server {victim} (pid {pid}) was killed; {lost} connections ended"));
    report.notes.push("latency: from the kill to an agent's next whole sync at another server".to_owned());
    report.notes.extend(by_server(common, &phase.back));
    Ok(report)
}
