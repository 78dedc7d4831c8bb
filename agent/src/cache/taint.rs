//! Authorities that are no longer to be used, and what they issued.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use svid_core::bundle::Bundle;
use svid_core::entry::EntryId;
use svid_core::x509::{ParsedCert, X509Svid};
use tracing::debug;

use super::records::Records;

/// SVIDs without a subscriber that are asked for together; those with one all come first, at once.
const BATCH: usize = 100;
/// Pause between two such batches, and the time within which the last one begins.
const BATCH_PAUSE: Duration = Duration::from_millis(250);
const ALL_WITHIN: Duration = Duration::from_secs(2);

/// What is known to be tainted or revoked. What came before is replaced once; what comes from such an authority
/// later is looked at again, ever more seldom.
#[derive(Default)]
pub(super) struct Taints {
    /// Subject key ids in hex.
    x509: BTreeSet<String>,
    jwt: BTreeSet<String>,
}

/// What a bundle says that was not known before.
#[derive(Default)]
pub(super) struct News {
    /// Subject key ids of X.509 authorities, in hex.
    pub(super) x509: Vec<String>,
    /// Key ids of JWT authorities.
    pub(super) jwt: Vec<String>,
}

impl Taints {
    /// Looks for authorities that became tainted, or that went while the agent could not see it.
    pub(super) fn learn(&mut self, before: &Bundle, now: &Bundle) -> News {
        let mut x509 = x509_ids(now, |authority| authority.tainted);
        let mut jwt = jwt_ids(now, |key| key.tainted);
        let (roots, keys) = (x509_ids(now, |_| true), jwt_ids(now, |_| true));
        x509.extend(x509_ids(before, |_| true).into_iter().filter(|id| !roots.contains(id)));
        jwt.extend(jwt_ids(before, |_| true).into_iter().filter(|id| !keys.contains(id)));
        // What went earlier has been dealt with.
        self.x509.retain(|id| x509.contains(id));
        self.jwt.retain(|id| jwt.contains(id));
        let news = News {
            x509: x509.into_iter().filter(|id| self.x509.insert(id.clone())).collect(),
            jwt: jwt.into_iter().filter(|id| self.jwt.insert(id.clone())).collect(),
        };
        if !news.x509.is_empty() {
            debug!(subject_key_ids = %news.x509.join(","), "New tainted X.509 authorities found");
        }
        news
    }

    /// Marks the SVIDs that chain to one of the authorities `x509`; returns whose. Those that a workload holds are to
    /// be replaced at once, the others in batches, so that a big node does not fall upon the server.
    pub(super) fn schedule(&self, x509: &[String], records: &mut Records, now: SystemTime) -> Vec<EntryId> {
        if x509.is_empty() {
            return Vec::new();
        }
        let is_hit = |svid: &X509Svid| chains_to(svid, |id| x509.iter().any(|one| *one == id));
        let hits =
            records.iter().filter(|record| record.svid.as_ref().is_some_and(|held| is_hit(&held.svid)));
        let (held, idle): (Vec<_>, Vec<_>) =
            hits.map(|record| (record.groups > 0, record.entry.id.clone())).partition(|(held, _)| *held);
        let pause = BATCH_PAUSE.min(ALL_WITHIN / u32::try_from(idle.len() / BATCH + 1).unwrap_or(u32::MAX));
        let later = idle.into_iter().enumerate().map(|(at, (_, id))| {
            let batch = u32::try_from(at / BATCH).unwrap_or(u32::MAX);
            (id, (batch > 0).then(|| now + pause.saturating_mul(batch)))
        });
        let all = held.into_iter().map(|(_, id)| (id, None)).chain(later);
        let ids: Vec<EntryId> = all
            .map(|(id, not_before)| {
                records.taint(&id, not_before);
                id
            })
            .collect();
        if !ids.is_empty() {
            debug!(count = ids.len(), "Scheduled rotation for SVID entries due to tainted X.509 authorities");
        }
        ids
    }

    /// True if an SVID that just came chains to an authority that is no longer to be used.
    pub(super) fn is_hit(&self, svid: &X509Svid) -> bool {
        !self.x509.is_empty() && chains_to(svid, |id| self.x509.contains(id))
    }

    /// All X.509 authorities that are known to be tainted or gone.
    pub(super) fn x509(&self) -> Vec<String> {
        self.x509.iter().cloned().collect()
    }

    /// True if this key signs no more.
    pub(super) fn has_kid(&self, kid: &str) -> bool {
        self.jwt.contains(kid)
    }
}

fn x509_ids(bundle: &Bundle, which: impl Fn(&svid_core::bundle::X509Authority) -> bool) -> Vec<String> {
    let authorities = bundle.x509_authorities.iter().filter(|authority| which(authority));
    authorities.filter_map(|authority| authority.parsed().subject_key_id_hex()).collect()
}

fn jwt_ids(bundle: &Bundle, which: impl Fn(&svid_core::bundle::JwtAuthority) -> bool) -> Vec<String> {
    bundle.jwt_authorities.iter().filter(|key| which(key)).map(|key| key.key_id.clone()).collect()
}

/// True if a certificate of the chain was issued by a key that `is_one` (subject key id in hex). The chain came from
/// our server over a verified connection, so its key ids are taken at their word.
pub(crate) fn chains_to(svid: &X509Svid, is_one: impl Fn(&str) -> bool) -> bool {
    let is_hit = |cert: &ParsedCert| cert.authority_key_id_hex().is_some_and(|id| is_one(&id));
    let rest = svid.chain().rest().iter().filter_map(|der| ParsedCert::from_der(der).ok());
    is_hit(svid.leaf()) || rest.into_iter().any(|cert| is_hit(&cert))
}
