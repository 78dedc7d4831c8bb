//! Callers with equal selectors share one group: matched once, built once, encoded once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use svid_core::bundle::Bundle;
use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_core::selector::SelectorSet;
use tokio::sync::watch;

use super::records::{Record, Records};
use super::types::{Bundles, Identity, WorkloadUpdate};

/// Groups without subscribers that are kept for callers who connect again and again.
const MAX_IDLE: usize = 256;

/// What a group's subscribers see.
#[derive(Clone)]
pub(super) struct Published {
    pub(super) update: Arc<WorkloadUpdate>,
    /// Nothing is missing that a newcomer should wait for.
    pub(super) complete: bool,
}

struct Group {
    selectors: Arc<SelectorSet>,
    matching: Vec<EntryId>,
    subscribers: usize,
    last_used: u64,
    published: watch::Sender<Published>,
}

/// All groups, by selector set.
#[derive(Default)]
pub(super) struct Groups {
    by_set: HashMap<Arc<SelectorSet>, Group>,
    idle: usize,
    revision: u64,
}

impl Groups {
    /// Joins the group of `selectors`. The second value says that SVIDs have to be fetched.
    pub(super) fn join(
        &mut self,
        selectors: &Arc<SelectorSet>,
        records: &mut Records,
        bundles: &Bundles,
        now: SystemTime,
        tick: u64,
    ) -> (watch::Receiver<Published>, bool) {
        self.drop_outdated(selectors, now);
        if let Some(group) = self.by_set.get_mut(&**selectors) {
            group.last_used = tick;
            group.subscribers += 1;
            let mut fetch = false;
            if group.subscribers == 1 {
                self.idle -= 1;
                group.matching.iter().for_each(|id| fetch |= records.acquire(id, now, tick));
            } else {
                group.matching.iter().for_each(|id| records.touch(id, tick));
            }
            return (group.published.subscribe(), fetch);
        }
        let matching = records.matching(selectors);
        let mut fetch = false;
        matching.iter().for_each(|id| fetch |= records.acquire(id, now, tick));
        self.revision += 1;
        let (update, complete) = build(&matching, records, bundles, self.revision, now);
        let published = watch::Sender::new(Published { update: Arc::new(update), complete });
        let receiver = published.subscribe();
        let group =
            Group { selectors: Arc::clone(selectors), matching, subscribers: 1, last_used: tick, published };
        self.by_set.insert(Arc::clone(selectors), group);
        (receiver, fetch)
    }

    /// An idle group whose SVIDs ended meanwhile must not greet a newcomer.
    fn drop_outdated(&mut self, selectors: &SelectorSet, now: SystemTime) {
        let outdated = |group: &Group| {
            let published = group.published.borrow();
            group.subscribers == 0 && published.update.valid_until().is_some_and(|end| end <= now)
        };
        if self.by_set.get(selectors).is_some_and(outdated) {
            self.by_set.remove(selectors);
            self.idle -= 1;
        }
    }

    /// Leaves the group of `selectors`.
    pub(super) fn leave(&mut self, selectors: &SelectorSet, records: &mut Records) {
        let Some(group) = self.by_set.get_mut(selectors) else { return };
        group.subscribers -= 1;
        if group.subscribers > 0 {
            return;
        }
        group.matching.iter().for_each(|id| records.release(id));
        if !group.published.borrow().complete {
            self.by_set.remove(selectors);
            return;
        }
        self.idle += 1;
        if self.idle > MAX_IDLE {
            self.drop_oldest_idle();
        }
    }

    fn drop_oldest_idle(&mut self) {
        let idle = self.by_set.values().filter(|group| group.subscribers == 0);
        let Some(oldest) = idle.min_by_key(|group| group.last_used).map(|group| Arc::clone(&group.selectors))
        else {
            return;
        };
        self.by_set.remove(&*oldest);
        self.idle -= 1;
    }

    /// What a caller with `selectors` gets right now.
    pub(super) fn current(
        &mut self,
        selectors: &SelectorSet,
        records: &Records,
        bundles: &Bundles,
        now: SystemTime,
    ) -> Arc<WorkloadUpdate> {
        self.drop_outdated(selectors, now);
        // What is incomplete may be held back: see `publish`.
        if let Some(group) = self.by_set.get(selectors)
            && group.published.borrow().complete
        {
            return Arc::clone(&group.published.borrow().update);
        }
        self.revision += 1;
        let (update, _) = build(&records.matching(selectors), records, bundles, self.revision, now);
        Arc::new(update)
    }

    /// Entries with these selector sets came, changed or went. True if SVIDs have to be fetched.
    pub(super) fn entries_changed(
        &mut self,
        changed: &[SelectorSet],
        records: &mut Records,
        bundles: &Bundles,
        now: SystemTime,
        tick: u64,
    ) -> bool {
        // Beyond some number, asking each group about each set costs more than matching again.
        const ASK_EACH: usize = 64;
        let affects = |group: &Group| {
            changed.len() > ASK_EACH || changed.iter().any(|set| set.is_subset_of(&group.selectors))
        };
        self.drop_idle(&affects);
        let mut fetch = false;
        for group in self.by_set.values_mut().filter(|group| affects(group)) {
            let before = std::mem::replace(&mut group.matching, records.matching(&group.selectors));
            group.matching.iter().for_each(|id| fetch |= records.acquire(id, now, tick));
            before.iter().for_each(|id| records.release(id));
            publish(group, records, bundles, &mut self.revision, now);
        }
        fetch
    }

    /// The SVIDs of these entries came or went.
    pub(super) fn svids_changed(
        &mut self,
        ids: &[EntryId],
        records: &Records,
        bundles: &Bundles,
        now: SystemTime,
    ) {
        let affects = |group: &Group| ids.iter().any(|id| group.matching.binary_search(id).is_ok());
        self.drop_idle(&affects);
        for group in self.by_set.values_mut().filter(|group| affects(group)) {
            publish(group, records, bundles, &mut self.revision, now);
        }
    }

    /// Some bundle changed.
    pub(super) fn bundles_changed(&mut self, records: &Records, bundles: &Bundles, now: SystemTime) {
        self.drop_idle(&|_| true);
        for group in self.by_set.values_mut() {
            publish(group, records, bundles, &mut self.revision, now);
        }
    }

    fn drop_idle(&mut self, affected: &dyn Fn(&Group) -> bool) {
        let before = self.by_set.len();
        self.by_set.retain(|_, group| group.subscribers > 0 || !affected(group));
        self.idle -= before - self.by_set.len();
    }
}

/// Builds anew and, if subscribers would see a difference, hands it to them.
fn publish(group: &Group, records: &Records, bundles: &Bundles, revision: &mut u64, now: SystemTime) {
    let (mut update, complete) = build(&group.matching, records, bundles, *revision + 1, now);
    group.published.send_if_modified(|published| {
        // The last identity of a workload is not taken away while its successor is being fetched: an answer
        // without identities ends the stream. Newcomers wait.
        let only_waiting = !complete && update.identities.is_empty() && !group.matching.is_empty();
        if only_waiting && published.update.valid_until().is_some_and(|end| end > now) {
            published.complete = false;
            return false;
        }
        let difference = difference(&published.update, &update);
        if difference != Difference::X509 {
            // Who follows X.509 only need not hear of it, nor the answer be encoded again.
            update.x509_response = published.update.x509_response.clone();
            update.x509_revision = published.update.x509_revision;
        }
        match difference {
            Difference::None => update.revision = published.update.revision,
            Difference::Jwt | Difference::X509 => *revision += 1,
        }
        let changed = difference != Difference::None || published.complete != complete;
        *published = Published { update: Arc::new(update), complete };
        changed
    });
}

/// What a workload with these entries is given, and whether nothing is missing that a newcomer should wait for.
fn build(
    matching: &[EntryId],
    records: &Records,
    bundles: &Bundles,
    revision: u64,
    now: SystemTime,
) -> (WorkloadUpdate, bool) {
    let found: Vec<_> = matching.iter().filter_map(|id| records.get(id)).collect();
    let identities: Vec<Identity> = found
        .iter()
        .filter_map(|record| {
            let x509 = record.svid.as_ref().filter(|svid| !svid.svid.life().is_over(now))?;
            Some(Identity { entry: Arc::clone(&record.entry), x509: Arc::clone(x509) })
        })
        .collect();
    // A refused entry is waited for only if there is nothing else to give.
    let may_go_without = |record: &Record| !identities.is_empty() && record.is_refused();
    let complete = found.iter().all(|record| record.has_usable_svid(now) || may_go_without(record));
    let federated = federated(&identities, bundles);
    let update = WorkloadUpdate {
        identities,
        bundle: Arc::clone(&bundles.own),
        federated,
        x509_response: OnceLock::new(),
        revision,
        x509_revision: revision,
    };
    (update, complete)
}

fn federated(identities: &[Identity], bundles: &Bundles) -> BTreeMap<TrustDomain, Arc<Bundle>> {
    let names = identities.iter().flat_map(|identity| &identity.entry.federates_with);
    names.filter_map(|name| Some((name.clone(), Arc::clone(bundles.federated.get(name)?)))).collect()
}

/// What tells two updates apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Difference {
    None,
    /// Only keys of JWT-SVIDs.
    Jwt,
    X509,
}

fn difference(a: &WorkloadUpdate, b: &WorkloadUpdate) -> Difference {
    let identity = |a: &Identity, b: &Identity| {
        a.entry.id == b.entry.id && a.entry.hint == b.entry.hint && Arc::ptr_eq(&a.x509, &b.x509)
    };
    // That an authority is tainted concerns the agent only.
    let same_roots = |a: &Bundle, b: &Bundle| a.x509_der() == b.x509_der();
    let keys = |bundle: &Bundle| {
        let keys = bundle.jwt_authorities.iter();
        keys.map(|key| (key.key_id.clone(), key.public_key.clone())).collect::<Vec<_>>()
    };
    let same_keys = |a: &Bundle, b: &Bundle| keys(a) == keys(b);
    let all = |same: &dyn Fn(&Bundle, &Bundle) -> bool| {
        let pairs = a.federated.values().zip(b.federated.values()).chain([(&a.bundle, &b.bundle)]);
        pairs.into_iter().all(|(a, b)| Arc::ptr_eq(a, b) || same(a, b))
    };
    let same_x509 = a.identities.len() == b.identities.len()
        && a.identities.iter().zip(&b.identities).all(|(a, b)| identity(a, b))
        && a.federated.keys().eq(b.federated.keys())
        && all(&same_roots);
    match same_x509 {
        false => Difference::X509,
        true if all(&same_keys) => Difference::None,
        true => Difference::Jwt,
    }
}
