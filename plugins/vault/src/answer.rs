//! Vault's answers: an envelope around what was asked for. Nothing here trusts what it reads.

use std::collections::BTreeMap;

use serde::Deserialize;
use svid_core::pem::parse_certs_pem;

use crate::error::VaultError;
use crate::secret::Secret;

/// Most certificates that are looked at in one answer.
pub(crate) const MAX_CERTS: usize = 32;

#[derive(Deserialize)]
struct Envelope<T> {
    data: Option<T>,
    auth: Option<Login>,
    warnings: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<serde_json::Value>,
}

/// What a login or a renewal gives.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Login {
    /// The token; empty where there is none.
    #[serde(default = "no_secret")]
    pub(crate) client_token: Secret,
    /// Seconds that the token lives; 0 for one that does not end.
    #[serde(default)]
    pub(crate) lease_duration: u64,
    /// Whether it can be renewed.
    #[serde(default)]
    pub(crate) renewable: bool,
}

fn no_secret() -> Secret {
    Secret::new(String::new())
}

/// What looking up the own token gives.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Lookup {
    /// Seconds left; 0 for a token that does not end.
    #[serde(default)]
    pub(crate) ttl: u64,
    /// Whether it can be renewed.
    #[serde(default)]
    pub(crate) renewable: bool,
}

/// A CA certificate that a mount signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCa {
    /// The certificate in DER.
    pub cert: Vec<u8>,
    /// What the mount knows of its issuers, in DER and in no order that counts.
    pub issuers: Vec<Vec<u8>>,
    /// What Vault wants to be read.
    pub warnings: Vec<String>,
}

#[derive(Deserialize)]
struct RawSignedCa {
    certificate: Option<String>,
    issuing_ca: Option<String>,
    ca_chain: Option<Vec<String>>,
}

/// A public key in a transit engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransitKey {
    /// Vault's name of its type, such as `ecdsa-p256`.
    pub kind: String,
    /// The latest version.
    pub version: u64,
    /// SubjectPublicKeyInfo in DER.
    pub public_key: Vec<u8>,
    /// When it was made, in RFC 3339.
    pub created: String,
}

#[derive(Deserialize)]
struct RawTransitKey {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u64,
    keys: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct RawVersion {
    creation_time: String,
    public_key: String,
}

#[derive(Deserialize)]
struct RawKeys {
    keys: Vec<String>,
}

#[derive(Deserialize)]
struct RawSignature {
    signature: String,
}

fn unusable(what: impl Into<String>) -> VaultError {
    VaultError::Answer(what.into())
}

/// The text of a JSON error could repeat what it stumbled over, so only its kind and place are told.
fn envelope<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<Envelope<T>, VaultError> {
    if body.is_empty() {
        return Err(unusable("it is empty: is the mount an engine of the right kind?"));
    }
    serde_json::from_slice(body).map_err(|error| {
        unusable(format!(
            "not the JSON expected ({:?}, line {}, column {})",
            error.classify(),
            error.line(),
            error.column()
        ))
    })
}

fn data<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<(T, Vec<String>), VaultError> {
    let envelope = envelope::<T>(body)?;
    let data = envelope.data.ok_or_else(|| unusable("it holds no data"))?;
    Ok((data, envelope.warnings.unwrap_or_default()))
}

/// The errors of a refusal; none if it says nothing that can be read.
pub fn read_errors(body: &[u8]) -> Vec<String> {
    let refusal = serde_json::from_slice::<Refusal>(body);
    let errors = refusal.map(|refusal| refusal.errors).unwrap_or_default();
    errors.into_iter().filter_map(|error| error.as_str().map(str::to_owned)).take(10).collect()
}

/// The answer to a login or a renewal.
/// # Errors
/// No JSON of that shape.
pub(crate) fn login(body: &[u8]) -> Result<Login, VaultError> {
    envelope::<serde_json::Value>(body)?.auth.ok_or_else(|| unusable("it holds no token"))
}

/// The answer to a look-up of the own token.
pub(crate) fn lookup(body: &[u8]) -> Result<Lookup, VaultError> {
    Ok(data::<Lookup>(body)?.0)
}

/// The answer to `sign-intermediate`.
pub(crate) fn signed_ca(body: &[u8]) -> Result<SignedCa, VaultError> {
    let (raw, warnings) = data::<RawSignedCa>(body)?;
    let cert = raw.certificate.ok_or_else(|| unusable("certificate is missing"))?;
    let issuing_ca = raw.issuing_ca.ok_or_else(|| unusable("issuing_ca is missing"))?;
    let [cert] = <[_; 1]>::try_from(certs("certificate", &cert)?)
        .map_err(|_| unusable("certificate holds more than one"))?;
    let texts = std::iter::once(issuing_ca).chain(raw.ca_chain.unwrap_or_default());
    let mut issuers = pool(texts)?;
    issuers.retain(|der| *der != cert);
    Ok(SignedCa { cert, issuers, warnings })
}

/// The answer to a question for an issuer: its certificate, then what the mount knows of its own issuers.
pub(crate) fn issuer(body: &[u8]) -> Result<Vec<Vec<u8>>, VaultError> {
    let (raw, _) = data::<RawSignedCa>(body)?;
    let cert = raw.certificate.ok_or_else(|| unusable("certificate is missing"))?;
    pool(std::iter::once(cert).chain(raw.ca_chain.unwrap_or_default()))
}

/// The certificates of several PEM texts, each of which may hold more than one, without repetitions.
fn pool(texts: impl Iterator<Item = String>) -> Result<Vec<Vec<u8>>, VaultError> {
    let mut pool: Vec<Vec<u8>> = Vec::new();
    for text in texts.filter(|text| !text.trim().is_empty()) {
        for der in certs("ca_chain", &text)? {
            if !pool.contains(&der) {
                pool.push(der);
            }
            if pool.len() > MAX_CERTS {
                return Err(unusable(format!("ca_chain holds more than {MAX_CERTS} certificates")));
            }
        }
    }
    Ok(pool)
}

fn certs(what: &str, text: &str) -> Result<Vec<Vec<u8>>, VaultError> {
    parse_certs_pem(text).map_err(|error| unusable(format!("{what}: {error}")))
}

/// The names of the keys of a transit engine.
pub(crate) fn key_names(body: &[u8]) -> Result<Vec<String>, VaultError> {
    Ok(data::<RawKeys>(body)?.0.keys)
}

/// One key of a transit engine.
pub(crate) fn transit_key(body: &[u8]) -> Result<TransitKey, VaultError> {
    let (mut raw, _) = data::<RawTransitKey>(body)?;
    let version = raw.keys.remove(&raw.latest_version.to_string());
    let version = version.ok_or_else(|| unusable("the latest version is not among the keys"))?;
    let version: RawVersion =
        serde_json::from_value(version).map_err(|_| unusable("expected public key to be present"))?;
    let block = pem::parse(&version.public_key).map_err(|_| unusable("unable to decode PEM key"))?;
    if block.tag() != "PUBLIC KEY" {
        return Err(unusable("unable to decode PEM key"));
    }
    Ok(TransitKey {
        kind: raw.kind,
        version: raw.latest_version,
        public_key: block.into_contents(),
        created: version.creation_time,
    })
}

/// A signature, and the version of the key that made it.
pub(crate) fn signature(body: &[u8]) -> Result<(u64, Vec<u8>), VaultError> {
    use base64::Engine as _;
    let (raw, _) = data::<RawSignature>(body)?;
    let rest = raw.signature.strip_prefix("vault:v").and_then(|rest| rest.split_once(':'));
    let (version, text) = rest.ok_or_else(|| unusable("signature is missing vault prefix"))?;
    let version = version.parse().map_err(|_| unusable("signature has no key version"))?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok().filter(|bytes| !bytes.is_empty());
    Ok((version, bytes.ok_or_else(|| unusable("unable to base64 decode signature"))?))
}

/// Reads bytes as every answer there is: for the fuzzer.
pub fn read_any(body: &[u8]) {
    let _ =
        (login(body), lookup(body), key_names(body), transit_key(body), signature(body), read_errors(body));
    let _ = issuer(body);
    if let Ok(signed) = signed_ca(body) {
        let _ = crate::chain::walk(&signed.cert, &signed.issuers, &[]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn logins() {
        let read =
            login(br#"{"auth":{"client_token":"s.x","lease_duration":600,"renewable":true},"data":null}"#);
        let want = Login { client_token: Secret::new("s.x".into()), lease_duration: 600, renewable: true };
        assert_eq!(read.unwrap(), want);
        assert!(login(br#"{"data":{}}"#).is_err());
        let read = lookup(br#"{"data":{"id":"s.x","ttl":0,"renewable":false,"path":"auth/token/root"}}"#);
        assert_eq!(read.unwrap(), Lookup { ttl: 0, renewable: false });
    }

    #[test]
    fn errors_repeat_nothing() {
        let error = login(br#"{"auth":{"client_token":{"hush":1}}}"#).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("hush"), "{error}");
        assert_eq!(read_errors(br#"{"errors":["a",1,"b"]}"#), ["a", "b"]);
        assert_eq!(read_errors(b"<html>"), [""; 0]);
    }

    #[test]
    fn signatures() {
        let read = |text: &str| signature(format!(r#"{{"data":{{"signature":"{text}"}}}}"#).as_bytes());
        assert_eq!(read("vault:v12:AQI=").unwrap(), (12, vec![1, 2]));
        for bad in ["AQI=", "vault:v1:", "vault:vx:AQI=", "vault:v1:%%"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn transit_keys() {
        let body = |tag: &str, latest: u64| {
            format!(
                r#"{{"data":{{"type":"ecdsa-p256","latest_version":{latest},"keys":{{"1":{{"creation_time":"t","name":"P-256",
                "public_key":"-----BEGIN {tag}-----\nAQI=\n-----END {tag}-----\n"}}}}}}}}"#
            )
        };
        let read = transit_key(body("PUBLIC KEY", 1).as_bytes()).unwrap();
        assert_eq!((read.kind.as_str(), read.version, read.public_key), ("ecdsa-p256", 1, vec![1, 2]));
        assert!(transit_key(body("PUBLIC KEY", 2).as_bytes()).is_err());
        assert!(transit_key(body("PRIVATE KEY", 1).as_bytes()).is_err());
        let symmetric = br#"{"data":{"type":"aes256-gcm96","latest_version":1,"keys":{"1":1}}}"#;
        assert!(transit_key(symmetric).is_err());
    }
}
