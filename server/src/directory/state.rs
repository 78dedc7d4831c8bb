//! The state itself: entries in a slab with their indexes, nodes, bundles, and the last lines of the log.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use svid_core::bundle::Bundle;
use svid_core::entry::Entry;
use svid_core::id::{SpiffeId, TrustDomain};

use super::EndReason;
use super::intern::{Domains, Ids, Selectors};
use super::packed::{Key, Packed};
use crate::store::{Cursor, LoadSink, Node, Position, Serial, StoredEntry, StoredRelationship};

/// Lines that are remembered for agents that come back: beyond them they get a snapshot.
const MAX_RECENT: usize = 8192;

/// What a remembered line was about.
pub(super) enum Recent {
    /// An entry was created, changed or deleted; with the parents it had and has.
    Entry(Key, Vec<SpiffeId>),
    /// An entry's time came: no line of the log, so it counts for readers who stood at this very position, too.
    Expired(Key, SpiffeId),
    /// A chain of parents or an alias changed: whoever missed it needs a snapshot.
    Chain,
    /// A node changed.
    Node(SpiffeId),
    /// A bundle changed.
    Bundle(TrustDomain),
}

/// A node as it is kept.
pub(super) struct NodeSlot {
    pub(super) row: u64,
    pub(super) attestation_type: Arc<str>,
    pub(super) serial: Serial,
    pub(super) expires_at: i64,
    pub(super) can_reattest: bool,
    pub(super) agent_version: Box<str>,
    /// Numbers of selectors, sorted.
    pub(super) selectors: Box<[u32]>,
    /// The current certificate was seen in use.
    pub(super) used: bool,
    pub(super) suspected_at: i64,
    pub(super) adopt_from: i64,
}

impl NodeSlot {
    /// When the last of its certificates ends.
    pub(super) fn ends_at(&self) -> i64 {
        match &self.serial {
            Serial::Active { next: Some((_, ends)), .. } => self.expires_at.max(*ends),
            _ => self.expires_at,
        }
    }

    pub(super) fn is_current(&self, serial: &str) -> bool {
        matches!(&self.serial, Serial::Active { current, .. } if current == serial)
    }

    /// Makes `serial` the current one if it is the next one.
    pub(super) fn promote(&mut self, serial: &str) -> bool {
        let Serial::Active { current, next } = &mut self.serial else { return false };
        match next.take_if(|(next, _)| next == serial) {
            Some((next, ends)) => {
                *current = next;
                self.expires_at = ends;
                self.used = true;
                self.adopt_from = 0;
                true
            }
            None => false,
        }
    }
}

pub(super) struct State {
    pub(super) cursor: Cursor,
    pub(super) ids: Ids,
    pub(super) selectors: Selectors,
    pub(super) domains: Domains,
    /// The server's own ID: the parent of node aliases.
    pub(super) server: u32,
    slab: Vec<Option<Packed>>,
    free: Vec<u32>,
    by_uuid: HashMap<[u8; 16], u32>,
    by_text: HashMap<Arc<str>, u32>,
    pub(super) by_row: BTreeMap<u64, u32>,
    /// Entries that end, by when.
    pub(super) ends: BTreeSet<(i64, u32)>,
    pub(super) nodes: HashMap<SpiffeId, NodeSlot>,
    pub(super) nodes_by_row: BTreeMap<u64, SpiffeId>,
    /// The few names that nodes share.
    attestors: HashSet<Arc<str>>,
    pub(super) bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    pub(super) relationships: BTreeMap<TrustDomain, StoredRelationship>,
    /// Promotions that hold in memory and are not in the database yet.
    pub(super) promoted: HashMap<SpiffeId, String>,
    /// Current serial numbers that were seen in use, which is not in the database yet.
    pub(super) used: HashMap<SpiffeId, String>,
    pub(super) recent: VecDeque<(u64, Recent)>,
    /// `recent` is complete from here on, exclusive.
    pub(super) recent_from: u64,
}

impl State {
    pub(super) fn new(trust_domain: &TrustDomain) -> Self {
        let mut ids = Ids::new();
        let server = ids.intern(&trust_domain.server_id());
        ids.get_mut(server).pinned = true;
        Self {
            cursor: Cursor { position: Position { epoch: [0; 16], seq: 0 }, tag: None },
            ids,
            selectors: Selectors::new(),
            domains: Domains::default(),
            server,
            slab: Vec::new(),
            free: Vec::new(),
            by_uuid: HashMap::new(),
            by_text: HashMap::new(),
            by_row: BTreeMap::new(),
            ends: BTreeSet::new(),
            nodes: HashMap::new(),
            nodes_by_row: BTreeMap::new(),
            attestors: HashSet::new(),
            bundles: BTreeMap::new(),
            relationships: BTreeMap::new(),
            promoted: HashMap::new(),
            used: HashMap::new(),
            recent: VecDeque::new(),
            recent_from: 0,
        }
    }

    /// Sets where the log stands after loading.
    pub(super) fn loaded(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.recent.clear();
        self.recent_from = cursor.position.seq;
    }

    pub(super) fn remember(&mut self, seq: u64, what: Recent) {
        self.recent.push_back((seq, what));
        if self.recent.len() > MAX_RECENT
            && let Some((seq, _)) = self.recent.pop_front()
        {
            self.recent_from = seq;
        }
    }

    // ---- entries

    pub(super) fn handle(&self, key: &Key) -> Option<u32> {
        match key {
            Key::Uuid(bytes) => self.by_uuid.get(bytes).copied(),
            Key::Text(text) => self.by_text.get(text).copied(),
        }
    }

    pub(super) fn packed(&self, handle: u32) -> &Packed {
        self.slab[handle as usize].as_ref().expect("indexes hold live handles only")
    }

    pub(super) fn unpack(&self, handle: u32) -> Entry {
        self.packed(handle).unpack(&self.ids, &self.selectors, &self.domains)
    }

    pub(super) fn entry_count(&self) -> usize {
        self.by_row.len()
    }

    pub(super) fn is_alias(&self, packed: &Packed) -> bool {
        packed.parent == self.server
    }

    /// Adds an entry whose ID is not there.
    pub(super) fn insert(&mut self, stored: &StoredEntry) -> u32 {
        let packed =
            Packed::new(stored.row, &stored.entry, &mut self.ids, &mut self.selectors, &mut self.domains);
        let handle = match self.free.pop() {
            Some(handle) => handle,
            None => {
                self.slab.push(None);
                u32::try_from(self.slab.len() - 1).expect("entries are counted in u32")
            }
        };
        self.ids.get_mut(packed.spiffe).holders.push(handle);
        self.ids.get_mut(packed.parent).children.push(handle);
        match &packed.key {
            Key::Uuid(bytes) => self.by_uuid.insert(*bytes, handle),
            Key::Text(text) => self.by_text.insert(text.clone(), handle),
        };
        self.by_row.insert(packed.row, handle);
        if packed.expires_at != 0 {
            self.ends.insert((packed.expires_at, handle));
        }
        if self.is_alias(&packed)
            && let Some(number) = self.alias_selector(&packed)
        {
            self.selectors.get_mut(number).aliases.push(handle);
        }
        self.slab[handle as usize] = Some(packed);
        handle
    }

    /// The one selector through which an alias entry is found: its last-numbered, which is the least shared as a rule.
    fn alias_selector(&self, packed: &Packed) -> Option<u32> {
        packed.selectors().last().copied()
    }

    /// Removes an entry from the slab and every index.
    pub(super) fn remove(&mut self, handle: u32) {
        let Some(packed) = self.slab[handle as usize].take() else { return };
        self.free.push(handle);
        match &packed.key {
            Key::Uuid(bytes) => self.by_uuid.remove(bytes),
            Key::Text(text) => self.by_text.remove(text),
        };
        self.by_row.remove(&packed.row);
        self.ends.remove(&(packed.expires_at, handle));
        if self.is_alias(&packed)
            && let Some(number) = self.alias_selector(&packed)
        {
            self.selectors.get_mut(number).aliases.remove(handle);
        }
        self.selectors.release_all(&packed.selectors());
        self.ids.get_mut(packed.spiffe).holders.remove(handle);
        self.ids.get_mut(packed.parent).children.remove(handle);
        self.ids.release(packed.spiffe);
        if packed.parent != packed.spiffe {
            self.ids.release(packed.parent);
        }
    }

    // ---- nodes

    /// Adds or replaces a node.
    pub(super) fn put_node(&mut self, node: Node) {
        self.remove_node(&node.id);
        let attestation_type = self.attestor(node.attestation_type);
        let mut slot = NodeSlot {
            row: node.row,
            attestation_type,
            serial: node.serial,
            expires_at: node.expires_at,
            can_reattest: node.can_reattest,
            agent_version: node.agent_version.into(),
            selectors: self.selectors.acquire(&node.selectors),
            used: node.used,
            suspected_at: node.suspected_at,
            adopt_from: node.adopt_from,
        };
        // The row is older than the promotion if it still has that serial as its next one.
        if let Some(serial) = self.promoted.get(&node.id)
            && !slot.promote(serial)
        {
            self.promoted.remove(&node.id);
        }
        slot.used |= self.used.get(&node.id).is_some_and(|serial| slot.is_current(serial));
        self.nodes_by_row.insert(node.row, node.id.clone());
        self.nodes.insert(node.id, slot);
    }

    fn attestor(&mut self, name: String) -> Arc<str> {
        if let Some(known) = self.attestors.get(name.as_str()) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.attestors.insert(name.clone());
        name
    }

    pub(super) fn remove_node(&mut self, id: &SpiffeId) {
        if let Some(slot) = self.nodes.remove(id) {
            self.nodes_by_row.remove(&slot.row);
            self.selectors.release_all(&slot.selectors);
        }
    }

    /// Why an agent may not be served any more, if so.
    pub(super) fn end_reason(&self, agent: &SpiffeId) -> Option<EndReason> {
        match self.nodes.get(agent).map(|node| &node.serial) {
            None => Some(EndReason::Evicted),
            Some(Serial::Banned) => Some(EndReason::Banned),
            Some(Serial::Active { .. }) => None,
        }
    }

    pub(super) fn node(&self, id: &SpiffeId) -> Option<Node> {
        let slot = self.nodes.get(id)?;
        Some(Node {
            row: slot.row,
            id: id.clone(),
            attestation_type: slot.attestation_type.to_string(),
            serial: slot.serial.clone(),
            expires_at: slot.expires_at,
            can_reattest: slot.can_reattest,
            agent_version: slot.agent_version.to_string(),
            selectors: self.selectors.set(slot.selectors.iter().copied()),
            used: slot.used,
            suspected_at: slot.suspected_at,
            adopt_from: slot.adopt_from,
        })
    }
}

impl LoadSink for State {
    fn expect(&mut self, entries: usize, nodes: usize) {
        self.slab.reserve(entries);
        self.by_uuid.reserve(entries);
        self.ids.reserve(entries);
        self.nodes.reserve(nodes);
    }

    fn bundle(&mut self, bundle: Bundle) {
        self.bundles.insert(bundle.trust_domain.clone(), Arc::new(bundle));
    }

    fn relationship(&mut self, stored: StoredRelationship) {
        self.relationships.insert(stored.relationship.trust_domain.clone(), stored);
    }

    fn node(&mut self, node: Node) {
        self.put_node(node);
    }

    fn entry(&mut self, entry: StoredEntry) {
        self.insert(&entry);
    }
}
