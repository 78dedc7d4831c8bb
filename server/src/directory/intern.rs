//! Small numbers for what repeats: SPIFFE IDs, selectors, trust domains. Lists of entries are lists of u32.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::selector::{Selector, SelectorSet};

/// A list of entry handles. Most have one member, so that one costs no allocation.
#[derive(Default)]
pub(super) enum Postings {
    #[default]
    None,
    One(u32),
    #[allow(clippy::box_collection)] // 16 bytes instead of 24, many times over
    Many(Box<Vec<u32>>),
}

impl Postings {
    pub(super) fn push(&mut self, handle: u32) {
        match self {
            Self::None => *self = Self::One(handle),
            Self::One(first) => *self = Self::Many(Box::new(vec![*first, handle])),
            Self::Many(all) => all.push(handle),
        }
    }

    pub(super) fn remove(&mut self, handle: u32) {
        match self {
            Self::One(only) if *only == handle => *self = Self::None,
            Self::None | Self::One(_) => {}
            Self::Many(all) => {
                if let Some(at) = all.iter().position(|member| *member == handle) {
                    all.swap_remove(at);
                }
                if all.is_empty() {
                    *self = Self::None;
                }
            }
        }
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(all) => all,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// What hangs on a number.
pub(super) trait Slot<K> {
    fn new(key: K) -> Self;
    fn key(&self) -> &K;
    /// True if nothing refers to it any more.
    fn is_unused(&self) -> bool;
}

/// Numbers for keys. A number is given back once its slot is unused.
pub(super) struct Interner<K, S> {
    slots: Vec<S>,
    numbers: HashMap<K, u32>,
    free: Vec<u32>,
}

impl<K: Clone + Eq + Hash, S: Slot<K>> Interner<K, S> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), numbers: HashMap::new(), free: Vec::new() }
    }

    pub(super) fn reserve(&mut self, count: usize) {
        self.slots.reserve(count);
        self.numbers.reserve(count);
    }

    pub(super) fn intern(&mut self, key: &K) -> u32 {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let slot = S::new(key.clone());
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                u32::try_from(self.slots.len() - 1).expect("entries and nodes are counted in u32")
            }
        };
        self.numbers.insert(key.clone(), number);
        number
    }

    pub(super) fn get(&self, number: u32) -> &S {
        &self.slots[number as usize]
    }

    pub(super) fn get_mut(&mut self, number: u32) -> &mut S {
        &mut self.slots[number as usize]
    }

    /// Gives the number back if nothing refers to it.
    pub(super) fn release(&mut self, number: u32) {
        let slot = &self.slots[number as usize];
        if slot.is_unused() && self.numbers.remove(slot.key()).is_some() {
            self.free.push(number);
        }
    }
}

impl<K: Eq + Hash, S> Interner<K, S> {
    pub(super) fn find<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<u32>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.numbers.get(key).copied()
    }
}

/// A SPIFFE ID and the entries around it.
pub(super) struct IdSlot {
    pub(super) id: SpiffeId,
    /// Entries whose parent it is.
    pub(super) children: Postings,
    /// Entries whose SPIFFE ID it is.
    pub(super) holders: Postings,
    /// Not to be given back: the server's own ID.
    pub(super) pinned: bool,
}

impl Slot<SpiffeId> for IdSlot {
    fn new(id: SpiffeId) -> Self {
        Self { id, children: Postings::None, holders: Postings::None, pinned: false }
    }
    fn key(&self) -> &SpiffeId {
        &self.id
    }
    fn is_unused(&self) -> bool {
        self.children.is_empty() && self.holders.is_empty() && !self.pinned
    }
}

/// A selector as `type:value`: a type has no colon, so the text says both parts.
pub(super) struct SelectorSlot {
    text: Arc<str>,
    /// Entries and nodes that have it.
    pub(super) uses: u32,
    /// Alias entries that are found through it (each through one of its selectors).
    pub(super) aliases: Postings,
}

impl Slot<Arc<str>> for SelectorSlot {
    fn new(text: Arc<str>) -> Self {
        Self { text, uses: 0, aliases: Postings::None }
    }
    fn key(&self) -> &Arc<str> {
        &self.text
    }
    fn is_unused(&self) -> bool {
        self.uses == 0 && self.aliases.is_empty()
    }
}

pub(super) type Ids = Interner<SpiffeId, IdSlot>;
pub(super) type Selectors = Interner<Arc<str>, SelectorSlot>;

impl Selectors {
    /// Numbers for a set, sorted; each is used once more.
    pub(super) fn acquire(&mut self, set: &SelectorSet) -> Box<[u32]> {
        let mut numbers: Vec<u32> =
            set.iter().map(|selector| self.intern(&selector.to_string().into())).collect();
        numbers.sort_unstable();
        for number in &numbers {
            self.get_mut(*number).uses += 1;
        }
        numbers.into_boxed_slice()
    }

    pub(super) fn release_all(&mut self, numbers: &[u32]) {
        for number in numbers {
            self.get_mut(*number).uses -= 1;
            self.release(*number);
        }
    }

    pub(super) fn set(&self, numbers: impl IntoIterator<Item = u32>) -> SelectorSet {
        numbers.into_iter().filter_map(|number| self.get(number).text.parse::<Selector>().ok()).collect()
    }
}

/// Trust domains that entries federate with. There are as many as bundles, so numbers are never given back.
#[derive(Default)]
pub(super) struct Domains(Vec<TrustDomain>);

impl Domains {
    pub(super) fn intern(&mut self, domain: &TrustDomain) -> u32 {
        let at = self.0.iter().position(|known| known == domain).unwrap_or_else(|| {
            self.0.push(domain.clone());
            self.0.len() - 1
        });
        at as u32
    }

    pub(super) fn get(&self, number: u32) -> &TrustDomain {
        &self.0[number as usize]
    }
}
