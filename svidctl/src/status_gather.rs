//! Asks both daemons for `status`.

use svid_core::clock::unix_seconds;
use svid_core::x509::ParsedCert;
use svid_proto::spire::agent::debug::v1 as agent_debug;
use svid_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use svid_proto::spire::api::server::agent::v1::{CountAgentsRequest, count_agents_request::Filter};
use svid_proto::spire::api::server::bundle::v1::GetBundleRequest;
use svid_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use svid_proto::spire::api::server::debug::v1 as server_debug;
use svid_proto::spire::api::server::localauthority::v1 as local;
use svid_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use svid_proto::spire::api::types;
use svid_proto::svid::status::v1 as wire;
use tonic::transport::Channel;
use wire::agent_status_client::AgentStatusClient;
use wire::status_client::StatusClient;

use crate::args::Args;
use crate::connect::{self, Failure, Who};
use crate::entries::id;
use crate::status::{Agent, Authority, Report, Server, Svid, warnings};
use crate::status_servers::Peer;

/// Both daemons, if they answer.
///
/// # Errors
/// When neither does.
pub async fn gather(args: &Args, now: i64) -> Result<Report, Failure> {
    let mut report = Report::default();
    let server = server(args, now, &mut report).await;
    let agent = agent(args, now, &mut report).await;
    if let (Err(server), Err(agent)) = (&server, &agent) {
        return Err(
            Failure::new("neither a server nor an agent answers").advise(format!("{server}\n{agent}"))
        );
    }
    for (result, who) in [(server, "server"), (agent, "agent")] {
        if let Err(failure) = result {
            report.notes.push(format!("no {who} here: {}", failure.what()));
        }
    }
    let own = warnings(&report, now);
    report.warnings.extend(own);
    Ok(report)
}

async fn server(args: &Args, now: i64, report: &mut Report) -> Result<(), Failure> {
    let channel = connect::dial(Who::Server, &args.server_socket).await?;
    let answer = StatusClient::new(channel.clone()).get_status(wire::GetStatusRequest {}).await;
    let mut server = match answer {
        Ok(answer) => {
            let mut status = answer.into_inner();
            report.warnings.append(&mut status.warnings);
            from_status(status, now)
        }
        Err(status) if connect::is_unknown(&status) => {
            report.notes.push(
                "this server does not know svid.status.v1, so it is SPIRE's: slots and database are not told"
                    .into(),
            );
            from_spire(channel, now).await.map_err(|status| connect::rpc(Who::Server, &status))?
        }
        Err(status) => return Err(connect::rpc(Who::Server, &status)),
    };
    server.socket = args.server_socket.display().to_string();
    report.server = Some(server);
    Ok(())
}

fn svid(id: String, expires_at: i64, now: i64) -> Svid {
    Svid { spiffe_id: id, expires_at, remaining_s: expires_at.saturating_sub(now).max(0) }
}

/// The name of a state.
pub fn state(number: i32) -> &'static str {
    use wire::AuthorityState as State;
    match State::try_from(number) {
        Ok(State::Active) => "active",
        Ok(State::Prepared) => "prepared",
        Ok(State::Old) => "old",
        Ok(State::Published) => "published",
        Ok(State::Unspecified) | Err(_) => "unknown",
    }
}

/// X.509 authorities as our server tells them.
pub fn x509_authorities(all: Vec<wire::X509Authority>, now: i64) -> Vec<Authority> {
    let authority = |one: wire::X509Authority| Authority {
        id: one.authority_id,
        subject: one.subject,
        not_before: one.not_before,
        not_after: one.not_after,
        remaining_s: one.not_after.saturating_sub(now).max(0),
        state: state(one.state),
        slot: one.slot,
        tainted: one.tainted,
        upstream: one.upstream_authority_subject_key_id,
    };
    all.into_iter().map(authority).collect()
}

/// JWT authorities as our server tells them.
pub fn jwt_authorities(all: Vec<wire::JwtAuthority>, now: i64) -> Vec<Authority> {
    let authority = |one: wire::JwtAuthority| Authority {
        id: one.authority_id,
        not_after: one.expires_at,
        remaining_s: one.expires_at.saturating_sub(now).max(0),
        state: state(one.state),
        slot: one.slot,
        tainted: one.tainted,
        ..Authority::default()
    };
    all.into_iter().map(authority).collect()
}

fn from_status(status: wire::GetStatusResponse, now: i64) -> Server {
    let database = status.database.unwrap_or_default();
    Server {
        socket: String::new(),
        source: "svid.status.v1",
        version: status.version,
        trust_domain: status.trust_domain,
        uptime_s: status.uptime_s,
        server_id: status.server_id,
        agents: status.agents_count,
        banned_agents: status.banned_agents_count,
        expired_agents: status.expired_agents_count,
        watching_agents: status.watching_agents_count,
        entries: status.entries_count,
        entries_expiring_soon: status.entries_expiring_soon_count,
        federated_bundles: status.federated_bundles_count,
        x509_authorities: x509_authorities(status.x509_authorities, now),
        jwt_authorities: jwt_authorities(status.jwt_authorities, now),
        svid: status.server_svid.map(|one| svid(id(one.id.as_ref()), one.expires_at, now)),
        database: database.kind,
        database_reachable: database.reachable,
        stale_s: database.stale_s,
        max_stale_s: database.max_stale_s,
        servers: status.servers.into_iter().map(Peer::from).collect(),
        peer_identification: status.peer_identification,
    }
}

/// Debug, bundle and counts: what SPIRE's server tells.
async fn from_spire(channel: Channel, now: i64) -> Result<Server, tonic::Status> {
    let mut debug = server_debug::debug_client::DebugClient::new(channel.clone());
    let info = debug.get_info(server_debug::GetInfoRequest {}).await?.into_inner();
    let bundle =
        BundleClient::new(channel.clone()).get_bundle(GetBundleRequest { output_mask: None }).await?;
    let bundle = bundle.into_inner();
    let mut x509_authorities: Vec<_> =
        bundle.x509_authorities.iter().map(|one| x509_authority(one, now)).collect();
    let mut jwt_authorities: Vec<_> =
        bundle.jwt_authorities.iter().map(|one| jwt_authority(one, now)).collect();
    name_states(channel.clone(), &mut x509_authorities, &mut jwt_authorities).await;
    let mut agents = AgentClient::new(channel);
    let banned = Filter { by_banned: Some(true), ..Filter::default() };
    let banned = agents.count_agents(CountAgentsRequest { filter: Some(banned) }).await?.into_inner();
    let expired = Filter { by_banned: Some(false), by_expires_before: filter_time(now), ..Filter::default() };
    let expired = agents.count_agents(CountAgentsRequest { filter: Some(expired) }).await?.into_inner();
    let number = |count: i32| u64::try_from(count).unwrap_or_default();
    Ok(Server {
        source: "spire",
        trust_domain: bundle.trust_domain.clone(),
        uptime_s: info.uptime.into(),
        agents: number(info.agents_count),
        banned_agents: number(banned.count),
        expired_agents: number(expired.count),
        entries: number(info.entries_count),
        // SPIRE counts its own bundle too.
        federated_bundles: number(info.federated_bundles_count).saturating_sub(1),
        x509_authorities,
        jwt_authorities,
        svid: info.svid_chain.first().map(|one| svid(id(one.id.as_ref()), one.expires_at, now)),
        ..Server::default()
    })
}

/// Tells which authorities this server signs with, if it knows the call (SPIRE does from 1.12 on).
async fn name_states(channel: Channel, x509: &mut [Authority], jwt: &mut [Authority]) {
    let mut client = LocalAuthorityClient::new(channel);
    if let Ok(states) = client.get_x509_authority_state(local::GetX509AuthorityStateRequest {}).await {
        let states = states.into_inner();
        set_states(x509, [states.active, states.prepared, states.old]);
    }
    if let Ok(states) = client.get_jwt_authority_state(local::GetJwtAuthorityStateRequest {}).await {
        let states = states.into_inner();
        set_states(jwt, [states.active, states.prepared, states.old]);
    }
}

fn set_states(all: &mut [Authority], slots: [Option<local::AuthorityState>; 3]) {
    for (slot, state) in slots.into_iter().zip(["active", "prepared", "old"]) {
        let Some(slot) = slot else { continue };
        if let Some(one) = all.iter_mut().find(|one| one.id == slot.authority_id) {
            one.state = state;
        }
    }
}

/// The form of `by_expires_before`.
fn filter_time(now: i64) -> String {
    let at = jiff::Timestamp::from_second(now).unwrap_or_default();
    at.strftime("%Y-%m-%d %H:%M:%S +0000 +00").to_string()
}

fn x509_authority(authority: &types::X509Certificate, now: i64) -> Authority {
    let Ok(cert) = ParsedCert::from_der(&authority.asn1) else {
        return Authority { id: "unreadable".into(), state: "unknown", ..Authority::default() };
    };
    let life = cert.life();
    let not_after = unix_seconds(life.not_after);
    Authority {
        id: cert.subject_key_id_hex().unwrap_or_default(),
        subject: cert.subject().into(),
        not_before: unix_seconds(life.not_before),
        not_after,
        remaining_s: not_after.saturating_sub(now).max(0),
        state: "published",
        tainted: authority.tainted,
        ..Authority::default()
    }
}

fn jwt_authority(key: &types::JwtKey, now: i64) -> Authority {
    Authority {
        id: key.key_id.clone(),
        not_after: key.expires_at,
        remaining_s: key.expires_at.saturating_sub(now).max(0),
        state: "published",
        tainted: key.tainted,
        ..Authority::default()
    }
}

async fn agent(args: &Args, now: i64, report: &mut Report) -> Result<(), Failure> {
    let channel = match connect::dial(Who::AgentAdmin, &args.agent_admin_socket).await {
        Ok(channel) => channel,
        Err(admin) => {
            let socket = args.workload_socket();
            connect::dial(Who::Agent, &socket).await?;
            report.notes.push(format!("the agent's own state is not seen: {}", admin.what()));
            let socket = socket.display().to_string();
            report.agent = Some(Agent { socket, source: "workload_api", ..Agent::default() });
            return Ok(());
        }
    };
    let answer = AgentStatusClient::new(channel.clone()).get_status(wire::GetAgentStatusRequest {}).await;
    let mut agent = match answer {
        Ok(answer) => {
            let mut status = answer.into_inner();
            report.warnings.append(&mut status.warnings);
            from_agent_status(status, now)
        }
        Err(status) if connect::is_unknown(&status) => {
            report
                .notes
                .push("this agent does not know svid.status.v1, so it is SPIRE's: less is told".into());
            let mut debug = agent_debug::debug_client::DebugClient::new(channel);
            let info = debug.get_info(agent_debug::GetInfoRequest {}).await;
            from_agent_debug(info.map_err(|status| connect::rpc(Who::AgentAdmin, &status))?.into_inner(), now)
        }
        Err(status) => return Err(connect::rpc(Who::AgentAdmin, &status)),
    };
    agent.socket = args.agent_admin_socket.display().to_string();
    report.agent = Some(agent);
    Ok(())
}

fn from_agent_status(status: wire::GetAgentStatusResponse, now: i64) -> Agent {
    Agent {
        socket: String::new(),
        source: "svid.status.v1",
        version: status.version,
        trust_domain: status.trust_domain,
        uptime_s: status.uptime_s,
        svid: status.agent_id.map(|one| svid(id(Some(&one)), status.svid_expires_at, now)),
        reattestable: status.reattestable,
        server_address: status.server_address,
        connected: status.connected,
        watching: status.watch_active,
        last_sync: status.last_sync_success,
        last_server_contact: status.last_server_contact,
        first_svid_expires_at: status.first_svid_expires_at,
        entries: status.entries_count,
        cached_x509_svids: status.cached_x509_svids_count,
        cached_jwt_svids: status.cached_jwt_svids_count,
        open_streams: status.open_streams_count,
        peer_identification: status.peer_identification,
    }
}

fn from_agent_debug(info: agent_debug::GetInfoResponse, now: i64) -> Agent {
    let number = |count: i32| u64::try_from(count).unwrap_or_default();
    let own = info.svid_chain.first();
    Agent {
        source: "spire",
        trust_domain: own
            .and_then(|one| one.id.as_ref())
            .map(|id| id.trust_domain.clone())
            .unwrap_or_default(),
        uptime_s: info.uptime.into(),
        svid: own.map(|one| svid(id(one.id.as_ref()), one.expires_at, now)),
        last_sync: info.last_sync_success,
        cached_x509_svids: number(info.cached_x509_svids_count),
        cached_jwt_svids: number(info.cached_jwt_svids_count),
        ..Agent::default()
    }
}
