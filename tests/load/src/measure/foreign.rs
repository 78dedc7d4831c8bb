//! From a prepared authority of another trust domain to a workload that federates with it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use svid_proto::spire::api::server::bundle::v1::{GetBundleRequest, bundle_client::BundleClient};
use svid_proto::spire::api::server::trustdomain::v1 as td;
use svid_proto::spire::api::types;
use td::trust_domain_client::TrustDomainClient;
use tokio::time::{Instant, timeout};

use super::authorities::{Authorities, roots};
use crate::cli::Common;
use crate::ground::{Ground, free_port};
use crate::process::{Meter, own_cpu_seconds, round};
use crate::report::Report;
use crate::site::{Site, own_selector};
use crate::stats::{Failure, Outcome};
use crate::workload::Stream;

const PARTNER: &str = "partner.test";
/// Longer than this nothing may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(_: &Common, server_bin: &Path, agent_bin: &Path, rounds: usize) -> Result<Report> {
    let (here, there) = (Ground::new("example.org")?, Ground::new(PARTNER)?);
    let port = free_port()?;
    let endpoint = format!("federation {{ bundle_endpoint {{ address = \"127.0.0.1\" port = {port} }} }}");
    let (partner, partner_site) = there.server(server_bin, &endpoint, "").await?;
    let (server, site) = here.server(server_bin, "", "").await?;
    relate(&site, &partner_site, port).await?;
    let token = site.tokens(1).await?.pop().context("one token")?;
    let mut entry = site.entry("/web", &site.agent_of(&token), vec![own_selector()]);
    entry.federates_with = vec![PARTNER.to_owned()];
    site.create(vec![entry]).await?;
    let mut agent = here.agent(agent_bin, "agent", &token)?;
    let (mut stream, _) = here.first_svid(&mut agent, "agent").await?;

    let (mut refresh, mut authorities) =
        (TrustDomainClient::new(site.channel()), Authorities::of(&partner_site));
    let (own, meter, began) = (own_cpu_seconds(), Meter::of_process(server.pid())?, Instant::now());
    let mut outcome = Outcome::default();
    for _ in 0..rounds {
        let next = authorities.prepare().await.context("prepare")?;
        let from = Instant::now();
        let request = td::RefreshBundleRequest { trust_domain: PARTNER.to_owned() };
        refresh.refresh_bundle(request).await.map_err(Failure::from).context("refresh")?;
        let heard = wait_for(&mut stream, &next).await;
        let broken = heard.is_err();
        outcome.add(from.elapsed(), heard.map(|()| 1));
        if broken {
            break;
        }
        let old = authorities.activate(&next).await.context("activate")?;
        authorities.taint(&old).await.context("taint")?;
        authorities.revoke(&old).await.context("revoke")?;
    }
    outcome.wall = began.elapsed();
    let units = outcome.units;
    let mut report = Report::of("foreign", "authorities", 1, outcome);
    report.client_cpu_seconds = round(own_cpu_seconds() - own, 100.0);
    report.process = Some(meter.finish(units)?);
    report.notes.push("latency: from before `federation refresh` to the workload's open stream".to_owned());
    drop((partner, server));
    Ok(report)
}

/// `site` follows the partner's bundle endpoint from now on, beginning with the bundle of its admin socket.
async fn relate(site: &Site, partner: &Site, port: u16) -> Result<()> {
    let answer =
        BundleClient::new(partner.channel()).get_bundle(GetBundleRequest { output_mask: None }).await;
    let bundle = answer.map_err(Failure::from)?.into_inner();
    let profile =
        types::federation_relationship::BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: format!("spiffe://{PARTNER}/spire/server"),
        });
    create(
        site,
        vec![types::FederationRelationship {
            trust_domain: PARTNER.to_owned(),
            bundle_endpoint_url: format!("https://127.0.0.1:{port}/"),
            trust_domain_bundle: Some(bundle),
            bundle_endpoint_profile: Some(profile),
        }],
    )
    .await
}

/// Creates relationships.
pub(super) async fn create(site: &Site, all: Vec<types::FederationRelationship>) -> Result<()> {
    let request =
        td::BatchCreateFederationRelationshipRequest { federation_relationships: all, output_mask: None };
    let answer = TrustDomainClient::new(site.channel()).batch_create_federation_relationship(request).await;
    for result in answer.map_err(Failure::from).context("cannot create a relationship")?.into_inner().results
    {
        if let Some(failure) = Failure::of_item(result.status.as_ref()) {
            bail!("the server refused a relationship: {failure}");
        }
    }
    Ok(())
}

async fn wait_for(stream: &mut Stream, id: &str) -> Result<(), Failure> {
    let arrived = async {
        loop {
            let answer = stream.next().await?;
            let foreign = answer.federated_bundles.iter().find(|(name, _)| name.ends_with(PARTNER));
            if foreign.is_some_and(|(_, bundle)| roots(bundle).iter().any(|root| root == id)) {
                return Ok(());
            }
        }
    };
    let late = |_| Err(Failure::new("NoAnswer", format!("not there within {} s", PATIENCE.as_secs())));
    timeout(PATIENCE, arrived).await.unwrap_or_else(late)
}
