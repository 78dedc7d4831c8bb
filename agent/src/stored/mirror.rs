//! What is on the disk already, to find what is not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use svid_core::entry::EntryId;
use svid_proto::svid::sync::v1::Position;

use super::codec::Record;
use crate::cache::{AgentEntry, Bundles, KeptJwt, Snapshot, X509Identity};

/// Holds what was written, by reference: what is shared need not be compared.
#[derive(Default)]
pub(super) struct Mirror {
    entries: HashMap<EntryId, (Arc<AgentEntry>, Option<Arc<X509Identity>>)>,
    jwts: Vec<Arc<KeptJwt>>,
    bundles: Option<Arc<Bundles>>,
    position: Option<Position>,
}

impl Mirror {
    /// The records that lead to `now`, which is what the mirror shows from here on.
    pub(super) fn advance(&mut self, now: Snapshot) -> Vec<Record> {
        let mut records = Vec::new();
        self.bundles(&now.bundles, &mut records);
        self.entries(&now, &mut records);
        self.jwts(&now, &mut records);
        if self.position != now.position {
            records.push(Record::Position(now.position.clone()));
        }
        self.entries =
            now.entries.into_iter().map(|(entry, svid)| (entry.id.clone(), (entry, svid))).collect();
        (self.jwts, self.bundles, self.position) = (now.jwts, Some(now.bundles), now.position);
        records
    }

    fn bundles(&self, now: &Arc<Bundles>, records: &mut Vec<Record>) {
        let before = self.bundles.as_deref();
        if before.is_none_or(|before| !Arc::ptr_eq(&before.own, &now.own)) {
            records.push(Record::OwnBundle(Arc::clone(&now.own)));
        }
        let known = |name| before.and_then(|before| before.federated.get(name));
        for (name, bundle) in &now.federated {
            if known(name).is_none_or(|known| !Arc::ptr_eq(known, bundle)) {
                records.push(Record::Bundle(Arc::clone(bundle)));
            }
        }
        let gone = before.iter().flat_map(|before| before.federated.keys());
        let gone = gone.filter(|name| !now.federated.contains_key(name));
        records.extend(gone.cloned().map(Record::BundleGone));
    }

    fn entries(&self, now: &Snapshot, records: &mut Vec<Record>) {
        let mut kept = 0;
        for (entry, svid) in &now.entries {
            let before = self.entries.get(&entry.id);
            kept += usize::from(before.is_some());
            if before.is_none_or(|(before, _)| !Arc::ptr_eq(before, entry)) {
                records.push(Record::Entry(Arc::clone(entry)));
            }
            match (before.and_then(|(_, svid)| svid.as_ref()), svid) {
                (Some(before), Some(svid)) if Arc::ptr_eq(before, svid) => {}
                (_, Some(svid)) => records.push(Record::Svid(entry.id.clone(), Arc::clone(svid))),
                (Some(_), None) => records.push(Record::SvidGone(entry.id.clone())),
                (None, None) => {}
            }
        }
        if kept < self.entries.len() {
            let listed: HashSet<&EntryId> = now.entries.iter().map(|(entry, _)| &entry.id).collect();
            let gone = self.entries.keys().filter(|id| !listed.contains(id));
            records.extend(gone.cloned().map(Record::EntryGone));
        }
    }

    fn jwts(&self, now: &Snapshot, records: &mut Vec<Record>) {
        let name = |jwt: &Arc<KeptJwt>| (jwt.entry.clone(), jwt.audience.clone());
        let names: HashSet<_> = now.jwts.iter().map(name).collect();
        let gone = self.jwts.iter().map(name).filter(|name| !names.contains(name));
        records.extend(gone.map(|(entry, audience)| Record::JwtGone(entry, audience)));
        let written: HashSet<_> = self.jwts.iter().map(Arc::as_ptr).collect();
        let new = now.jwts.iter().filter(|jwt| !written.contains(&Arc::as_ptr(jwt)));
        records.extend(new.cloned().map(Record::Jwt));
    }
}
