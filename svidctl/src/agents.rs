//! `agent list`, and `agent show` with what that agent can obtain.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;
use svid_core::id::SpiffeId;
use svid_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use svid_proto::spire::api::server::agent::v1::{GetAgentRequest, ListAgentsRequest};
use svid_proto::spire::api::types::{self, Entry};
use svid_proto::svid::status::v1::status_client::StatusClient;
use svid_proto::svid::status::v1::{ListAuthorizedEntriesRequest, ListSuspectedClonesRequest};
use tonic::Code;
use tonic::transport::Channel;

use crate::args::{AgentCommand, Args};
use crate::authorized;
use crate::connect::{self, Failure, MAX_ANSWER_BYTES, Who};
use crate::entries::{self, id, marks, selectors};
use crate::render::{self, Paint, Screen, facts, left, span, table};

const PAGE_SIZE: i32 = 1000;
/// What to know about a suspected clone.
const CLONE: &str = "an old certificate was used after its successor; ban or evict the agent and attest it again on a clean machine";

pub async fn run(args: &Args, command: &AgentCommand, screen: &mut Screen) -> Result<(), Failure> {
    match command {
        AgentCommand::List => {
            let channel = connect::dial(Who::Server, &args.server_socket).await?;
            let now = render::now();
            let suspected = suspected(channel.clone()).await?;
            let all = list(channel).await?;
            let mut agents: Vec<_> = all.iter().map(|agent| Agent::new(agent, &suspected, now)).collect();
            agents.sort_by(|a, b| a.id.cmp(&b.id));
            screen.print(&List { agents }, |list, paint| list_text(list, now, paint))
        }
        AgentCommand::Show { id } => {
            let id: SpiffeId = id.parse().map_err(|error| {
                Failure::new(format!("{id:?} is not a SPIFFE ID: {error}"))
                    .advise("`svidctl agent list` shows those of the agents.")
            })?;
            let channel = connect::dial(Who::Server, &args.server_socket).await?;
            let now = render::now();
            let (report, entries) = show(channel, &id, now).await?;
            screen.print(&report, |report, paint| show_text(report, &entries, now, paint))
        }
    }
}

/// An agent as this tool prints it.
#[derive(Debug, Serialize)]
struct Agent {
    id: String,
    attestation_type: String,
    serial: String,
    expires_at: i64,
    remaining_s: i64,
    /// `active`, `expired` or `banned`.
    state: &'static str,
    can_reattest: bool,
    version: String,
    /// When an old certificate of it was last used after its successor; 0 for never, or when not told.
    suspected_clone_at: i64,
}

/// Agents of which a copy may exist, and since when that is known.
type Suspected = HashMap<String, i64>;

impl Agent {
    fn new(agent: &types::Agent, suspected: &Suspected, now: i64) -> Self {
        let spiffe_id = id(agent.id.as_ref());
        let remaining_s = agent.x509svid_expires_at.saturating_sub(now).max(0);
        Self {
            suspected_clone_at: suspected.get(&spiffe_id).copied().unwrap_or_default(),
            id: spiffe_id,
            attestation_type: agent.attestation_type.clone(),
            serial: agent.x509svid_serial_number.clone(),
            expires_at: agent.x509svid_expires_at,
            remaining_s,
            state: match (agent.banned, remaining_s) {
                (true, _) => "banned",
                (false, 0) => "expired",
                (false, _) => "active",
            },
            can_reattest: agent.can_reattest,
            version: agent.agent_version.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    agents: Vec<Agent>,
}

#[derive(Debug, Serialize)]
struct Show {
    agent: Agent,
    selectors: Vec<String>,
    entries: Vec<Value>,
    /// `server`, or `svidctl` when the server cannot be asked.
    computed_by: &'static str,
}

/// SPIRE's server cannot tell.
async fn suspected(channel: Channel) -> Result<Suspected, Failure> {
    let mut client = StatusClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    match client.list_suspected_clones(ListSuspectedClonesRequest {}).await {
        Ok(answer) => {
            let clones = answer.into_inner().clones;
            Ok(clones.into_iter().map(|clone| (id(clone.agent_id.as_ref()), clone.seen_at)).collect())
        }
        Err(status) if connect::is_unknown(&status) => Ok(Suspected::new()),
        Err(status) => Err(connect::rpc(Who::Server, &status)),
    }
}

async fn list(channel: Channel) -> Result<Vec<types::Agent>, Failure> {
    let mut client = AgentClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let mut agents = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListAgentsRequest { page_size: PAGE_SIZE, page_token, ..Default::default() };
        let answer =
            client.list_agents(request).await.map_err(|status| connect::rpc(Who::Server, &status))?;
        let answer = answer.into_inner();
        agents.extend(answer.agents);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(agents);
        }
    }
}

async fn show(channel: Channel, id: &SpiffeId, now: i64) -> Result<(Show, Vec<Entry>), Failure> {
    let wire_id = types::Spiffeid { trust_domain: id.trust_domain_name().into(), path: id.path().into() };
    let request = GetAgentRequest { id: Some(wire_id.clone()), output_mask: None };
    let agent =
        AgentClient::new(channel.clone()).get_agent(request).await.map_err(|status| match status.code() {
            Code::NotFound => Failure::new(format!("no agent {id} has attested"))
                .advise("`svidctl agent list` shows those that have."),
            _ => connect::rpc(Who::Server, &status),
        })?;
    let agent = agent.into_inner();
    let suspected = suspected(channel.clone()).await?;
    let (mut entries, computed_by) = obtainable(channel, &wire_id, &agent.selectors, now).await?;
    entries.sort_by_cached_key(|entry| (entries::id(entry.spiffe_id.as_ref()), entry.id.clone()));
    let report = Show {
        agent: Agent::new(&agent, &suspected, now),
        selectors: selectors(&agent.selectors),
        entries: entries.iter().map(entries::json).collect::<Result<_, _>>()?,
        computed_by,
    };
    Ok((report, entries))
}

async fn obtainable(
    channel: Channel,
    agent: &types::Spiffeid,
    selectors: &[types::Selector],
    now: i64,
) -> Result<(Vec<Entry>, &'static str), Failure> {
    let request = ListAuthorizedEntriesRequest { agent_id: Some(agent.clone()) };
    let mut client = StatusClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
    match client.list_authorized_entries(request).await {
        Ok(answer) => Ok((answer.into_inner().entries, "server")),
        Err(status) if connect::is_unknown(&status) => {
            let all = entries::list(channel).await?;
            Ok((authorized::entries(all, agent, selectors, now), "svidctl"))
        }
        Err(status) => Err(connect::rpc(Who::Server, &status)),
    }
}

fn state(agent: &Agent, paint: Paint) -> String {
    match (agent.state, agent.suspected_clone_at) {
        ("active", 0) => agent.state.into(),
        (state, 0) => paint.warn(state),
        (state, _) => paint.warn(&format!("{state}, suspected clone")),
    }
}

fn list_text(list: &List, now: i64, paint: Paint) -> String {
    if list.agents.is_empty() {
        return "No agent has attested. `svid-server token generate` makes a token for the first one.\n"
            .into();
    }
    let yes = |is_set: bool| if is_set { "yes" } else { "no" }.to_owned();
    let rows = list.agents.iter().map(|agent| {
        vec![
            agent.id.clone(),
            // Colours would count as width in a table.
            state(agent, Paint(false)),
            left(agent.expires_at, now),
            agent.attestation_type.clone(),
            yes(agent.can_reattest),
            agent.version.clone(),
        ]
    });
    let text = table(&["AGENT", "STATE", "SVID", "ATTESTED BY", "CAN RE-ATTEST", "VERSION"], rows);
    let troubled = list.agents.iter().filter(|agent| agent.state != "active").count();
    let cloned = list.agents.iter().filter(|agent| agent.suspected_clone_at > 0).count();
    let all = list.agents.len();
    let mut lines = Vec::new();
    if troubled > 0 {
        lines.push(format!("{troubled} of {all} agents cannot work."));
    }
    if cloned > 0 {
        lines.push(format!("{cloned} of {all} agents may have a copy: {CLONE}."));
    }
    lines.iter().fold(text, |text, line| format!("{text}\n{}\n", paint.warn(line)))
}

fn show_text(report: &Show, entries: &[Entry], now: i64, paint: Paint) -> String {
    let agent = &report.agent;
    let mut text = facts(
        "",
        &[
            ("Agent", agent.id.clone()),
            ("State", state(agent, paint)),
            ("SVID", format!("serial {}, {}", agent.serial, left(agent.expires_at, now))),
            ("Attested by", agent.attestation_type.clone()),
            ("Can re-attest", if agent.can_reattest { "yes" } else { "no" }.into()),
            ("Version", agent.version.clone()),
            ("Selectors", report.selectors.join(", ")),
        ],
    );
    if agent.suspected_clone_at > 0 {
        let since = span(now.saturating_sub(agent.suspected_clone_at).max(0));
        let line = format!("A copy of this agent's data may exist, seen {since} ago: {CLONE}.");
        text += &format!("\n{}\n", paint.warn(&line));
    }
    text.push('\n');
    if entries.is_empty() {
        text += "It can obtain nothing: no entry has it, or an alias of it, as its parent.\n";
        text += &format!(
            "Make one: svid-server entry create -parentID {} -spiffeID ... -selector ...\n",
            agent.id
        );
        return text;
    }
    let number = render::count(entries.len() as u64, "identity", "identities");
    text += &format!("{}\n", paint.bold(&format!("It can obtain {number}:")));
    let rows = entries.iter().map(|entry| {
        vec![
            id(entry.spiffe_id.as_ref()),
            selectors(&entry.selectors).join(" "),
            marks(entry, now),
            entry.id.clone(),
        ]
    });
    text += &table(&["SPIFFE ID", "FOR", "NOTES", "ENTRY"], rows);
    if report.computed_by == "svidctl" {
        text += &paint
            .dim("This server cannot be asked what an agent may obtain: worked out from its entries.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(banned: bool, expires_at: i64) -> types::Agent {
        types::Agent {
            id: Some(types::Spiffeid { trust_domain: "example.org".into(), path: "/spire/agent/a".into() }),
            attestation_type: "join_token".into(),
            x509svid_serial_number: "7".into(),
            x509svid_expires_at: expires_at,
            banned,
            ..Default::default()
        }
    }

    #[test]
    fn agents_in_a_table() {
        let agents = vec![
            Agent::new(&agent(false, 160), &Suspected::new(), 100),
            Agent::new(&agent(true, 90), &Suspected::new(), 100),
        ];
        let want = "\
AGENT                              STATE   SVID          ATTESTED BY  CAN RE-ATTEST  VERSION
spiffe://example.org/spire/agent/a  active  1m 0s left    join_token   no
spiffe://example.org/spire/agent/a  banned  over for 10s  join_token   no

1 of 2 agents cannot work.
";
        let got = list_text(&List { agents }, 100, Paint(false));
        assert_eq!(got, want.replacen("AGENT  ", "AGENT   ", 1));
    }

    #[test]
    fn states() {
        for (banned, expires_at, want) in
            [(false, 101, "active"), (false, 100, "expired"), (true, 500, "banned")]
        {
            assert_eq!(Agent::new(&agent(banned, expires_at), &Suspected::new(), 100).state, want);
        }
    }

    #[test]
    fn a_suspected_clone_is_told() {
        let suspected = Suspected::from([("spiffe://example.org/spire/agent/a".to_owned(), 90)]);
        let agent = || Agent::new(&agent(false, 160), &suspected, 100);
        let text = list_text(&List { agents: vec![agent()] }, 100, Paint(false));
        assert!(text.contains("active, suspected clone"), "{text}");
        assert!(text.contains("1 of 1 agents may have a copy"), "{text}");
        let report = Show { agent: agent(), selectors: vec![], entries: vec![], computed_by: "server" };
        let text = show_text(&report, &[], 100, Paint(false));
        assert!(text.contains("data may exist, seen 10s ago: an old certificate"), "{text}");
    }

    #[test]
    fn an_agent_without_entries_says_how_to_make_one() {
        let report = Show {
            agent: Agent::new(&agent(false, 160), &Suspected::new(), 100),
            selectors: vec![],
            entries: vec![],
            computed_by: "server",
        };
        let text = show_text(&report, &[], 100, Paint(false));
        assert!(text.contains("SVID:           serial 7, 1m 0s left\n"), "{text}");
        assert!(text.contains("entry create -parentID spiffe://example.org/spire/agent/a"), "{text}");
    }
}
