#![allow(clippy::unwrap_used)]

mod authorities;

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::testing::{TestCa, entry, selectors};

struct Fixture {
    cache: Cache,
    ca: TestCa,
    seconds: Arc<AtomicU64>,
}

impl Fixture {
    fn new(max: usize) -> Self {
        let ca = TestCa::new("example.org");
        let seconds = Arc::new(AtomicU64::new(0));
        let (start, offset) = (SystemTime::now(), Arc::clone(&seconds));
        let clock = Clock::from_fn(move || start + Duration::from_secs(offset.load(Ordering::Relaxed)));
        let options = CacheOptions { x509_svid_cache_max_size: max, clock, ..CacheOptions::default() };
        Self { cache: Cache::new(Arc::new(ca.bundle()), options), ca, seconds }
    }

    fn forward(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Does what the fetching task does, once; returns the ids that were asked for.
    fn fetch(&self, ttl: u64) -> Vec<String> {
        let wanted = self.cache.wanted(500);
        let ids = wanted.iter().map(|entry| entry.id.to_string()).collect();
        let now = self.cache.0.options.clock.now();
        let mint = |entry: Arc<AgentEntry>| Minted {
            identity: Some(self.ca.identity(&entry.spiffe_id, Duration::from_secs(ttl), now)),
            entry,
        };
        self.cache.store(wanted.into_iter().map(mint).collect());
        ids
    }

    fn subscribe(&self, texts: &[&str]) -> Subscription {
        self.cache.subscribe(Arc::new(selectors(texts)))
    }
}

fn ids(update: &Arc<WorkloadUpdate>) -> Vec<String> {
    update.identities.iter().map(|identity| identity.entry.id.to_string()).collect()
}

#[tokio::test]
async fn the_first_update_waits_for_all_svids_and_is_sorted() {
    let fixture = Fixture::new(1000);
    let mut subscription = fixture.subscribe(&["unix:uid:1", "unix:gid:1"]);
    assert_eq!(ids(&subscription.next().await), Vec::<String>::new());
    fixture.cache.apply(vec![entry("b", "/b", &["unix:uid:1"]), entry("a", "/a", &["unix:gid:1"])], &[]);
    assert!(subscription.take().is_none());
    let mut late = fixture.subscribe(&["unix:uid:1", "unix:gid:1"]);
    assert!(late.take().is_none());
    assert_eq!(fixture.fetch(3600).len(), 2);
    assert_eq!(ids(&late.next().await), ["a", "b"]);
    assert_eq!(ids(&subscription.next().await), ["a", "b"]);
    let current = || fixture.cache.current(&selectors(&["unix:uid:1", "unix:gid:1"]));
    assert!(Arc::ptr_eq(&current(), &current()));
}

#[test]
fn matching_needs_every_selector() {
    let fixture = Fixture::new(1000);
    let mut store = entry("s", "/s", &["unix:uid:1"]);
    store.store_svid = true;
    fixture.cache.apply(
        vec![entry("a", "/a", &["unix:uid:1"]), entry("b", "/b", &["unix:uid:1", "unix:user:x"]), store],
        &[],
    );
    let matching = |texts: &[&str]| {
        let entries = fixture.cache.matching_entries(&selectors(texts));
        entries.iter().map(|entry| entry.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(matching(&["unix:uid:1"]), ["a"]);
    assert_eq!(matching(&["unix:uid:1", "unix:user:x", "unix:gid:3"]), ["a", "b"]);
    assert_eq!(matching(&["unix:user:x"]), Vec::<String>::new());
    assert_eq!(matching(&[]), Vec::<String>::new());
    assert_eq!(fixture.cache.stats().entries, 2);
}

#[test]
fn prefetch_stops_at_the_limit_and_leaves_out_who_wants_none() {
    let fixture = Fixture::new(2);
    let mut quiet = entry("0", "/quiet", &["unix:uid:9"]);
    quiet.disable_x509_svid_prefetch = true;
    let others = (1..5).map(|n| entry(&n.to_string(), &format!("/{n}"), &[&format!("unix:uid:{n}")]));
    fixture.cache.apply(others.chain([quiet]).collect(), &[]);
    assert_eq!(fixture.fetch(3600).len(), 2);
    assert!(fixture.fetch(3600).is_empty());
    let _subscription = fixture.subscribe(&["unix:uid:9"]);
    assert_eq!(fixture.fetch(3600), ["0"]);
    assert_eq!(fixture.cache.stats().x509_svids, 3);
}

#[test]
fn eviction_spares_subscribers_and_takes_the_longest_unused() {
    let fixture = Fixture::new(2);
    let many = (1..=4).map(|n| entry(&n.to_string(), &format!("/{n}"), &[&format!("unix:uid:{n}")]));
    fixture.cache.apply(many.collect(), &[]);
    let subscriptions: Vec<_> = (1..=4).map(|n| fixture.subscribe(&[&format!("unix:uid:{n}")])).collect();
    fixture.fetch(3600);
    fixture.cache.maintain();
    assert_eq!(fixture.cache.stats().x509_svids, 4);
    drop(subscriptions);
    fixture.cache.maintain();
    assert_eq!(fixture.cache.stats().x509_svids, 2);
    assert!(fixture.cache.svid_end(&"4".parse().unwrap()).is_some());
    let mut again = fixture.subscribe(&["unix:uid:1"]);
    assert!(again.take().is_none());
    assert_eq!(fixture.fetch(3600), ["1"]);
    assert!(again.take().is_some());
}

#[test]
fn renewal_keeps_the_old_svid_until_the_new_one_is_there() {
    let fixture = Fixture::new(10);
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"])], &[]);
    let mut subscription = fixture.subscribe(&["unix:uid:1"]);
    fixture.fetch(1000);
    let first = subscription.take().unwrap();
    assert!(fixture.fetch(1000).is_empty());
    fixture.forward(50);
    assert!(fixture.fetch(1000).is_empty());
    fixture.forward(40);
    assert_eq!(ids(&fixture.cache.current(&selectors(&["unix:uid:1"]))), ["a"]);
    assert_eq!(fixture.fetch(1000), ["a"]);
    let second = subscription.take().unwrap();
    assert!(first.revision != second.revision);
}

#[test]
fn nothing_is_served_past_its_end() {
    let fixture = Fixture::new(10);
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"])], &[]);
    let mut subscription = fixture.subscribe(&["unix:uid:1"]);
    fixture.fetch(100);
    assert!(subscription.take().is_some());
    drop(subscription);
    fixture.forward(100);
    assert!(ids(&fixture.cache.current(&selectors(&["unix:uid:1"]))).is_empty());
    assert!(fixture.subscribe(&["unix:uid:1"]).take().is_none());
    fixture.cache.maintain();
    assert_eq!(fixture.cache.stats().x509_svids, 0);
}

#[test]
fn removal_and_change_reach_subscribers() {
    let fixture = Fixture::new(10);
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"])], &[]);
    let mut subscription = fixture.subscribe(&["unix:uid:1"]);
    fixture.fetch(1000);
    subscription.take().unwrap();
    let mut other = entry("a", "/other", &["unix:uid:1"]);
    other.revision = 1;
    fixture.cache.apply(vec![other], &[]);
    assert!(subscription.take().is_none());
    assert!(ids(&fixture.cache.current(&selectors(&["unix:uid:1"]))).is_empty());
    assert_eq!(fixture.fetch(1000), ["a"]);
    assert_eq!(subscription.take().unwrap().identities[0].x509.svid.id().path(), "/other");
    fixture.cache.apply(Vec::new(), &["a".parse().unwrap()]);
    assert!(ids(&subscription.take().unwrap()).is_empty());
    assert_eq!(fixture.cache.stats(), CacheStats::default());
}

#[test]
fn one_refused_entry_does_not_starve_the_others() {
    let fixture = Fixture::new(10);
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"]), entry("b", "/b", &["unix:uid:1"])], &[]);
    let mut subscription = fixture.subscribe(&["unix:uid:1"]);
    let wanted = fixture.cache.wanted(500);
    let now = fixture.cache.0.options.clock.now();
    let mint = |entry: Arc<AgentEntry>| Minted {
        identity: (entry.id.as_str() == "a")
            .then(|| fixture.ca.identity(&entry.spiffe_id, Duration::from_secs(100), now)),
        entry,
    };
    fixture.cache.store(wanted.into_iter().map(mint).collect());
    assert_eq!(ids(&subscription.take().unwrap()), ["a"]);
    assert!(fixture.cache.wanted(500).is_empty());
    fixture.forward(1);
    assert_eq!(fixture.fetch(100), ["b"]);
    assert_eq!(ids(&subscription.take().unwrap()), ["a", "b"]);
}

/// Answers when told to, and counts how often it is asked.
#[derive(Default)]
struct SlowSource {
    asked: AtomicU64,
    go: Notify,
}

#[async_trait]
impl JwtSource for SlowSource {
    async fn fetch(&self, entry: &EntryId, _audience: &[String]) -> Result<JwtSvid, JwtFetchError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.go.notified().await;
        let id = format!("spiffe://example.org/{entry}").parse().unwrap();
        Ok(JwtSvid {
            token: zeroize::Zeroizing::new("e30.e30.x".into()),
            id,
            issued_at: 0,
            expires_at: i64::MAX,
        })
    }
}

#[tokio::test]
async fn equal_requests_for_a_jwt_svid_share_one_fetch() {
    let fixture = Fixture::new(10);
    let source = Arc::new(SlowSource::default());
    fixture.cache.set_jwt_source(Arc::clone(&source) as _);
    let (a, audience) = (entry("a", "/a", &["unix:uid:1"]), ["x".to_owned()]);
    let ask = || fixture.cache.jwt_svid(&a, &audience);
    let go = async {
        while source.asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        source.go.notify_one();
    };
    let (one, two, three, ()) = tokio::join!(ask(), ask(), ask(), go);
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    assert_eq!(source.asked.load(Ordering::Relaxed), 1);
    assert_eq!(fixture.cache.stats().jwt_svids, 1);
    // A fetch that everybody gave up on is no fetch that anybody joins.
    let other = ["y".to_owned()];
    assert!(fixture.cache.jwt_svid(&a, &other).now_or_never().is_none());
    source.go.notify_one();
    assert!(fixture.cache.jwt_svid(&a, &other).await.is_ok());
    assert_eq!(source.asked.load(Ordering::Relaxed), 3);
}

#[test]
fn metrics_show_what_is_held() {
    let metrics = Metrics::new(svid_daemon::metrics::MetricsOptions::default());
    let options = CacheOptions { metrics: metrics.clone(), ..CacheOptions::default() };
    let (ca, seconds) = (TestCa::new("example.org"), Arc::default());
    let fixture = Fixture { cache: Cache::new(Arc::new(ca.bundle()), options), ca, seconds };
    fixture.cache.apply(vec![entry("a", "/a", &["unix:uid:1"]), entry("b", "/b", &["unix:uid:2"])], &[]);
    fixture.fetch(1000);
    fixture.cache.apply(Vec::new(), &["b".parse().unwrap()]);
    let text = metrics.render();
    for line in [
        "_lru_cache_entry_add 2",
        "_lru_cache_entry_remove 1",
        "_lru_cache_record_map_size{svid_type=\"X509\"} 1",
        "_lru_cache_svid_map_size{svid_type=\"X509\"} 1",
    ] {
        assert!(text.lines().any(|got| got == line), "{line}\n{text}");
    }
}
