//! Issuance of two servers in turn: with and without what is to cost nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::foreign::create;
use super::sign::{entries_of_own_agent, signers};
use crate::cli::Common;
use crate::drive::closed;
use crate::ground::{Ground, Program};
use crate::pairs::Ratio;
use crate::partners::Partners;
use crate::process::{Meter, own_cpu_seconds, round};
use crate::report::Report;
use crate::site::{BATCH, OwnAgent, Site};
use crate::stats::Outcome;

/// After relationships were made: the first fetches are over.
const SETTLE: Duration = Duration::from_secs(5);

/// A server with an agent of ours.
pub(super) struct Side {
    agent: OwnAgent,
    ids: Vec<String>,
    pid: u32,
    /// Dropped last: the server needs its directory.
    _program: Program,
    _ground: Ground,
}

impl Side {
    pub(super) async fn of(ground: Ground, program: Program, site: &Site) -> Result<Self> {
        let (agent, ids) = entries_of_own_agent(site, BATCH).await?;
        Ok(Self { agent, ids, pid: program.pid(), _program: program, _ground: ground })
    }

    /// Units a second, and per CPU-second of the server.
    async fn run(&self, callers: usize, limit: Duration, all: &mut Outcome) -> Result<(f64, f64)> {
        let callers = signers(&self.agent, &self.ids, callers).await?;
        let meter = Meter::of_process(self.pid)?;
        let outcome = closed(callers, limit).await;
        let usage = meter.finish(outcome.units)?;
        let rates = (
            outcome.units as f64 / outcome.wall.as_secs_f64(),
            outcome.units as f64 / usage.cpu_seconds.max(f64::MIN_POSITIVE),
        );
        let wall = all.wall + outcome.wall;
        all.merge(outcome);
        all.wall = wall;
        Ok(rates)
    }
}

/// Measures both sides `pairs` times, who comes first in turn.
pub(super) async fn compare(
    common: &Common,
    measure: &'static str,
    names: [&str; 2],
    [without, with]: [&Side; 2],
    pairs: usize,
) -> Result<Report> {
    let callers = common.callers.unwrap_or(2);
    let (own, mut all) = (own_cpu_seconds(), Outcome::default());
    let mut warm = Outcome::default();
    for side in [without, with] {
        side.run(callers, common.limit().min(Duration::from_secs(1)), &mut warm).await?;
    }
    let mut rates = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        let (a, b);
        if pair % 2 == 0 {
            a = without.run(callers, common.limit(), &mut all).await?;
            b = with.run(callers, common.limit(), &mut all).await?;
        } else {
            b = with.run(callers, common.limit(), &mut all).await?;
            a = without.run(callers, common.limit(), &mut all).await?;
        }
        rates.push((a, b));
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let [base, other] = names;
    let mut report = Report::of(measure, "X509-SVIDs", callers, all);
    report.client_cpu_seconds = round(own_cpu_seconds() - own, 100.0);
    let per_second = rates.iter().map(|(a, b)| b.0 / a.0).collect();
    let per_cpu = rates.iter().map(|(a, b)| b.1 / a.1).collect();
    report.ratios.extend(Ratio::of(format!("SVIDs a second, {other} to {base}"), per_second));
    report
        .ratios
        .extend(Ratio::of(format!("SVIDs per CPU-second of the server, {other} to {base}"), per_cpu));
    for (name, rates) in [
        (base, rates.iter().map(|(a, _)| *a).collect::<Vec<_>>()),
        (other, rates.iter().map(|(_, b)| *b).collect()),
    ] {
        let second = median(rates.iter().map(|rate| rate.0).collect());
        let cpu = median(rates.iter().map(|rate| rate.1).collect());
        report
            .notes
            .push(format!("{name}: {second:.0} a second, {cpu:.0} per CPU-second of the server (medians)"));
    }
    Ok(report)
}

/// With an upstream authority on disk, and self-signed.
pub(super) async fn upstream(common: &Common, server_bin: &Path, pairs: usize) -> Result<Report> {
    let own = Ground::new("example.org")?;
    let (program, site) = own.server(server_bin, "", "").await?;
    let own = Side::of(own, program, &site).await?;
    let below = Ground::new("example.org")?;
    let plugin = upstream_on_disk(&below)?;
    let (program, site) = below.server(server_bin, "", &plugin).await?;
    let below = Side::of(below, program, &site).await?;
    compare(common, "upstream", ["self-signed", "below an upstream"], [&own, &below], pairs).await
}

/// With other trust domains followed, some of them dead, and without.
pub(super) async fn federated(
    common: &Common,
    server_bin: &Path,
    pairs: usize,
    partners: usize,
    dead: usize,
) -> Result<Report> {
    let alone = Ground::new("example.org")?;
    let (program, site) = alone.server(server_bin, "", "").await?;
    let alone = Side::of(alone, program, &site).await?;
    let others = Partners::start(partners, dead.min(partners)).await?;
    let follows = Ground::new("example.org")?;
    let (program, site) = follows.server(server_bin, "", "").await?;
    create(&site, others.relationships.clone()).await?;
    let follows = Side::of(follows, program, &site).await?;
    sleep(SETTLE).await;
    let names = ["alone", "with partners"];
    let mut report = compare(common, "federated", names, [&alone, &follows], pairs).await?;
    let dead = dead.min(partners);
    report
        .notes
        .push(format!("{partners} partners, {dead} of them dead; their endpoints are in this process"));
    Ok(report)
}

/// A root with its key in the ground's directory, and the plugin's block.
fn upstream_on_disk(ground: &Ground) -> Result<String> {
    use svid_core::key::{KeyType, LocalKey, PrivateKeyDer};
    use svid_core::x509::{CaSubject, ca};
    const LIFE: Duration = Duration::from_secs(100 * 24 * 3600);
    let key = LocalKey::generate(KeyType::EcP256)?;
    let pem =
        svid_core::pem::key_to_pem(&PrivateKeyDer::from_pkcs8(key.private_key().secret_bytes().to_vec()));
    let signer = key.into_signer();
    let now = std::time::SystemTime::now();
    let root = ca::self_signed_ca(&"example.org".parse()?, &CaSubject::default(), LIFE, &*signer, now)?;
    let (cert_path, key_path) = (ground.path("upstream.pem"), ground.path("upstream.key"));
    std::fs::write(&cert_path, svid_core::pem::certs_to_pem([&root]))?;
    std::fs::write(&key_path, pem.as_bytes())?;
    Ok(format!(
        r#"UpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = "{}" key_file_path = "{}" }} }}"#,
        cert_path.display(),
        key_path.display()
    ))
}
