//! The key manager.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeySpec, KeyUsageType, Tag};
use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_core::key::{KeyType, Signer};
use svid_plugin_api::{KeyManager, PluginError, SigningLane, SigningLimits};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::config::KmsConfig;
use super::names::Names;
use super::policy::default_policy;
use super::service::{Held, enqueue};
use super::{housekeeping, tags};
use crate::errors::Call;
use crate::session::Session;

/// How long one attempt of a request may take; a lost answer is asked for once more within a signature's deadline.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Keys that wait for their deletion, as in SPIRE.
const DELETIONS: usize = 120;
/// A new key may not be known everywhere at once.
const NEW_KEY_TRIES: u32 = 6;
const NEW_KEY_PAUSE: Duration = Duration::from_millis(100);

/// KeyManager `aws_kms`. Its background work ends when it is dropped.
pub struct AwsKms {
    kms: Arc<Kms>,
    _tasks: JoinSet<()>,
}

/// What the key manager and its background work share.
pub(super) struct Kms {
    pub(super) client: Client,
    pub(super) tagging: aws_sdk_resourcegroupstagging::Client,
    sts: aws_sdk_sts::Client,
    pub(super) names: Names,
    pub(super) clock: Clock,
    pub(super) by_tags: bool,
    own_tags: Vec<Tag>,
    /// Read from a file, or made for the role at the first key.
    policy: tokio::sync::Mutex<Option<String>>,
    pub(super) lane: Arc<SigningLane>,
    pub(super) deletions: mpsc::Sender<String>,
    keys: Mutex<BTreeMap<String, Held>>,
    /// One key is made at a time.
    generating: tokio::sync::Mutex<()>,
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKms").field("names", &self.kms.names).finish_non_exhaustive()
    }
}

/// What tests set and operators do not.
pub(super) struct Seams<'a> {
    pub(super) endpoint: Option<&'a str>,
    pub(super) limits: SigningLimits,
}

impl AwsKms {
    /// Loads this server's keys, and begins the background work that keeps them and removes what was left behind.
    /// # Errors
    /// KMS does not answer or refuses, a file cannot be read, or a key of this server is disabled.
    pub async fn open(
        config: &KmsConfig,
        trust_domain: &TrustDomain,
        clock: Clock,
    ) -> Result<Self, PluginError> {
        let seams = Seams { endpoint: None, limits: SigningLimits::default() };
        Self::open_with(config, trust_domain, clock, seams).await
    }

    pub(super) async fn open_with(
        config: &KmsConfig,
        trust_domain: &TrustDomain,
        clock: Clock,
        seams: Seams<'_>,
    ) -> Result<Self, PluginError> {
        let policy = config.key_policy_file.as_ref().map(|path| {
            std::fs::read_to_string(path).map_err(|error| {
                let path = path.display();
                PluginError::internal(format!(
                    "failed to read file configured in 'key_policy_file': {path}: {error}"
                ))
            })
        });
        let policy = policy.transpose()?;
        let server_id = config.identifier.load()?;
        tracing::debug!(server_id, "Loaded server id");
        let session = Session {
            region: &config.region,
            access_key: config.access_key.as_ref(),
            endpoint: seams.endpoint,
            attempt: ATTEMPT,
        };
        let sdk = session.load().await;
        let (deletions, queue) = mpsc::channel(DELETIONS);
        let own_tags = config.key_tags.iter().map(|(key, value)| tags::tag(key, value));
        let kms = Arc::new(Kms {
            client: Client::new(&sdk),
            tagging: aws_sdk_resourcegroupstagging::Client::new(&sdk),
            sts: aws_sdk_sts::Client::new(&sdk),
            names: Names::new(trust_domain.as_str(), &server_id),
            clock,
            by_tags: config.by_tags,
            own_tags: own_tags.collect::<Result<_, _>>()?,
            policy: tokio::sync::Mutex::new(policy),
            lane: SigningLane::new(seams.limits),
            deletions,
            keys: Mutex::default(),
            generating: tokio::sync::Mutex::default(),
        });
        let found = if kms.by_tags { kms.find_by_tags().await? } else { kms.find_by_alias().await? };
        *kms.keys() = found;
        let mut tasks = JoinSet::new();
        tasks.spawn(housekeeping::delete(kms.client.clone(), kms.deletions.downgrade(), queue));
        tasks.spawn(housekeeping::run(kms.clone()));
        Ok(Self { kms, _tasks: tasks })
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Kms> {
        &self.kms
    }
}

impl Kms {
    pub(super) fn keys(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        // The map is whole at every moment at which a holder could panic.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn create(&self, id: &str, kind: KeyType) -> Result<Held, PluginError> {
        let spec = match kind {
            KeyType::EcP256 => KeySpec::EccNistP256,
            KeyType::EcP384 => KeySpec::EccNistP384,
            KeyType::Rsa2048 => KeySpec::Rsa2048,
            KeyType::Rsa4096 => KeySpec::Rsa4096,
        };
        let mut tags = self.own_tags.clone();
        if self.by_tags {
            tags.extend(tags::of_key(&self.names, id, self.clock.unix())?);
        }
        let request = self.client.create_key().description(self.names.description(id));
        let request = request.key_usage(KeyUsageType::SignVerify).key_spec(spec);
        let request = request.set_policy(self.policy().await?);
        let request = request.set_tags((!tags.is_empty()).then_some(tags));
        let call = Call { failed: "failed to create key", action: "kms:CreateKey", on: "*" };
        let created = request.send().await.map_err(|error| call.error(&error))?;
        let arn = created.key_metadata.and_then(|key| key.arn);
        let arn = arn.ok_or_else(|| PluginError::internal("malformed create key response"))?;
        tracing::debug!(key_arn = arn, "Key created");
        let public = match self.new_public_key(&arn).await {
            Ok(public) => public,
            Err(error) => {
                enqueue(&self.deletions, arn); // nothing refers to it
                return Err(error);
            }
        };
        Held::new(&self.client, &self.lane, &self.deletions, arn, kind, public)
    }

    async fn policy(&self) -> Result<Option<String>, PluginError> {
        let mut policy = self.policy.lock().await;
        if policy.is_none() {
            *policy = default_policy(&self.sts).await?;
        }
        Ok(policy.clone())
    }

    async fn new_public_key(&self, arn: &str) -> Result<Vec<u8>, PluginError> {
        let mut pause = NEW_KEY_PAUSE;
        for _ in 1..NEW_KEY_TRIES {
            let request = self.client.get_public_key().key_id(arn).send();
            match request.await {
                Err(SdkError::ServiceError(error)) if error.err().is_not_found_exception() => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                answer => return public_key(arn, answer),
            }
        }
        self.public_key(arn).await
    }

    pub(super) async fn public_key(&self, key: &str) -> Result<Vec<u8>, PluginError> {
        public_key(key, self.client.get_public_key().key_id(key).send().await)
    }

    /// Points the alias at a new key. An earlier request whose answer was lost may have made the alias already.
    async fn assign_alias(&self, id: &str, new: &Held, has_old: bool) -> Result<(), PluginError> {
        let alias = self.names.alias(id);
        let update = || self.client.update_alias().alias_name(&alias).target_key_id(new.key.arn()).send();
        let create = || self.client.create_alias().alias_name(&alias).target_key_id(new.key.arn()).send();
        let (creating, updating) = (
            Call { failed: "failed to create alias", action: "kms:CreateAlias", on: &alias },
            Call { failed: "failed to update alias", action: "kms:UpdateAlias", on: &alias },
        );
        let assigned = if has_old {
            match update().await {
                Err(SdkError::ServiceError(error)) if error.err().is_not_found_exception() => {
                    create().await.map(drop).map_err(|error| (is_refusal(&error), creating.error(&error)))
                }
                answer => answer.map(drop).map_err(|error| (is_refusal(&error), updating.error(&error))),
            }
        } else {
            match create().await {
                Err(SdkError::ServiceError(error)) if error.err().is_already_exists_exception() => {
                    update().await.map(drop).map_err(|error| (is_refusal(&error), updating.error(&error)))
                }
                answer => answer.map(drop).map_err(|error| (is_refusal(&error), creating.error(&error))),
            }
        };
        match assigned {
            Ok(()) => {
                tracing::debug!(alias_name = alias, key_arn = new.key.arn(), "Alias assigned");
                Ok(())
            }
            Err((was_refused, error)) => {
                // An attempt before the one that was refused may have moved the alias, and only its answer was lost.
                if was_refused
                    && let Ok(target) = self.alias_target(&alias).await
                    && target.as_deref() != Some(new.key.arn())
                {
                    new.key.replaced(); // and nobody will hold it
                }
                Err(error)
            }
        }
    }
}

/// True if AWS said no: then nothing happened. Without an answer, or with a failure of KMS's own, it may have: such a key
/// is left to the search for what was left behind.
pub(super) fn is_refusal<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    let SdkError::ServiceError(answer) = error else { return false };
    matches!(
        answer.err().code(),
        Some(
            "AccessDeniedException"
                | "AlreadyExistsException"
                | "InvalidAliasNameException"
                | "KMSInvalidStateException"
                | "LimitExceededException"
                | "NotFoundException"
                | "ThrottlingException"
        )
    )
}

type PublicKeyAnswer = Result<
    aws_sdk_kms::operation::get_public_key::GetPublicKeyOutput,
    SdkError<aws_sdk_kms::operation::get_public_key::GetPublicKeyError>,
>;

fn public_key(key: &str, answer: PublicKeyAnswer) -> Result<Vec<u8>, PluginError> {
    let call = Call { failed: "failed to get public key", action: "kms:GetPublicKey", on: key };
    let answer = answer.map_err(|error| call.error(&error))?;
    let public = answer.public_key.map(Blob::into_inner).filter(|key| !key.is_empty());
    public.ok_or_else(|| PluginError::internal("malformed get public key response"))
}

#[async_trait]
impl KeyManager for AwsKms {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, PluginError> {
        if id.is_empty() {
            return Err(PluginError::invalid("key id is required"));
        }
        let _one = self.kms.generating.lock().await;
        let new = self.kms.create(id, kind).await?;
        let has_old = self.kms.keys().contains_key(id);
        self.kms.assign_alias(id, &new, has_old).await?;
        let signer = new.signer.clone();
        let old = self.kms.keys().insert(id.to_owned(), new);
        if let Some(old) = old {
            old.key.replaced();
        }
        Ok(signer)
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, PluginError> {
        Ok(self.kms.keys().get(id).map(|held| held.signer.clone()))
    }

    async fn list(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, PluginError> {
        Ok(self.kms.keys().iter().map(|(id, held)| (id.clone(), held.signer.clone())).collect())
    }

    fn is_durable(&self) -> bool {
        true
    }
}
