//! `envoy bootstrap`: a complete Envoy configuration that lives off the agent's socket.

mod endpoint;
mod file;
mod flags;
mod inbound;
mod outbound;
mod parts;
mod plan;
#[cfg(test)]
mod tests;
mod upstream;

pub use flags::EnvoyCommand;

use serde_json::{Value, json};

use crate::args::Args;
use crate::connect::Failure;
use crate::render::Screen;
use plan::Plan;

/// Runs a subcommand of `envoy`.
///
/// # Errors
/// Every mistake of the command line, one a line; what writing says.
pub fn run(args: &Args, command: &EnvoyCommand, screen: &mut Screen) -> Result<(), Failure> {
    let EnvoyCommand::Bootstrap(flags) = command;
    let plan = Plan::check(flags, &args.workload_socket()).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Failure::new(lines.join("\nError: "))
    })?;
    let text = serde_json::to_string_pretty(&configuration(&plan)).map_err(Failure::new)? + "\n";
    match &flags.file {
        Some(path) => {
            file::replace(path, text.as_bytes())
                .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
        }
        None => screen.out.write_all(text.as_bytes())?,
    }
    // Standard error, because standard output may be the configuration.
    plan.notes().iter().for_each(|note| eprintln!("{note}"));
    Ok(())
}

/// The configuration as Envoy reads it. The order of keys is the order of writing.
fn configuration(plan: &Plan) -> Value {
    let listeners: Vec<Value> = inbound::listeners(plan).chain(outbound::listeners(plan)).collect();
    let clusters: Vec<Value> = [inbound::clusters(plan), outbound::clusters(plan)]
        .into_iter()
        .flatten()
        .chain([parts::agent_cluster(&plan.agent_socket)])
        .collect();
    json!({
        "node": {"id": plan.service.name, "cluster": plan.service.name},
        "admin": {"address": {"pipe": {"path": plan.admin_socket, "mode": 0o600}}},
        "overload_manager": parts::connection_limit(),
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}
