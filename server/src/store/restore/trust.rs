//! Bundles of backup and database in one. What the database has stays; the backup adds what it alone has, unless the
//! database knows better.

use std::collections::{HashMap, HashSet};

use prost::Message as _;
use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::clock::unix_seconds;
use svid_core::id::TrustDomain;
use svid_proto::spire::private::server::journal::Entries;

use super::report::{List, Table};

/// Names of authorities that the database's journals know: its servers made them, or had them above themselves. One
/// that is not in the bundle any more was taken out of it.
#[derive(Default)]
pub(super) struct Known {
    x509: HashSet<String>,
    jwt: HashSet<String>,
}

impl Known {
    /// From journals; one that cannot be read proves nothing.
    pub(super) fn from_journals<'a>(journals: impl Iterator<Item = &'a Vec<u8>>) -> Self {
        let mut known = Self::default();
        for entries in journals.filter_map(|journal| Entries::decode(journal.as_slice()).ok()) {
            for entry in entries.x509_c_as {
                known.x509.insert(entry.authority_id);
                known.x509.insert(entry.upstream_authority_id);
            }
            known.jwt.extend(entries.jwt_keys.into_iter().map(|entry| entry.authority_id));
        }
        known.x509.remove("");
        known
    }
}

/// What becomes of the bundles.
pub(super) struct Trust {
    /// Bundles that are written, whole.
    pub(super) write: Vec<Bundle>,
    /// The trust domain's own bundle as it will be.
    pub(super) own: Option<Bundle>,
    pub(super) bundles: Table,
    pub(super) authorities: Table,
    pub(super) back_authorities: List,
    pub(super) back_bundles: List,
    pub(super) stay_revoked: List,
    pub(super) stay_tainted: List,
}

impl Trust {
    /// `now` in Unix seconds.
    pub(super) fn merge(
        own: &TrustDomain,
        database: Vec<Bundle>,
        backup: &[Bundle],
        known: &Known,
        now: i64,
    ) -> Self {
        let mut trust = Self {
            write: Vec::new(),
            own: None,
            bundles: Table { table: "bundles", ..Table::default() },
            authorities: Table { table: "authorities", ..Table::default() },
            back_authorities: List::new(
                "authorities that the database does not have (any more) would be trusted again",
            ),
            back_bundles: List::new(
                "bundles of other trust domains that the database does not have (any more)",
            ),
            stay_revoked: List::new("authorities that were revoked after the backup stay revoked"),
            stay_tainted: List::new("authorities that were tainted after the backup stay tainted"),
        };
        trust.bundles.database = database.len() as u64;
        trust.bundles.backup = backup.len() as u64;
        let mut left: HashMap<TrustDomain, Bundle> =
            database.into_iter().map(|bundle| (bundle.trust_domain.clone(), bundle)).collect();
        for theirs in backup {
            let ours = left.remove(&theirs.trust_domain);
            let is_own = theirs.trust_domain == *own;
            let none = Known::default();
            trust.one(ours, theirs, if is_own { known } else { &none }, is_own, now);
        }
        for (name, bundle) in left {
            trust.bundles.kept += 1;
            let count = (bundle.x509_authorities.len() + bundle.jwt_authorities.len()) as u64;
            trust.authorities.database += count;
            trust.authorities.kept += count;
            if name == *own {
                trust.own = Some(bundle);
            }
        }
        trust
    }

    fn one(&mut self, ours: Option<Bundle>, theirs: &Bundle, known: &Known, is_own: bool, now: i64) {
        let was_there = ours.is_some();
        let mut merged = ours.unwrap_or_else(|| Bundle {
            refresh_hint: theirs.refresh_hint,
            sequence_number: theirs.sequence_number,
            ..Bundle::empty(theirs.trust_domain.clone())
        });
        let x509_changed = self.x509(&mut merged, theirs, known, now);
        let jwt_changed = self.jwt(&mut merged, theirs, known, now);
        let changed = x509_changed | jwt_changed;
        match (was_there, changed) {
            (true, false) => self.bundles.same += 1,
            (true, true) => self.bundles.changed += 1,
            (false, _) => {
                self.bundles.added += 1;
                if !is_own {
                    self.back_bundles.add(|| theirs.trust_domain.to_string());
                }
            }
        }
        if changed || !was_there {
            // Whoever saw either bundle sees that this one is newer.
            merged.sequence_number = merged.sequence_number.max(theirs.sequence_number).saturating_add(1);
            self.write.push(merged.clone());
        }
        if is_own {
            self.own = Some(merged);
        }
    }

    fn x509(&mut self, merged: &mut Bundle, theirs: &Bundle, known: &Known, now: i64) -> bool {
        self.count(merged.x509_authorities.len(), theirs.x509_authorities.len());
        let mut changed = false;
        let mut met = 0;
        for theirs in &theirs.x509_authorities {
            let id = theirs.parsed().subject_key_id_hex().map(|id| id.to_string()).unwrap_or_default();
            let ends = unix_seconds(theirs.parsed().life().not_after);
            let ours = merged.x509_authorities.iter_mut().find(|ours| ours.der() == theirs.der());
            let name = || format!("X.509 {id} of {}", merged.trust_domain);
            match ours {
                Some(X509Authority { tainted, .. }) => {
                    met += 1;
                    changed |= self.meet(tainted, theirs.tainted, name);
                }
                None if ends <= now => {}
                None if known.x509.contains(&id) => self.stay_revoked.add(name),
                None => {
                    self.back_authorities.add(name);
                    merged.x509_authorities.push(theirs.clone());
                    changed = true;
                    self.authorities.added += 1;
                    met += 1;
                }
            }
        }
        self.authorities.kept += (merged.x509_authorities.len() - met) as u64;
        changed
    }

    fn jwt(&mut self, merged: &mut Bundle, theirs: &Bundle, known: &Known, now: i64) -> bool {
        self.count(merged.jwt_authorities.len(), theirs.jwt_authorities.len());
        let mut changed = false;
        let mut met = 0;
        for theirs in &theirs.jwt_authorities {
            let ours = merged.jwt_authorities.iter_mut().find(|ours| ours.key_id == theirs.key_id);
            let name = || format!("JWT {} of {}", theirs.key_id, merged.trust_domain);
            match ours {
                Some(JwtAuthority { tainted, .. }) => {
                    met += 1;
                    changed |= self.meet(tainted, theirs.tainted, name);
                }
                None if theirs.expires_at > 0 && theirs.expires_at <= now => {}
                None if known.jwt.contains(&theirs.key_id) => self.stay_revoked.add(name),
                None => {
                    self.back_authorities.add(name);
                    merged.jwt_authorities.push(theirs.clone());
                    changed = true;
                    self.authorities.added += 1;
                    met += 1;
                }
            }
        }
        self.authorities.kept += (merged.jwt_authorities.len() - met) as u64;
        changed
    }

    fn count(&mut self, database: usize, backup: usize) {
        self.authorities.database += database as u64;
        self.authorities.backup += backup as u64;
    }

    /// An authority that both have: tainted by either is tainted. True if the database's row changes.
    fn meet(&mut self, ours: &mut bool, theirs: bool, name: impl FnOnce() -> String) -> bool {
        match (*ours, theirs) {
            (false, true) => {
                *ours = true;
                self.authorities.changed += 1;
                return true;
            }
            (true, false) => self.stay_tainted.add(name),
            _ => {}
        }
        self.authorities.same += 1;
        false
    }
}
