//! The JSON messages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use svid_plugin_api::PluginError;

/// Bytes as Go's JSON has them: standard base64, `null` for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// The first message: the chain, leaf first.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AttestationData {
    pub certificates: Option<Vec<Bytes>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Nonce {
    pub nonce: Bytes,
}

/// What the server asks; exactly one is there.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Challenge {
    pub rsa_signature: Option<Nonce>,
    pub ecdsa_signature: Option<Nonce>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RsaProof {
    pub nonce: Bytes,
    pub signature: Bytes,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct EcdsaProof {
    pub nonce: Bytes,
    pub r: Bytes,
    pub s: Bytes,
}

/// What the node answers; the one that was asked for is there.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Response {
    pub rsa_signature: Option<RsaProof>,
    pub ecdsa_signature: Option<EcdsaProof>,
}

/// A message as JSON.
pub(crate) fn to_json<T: Serialize>(message: &T) -> Result<Vec<u8>, PluginError> {
    serde_json::to_vec(message)
        .map_err(|error| PluginError::internal(format!("unable to marshal message: {error}")))
}
