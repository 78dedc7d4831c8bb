//! From a journal to slots: which of its authorities can still be used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use svid_core::bundle::Bundle;
use svid_core::jwt::JwtSigner;
use svid_core::key::Signer;
use svid_core::x509::{Authority, ParsedCert};

use super::journal::{EntryFacts, Journal};
use super::log;
use super::slots::{AuthorityKind, Held, Slots, Status};

const EXPIRED: &str = "slot expired";
const NO_SLOT: &str = "no slot id";
const NO_KEY: &str = "no key manager key";
const OTHER_KEY: &str = "public key does not match key manager key";
const NOT_IN_BUNDLE: &str = "not in the bundle of the trust domain";

/// What an entry is compared with.
pub(super) struct Loader<'a> {
    pub(super) keys: &'a BTreeMap<String, Arc<dyn Signer>>,
    pub(super) bundle: Option<&'a Bundle>,
    pub(super) has_upstream: bool,
    pub(super) jwt_issuer: Option<&'a str>,
    pub(super) now: SystemTime,
}

impl Loader<'_> {
    pub(super) fn x509(&self, journal: &Journal) -> Slots<Authority> {
        let entries = journal.x509().iter().rev();
        newest(
            AuthorityKind::X509,
            entries.map(|entry| {
                let facts = EntryFacts::from(entry);
                let held = self.held(AuthorityKind::X509, &facts, |signer| {
                    let authority = self.x509_key(&entry.certificate, &entry.upstream_chain, signer)?;
                    // Its chain may end sooner than its certificate.
                    let end = facts.info().map(|info| info.not_after);
                    Ok(match end {
                        Some(end) => authority.limited_to(end),
                        None => authority,
                    })
                });
                (facts, held)
            }),
        )
    }

    pub(super) fn jwt(&self, journal: &Journal) -> Slots<JwtSigner> {
        let entries = journal.jwt().iter().rev();
        newest(
            AuthorityKind::Jwt,
            entries.map(|entry| {
                let facts = EntryFacts::from(entry);
                let not_after = facts.info().map(|info| info.not_after);
                let held = self.held(AuthorityKind::Jwt, &facts, |signer| {
                    self.jwt_key(&entry.kid, &entry.public_key, not_after.unwrap_or(self.now), signer)
                });
                (facts, held)
            }),
        )
    }

    fn held<K>(
        &self,
        kind: AuthorityKind,
        facts: &EntryFacts<'_>,
        key: impl FnOnce(&Arc<dyn Signer>) -> Result<K, &'static str>,
    ) -> Result<Held<K>, &'static str> {
        let info = facts.info().ok_or(NO_SLOT)?;
        if info.not_after <= self.now {
            return Err(EXPIRED);
        }
        let signer = self.keys.get(info.slot.key_id(kind)).ok_or(NO_KEY)?;
        let key = key(signer)?;
        let signs = info.status != Status::Old;
        Ok(Held { info, key: signs.then(|| Arc::new(key)) })
    }

    fn x509_key(
        &self,
        certificate: &[u8],
        upstream_chain: &[Vec<u8>],
        signer: &Arc<dyn Signer>,
    ) -> Result<Authority, &'static str> {
        let cert = ParsedCert::from_der(certificate).map_err(|_| "unable to parse CA certificate")?;
        if cert.public_key_der() != signer.public_key_der() {
            return Err(OTHER_KEY);
        }
        if cert.life().is_over(self.now) {
            return Err(EXPIRED);
        }
        match upstream_chain {
            [] if !self.bundle_has_root(certificate) => return Err(NOT_IN_BUNDLE),
            [_, ..] if !self.has_upstream => {
                return Err("signed by an upstream authority, and none is configured");
            }
            _ => {}
        }
        Authority::new(certificate, upstream_chain.to_vec(), signer.clone())
            .map_err(|_| "CA certificate is not usable")
    }

    fn jwt_key(
        &self,
        kid: &str,
        public_key: &[u8],
        not_after: SystemTime,
        signer: &Arc<dyn Signer>,
    ) -> Result<JwtSigner, &'static str> {
        if public_key != signer.public_key_der() {
            return Err(OTHER_KEY);
        }
        if self.bundle.and_then(|bundle| bundle.jwt_authority(kid)).is_none() {
            return Err(NOT_IN_BUNDLE);
        }
        Ok(JwtSigner::new(kid.to_owned(), signer.clone(), not_after, self.jwt_issuer.map(str::to_owned)))
    }

    fn bundle_has_root(&self, der: &[u8]) -> bool {
        self.bundle.is_some_and(|bundle| bundle.x509_authorities.iter().any(|root| root.der() == der))
    }
}

/// Fills the slots from entries that come newest first. The key manager has one key for each slot, so an older
/// entry of a filled slot is history.
fn newest<'a, K>(
    kind: AuthorityKind,
    entries: impl Iterator<Item = (EntryFacts<'a>, Result<Held<K>, &'static str>)>,
) -> Slots<K> {
    let mut slots = Slots::default();
    for (facts, held) in entries {
        match held {
            Ok(held) => slots.restore(held),
            // What was replaced is expected to have lost its key.
            Err(reason) if facts.info().is_some_and(|info| info.status != Status::Old) => {
                log::unusable(kind, facts.slot_id, facts.authority_id, reason);
            }
            Err(_) => {}
        }
    }
    slots
}
