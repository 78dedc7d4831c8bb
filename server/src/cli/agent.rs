//! `agent list`, `count`, `show`, `ban`, `evict`, and `token generate`.

use jiff::civil::DateTime;
use svid_core::id::SpiffeId;
use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use svid_proto::spire::api::server::agent::v1::{
    BanAgentRequest, CountAgentsRequest, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest,
    ListAgentsRequest, ListAgentsResponse, count_agents_request, list_agents_request,
};
use svid_proto::spire::api::types::{self, Agent, SelectorMatch};
use tonic::transport::Channel;

use super::client::MAX_ANSWER_BYTES;
use super::session::{Session, count, id_text, local, parse_id, parse_match, parse_selector, rpc_error};
use super::{Handler, Outcome, agent_purge, command, flags};

/// Comfortably within an answer of 4 MiB.
const PAGE_SIZE: i32 = 1000;
const EXPIRES_BEFORE_FORM: &str = "2006-01-02 15:04:05 -0700 -07";

pub fn commands() -> Vec<Command<Handler>> {
    let named = |name, help| flags(name).string("spiffeID", "", help);
    vec![
        command(
            "agent list",
            "Lists attested agents and their SPIFFE IDs",
            filter_flags("agent list"),
            |s, f| Box::pin(list(s, f)),
        ),
        command("agent count", "Count attested agents", filter_flags("agent count"), |s, f| {
            Box::pin(count_agents(s, f))
        }),
        command(
            "agent show",
            "Shows the details of an attested agent given its SPIFFE ID",
            named("agent show", "The SPIFFE ID of the agent to show (agent identity)"),
            |s, f| Box::pin(show(s, f)),
        ),
        command(
            "agent ban",
            "Ban an attested agent given its SPIFFE ID",
            named("agent ban", "The SPIFFE ID of the agent to ban (agent identity)"),
            |s, f| Box::pin(ban(s, f)),
        ),
        command(
            "agent evict",
            "Evicts an attested agent given its SPIFFE ID",
            named("agent evict", "The SPIFFE ID of the agent to evict (agent identity)"),
            |s, f| Box::pin(evict(s, f)),
        ),
        agent_purge::command(),
        command("token generate", "Generates a join token", token_flags(), |s, f| {
            Box::pin(generate_token(s, f))
        }),
    ]
}

pub fn client(channel: Channel) -> AgentClient<Channel> {
    AgentClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

fn filter_flags(name: &'static str) -> FlagSet {
    flags(name)
        .strings("selector", "A colon-delimited type:value selector. Can be used more than once")
        .string("attestationType", "", "Filter by attestation type, like join_token or x509pop.")
        .string(
            "canReattest",
            "",
            "Filter based on string received, 'true': agents that can reattest, 'false': agents that can't reattest, \
             other value will return all.",
        )
        .string(
            "banned",
            "",
            "Filter based on string received, 'true': banned agents, 'false': not banned agents, other value will \
             return all.",
        )
        .string(
            "expiresBefore",
            "",
            "Filter by expiration time (format: \"2006-01-02 15:04:05 -0700 -07\")",
        )
        .string(
            "matchSelectorsOn",
            "superset",
            "The match mode used when filtering by selectors. Options: exact, any, superset and subset",
        )
}

fn filter(flags: &Parsed) -> Result<list_agents_request::Filter, CliError> {
    let mut by_selector_match = None;
    if !flags.strings("selector").is_empty() {
        let r#match = parse_match(flags.str("matchSelectorsOn"))
            .ok_or_else(|| CliError::new("unsupported match behavior"))?;
        let selectors = (flags.strings("selector").iter())
            .map(|text| {
                parse_selector(text)
                    .map_err(|error| CliError::new(format!("error parsing selector {text:?}: {error}")))
            })
            .collect::<Result<_, _>>()?;
        by_selector_match = Some(SelectorMatch { selectors, r#match });
    }
    check_expires_before(flags.str("expiresBefore"))?;
    Ok(list_agents_request::Filter {
        by_attestation_type: flags.str("attestationType").into(),
        by_selector_match,
        by_banned: three_way(flags.str("banned")),
        by_can_reattest: three_way(flags.str("canReattest")),
        by_expires_before: flags.str("expiresBefore").into(),
    })
}

fn three_way(word: &str) -> Option<bool> {
    match word {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// The server reads the text; this only spares a round trip with a bad one.
fn check_expires_before(text: &str) -> Outcome {
    let is_offset = |word: &str, digits: usize| {
        word.strip_prefix(['+', '-'])
            .is_some_and(|rest| rest.len() == digits && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let words: Vec<_> = text.split(' ').collect();
    let good = match words.as_slice() {
        [""] => true,
        [date, time, offset, hours] => {
            DateTime::strptime("%Y-%m-%d %H:%M:%S", format!("{date} {time}")).is_ok()
                && is_offset(offset, 4)
                && is_offset(hours, 2)
        }
        _ => false,
    };
    match good {
        true => Ok(()),
        false => {
            Err(CliError::new(format!("date is not valid: parsing time {text:?} as {EXPIRES_BEFORE_FORM:?}")))
        }
    }
}

async fn list(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let filter = filter(flags)?;
    let mut client = client(session.server().await?);
    let mut whole = ListAgentsResponse::default();
    let mut page_token = String::new();
    loop {
        let request = ListAgentsRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE_SIZE,
            page_token,
        };
        let answer = client.list_agents(request).await.map_err(rpc_error)?.into_inner();
        whole.agents.extend(answer.agents);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    session.print(flags, "spire.api.server.agent.v1.ListAgentsResponse", &whole, |session| {
        if whole.agents.is_empty() {
            return Ok(writeln!(session.out, "No attested agents found")?);
        }
        let number = count(whole.agents.len(), "attested agent", "attested agents");
        write!(session.out, "Found {number}:\n\n")?;
        whole.agents.iter().try_for_each(|agent| print_agent(session, agent))
    })
}

fn print_agent(session: &mut Session<'_>, agent: &Agent) -> Outcome {
    let out = &mut *session.out;
    writeln!(out, "SPIFFE ID         : {}", id_text(agent.id.as_ref()))?;
    writeln!(out, "Attestation type  : {}", agent.attestation_type)?;
    writeln!(out, "Expiration time   : {}", local(agent.x509svid_expires_at))?;
    match agent.banned {
        true => writeln!(out, "Banned            : true")?,
        false => writeln!(out, "Serial number     : {}", agent.x509svid_serial_number)?,
    }
    writeln!(out, "Can re-attest     : {}", agent.can_reattest)?;
    if !agent.agent_version.is_empty() {
        writeln!(out, "Agent version     : {}", agent.agent_version)?;
    }
    Ok(writeln!(out)?)
}

async fn count_agents(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let filter = filter(flags)?;
    let filter = count_agents_request::Filter {
        by_attestation_type: filter.by_attestation_type,
        by_selector_match: filter.by_selector_match,
        by_banned: filter.by_banned,
        by_can_reattest: filter.by_can_reattest,
        by_expires_before: filter.by_expires_before,
    };
    let request = CountAgentsRequest { filter: Some(filter) };
    let answer = client(session.server().await?).count_agents(request).await.map_err(rpc_error)?.into_inner();
    session.print(flags, "spire.api.server.agent.v1.CountAgentsResponse", &answer, |session| {
        let number = usize::try_from(answer.count).unwrap_or_default();
        Ok(writeln!(session.out, "{}", count(number, "attested agent", "attested agents"))?)
    })
}

fn agent_id(flags: &Parsed) -> Result<Option<types::Spiffeid>, CliError> {
    match flags.str("spiffeID") {
        "" => Err(CliError::new("a SPIFFE ID is required")),
        text => parse_id(text).map(Some).map_err(CliError::new),
    }
}

async fn show(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let request = GetAgentRequest { id: agent_id(flags)?, output_mask: None };
    let agent = client(session.server().await?).get_agent(request).await.map_err(rpc_error)?.into_inner();
    session.print(flags, "spire.api.types.Agent", &agent, |session| {
        write!(session.out, "Found an attested agent given its SPIFFE ID\n\n")?;
        print_agent(session, &agent)?;
        for selector in &agent.selectors {
            writeln!(session.out, "Selectors         : {}:{}", selector.r#type, selector.value)?;
        }
        Ok(())
    })
}

async fn ban(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let request = BanAgentRequest { id: agent_id(flags)? };
    client(session.server().await?).ban_agent(request).await.map_err(rpc_error)?;
    session.print(flags, "google.protobuf.Empty", &(), |session| {
        Ok(writeln!(session.out, "Agent banned successfully")?)
    })
}

async fn evict(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let request = DeleteAgentRequest { id: agent_id(flags)? };
    client(session.server().await?).delete_agent(request).await.map_err(rpc_error)?;
    session.print(flags, "google.protobuf.Empty", &(), |session| {
        Ok(writeln!(session.out, "Agent evicted successfully")?)
    })
}

fn token_flags() -> FlagSet {
    flags("generate").int("ttl", 600, "Token TTL in seconds").string(
        "spiffeID",
        "",
        "Additional SPIFFE ID to assign the token owner (optional)",
    )
}

async fn generate_token(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let agent_id = match flags.str("spiffeID") {
        "" => None,
        text => Some(parse_id(text).map_err(CliError::new)?),
    };
    let ttl = flags.int("ttl");
    let ttl = i32::try_from(ttl).map_err(|_| {
        CliError::new(format!("invalid value for TTL: overflow converting int({ttl}) to int32"))
    })?;
    let without_id = agent_id.is_none();
    let request = CreateJoinTokenRequest { ttl, token: String::new(), agent_id };
    let token =
        client(session.server().await?).create_join_token(request).await.map_err(rpc_error)?.into_inner();
    session.print(flags, "spire.api.types.JoinToken", &token, |session| {
        writeln!(session.out, "Token: {}", token.value)?;
        if without_id {
            writeln!(session.out, "Warning: Missing SPIFFE ID.")?;
        }
        Ok(())
    })
}

/// The SPIFFE ID of an agent in an answer.
///
/// # Errors
/// When the server sent none, or a bad one.
pub fn answered_id(id: Option<&types::Spiffeid>) -> Result<SpiffeId, CliError> {
    id_text(id).parse().map_err(CliError::new)
}
