//! `agent purge`: deletes agents that expired long ago and could attest again if they came back.

use std::time::{Duration, UNIX_EPOCH};

use svid_core::id::SpiffeId;
use svid_daemon::cli::{CliError, Command, go_json};
use svid_daemon::flags::Parsed;
use svid_proto::spire::api::server::agent::v1::{DeleteAgentRequest, ListAgentsRequest, list_agents_request};
use svid_proto::spire::api::types::{Agent, AgentMask};

use super::agent::{answered_id, client};
use super::session::{Session, count, is_json, rpc, rpc_context};
use super::{Handler, Outcome, flags};

/// One agent that expired, and what became of it.
struct Expired {
    id: SpiffeId,
    deleted: bool,
    error: String,
}

pub fn command() -> Command<Handler> {
    let flags = flags("agent purge")
        .duration(
            "expiredFor",
            "720h0m0s",
            "Amount of time that has passed since the agent's SVID has expired. It is used to determine which agents \
             to purge.",
        )
        .bool(
            "dryRun",
            "Indicates that the command will not perform any action, but will print the agents that would be purged.",
        );
    super::command(
        "agent purge",
        "Purge expired agents that were attested using a non-TOFU security model based on a given time",
        flags,
        |s, f| Box::pin(purge(s, f)),
    )
}

async fn purge(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut client = client(session.server().await?);
    let filter = list_agents_request::Filter { by_can_reattest: Some(true), ..Default::default() };
    let output_mask = Some(AgentMask { x509svid_expires_at: true, ..Default::default() });
    let request = ListAgentsRequest { filter: Some(filter), output_mask, ..Default::default() };
    let answer =
        client.list_agents(request).await.map_err(rpc_context("failed to list agents"))?.into_inner();
    let now = session.clock.now();
    let expired_for = flags.duration("expiredFor");
    let mut all = Vec::new();
    for agent in answer.agents.into_iter().filter(|agent| is_expired(agent, now, expired_for)) {
        let mut one = Expired { id: answered_id(agent.id.as_ref())?, deleted: false, error: String::new() };
        if !flags.bool("dryRun") {
            match client.delete_agent(DeleteAgentRequest { id: agent.id }).await {
                Ok(_) => one.deleted = true,
                Err(status) => one.error = rpc(&status),
            }
        }
        all.push(one);
    }
    match is_json(flags) {
        true => print_json(session, &all),
        false => print_pretty(session, &all, flags.bool("dryRun")),
    }
}

fn is_expired(agent: &Agent, now: std::time::SystemTime, expired_for: Duration) -> bool {
    let since_epoch = Duration::from_secs(u64::try_from(agent.x509svid_expires_at).unwrap_or_default());
    now.duration_since(UNIX_EPOCH + since_epoch).is_ok_and(|since| since > expired_for)
}

/// Fields stand in the order of SPIRE's struct, which Go keeps.
fn print_json(session: &mut Session<'_>, all: &[Expired]) -> Outcome {
    let items: Vec<_> = all
        .iter()
        .map(|one| {
            let text = |text: &str| go_json(&serde_json::Value::from(text));
            let error = match one.error.as_str() {
                "" => String::new(),
                error => format!(",\"error\":{}", text(error)),
            };
            format!("{{\"agent_id\":{},\"deleted\":{}{error}}}", text(one.id.as_str()), one.deleted)
        })
        .collect();
    Ok(writeln!(session.out, "{{\"expired_agents\":[{}]}}", items.join(","))?)
}

fn print_pretty(session: &mut Session<'_>, all: &[Expired], dry_run: bool) -> Result<(), CliError> {
    let out = &mut *session.out;
    if all.is_empty() {
        return Ok(writeln!(out, "No agents to purge.")?);
    }
    write!(out, "Found {}\n\n", count(all.len(), "expired agent", "expired agents"))?;
    if dry_run {
        writeln!(out, "\nAgents that can be purged:")?;
        for one in all {
            writeln!(out, "SPIFFE ID         : {}", one.id)?;
        }
        return Ok(());
    }
    let (purged, kept): (Vec<_>, Vec<_>) = all.iter().partition(|one| one.deleted);
    if !purged.is_empty() {
        writeln!(out, "Agents purged:")?;
    }
    for one in purged {
        writeln!(out, "SPIFFE ID         : {}", one.id)?;
    }
    if !kept.is_empty() {
        writeln!(out, "Agents not purged:")?;
    }
    for one in kept {
        writeln!(out, "SPIFFE ID         : {}\nError             : {}", one.id, one.error)?;
    }
    Ok(())
}
