//! Relationships, and bundles that were fetched.

use svid_core::federation::{EndpointProfile, Relationship};

use super::*;

fn relationship(url: &str, profile: EndpointProfile) -> Relationship {
    Relationship { trust_domain: other(), url: url.parse().unwrap(), profile }
}

fn web() -> Relationship {
    relationship("https://other.org:8443/bundle", EndpointProfile::Web)
}

fn spiffe() -> Relationship {
    let id = SpiffeId::from_parts("third.org", "/endpoint").unwrap();
    relationship("https://10.0.0.1", EndpointProfile::Spiffe(id))
}

/// What the log's lines after `cursor` say of relationships, and where it ends.
async fn federation_lines(store: &Store, cursor: Cursor) -> (Vec<String>, Vec<Option<Relationship>>, Cursor) {
    let Changes::Lines { cursor, lines, rows } = store.changes_after(cursor).await.unwrap() else {
        panic!("reload")
    };
    let names = lines.into_iter().filter(|line| line.kind == Kind::Federation).map(|line| line.key);
    let rows = rows.relationships.into_iter().map(|(_, row)| row.map(|stored| stored.relationship));
    (names.collect(), rows.collect(), cursor)
}

/// Conformance: FED-74, FED-77.
pub(super) async fn relationships_come_and_go(store: Store) {
    let start = store.load(&mut Count::default()).await.unwrap();
    let bundle = Bundle { x509_authorities: vec![root()], ..Bundle::empty(other()) };
    let created = store.create_relationship(spiffe(), Some(bundle.clone())).await.unwrap();
    assert_eq!(created.relationship, spiffe());
    assert_eq!(store.bundle(&other()).await.unwrap().unwrap(), bundle);
    assert!(matches!(store.create_relationship(web(), None).await, Err(StoreError::AlreadyExists(_))));
    let mut own = web();
    own.trust_domain = td();
    assert!(matches!(store.create_relationship(own.clone(), None).await, Err(StoreError::Conflict(_))));
    let (names, rows, cursor) = federation_lines(&store, start).await;
    assert_eq!((names, rows), (vec!["other.org".to_owned()], vec![Some(spiffe())]));

    let url_only = RelationshipMask { url: true, profile: false };
    let changed = store.update_relationship(web(), url_only, None).await.unwrap().relationship;
    assert_eq!((changed.url, changed.profile), (web().url, spiffe().profile));
    let all = RelationshipMask { url: true, profile: true };
    assert_eq!(store.update_relationship(web(), all, None).await.unwrap().relationship, web());
    own.trust_domain = "no.org".parse().unwrap();
    assert!(matches!(store.update_relationship(own, all, None).await, Err(StoreError::NotFound(_))));

    let mut far = spec("/far");
    far.federates_with = vec![other()];
    store.create_entries(vec![item(Some("far"), far)], 1).await.remove(0).unwrap();
    assert_eq!(store.delete_relationship(&other(), false).await.unwrap(), Withdrawn::default());
    assert!(store.bundle(&other()).await.unwrap().is_some());
    store.create_relationship(web(), None).await.unwrap();
    let withdrawn = store.delete_relationship(&other(), true).await.unwrap();
    assert_eq!(withdrawn, Withdrawn { bundle: true, entries: 1 });
    assert!(store.bundle(&other()).await.unwrap().is_none());
    assert!(matches!(store.delete_relationship(&other(), true).await, Err(StoreError::NotFound(_))));
    let update = UpdateEntry { id: "far".parse().unwrap(), patch: EntryPatch::default() };
    assert!(store.update_entries(vec![update]).await.remove(0).unwrap().spec.federates_with.is_empty());
    let (names, rows, _) = federation_lines(&store, cursor).await;
    assert_eq!((names.len(), rows), (5, vec![None]));
}

fn fetched(sequence: Option<u64>, roots: &[X509Authority]) -> FetchedBundle {
    let bundle = Bundle {
        sequence_number: sequence.unwrap_or_default(),
        x509_authorities: roots.to_vec(),
        ..Bundle::empty(other())
    };
    FetchedBundle { bundle, has_sequence: sequence.is_some(), fetched_for: None, force: false, now: 1000 }
}

/// Conformance: FED-09, FED-10, FED-11, FED-13, TDB-10, TDB-16 (bs-01 to bs-08).
pub(super) async fn the_newest_bundle_stays(store: Store) {
    let (a, b) = (root(), root());
    let put = async |sequence, roots: &[X509Authority]| {
        store.store_fetched(fetched(sequence, roots)).await.unwrap()
    };
    let (new, same) = (Stored::Replaced { same_sequence: false }, Stored::Replaced { same_sequence: true });
    let (a, b) = ([a], [b]);
    assert_eq!(put(Some(5), &a).await, new);
    let head = store.head().await.unwrap();
    assert_eq!(put(Some(5), &a).await, Stored::Unchanged);
    assert_eq!(store.head().await.unwrap(), head, "nothing was written");
    assert_eq!(put(Some(6), &b).await, new);
    assert_eq!(put(Some(6), &a).await, same);
    assert_eq!(put(Some(4), &b).await, Stored::Older { offered: 4, known: 6 });
    assert_eq!(store.bundle(&other()).await.unwrap().unwrap().x509_authorities, a);
    assert_eq!(put(None, &b).await, new);
    assert_eq!(put(Some(1), &a).await, new);
    assert_eq!(put(Some(1 << 53), &a).await, new);
    assert_eq!(put(Some((1 << 53) + 1), &b).await, new);
    assert_eq!(put(Some(u64::MAX), &a).await, new);
    assert_eq!(put(Some(7), &a).await, Stored::Older { offered: 7, known: u64::MAX });
    let forced = FetchedBundle { force: true, ..fetched(Some(7), &a) };
    assert_eq!(store.store_fetched(forced).await.unwrap(), new);
    assert_eq!(put(Some(8), &[]).await, new);
    assert!(store.bundle(&other()).await.unwrap().unwrap().x509_authorities.is_empty());

    // What is set by hand has no number that counts, and holds until the endpoint says otherwise.
    let by_hand = Bundle { sequence_number: 100, ..fetched(None, &b).bundle };
    store.set_bundle(by_hand).await.unwrap();
    assert!(store.fetch_records().await.unwrap().is_empty());
    assert_eq!(put(Some(9), &a).await, new);
    let record = store.fetch_records().await.unwrap()[&other()];
    assert_eq!((record.sequence_number, record.fetched_at, record.confirmed_at), (Some(9), 1000, 1000));
    store.confirm_fetched(&other(), 1500).await.unwrap();
    assert_eq!(store.fetch_records().await.unwrap()[&other()].confirmed_at, 1000, "too soon to be noted");
    store.confirm_fetched(&other(), 2000).await.unwrap();
    assert_eq!(store.fetch_records().await.unwrap()[&other()].confirmed_at, 2000);

    let own = Bundle { trust_domain: td(), ..fetched(Some(9), &b).bundle };
    let own = FetchedBundle { bundle: own, ..fetched(Some(9), &b) };
    assert!(matches!(store.store_fetched(own).await, Err(StoreError::Conflict(_))));
}

/// A fetch that was under way when its relationship ended brings nothing back.
pub(super) async fn an_ended_relationship_gets_no_bundle(store: Store) {
    store.create_relationship(web(), None).await.unwrap();
    let late = |wanted| FetchedBundle { fetched_for: Some(wanted), ..fetched(Some(1), &[]) };
    assert_eq!(store.store_fetched(late(spiffe())).await.unwrap(), Stored::Ended);
    store.delete_relationship(&other(), true).await.unwrap();
    assert_eq!(store.store_fetched(late(web())).await.unwrap(), Stored::Ended);
    assert!(store.bundle(&other()).await.unwrap().is_none());
}

/// Conformance: TDB-09.
pub(super) async fn another_hint_is_another_document(store: Store) {
    store.append_bundle(&td(), vec![root()], Vec::new()).await.unwrap();
    let sequence = async || store.bundle(&td()).await.unwrap().unwrap().sequence_number;
    store.serve_hint(300).await.unwrap();
    let first = sequence().await;
    assert!(first > 0, "a document without a number says less");
    store.serve_hint(300).await.unwrap();
    assert_eq!(sequence().await, first);
    store.serve_hint(60).await.unwrap();
    assert_eq!(sequence().await, first + 1);
}
