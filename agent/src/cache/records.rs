//! Entries with their SVIDs: who matches whom, what is missing, what is due.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_core::selector::{Selector, SelectorSet};
use svid_core::x509::X509Svid;
use tracing::debug;

use super::metrics::EntryCounters;
use super::types::{AgentEntry, X509Identity};

/// First and longest pause before a refused SVID is asked for again.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// First and longest pause before an SVID is asked for again that came from a tainted authority.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(300);

/// One entry and what the agent has for it.
pub(super) struct Record {
    pub(super) entry: Arc<AgentEntry>,
    pub(super) svid: Option<Arc<X509Identity>>,
    /// The SVID chains to an authority that is no longer to be used: good for those who hold it, not for newcomers.
    pub(super) tainted: bool,
    /// Subscribed groups that match this entry.
    pub(super) groups: u32,
    /// Which of the entry's selectors the index lists it under.
    indexed_under: usize,
    renew_at: Option<SystemTime>,
    last_access: u64,
    refusals: u32,
    retry_at: Option<SystemTime>,
    /// How often in a row an SVID came that its authority is no longer to be used for.
    misses: u32,
}

impl Record {
    /// An SVID that a newcomer can be given.
    pub(super) fn has_usable_svid(&self, now: SystemTime) -> bool {
        !self.tainted && self.svid.as_ref().is_some_and(|svid| !svid.svid.life().is_over(now))
    }

    /// The server said no, at least for now: nobody waits for this one alone.
    pub(super) fn is_refused(&self) -> bool {
        self.refusals > 0
    }
}

/// What came of asking for one SVID.
pub struct Minted {
    /// The entry as it was when the request was made.
    pub entry: Arc<AgentEntry>,
    /// `None` when the server refused.
    pub identity: Option<X509Identity>,
}

impl Minted {
    /// Nothing that could still be used.
    pub(super) fn is_over(&self, now: SystemTime) -> bool {
        self.identity.as_ref().is_none_or(|identity| identity.svid.life().is_over(now))
    }
}

/// All entries of the agent.
#[derive(Default)]
pub(super) struct Records {
    by_id: HashMap<EntryId, Record>,
    /// Each entry stands under one of its selectors only, the rarest when it came: a caller that has all of the
    /// entry's selectors has that one as well, so a look-up meets few entries that do not match.
    index: HashMap<Selector, Vec<EntryId>>,
    /// To be asked for.
    stale: BTreeSet<EntryId>,
    renewals: BTreeSet<(SystemTime, EntryId)>,
    workload_entries: usize,
    svids: usize,
    /// Entries that changed under an SVID, since somebody asked.
    outdated: usize,
    counters: EntryCounters,
}

impl Records {
    pub(super) fn counting(counters: EntryCounters) -> Self {
        Self { counters, ..Self::default() }
    }

    pub(super) fn get(&self, id: &EntryId) -> Option<&Record> {
        self.by_id.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.by_id.values()
    }

    /// The trust domains that some entry federates with, each once.
    pub(super) fn federated_names(&self) -> BTreeSet<&TrustDomain> {
        self.by_id.values().flat_map(|record| &record.entry.federates_with).collect()
    }

    /// Entries for workloads.
    pub(super) fn workload_entries(&self) -> usize {
        self.workload_entries
    }

    /// SVIDs held.
    pub(super) fn svids(&self) -> usize {
        self.svids
    }

    /// Ids of the entries that apply to a workload with `selectors`, ascending.
    pub(super) fn matching(&self, selectors: &SelectorSet) -> Vec<EntryId> {
        let candidates = selectors.iter().filter_map(|selector| self.index.get(selector)).flatten();
        let mut ids: Vec<EntryId> = candidates
            .filter(|id| {
                self.by_id.get(*id).is_some_and(|record| record.entry.selectors.is_subset_of(selectors))
            })
            .cloned()
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Takes in an entry. Returns the selector sets whose workloads are affected, none if nothing changed.
    pub(super) fn upsert(&mut self, entry: AgentEntry) -> Vec<SelectorSet> {
        let entry = Arc::new(entry);
        let Some(old) = self.by_id.get(&entry.id).map(|record| Arc::clone(&record.entry)) else {
            debug!(entry = %entry.id, spiffe_id = %entry.spiffe_id, "Entry created");
            let affected = vec![entry.selectors.clone()];
            self.insert(entry);
            return affected;
        };
        if *old == *entry {
            return Vec::new();
        }
        debug!(entry = %entry.id, spiffe_id = %entry.spiffe_id, "Entry updated");
        let mut affected = vec![old.selectors.clone()];
        if old.selectors != entry.selectors {
            affected.push(entry.selectors.clone());
        }
        self.replace(&old, entry);
        affected
    }

    fn insert(&mut self, entry: Arc<AgentEntry>) {
        let indexed_under = self.add_to_index(&entry);
        self.workload_entries += usize::from(!entry.store_svid);
        self.counters.added.add(1);
        let record = Record {
            entry: Arc::clone(&entry),
            svid: None,
            tainted: false,
            groups: 0,
            indexed_under,
            renew_at: None,
            last_access: 0,
            refusals: 0,
            retry_at: None,
            misses: 0,
        };
        self.by_id.insert(entry.id.clone(), record);
    }

    fn replace(&mut self, old: &AgentEntry, entry: Arc<AgentEntry>) {
        // Another identity, or a new entry under an old id: the SVID in hand certifies something else.
        let other = old.spiffe_id != entry.spiffe_id
            || old.created_at != entry.created_at
            || old.store_svid != entry.store_svid;
        if other {
            self.drop_svid(&entry.id);
        }
        if old.selectors != entry.selectors || old.store_svid != entry.store_svid {
            self.remove_from_index(&entry.id);
            let indexed_under = self.add_to_index(&entry);
            self.change(&entry.id, |record| record.indexed_under = indexed_under);
        }
        self.workload_entries += usize::from(!entry.store_svid);
        self.workload_entries -= usize::from(!old.store_svid);
        let id = entry.id.clone();
        self.counters.updated.add(1);
        let had_svid = self.by_id.get(&id).is_some_and(|record| record.svid.is_some());
        self.change(&id, |record| {
            record.entry = entry;
            record.refusals = 0;
            record.retry_at = None;
        });
        if had_svid {
            self.outdated += 1;
            self.stale.insert(id);
        }
    }

    /// Forgets an entry. Returns its selectors if it was known.
    pub(super) fn remove(&mut self, id: &EntryId) -> Option<SelectorSet> {
        self.remove_from_index(id);
        self.drop_svid(id);
        self.stale.remove(id);
        let record = self.by_id.remove(id)?;
        self.counters.removed.add(1);
        self.workload_entries -= usize::from(!record.entry.store_svid);
        debug!(entry = %id, spiffe_id = %record.entry.spiffe_id, "Entry removed");
        Some(record.entry.selectors.clone())
    }

    fn add_to_index(&mut self, entry: &AgentEntry) -> usize {
        if entry.store_svid {
            return 0;
        }
        let rarity = |selector: &Selector| self.index.get(selector).map_or(0, Vec::len);
        let rarest = entry.selectors.iter().enumerate().min_by_key(|(_, selector)| rarity(selector));
        let Some((at, selector)) = rarest else { return 0 };
        self.index.entry(selector.clone()).or_default().push(entry.id.clone());
        at
    }

    fn remove_from_index(&mut self, id: &EntryId) {
        let Some(record) = self.by_id.get(id) else { return };
        let Some(selector) = record.entry.selectors.as_slice().get(record.indexed_under) else { return };
        if let Some(ids) = self.index.get_mut(selector) {
            ids.retain(|other| other != id);
            if ids.is_empty() {
                self.index.remove(selector);
            }
        }
    }

    fn change(&mut self, id: &EntryId, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.by_id.get_mut(id) {
            change(record);
        }
    }

    /// A group of subscribers begins to match this entry. True if an SVID has to be fetched for it.
    pub(super) fn acquire(&mut self, id: &EntryId, now: SystemTime, tick: u64) -> bool {
        let Some(record) = self.by_id.get_mut(id) else { return false };
        record.groups += 1;
        record.last_access = tick;
        if record.has_usable_svid(now) {
            return false;
        }
        // What was to be replaced some time is now waited for.
        let was_put_off = record.tainted && record.retry_at.take().is_some();
        self.stale.insert(id.clone()) || was_put_off
    }

    /// A group of subscribers no longer matches this entry, or is gone.
    pub(super) fn release(&mut self, id: &EntryId) {
        self.change(id, |record| record.groups = record.groups.saturating_sub(1));
    }

    /// A subscriber came to a group that others keep alive.
    pub(super) fn touch(&mut self, id: &EntryId, tick: u64) {
        self.change(id, |record| record.last_access = tick);
    }

    /// Marks entries without an SVID to be fetched ahead of need, as long as the cache has room for them.
    /// True if there are new ones.
    pub(super) fn prefetch(&mut self, max: usize) -> bool {
        let without = |id: &&EntryId| self.by_id.get(*id).is_some_and(|record| record.svid.is_none());
        let missing = self.stale.iter().filter(without).count();
        let room = max.saturating_sub(self.svids + missing);
        if room == 0 || self.workload_entries <= self.svids + missing {
            return false;
        }
        let wanted = self.by_id.values().filter(|record| {
            let entry = &record.entry;
            record.svid.is_none() && !entry.store_svid && !entry.disable_x509_svid_prefetch
        });
        let ids = wanted.map(|record| record.entry.id.clone()).filter(|id| !self.stale.contains(id));
        let ids: Vec<EntryId> = ids.take(room).collect();
        let some = !ids.is_empty();
        self.stale.extend(ids);
        some
    }

    /// How many entries changed under an SVID since the last time.
    pub(super) fn take_outdated(&mut self) -> usize {
        std::mem::take(&mut self.outdated)
    }

    /// Marks what is due for renewal at `now`; returns how many there are.
    pub(super) fn mark_due(&mut self, now: SystemTime) -> usize {
        let mut count = 0;
        while let Some((at, _)) = self.renewals.first()
            && *at <= now
        {
            if let Some((_, id)) = self.renewals.pop_first() {
                self.change(&id, |record| record.renew_at = None);
                self.stale.insert(id);
                count += 1;
            }
        }
        count
    }

    /// When something has to be fetched next: now if anything may be asked for at once.
    pub(super) fn next_due(&self, now: SystemTime) -> Option<SystemTime> {
        let retry = |id| self.by_id.get(id).map(|record| record.retry_at.unwrap_or(now));
        let stale = self.stale.iter().filter_map(retry).min();
        let renewal = self.renewals.first().map(|(at, _)| *at);
        [stale, renewal].into_iter().flatten().min()
    }

    /// Up to `limit` entries to fetch SVIDs for: first those somebody waits for, then those that end soonest.
    pub(super) fn wanted(&self, now: SystemTime, limit: usize) -> Vec<Arc<AgentEntry>> {
        let records = self.stale.iter().filter_map(|id| self.by_id.get(id));
        let mut records: Vec<&Record> =
            records.filter(|record| record.retry_at.is_none_or(|at| at <= now)).collect();
        if records.len() > limit {
            records.sort_by_key(|record| {
                let ends = record.svid.as_ref().map(|svid| svid.svid.not_after());
                (record.groups == 0, record.has_usable_svid(now), ends)
            });
        }
        records.into_iter().take(limit).map(|record| Arc::clone(&record.entry)).collect()
    }

    /// Stores what came of a request. True if the record took it.
    pub(super) fn store(
        &mut self,
        minted: Minted,
        now: SystemTime,
        tick: u64,
        target: Option<Duration>,
        is_tainted: bool,
    ) -> bool {
        let Some(record) = self.by_id.get_mut(&minted.entry.id) else { return false };
        let same =
            |a: &AgentEntry, b: &AgentEntry| a.spiffe_id == b.spiffe_id && a.created_at == b.created_at;
        let Some(identity) = minted.identity else {
            record.refusals += 1;
            let pause =
                RETRY_FIRST.saturating_mul(1 << record.refusals.min(10).saturating_sub(1)).min(RETRY_MAX);
            record.retry_at = Some(now + pause);
            return record.groups > 0;
        };
        if !same(&record.entry, &minted.entry) || *identity.svid.id() != record.entry.spiffe_id {
            return false;
        }
        let is_current = Arc::ptr_eq(&record.entry, &minted.entry);
        let renew_at = identity.svid.life().renew_at_with_target(renewal_draw(&identity.svid), target);
        if let Some(at) = record.renew_at.replace(renew_at) {
            self.renewals.remove(&(at, minted.entry.id.clone()));
        }
        self.renewals.insert((renew_at, minted.entry.id.clone()));
        self.svids += usize::from(record.svid.is_none());
        record.last_access = record.last_access.max(tick);
        record.svid = Some(Arc::new(identity));
        record.tainted = false;
        record.refusals = 0;
        record.retry_at = None;
        if is_current {
            self.stale.remove(&minted.entry.id);
        }
        debug!(entry = %minted.entry.id, spiffe_id = %minted.entry.spiffe_id, "SVID updated");
        match is_tainted {
            true => self.look_again(&minted.entry.id, now),
            false => self.change(&minted.entry.id, |record| record.misses = 0),
        }
        true
    }

    fn drop_svid(&mut self, id: &EntryId) {
        let Some(record) = self.by_id.get_mut(id) else { return };
        self.svids -= usize::from(record.svid.take().is_some());
        record.tainted = false;
        if let Some(at) = record.renew_at.take() {
            self.renewals.remove(&(at, id.clone()));
        }
        if record.groups > 0 {
            self.stale.insert(id.clone());
        } else {
            self.stale.remove(id);
        }
    }

    /// Marks an SVID as issued by a tainted authority: it is to be replaced, but not before `not_before`.
    pub(super) fn taint(&mut self, id: &EntryId, not_before: Option<SystemTime>) {
        let Some(record) = self.by_id.get_mut(id) else { return };
        record.tainted = true;
        record.retry_at = not_before;
        self.stale.insert(id.clone());
    }

    /// The SVID that just came is again from a tainted authority. It is served, for there is no better one, and asked
    /// for again soon, then ever more seldom.
    pub(super) fn look_again(&mut self, id: &EntryId, now: SystemTime) {
        let Some(record) = self.by_id.get_mut(id) else { return };
        let pause = LOOK_AGAIN.saturating_mul(1 << record.misses.min(10)).min(LOOK_AGAIN_MAX);
        record.misses += 1;
        let at = record.renew_at.map_or(now + pause, |at| at.min(now + pause));
        if let Some(before) = record.renew_at.replace(at) {
            self.renewals.remove(&(before, id.clone()));
        }
        self.renewals.insert((at, id.clone()));
    }

    /// Drops SVIDs that are over; returns whose.
    pub(super) fn drop_expired(&mut self, now: SystemTime) -> Vec<EntryId> {
        let is_over =
            |record: &&Record| record.svid.as_ref().is_some_and(|svid| svid.svid.life().is_over(now));
        let ids: Vec<EntryId> =
            self.by_id.values().filter(is_over).map(|record| record.entry.id.clone()).collect();
        for id in &ids {
            self.drop_svid(id);
            self.stale.insert(id.clone());
        }
        ids
    }

    /// Drops the SVIDs used longest ago until `max` are left; those with a subscriber always stay.
    pub(super) fn evict(&mut self, max: usize) -> Vec<EntryId> {
        let excess = self.svids.saturating_sub(max);
        if excess == 0 {
            return Vec::new();
        }
        let idle = self.by_id.values().filter(|record| record.svid.is_some() && record.groups == 0);
        let mut idle: Vec<(u64, EntryId)> =
            idle.map(|record| (record.last_access, record.entry.id.clone())).collect();
        idle.sort_unstable();
        idle.truncate(excess);
        let ids: Vec<EntryId> = idle.into_iter().map(|(_, id)| id).collect();
        for id in &ids {
            debug!(entry = %id, "Removing SVID record");
            self.drop_svid(id);
        }
        ids
    }
}

/// A number in 0..=1 that belongs to one SVID: serial numbers are random, so renewals spread evenly, and looking
/// again does not draw again.
pub fn renewal_draw(svid: &X509Svid) -> f64 {
    let tail = svid.leaf().serial().rchunks(4).next().unwrap_or_default();
    let number = tail.iter().fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte));
    f64::from(number) / f64::from(u32::MAX)
}
