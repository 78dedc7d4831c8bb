//! Load generator that speaks only SPIRE's APIs, so that one run can be pointed at any compatible server or agent.

mod cli;
mod conn;
mod drive;
mod fleet;
mod ground;
mod measure;
mod one_core;
mod pairs;
mod partners;
mod process;
mod report;
mod site;
mod stats;
mod workload;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Output};
use report::Report;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli).and_then(|report| print(&report, cli.common.output).map(|()| report)) {
        Ok(report) if report.is_failure() => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("svid-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<Report> {
    // On one thread a caller's answer needs no other core to wake up.
    let runtime = match cli.common.threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build()?,
    };
    runtime.block_on(measure::run(cli))
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(report)?),
    }
    Ok(())
}
