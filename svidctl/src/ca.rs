//! `ca show`: where trust comes from, from the root to what signs.

use serde::Serialize;
use svid_core::clock::unix_seconds;
use svid_core::x509::ParsedCert;
use svid_proto::svid::status::v1 as wire;
use wire::status_client::StatusClient;

use crate::args::{Args, CaCommand};
use crate::connect::{self, Failure, Who};
use crate::render::{self, Paint, Screen, facts, left, table};
use crate::status::Authority;
use crate::status_gather::{jwt_authorities, state, x509_authorities};
use crate::status_servers::{Peer, servers_text};

/// Everything that `ca show` knows.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub trust_domain: String,
    /// The server that answered.
    pub server_id: String,
    /// The plugin that keeps its keys.
    pub key_manager: String,
    /// The plugin that signs its X.509 authorities; empty when they sign themselves.
    pub upstream_authority: String,
    /// This server's, the active one first.
    pub x509_authorities: Vec<Held>,
    pub jwt_authorities: Vec<Held>,
    /// The trust domain's, other servers' included.
    pub x509_bundle: Vec<Authority>,
    pub jwt_bundle: Vec<Authority>,
    pub servers: Vec<Peer>,
    /// What needs attention.
    pub warnings: Vec<String>,
}

/// An authority in a slot of the server.
#[derive(Debug, Default, Serialize)]
pub struct Held {
    pub id: String,
    /// `active`, `prepared` or `old`.
    pub state: &'static str,
    pub slot: String,
    /// The key's id in the key manager.
    pub key_id: String,
    pub issued_at: i64,
    pub not_after: i64,
    pub remaining_s: i64,
    /// It, or one that it chains to.
    pub tainted: bool,
    /// It is in the bundle, or chains to one that is.
    pub published: bool,
    /// From the root to this authority. Empty for JWT keys, and where only the id is still known.
    pub chain: Vec<Link>,
}

/// A certificate of a chain.
#[derive(Debug, Default, Serialize)]
pub struct Link {
    /// Subject key id; empty where it has none.
    pub id: String,
    pub subject: String,
    pub not_before: i64,
    pub not_after: i64,
    pub remaining_s: i64,
}

pub async fn run(args: &Args, command: &CaCommand, screen: &mut Screen) -> Result<(), Failure> {
    let CaCommand::Show = command;
    let now = render::now();
    let channel = connect::dial(Who::Server, &args.server_socket).await?;
    let answer = StatusClient::new(channel).get_authorities(wire::GetAuthoritiesRequest {}).await;
    let answer = answer.map_err(|status| match connect::is_unknown(&status) {
        true => Failure::new("this server does not tell where its authorities come from").advise(
            "It is SPIRE's, or an older release of ours: `svidctl status` shows what it tells, and \
             `localauthority x509 show` of its own command line which authority is active.",
        ),
        false => connect::rpc(Who::Server, &status),
    })?;
    let report = report(answer.into_inner(), now);
    screen.print(&report, |report, paint| text(report, now, paint))
}

/// What the server told, read.
pub fn report(answer: wire::GetAuthoritiesResponse, now: i64) -> Report {
    let mut report = Report {
        trust_domain: answer.trust_domain,
        server_id: answer.server_id,
        key_manager: answer.key_manager,
        upstream_authority: answer.upstream_authority,
        x509_authorities: answer.x509_authorities.into_iter().map(|one| held(one, now)).collect(),
        jwt_authorities: answer.jwt_authorities.into_iter().map(|one| held(one, now)).collect(),
        x509_bundle: x509_authorities(answer.x509_bundle, now),
        jwt_bundle: jwt_authorities(answer.jwt_bundle, now),
        servers: answer.servers.into_iter().map(Peer::from).collect(),
        warnings: Vec::new(),
    };
    report.warnings = warnings(&report, now);
    report
}

fn remaining(end: i64, now: i64) -> i64 {
    end.saturating_sub(now).max(0)
}

fn held(one: wire::HeldAuthority, now: i64) -> Held {
    Held {
        id: one.authority_id,
        state: state(one.state),
        slot: one.slot,
        key_id: one.key_id,
        issued_at: one.issued_at,
        not_after: one.not_after,
        remaining_s: remaining(one.not_after, now),
        tainted: one.tainted,
        published: one.published,
        chain: one.chain.iter().filter_map(|der| link(der, now)).collect(),
    }
}

fn link(der: &[u8], now: i64) -> Option<Link> {
    let cert = ParsedCert::from_der(der).ok()?;
    let not_after = unix_seconds(cert.life().not_after);
    Some(Link {
        id: cert.subject_key_id_hex().unwrap_or_default(),
        subject: cert.subject().to_owned(),
        not_before: unix_seconds(cert.life().not_before),
        not_after,
        remaining_s: remaining(not_after, now),
    })
}

fn warnings(report: &Report, now: i64) -> Vec<String> {
    let mut warnings = Vec::new();
    let kinds = [("X.509", "x509", &report.x509_authorities), ("JWT", "jwt", &report.jwt_authorities)];
    for (kind, verb, all) in kinds {
        for one in all.iter() {
            let (id, name) = (&one.id, one.state);
            if one.tainted && name == "old" {
                warnings.push(format!(
                    "the old {kind} authority {id} is tainted: once everything it signed is replaced, \
                     `localauthority {verb} revoke -authorityID {id}` takes it out of the bundle"
                ));
            } else if one.tainted {
                warnings.push(format!(
                    "the {name} {kind} authority {id} is tainted, or below one that is: prepare and activate another"
                ));
            }
            if !one.published && name != "old" {
                warnings
                    .push(format!("the {name} {kind} authority {id} is not in the bundle: nobody trusts it"));
            }
        }
    }
    for one in &report.x509_authorities {
        let early = one.chain.iter().find(|link| link.not_after < one.not_after);
        if let Some(link) = early.filter(|_| one.state == "active") {
            let (id, subject, left) = (&one.id, &link.subject, left(link.not_after, now));
            warnings.push(format!(
                "the active X.509 authority {id} chains to {subject}, which ends before it ({left})"
            ));
        }
    }
    warnings
}

/// The screen.
pub fn text(report: &Report, now: i64, paint: Paint) -> String {
    let upstream = match report.upstream_authority.as_str() {
        "" => "none: X.509 authorities sign themselves",
        name => name,
    };
    let rows = [
        ("Trust domain", report.trust_domain.clone()),
        ("Server", report.server_id.clone()),
        ("Keys in", report.key_manager.clone()),
        ("Upstream", upstream.to_owned()),
    ];
    let mut text = String::new();
    for warning in &report.warnings {
        text += &paint.warn(&format!("! {warning}\n"));
    }
    text += &facts("", &rows);
    for (kind, all) in [("X.509", &report.x509_authorities), ("JWT", &report.jwt_authorities)] {
        for one in all.iter() {
            text.push('\n');
            text += &held_text(kind, one, &report.key_manager, now, paint);
        }
    }
    text += &format!("\n{}", paint.bold("In the bundle\n"));
    let all = report.x509_bundle.iter().map(|one| ("X.509", one));
    let all = all.chain(report.jwt_bundle.iter().map(|one| ("JWT", one)));
    let rows = all.map(|(kind, one)| {
        let state = if one.tainted { format!("{}, tainted", one.state) } else { one.state.to_owned() };
        let whose = holder(&report.servers, &one.id);
        vec![kind.into(), state, left(one.not_after, now), whose, one.id.clone(), one.subject.clone()]
    });
    text += &table(&["KIND", "STATE", "LIFE", "SERVER", "ID", "SUBJECT"], rows);
    if report.servers.len() > 1 {
        text.push('\n');
        text += &servers_text(&report.servers, now);
    }
    text
}

/// The server that has this authority as its active or prepared one.
fn holder(servers: &[Peer], id: &str) -> String {
    let has = |server: &&Peer| {
        [&server.x509_active, &server.x509_prepared, &server.jwt_active, &server.jwt_prepared]
            .into_iter()
            .any(|own| own == id)
    };
    servers.iter().find(has).map(|server| server.id.clone()).unwrap_or_default()
}

fn held_text(kind: &str, one: &Held, key_manager: &str, now: i64, paint: Paint) -> String {
    let tainted = if one.tainted { ", tainted" } else { "" };
    let heading = format!("{kind} {}{tainted}: {}\n", one.state, one.id);
    let key = match one.state {
        // The next authority of the slot takes its place.
        "old" => "signs no more".to_owned(),
        _ => format!("{} in {key_manager}", one.key_id),
    };
    let rows = [
        ("Slot", one.slot.clone()),
        ("Key", key),
        ("Since", render::time(one.issued_at)),
        ("Life", left(one.not_after, now)),
    ];
    let mut text = paint.bold(&heading) + &facts("  ", &rows);
    let last = one.chain.len().saturating_sub(1);
    for (depth, link) in one.chain.iter().enumerate() {
        let role = match depth {
            0 if last == 0 => "root, self-signed",
            0 => "root",
            _ if depth == last => "this authority",
            _ => "intermediate",
        };
        let indent = "  ".repeat(depth + 1);
        let (subject, left) = (&link.subject, left(link.not_after, now));
        text += &format!("{indent}- {role}: {subject}, {left}, {}\n", link.id);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn answer() -> wire::GetAuthoritiesResponse {
        let held = |id: &str, state: wire::AuthorityState, slot: &str, tainted| wire::HeldAuthority {
            authority_id: id.into(),
            state: state.into(),
            slot: slot.into(),
            key_id: format!("x509-CA-{slot}"),
            issued_at: NOW - 60,
            not_after: NOW + 3600,
            tainted,
            published: true,
            chain: Vec::new(),
        };
        wire::GetAuthoritiesResponse {
            trust_domain: "example.org".into(),
            server_id: "one".into(),
            key_manager: "disk".into(),
            x509_authorities: vec![
                held("new", wire::AuthorityState::Active, "B", false),
                held("gone", wire::AuthorityState::Old, "A", true),
            ],
            servers: vec![wire::ServerInfo {
                server_id: "one".into(),
                is_self: true,
                x509_authorities: Some(wire::AuthorityIds { active: "new".into(), prepared: String::new() }),
                ..Default::default()
            }],
            x509_bundle: vec![wire::X509Authority {
                authority_id: "new".into(),
                not_after: NOW + 3600,
                state: wire::AuthorityState::Active.into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn the_screen_names_keys_slots_and_what_to_do() {
        let report = report(answer(), NOW);
        let text = text(&report, NOW, Paint(false));
        for part in [
            "! the old X.509 authority gone is tainted: once everything it signed is replaced, `localauthority x509 \
             revoke -authorityID gone` takes it out of the bundle",
            "Keys in:       disk",
            "none: X.509 authorities sign themselves",
            "X.509 active: new\n  Slot:   B\n  Key:    x509-CA-B in disk\n",
            "1h 0m left",
            "X.509 old, tainted: gone\n",
            "signs no more",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(text.lines().any(|line| line.starts_with("X.509") && line.contains("  one  ")), "{text}");
    }

    #[test]
    fn json_has_the_facts() {
        let json = serde_json::to_value(report(answer(), NOW)).unwrap();
        let old = &json["x509_authorities"][1];
        assert_eq!((old["state"].as_str(), old["tainted"].as_bool()), (Some("old"), Some(true)));
        assert_eq!(json["x509_authorities"][0]["remaining_s"], 3600);
        assert_eq!(json["key_manager"], "disk");
    }

    #[test]
    fn an_authority_that_nobody_trusts_is_told() {
        let mut answer = answer();
        answer.x509_authorities[0].published = false;
        let report = report(answer, NOW);
        assert!(report.warnings.iter().any(|warning| warning.contains("new is not in the bundle")));
    }
}
