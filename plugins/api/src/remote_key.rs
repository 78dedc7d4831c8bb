//! Keys in a service elsewhere: one signature at a time has a deadline, all together have bounds.
//!
//! A key manager whose keys live in a service implements [`KeyService`], and gives out [`RemoteKey`]s that share one
//! [`SigningLane`]. What the service answers is verified by `svid_core::remote` before anything is made of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use svid_core::key::{KeyError, KeyType, Signer};
use svid_core::remote::{RemoteSigner, SignFuture, digest};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::{PluginCode, PluginError};

/// A service that signs with keys it does not hand out.
#[async_trait]
pub trait KeyService: Send + Sync {
    /// What the service is called in messages, such as `AWS KMS`.
    fn title(&self) -> &str;
    /// Signs a digest with `key`, which names one immutable key (a version, never an alias that may move). The result is
    /// ECDSA in ASN.1 form, or RSA PKCS#1 v1.5; the hash is that of the key's type.
    async fn sign_digest(&self, key: &str, kind: KeyType, digest: &[u8]) -> Result<Vec<u8>, PluginError>;
}

/// Bounds of a [`SigningLane`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigningLimits {
    /// How long one signature may take, waiting in line included.
    pub deadline: Duration,
    /// Signatures that the service is asked for at once.
    pub concurrent: usize,
    /// Signatures that wait in line. More are refused at once.
    pub waiting: usize,
}

impl Default for SigningLimits {
    /// 10 s, 64 at once, 4096 in line.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), concurrent: 64, waiting: 4096 }
    }
}

/// What all signatures of one service share, so that neither the service nor this process is buried.
#[derive(Debug)]
pub struct SigningLane {
    limits: SigningLimits,
    places: Semaphore,
    waiting: AtomicUsize,
}

impl SigningLane {
    /// A lane within these bounds.
    pub fn new(limits: SigningLimits) -> Arc<Self> {
        let places = Semaphore::new(limits.concurrent);
        Arc::new(Self { limits, places, waiting: AtomicUsize::new(0) })
    }

    async fn sign(
        &self,
        title: &str,
        signature: impl Future<Output = Result<Vec<u8>, PluginError>>,
    ) -> Result<Vec<u8>, KeyError> {
        let deadline = Instant::now() + self.limits.deadline;
        let late = |what: &str| {
            let seconds = self.limits.deadline.as_secs();
            KeyError::Unavailable(format!("{title} {what} within {seconds} s; try again"))
        };
        let place = match self.places.try_acquire() {
            Ok(place) => place,
            Err(_) => {
                let _waiter = self.line_up(title)?;
                let place = timeout_at(deadline, self.places.acquire()).await;
                let place = place.map_err(|_| late("had no room for this signature"))?;
                place.map_err(|_| late("took no more signatures"))?
            }
        };
        let answer = timeout_at(deadline, signature).await;
        drop(place);
        answer.map_err(|_| late("did not sign"))?.map_err(|error| key_error(title, error))
    }

    fn line_up(&self, title: &str) -> Result<Waiter<'_>, KeyError> {
        let waiter = Waiter::new(&self.waiting);
        if waiter.before >= self.limits.waiting {
            let waiting = self.limits.waiting;
            return Err(KeyError::Unavailable(format!("{waiting} signatures wait for {title}; try again")));
        }
        Ok(waiter)
    }
}

/// Counts as long as it lives, which may end at any await.
struct Waiter<'a> {
    count: &'a AtomicUsize,
    before: usize,
}

impl<'a> Waiter<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, before: count.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

fn key_error(title: &str, error: PluginError) -> KeyError {
    let message = format!("{title} did not sign: {}", error.message);
    match error.code {
        PluginCode::Unavailable | PluginCode::DeadlineExceeded | PluginCode::ResourceExhausted => {
            KeyError::Unavailable(message)
        }
        _ => KeyError::Refused(message),
    }
}

/// One immutable key of a service.
pub struct RemoteKey<S> {
    service: Arc<S>,
    lane: Arc<SigningLane>,
    name: String,
    kind: KeyType,
    public: Vec<u8>,
}

impl<S: KeyService> RemoteKey<S> {
    /// The key that the service calls `name`, with the public key (SubjectPublicKeyInfo DER) that it had when it was
    /// made or found. A signature by any other key is refused.
    /// # Errors
    /// [`PluginError`] if the public key is not of this type.
    pub fn new(
        service: Arc<S>,
        lane: Arc<SigningLane>,
        name: String,
        kind: KeyType,
        public: Vec<u8>,
    ) -> Result<Self, PluginError> {
        if key_type_of(&public) != Some(kind) {
            let text =
                format!("{}: the public key of {name} is not of type {}", service.title(), kind.name());
            return Err(PluginError::internal(text));
        }
        Ok(Self { service, lane, name, kind, public })
    }
}

/// The type of a public key (SubjectPublicKeyInfo DER), if it is one that signs here.
pub fn key_type_of(public: &[u8]) -> Option<KeyType> {
    use svid_core::x509::csr::PublicKeyKind;
    match svid_core::x509::PublicKey::from_spki(public).ok()?.kind() {
        PublicKeyKind::EcP256 => Some(KeyType::EcP256),
        PublicKeyKind::EcP384 => Some(KeyType::EcP384),
        PublicKeyKind::Rsa { bits: 2048 } => Some(KeyType::Rsa2048),
        PublicKeyKind::Rsa { bits: 4096 } => Some(KeyType::Rsa4096),
        PublicKeyKind::Rsa { .. } => None,
    }
}

impl<S: KeyService> Signer for RemoteKey<S> {
    fn key_type(&self) -> KeyType {
        self.kind
    }

    fn public_key_der(&self) -> &[u8] {
        &self.public
    }

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Err(KeyError::Remote)
    }

    fn sign_jws(&self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Err(KeyError::Remote)
    }

    fn remote(&self) -> Option<&dyn RemoteSigner> {
        Some(self)
    }
}

impl<S: KeyService> RemoteSigner for RemoteKey<S> {
    fn sign<'a>(&'a self, message: &'a [u8]) -> SignFuture<'a> {
        Box::pin(async move {
            let digest = digest(self.kind, message);
            let signature = self.service.sign_digest(&self.name, self.kind, &digest);
            self.lane.sign(self.service.title(), signature).await
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use svid_core::key::LocalKey;
    use svid_core::remote;
    use tokio::task::JoinSet;

    use super::*;

    /// Answers nonsense, after a while; counts how many ask at once.
    struct Slow {
        takes: Duration,
        now: AtomicUsize,
        most: AtomicUsize,
        refuses: AtomicBool,
    }

    impl Slow {
        fn new(takes: Duration) -> Arc<Self> {
            let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            Arc::new(Self { takes, now, most, refuses: AtomicBool::new(false) })
        }
    }

    #[async_trait]
    impl KeyService for Slow {
        fn title(&self) -> &str {
            "the service"
        }

        async fn sign_digest(&self, _: &str, _: KeyType, digest: &[u8]) -> Result<Vec<u8>, PluginError> {
            assert_eq!(digest.len(), 32);
            if self.refuses.load(Ordering::SeqCst) {
                return Err(PluginError::denied("not you"));
            }
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(self.takes).await;
            self.now.fetch_sub(1, Ordering::SeqCst);
            Ok(b"nonsense".to_vec())
        }
    }

    fn key(service: &Arc<Slow>, limits: SigningLimits) -> RemoteKey<Slow> {
        let local = LocalKey::generate(KeyType::EcP256).unwrap();
        let public = local.public_key_der().to_vec();
        RemoteKey::new(service.clone(), SigningLane::new(limits), "k".into(), KeyType::EcP256, public)
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_service_answers_is_verified() {
        let service = Slow::new(Duration::from_secs(1));
        let key = key(&service, SigningLimits::default());
        assert_eq!(remote::sign(&key, b"x").await, Err(KeyError::OtherKey));
        assert_eq!(Signer::sign(&key, b"x"), Err(KeyError::Remote));
        service.refuses.store(true, Ordering::SeqCst);
        let refused = KeyError::Refused("the service did not sign: not you".into());
        assert_eq!(remote::sign(&key, b"x").await, Err(refused));
        let other = LocalKey::generate(KeyType::EcP384).unwrap().public_key_der().to_vec();
        let lane = SigningLane::new(SigningLimits::default());
        assert!(RemoteKey::new(service, lane, "k".into(), KeyType::EcP256, other).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_service_costs_one_deadline() {
        let key = key(&Slow::new(Duration::from_secs(30)), SigningLimits::default());
        let begun = Instant::now();
        let error = remote::sign(&key, b"x").await.unwrap_err();
        assert_eq!(error, KeyError::Unavailable("the service did not sign within 10 s; try again".into()));
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_lane_is_bounded() {
        let service = Slow::new(Duration::from_secs(4));
        let limits = SigningLimits { concurrent: 3, waiting: 7, ..SigningLimits::default() };
        let key = Arc::new(key(&service, limits));
        let mut all = JoinSet::new();
        for _ in 0..12 {
            let key = key.clone();
            all.spawn(async move { remote::sign(&*key, b"x").await });
        }
        let mut texts: Vec<String> =
            all.join_all().await.into_iter().map(|result| result.unwrap_err().to_string()).collect();
        texts.sort();
        // 3 at once: after 4 s and 8 s 6 have been served, 3 more run into the deadline, 1 waits until then.
        let count = |text: &str| texts.iter().filter(|found| found.contains(text)).count();
        assert_eq!(count("7 signatures wait for the service"), 2);
        assert_eq!(count("not by the key"), 6);
        assert_eq!(count("did not sign within"), 3);
        assert_eq!(count("no room for this signature within"), 1);
        assert_eq!(service.most.load(Ordering::SeqCst), 3);
        // Whoever stops waiting leaves nothing behind.
        assert_eq!(key.lane.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(key.lane.places.available_permits(), 3);
    }
}
