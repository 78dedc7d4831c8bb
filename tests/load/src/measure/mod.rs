//! The measures, one a file.

mod attest;
mod authorities;
mod compare;
mod entries;
mod fetch;
mod fleet;
mod foreign;
mod jwt;
mod poll;
mod propagate;
mod sign;
mod spread;
mod start;
mod storm;
mod sync;
mod takeover;

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::{Cli, Common, Measure};
use crate::process::{Meter, own_cpu_seconds, round};
use crate::report::Report;
use crate::stats::Outcome;

/// Runs what the command line asks for.
/// # Errors
/// When a run could not begin or its process could not be watched; failed calls are part of the report.
pub async fn run(cli: &Cli) -> Result<Report> {
    let common = &cli.common;
    match &cli.measure {
        Measure::Attest => attest::run(common).await,
        Measure::Entries => entries::run(common).await,
        Measure::Sync { pace, others } => sync::run(common, *pace, *others).await,
        Measure::Sign { in_process: true } => sign::in_process(),
        Measure::Sign { in_process: false } => sign::run(common).await,
        Measure::Jwt { connections } => jwt::run(common, *connections).await,
        Measure::Fetch { rate } => fetch::run(common, *rate).await,
        Measure::Propagate { rounds } => propagate::run(common, *rounds).await,
        Measure::Fleet { dir } => fleet::run(common, dir).await,
        Measure::Storm { fleet } => storm::run(common, fleet).await,
        Measure::Poll { fleet } => poll::run(common, fleet).await,
        Measure::Spread { fleet, rounds, each } => spread::run(common, fleet, *rounds, *each).await,
        Measure::Takeover { fleet, victim } => takeover::run(common, fleet, *victim).await,
        Measure::Upstream { server_bin, pairs } => compare::upstream(common, server_bin, *pairs).await,
        Measure::Federated { server_bin, pairs, partners, dead } => {
            compare::federated(common, server_bin, *pairs, *partners, *dead).await
        }
        Measure::Authorities { daemons, rounds } => {
            authorities::run(common, &daemons.server_bin, &daemons.agent_bin, *rounds).await
        }
        Measure::Foreign { daemons, rounds } => {
            foreign::run(common, &daemons.server_bin, &daemons.agent_bin, *rounds).await
        }
        Measure::Start { server_bin, agent_bin, repeat } => start::run(server_bin, agent_bin, *repeat).await,
    }
}

/// A run with the processes behind sockets watched.
struct Watch {
    meters: Vec<Meter>,
    own: f64,
}

impl Watch {
    fn server(common: &Common) -> Result<Self> {
        Self::of(common, &common.admin_socket)
    }

    fn agent(common: &Common) -> Result<Self> {
        Self::of(common, std::slice::from_ref(&common.agent_socket))
    }

    fn of(common: &Common, sockets: &[PathBuf]) -> Result<Self> {
        let meters = match common.pid.is_empty() {
            true => sockets.iter().map(|socket| Meter::of_listener(socket)).collect::<Result<_>>()?,
            false => common.pid.iter().map(|pid| Meter::of_process(*pid)).collect::<Result<_>>()?,
        };
        Ok(Self { meters, own: own_cpu_seconds() })
    }

    /// The process of the server `number`, which is watched no longer.
    fn release(&mut self, number: usize) -> Option<u32> {
        (number < self.meters.len()).then(|| self.meters.remove(number).pid())
    }

    fn report(
        self,
        measure: &'static str,
        unit: &'static str,
        callers: usize,
        outcome: Outcome,
    ) -> Result<Report> {
        let usages = self.meters.iter().map(|meter| meter.finish(outcome.units));
        let mut usages = usages.collect::<Result<Vec<_>>>()?.into_iter();
        let mut report = Report::of(measure, unit, callers, outcome);
        report.client_cpu_seconds = round(own_cpu_seconds() - self.own, 100.0);
        report.process = usages.next();
        report.more_processes = usages.collect();
        Ok(report)
    }
}
