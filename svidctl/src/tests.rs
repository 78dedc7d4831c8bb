//! The screen of `status`.

use crate::render::Paint;
use crate::status::{Agent, Authority, Report, Server, Svid, text, warnings};

fn report() -> Report {
    let authority = Authority {
        id: "abcd".into(),
        subject: "O=SPIFFE".into(),
        not_before: 100,
        not_after: 1_100,
        remaining_s: 100,
        state: "active",
        slot: "A".into(),
        ..Authority::default()
    };
    Report {
        server: Some(Server {
            socket: "/s.sock".into(),
            version: "0.1.0".into(),
            trust_domain: "example.org".into(),
            uptime_s: 61,
            agents: 3,
            banned_agents: 1,
            entries: 1,
            x509_authorities: vec![authority],
            database: "sqlite3".into(),
            database_reachable: true,
            peer_identification: "pidfd".into(),
            ..Server::default()
        }),
        ..Report::default()
    }
}

#[test]
fn one_screen() {
    let mut report = report();
    report.warnings = warnings(&report, 1_000);
    let want = "\
Needs attention
  ! the active X.509 authority abcd has 1m 40s left and no next one is prepared

Server /s.sock
  Trust domain:  example.org
  Up:            version 0.1.0, for 1m 1s
  Agents:        3 agents (1 banned)
  Entries:       1 entry
  Federation:    0 foreign bundles
  Database:      sqlite3, reachable

AUTHORITY  STATE   LIFE         SLOT  ID    SUBJECT
X.509      active  1m 40s left  A     abcd  O=SPIFFE
";
    assert_eq!(text(&report, 1_000, Paint(false)), want);
}

#[test]
fn what_needs_attention() {
    let mut report = report();
    if let Some(server) = report.server.as_mut() {
        server.x509_authorities[0].remaining_s = 900;
        server.expired_agents = 2;
        server.peer_identification = "pid and start time".into();
    }
    report.agent = Some(Agent {
        server_address: "host:8081".into(),
        svid: Some(Svid { remaining_s: 5, ..Svid::default() }),
        ..Agent::default()
    });
    let warnings = warnings(&report, 200);
    let starts = [
        "2 agents have an expired SVID",
        "the server identifies callers by pid and start time",
        "the agent is not connected to its server host:8081",
    ];
    assert_eq!(warnings.len(), starts.len(), "{warnings:?}");
    for (warning, start) in warnings.iter().zip(starts) {
        assert!(warning.starts_with(start), "{warning}");
    }
}
