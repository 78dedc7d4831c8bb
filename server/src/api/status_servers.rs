//! The servers of the trust domain, for `svidctl status`.

use svid_proto::svid::status::v1 as wire;

use super::Context;
use crate::ca::{AuthorityKind, AuthorityState};
use crate::store::{AuthorityIds, SERVER_LEASE, ServerRow};

/// All servers, this one first. What is not told by the database is told from memory, and that is this server alone.
pub(super) async fn servers(context: &Context, reachable: bool) -> Vec<wire::ServerInfo> {
    if !reachable {
        return vec![own(context, None)];
    }
    let told = async {
        let (rows, now) = (context.store.list_servers().await?, context.store.now().await?);
        Ok::<_, crate::store::StoreError>((rows, now, context.store.head().await?))
    };
    let Ok((rows, now, head)) = told.await else { return vec![own(context, None)] };
    let mut servers = Vec::with_capacity(rows.len());
    let mut this = own(context, Some(now));
    this.behind_lines = head.seq.saturating_sub(context.directory.position().seq);
    for row in rows {
        match row.server_id == context.server_id {
            true => {
                (this.host, this.behind_s) = (row.host, if this.behind_lines > 0 { row.behind_s } else { 0 })
            }
            false => servers.push(other(row, now)),
        }
    }
    servers.insert(0, this);
    servers
}

fn own(context: &Context, heard_at: Option<i64>) -> wire::ServerInfo {
    let ids = |kind| {
        let AuthorityState { active, prepared, .. } = context.ca.snapshot().state(kind);
        let id =
            |info: Option<crate::ca::AuthorityInfo>| info.map(|info| info.authority_id).unwrap_or_default();
        Some(wire::AuthorityIds { active: id(active), prepared: id(prepared) })
    };
    wire::ServerInfo {
        server_id: context.server_id.clone(),
        address: context.facts.address.clone(),
        version: context.facts.version.clone(),
        started_at: context.facts.started_at,
        heard_at: heard_at.unwrap_or_default(),
        is_self: true,
        alive: true,
        x509_authorities: ids(AuthorityKind::X509),
        jwt_authorities: ids(AuthorityKind::Jwt),
        ..Default::default()
    }
}

fn other(row: ServerRow, now: i64) -> wire::ServerInfo {
    let ids = |ids: AuthorityIds| Some(wire::AuthorityIds { active: ids.active, prepared: ids.prepared });
    wire::ServerInfo {
        server_id: row.server_id,
        host: row.host,
        address: row.facts.address,
        version: row.facts.version,
        started_at: row.facts.started_at,
        heard_at: row.heard_at,
        is_self: false,
        alive: !row.stopped && row.heard_at.saturating_add(SERVER_LEASE) > now,
        stopped: row.stopped,
        x509_authorities: ids(row.facts.x509),
        jwt_authorities: ids(row.facts.jwt),
        behind_lines: row.behind_lines.unsigned_abs(),
        behind_s: row.behind_s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_counts_as_alive() {
        for (heard_at, stopped, alive) in [(970, false, false), (971, false, true), (999, true, false)] {
            let row = ServerRow {
                server_id: "s".into(),
                host: String::new(),
                heard_at,
                stopped,
                behind_lines: 0,
                behind_s: 0,
                facts: Default::default(),
            };
            let told = other(row, 1000);
            assert_eq!((told.alive, told.stopped), (alive, stopped), "{heard_at}");
        }
    }
}
