//! What is sent to have a CA signed.

use std::time::Duration;

use async_trait::async_trait;
use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;
use serde::Serialize;
use svid_core::pem::block_to_pem;
use svid_core::x509::VerifiedCsr;
use svid_plugin_api::PluginError;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::UpstreamConfig;

/// Life of a CA when none is asked for. A mount's own default is a month.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// `POST <mount>/root/sign-intermediate`, or that of a named issuer. Lists go as JSON arrays: joined with commas, an
/// organisation such as `Acme, Inc.` would become two. What is absent is left out: Vault takes `null` for zero.
#[derive(Debug, Serialize)]
pub(super) struct SignIntermediate {
    #[serde(skip)]
    path: String,
    csr: String,
    common_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    organization: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ou: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    country: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    locality: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    province: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    street_address: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    postal_code: Vec<String>,
    uri_sans: UriSans,
    /// The common name of a CA is no host name, whatever it looks like.
    exclude_cn_from_sans: bool,
    ttl: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_path_length: Option<u8>,
}

/// One name goes as a string, which a policy's `allowed_parameters` can compare.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum UriSans {
    One(String),
    Many(Vec<String>),
}

impl SignIntermediate {
    pub(super) fn new(config: &UpstreamConfig, csr: &[u8], ttl: Duration) -> Result<Self, PluginError> {
        let refuse = |error: &dyn std::fmt::Display| {
            PluginError::invalid(format!("failed to parse CSR data: {error}"))
        };
        let verified = VerifiedCsr::from_der(csr).map_err(|error| refuse(&error))?;
        let (_, parsed) = X509CertificationRequest::from_der(csr).map_err(|_| refuse(&"malformed"))?;
        let subject = &parsed.certification_request_info.subject;
        let mut uris = verified.uri_sans().to_vec();
        let uri_sans = match (uris.pop(), uris.is_empty()) {
            (None, _) => return Err(PluginError::invalid("CSR must have at least one URI")),
            (Some(uri), true) if !uri.contains(',') => UriSans::One(uri),
            (Some(last), _) => UriSans::Many(uris.into_iter().chain([last]).collect()),
        };
        Ok(Self {
            path: match &config.issuer_ref {
                None => format!("{}/root/sign-intermediate", config.pki_mount_point),
                Some(issuer) => format!("{}/issuer/{issuer}/sign-intermediate", config.pki_mount_point),
            },
            csr: block_to_pem("CERTIFICATE REQUEST", csr),
            common_name: texts(subject, 3).into_iter().next().unwrap_or_default(),
            country: texts(subject, 6),
            locality: texts(subject, 7),
            province: texts(subject, 8),
            street_address: texts(subject, 9),
            organization: texts(subject, 10),
            ou: texts(subject, 11),
            postal_code: texts(subject, 17),
            uri_sans,
            exclude_cn_from_sans: true,
            ttl: format!("{}s", if ttl.is_zero() { DEFAULT_TTL } else { ttl }.as_secs().max(1)),
            max_path_length: config.max_path_length,
        })
    }
}

/// The values of one attribute of X.520: `id-at` is 2.5.4.
fn texts(name: &X509Name<'_>, id_at: u64) -> Vec<String> {
    let Ok(oid) = Oid::from(&[2, 5, 4, id_at]) else { return Vec::new() };
    name.iter_by_oid(&oid).filter_map(|value| value.as_str().ok().map(str::to_owned)).collect()
}

/// True if the CSR is for this key, a SubjectPublicKeyInfo in DER.
pub(super) fn has_key(csr: &[u8], public_key: &[u8]) -> bool {
    X509CertificationRequest::from_der(csr)
        .is_ok_and(|(_, csr)| csr.certification_request_info.subject_pki.raw == public_key)
}

#[async_trait]
impl Endpoint for SignIntermediate {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::POST
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        let body =
            serde_json::to_vec(self).map_err(|error| ClientError::DataParseError { source: error.into() })?;
        Ok(Some(body))
    }
}
