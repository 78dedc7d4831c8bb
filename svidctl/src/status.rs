//! `status`: one screen.

use serde::Serialize;

use crate::args::Args;
use crate::connect::Failure;
use crate::render::{self, Paint, Screen, count, facts, left, span, table};
use crate::status_gather;
use crate::status_servers::{Peer, server_warnings, servers_text};

/// Everything that `status` knows.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The server, if it answers.
    pub server: Option<Server>,
    /// The agent, if it answers.
    pub agent: Option<Agent>,
    /// What needs attention, most urgent first.
    pub warnings: Vec<String>,
    /// What was not seen and why.
    pub notes: Vec<String>,
}

/// What is known of the server.
#[derive(Debug, Default, Serialize)]
pub struct Server {
    pub socket: String,
    /// `svid.status.v1`, or `spire` for a server that lacks it.
    pub source: &'static str,
    pub version: String,
    pub trust_domain: String,
    pub uptime_s: i64,
    pub server_id: String,
    pub agents: u64,
    pub banned_agents: u64,
    pub expired_agents: u64,
    pub watching_agents: u64,
    pub entries: u64,
    pub entries_expiring_soon: u64,
    pub federated_bundles: u64,
    pub x509_authorities: Vec<Authority>,
    pub jwt_authorities: Vec<Authority>,
    pub svid: Option<Svid>,
    /// Empty when not told.
    pub database: String,
    pub database_reachable: bool,
    /// Since memory was last compared with the database.
    pub stale_s: i64,
    /// Longest time that memory alone may answer.
    pub max_stale_s: i64,
    /// The servers of the trust domain, as far as they are told.
    pub servers: Vec<Peer>,
    /// `pidfd`, what stands in for it, or empty when not told.
    pub peer_identification: String,
}

/// An authority of the bundle.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Authority {
    pub id: String,
    /// Empty for JWT keys.
    pub subject: String,
    /// 0 for JWT keys.
    pub not_before: i64,
    pub not_after: i64,
    pub remaining_s: i64,
    /// `active`, `prepared`, `old`, `published`, or `unknown`.
    pub state: &'static str,
    /// Empty when not in a slot of this server.
    pub slot: String,
    pub tainted: bool,
    /// Empty when self-signed.
    pub upstream: String,
}

/// An SVID of a daemon.
#[derive(Debug, Default, Serialize)]
pub struct Svid {
    pub spiffe_id: String,
    pub expires_at: i64,
    pub remaining_s: i64,
}

/// What is known of the agent.
#[derive(Debug, Default, Serialize)]
pub struct Agent {
    pub socket: String,
    /// `svid.status.v1`, `spire`, or `workload_api` when only that socket answers.
    pub source: &'static str,
    pub version: String,
    pub trust_domain: String,
    pub uptime_s: i64,
    pub svid: Option<Svid>,
    pub reattestable: bool,
    pub server_address: String,
    pub connected: bool,
    pub watching: bool,
    /// 0: never.
    pub last_sync: i64,
    /// 0: not told, or never.
    pub last_server_contact: i64,
    /// When the first X509-SVID of a workload ends. 0: there is none, or it is not told.
    pub first_svid_expires_at: i64,
    pub entries: u64,
    pub cached_x509_svids: u64,
    pub cached_jwt_svids: u64,
    pub open_streams: u64,
    pub peer_identification: String,
}

pub async fn run(args: &Args, screen: &mut Screen) -> Result<(), Failure> {
    let now = render::now();
    let report = status_gather::gather(args, now).await?;
    screen.print(&report, |report, paint| text(report, now, paint))
}

/// The screen.
pub fn text(report: &Report, now: i64, paint: Paint) -> String {
    let mut text = String::new();
    if report.warnings.is_empty() {
        text += &paint.bold("Nothing needs attention.\n");
    } else {
        text += &paint.bold("Needs attention\n");
        report.warnings.iter().for_each(|warning| text += &paint.warn(&format!("  ! {warning}\n")));
    }
    if let Some(server) = &report.server {
        text.push('\n');
        text += &server_text(server, now, paint);
    }
    if let Some(agent) = &report.agent {
        text.push('\n');
        text += &agent_text(agent, now, paint);
    }
    if !report.notes.is_empty() {
        text.push('\n');
        report.notes.iter().for_each(|note| text += &paint.dim(&format!("Note: {note}\n")));
    }
    text
}

fn of(part: u64, word: &str, parts: &mut Vec<String>) {
    if part > 0 {
        parts.push(format!("{part} {word}"));
    }
}

fn with(total: String, parts: &[String]) -> String {
    if parts.is_empty() { total } else { format!("{total} ({})", parts.join(", ")) }
}

fn server_text(server: &Server, now: i64, paint: Paint) -> String {
    let mut agents = Vec::new();
    of(server.watching_agents, "watching", &mut agents);
    of(server.banned_agents, "banned", &mut agents);
    of(server.expired_agents, "expired", &mut agents);
    let mut entries = Vec::new();
    of(server.entries_expiring_soon, "expiring soon", &mut entries);
    let mut rows = vec![
        ("Trust domain", server.trust_domain.clone()),
        ("Up", version_and_uptime(&server.version, server.uptime_s)),
        ("Agents", with(count(server.agents, "agent", "agents"), &agents)),
        ("Entries", with(count(server.entries, "entry", "entries"), &entries)),
        ("Federation", count(server.federated_bundles, "foreign bundle", "foreign bundles")),
    ];
    if let Some(svid) = &server.svid {
        rows.push(("Own SVID", left(svid.expires_at, now)));
    }
    if !server.database.is_empty() {
        let reach = if server.database_reachable {
            "reachable".to_owned()
        } else {
            let left = span(server.max_stale_s.saturating_sub(server.stale_s).max(0));
            format!("not reachable for {}; memory answers for another {left}", span(server.stale_s))
        };
        rows.push(("Database", format!("{}, {reach}", server.database)));
    }
    let mut text = paint.bold(&format!("Server {}", server.socket)) + "\n" + &facts("  ", &rows) + "\n";
    if !server.servers.is_empty() {
        text += &servers_text(&server.servers, now);
        text.push('\n');
    }
    let all = (server.x509_authorities.iter().map(|one| ("X.509", one)))
        .chain(server.jwt_authorities.iter().map(|one| ("JWT", one)));
    let rows = all.map(|(kind, one)| {
        let state = if one.tainted { format!("{}, tainted", one.state) } else { one.state.to_owned() };
        vec![
            kind.into(),
            state,
            left(one.not_after, now),
            one.slot.clone(),
            one.id.clone(),
            one.subject.clone(),
        ]
    });
    text += &table(&["AUTHORITY", "STATE", "LIFE", "SLOT", "ID", "SUBJECT"], rows);
    text
}

fn version_and_uptime(version: &str, uptime_s: i64) -> String {
    match version {
        "" => format!("for {}", span(uptime_s)),
        version => format!("version {version}, for {}", span(uptime_s)),
    }
}

fn agent_text(agent: &Agent, now: i64, paint: Paint) -> String {
    let heading = paint.bold(&format!("Agent {}", agent.socket)) + "\n";
    if agent.source == "workload_api" {
        return heading + "  The Workload API answers; more only its admin socket tells.\n";
    }
    let mut rows = vec![("Up", version_and_uptime(&agent.version, agent.uptime_s))];
    if let Some(svid) = &agent.svid {
        let again = if agent.reattestable { "can attest again" } else { "cannot attest again" };
        rows.push(("Agent", svid.spiffe_id.clone()));
        rows.push(("Own SVID", format!("{}, {again}", left(svid.expires_at, now))));
    }
    if !agent.server_address.is_empty() {
        let how = match (agent.connected, agent.watching) {
            (true, true) => "connected, changes are pushed",
            (true, false) => "connected, polled for changes",
            (false, _) => "not connected",
        };
        rows.push(("Server", format!("{}, {how}", agent.server_address)));
    }
    let sync = match agent.last_sync {
        0 => "never".to_owned(),
        at => format!("{} ago", span(now.saturating_sub(at).max(0))),
    };
    let cached = format!("{} X.509, {} JWT", agent.cached_x509_svids, agent.cached_jwt_svids);
    rows.extend([("Last sync", sync), ("Entries", agent.entries.to_string()), ("SVIDs in cache", cached)]);
    if agent.first_svid_expires_at > 0 {
        rows.push(("First SVID ends", left(agent.first_svid_expires_at, now)));
    }
    rows.push(("Open streams", agent.open_streams.to_string()));
    heading + &facts("  ", &rows)
}

/// What the facts say that people should act on. The daemons' own sentences come before these.
pub fn warnings(report: &Report, now: i64) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(server) = &report.server {
        authority_warnings(&server.x509_authorities, "X.509", now, &mut warnings);
        authority_warnings(&server.jwt_authorities, "JWT", now, &mut warnings);
        server_warnings(&server.servers, now, &mut warnings);
        if server.expired_agents > 0 {
            let number = count(server.expired_agents, "agent has", "agents have");
            warnings.push(format!(
                "{number} an expired SVID and not renewed it: `svidctl agent list` shows which"
            ));
        }
        // Our server says so itself.
        if server.banned_agents > 0 && server.source == "spire" {
            let number = count(server.banned_agents, "agent is", "agents are");
            warnings.push(format!("{number} banned; evict them to let them attest again"));
        }
        if server.entries_expiring_soon > 0 {
            let number = count(server.entries_expiring_soon, "entry expires", "entries expire");
            warnings.push(format!("{number} soon: `svidctl entry list` shows which"));
        }
        fallback(&server.peer_identification, "server", &mut warnings);
    }
    if let Some(agent) = &report.agent {
        if !agent.connected && !agent.server_address.is_empty() {
            warnings.push(format!("the agent is not connected to its server {}", agent.server_address));
        }
        if let Some(svid) = &agent.svid
            && svid.remaining_s == 0
        {
            warnings.push("the agent's own SVID is over: it can no longer speak to its server".into());
        }
        fallback(&agent.peer_identification, "agent", &mut warnings);
    }
    warnings
}

/// A sixth of its life is when SPIRE's rotation has long made and used the next one.
fn authority_warnings(all: &[Authority], kind: &str, now: i64, warnings: &mut Vec<String>) {
    let is_ready = all.iter().any(|one| one.state == "prepared" && !one.tainted);
    for one in all.iter().filter(|one| one.not_after > 0) {
        let late = one.not_before > 0 && one.remaining_s * 6 < one.not_after - one.not_before;
        match one.state {
            "active" if one.remaining_s == 0 => {
                warnings
                    .push(format!("the active {kind} authority {} is over: nothing can be signed", one.id));
            }
            "active" if late && !is_ready => warnings.push(format!(
                "the active {kind} authority {} has {} and no next one is prepared",
                one.id,
                left(one.not_after, now)
            )),
            "active" | "prepared" if one.tainted => warnings.push(format!(
                "the {} {kind} authority {} is tainted: prepare and activate another one",
                one.state, one.id
            )),
            _ => {}
        }
    }
}

fn fallback(how: &str, who: &str, warnings: &mut Vec<String>) {
    if !how.is_empty() && how != "pidfd" {
        warnings.push(format!(
            "the {who} identifies callers by {how} because this kernel lacks SO_PEERPIDFD (Linux 6.5)"
        ));
    }
}
