//! JWT-SVIDs by identity and audience: a hard limit, the longest unused one goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use futures_util::future::{BoxFuture, Shared};
use svid_core::entry::EntryId;
use svid_core::id::SpiffeId;
use svid_core::rotation::Life;

use super::types::{JwtFetchError, JwtSvid};

/// One request to the server.
pub(super) type Fetch = BoxFuture<'static, Result<JwtSvid, JwtFetchError>>;
/// The same, awaited by all who asked for the same.
pub(super) type Flight = Shared<Fetch>;

/// SHA-256 over the identity and the sorted audiences, each behind its length.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct JwtKey([u8; 32]);

impl JwtKey {
    pub(super) fn new(id: &SpiffeId, audience: &[String]) -> Self {
        let mut sorted: Vec<&str> = audience.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        let mut context = digest::Context::new(&digest::SHA256);
        for part in std::iter::once(id.as_str()).chain(sorted) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        Self(context.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes"))
    }
}

/// A JWT-SVID and how to get the next one.
#[derive(Clone, Debug)]
pub struct KeptJwt {
    /// The entry that it was asked for with.
    pub entry: EntryId,
    /// Whom it is for, as asked.
    pub audience: Vec<String>,
    /// The token.
    pub svid: JwtSvid,
}

impl KeptJwt {
    /// From its issue to its end.
    pub fn life(&self) -> Life {
        life(&self.svid)
    }

    fn key(&self) -> JwtKey {
        JwtKey::new(&self.svid.id, &self.audience)
    }
}

struct Slot {
    jwt: Arc<KeptJwt>,
    used: u64,
    /// The last time somebody asked for it or for what it replaced.
    asked: SystemTime,
    renew_at: SystemTime,
}

impl Slot {
    /// Asked for within the length of a life: it is renewed ahead.
    fn is_in_use(&self, now: SystemTime) -> bool {
        self.asked + self.jwt.life().length() > now
    }
}

/// What is there for a request.
pub(super) enum Lookup {
    /// Good for some time.
    Fresh(JwtSvid),
    /// Valid, but due for renewal.
    Ageing(JwtSvid),
    /// Nothing.
    Missing,
}

pub(super) struct JwtCache {
    slots: HashMap<JwtKey, Slot>,
    by_use: BTreeMap<u64, JwtKey>,
    tick: u64,
    max: usize,
}

impl JwtCache {
    pub(super) fn new(max: usize) -> Self {
        Self { slots: HashMap::new(), by_use: BTreeMap::new(), tick: 0, max: max.max(1) }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&mut self, key: &JwtKey, now: SystemTime) -> Lookup {
        self.tick += 1;
        let Some(slot) = self.slots.get_mut(key) else { return Lookup::Missing };
        let life = slot.jwt.life();
        if life.is_over(now) {
            let used = slot.used;
            self.by_use.remove(&used);
            self.slots.remove(key);
            return Lookup::Missing;
        }
        self.by_use.remove(&slot.used);
        slot.used = self.tick;
        slot.asked = now;
        self.by_use.insert(self.tick, *key);
        let svid = &slot.jwt.svid;
        match life.half(draw(svid)) <= now {
            true => Lookup::Ageing(svid.clone()),
            false => Lookup::Fresh(svid.clone()),
        }
    }

    /// Takes in a token. One that replaces another was not asked for by that.
    pub(super) fn insert(&mut self, jwt: Arc<KeptJwt>, now: SystemTime) {
        self.tick += 1;
        let key = jwt.key();
        let old = self.slots.remove(&key);
        if let Some(old) = &old {
            self.by_use.remove(&old.used);
        }
        let asked = old.map_or(now, |old| old.asked);
        let renew_at = jwt.life().renew_at(draw(&jwt.svid));
        self.slots.insert(key, Slot { jwt, used: self.tick, asked, renew_at });
        self.by_use.insert(self.tick, key);
        while self.slots.len() > self.max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.slots.remove(&oldest);
        }
    }

    /// All tokens.
    pub(super) fn all(&self) -> Vec<Arc<KeptJwt>> {
        self.slots.values().map(|slot| Arc::clone(&slot.jwt)).collect()
    }

    /// Those in use that are to be renewed at `now`; not again before `retry`. Tokens that are over go.
    pub(super) fn take_due(&mut self, now: SystemTime, retry: SystemTime) -> Vec<Arc<KeptJwt>> {
        self.slots.retain(|_, slot| !slot.jwt.life().is_over(now));
        let slots = &self.slots;
        self.by_use.retain(|_, key| slots.contains_key(key));
        let due = self.slots.values_mut().filter(|slot| slot.renew_at <= now && slot.is_in_use(now));
        due.map(|slot| {
            slot.renew_at = retry;
            Arc::clone(&slot.jwt)
        })
        .collect()
    }

    /// When the next token in use is to be renewed.
    pub(super) fn next_due(&self, now: SystemTime) -> Option<SystemTime> {
        self.slots.values().filter(|slot| slot.is_in_use(now)).map(|slot| slot.renew_at).min()
    }

    /// Drops the tokens that `is_tainted` says so of, by their key id. Returns how many.
    pub(super) fn remove_by_kid(&mut self, is_tainted: impl Fn(&str) -> bool) -> usize {
        let before = self.slots.len();
        self.slots.retain(|_, slot| !kid(&slot.jwt.svid.token).is_some_and(|kid| is_tainted(&kid)));
        let slots = &self.slots;
        self.by_use.retain(|_, key| slots.contains_key(key));
        before - self.slots.len()
    }
}

fn life(svid: &JwtSvid) -> Life {
    let at = |unix: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    Life { not_before: at(svid.issued_at), not_after: at(svid.expires_at) }
}

/// A number in 0..=1 that belongs to this token: its signature's end is as good as random.
fn draw(svid: &JwtSvid) -> f64 {
    let tail = svid.token.as_bytes().rchunks(8).next().unwrap_or_default();
    let sum = digest::digest(&digest::SHA256, tail);
    f64::from(sum.as_ref().first().copied().unwrap_or(0)) / 255.0
}

/// The `kid` in a token's header.
pub(super) fn kid(token: &str) -> Option<String> {
    use base64::Engine as _;
    let header = token.split('.').next()?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).ok()?;
    let header: serde_json::Value = serde_json::from_slice(&json).ok()?;
    Some(header.get("kid")?.as_str()?.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use zeroize::Zeroizing;

    fn at(unix: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix)
    }

    fn svid(kid: &str) -> JwtSvid {
        let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!(r#"{{"kid":"{kid}"}}"#));
        let id = "spiffe://example.org/web".parse().unwrap();
        JwtSvid { token: Zeroizing::new(format!("{header}.e30.c2ln")), id, issued_at: 1000, expires_at: 2000 }
    }

    fn kept(audience: &str, kid: &str) -> Arc<KeptJwt> {
        let audience = vec![audience.to_owned()];
        Arc::new(KeptJwt { entry: "e".parse().unwrap(), audience, svid: svid(kid) })
    }

    fn key(audience: &[&str]) -> JwtKey {
        let audience: Vec<String> = audience.iter().map(|&name| name.to_owned()).collect();
        JwtKey::new(&"spiffe://example.org/web".parse().unwrap(), &audience)
    }

    #[test]
    fn the_order_of_audiences_does_not_matter_but_their_bounds_do() {
        assert!(key(&["a", "b"]) == key(&["b", "a"]));
        assert!(key(&["ab"]) != key(&["a", "b"]));
    }

    #[test]
    fn ages_and_ends() {
        let mut cache = JwtCache::new(10);
        cache.insert(kept("a", "k"), at(1000));
        assert!(matches!(cache.get(&key(&["a"]), at(1100)), Lookup::Fresh(_)));
        assert!(matches!(cache.get(&key(&["a"]), at(1600)), Lookup::Ageing(_)));
        assert!(matches!(cache.get(&key(&["b"]), at(1100)), Lookup::Missing));
        assert!(matches!(cache.get(&key(&["a"]), at(2000)), Lookup::Missing));
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let mut cache = JwtCache::new(2);
        cache.insert(kept("a", "k"), at(1000));
        cache.insert(kept("b", "k"), at(1000));
        cache.get(&key(&["a"]), at(1100));
        cache.insert(kept("c", "k"), at(1000));
        assert_eq!(cache.len(), 2);
        assert!(matches!(cache.get(&key(&["b"]), at(1100)), Lookup::Missing));
        assert!(matches!(cache.get(&key(&["a"]), at(1100)), Lookup::Fresh(_)));
    }

    #[test]
    fn what_is_in_use_is_renewed_ahead() {
        let mut cache = JwtCache::new(10);
        let names = |due: Vec<Arc<KeptJwt>>| due.iter().map(|jwt| jwt.audience.join(",")).collect::<Vec<_>>();
        cache.insert(kept("a", "k"), at(1000));
        assert!(cache.next_due(at(1000)).is_some_and(|due| due >= at(1066) && due <= at(1084)));
        assert!(cache.take_due(at(1060), at(1065)).is_empty());
        assert_eq!(names(cache.take_due(at(1100), at(1105))), ["a"]);
        assert!(cache.take_due(at(1101), at(1106)).is_empty(), "one at a time");
        assert_eq!(names(cache.take_due(at(1110), at(1115))), ["a"], "again after a failure");
        let mut next = KeptJwt::clone(&kept("a", "k"));
        (next.svid.issued_at, next.svid.expires_at) = (1500, 2500);
        cache.insert(Arc::new(next), at(1500));
        assert_eq!(names(cache.take_due(at(1990), at(1995))), ["a"], "asked for at 1000");
        assert!(cache.take_due(at(2000), at(2005)).is_empty(), "nobody asked for it within a life");
        assert!(matches!(cache.get(&key(&["a"]), at(2100)), Lookup::Ageing(_)));
        assert_eq!(names(cache.take_due(at(2100), at(2105))), ["a"], "somebody did");
        assert!(cache.take_due(at(2500), at(2505)).is_empty() && cache.len() == 0, "over");
    }

    #[test]
    fn tainted_keys_take_their_tokens_along() {
        let mut cache = JwtCache::new(10);
        cache.insert(kept("a", "old"), at(1000));
        cache.insert(kept("b", "new"), at(1000));
        assert_eq!(cache.remove_by_kid(|kid| kid == "old"), 1);
        assert!(matches!(cache.get(&key(&["b"]), at(1100)), Lookup::Fresh(_)));
    }
}
