//! The calls to a transit engine.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustify::endpoint::Endpoint;
use svid_core::key::KeyType;
use svid_plugin_api::{KeyService, PluginError};
use vaultrs::api::transit::requests::{
    CreateKeyRequest, DeleteKeyRequest, ListKeysRequest, ReadKeyRequest, SignDataRequest,
    UpdateKeyConfigurationRequest,
};
use vaultrs::api::transit::{HashAlgorithm, MarshalingAlgorithm, SignatureAlgorithm};

use crate::answer::{self, TransitKey};
use crate::error::{Doing, VaultError};
use crate::http::Answer;
use crate::session::Vault;

/// One transit engine of one Vault.
pub(super) struct Transit {
    pub(super) vault: Vault,
    pub(super) mount: String,
}

impl Transit {
    /// Runs a call, and words its failure. `below` is the part of the path that a policy names.
    async fn call(
        &self,
        endpoint: &impl Endpoint,
        what: &str,
        below: &str,
        capability: &'static str,
    ) -> Result<Answer, PluginError> {
        let path = format!("{}/{below}", self.mount);
        let answer = self.vault.call(endpoint).await;
        answer.map_err(|error| self.doing(what, &path, capability).refused(&error))
    }

    fn doing<'a>(&'a self, what: &'a str, path: &'a str, capability: &'static str) -> Doing<'a> {
        let mount = ("transit_engine_path", self.mount.as_str());
        Doing { what, path, capability, mount, place: self.vault.place() }
    }

    fn unusable(what: &str) -> impl Fn(VaultError) -> PluginError {
        move |error| PluginError::internal(format!("transit engine {what} call was successful, but {error}"))
    }

    /// Makes a key. The name is new, so a second try after a lost answer finds the key of the first.
    pub(super) async fn create(&self, name: &str, kind: KeyType) -> Result<TransitKey, PluginError> {
        let request = CreateKeyRequest {
            mount: self.mount.clone(),
            name: name.to_owned(),
            exportable: Some(false),
            key_type: Some(vault_type(kind)),
            // Rotation is ours.
            auto_rotate_period: Some("0".to_owned()),
            ..CreateKeyRequest::default()
        };
        self.call(&request, "create transit engine key", "keys/*", "create\", \"update").await?;
        self.read(name).await
    }

    /// A key with its latest version.
    pub(super) async fn read(&self, name: &str) -> Result<TransitKey, PluginError> {
        let request = ReadKeyRequest { mount: self.mount.clone(), name: name.to_owned() };
        let answer = self.call(&request, "get transit engine key", "keys/*", "read").await?;
        answer::transit_key(&answer.body).map_err(Self::unusable("get key"))
    }

    /// The names of all keys. An engine without any answers 404 and says nothing.
    pub(super) async fn names(&self) -> Result<Vec<String>, PluginError> {
        let request = ListKeysRequest { mount: self.mount.clone() };
        match self.vault.call(&request).await {
            Ok(answer) => answer::key_names(&answer.body).map_err(Self::unusable("list keys")),
            Err(VaultError::Status { status: 404, errors }) if errors.is_empty() => Ok(Vec::new()),
            Err(error) => {
                let path = format!("{}/keys", self.mount);
                Err(self.doing("list transit engine keys", &path, "list").refused(&error))
            }
        }
    }

    /// Deletes a key. One that is gone already is no failure.
    pub(super) async fn delete(&self, name: &str) -> Result<(), PluginError> {
        let (mount, name) = (self.mount.clone(), name.to_owned());
        let allow = UpdateKeyConfigurationRequest {
            mount: mount.clone(),
            name: name.clone(),
            deletion_allowed: Some(true),
            ..UpdateKeyConfigurationRequest::default()
        };
        let allowed = self.vault.call(&allow).await;
        if matches!(&allowed, Err(VaultError::Status { status: 400 | 404, errors }) if is_gone(errors)) {
            return Ok(());
        }
        let path = format!("{mount}/keys/*");
        let doing = |what| self.doing(what, &path, "update\", \"delete");
        allowed.map_err(|error| doing("enable deletion of transit engine key").refused(&error))?;
        let deleted = self.vault.call(&DeleteKeyRequest { mount, name }).await;
        deleted.map(drop).map_err(|error| doing("delete transit engine key").refused(&error))
    }
}

fn is_gone(errors: &[String]) -> bool {
    errors.iter().any(|said| said.contains("no existing key"))
}

/// A version of a key, as [`KeyService::sign_digest`] is told it: a key that Vault rotated has another one.
pub(super) fn version_name(name: &str, version: u64) -> String {
    format!("{version}/{name}")
}

#[async_trait]
impl KeyService for Transit {
    fn title(&self) -> &str {
        "Vault transit"
    }

    async fn sign_digest(&self, key: &str, kind: KeyType, digest: &[u8]) -> Result<Vec<u8>, PluginError> {
        let (version, name) = key.split_once('/').unwrap_or(("0", key));
        let is_rsa = matches!(kind, KeyType::Rsa2048 | KeyType::Rsa4096);
        let request = SignDataRequest {
            mount: self.mount.clone(),
            name: name.to_owned(),
            key_version: version.parse().ok(),
            hash_algorithm: Some(match kind {
                KeyType::EcP384 => HashAlgorithm::Sha2_384,
                KeyType::EcP256 | KeyType::Rsa2048 | KeyType::Rsa4096 => HashAlgorithm::Sha2_256,
            }),
            input: STANDARD.encode(digest),
            prehashed: Some(true),
            signature_algorithm: is_rsa.then_some(SignatureAlgorithm::Pkcs1v15),
            marshaling_algorithm: Some(MarshalingAlgorithm::Asn1),
            ..SignDataRequest::default()
        };
        let answer = self.call(&request, "sign with the transit engine", "sign/*", "update").await?;
        let (_, signature) = answer::signature(&answer.body).map_err(Self::unusable("sign"))?;
        Ok(signature)
    }
}

fn vault_type(kind: KeyType) -> vaultrs::api::transit::KeyType {
    use vaultrs::api::transit::KeyType as Vault;
    match kind {
        KeyType::EcP256 => Vault::EcdsaP256,
        KeyType::EcP384 => Vault::EcdsaP384,
        KeyType::Rsa2048 => Vault::Rsa2048,
        KeyType::Rsa4096 => Vault::Rsa4096,
    }
}

/// The type that Vault's name stands for, if keys of ours have it.
pub(super) fn key_type(name: &str) -> Option<KeyType> {
    Some(match name {
        "ecdsa-p256" => KeyType::EcP256,
        "ecdsa-p384" => KeyType::EcP384,
        "rsa-2048" => KeyType::Rsa2048,
        "rsa-4096" => KeyType::Rsa4096,
        _ => return None,
    })
}
