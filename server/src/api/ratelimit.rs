//! SPIRE's limits: a token bucket for each client address. Callers wait for their tokens.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::table::LimitGroup;
use crate::config::RateLimits;

/// Buckets that were not used for this long are forgotten: they are full again by then.
const GENERATION: Duration = Duration::from_secs(60);
/// Longest wait. SPIRE waits for as long as the caller does, which lets one address pile up calls without end.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Why a call was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// One call asks for more than a second's worth.
    #[error("rate ({count}) exceeds burst size ({burst})")]
    Burst {
        /// What was asked for.
        count: u32,
        /// What there can be at most.
        burst: u32,
    },
    /// Too many wait already.
    #[error("rate limit exceeded: too many calls of this address are waiting")]
    Waiting,
}

/// The limiters of all groups.
#[derive(Debug)]
pub struct Limits {
    attest: Option<Limiter>,
    certificate: Option<Limiter>,
    jwt: Option<Limiter>,
    wit: Option<Limiter>,
    push_key: Limiter,
    post_status: Limiter,
}

impl Limits {
    /// Limiters as configured; those for pushed keys and status posts are always on.
    pub fn new(config: RateLimits) -> Self {
        let signing = || config.signing.then(|| Limiter::new(500));
        Self {
            attest: config.attestation.then(|| Limiter::new(1)),
            certificate: signing(),
            jwt: signing(),
            wit: signing(),
            push_key: Limiter::new(500),
            post_status: Limiter::new(10),
        }
    }

    /// Takes `count` tokens and says how long to wait before going on.
    /// # Errors
    /// [`LimitError`]; nothing was taken then.
    pub fn take(&self, group: LimitGroup, address: IpAddr, count: usize) -> Result<Duration, LimitError> {
        let limiter = match group {
            LimitGroup::Unlimited => None,
            LimitGroup::Attest => self.attest.as_ref(),
            LimitGroup::Certificate => self.certificate.as_ref(),
            LimitGroup::Jwt => self.jwt.as_ref(),
            LimitGroup::Wit => self.wit.as_ref(),
            LimitGroup::PushKey => Some(&self.push_key),
            LimitGroup::PostStatus => Some(&self.post_status),
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        limiter.map_or(Ok(Duration::ZERO), |limiter| limiter.take(address, count, Instant::now()))
    }
}

#[derive(Debug)]
struct Limiter {
    per_second: u32,
    buckets: Mutex<Generations>,
}

/// The generation in use and the one before it: a bucket lives for one to two minutes after its last use.
#[derive(Debug)]
struct Generations {
    current: HashMap<IpAddr, Bucket>,
    previous: HashMap<IpAddr, Bucket>,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Below zero: tokens that waiting calls have taken in advance.
    tokens: f64,
    at: Instant,
}

impl Limiter {
    fn new(per_second: u32) -> Self {
        let generations =
            Generations { current: HashMap::new(), previous: HashMap::new(), since: Instant::now() };
        Self { per_second, buckets: Mutex::new(generations) }
    }

    fn take(&self, address: IpAddr, count: u32, now: Instant) -> Result<Duration, LimitError> {
        if count > self.per_second {
            return Err(LimitError::Burst { count, burst: self.per_second });
        }
        let rate = f64::from(self.per_second);
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bucket = buckets.bucket(group_address(address), rate, now);
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        let tokens = (bucket.tokens + elapsed * rate).min(rate) - f64::from(count);
        let wait = Duration::from_secs_f64((-tokens / rate).max(0.0));
        if wait > MAX_WAIT {
            return Err(LimitError::Waiting);
        }
        *bucket = Bucket { tokens, at: now };
        Ok(wait)
    }
}

impl Generations {
    fn bucket(&mut self, address: IpAddr, rate: f64, now: Instant) -> &mut Bucket {
        if now.saturating_duration_since(self.since) >= GENERATION {
            self.previous = std::mem::take(&mut self.current);
            self.since = now;
        }
        let previous = &mut self.previous;
        let fresh = Bucket { tokens: rate, at: now };
        self.current.entry(address).or_insert_with(|| previous.remove(&address).unwrap_or(fresh))
    }
}

/// A whole /64 counts as one address: that is what one machine is given.
fn group_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_shrink() {
        let limiter = Limiter::new(1);
        let address: IpAddr = "192.0.2.1".parse().expect("valid");
        let start = Instant::now();
        assert_eq!(limiter.take(address, 1, start), Ok(Duration::ZERO));
        assert_eq!(limiter.take(address, 1, start), Ok(Duration::from_secs(1)));
        assert_eq!(limiter.take(address, 1, start), Ok(Duration::from_secs(2)));
        let other: IpAddr = "192.0.2.2".parse().expect("valid");
        assert_eq!(limiter.take(other, 1, start), Ok(Duration::ZERO));
        assert_eq!(limiter.take(address, 1, start + Duration::from_secs(3)), Ok(Duration::ZERO));
        assert_eq!(limiter.take(address, 2, start), Err(LimitError::Burst { count: 2, burst: 1 }));
    }

    #[test]
    fn waiting_is_bounded() {
        let limiter = Limiter::new(1);
        let address: IpAddr = "2001:db8::1".parse().expect("valid");
        let same_network: IpAddr = "2001:db8::2".parse().expect("valid");
        let start = Instant::now();
        for _ in 0..61 {
            assert!(limiter.take(address, 1, start).is_ok());
        }
        assert_eq!(limiter.take(same_network, 1, start), Err(LimitError::Waiting));
    }

    #[test]
    fn old_buckets_are_forgotten() {
        let limiter = Limiter::new(1);
        let start = Instant::now();
        for last in 0..100 {
            let _ = limiter.take(IpAddr::from([192, 0, 2, last]), 1, start);
        }
        for minutes in 1..4 {
            let _ = limiter.take(IpAddr::from([198, 51, 100, 1]), 1, start + GENERATION * minutes);
        }
        let buckets = limiter.buckets.lock().expect("not poisoned");
        assert!(buckets.current.len() + buckets.previous.len() <= 2);
    }
}
