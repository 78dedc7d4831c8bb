//! Applying lines of the log and the passing of time: changes the state and marks the watches that it touches.

use std::collections::HashMap;
use std::sync::Arc;

use svid_core::id::SpiffeId;

use super::EndReason;
use super::packed::Key;
use super::state::{Recent, State};
use super::watch::Watches;
use crate::store::{Cursor, Kind, Line, Node, Rows, Serial, StoredEntry};

/// What an applied entry leaves in the list of recent lines.
struct Trace {
    parents: Vec<SpiffeId>,
    chain: bool,
}

impl State {
    /// Applies lines and the rows behind them.
    pub(super) fn apply(&mut self, cursor: Cursor, lines: Vec<Line>, rows: Rows, watches: &Watches) {
        for (name, bundle) in rows.bundles {
            let Ok(domain) = name.parse() else { continue };
            watches.all().for_each(|watch| watch.mark_bundle(&domain));
            match bundle {
                Some(bundle) => drop(self.bundles.insert(domain, Arc::new(bundle))),
                None => drop(self.bundles.remove(&domain)),
            }
        }
        for (name, stored) in rows.relationships {
            let Ok(domain) = name.parse() else { continue };
            match stored {
                Some(stored) => drop(self.relationships.insert(domain, stored)),
                None => drop(self.relationships.remove(&domain)),
            }
        }
        for (name, node) in rows.nodes {
            if let Ok(id) = name.parse() {
                self.apply_node(&id, node, watches);
            }
        }
        let traces: HashMap<String, Trace> = rows
            .entries
            .into_iter()
            .map(|(id, stored)| {
                let trace = self.apply_entry(&Key::new(&id), stored, watches);
                (id, trace)
            })
            .collect();
        for line in lines {
            self.remember_line(line, &traces);
        }
        self.cursor = cursor;
    }

    fn remember_line(&mut self, line: Line, traces: &HashMap<String, Trace>) {
        let what = match line.kind {
            Kind::Entry => traces.get(&line.key).map(|trace| match trace.chain {
                true => Recent::Chain,
                false => Recent::Entry(Key::new(&line.key), trace.parents.clone()),
            }),
            Kind::Node => line.key.parse().ok().map(Recent::Node),
            Kind::Bundle => line.key.parse().ok().map(Recent::Bundle),
            Kind::Federation => None,
        };
        if let Some(what) = what {
            self.remember(line.seq, what);
        }
    }

    fn apply_entry(&mut self, key: &Key, stored: Option<StoredEntry>, watches: &Watches) -> Trace {
        let old = self.handle(key);
        let mut trace = Trace { parents: Vec::new(), chain: false };
        // Of an entry with dependants only what they depend on matters for them.
        let same_links = match (old, &stored) {
            (Some(handle), Some(stored)) => self.has_links_of(handle, stored),
            _ => false,
        };
        if let Some(handle) = old {
            self.mark(handle, same_links, watches, &mut trace);
            self.remove(handle);
        }
        if let Some(stored) = stored {
            let handle = self.insert(&stored);
            self.mark(handle, same_links, watches, &mut trace);
        }
        trace
    }

    /// True if a new version of an entry has the same SPIFFE ID, parent, selectors and end.
    fn has_links_of(&self, handle: u32, stored: &StoredEntry) -> bool {
        let old = self.packed(handle);
        let new = &stored.entry.spec;
        self.ids.get(old.spiffe).id == new.spiffe_id
            && self.ids.get(old.parent).id == new.parent_id
            && old.expires_at == new.expires_at
            && self.selectors.set(old.selectors()) == new.selectors
    }

    fn mark(&self, handle: u32, same_links: bool, watches: &Watches, trace: &mut Trace) {
        let packed = self.packed(handle);
        let chain = !same_links && self.is_link(handle);
        trace.chain |= chain;
        trace.parents.push(self.ids.get(packed.parent).id.clone());
        if watches.is_empty() {
            return;
        }
        for watch in self.touched(handle, watches) {
            if chain {
                watch.mark_snapshot();
            } else if !self.is_alias(packed) {
                watch.mark_entry(&packed.key);
            }
        }
    }

    fn apply_node(&mut self, id: &SpiffeId, node: Option<Node>, watches: &Watches) {
        let open = watches.of(id);
        match node {
            None => {
                self.remove_node(id);
                self.promoted.remove(id);
                self.used.remove(id);
                open.iter().for_each(|watch| watch.end(EndReason::Evicted));
            }
            Some(node) => {
                let banned = node.serial == Serial::Banned;
                let before = self.node(id).map(|node| node.selectors);
                let moved = before.as_ref() != Some(&node.selectors);
                self.put_node(node);
                for watch in open {
                    if banned {
                        watch.end(EndReason::Banned);
                    } else if moved {
                        watch.mark_snapshot();
                    }
                }
            }
        }
    }

    /// Tells whom it concerns that entries and nodes have ended by `now`.
    pub(super) fn expire(&mut self, now: i64, watches: &Watches) {
        while let Some(&(ends, handle)) = self.ends.first()
            && ends <= now
        {
            self.ends.pop_first();
            let mut trace = Trace { parents: Vec::new(), chain: false };
            self.mark(handle, false, watches, &mut trace);
            let key = self.packed(handle).key.clone();
            let seq = self.cursor.position.seq;
            for parent in trace.parents {
                let what = if trace.chain { Recent::Chain } else { Recent::Expired(key.clone(), parent) };
                self.remember(seq, what);
            }
        }
        for agent in watches.agents() {
            if self.nodes.get(agent).is_some_and(|node| node.ends_at() <= now) {
                watches.of(agent).iter().for_each(|watch| watch.end(EndReason::Expired));
            }
        }
    }
}
