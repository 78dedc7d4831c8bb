//! AttestAgent with join tokens that were made before.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use super::Watch;
use crate::cli::Common;
use crate::conn::Http2;
use crate::drive::{Caller, closed};
use crate::report::Report;
use crate::site::{AgentKey, Site, attest};
use crate::stats::Failure;

struct Attester {
    server: String,
    config: Arc<rustls::ClientConfig>,
    tokens: Arc<Mutex<Vec<String>>>,
    csr: Vec<u8>,
}

impl Caller for Attester {
    async fn call(&mut self) -> Option<Result<u64, Failure>> {
        let token = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        let attested = async {
            let connection = Http2::tls(&self.server, self.config.clone()).await?;
            attest(connection, &token, self.csr.clone()).await
        };
        Some(attested.await.map(|_| 1))
    }
}

pub(super) async fn run(common: &Common) -> Result<Report> {
    let callers = common.callers.unwrap_or(4);
    let site = Site::open(common).await?;
    let tokens = site.tokens(common.agents.unwrap_or(4000)).await?;
    let tokens = Arc::new(Mutex::new(tokens));
    let attester = || {
        Ok(Attester {
            server: site.server().to_owned(),
            config: site.tls(None)?,
            tokens: tokens.clone(),
            csr: AgentKey::generate()?.csr,
        })
    };
    let attesters = (0..callers).map(|_| attester()).collect::<Result<_>>()?;
    let watch = Watch::server(common)?;
    let outcome = closed(attesters, common.limit()).await;
    let mut report = watch.report("attest", "attestations", callers, outcome)?;
    if tokens.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        report.notes.push("ended with the last join token; --agents N makes more".to_owned());
    }
    Ok(report)
}
