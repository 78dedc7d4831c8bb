//! A key manager whose calls are told to somebody who counts them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use svid_core::key::{KeyError, KeyType, Signer};
use svid_core::remote::{RemoteSigner, SignFuture};
use svid_plugin_api::{KeyManager, PluginError};
use zeroize::Zeroizing;

/// What a key manager was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOperation {
    /// A new key.
    Generate,
    /// One key.
    Get,
    /// All keys.
    List,
    /// A signature.
    Sign,
}

/// Hears of each call: what was asked for, the name of the gRPC code it ended with, and how long it took.
pub type KeyObserver = Arc<dyn Fn(KeyOperation, &'static str, Duration) + Send + Sync>;

/// Passes everything on.
pub struct ObservedKeyManager {
    inner: Arc<dyn KeyManager>,
    observer: KeyObserver,
}

impl ObservedKeyManager {
    /// Tells `observer` of the calls to `inner` and to the keys that it gives out.
    pub fn new(inner: Arc<dyn KeyManager>, observer: KeyObserver) -> Self {
        Self { inner, observer }
    }

    fn done<T>(&self, operation: KeyOperation, begun: Instant, result: &Result<T, PluginError>) {
        let status = result.as_ref().map_or_else(|error| error.code.name(), |_| "OK");
        (self.observer)(operation, status, begun.elapsed());
    }

    fn observed(&self, inner: Arc<dyn Signer>) -> Arc<dyn Signer> {
        Arc::new(ObservedSigner { inner, observer: Arc::clone(&self.observer) })
    }
}

#[async_trait]
impl KeyManager for ObservedKeyManager {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, PluginError> {
        let begun = Instant::now();
        let result = self.inner.generate(id, kind).await;
        self.done(KeyOperation::Generate, begun, &result);
        Ok(self.observed(result?))
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, PluginError> {
        let begun = Instant::now();
        let result = self.inner.get(id).await;
        self.done(KeyOperation::Get, begun, &result);
        Ok(result?.map(|key| self.observed(key)))
    }

    async fn list(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, PluginError> {
        let begun = Instant::now();
        let result = self.inner.list().await;
        self.done(KeyOperation::List, begun, &result);
        Ok(result?.into_iter().map(|(id, key)| (id, self.observed(key))).collect())
    }

    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }

    async fn wrap_secret(&self, secret: &[u8], context: &[u8]) -> Result<Option<Vec<u8>>, PluginError> {
        self.inner.wrap_secret(secret, context).await
    }

    async fn unwrap_secret(&self, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, PluginError> {
        self.inner.unwrap_secret(wrapped, context).await
    }
}

struct ObservedSigner {
    inner: Arc<dyn Signer>,
    observer: KeyObserver,
}

impl ObservedSigner {
    fn measure(&self, sign: impl FnOnce() -> Result<Vec<u8>, KeyError>) -> Result<Vec<u8>, KeyError> {
        let begun = Instant::now();
        let result = sign();
        (self.observer)(KeyOperation::Sign, status(&result), begun.elapsed());
        result
    }
}

impl Signer for ObservedSigner {
    fn key_type(&self) -> KeyType {
        self.inner.key_type()
    }

    fn public_key_der(&self) -> &[u8] {
        self.inner.public_key_der()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.measure(|| self.inner.sign(message))
    }

    fn sign_jws(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.measure(|| self.inner.sign_jws(message))
    }

    fn remote(&self) -> Option<&dyn RemoteSigner> {
        self.inner.remote().map(|_| self as &dyn RemoteSigner)
    }
}

impl RemoteSigner for ObservedSigner {
    fn sign<'a>(&'a self, message: &'a [u8]) -> SignFuture<'a> {
        Box::pin(async move {
            let begun = Instant::now();
            let result = match self.inner.remote() {
                Some(remote) => remote.sign(message).await,
                None => self.inner.sign(message),
            };
            (self.observer)(KeyOperation::Sign, status(&result), begun.elapsed());
            result
        })
    }
}

fn status(result: &Result<Vec<u8>, KeyError>) -> &'static str {
    match result {
        Ok(_) => "OK",
        Err(KeyError::Unavailable(_)) => "Unavailable",
        Err(_) => "Internal",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::MemoryKeyManager;

    #[tokio::test]
    async fn keeps_every_promise_and_tells() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let observer: KeyObserver = Arc::new(move |operation, status, _| {
            sink.lock().unwrap().push((operation, status));
        });
        let keys = ObservedKeyManager::new(Arc::new(MemoryKeyManager::new()), observer);
        svid_plugin_api::conformance::key_manager(&keys).await;
        seen.lock().unwrap().clear();
        keys.generate("a", KeyType::EcP256).await.unwrap().sign(b"x").unwrap();
        assert!(keys.generate("", KeyType::EcP256).await.is_err());
        let seen = seen.lock().unwrap();
        assert_eq!(seen[..2], [(KeyOperation::Generate, "OK"), (KeyOperation::Sign, "OK")]);
        assert_eq!(seen[2].0, KeyOperation::Generate);
        assert_ne!(seen[2].1, "OK");
    }
}
