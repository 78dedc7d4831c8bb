//! From the records of a log to what the agent goes on with.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::Bundle;
use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_proto::svid::sync::v1::Position;

use super::codec::Record;
use crate::cache::{AgentEntry, KeptJwt, X509Identity};

/// What an earlier process left behind.
#[derive(Debug, Default)]
pub struct Restored {
    /// Entries, each with its X509-SVID.
    pub entries: HashMap<EntryId, (Arc<AgentEntry>, Option<Arc<X509Identity>>)>,
    /// JWT-SVIDs by entry and audience.
    pub jwts: HashMap<(EntryId, Vec<String>), Arc<KeptJwt>>,
    /// The own bundle.
    pub own: Option<Arc<Bundle>>,
    /// Federated bundles.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// How far the server had been followed.
    pub position: Option<Position>,
    /// When it last answered.
    pub last_contact: Option<SystemTime>,
}

impl Restored {
    /// Replays `records`, and leaves out what is over at `now`.
    pub fn replay(records: Vec<Record>, now: SystemTime) -> Self {
        let mut restored = Self::default();
        records.into_iter().for_each(|record| restored.take(record));
        for (_, svid) in restored.entries.values_mut() {
            if svid.as_ref().is_some_and(|svid| svid.svid.life().is_over(now)) {
                *svid = None;
            }
        }
        restored.jwts.retain(|_, jwt| !jwt.life().is_over(now));
        restored
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Entry(entry) => {
                let svid = self.entries.remove(&entry.id).and_then(|(_, svid)| svid);
                self.entries.insert(entry.id.clone(), (entry, svid));
            }
            Record::EntryGone(id) => {
                self.entries.remove(&id);
            }
            // An SVID of an entry that is not there is nobody's.
            Record::Svid(id, identity) => {
                if let Some((_, svid)) = self.entries.get_mut(&id) {
                    *svid = Some(identity);
                }
            }
            Record::SvidGone(id) => {
                if let Some((_, svid)) = self.entries.get_mut(&id) {
                    *svid = None;
                }
            }
            Record::Jwt(jwt) => {
                self.jwts.insert((jwt.entry.clone(), jwt.audience.clone()), jwt);
            }
            Record::JwtGone(entry, audience) => {
                self.jwts.remove(&(entry, audience));
            }
            Record::OwnBundle(bundle) => self.own = Some(bundle),
            Record::Bundle(bundle) => {
                self.federated.insert(bundle.trust_domain.clone(), bundle);
            }
            Record::BundleGone(name) => {
                self.federated.remove(&name);
            }
            Record::Position(position) => self.position = position,
        }
    }

    /// How many X509-SVIDs there are.
    pub fn svids(&self) -> usize {
        self.entries.values().filter(|(_, svid)| svid.is_some()).count()
    }
}

/// A moment in Unix seconds, if it is one.
pub(super) fn at(unix: i64) -> Option<SystemTime> {
    let seconds = u64::try_from(unix).ok().filter(|seconds| *seconds > 0)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
