//! What an agent may serve, worked out from all entries: for servers that cannot be asked.

use std::collections::{BTreeMap, BTreeSet};

use svid_proto::spire::api::types::{Entry, Selector, Spiffeid};

use crate::entries::id;

const SERVER_PATH: &str = "/spire/server";

/// The entries below the agent: its children, those of the aliases that its selectors give it, and theirs.
/// Expired entries are left out.
pub fn entries(all: Vec<Entry>, agent: &Spiffeid, selectors: &[Selector], now: i64) -> Vec<Entry> {
    let own: BTreeSet<(&str, &str)> =
        selectors.iter().map(|one| (one.r#type.as_str(), one.value.as_str())).collect();
    let server = format!("spiffe://{}{SERVER_PATH}", agent.trust_domain);
    let mut parents = vec![id(Some(agent))];
    let mut by_parent: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in all.into_iter().filter(|entry| entry.expires_at == 0 || entry.expires_at > now) {
        let parent = id(entry.parent_id.as_ref());
        let mut of_entry = entry.selectors.iter().map(|one| (one.r#type.as_str(), one.value.as_str()));
        if parent == server && !entry.selectors.is_empty() && of_entry.all(|one| own.contains(&one)) {
            parents.push(id(entry.spiffe_id.as_ref()));
        }
        by_parent.entry(parent).or_default().push(entry);
    }
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        // Taken out, so that a circle of entries ends.
        for entry in by_parent.remove(&parent).unwrap_or_default() {
            parents.push(id(entry.spiffe_id.as_ref()));
            found.push(entry);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(path: &str) -> Spiffeid {
        Spiffeid { trust_domain: "example.org".into(), path: path.into() }
    }

    fn selector(value: &str) -> Selector {
        Selector { r#type: "x509pop".into(), value: value.into() }
    }

    fn entry(name: &str, parent: &str, selectors: &[&str], expires_at: i64) -> Entry {
        Entry {
            id: name.into(),
            spiffe_id: Some(id_of(&format!("/{name}"))),
            parent_id: Some(id_of(parent)),
            selectors: selectors.iter().map(|one| selector(one)).collect(),
            expires_at,
            ..Entry::default()
        }
    }

    #[test]
    fn children_aliases_and_circles() {
        let all = vec![
            entry("child", "/spire/agent/a", &["x"], 0),
            entry("grandchild", "/child", &["x"], 0),
            entry("circle", "/grandchild", &["x"], 0),
            entry("child", "/circle", &["x"], 0),
            entry("over", "/spire/agent/a", &["x"], 99),
            entry("alias", SERVER_PATH, &["one", "two"], 0),
            entry("by-alias", "/alias", &["x"], 0),
            entry("not-mine", SERVER_PATH, &["one", "three"], 0),
            entry("not-mine-either", "/not-mine", &["x"], 0),
            entry("other", "/spire/agent/b", &["x"], 0),
        ];
        let agent = id_of("/spire/agent/a");
        let own = ["one", "two", "four"].map(selector);
        let mut names: Vec<_> = entries(all, &agent, &own, 100).into_iter().map(|entry| entry.id).collect();
        names.sort();
        assert_eq!(names, ["by-alias", "child", "child", "circle", "grandchild"]);
    }
}
