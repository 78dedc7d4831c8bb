//! BatchCreateEntry. The entries stay, so that memory can be read with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use svid_proto::spire::api::server::entry::v1::entry_client::EntryClient;

use super::Watch;
use crate::cli::Common;
use crate::conn::{Http2, origin};
use crate::drive::{Caller, closed};
use crate::report::Report;
use crate::site::{BATCH, Site, create_request, selector};
use crate::stats::Failure;

/// Entries that share a parent, as on a node.
const PER_PARENT: usize = 50;

struct Creator {
    client: EntryClient<Http2>,
    site: Site,
    next: Arc<AtomicUsize>,
    end: usize,
}

impl Caller for Creator {
    async fn call(&mut self) -> Option<Result<u64, Failure>> {
        let from = self.next.fetch_add(BATCH, Ordering::Relaxed);
        let to = (from + BATCH).min(self.end);
        if from >= to {
            return None;
        }
        let entries = (from..to).map(|n| entry(&self.site, n)).collect();
        Some(self.create(create_request(entries)).await)
    }
}

fn entry(site: &Site, n: usize) -> svid_proto::spire::api::types::Entry {
    let parent = site.id(&format!("/node/{}", n / PER_PARENT));
    let selectors = vec![selector("unix", format!("uid:{n}")), selector("unix", "path:/usr/bin/workload")];
    site.entry(&format!("/workload/{n}"), &parent, selectors)
}

impl Creator {
    async fn create(
        &mut self,
        request: svid_proto::spire::api::server::entry::v1::BatchCreateEntryRequest,
    ) -> Result<u64, Failure> {
        let results = self.client.batch_create_entry(request).await?.into_inner().results;
        match results.iter().find_map(|result| Failure::of_item(result.status.as_ref())) {
            Some(failure) => Err(failure),
            None => Ok(results.len() as u64),
        }
    }
}

pub(super) async fn run(common: &Common) -> Result<Report> {
    let callers = common.callers.unwrap_or(1);
    let end = common.entries.unwrap_or(50_000);
    let site = Site::open(common).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut creators = Vec::with_capacity(callers);
    // Over all servers in turn.
    for socket in common.admin_socket.iter().cycle().take(callers) {
        let client = EntryClient::with_origin(Http2::unix(socket).await?, origin());
        creators.push(Creator { client, site: site.clone(), next: next.clone(), end });
    }
    let watch = Watch::server(common)?;
    let outcome = closed(creators, common.limit()).await;
    let mut report = watch.report("entries", "entries", callers, outcome)?;
    report.notes.push(format!("a call creates up to {BATCH}; the entries stay"));
    Ok(report)
}
