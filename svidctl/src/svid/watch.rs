//! `svid watch`: each update and what it changed, until Ctrl-C.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use svid_proto::workload::X509svidResponse;
use tonic::Streaming;

use super::fetch::{self, Given, GivenSvid};
use crate::args::Output;
use crate::connect::Failure;
use crate::render::{self, Paint, Screen, left};

/// One update.
#[derive(Debug, Serialize)]
struct Update {
    at: i64,
    #[serde(flatten)]
    given: Given,
    changes: Vec<String>,
}

pub async fn run(socket: &Path, screen: &mut Screen) -> Result<(), Failure> {
    // The first connection has to work: a mistake in the path should not be retried for ever.
    let mut stream = Some(fetch::open(socket).await?);
    let mut last: Option<Given> = None;
    let mut tries = 0;
    loop {
        let updates = async {
            match stream.take() {
                Some(stream) => follow(stream, &mut last, &mut tries, screen).await,
                None => match fetch::open(socket).await {
                    Ok(stream) => follow(stream, &mut last, &mut tries, screen).await,
                    Err(failure) => Ok(failure),
                },
            }
        };
        let ended = tokio::select! {
            ended = updates => ended?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        tries += 1;
        let wait = Duration::from_secs(tries.min(30));
        eprintln!("{ended}\nTrying again in {} s.", wait.as_secs());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// Prints updates until the stream ends; tells why it did.
async fn follow(
    mut stream: Streaming<X509svidResponse>,
    last: &mut Option<Given>,
    tries: &mut u64,
    screen: &mut Screen,
) -> Result<Failure, Failure> {
    loop {
        let answer = match stream.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(Failure::new("the agent closed the stream")),
            Err(status) => return Ok(fetch::explain(&status)),
        };
        *tries = 0;
        let at = render::now();
        let given = fetch::read(answer, at)?;
        let changes = changes(last.as_ref(), &given, at);
        *last = Some(given.clone());
        print(screen, &Update { at, given, changes })?;
    }
}

fn print(screen: &mut Screen, update: &Update) -> Result<(), Failure> {
    if screen.output == Output::Table {
        return screen.print(update, text);
    }
    screen.print(update, |_, _| String::new())
}

fn text(update: &Update, paint: Paint) -> String {
    let mut text = paint.bold(&format!("{}\n", render::time(update.at)));
    for change in &update.changes {
        text += &format!("  {change}\n");
    }
    text
}

fn key(svid: &GivenSvid) -> (&str, &str) {
    (&svid.spiffe_id, &svid.hint)
}

fn life(svid: &GivenSvid, now: i64) -> String {
    match svid.chain.first() {
        Some(leaf) => format!("serial {}, {}", leaf.serial, left(leaf.not_after, now)),
        None => "without a certificate".into(),
    }
}

/// What an update changed, in sentences.
fn changes(before: Option<&Given>, given: &Given, now: i64) -> Vec<String> {
    let nothing = Given::default();
    let old = before.unwrap_or(&nothing);
    let mut changes = Vec::new();
    for svid in &given.svids {
        match old.svids.iter().find(|one| key(one) == key(svid)) {
            None => changes.push(format!("new      {} ({})", svid.spiffe_id, life(svid, now))),
            Some(one) if one.chain.first().map(|c| &c.serial) != svid.chain.first().map(|c| &c.serial) => {
                changes.push(format!("renewed  {} ({})", svid.spiffe_id, life(svid, now)));
            }
            Some(_) => {}
        }
        let roots =
            |svid: &GivenSvid| svid.bundle.iter().map(|root| root.subject_key_id.clone()).collect::<Vec<_>>();
        if let Some(one) = old.svids.iter().find(|one| key(one) == key(svid))
            && roots(one) != roots(svid)
        {
            changes.push(format!(
                "roots    {} ({} -> {})",
                svid.spiffe_id,
                one.bundle.len(),
                svid.bundle.len()
            ));
        }
    }
    for gone in old.svids.iter().filter(|one| !given.svids.iter().any(|svid| key(svid) == key(one))) {
        changes.push(format!("gone     {}", gone.spiffe_id));
    }
    if before.is_some() && old.federated_trust_domains != given.federated_trust_domains {
        changes.push(format!("foreign  trust domains are now: {}", given.federated_trust_domains.join(", ")));
    }
    if changes.is_empty() {
        changes.push("the same as before".into());
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svid::facts::CertFacts;

    fn cert(serial: &str, key_id: &str) -> CertFacts {
        CertFacts {
            subject: String::new(),
            issuer: String::new(),
            serial: serial.into(),
            not_before: 0,
            not_after: 160,
            remaining_s: 60,
            uri_sans: vec![],
            dns_sans: vec![],
            is_ca: false,
            key: String::new(),
            subject_key_id: key_id.into(),
            authority_key_id: String::new(),
        }
    }

    fn given(svids: &[(&str, &str, &[&str])]) -> Given {
        let svids = svids.iter().map(|(name, serial, roots)| GivenSvid {
            spiffe_id: format!("spiffe://example.org/{name}"),
            hint: String::new(),
            chain: vec![cert(serial, "")],
            bundle: roots.iter().map(|root| cert("1", root)).collect(),
        });
        Given { svids: svids.collect(), federated_trust_domains: vec![] }
    }

    #[test]
    fn updates_say_what_changed() {
        let first = given(&[("a", "1", &["r"]), ("b", "2", &["r"])]);
        let second = given(&[("a", "3", &["r", "s"])]);
        assert_eq!(
            changes(None, &first, 100),
            [
                "new      spiffe://example.org/a (serial 1, 1m 0s left)",
                "new      spiffe://example.org/b (serial 2, 1m 0s left)"
            ]
        );
        assert_eq!(
            changes(Some(&first), &second, 100),
            [
                "renewed  spiffe://example.org/a (serial 3, 1m 0s left)",
                "roots    spiffe://example.org/a (1 -> 2)",
                "gone     spiffe://example.org/b"
            ]
        );
        assert_eq!(changes(Some(&second), &second, 100), ["the same as before"]);
    }
}
