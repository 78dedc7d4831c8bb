//! The measures, one a file.

mod attest;
mod entries;
mod fetch;
mod jwt;
mod propagate;
mod sign;
mod start;
mod sync;

use std::path::Path;

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
        Measure::Start { server_bin, agent_bin, repeat } => start::run(server_bin, agent_bin, *repeat).await,
    }
}

/// A run with the process behind a socket watched.
struct Watch {
    meter: Meter,
    own: f64,
}

impl Watch {
    fn server(common: &Common) -> Result<Self> {
        Self::of(common, &common.admin_socket)
    }

    fn agent(common: &Common) -> Result<Self> {
        Self::of(common, &common.agent_socket)
    }

    fn of(common: &Common, socket: &Path) -> Result<Self> {
        Ok(Self { meter: Meter::start(common.pid, socket)?, own: own_cpu_seconds() })
    }

    fn report(
        self,
        measure: &'static str,
        unit: &'static str,
        callers: usize,
        outcome: Outcome,
    ) -> Result<Report> {
        let usage = self.meter.finish(outcome.units)?;
        let mut report = Report::of(measure, unit, callers, outcome);
        report.client_cpu_seconds = round(own_cpu_seconds() - self.own, 100.0);
        report.process = Some(usage);
        Ok(report)
    }
}
