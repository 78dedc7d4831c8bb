//! Fetches the SVIDs that the cache wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use svid_core::clock::{Clock, unix_seconds};
use svid_core::key::{KeyError, KeyType, LocalKey, PrivateKeyDer, Signer};
use svid_core::x509::csr::make_csr;
use svid_core::x509::{CertChain, X509Svid};
use svid_daemon::metrics::{Call, code_name};
use svid_proto::spire::api::server::svid::v1::NewX509svidParams;
use svid_proto::spire::api::server::svid::v1::batch_new_x509svid_response::Result as MintResult;
use tonic::Code;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::cache::{AgentEntry, Cache, Minted, X509Identity};
use crate::client::{ClientError, ServerClient};

/// Most SVIDs in one request. Source: SPIRE's signing limit.
const MAX_BATCH: usize = 500;
/// Changes that come together are fetched together.
const COALESCE: Duration = Duration::from_millis(1);
/// How often to look for what is over or too much.
const MAINTAIN: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// From this many keys on, making them would hold up other tasks.
const KEYS_INLINE: usize = 4;

/// Keeps the cache's SVIDs complete and fresh. Clones share the size of batches.
#[derive(Clone)]
pub struct SvidFetcher {
    client: ServerClient,
    cache: Cache,
    key_type: KeyType,
    clock: Clock,
    batch: Arc<AtomicUsize>,
    updates: Call,
}

impl SvidFetcher {
    /// Fetches for `cache` with keys of `key_type`.
    pub fn new(client: ServerClient, cache: Cache, key_type: KeyType, clock: Clock) -> Self {
        let updates = cache.metrics().call(&["manager", "sync", "fetch_svids_updates"]);
        Self { client, cache, key_type, clock, batch: Arc::new(AtomicUsize::new(MAX_BATCH)), updates }
    }

    /// Fetches whatever is wanted, as soon as it is wanted, without an end. `failed` hears of each failed request.
    pub async fn run(&self, failed: impl Fn(&ClientError)) {
        let mut backoff = Backoff::new(RETRY, RETRY_MAX);
        let mut maintain = tokio::time::interval(MAINTAIN);
        maintain.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.cache.wait_wanted() => tokio::time::sleep(COALESCE).await,
                () = tokio::time::sleep(self.until_due(&backoff)) => {}
                _ = maintain.tick() => self.cache.maintain(),
            }
            match self.fetch_all().await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    error!(error = %error, "SVID sync failed");
                    failed(&error);
                    self.wait(backoff.next_pause()).await;
                }
            }
        }
    }

    /// After a failure: new subscribers must not turn a broken server into a storm of requests, and an outage not into
    /// a log full of them. A server that answers something else again is asked soon.
    async fn wait(&self, pause: Duration) {
        let first = pause.min(RETRY);
        tokio::time::sleep(first).await;
        tokio::select! {
            () = tokio::time::sleep(pause.min(RETRY_MAX) - first) => {}
            () = self.client.answered() => {}
        }
    }

    fn until_due(&self, backoff: &Backoff) -> Duration {
        let due = self.cache.next_due().map(|at| at.duration_since(self.clock.now()).unwrap_or_default());
        let at_least = if backoff.is_fresh() { COALESCE } else { RETRY };
        due.map_or(MAINTAIN, |due| due.clamp(at_least, MAINTAIN))
    }

    /// Fetches until nothing is wanted.
    /// # Errors
    /// The first request's that failed.
    pub async fn fetch_all(&self) -> Result<(), ClientError> {
        while self.fetch_batch().await? > 0 {}
        Ok(())
    }

    /// One request; the number of SVIDs asked for.
    async fn fetch_batch(&self) -> Result<usize, ClientError> {
        let limit = self.batch.load(Ordering::Relaxed);
        let entries = self.cache.wanted(limit);
        if entries.is_empty() {
            return Ok(0);
        }
        entries.iter().for_each(|entry| self.announce(entry));
        let count = entries.len();
        let begun = Instant::now();
        let result = self.mint(entries).await;
        let status = result.as_ref().map_or_else(|error| code_name(error.code()), |_| "OK");
        self.updates.done(status, begun.elapsed());
        let next = if result.is_ok() { limit.saturating_mul(2) } else { limit / 2 };
        self.batch.store(next.clamp(1, MAX_BATCH), Ordering::Relaxed);
        self.cache.store(result?);
        Ok(count)
    }

    fn announce(&self, entry: &AgentEntry) {
        match self.cache.svid_end(&entry.id) {
            Some(end) => {
                info!(
                    spiffe_id = %entry.spiffe_id,
                    entry_id = %entry.id,
                    expires_at = unix_seconds(end),
                    "Renewing X509-SVID"
                );
            }
            None => info!(spiffe_id = %entry.spiffe_id, entry_id = %entry.id, "Creating X509-SVID"),
        }
    }

    async fn mint(&self, entries: Vec<Arc<AgentEntry>>) -> Result<Vec<Minted>, ClientError> {
        let prepared = self.prepare(entries).await?;
        let params = prepared
            .iter()
            .map(|(entry, _, csr)| NewX509svidParams { entry_id: entry.id.to_string(), csr: csr.clone() });
        let results = self.client.batch_new_x509_svid(params.collect()).await?;
        let minted = prepared
            .into_iter()
            .zip(results)
            .map(|((entry, key, _), result)| Minted { identity: read(&entry, key, result), entry });
        Ok(minted.collect())
    }

    async fn prepare(&self, entries: Vec<Arc<AgentEntry>>) -> Result<Vec<Prepared>, ClientError> {
        let kind = self.key_type;
        let inline = entries.len() <= KEYS_INLINE && kind != KeyType::Rsa2048;
        let make =
            move || entries.into_iter().map(|entry| prepare_one(entry, kind)).collect::<Result<_, _>>();
        if inline {
            return Ok(make()?);
        }
        let made = tokio::task::spawn_blocking(make).await;
        Ok(made.map_err(|_| KeyError::Generate)??)
    }
}

/// An entry, its new key and the CSR for it.
type Prepared = (Arc<AgentEntry>, LocalKey, Vec<u8>);

fn prepare_one(entry: Arc<AgentEntry>, kind: KeyType) -> Result<Prepared, KeyError> {
    let key = LocalKey::generate(kind)?;
    let csr = make_csr(&key, Some(&entry.spiffe_id), &[])?;
    Ok((entry, key, csr))
}

/// The identity in a result, if the server made one.
fn read(entry: &AgentEntry, key: LocalKey, result: MintResult) -> Option<X509Identity> {
    let status = result.status.unwrap_or_default();
    if Code::from(status.code) != Code::Ok {
        warn!(
            registration_id = %entry.id,
            spiffe_id = %entry.spiffe_id,
            status = %code_name(status.code.into()),
            error = %status.message,
            "Failed to mint X509 SVID"
        );
    }
    let chain = CertChain::from_certs(result.svid?.cert_chain).map_err(|error| error.to_string());
    let svid = chain.and_then(|chain| X509Svid::parse(chain).map_err(|error| error.to_string()));
    let checked = svid.and_then(|svid| match svid.leaf().public_key_der() == key.public_key_der() {
        true => Ok(svid),
        false => Err("the SVID is for another key".into()),
    });
    match checked {
        Ok(svid) => {
            let key = PrivateKeyDer::from_pkcs8(key.private_key().secret_bytes().to_vec());
            Some(X509Identity { svid, key })
        }
        Err(error) => {
            warn!(registration_id = %entry.id, error = %error, "Received malformed X509-SVID");
            None
        }
    }
}
