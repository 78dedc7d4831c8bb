//! Counted slots by key: at most so many at once for one user or one address.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Hands out at most `limit` slots per key.
#[derive(Debug)]
pub struct Caps<K: Eq + Hash> {
    limit: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash> Clone for Caps<K> {
    fn clone(&self) -> Self {
        Self { limit: self.limit, taken: Arc::clone(&self.taken) }
    }
}

/// One taken slot; dropping it gives it back.
#[derive(Debug)]
pub struct Slot<K: Eq + Hash> {
    key: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> Caps<K> {
    /// At most `limit` slots for each key.
    pub fn new(limit: usize) -> Self {
        Self { limit, taken: Arc::default() }
    }

    /// A slot for `key`, or `None` when all are taken.
    pub fn acquire(&self, key: K) -> Option<Slot<K>> {
        self.acquire_leaving(key, 0)
    }

    /// A slot for `key`, or `None` when no more than `reserve` are left.
    pub fn acquire_leaving(&self, key: K, reserve: usize) -> Option<Slot<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.get(&key).copied().unwrap_or_default();
        if count >= self.limit.saturating_sub(reserve) {
            return None;
        }
        taken.insert(key.clone(), count + 1);
        Some(Slot { key, taken: Arc::clone(&self.taken) })
    }
}

impl<K: Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Caps;

    #[test]
    fn counts_by_key() {
        let caps = Caps::new(2);
        let first = caps.acquire("a").unwrap();
        let _second = caps.acquire("a").unwrap();
        assert!(caps.acquire("a").is_none());
        assert!(caps.acquire("b").is_some());
        drop(first);
        assert!(caps.acquire("a").is_some());
        assert_eq!(caps.taken.lock().unwrap().len(), 1);
    }

    #[test]
    fn some_are_kept_for_others() {
        let caps = Caps::new(2);
        let _first = caps.acquire_leaving((), 1).unwrap();
        assert!(caps.acquire_leaving((), 1).is_none());
        assert!(caps.acquire(()).is_some());
        assert!(Caps::new(1).acquire_leaving((), 2).is_none());
    }
}
