//! The servers of the trust domain in `status`.

use serde::Serialize;
use svid_proto::svid::status::v1 as wire;

use crate::render::{count, span, table};

/// Characters of an authority's ID that tell it apart on one screen.
const SHORT: usize = 8;
/// A server that has been gone for longer is missed by nobody.
const MISSED_S: i64 = 24 * 3600;
/// A server that applies the change log later than this is slow.
const SLOW_S: i64 = 5;

/// A server of the trust domain.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Peer {
    pub id: String,
    /// Host name and data directory.
    pub host: String,
    /// host:port.
    pub address: String,
    pub version: String,
    pub started_at: i64,
    pub heard_at: i64,
    /// `this one`, `running`, `stopped`, or `gone`.
    pub state: &'static str,
    pub x509_active: String,
    pub x509_prepared: String,
    pub jwt_active: String,
    pub jwt_prepared: String,
    /// Lines of the change log it has not applied.
    pub behind_lines: u64,
    pub behind_s: i64,
}

impl From<wire::ServerInfo> for Peer {
    fn from(server: wire::ServerInfo) -> Self {
        let state = match (server.is_self, server.alive, server.stopped) {
            (true, ..) => "this one",
            (_, true, _) => "running",
            (.., true) => "stopped",
            _ => "gone",
        };
        let (x509, jwt) =
            (server.x509_authorities.unwrap_or_default(), server.jwt_authorities.unwrap_or_default());
        Self {
            id: server.server_id,
            host: server.host,
            address: server.address,
            version: server.version,
            started_at: server.started_at,
            heard_at: server.heard_at,
            state,
            x509_active: x509.active,
            x509_prepared: x509.prepared,
            jwt_active: jwt.active,
            jwt_prepared: jwt.prepared,
            behind_lines: server.behind_lines,
            behind_s: server.behind_s,
        }
    }
}

impl Peer {
    fn is_up(&self) -> bool {
        matches!(self.state, "this one" | "running")
    }

    fn ago(&self, now: i64) -> String {
        match self.heard_at {
            0 => "never".into(),
            at => format!("{} ago", span(now.saturating_sub(at).max(0))),
        }
    }

    fn behind(&self) -> String {
        match self.behind_lines {
            _ if !self.is_up() => String::new(),
            0 => "-".into(),
            lines => format!("{}, {}", count(lines, "line", "lines"), span(self.behind_s)),
        }
    }
}

/// `1a2b3c4d, next 5e6f7a8b`.
fn authorities(active: &str, prepared: &str) -> String {
    let short = |id: &str| id.chars().take(SHORT).collect::<String>();
    match (active, prepared) {
        (active, "") => short(active),
        (active, prepared) => format!("{}, next {}", short(active), short(prepared)),
    }
}

/// The table.
pub fn servers_text(servers: &[Peer], now: i64) -> String {
    let header = ["SERVER", "STATE", "HEARD", "BEHIND", "VERSION", "UP", "ADDRESS", "X.509", "JWT", "HOST"];
    let rows = servers.iter().map(|server| {
        let up =
            if server.is_up() { span(now.saturating_sub(server.started_at).max(0)) } else { String::new() };
        vec![
            server.id.clone(),
            server.state.into(),
            server.ago(now),
            server.behind(),
            server.version.clone(),
            up,
            server.address.clone(),
            authorities(&server.x509_active, &server.x509_prepared),
            authorities(&server.jwt_active, &server.jwt_prepared),
            server.host.clone(),
        ]
    });
    table(&header, rows)
}

/// Servers that somebody should look at.
pub fn server_warnings(servers: &[Peer], now: i64, warnings: &mut Vec<String>) {
    for server in servers {
        let silent = now.saturating_sub(server.heard_at);
        if server.state == "gone" && silent <= MISSED_S {
            warnings.push(format!(
                "server {} ({}) was not heard of for {}",
                server.id,
                server.host,
                span(silent)
            ));
        }
        if server.is_up() && server.behind_s > SLOW_S {
            warnings.push(format!(
                "server {} ({}) is {} of the change log behind, for {}",
                server.id,
                server.host,
                count(server.behind_lines, "line", "lines"),
                span(server.behind_s)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: &str, alive: bool, stopped: bool) -> Peer {
        let ids = |active: &str, prepared: &str| {
            Some(wire::AuthorityIds { active: active.into(), prepared: prepared.into() })
        };
        Peer::from(wire::ServerInfo {
            server_id: id.into(),
            host: format!("{id}:/data"),
            address: "10.0.0.1:8081".into(),
            version: "0.1.0".into(),
            started_at: 1000,
            heard_at: 4000,
            is_self: id == "me",
            alive,
            stopped,
            x509_authorities: ids("0123456789abcdef", "fedcba9876543210"),
            jwt_authorities: ids("jwtkey", ""),
            behind_lines: if id == "slow" { 7 } else { 0 },
            behind_s: if id == "slow" { 65 } else { 0 },
        })
    }

    #[test]
    fn the_table_and_what_it_warns_of() {
        let servers = [
            server("me", true, false),
            server("slow", true, false),
            server("off", false, true),
            server("lost", false, false),
        ];
        assert_eq!(
            servers_text(&servers, 4600),
            "SERVER  STATE     HEARD       BEHIND          VERSION  UP     ADDRESS        X.509                    JWT     HOST\n\
             me      this one  10m 0s ago  -               0.1.0    1h 0m  10.0.0.1:8081  01234567, next fedcba98  jwtkey  me:/data\n\
             slow    running   10m 0s ago  7 lines, 1m 5s  0.1.0    1h 0m  10.0.0.1:8081  01234567, next fedcba98  jwtkey  slow:/data\n\
             off     stopped   10m 0s ago                  0.1.0           10.0.0.1:8081  01234567, next fedcba98  jwtkey  off:/data\n\
             lost    gone      10m 0s ago                  0.1.0           10.0.0.1:8081  01234567, next fedcba98  jwtkey  lost:/data\n"
        );
        let mut warnings = Vec::new();
        server_warnings(&servers, 4600, &mut warnings);
        assert_eq!(
            warnings,
            [
                "server slow (slow:/data) is 7 lines of the change log behind, for 1m 5s",
                "server lost (lost:/data) was not heard of for 10m 0s",
            ]
        );
        warnings.clear();
        server_warnings(&servers[3..], 4000 + MISSED_S + 1, &mut warnings);
        assert!(warnings.is_empty(), "nobody misses it any more");
    }
}
