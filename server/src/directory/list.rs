//! Listings with SPIRE's filters, in order of creation.

use std::collections::BTreeSet;
use std::ops::Bound;

use svid_core::entry::Entry;
use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_core::selector::{SelectorSet, SetMatch};

use super::packed::Packed;
use super::state::{NodeSlot, State};
use super::{EntryFilter, EntryRevision, Listing, NodeFilter, NodeView, Page};
use crate::store::Serial;

impl State {
    pub(super) fn count_entries(&self, filter: &EntryFilter) -> usize {
        if is_open(filter) { self.entry_count() } else { self.matching(filter, 0).count() }
    }

    pub(super) fn list_entries(&self, filter: &EntryFilter, page: Page) -> Listing<Entry> {
        listing(self.matching(filter, page.after), page, |handle| {
            (self.packed(handle).row, self.unpack(handle))
        })
    }

    /// Handles in order of rows, beginning after one.
    fn matching<'a>(&'a self, filter: &'a EntryFilter, after: u64) -> Box<dyn Iterator<Item = u32> + 'a> {
        let rows = (Bound::Excluded(after), Bound::Unbounded);
        let narrowed = match (&filter.spiffe_id, &filter.parent_id) {
            (Some(id), _) => Some(self.ids.find(id).map_or(&[][..], |n| self.ids.get(n).holders.as_slice())),
            (None, Some(id)) => {
                Some(self.ids.find(id).map_or(&[][..], |n| self.ids.get(n).children.as_slice()))
            }
            (None, None) => None,
        };
        let Some(handles) = narrowed else {
            return Box::new(
                self.by_row.range(rows).map(|(_, handle)| *handle).filter(|h| self.fits(*h, filter)),
            );
        };
        let mut handles: Vec<u32> =
            handles.iter().copied().filter(|handle| self.packed(*handle).row > after).collect();
        handles.sort_unstable_by_key(|handle| self.packed(*handle).row);
        Box::new(handles.into_iter().filter(|handle| self.fits(*handle, filter)))
    }

    fn fits(&self, handle: u32, filter: &EntryFilter) -> bool {
        let entry = self.packed(handle);
        let is_id =
            |number: u32, want: &Option<_>| want.as_ref().is_none_or(|want| self.ids.get(number).id == *want);
        is_id(entry.spiffe, &filter.spiffe_id)
            && is_id(entry.parent, &filter.parent_id)
            && filter.downstream.is_none_or(|want| entry.is_downstream() == want)
            && filter.hint.as_ref().is_none_or(|want| entry.hint() == want)
            && self.fits_selectors(&entry.selectors(), filter.selectors.as_ref())
            && self.fits_domains(entry, filter.federates_with.as_ref())
    }

    fn fits_selectors(&self, numbers: &[u32], filter: Option<&(SelectorSet, SetMatch)>) -> bool {
        // SPIRE's query joins: who has none is in no subset.
        filter.is_none_or(|(want, how)| {
            !numbers.is_empty() && how.matches(&self.selectors.set(numbers.iter().copied()), want)
        })
    }

    fn fits_domains(&self, entry: &Packed, filter: Option<&(Vec<TrustDomain>, SetMatch)>) -> bool {
        let Some((want, how)) = filter else { return true };
        let numbers = entry.domains();
        let stored: BTreeSet<&TrustDomain> = numbers.iter().map(|number| self.domains.get(*number)).collect();
        let want: BTreeSet<&TrustDomain> = want.iter().collect();
        match how {
            SetMatch::Exact => stored == want,
            SetMatch::Subset => !stored.is_empty() && stored.is_subset(&want),
            SetMatch::Superset => stored.is_superset(&want),
            SetMatch::Any => !stored.is_disjoint(&want),
        }
    }

    pub(super) fn revision(&self, handle: u32) -> EntryRevision {
        let packed = self.packed(handle);
        let id: EntryId = packed.key.id();
        EntryRevision { id, revision: packed.revision, created_at: packed.created_at }
    }

    // ---- nodes

    pub(super) fn count_nodes(&self, filter: &NodeFilter) -> usize {
        self.nodes.values().filter(|node| self.fits_node(node, filter)).count()
    }

    pub(super) fn list_nodes(&self, filter: &NodeFilter, page: Page) -> Listing<NodeView> {
        let rows = self.nodes_by_row.range((Bound::Excluded(page.after), Bound::Unbounded));
        let ids = rows
            .map(|(_, id)| id)
            .filter(|id| self.nodes.get(*id).is_some_and(|n| self.fits_node(n, filter)));
        let nodes = ids.filter_map(|id| self.node(id));
        listing(nodes, page, |node| (node.row, node))
    }

    fn fits_node(&self, node: &NodeSlot, filter: &NodeFilter) -> bool {
        filter.attestation_type.as_ref().is_none_or(|want| *node.attestation_type == **want)
            && filter.banned.is_none_or(|want| (node.serial == Serial::Banned) == want)
            && filter.can_reattest.is_none_or(|want| node.can_reattest == want)
            && filter.expires_before.is_none_or(|end| node.expires_at < end)
            && self.fits_selectors(&node.selectors, filter.selectors.as_ref())
    }
}

fn is_open(filter: &EntryFilter) -> bool {
    let EntryFilter { spiffe_id, parent_id, selectors, federates_with, hint, downstream } = filter;
    spiffe_id.is_none()
        && parent_id.is_none()
        && selectors.is_none()
        && federates_with.is_none()
        && hint.is_none()
        && downstream.is_none()
}

/// Cuts one page. A token comes with every page that is not empty, as in SPIRE.
fn listing<H, T>(found: impl Iterator<Item = H>, page: Page, show: impl Fn(H) -> (u64, T)) -> Listing<T> {
    let limit = if page.size == 0 { usize::MAX } else { page.size };
    let mut last = None;
    let items = found
        .take(limit)
        .map(|handle| {
            let (row, item) = show(handle);
            last = Some(row);
            item
        })
        .collect();
    Listing { items, next: last.filter(|_| page.size != 0) }
}
