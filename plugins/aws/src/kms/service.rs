//! Signing, and the end of keys that were replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{MessageType, SigningAlgorithmSpec};
use svid_core::key::{KeyType, Signer};
use svid_plugin_api::{KeyService, PluginError, RemoteKey, SigningLane};
use tokio::sync::mpsc;

use crate::errors::Call;

/// A key in KMS, named by its ARN: an alias may move.
pub(super) struct KmsKey {
    client: Client,
    arn: String,
    is_replaced: AtomicBool,
    deletions: mpsc::Sender<String>,
}

/// A key as this key manager holds it.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) key: Arc<KmsKey>,
    pub(super) signer: Arc<dyn Signer>,
}

impl Held {
    /// # Errors
    /// The public key is not of this type.
    pub(super) fn new(
        client: &Client,
        lane: &Arc<SigningLane>,
        deletions: &mpsc::Sender<String>,
        arn: String,
        kind: KeyType,
        public: Vec<u8>,
    ) -> Result<Self, PluginError> {
        let key = Arc::new(KmsKey {
            client: client.clone(),
            arn: arn.clone(),
            is_replaced: AtomicBool::new(false),
            deletions: deletions.clone(),
        });
        let signer = Arc::new(RemoteKey::new(key.clone(), lane.clone(), arn, kind, public)?);
        Ok(Self { key, signer })
    }
}

impl KmsKey {
    pub(super) fn arn(&self) -> &str {
        &self.arn
    }

    /// Another key took its place: it is scheduled for deletion when its last holder lets go of it.
    pub(super) fn replaced(&self) {
        self.is_replaced.store(true, Ordering::Release);
    }
}

impl Drop for KmsKey {
    fn drop(&mut self) {
        if self.is_replaced.load(Ordering::Acquire) {
            enqueue(&self.deletions, std::mem::take(&mut self.arn));
        }
    }
}

pub(super) fn enqueue(deletions: &mpsc::Sender<String>, arn: String) {
    match deletions.try_send(arn.clone()) {
        Ok(()) => tracing::debug!(key_arn = arn, "Key enqueued for deletion"),
        Err(_) => tracing::error!(key_arn = arn, "Failed to enqueue key for deletion"),
    }
}

#[async_trait]
impl KeyService for KmsKey {
    fn title(&self) -> &str {
        "AWS KMS"
    }

    async fn sign_digest(&self, arn: &str, kind: KeyType, digest: &[u8]) -> Result<Vec<u8>, PluginError> {
        let algorithm = match kind {
            KeyType::EcP256 => SigningAlgorithmSpec::EcdsaSha256,
            KeyType::EcP384 => SigningAlgorithmSpec::EcdsaSha384,
            KeyType::Rsa2048 | KeyType::Rsa4096 => SigningAlgorithmSpec::RsassaPkcs1V15Sha256,
        };
        let request = self.client.sign().key_id(arn).message(Blob::new(digest));
        let request = request.message_type(MessageType::Digest).signing_algorithm(algorithm);
        let call = Call { failed: "failed to sign", action: "kms:Sign", on: arn };
        let answer = request.send().await.map_err(|error| call.error(&error))?;
        let signature = answer.signature.map(Blob::into_inner);
        signature.ok_or_else(|| PluginError::internal("failed to sign: malformed answer without a signature"))
    }
}
