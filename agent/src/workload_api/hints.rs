//! One identity per hint: a workload picks by hint, so two with the same one would make the choice a matter of luck.

use std::collections::HashMap;

use crate::cache::AgentEntry;

/// Keeps, of the items whose entries share a hint, the one with the oldest entry (ties: the smaller entry id).
/// Entries without hint all stay, and so does the order.
pub(crate) fn unique<T>(items: impl IntoIterator<Item = T>, entry: impl Fn(&T) -> &AgentEntry) -> Vec<T> {
    let items: Vec<T> = items.into_iter().collect();
    let mut oldest: HashMap<&str, &AgentEntry> = HashMap::new();
    for entry in items.iter().map(&entry).filter(|entry| !entry.hint.is_empty()) {
        let kept = oldest.entry(&entry.hint).or_insert(entry);
        if (entry.created_at, &entry.id) < (kept.created_at, &kept.id) {
            *kept = entry;
        }
    }
    let stays = |item: &T| oldest.get(entry(item).hint.as_str()).is_none_or(|kept| kept.id == entry(item).id);
    let stay: Vec<bool> = items.iter().map(stays).collect();
    items.into_iter().zip(stay).filter_map(|(item, stays)| stays.then_some(item)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entries: &[(&str, &str, i64)], want: &[&str]) {
        let entries = entries.iter().map(|&(id, hint, created_at)| AgentEntry {
            hint: hint.into(),
            created_at,
            ..crate::testing::entry(id, "/web", &["a:1"])
        });
        let kept = unique(entries, |entry| entry);
        let ids: Vec<&str> = kept.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, want);
    }

    #[test]
    fn the_oldest_entry_keeps_the_hint() {
        check(&[], &[]);
        check(&[("a", "", 1), ("b", "", 2)], &["a", "b"]);
        check(&[("a", "x", 2), ("b", "x", 1), ("c", "y", 9)], &["b", "c"]);
        check(&[("b", "x", 1), ("a", "x", 1)], &["a"]);
        check(&[("a", "x", 3), ("b", "x", 2), ("c", "x", 1), ("d", "", 1)], &["c", "d"]);
    }
}
