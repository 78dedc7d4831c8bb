//! Authorities that are no longer to be used, and the SVIDs they issued.

use std::collections::{BTreeSet, VecDeque};

use svid_core::bundle::Bundle;
use svid_core::entry::EntryId;
use svid_core::x509::{ParsedCert, X509Svid};
use tracing::debug;

use super::records::Records;

/// SVIDs that are scheduled for replacement in one go, so that a big node does not fall upon the server.
const BATCH: usize = 100;

/// What is known to be tainted. Each authority is dealt with once in an agent's life.
#[derive(Default)]
pub(super) struct Taints {
    x509: BTreeSet<String>,
    jwt: BTreeSet<String>,
    to_search: Vec<String>,
    to_replace: VecDeque<EntryId>,
}

impl Taints {
    /// Looks for tainted authorities not seen before. Returns the new JWT key ids.
    pub(super) fn learn(&mut self, bundle: &Bundle) -> Vec<String> {
        let tainted = bundle.x509_authorities.iter().filter(|authority| authority.tainted);
        let ids = tainted.filter_map(|authority| authority.parsed().subject_key_id_hex());
        let new: Vec<String> = ids.filter(|id| self.x509.insert(id.clone())).collect();
        if !new.is_empty() {
            debug!(subject_key_ids = %new.join(","), "New tainted X.509 authorities found");
            self.to_search.extend(new);
        }
        let tainted = bundle.jwt_authorities.iter().filter(|authority| authority.tainted);
        tainted.map(|key| key.key_id.clone()).filter(|kid| self.jwt.insert(kid.clone())).collect()
    }

    /// Marks the next batch of SVIDs from tainted authorities; returns which.
    pub(super) fn schedule(&mut self, records: &mut Records) -> Vec<EntryId> {
        self.search(records);
        let ids: Vec<EntryId> = self.to_replace.drain(..self.to_replace.len().min(BATCH)).collect();
        ids.iter().for_each(|id| records.taint(id));
        if !ids.is_empty() {
            debug!(count = ids.len(), "Scheduled rotation for SVID entries due to tainted X.509 authorities");
        }
        ids
    }

    fn search(&mut self, records: &Records) {
        if self.to_search.is_empty() {
            return;
        }
        let keys = std::mem::take(&mut self.to_search);
        let is_hit = |svid: &X509Svid| chains_to(svid, &keys);
        let hits =
            records.iter().filter(|record| record.svid.as_ref().is_some_and(|svid| is_hit(&svid.svid)));
        self.to_replace.extend(hits.map(|record| record.entry.id.clone()));
    }
}

/// True if a certificate of the chain was issued by one of these keys (subject key ids in hex). The chain came from
/// our server over a verified connection, so its key ids are taken at their word.
pub(crate) fn chains_to(svid: &X509Svid, keys: &[String]) -> bool {
    let is_one = |cert: &ParsedCert| cert.authority_key_id_hex().is_some_and(|id| keys.contains(&id));
    let rest = svid.chain().rest().iter().filter_map(|der| ParsedCert::from_der(der).ok());
    is_one(svid.leaf()) || rest.into_iter().any(|cert| is_one(&cert))
}
