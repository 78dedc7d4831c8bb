//! BatchNewX509SVID, and issuance without a server.

use std::time::Duration;

use anyhow::Result;
use svid_core::key::{KeyType, LocalKey};
use svid_core::x509::csr::make_csr;
use svid_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use svid_proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};

use super::Watch;
use crate::cli::Common;
use crate::conn::{Http2, origin};
use crate::drive::{Caller, closed};
use crate::one_core;
use crate::process::round;
use crate::report::Report;
use crate::site::{BATCH, OwnAgent, Site, selector, wait_until_authorised};
use crate::stats::{Failure, Outcome};

pub(super) struct Signer {
    client: SvidClient<Http2>,
    request: BatchNewX509svidRequest,
}

impl Caller for Signer {
    async fn call(&mut self) -> Option<Result<u64, Failure>> {
        Some(self.sign().await)
    }
}

impl Signer {
    async fn sign(&mut self) -> Result<u64, Failure> {
        let results = self.client.batch_new_x509svid(self.request.clone()).await?.into_inner().results;
        match results.iter().find_map(|result| Failure::of_item(result.status.as_ref())) {
            Some(failure) => Err(failure),
            None => Ok(results.iter().filter(|result| result.svid.is_some()).count() as u64),
        }
    }
}

/// `count` entries of a new agent, which may use them already.
pub(super) async fn entries_of_own_agent(site: &Site, count: usize) -> Result<(OwnAgent, Vec<String>)> {
    let agent = site.agent().await?;
    let entry = |n| site.entry(&format!("/svid/{n}"), &agent.id, vec![selector("unix", format!("uid:{n}"))]);
    let ids = site.create((0..count).map(entry).collect()).await?;
    wait_until_authorised(agent.connect().await?, count).await?;
    Ok((agent, ids))
}

fn request(ids: &[String]) -> Result<BatchNewX509svidRequest> {
    let params = ids.iter().map(|id| {
        let csr = make_csr(&LocalKey::generate(KeyType::EcP256)?, None, &[])?;
        Ok(NewX509svidParams { entry_id: id.clone(), csr })
    });
    Ok(BatchNewX509svidRequest { params: params.collect::<Result<_>>()? })
}

/// Callers with a connection each.
pub(super) async fn signers(agent: &OwnAgent, ids: &[String], callers: usize) -> Result<Vec<Signer>> {
    let mut signers = Vec::with_capacity(callers);
    for _ in 0..callers {
        let client = SvidClient::with_origin(agent.connect().await?, origin());
        signers.push(Signer { client, request: request(ids)? });
    }
    Ok(signers)
}

pub(super) async fn run(common: &Common) -> Result<Report> {
    let callers = common.callers.unwrap_or(2);
    let site = Site::open(common).await?;
    let (agent, ids) = entries_of_own_agent(&site, BATCH).await?;
    let signers = signers(&agent, &ids, callers).await?;
    let one_core = one_core::verify_and_sign()?;
    let watch = Watch::server(common)?;
    let outcome = closed(signers, common.limit()).await;
    let report = watch.report("sign", "X509-SVIDs", callers, outcome)?;
    site.delete(&ids).await?;
    Ok(report.against(one_core::VERIFY_AND_SIGN, one_core))
}

/// One thread of this process, without gRPC.
pub(super) fn in_process() -> Result<Report> {
    let (one_core, issued) = (one_core::verify_and_sign()?, one_core::issue()?);
    let outcome = Outcome { units: issued as u64, wall: Duration::from_secs(1), ..Outcome::default() };
    let mut report =
        Report::of("sign in process", "X509-SVIDs", 1, outcome).against(one_core::VERIFY_AND_SIGN, one_core);
    if let Some(core) = &mut report.one_core {
        core.ratio = Some(round(issued / one_core, 1000.0));
    }
    report.notes.push("per CPU-second of one thread".to_owned());
    Ok(report)
}
