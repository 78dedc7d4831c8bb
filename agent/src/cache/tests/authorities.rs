//! What becomes of SVIDs, tokens and foreign bundles when authorities change.

use svid_core::bundle::JwtAuthority;
use zeroize::Zeroizing;

use super::*;
use crate::stored::Restored;

impl Fixture {
    fn set_own(&self, change: impl FnOnce(&mut Bundle)) {
        let mut bundle = Bundle::clone(&self.cache.bundles().borrow().own);
        change(&mut bundle);
        bundle.sequence_number += 1;
        self.cache.set_bundles(Some(bundle), Vec::new(), &[]);
    }

    /// Another authority is added, and signs from now on. Returns the one before.
    fn next_authority(&mut self) -> TestCa {
        let next = TestCa::new("example.org");
        self.set_own(|bundle| bundle.x509_authorities.extend(next.bundle().x509_authorities));
        std::mem::replace(&mut self.ca, next)
    }

    fn taint_first(&self) {
        self.set_own(|bundle| bundle.x509_authorities[0].tainted = true);
    }
}

fn jwt_key(kid: &str) -> JwtAuthority {
    JwtAuthority { key_id: kid.into(), public_key: [1, 2].into(), expires_at: 0, tainted: false }
}

fn many(count: usize) -> Vec<AgentEntry> {
    (0..count).map(|n| entry(&format!("{n:04}"), &format!("/{n}"), &[&format!("unix:uid:{n}")])).collect()
}

#[test]
fn svids_of_a_tainted_authority_are_replaced_without_delay() {
    let mut fixture = Fixture::new(10);
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"])], &[]);
    let mut subscription = fixture.subscribe(&["unix:uid:1"]);
    fixture.fetch(1000);
    let before = subscription.take().unwrap();
    fixture.next_authority();
    assert_eq!(subscription.take().unwrap().bundle.x509_authorities.len(), 2, "prepared, and public");
    assert!(fixture.fetch(1000).is_empty());
    fixture.taint_first();
    assert!(subscription.take().is_none(), "who holds it keeps it until the next one is there");
    assert!(fixture.subscribe(&["unix:uid:1"]).take().is_none(), "and nobody else gets it");
    assert_eq!(fixture.fetch(1000), ["a"]);
    let after = subscription.take().unwrap();
    assert!(!Arc::ptr_eq(&before.identities[0].x509, &after.identities[0].x509));
    assert!(fixture.subscribe(&["unix:uid:1"]).take().is_some());
    fixture.forward(20);
    fixture.cache.maintain();
    assert!(fixture.fetch(1000).is_empty(), "once is enough");
}

#[test]
fn an_authority_that_went_unseen_counts_as_tainted() {
    let mut fixture = Fixture::new(10);
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"])], &[]);
    fixture.fetch(1000);
    fixture.next_authority();
    fixture.set_own(|bundle| drop(bundle.x509_authorities.remove(0)));
    assert_eq!(fixture.fetch(1000), ["a"]);
}

#[test]
fn those_in_use_come_first_and_the_rest_in_batches() {
    let mut fixture = Fixture::new(1000);
    fixture.cache.apply(many(250), &[]);
    fixture.fetch(1000);
    let mut held = fixture.subscribe(&["unix:uid:249"]);
    held.take().unwrap();
    fixture.next_authority();
    fixture.taint_first();
    let first = fixture.fetch(1000);
    assert!(first.len() == 101 && first.contains(&"0249".to_owned()), "{first:?}");
    assert!(held.take().is_some());
    assert!(fixture.fetch(1000).is_empty());
    let put_off = (0..249).map(|n| format!("{n:04}")).find(|id| !first.contains(id)).unwrap();
    let uid = format!("unix:uid:{}", put_off.parse::<u32>().unwrap());
    let mut newcomer = fixture.subscribe(&[&uid]);
    assert!(newcomer.take().is_none());
    assert_eq!(fixture.fetch(1000), [put_off], "whoever asks does not wait for a turn");
    assert!(newcomer.take().is_some());
    fixture.forward(2);
    assert_eq!(fixture.fetch(1000).len(), 250 - 102);
}

#[test]
fn a_server_that_goes_on_with_a_tainted_authority_is_asked_ever_more_seldom() {
    let fixture = Fixture::new(10);
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"])], &[]);
    fixture.fetch(100_000);
    fixture.taint_first();
    assert_eq!(fixture.fetch(100_000), ["a"]);
    assert!(fixture.subscribe(&["unix:uid:1"]).take().is_some(), "there is none better");
    let mut pauses = Vec::new();
    while pauses.len() < 4 {
        let mut waited = 0;
        while fixture.fetch(100_000).is_empty() {
            fixture.forward(1);
            waited += 1;
        }
        pauses.push(waited);
    }
    assert_eq!(pauses, [5, 10, 20, 40]);
}

#[tokio::test]
async fn what_was_stored_before_the_taint_is_replaced_after_a_restart() {
    let mut before = Fixture::new(10);
    before.cache.apply(vec![entry("a", "/a", &["unix:uid:1"])], &[]);
    before.fetch(1000);
    let old = before.next_authority();
    let stored = before.cache.snapshot();
    let mut own = Bundle::clone(&stored.bundles.own);
    own.x509_authorities[0].tainted = true;
    let after = Fixture { cache: Cache::new(Arc::new(own), CacheOptions::default()), ..Fixture::new(10) };
    drop((before, old));
    let entries = stored.entries.into_iter().map(|(entry, svid)| (entry.id.clone(), (entry, svid)));
    after.cache.restore(Restored { entries: entries.collect(), ..Restored::default() });
    assert_eq!(after.cache.wanted(10).len(), 1);
}

#[test]
fn a_new_jwt_key_reaches_who_follows_bundles_and_leaves_others_alone() {
    let fixture = Fixture::new(10);
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"])], &[]);
    let mut subscription = fixture.subscribe(&["unix:uid:1"]);
    fixture.fetch(1000);
    let before = subscription.take().unwrap();
    before.x509_response.get_or_init(|| svid_proto::Encoded::from_bytes(Zeroizing::new(vec![1])));
    fixture.set_own(|bundle| bundle.jwt_authorities.push(jwt_key("k")));
    let after = subscription.take().unwrap();
    assert_eq!(after.bundle.jwt_authorities.len(), 1);
    assert_eq!((before.x509_revision, after.x509_response.get().is_some()), (after.x509_revision, true));
    fixture.set_own(|bundle| bundle.jwt_authorities[0].tainted = true);
    fixture.set_own(|bundle| bundle.x509_authorities[0].tainted = true);
    assert!(subscription.take().is_none(), "taints are the agent's business");
    fixture.set_own(|bundle| bundle.jwt_authorities.clear());
    assert!(subscription.take().unwrap().bundle.jwt_authorities.is_empty());
}

#[test]
fn tokens_of_a_tainted_key_are_dropped_and_not_taken_in_any_more() {
    use base64::Engine as _;
    let fixture = Fixture::new(10);
    let token = |kid: &str| {
        let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!(r#"{{"kid":"{kid}"}}"#));
        let id = "spiffe://example.org/a".parse().unwrap();
        let token = Zeroizing::new(format!("{header}.e30.x"));
        let svid = JwtSvid { token, id, issued_at: 0, expires_at: i64::MAX };
        Arc::new(KeptJwt { entry: "a".parse().unwrap(), audience: vec![kid.into()], svid })
    };
    let held = || fixture.cache.stats().jwt_svids;
    fixture.set_own(|bundle| bundle.jwt_authorities.extend([jwt_key("old"), jwt_key("new")]));
    fixture.cache.keep_jwt(token("old"));
    fixture.cache.keep_jwt(token("new"));
    assert_eq!(held(), 2);
    fixture.set_own(|bundle| bundle.jwt_authorities[0].tainted = true);
    assert_eq!(held(), 1);
    fixture.cache.keep_jwt(token("old"));
    assert_eq!(held(), 1, "signed before, arrived after");
    fixture.set_own(|bundle| drop(bundle.jwt_authorities.remove(1)));
    assert_eq!(held(), 0, "revoked while the agent did not look");
}

/// TDB 4.2: what is no longer federated is withdrawn.
#[test]
fn foreign_bundles_change_and_go_at_once() {
    let fixture = Fixture::new(10);
    let partner = TestCa::new("partner.example");
    let name = partner.trust_domain.clone();
    let mut federating = entry("a", "/a", &["unix:uid:1"]);
    federating.federates_with = vec![name.clone()];
    let other = entry("b", "/b", &["unix:uid:2"]);
    fixture.cache.apply(vec![federating.clone(), other.clone()], &[]);
    fixture.cache.set_bundles(None, vec![partner.bundle()], &[]);
    let mut subscription = fixture.subscribe(&["unix:uid:1"]);
    let mut stranger = fixture.subscribe(&["unix:uid:2"]);
    fixture.fetch(1000);
    assert_eq!(subscription.take().unwrap().federated.len(), 1);
    assert!(stranger.take().unwrap().federated.is_empty());

    let mut changed = partner.bundle();
    changed.x509_authorities.extend(TestCa::new("partner.example").bundle().x509_authorities);
    fixture.cache.set_bundles(None, vec![changed.clone()], &[]);
    assert_eq!(subscription.take().unwrap().federated[&name].x509_authorities.len(), 2);
    changed.jwt_authorities.push(jwt_key("theirs"));
    fixture.cache.set_bundles(None, vec![changed], &[]);
    assert_eq!(subscription.take().unwrap().federated[&name].jwt_authorities.len(), 1);

    fixture.cache.set_bundles(None, Vec::new(), std::slice::from_ref(&name));
    assert!(subscription.take().unwrap().federated.is_empty(), "the server has none any more");
    assert!(fixture.cache.bundles().borrow().get(&name).is_none());

    fixture.cache.set_bundles(None, vec![partner.bundle()], &[]);
    assert_eq!(subscription.take().unwrap().federated.len(), 1);
    let mut alone = federating.clone();
    alone.federates_with.clear();
    fixture.cache.apply(vec![alone], &[]);
    assert!(subscription.take().unwrap().federated.is_empty(), "the entry no longer federates");
    assert!(fixture.cache.bundles().borrow().get(&name).is_none());
    fixture.cache.apply(vec![federating], &[]);
    assert!(
        fixture.cache.current(&selectors(&["unix:uid:1"])).federated.is_empty(),
        "what was is not known to be"
    );
    assert!(stranger.take().is_none(), "none of this concerns others");
}
