//! Making a fleet: agents are attested with join tokens and stored, each with entries of its own and one that makes it
//! a member of the group whose entries all have.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use svid_proto::spire::api::types;

use super::store::{Header, Stored};
use crate::cli::Common;
use crate::conn::Http2;
use crate::drive::Caller;
use crate::site::{AgentKey, BATCH, Site, attest, selector};
use crate::stats::Failure;

/// The ID of the group that all agents are members of.
pub fn group(site: &Site) -> types::Spiffeid {
    site.id("/fleet")
}

/// Makes agents, one a call.
pub struct Maker {
    server: String,
    config: Arc<rustls::ClientConfig>,
    tokens: Arc<Mutex<Vec<String>>>,
    next: Arc<AtomicUsize>,
    stored: Arc<Stored>,
}

impl Caller for Maker {
    async fn call(&mut self) -> Option<Result<u64, Failure>> {
        let token = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(self.make(&token).await.map(|()| 1))
    }
}

impl Maker {
    async fn make(&self, token: &str) -> Result<(), Failure> {
        let failed = |error: anyhow::Error| Failure::new("Local", format!("{error:#}"));
        let key = AgentKey::generate().map_err(failed)?;
        let connection = Http2::tls(&self.server, self.config.clone()).await?;
        let chain = attest(connection, token, key.csr.clone()).await?.cert_chain;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.stored.save(number, &key.into_svid(chain)).map_err(failed)
    }
}

/// What a fleet is made of, and its makers.
pub struct Making {
    /// Callers that attest.
    pub makers: Vec<Maker>,
    stored: Arc<Stored>,
    next: Arc<AtomicUsize>,
}

/// Prepares `agents` of `entries` each in the new directory `dir`; `callers` attest at the same time.
/// # Errors
/// If the directory exists or the server refuses.
pub async fn make(common: &Common, site: &Site, dir: &Path, entries: usize) -> Result<Making> {
    let agents = common.agents.unwrap_or(1000);
    // With the entry that makes the agent a member, which it hears of as of any other.
    let header = Header { tag: site.tag().to_owned(), agents, entries: entries + 1 };
    let stored = Arc::new(Stored::create(dir, header)?);
    let tokens = site.tokens(agents).await?;
    let mut wanted = Vec::with_capacity(agents * (entries + 1));
    for (number, token) in tokens.iter().enumerate() {
        let agent = site.agent_of(token);
        let member = types::Entry {
            spiffe_id: Some(group(site)),
            parent_id: Some(agent.clone()),
            selectors: vec![selector("svid-load", format!("member:{number}"))],
            ..Default::default()
        };
        wanted.push(member);
        wanted.extend((0..entries).map(|n| {
            let selectors =
                vec![selector("unix", format!("uid:{n}")), selector("unix", "path:/usr/bin/workload")];
            site.entry(&format!("/agent/{number}/{n}"), &agent, selectors)
        }));
    }
    for part in wanted.chunks(BATCH * 20) {
        site.create(part.to_vec()).await?;
    }
    let (tokens, next) = (Arc::new(Mutex::new(tokens)), Arc::new(AtomicUsize::new(0)));
    let maker = || {
        let (server, config) = (site.server().to_owned(), site.tls(None)?);
        Ok(Maker { server, config, tokens: tokens.clone(), next: next.clone(), stored: stored.clone() })
    };
    let makers = (0..common.callers.unwrap_or(16)).map(|_| maker()).collect::<Result<_>>()?;
    Ok(Making { makers, stored, next })
}

impl Making {
    /// Says that all are there.
    /// # Errors
    /// If they are not.
    pub fn finish(self, units: u64) -> Result<()> {
        let wanted = self.stored.header().agents;
        let made = self.next.load(Ordering::Relaxed);
        anyhow::ensure!(
            made == wanted && units == wanted as u64,
            "{units} of {wanted} agents were attested; remove the directory and try again, with more --seconds"
        );
        self.stored.finish().context("the fleet")
    }
}
