//! The Agent service. Source: `spire-server.md`, 1.6 and section 5.

use std::pin::Pin;

use futures_util::Stream;
use svid_core::entry::EntrySpec;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::selector::{Selector, SelectorSet, SetMatch};
use svid_proto::convert::{
    agent_id, id_to_wire, selectors_from_wire, selectors_to_wire, set_match, workload_id, x509_svid_to_wire,
};
use svid_proto::spire::api::server::agent::v1::{self as wire, agent_server::Agent};
use svid_proto::spire::api::types;
use svid_proto::spire::api::types::permission_denied_details::Reason;
use tonic::{Request, Response, Status, Streaming};

use super::audit::hash_hex;
use super::entry::{next_token, page};
use super::status::{self, denied_because, invalid, invalid_argument};
use super::{agent_of, call_of, service};
use crate::attest;
use crate::directory::{NodeFilter, NodeView};
use crate::store::{CreateEntry, Serial, StoreError};

service!(AgentApi);

/// Longest version text of an agent in bytes.
const MAX_VERSION_BYTES: usize = 255;
/// Longest join token in bytes: with `spiffe://<td>/spire/agent/join_token/` it has to fit into an ID.
const MAX_TOKEN_BYTES: usize = 1024;

/// Counting and listing have filters of the same shape and of different types.
macro_rules! read_filter {
    ($filter:expr, $call:expr) => {
        match $filter {
            None => Ok(NodeFilter::default()),
            Some(filter) => {
                let by_selectors = filter.by_selector_match.as_ref();
                $call.audit.add(|fields| {
                    fields.node_attestor_type =
                        (!filter.by_attestation_type.is_empty()).then(|| filter.by_attestation_type.clone());
                    fields.by_banned = filter.by_banned;
                    fields.by_can_reattest = filter.by_can_reattest;
                    fields.by_selectors = by_selectors.map(|by| selectors_text(&by.selectors));
                });
                by_selectors.map(selectors_filter).transpose().and_then(|selectors| {
                    Ok(NodeFilter {
                        attestation_type: Some(filter.by_attestation_type.clone())
                            .filter(|kind| !kind.is_empty()),
                        selectors,
                        banned: filter.by_banned,
                        can_reattest: filter.by_can_reattest,
                        expires_before: expires_before(&filter.by_expires_before)?,
                    })
                })
            }
        }
    };
}

fn selectors_text(selectors: &[types::Selector]) -> String {
    let texts: Vec<String> =
        selectors.iter().map(|selector| format!("{}:{}", selector.r#type, selector.value)).collect();
    texts.join(",")
}

fn selectors_filter(filter: &types::SelectorMatch) -> Result<(SelectorSet, SetMatch), Status> {
    const WHERE: &str = "failed to parse selectors";
    let selectors = selectors_from_wire(&filter.selectors).map_err(|error| invalid(WHERE, error))?;
    if selectors.is_empty() {
        return Err(invalid(WHERE, "empty selector set"));
    }
    Ok((selectors, set_match(filter.r#match).ok_or_else(|| invalid(WHERE, "unknown match behavior"))?))
}

/// Go's `2006-01-02 15:04:05 -0700 -07`. SPIRE lets a text that does not parse match everything; that is refused
/// here, since `agent purge` style scripts would act on the wrong agents.
fn expires_before(text: &str) -> Result<Option<i64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let parsed = match words.as_slice() {
        [date, time, zone] | [date, time, zone, _] => {
            jiff::fmt::strtime::parse("%Y-%m-%d %H:%M:%S %z", format!("{date} {time} {zone}")).ok()
        }
        _ => None,
    };
    let moment = parsed.and_then(|parsed| parsed.to_timestamp().ok());
    let moment = moment.ok_or_else(|| {
        invalid(
            "failed to parse expiration filter",
            format!("{text:?} is not like \"2006-01-02 15:04:05 -0700 -07\""),
        )
    })?;
    Ok(Some(moment.as_second()))
}

fn to_wire(node: &NodeView, mask: Option<&types::AgentMask>) -> types::Agent {
    let (banned, serial) = match &node.serial {
        Serial::Banned => (true, String::new()),
        Serial::Active { current, .. } => (false, current.clone()),
    };
    let wants = |field: fn(&types::AgentMask) -> bool| mask.is_none_or(field);
    let text = |wanted: bool, text: &str| if wanted { text.to_owned() } else { String::new() };
    types::Agent {
        id: Some(id_to_wire(&node.id)),
        attestation_type: text(wants(|mask| mask.attestation_type), &node.attestation_type),
        x509svid_serial_number: text(wants(|mask| mask.x509svid_serial_number), &serial),
        x509svid_expires_at: if wants(|mask| mask.x509svid_expires_at) { node.expires_at } else { 0 },
        selectors: if wants(|mask| mask.selectors) { selectors_to_wire(&node.selectors) } else { Vec::new() },
        banned: banned && wants(|mask| mask.banned),
        can_reattest: node.can_reattest && wants(|mask| mask.can_reattest),
        agent_version: text(wants(|mask| mask.agent_version), &node.agent_version),
    }
}

/// The ID an agent with this join token gets.
pub(crate) fn join_token_id(
    trust_domain: &TrustDomain,
    token: &str,
) -> Result<SpiffeId, svid_core::id::IdError> {
    if token.contains('/') {
        return Err(svid_core::id::IdError::PathByte { at: "/spire/agent/join_token/".len() });
    }
    SpiffeId::from_parts(trust_domain.as_str(), &format!("/spire/agent/join_token/{token}"))
}

/// What makes the agent of a join token a member of `group`: an entry of the group's ID, whose parent is the agent.
fn alias(agent: &SpiffeId, group: SpiffeId) -> CreateEntry {
    let selector = Selector::new("spiffe_id", agent.as_str()).expect("an ID is not empty");
    let spec = EntrySpec {
        spiffe_id: group,
        parent_id: agent.clone(),
        selectors: [selector].into_iter().collect(),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        store_svid: false,
        hint: String::new(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    };
    CreateEntry { id: None, spec }
}

impl AgentApi {
    fn agent_id(&self, id: Option<&types::Spiffeid>) -> Result<SpiffeId, Status> {
        agent_id(id, &self.0.trust_domain).map_err(|error| invalid("invalid agent ID", error))
    }
}

#[tonic::async_trait]
impl Agent for AgentApi {
    async fn count_agents(
        &self,
        request: Request<wire::CountAgentsRequest>,
    ) -> Result<Response<wire::CountAgentsResponse>, Status> {
        let call = call_of(&request)?;
        let filter: NodeFilter = read_filter!(&request.get_ref().filter, call)?;
        let count = self.0.directory.count_nodes(&filter);
        Ok(Response::new(wire::CountAgentsResponse { count: i32::try_from(count).unwrap_or(i32::MAX) }))
    }

    async fn list_agents(
        &self,
        request: Request<wire::ListAgentsRequest>,
    ) -> Result<Response<wire::ListAgentsResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let filter: NodeFilter = read_filter!(&request.filter, call)?;
        let page = page(request.page_size, &request.page_token, "failed to list agents")?;
        let listing = self.0.directory.list_nodes(&filter, page);
        Ok(Response::new(wire::ListAgentsResponse {
            agents: listing.items.iter().map(|node| to_wire(node, request.output_mask.as_ref())).collect(),
            next_page_token: next_token(listing.next),
        }))
    }

    async fn get_agent(
        &self,
        request: Request<wire::GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let id = self.agent_id(request.id.as_ref())?;
        call.audit.add(|fields| fields.spiffe_id = Some(id.to_string()));
        let node = self.0.directory.node(&id).ok_or_else(|| Status::not_found("agent not found"))?;
        Ok(Response::new(to_wire(&node, request.output_mask.as_ref())))
    }

    async fn delete_agent(&self, request: Request<wire::DeleteAgentRequest>) -> Result<Response<()>, Status> {
        let call = call_of(&request)?;
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        call.audit.add(|fields| fields.spiffe_id = Some(id.to_string()));
        let deleted = self.0.store.delete_node(&id).await;
        deleted.map_err(|error| {
            status::store_or_not_found("failed to remove agent", "agent not found", &error)
        })?;
        tracing::info!(spiffe_id = %id, "Agent deleted");
        Ok(Response::new(()))
    }

    async fn ban_agent(&self, request: Request<wire::BanAgentRequest>) -> Result<Response<()>, Status> {
        let call = call_of(&request)?;
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        call.audit.add(|fields| fields.spiffe_id = Some(id.to_string()));
        let banned = self.0.store.ban_node(&id).await;
        banned
            .map_err(|error| status::store_or_not_found("failed to ban agent", "agent not found", &error))?;
        tracing::info!(spiffe_id = %id, "Agent banned");
        Ok(Response::new(()))
    }

    type AttestAgentStream = Pin<Box<dyn Stream<Item = Result<wire::AttestAgentResponse, Status>> + Send>>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<wire::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let call = call_of(&request)?;
        self.0.limit(&call, 1, "attest agent rate limiting").await?;
        call.audit_later();
        Ok(Response::new(Box::pin(attest::serve(self.0.clone(), call, request.into_inner()))))
    }

    async fn renew_agent(
        &self,
        request: Request<wire::RenewAgentRequest>,
    ) -> Result<Response<wire::RenewAgentResponse>, Status> {
        let call = call_of(&request)?;
        let csr = request.into_inner().params.map(|params| params.csr);
        call.audit.add(|fields| fields.csr = csr.as_deref().filter(|csr| !csr.is_empty()).map(hash_hex));
        self.0.limit(&call, 1, "renew agent rate limiting").await?;
        let agent = agent_of(&call)?;
        let node = self.0.store.node(&agent.id).await;
        let node = node.map_err(|error| status::store("failed to fetch agent", &error))?;
        let node = node.ok_or_else(|| Status::not_found("agent not found"))?;
        if node.can_reattest {
            return Err(denied_because("agent must reattest instead of renew", Reason::AgentMustReattest));
        }
        tracing::info!(caller_id = %agent.id, "Renewing agent SVID");
        let csr = csr.ok_or_else(|| invalid_argument("params cannot be nil"))?;
        if csr.is_empty() {
            return Err(invalid_argument("missing CSR"));
        }
        let seen = match &node.serial {
            Serial::Active { next: Some((next, _)), .. } => next,
            _ => "",
        };
        let svid = attest::renew(&self.0, agent, seen, &csr).await?;
        Ok(Response::new(wire::RenewAgentResponse { svid: Some(x509_svid_to_wire(&svid)) }))
    }

    async fn create_join_token(
        &self,
        request: Request<wire::CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        call.audit.add(|fields| fields.ttl = (request.ttl > 0).then_some(request.ttl.into()));
        if request.ttl < 1 {
            return Err(invalid_argument("ttl is required, you must provide one"));
        }
        let group = request.agent_id.as_ref().map(|id| workload_id(Some(id), &self.0.trust_domain));
        let group = group.transpose().map_err(|error| invalid("invalid agent ID", error))?;
        call.audit.add(|fields| fields.spiffe_id = group.as_ref().map(ToString::to_string));
        let token = match request.token.as_str() {
            "" => uuid::Uuid::new_v4().to_string(),
            token if token.len() > MAX_TOKEN_BYTES => return Err(invalid_argument("token is too long")),
            token => token.to_owned(),
        };
        let agent = join_token_id(&self.0.trust_domain, &token)
            .map_err(|error| invalid("failed to create join token ID", error))?;
        let now = self.0.now_unix();
        let expires_at = now.saturating_add(request.ttl.into());
        let alias = group.map(|group| alias(&agent, group));
        let created = self.0.store.create_join_token(&token, expires_at, alias, now).await;
        created.map_err(|error| match error {
            StoreError::AlreadyExists(_) => Status::internal("failed to create token: it exists already"),
            error => status::store("failed to create token", &error),
        })?;
        Ok(Response::new(types::JoinToken { value: token, expires_at }))
    }

    async fn post_status(
        &self,
        request: Request<wire::PostStatusRequest>,
    ) -> Result<Response<wire::PostStatusResponse>, Status> {
        let call = call_of(&request)?;
        self.0.limit(&call, 1, "post status rate limiting").await?;
        let agent = agent_of(&call)?;
        let version = request.into_inner().agent_version;
        call.audit.add(|fields| fields.spiffe_id = Some(agent.id.to_string()));
        if version.is_empty() {
            return Ok(Response::new(wire::PostStatusResponse {}));
        }
        if version.len() > MAX_VERSION_BYTES {
            return Err(invalid_argument("agent version is too long (max 255 characters)"));
        }
        call.audit.add(|fields| fields.agent_version = Some(version.clone()));
        // Agents say this at each start: thousands that come back at once are no reason to write.
        if self.0.directory.node(&agent.id).is_some_and(|node| node.agent_version == version) {
            return Ok(Response::new(wire::PostStatusResponse {}));
        }
        let set = self.0.store.set_agent_version(&agent.id, &version).await;
        set.map_err(|error| status::store_or_not_found("failed to update agent", "agent not found", &error))?;
        tracing::debug!(spiffe_id = %agent.id, agent_version = %version, "Agent status updated");
        Ok(Response::new(wire::PostStatusResponse {}))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn join_token_ids() {
        let td = "example.org".parse().unwrap();
        let id = join_token_id(&td, "abc").unwrap();
        assert_eq!(id.as_str(), "spiffe://example.org/spire/agent/join_token/abc");
        for bad in ["a/b", "..", "", "a b", "../../server"] {
            assert!(join_token_id(&td, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn expiry_filter() {
        assert_eq!(expires_before("").unwrap(), None);
        assert_eq!(expires_before("1970-01-01 01:00:10 +0100 +01").unwrap(), Some(10));
        assert!(expires_before("tomorrow").is_err());
    }
}
