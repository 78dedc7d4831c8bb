//! Who may have what. Downwards from an agent to all its entries; upwards from one entry to an agent, which is how
//! a single entry is checked and how a change finds the agents it touches.
//!
//! Source: `spire-server.md`, 3.4. An expired entry is void here at once: it is neither returned nor walked through.

use std::collections::HashSet;
use std::sync::Arc;

use svid_core::id::{SpiffeId, TrustDomain};

use super::packed::Packed;
use super::state::State;
use super::watch::{WatchState, Watches};

/// An ID that more entries than this make agents members of is not climbed from: what one agent has is less.
const MANY_HOLDERS: usize = 64;

/// True if a node with the (sorted) selectors `whole` is a member of an alias with the selectors `part`. An alias
/// without selectors, which no check lets through, has no members.
fn is_subset(part: &[u32], whole: &[u32]) -> bool {
    !part.is_empty() && part.iter().all(|number| whole.binary_search(number).is_ok())
}

impl State {
    /// Handles of all entries that `agent` may have, each once, in no order.
    pub(super) fn authorized(&self, agent: &SpiffeId, now: i64) -> Vec<u32> {
        let children = |parent: u32| self.ids.get(parent).children.as_slice();
        let handles = self.reachable(agent, now).into_iter().flat_map(children).copied();
        handles.filter(|handle| !self.packed(*handle).is_expired(now)).collect()
    }

    /// Numbers of the IDs whose children the agent may have: its own, its aliases', and those of its entries.
    pub(super) fn reachable(&self, agent: &SpiffeId, now: i64) -> HashSet<u32> {
        let mut seen: HashSet<u32> = HashSet::new();
        let mut open: Vec<u32> = self.ids.find(agent).into_iter().collect();
        if let Some(node) = self.nodes.get(agent) {
            open.extend(self.matching_aliases(&node.selectors, now).map(|alias| alias.spiffe));
        }
        while let Some(parent) = open.pop() {
            if parent == self.server || !seen.insert(parent) {
                continue;
            }
            let children = self.ids.get(parent).children.as_slice();
            let entries =
                children.iter().map(|handle| self.packed(*handle)).filter(|entry| !entry.is_expired(now));
            open.extend(
                entries.map(|entry| entry.spiffe).filter(|id| !self.ids.get(*id).children.is_empty()),
            );
        }
        seen
    }

    /// Alias entries that a node with these selectors is a member of.
    fn matching_aliases<'a>(&'a self, selectors: &'a [u32], now: i64) -> impl Iterator<Item = &'a Packed> {
        selectors
            .iter()
            .flat_map(|number| self.selectors.get(*number).aliases.as_slice())
            .map(|handle| self.packed(*handle))
            .filter(move |alias| !alias.is_expired(now) && is_subset(&alias.selectors(), selectors))
    }

    /// True if `agent` may have this entry: walks up from it, so the cost is the depth and not the agent's entries.
    /// Only where thousands share a parent it walks down from the agent: each of them asks when such an entry changes.
    pub(super) fn is_authorized(&self, agent: &SpiffeId, handle: u32, now: i64) -> bool {
        let entry = self.packed(handle);
        if entry.is_expired(now) || self.is_alias(entry) {
            return false;
        }
        let own = self.ids.find(agent);
        let node = self.nodes.get(agent);
        let mut seen: HashSet<u32> = HashSet::new();
        let mut open = vec![entry.parent];
        while let Some(id) = open.pop() {
            if Some(id) == own {
                return true;
            }
            if !seen.insert(id) {
                continue;
            }
            let holders = self.ids.get(id).holders.as_slice();
            if holders.len() > MANY_HOLDERS {
                return self.reachable(agent, now).contains(&self.packed(handle).parent);
            }
            for &handle in holders {
                let holder = self.packed(handle);
                if holder.is_expired(now) {
                    continue;
                }
                if !self.is_alias(holder) {
                    open.push(holder.parent);
                } else if node.is_some_and(|node| is_subset(&holder.selectors(), &node.selectors)) {
                    return true;
                }
            }
        }
        false
    }

    /// The watches of agents that a change to this entry touches. Expiry is not looked at: an agent too many is told
    /// nothing new.
    pub(super) fn touched<'w>(&self, handle: u32, watches: &'w Watches) -> Vec<&'w Arc<WatchState>> {
        let mut agents: HashSet<&'w SpiffeId> = HashSet::new();
        let mut seen: HashSet<u32> = HashSet::new();
        let mut open = Vec::new();
        self.climb(self.packed(handle), watches, &mut open, &mut agents);
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let slot = self.ids.get(id);
            agents.extend(watches.agent(&slot.id));
            for &handle in slot.holders.as_slice() {
                self.climb(self.packed(handle), watches, &mut open, &mut agents);
            }
        }
        agents.into_iter().flat_map(|agent| watches.of(agent)).collect()
    }

    /// One step upwards: to the parent, or from an alias to its members.
    fn climb<'w>(
        &self,
        entry: &Packed,
        watches: &'w Watches,
        open: &mut Vec<u32>,
        agents: &mut HashSet<&'w SpiffeId>,
    ) {
        if !self.is_alias(entry) {
            open.push(entry.parent);
            return;
        }
        let wanted = entry.selectors();
        let node = |agent: &SpiffeId| self.nodes.get(agent);
        agents.extend(
            watches.agents().filter(|agent| node(agent).is_some_and(|n| is_subset(&wanted, &n.selectors))),
        );
    }

    /// True if other entries depend on this one: it is an alias, or a parent.
    pub(super) fn is_link(&self, handle: u32) -> bool {
        let entry = self.packed(handle);
        self.is_alias(entry) || !self.ids.get(entry.spiffe).children.is_empty()
    }

    /// True if one of the agent's entries federates with `domain`.
    pub(super) fn federates(&self, agent: &SpiffeId, domain: &TrustDomain, now: i64) -> bool {
        let names = |handle: &u32| self.packed(*handle).domains();
        self.authorized(agent, now)
            .iter()
            .any(|handle| names(handle).iter().any(|n| self.domains.get(*n) == domain))
    }
}
