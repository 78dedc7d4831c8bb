//! `federation list|show|add|refresh`: the trust domains that are followed, and how that goes.

mod add;

use serde::Serialize;
use svid_proto::svid::federation::v1 as wire;
use tonic::transport::Channel;
use wire::federation_client::FederationClient;

use crate::args::{Args, FederationCommand};
use crate::connect::{self, Failure, Who};
use crate::render::{self, Paint, Screen, count, facts, left, span, table};

/// Longest part of an error in a table.
const SHORT: usize = 60;

#[derive(Debug, Serialize)]
struct List {
    relationships: Vec<Relationship>,
}

#[derive(Debug, Serialize)]
struct One {
    relationship: Relationship,
}

#[derive(Debug, Serialize)]
struct Refreshed {
    /// `unchanged`, `replaced`, `older` or `failed`.
    outcome: &'static str,
    /// Why not; empty if all is well.
    error: String,
    relationship: Relationship,
}

/// A trust domain that is followed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Relationship {
    pub trust_domain: String,
    /// `static` (the server's configuration) or `dynamic` (the database).
    pub source: &'static str,
    /// A dynamic one that the configuration's goes before.
    pub hides_dynamic: bool,
    pub url: String,
    /// `https_web` or `https_spiffe`.
    pub profile: String,
    /// Empty with `https_web`.
    pub endpoint_spiffe_id: String,
    pub last_attempt_at: i64,
    pub last_success_at: i64,
    /// Empty if the last attempt succeeded.
    pub last_error: String,
    pub failures_in_a_row: u32,
    pub next_refresh_at: i64,
    pub is_fetching: bool,
    /// The one that is used; null where there is none.
    pub bundle: Option<Bundle>,
}

/// Another trust domain's bundle.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Bundle {
    pub sequence_number: u64,
    pub refresh_hint_s: i64,
    pub x509_authorities: u32,
    pub jwt_authorities: u32,
    /// Otherwise it was set by hand.
    pub is_fetched: bool,
    pub fetched_at: i64,
    /// Since the endpoint last said that this is its bundle.
    pub age_s: i64,
    pub x509_authorities_end_at: i64,
}

impl From<wire::RelationshipStatus> for Relationship {
    fn from(told: wire::RelationshipStatus) -> Self {
        let source = match told.source() {
            wire::Source::Static => "static",
            wire::Source::Dynamic => "dynamic",
            wire::Source::Unspecified => "unknown",
        };
        Self {
            source,
            trust_domain: told.trust_domain,
            hides_dynamic: told.hides_dynamic,
            url: told.bundle_endpoint_url,
            profile: told.bundle_endpoint_profile,
            endpoint_spiffe_id: told.endpoint_spiffe_id,
            last_attempt_at: told.last_attempt_at,
            last_success_at: told.last_success_at,
            last_error: told.last_error,
            failures_in_a_row: told.failures_in_a_row,
            next_refresh_at: told.next_refresh_at,
            is_fetching: told.is_fetching,
            bundle: told.bundle.map(|bundle| Bundle {
                sequence_number: bundle.sequence_number,
                refresh_hint_s: bundle.refresh_hint_s,
                x509_authorities: bundle.x509_authorities_count,
                jwt_authorities: bundle.jwt_authorities_count,
                is_fetched: bundle.is_fetched,
                fetched_at: bundle.fetched_at,
                age_s: bundle.age_s,
                x509_authorities_end_at: bundle.x509_authorities_end_at,
            }),
        }
    }
}

pub async fn run(args: &Args, command: &FederationCommand, screen: &mut Screen) -> Result<(), Failure> {
    let channel = connect::dial(Who::Server, &args.server_socket).await?;
    match command {
        FederationCommand::List => {
            let report = List { relationships: relationships(channel, "").await? };
            screen.print(&report, |report, paint| list_text(&report.relationships, render::now(), paint))
        }
        FederationCommand::Show { trust_domain } => {
            let report = One { relationship: one(channel, trust_domain).await? };
            screen.print(&report, |report, paint| one_text(&report.relationship, render::now(), paint))
        }
        FederationCommand::Add(command) => add::run(channel, command, screen).await,
        FederationCommand::Refresh { trust_domain, accept_older } => {
            let refreshed = refresh(channel, trust_domain, *accept_older).await?;
            show_refreshed(refreshed, screen)
        }
    }
}

/// Not known to SPIRE's server.
fn refused(status: &tonic::Status) -> Failure {
    match connect::is_unknown(status) {
        true => Failure::new("this server does not tell how its federation goes").advise(
            "It is SPIRE's, or an older release of ours: `federation list`, `federation show` and `bundle list` of \
             its own command line show what it knows.",
        ),
        false => connect::rpc(Who::Server, status),
    }
}

async fn relationships(channel: Channel, trust_domain: &str) -> Result<Vec<Relationship>, Failure> {
    let request = wire::ListRelationshipsRequest { trust_domain: trust_domain.to_owned() };
    let answer = FederationClient::new(channel).list_relationships(request).await;
    let answer = answer.map_err(|status| refused(&status))?.into_inner();
    Ok(answer.relationships.into_iter().map(Relationship::from).collect())
}

async fn one(channel: Channel, trust_domain: &str) -> Result<Relationship, Failure> {
    relationships(channel, trust_domain).await?.into_iter().next().ok_or_else(|| {
        Failure::new(format!("this server does not follow {trust_domain}"))
            .advise("`svidctl federation list` shows whom it follows, `svidctl federation add` adds one.")
    })
}

async fn refresh(channel: Channel, trust_domain: &str, accept_older: bool) -> Result<Refreshed, Failure> {
    let request = wire::RefreshBundleRequest { trust_domain: trust_domain.to_owned(), accept_older };
    let answer = FederationClient::new(channel).refresh_bundle(request).await;
    let answer = answer.map_err(|status| match status.code() {
        tonic::Code::NotFound => Failure::new(format!("this server does not follow {trust_domain}"))
            .advise("`svidctl federation list` shows whom it follows, `svidctl federation add` adds one."),
        _ => refused(&status),
    })?;
    let answer = answer.into_inner();
    let outcome = match answer.outcome() {
        wire::RefreshOutcome::Unchanged => "unchanged",
        wire::RefreshOutcome::Replaced => "replaced",
        wire::RefreshOutcome::Older => "older",
        wire::RefreshOutcome::Failed | wire::RefreshOutcome::Unspecified => "failed",
    };
    let relationship = answer.relationship.map(Relationship::from).unwrap_or_default();
    Ok(Refreshed { outcome, error: answer.error, relationship })
}

/// Prints what came of a refresh; one that gave nothing ends the program with an error.
fn show_refreshed(refreshed: Refreshed, screen: &mut Screen) -> Result<(), Failure> {
    screen.print(&refreshed, |refreshed, paint| {
        let name = &refreshed.relationship.trust_domain;
        let said = match refreshed.outcome {
            "unchanged" => format!("The bundle of {name} is what it was.\n"),
            "replaced" => format!("A new bundle of {name} is in use.\n"),
            "older" => format!("The endpoint gave an older bundle of {name}; the stored one stays.\n"),
            _ => format!("The bundle of {name} was not fetched; what is stored stays.\n"),
        };
        said + &one_text(&refreshed.relationship, render::now(), paint)
    })?;
    let (name, profile) = (&refreshed.relationship.trust_domain, refreshed.relationship.profile.as_str());
    match refreshed.outcome {
        "older" => Err(Failure::new(refreshed.error).advise(
            "If the partner restored a copy of its database, `--accept-older` takes the bundle all the same.",
        )),
        "failed" => Err(Failure::new(refreshed.error).advise(match profile {
            "https_spiffe" => format!(
                "The endpoint proves itself with an SVID that the stored bundle of {name} verifies. If that bundle \
                 is missing or too old, bring a fresh one over by a way you trust: `bundle show -format spiffe` on \
                 the partner's server, then `bundle set -id spiffe://{name} -format spiffe` here."
            ),
            _ => "The endpoint proves itself with a certificate of a public CA for the URL's host name.".to_owned(),
        })),
        _ => Ok(()),
    }
}

fn age(one: &Relationship) -> String {
    match &one.bundle {
        None => "no bundle".into(),
        Some(bundle) if !bundle.is_fetched => "set by hand".into(),
        Some(bundle) => span(bundle.age_s),
    }
}

fn next(one: &Relationship, now: i64) -> String {
    match one.next_refresh_at {
        _ if one.is_fetching => "now".into(),
        0 => "-".into(),
        at => format!("in {}", span(at.saturating_sub(now).max(0))),
    }
}

fn list_text(all: &[Relationship], now: i64, paint: Paint) -> String {
    if all.is_empty() {
        return "No other trust domain is followed: `svidctl federation add` adds one.\n".into();
    }
    let header = ["TRUST DOMAIN", "FROM", "PROFILE", "BUNDLE AGE", "SEQUENCE", "NEXT", "LAST ERROR"];
    let rows = all.iter().map(|one| {
        let sequence = one.bundle.as_ref().map_or_else(|| "-".into(), |it| it.sequence_number.to_string());
        let error: String = match one.failures_in_a_row {
            0 => String::new(),
            times => format!("{times}x: {}", one.last_error).chars().take(SHORT).collect(),
        };
        vec![
            one.trust_domain.clone(),
            one.source.into(),
            one.profile.clone(),
            age(one),
            sequence,
            next(one, now),
            error,
        ]
    });
    let mut text = table(&header, rows);
    let failing: Vec<_> = all.iter().filter(|one| one.failures_in_a_row > 0).collect();
    if !failing.is_empty() {
        let number = count(failing.len() as u64, "trust domain", "trust domains");
        text += &paint.warn(&format!(
            "\n{number} could not be fetched last time; their last good bundles stay in use: \
             `svidctl federation show` tells why.\n"
        ));
    }
    text
}

fn one_text(one: &Relationship, now: i64, paint: Paint) -> String {
    let ago = |at: i64| match at {
        0 => "never".to_owned(),
        at => format!("{} ago", span(now.saturating_sub(at).max(0))),
    };
    let from = match (one.source, one.hides_dynamic) {
        ("static", true) => "the server's configuration, which goes before the one in the database",
        ("static", false) => "the server's configuration",
        _ => "the database",
    };
    let profile = match one.endpoint_spiffe_id.as_str() {
        "" => one.profile.clone(),
        id => format!("{}, {id}", one.profile),
    };
    let mut rows = vec![
        ("From", from.to_owned()),
        ("Endpoint", one.url.clone()),
        ("Profile", profile),
        ("Last attempt", ago(one.last_attempt_at)),
        ("Last success", ago(one.last_success_at)),
        ("Next refresh", next(one, now)),
    ];
    if !one.last_error.is_empty() {
        rows.push(("Last error", format!("{} ({} in a row)", one.last_error, one.failures_in_a_row)));
    }
    match &one.bundle {
        None => rows.push(("Bundle", "none: nothing of this trust domain is believed".into())),
        Some(bundle) => {
            let authorities = format!("{} X.509, {} JWT", bundle.x509_authorities, bundle.jwt_authorities);
            rows.extend([
                ("Bundle age", age(one)),
                ("Sequence", bundle.sequence_number.to_string()),
                ("Refresh hint", span(bundle.refresh_hint_s)),
                ("Authorities", authorities),
                ("Roots end", left(bundle.x509_authorities_end_at, now)),
            ]);
        }
    }
    paint.bold(&format!("{}\n", one.trust_domain)) + &facts("  ", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn partner() -> Relationship {
        Relationship::from(wire::RelationshipStatus {
            trust_domain: "partner.test".into(),
            source: wire::Source::Dynamic.into(),
            bundle_endpoint_url: "https://partner.test/bundle".into(),
            bundle_endpoint_profile: "https_spiffe".into(),
            endpoint_spiffe_id: "spiffe://partner.test/spire/server".into(),
            last_attempt_at: NOW - 5,
            last_success_at: NOW - 3700,
            last_error: "connection refused".into(),
            failures_in_a_row: 3,
            next_refresh_at: NOW + 60,
            bundle: Some(wire::BundleStatus {
                sequence_number: 7,
                is_fetched: true,
                age_s: 3700,
                x509_authorities_count: 2,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn ages_errors_and_what_comes_next_are_told() {
        let mut alone = partner();
        (alone.trust_domain, alone.bundle, alone.failures_in_a_row) = ("new.test".into(), None, 0);
        let list = list_text(&[partner(), alone], NOW, Paint(false));
        for part in [
            "partner.test",
            "dynamic",
            "1h 1m",
            "in 1m 0s",
            "3x: connection refused",
            "no bundle",
            "1 trust domain could",
        ] {
            assert!(list.contains(part), "{part}\n{list}");
        }
        let one = one_text(&partner(), NOW, Paint(false));
        for part in [
            "connection refused (3 in a row)",
            "spiffe://partner.test/spire/server",
            "2 X.509, 0 JWT",
            "5s ago",
        ] {
            assert!(one.contains(part), "{part}\n{one}");
        }
        assert!(list_text(&[], NOW, Paint(false)).contains("svidctl federation add"));
    }

    #[test]
    fn a_refresh_that_gave_nothing_is_a_failure_with_a_way_out() {
        let mut screen =
            Screen { out: Box::new(Vec::new()), output: crate::args::Output::Table, colour: false };
        let refreshed = |outcome| Refreshed { outcome, error: "no".into(), relationship: partner() };
        assert!(show_refreshed(refreshed("replaced"), &mut screen).is_ok());
        let failed = show_refreshed(refreshed("failed"), &mut screen).map_err(|failure| failure.to_string());
        assert!(failed.is_err_and(|text| text.contains("bundle set -id spiffe://partner.test")));
        let older = show_refreshed(refreshed("older"), &mut screen).map_err(|failure| failure.to_string());
        assert!(older.is_err_and(|text| text.contains("--accept-older")));
    }
}
