use super::*;

fn td() -> TrustDomain {
    "example.org".parse().expect("valid")
}

fn wire(trust_domain: &str, path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: trust_domain.into(), path: path.into() }
}

#[track_caller]
fn says<T: std::fmt::Debug>(got: Result<T, ConvertError>, want: &str) {
    assert_eq!(got.expect_err(want).to_string(), want);
}

#[test]
fn kinds_of_ids_in_spires_words() {
    says(member_id(None, &td()), "request must specify SPIFFE ID");
    let other = wire("other.org", "/x");
    says(
        member_id(Some(&other), &td()),
        "\"spiffe://other.org/x\" is not a member of trust domain \"example.org\"",
    );
    let bare = wire("example.org", "");
    let text = "\"spiffe://example.org\" is not a workload in trust domain \"example.org\"; path is empty";
    says(workload_id(Some(&bare), &td()), text);
    let server = wire("example.org", "/spire/server");
    assert!(member_id(Some(&server), &td()).is_ok());
    let text = "\"spiffe://example.org/spire/server\" is not a workload in trust domain \"example.org\"; \
                path is in the reserved namespace";
    says(workload_id(Some(&server), &td()), text);
    let text = "\"spiffe://example.org/spire/server\" is not an agent in trust domain \"example.org\"; \
                path is not in the agent namespace";
    says(agent_id(Some(&server), &td()), text);
}

fn entry() -> types::Entry {
    types::Entry {
        spiffe_id: Some(wire("example.org", "/web")),
        parent_id: Some(wire("example.org", "/spire/agent/x509pop/a")),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1".into() }],
        ..Default::default()
    }
}

#[test]
fn entries() {
    let spec = EntryFields::spec_from_wire(&entry(), &td()).expect("valid");
    let stored =
        svid_core::entry::Entry { id: "x".parse().expect("valid"), spec, revision: 3, created_at: 4 };
    let mut back = entry_to_wire(&stored);
    assert_eq!((back.revision_number, back.created_at, back.id.as_str()), (3, 4, "x"));
    apply_entry_mask(&mut back, Some(&types::EntryMask { parent_id: true, ..Default::default() }));
    assert_eq!(back, types::Entry { id: "x".into(), parent_id: entry().parent_id, ..Default::default() });

    let without = |change: fn(&mut types::Entry)| {
        let mut entry = entry();
        change(&mut entry);
        EntryFields::spec_from_wire(&entry, &td())
    };
    says(without(|e| e.selectors.clear()), "selector list is empty");
    says(without(|e| e.parent_id = None), "invalid parent ID: request must specify SPIFFE ID");
    says(without(|e| e.hint = "x".repeat(1025)), "hint is too long, max length is 1024 characters");
    let mask = types::EntryMask { hint: true, ..Default::default() };
    let fields = EntryFields::from_wire(&types::Entry::default(), Some(&mask), &td()).expect("only the hint");
    assert_eq!(fields, EntryFields { hint: Some(String::new()), ..Default::default() });
}
