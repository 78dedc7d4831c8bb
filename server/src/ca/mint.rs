//! Authorities that an upstream signs. A CSR is in the journal before it is sent and stays there until its answer is, so
//! that no authority exists upstream that nobody knows of: after a crash or a lost answer the same CSR goes out again.
//! The upstream is asked by a task of its own: it may take minutes, and nothing else waits for it.

use std::sync::Arc;
use std::time::SystemTime;

use svid_core::clock::unix_seconds;
use svid_core::key::Signer;
use svid_core::x509::ca::ca_csr_awaited;
use svid_core::x509::{ParsedCert, VerifiedCsr, key_id};
use svid_plugin_api::{MintedCa, UpstreamAuthority};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::CaError;
use super::journal::{self, UpstreamRequest};
use super::manager::{Manager, whole_seconds};
use super::metrics::outcome;
use super::prepare::{self, Minted, UpstreamFault};
use super::retry::Haste;
use super::slots::{AuthorityInfo, AuthorityKind, SlotId};

/// A CSR that stands in the journal, with its key.
pub(super) struct Request {
    slot: SlotId,
    signer: Arc<dyn Signer>,
    csr: Vec<u8>,
    /// What came back and was proved, but could not be stored yet.
    answer: Option<Minted>,
}

/// What the upstream's task says.
pub(super) type Answer = Result<MintedCa, UpstreamFault>;

/// Whoever asked for an authority by hand.
pub(super) type Waiter = oneshot::Sender<Result<AuthorityInfo, CaError>>;

/// A CSR that is with the upstream authority.
pub(super) struct Asking {
    begun: Instant,
}

impl Manager {
    /// Takes the journal's open CSR up again if its key is still there and the same upstream authority is configured;
    /// else the journal lets go of it, and the log says so.
    pub(super) async fn take_up_request(&mut self) -> Result<(), CaError> {
        let Some(request) = self.journal.request().cloned() else { return Ok(()) };
        match self.usable(&request).await? {
            Ok(usable) => {
                tracing::info!(
                    slot = %usable.slot,
                    upstream_authority = request.upstream,
                    requested_at = request.requested_at,
                    "A CSR was sent to the upstream authority and its answer never stored; it is sent again"
                );
                self.request = Some(usable);
            }
            Err(reason) => {
                log_abandoned(&request, reason);
                let mut journal = self.journal.clone();
                journal.clear_request();
                self.save(journal).await?;
            }
        }
        Ok(())
    }

    async fn usable(&self, request: &UpstreamRequest) -> Result<Result<Request, &'static str>, CaError> {
        let Ok(slot) = request.slot_id.parse::<SlotId>() else { return Ok(Err("its slot is unknown")) };
        if self.upstream.as_ref().is_none_or(|upstream| upstream.name() != request.upstream) {
            return Ok(Err("another upstream authority is configured, or none"));
        }
        let Some(signer) = self.keys.get(slot.key_id(AuthorityKind::X509)).await? else {
            return Ok(Err("its key is gone"));
        };
        let is_its_key = VerifiedCsr::from_der(&request.csr)
            .is_ok_and(|csr| csr.public_key().spki() == signer.public_key_der());
        Ok(match () {
            () if !is_its_key => Err("its key was replaced"),
            () if signer.key_type() != self.config.ca_key_type => Err("another ca_key_type is configured"),
            () if slot != self.state.x509.free() => Err("its slot is in use"),
            () => Ok(Request { slot, signer, csr: request.csr.clone(), answer: None }),
        })
    }

    /// True while a CSR is with the upstream authority.
    pub(super) fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// True if a CSR stands in the journal whose answer does not.
    pub(super) fn has_request(&self) -> bool {
        self.request.is_some()
    }

    /// Prepares an authority by hand: joins what is under way, or asks at once whatever failed before.
    pub(super) async fn prepare_upstream(&mut self, waiter: Waiter) {
        let begun = if self.is_asking() { Ok(()) } else { self.ask_upstream().await };
        match begun {
            // An answer that was there already has been taken in by then.
            Ok(()) if !self.is_asking() => {
                let prepared = self.state.state(AuthorityKind::X509).prepared;
                let _ = waiter.send(prepared.ok_or(CaError::NotPrepared));
            }
            Ok(()) => self.waiters.push(waiter),
            Err(error) => {
                let _ = waiter.send(Err(error));
            }
        }
    }

    /// Sends the open CSR, or a new one. What is left to do is done when [`Manager::answered`] says so.
    pub(super) async fn ask_upstream(&mut self) -> Result<(), CaError> {
        let Some(upstream) = self.upstream.clone() else { return Err(CaError::NoUpstream) };
        let mut request = match self.request.take() {
            Some(request) => request,
            None => self.new_request(&*upstream).await?,
        };
        if let Some(minted) = request.answer.take() {
            return self.store_minted(request, minted).await.map(drop);
        }
        tracing::debug!(
            slot = %request.slot,
            upstream_authority = upstream.name(),
            "CSR sent to the upstream authority"
        );
        self.answers.spawn(prepare::ask(upstream, request.csr.clone(), self.config.ca_ttl));
        self.request = Some(request);
        self.asking = Some(Asking { begun: Instant::now() });
        Ok(())
    }

    /// A key in the free slot and a CSR for it, which is durable when this returns.
    async fn new_request(&mut self, upstream: &dyn UpstreamAuthority) -> Result<Request, CaError> {
        let slot = self.state.x509.free();
        self.discard_prepared(AuthorityKind::X509);
        tracing::debug!(%slot, "Preparing X509 CA");
        let signer = self.new_key(slot, AuthorityKind::X509, self.config.ca_key_type).await?;
        let csr = ca_csr_awaited(&self.config.trust_domain, &self.config.ca_subject, &*signer).await?;
        let mut journal = self.journal.clone();
        journal.set_request(UpstreamRequest {
            slot_id: slot.name().to_owned(),
            csr: csr.clone(),
            requested_at: unix_seconds(self.now()),
            upstream: upstream.name().to_owned(),
        });
        self.save(journal).await?;
        Ok(Request { slot, signer, csr, answer: None })
    }

    /// The answer to the CSR that is with the upstream authority; waits for ever when none is.
    pub(super) async fn answered(&mut self) -> Answer {
        if !self.is_asking() {
            return std::future::pending().await;
        }
        match self.answers.join_next().await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) | None => Err(UpstreamFault::Crashed),
        }
    }

    /// Takes an answer in, tells whoever waits for it, and decides when to ask again after a failure.
    /// # Errors
    /// What was wrong with it; it has been noted and logged.
    pub(super) async fn take_answer(&mut self, answer: Answer) -> Result<(), CaError> {
        let Some(asking) = self.asking.take() else { return Ok(()) };
        let taken = match self.request.take() {
            Some(request) => self.take_in(request, answer).await,
            None => Err(CaError::Stopped),
        };
        self.metrics.prepare(AuthorityKind::X509).done(outcome(&taken), asking.begun.elapsed());
        for waiter in self.waiters.drain(..) {
            // Whoever asked may have gone.
            let _ = waiter.send(taken.clone());
        }
        match taken {
            Ok(_) => Ok(()),
            Err(error) => {
                self.note_failure(&error);
                Err(error)
            }
        }
    }

    fn note_failure(&mut self, error: &CaError) {
        let haste = match error {
            CaError::Upstream { fault, .. } if fault.is_throttled() => Haste::Throttled,
            _ if self.is_active_tainted() => Haste::Urgent,
            _ => Haste::Routine,
        };
        let draw = self.request.as_ref().and_then(|request| request.csr.last().copied()).unwrap_or(0);
        let retry_in = self.backoff.failed(haste, draw);
        self.record(Some(error));
        tracing::error!(%error, retry_in_s = retry_in.as_secs(), "Unable to rotate X509 CA");
    }

    async fn take_in(&mut self, request: Request, answer: Answer) -> Result<AuthorityInfo, CaError> {
        let minted = match answer {
            Ok(minted) => self.accept(minted, &request).await,
            Err(fault) => Err(fault),
        };
        match minted {
            Ok(minted) => self.store_minted(request, minted).await,
            Err(fault) => {
                if fault.is_final() || fault.is_bad_answer() {
                    let mut journal = self.journal.clone();
                    journal.clear_request();
                    self.save(journal).await?;
                } else {
                    self.request = Some(request);
                }
                Err(CaError::Upstream { plugin: self.upstream_name(), fault })
            }
        }
    }

    async fn accept(&self, minted: MintedCa, request: &Request) -> Result<Minted, UpstreamFault> {
        let serial = minted.chain.first().and_then(|der| ParsedCert::from_der(der).ok());
        let serial = serial.map(|cert| cert.serial_decimal()).unwrap_or_default();
        let accepted = self.prove(minted, request).await;
        if let Err(fault) = &accepted {
            tracing::warn!(
                error = %fault,
                serial_num = serial,
                upstream_authority = %self.upstream_name(),
                "The upstream authority signed a CA that is not used; it can be revoked there"
            );
        }
        accepted
    }

    async fn prove(&self, minted: MintedCa, request: &Request) -> Result<Minted, UpstreamFault> {
        let now = self.now();
        let mut minted = prepare::accept(&self.config, minted, request.signer.clone(), now).await?;
        let count = minted.roots.len();
        minted.roots.retain(|root| !self.is_revoked(root));
        if minted.roots.len() < count {
            let proved = prepare::prove(&self.config, &minted.authority, &minted.roots, now).await;
            proved.map_err(|_| UpstreamFault::Revoked)?;
        }
        let issuers = journal::issuers(minted.authority.cert_der(), minted.authority.chain());
        if self.is_any_tainted(&issuers) && !self.is_late(now) {
            return Err(UpstreamFault::Tainted);
        }
        Ok(minted)
    }

    /// Bundle, journal, slot, in this order. What cannot be stored is kept for the next attempt.
    async fn store_minted(&mut self, request: Request, minted: Minted) -> Result<AuthorityInfo, CaError> {
        let issued_at = whole_seconds(self.now());
        match self.put_x509(request.slot, issued_at, &minted).await {
            Ok(info) => {
                self.backoff.clear();
                Ok(info)
            }
            Err(error) => {
                self.request = Some(Request { answer: Some(minted), ..request });
                Err(error)
            }
        }
    }

    /// The upstream authority's name, as errors and logs carry it.
    pub(super) fn upstream_name(&self) -> Arc<str> {
        self.state.upstream.clone().unwrap_or_else(|| Arc::from(""))
    }

    /// True if the active authority is so near its end that its successor must take over whatever signed it.
    fn is_late(&self, now: SystemTime) -> bool {
        self.state.x509.active().is_none_or(|active| now > active.info.span().activate_at())
    }
}

fn log_abandoned(request: &UpstreamRequest, reason: &str) {
    let id = VerifiedCsr::from_der(&request.csr).ok().and_then(|csr| key_id(csr.public_key().spki()));
    tracing::warn!(
        reason,
        slot = request.slot_id,
        upstream_authority = request.upstream,
        requested_at = request.requested_at,
        local_authority_id = id.map(hex::encode).unwrap_or_default(),
        "A CSR that was sent to the upstream authority is abandoned: a CA for its key may exist there, and no server uses \
         it"
    );
}
