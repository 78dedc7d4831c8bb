//! What `svidctl status` shows, on the admin socket. `svid/status/v1/status.proto`.

use svid_core::bundle::Bundle;
use svid_core::clock::unix_seconds;
use svid_core::id::SpiffeId;
use svid_proto::convert::{entry_to_wire, id_from_wire, id_to_wire};
use svid_proto::svid::status::v1::{self as wire, status_server::Status as StatusService};
use tonic::{Request, Response, Status};

use super::caller::Peer;
use super::status::invalid;
use super::status_servers::servers;
use super::sync::position_to_wire;
use super::{call_of, service};
use crate::ca::{AuthorityInfo, AuthorityKind, Status as SlotStatus};
use crate::directory::{EntryFilter, NodeFilter, Page};

service!(StatusApi);

/// Entries that end within a day are worth a look.
const SOON: i64 = 24 * 3600;
/// Suspected clones that have a warning each.
const MAX_CLONE_WARNINGS: usize = 10;

fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Slot name and state of an authority, if one of this server's slots holds it.
fn place(infos: &[AuthorityInfo], id: &str) -> (String, wire::AuthorityState) {
    match infos.iter().find(|info| info.authority_id == id) {
        None => (String::new(), wire::AuthorityState::Published),
        Some(info) => {
            let state = match info.status {
                SlotStatus::Prepared => wire::AuthorityState::Prepared,
                SlotStatus::Active => wire::AuthorityState::Active,
                SlotStatus::Old => wire::AuthorityState::Old,
            };
            (info.slot.name().to_owned(), state)
        }
    }
}

impl StatusApi {
    pub(super) fn infos(&self, kind: AuthorityKind) -> Vec<AuthorityInfo> {
        let state = self.0.ca.state(kind).unwrap_or_default();
        [state.active, state.prepared, state.old].into_iter().flatten().collect()
    }

    pub(super) fn own_bundle(&self) -> Bundle {
        let own = self.0.directory.bundle(&self.0.trust_domain);
        own.map_or_else(|| Bundle::empty(self.0.trust_domain.clone()), |own| (*own).clone())
    }

    /// The authorities of the own bundle; below an upstream those in slots as well, which are no roots.
    pub(super) fn x509_authorities(&self, bundle: &Bundle) -> Vec<wire::X509Authority> {
        let infos = self.infos(AuthorityKind::X509);
        let roots = bundle.x509_authorities.iter().map(|root| {
            let cert = root.parsed();
            let id = cert.subject_key_id_hex().unwrap_or_default();
            let (slot, state) = place(&infos, &id);
            wire::X509Authority {
                authority_id: id,
                subject: cert.subject().to_owned(),
                not_before: unix_seconds(cert.life().not_before),
                not_after: unix_seconds(cert.life().not_after),
                slot,
                state: state.into(),
                tainted: root.tainted,
                upstream_authority_subject_key_id: String::new(),
            }
        });
        let mut all: Vec<_> = roots.collect();
        for info in infos.iter().filter(|info| !info.upstream_authority_id.is_empty()) {
            let (slot, state) = place(&infos, &info.authority_id);
            all.push(wire::X509Authority {
                authority_id: info.authority_id.clone(),
                not_before: unix_seconds(info.issued_at),
                not_after: unix_seconds(info.not_after),
                slot,
                state: state.into(),
                upstream_authority_subject_key_id: info.upstream_authority_id.clone(),
                ..Default::default()
            });
        }
        all
    }

    pub(super) fn jwt_authorities(&self, bundle: &Bundle) -> Vec<wire::JwtAuthority> {
        let infos = self.infos(AuthorityKind::Jwt);
        let keys = bundle.jwt_authorities.iter().map(|key| {
            let (slot, state) = place(&infos, &key.key_id);
            wire::JwtAuthority {
                authority_id: key.key_id.clone(),
                expires_at: key.expires_at,
                slot,
                state: state.into(),
                tainted: key.tainted,
            }
        });
        keys.collect()
    }

    fn server_svid(&self) -> wire::ServerSvid {
        let identity = self.0.ca.server_identity().borrow().clone();
        wire::ServerSvid {
            id: Some(id_to_wire(identity.svid.id())),
            expires_at: unix_seconds(identity.svid.not_after()),
        }
    }

    fn clone_warnings(&self) -> Vec<String> {
        let suspected = self.0.directory.suspected_nodes();
        let told = suspected.iter().take(MAX_CLONE_WARNINGS).map(|node| {
            format!(
                "agent {}: an old certificate was used after its successor: a copy of its data may exist; ban or evict",
                node.id
            )
        });
        let rest = suspected.len().saturating_sub(MAX_CLONE_WARNINGS);
        let more = format!("copies of {rest} more agents may exist: `svidctl agent list` shows which");
        told.chain((rest > 0).then_some(more)).collect()
    }

    fn warnings(&self, database: &wire::DatabaseStatus, banned: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        if !database.reachable {
            let left = database.max_stale_s.saturating_sub(database.stale_s).max(0);
            warnings.push(format!(
                "the database cannot be reached: changes and attestations are refused, and memory answers agents for \
                 another {left} s (max_stale)"
            ));
        }
        if database.stale_s > database.max_stale_s {
            warnings.push(format!(
                "memory was not compared with the database for {} s, more than max_stale ({} s): nobody is served over TCP",
                database.stale_s, database.max_stale_s
            ));
        }
        if let Err(disagreement) = self.0.clock_guard.verdict() {
            warnings.push(format!("housekeeping is paused: {disagreement}"));
        }
        let health = self.0.ca.rotation_health();
        if let Some(error) = &health.last_error {
            warnings.push(format!("the CA rotation failed {} times in a row: {error}", health.failures));
        }
        warnings.extend(self.clone_warnings());
        if banned > 0 {
            warnings.push(format!("{banned} agents are banned; evict them to let them attest again"));
        }
        warnings
    }
}

#[tonic::async_trait]
impl StatusService for StatusApi {
    async fn get_status(
        &self,
        request: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        let call = call_of(&request)?;
        let by_socket = matches!(&call.peer, Peer::Local(local) if local.socket_pidfd);
        let context = &self.0;
        let directory = &context.directory;
        let now = context.now_unix();
        let nodes = |filter: &NodeFilter| count(directory.count_nodes(filter));
        let banned = nodes(&NodeFilter { banned: Some(true), ..Default::default() });
        let live_expired =
            NodeFilter { banned: Some(false), expires_before: Some(now), ..Default::default() };
        let entries = directory.list_entries(&EntryFilter::default(), Page::default()).items;
        let soon = |expires_at: i64| expires_at > now && expires_at <= now.saturating_add(SOON);
        let own = self.own_bundle();
        let database = wire::DatabaseStatus {
            kind: context.store.kind().into(),
            reachable: context.store.ping().await.is_ok(),
            stale_s: seconds(directory.staleness()),
            max_stale_s: seconds(context.max_stale),
        };
        let bundles = directory.list_bundles();
        Ok(Response::new(wire::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            trust_domain: context.trust_domain.to_string(),
            uptime_s: seconds(context.started.elapsed()),
            server_id: context.server_id.clone(),
            log_position: Some(position_to_wire(&directory.position())),
            agents_count: nodes(&NodeFilter::default()),
            banned_agents_count: banned,
            expired_agents_count: nodes(&live_expired),
            entries_count: count(entries.len()),
            entries_expiring_soon_count: count(entries.iter().filter(|e| soon(e.spec.expires_at)).count()),
            expiring_soon_s: SOON,
            federated_bundles_count: count(
                bundles.iter().filter(|b| b.trust_domain != context.trust_domain).count(),
            ),
            x509_authorities: self.x509_authorities(&own),
            jwt_authorities: self.jwt_authorities(&own),
            server_svid: Some(self.server_svid()),
            peer_identification: if by_socket { "pidfd" } else { "pidfd_open and start time" }.into(),
            watching_agents_count: count(context.watchers.agents()),
            warnings: self.warnings(&database, banned),
            servers: servers(context, database.reachable).await,
            database: Some(database),
        }))
    }

    async fn list_authorized_entries(
        &self,
        request: Request<wire::ListAuthorizedEntriesRequest>,
    ) -> Result<Response<wire::ListAuthorizedEntriesResponse>, Status> {
        let id: SpiffeId = id_from_wire(request.get_ref().agent_id.as_ref())
            .map_err(|error| invalid("invalid agent ID", error))?;
        let position = self.0.directory.position();
        let entries = self.0.directory.authorized_entries(&id, self.0.now_unix());
        Ok(Response::new(wire::ListAuthorizedEntriesResponse {
            entries: entries.iter().map(entry_to_wire).collect(),
            position: Some(position_to_wire(&position)),
        }))
    }

    async fn list_suspected_clones(
        &self,
        _: Request<wire::ListSuspectedClonesRequest>,
    ) -> Result<Response<wire::ListSuspectedClonesResponse>, Status> {
        let suspected = self.0.directory.suspected_nodes();
        let clones = suspected.iter().map(|node| wire::SuspectedClone {
            agent_id: Some(id_to_wire(&node.id)),
            seen_at: node.suspected_at,
        });
        Ok(Response::new(wire::ListSuspectedClonesResponse { clones: clones.collect() }))
    }

    async fn get_authorities(
        &self,
        _: Request<wire::GetAuthoritiesRequest>,
    ) -> Result<Response<wire::GetAuthoritiesResponse>, Status> {
        Ok(Response::new(self.authorities().await))
    }
}
