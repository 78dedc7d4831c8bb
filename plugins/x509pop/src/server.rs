//! The server's half.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use svid_core::clock::Clock;
use svid_core::id::SpiffeId;
use svid_plugin_api::{AttestContext, AttestedNode, Challenger, PluginError, ServerNodeAttestor};
use x509_parser::certificate::X509Certificate;

use crate::config::{Mode, ServerConfig};
use crate::template::Data;
use crate::wire::{AttestationData, Response, to_json};
use crate::{NAME, chain, proof};

/// The X.509 authorities of the own trust domain in DER, as they are now.
pub type BundleSource = Arc<dyn Fn() -> Vec<Vec<u8>> + Send + Sync>;

/// The server's half of x509pop.
pub struct X509PopServer {
    config: ServerConfig,
    bundle: BundleSource,
    clock: Clock,
}

impl X509PopServer {
    /// An attestor; `bundle` is asked in SPIFFE mode only.
    pub fn new(config: ServerConfig, bundle: BundleSource, clock: Clock) -> Self {
        Self { config, bundle, clock }
    }

    /// Reads the payload and refuses what would be costly to look at.
    fn certificates(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>, PluginError> {
        let data: AttestationData = serde_json::from_slice(payload)
            .map_err(|error| PluginError::invalid(format!("failed to unmarshal data: {error}")))?;
        let chain: Vec<Vec<u8>> =
            data.certificates.unwrap_or_default().into_iter().map(|cert| cert.0).collect();
        if chain.is_empty() {
            return Err(PluginError::invalid("no certificate to attest"));
        }
        if chain.len() - 1 > self.config.max_intermediates {
            return Err(PluginError::invalid("too many intermediate certificates"));
        }
        for (at, der) in chain.iter().enumerate() {
            let (what, which) = match at {
                0 => ("unable to parse leaf certificate".to_owned(), "leaf certificate".to_owned()),
                at => (
                    format!("unable to parse intermediate certificate {}", at - 1),
                    format!("intermediate certificate {}", at - 1),
                ),
            };
            let cert = chain::parse(der).map_err(|error| PluginError::invalid(format!("{what}: {error}")))?;
            if chain::rsa_bits(&cert).is_some_and(|bits| bits > self.config.max_rsa_bits) {
                return Err(PluginError::invalid(format!("{which} key size too large")));
            }
        }
        Ok(chain)
    }

    fn check_address(&self, leaf: &X509Certificate<'_>, context: &AttestContext) -> Result<(), PluginError> {
        if !self.config.verify_client_ip {
            return Ok(());
        }
        let address = context
            .client_ip
            .ok_or_else(|| PluginError::internal("client IP not available for verification"))?;
        match chain::has_ip(leaf, address) {
            true => Ok(()),
            false => {
                Err(PluginError::denied(format!("client IP {address} does not match any certificate IP SAN")))
            }
        }
    }

    /// In SPIFFE mode: what follows the prefix in the path of the certificate's SPIFFE ID.
    fn svid_path(&self, leaf: &X509Certificate<'_>, context: &AttestContext) -> Result<String, PluginError> {
        if self.config.mode == Mode::ExternalPki {
            return Ok(String::new());
        }
        let missing = || PluginError::denied("valid SVID x509 cert not found");
        let uri =
            chain::uris(leaf).into_iter().find(|uri| uri.starts_with("spiffe://")).ok_or_else(missing)?;
        let id: SpiffeId = uri.parse().map_err(|_| missing())?;
        if !id.is_member_of(&context.trust_domain) {
            return Err(missing());
        }
        let path = id.path().strip_prefix(&self.config.spiffe_prefix);
        path.map(str::to_owned).ok_or_else(|| PluginError::denied("x509 cert doesnt match SVID prefix"))
    }
}

/// `x509pop://<trust domain>/<key>/<value>` SANs.
fn san_selectors(leaf: &X509Certificate<'_>, trust_domain: &str) -> BTreeMap<String, String> {
    let prefix = format!("x509pop://{trust_domain}/");
    let pair = |uri: String| {
        let path = uri.strip_prefix(&prefix)?.trim_matches('/').to_owned();
        let (key, value) = path.split_once('/')?;
        Some((key.to_owned(), value.to_owned()))
    };
    chain::uris(leaf).into_iter().filter_map(pair).collect()
}

fn selector_values(
    leaf: &X509Certificate<'_>,
    authorities: &[String],
    sans: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut values = Vec::new();
    let name = chain::common_name(leaf);
    if !name.is_empty() {
        values.push(format!("subject:cn:{name}"));
    }
    values.extend(authorities.iter().map(|fingerprint| format!("ca:fingerprint:{fingerprint}")));
    values.push(format!("serialnumber:{}", chain::serial_hex(leaf)));
    values.extend(sans.iter().map(|(key, value)| format!("san:{key}:{value}")));
    values
}

#[async_trait]
impl ServerNodeAttestor for X509PopServer {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(
        &self,
        context: &AttestContext,
        payload: &[u8],
        challenger: &mut dyn Challenger,
    ) -> Result<AttestedNode, PluginError> {
        let certs = self.certificates(payload)?;
        let own_roots;
        let roots = match self.config.mode {
            Mode::ExternalPki => &self.config.roots,
            Mode::Spiffe => {
                own_roots = (self.bundle)();
                &own_roots
            }
        };
        let authorities = chain::verify(&certs, roots, self.clock.now())?;
        let unreadable = |error| PluginError::invalid(format!("unable to parse leaf certificate: {error}"));
        let leaf = chain::parse(&certs[0]).map_err(unreadable)?;
        self.check_address(&leaf, context)?;
        let challenge = proof::challenge(&leaf)?;
        let answer = challenger.challenge(to_json(&challenge)?).await?;
        let response: Response = serde_json::from_slice(&answer).map_err(|error| {
            PluginError::invalid(format!("unable to unmarshal challenge response: {error}"))
        })?;
        proof::verify(&leaf, &challenge, &response)
            .map_err(|why| PluginError::denied(format!("challenge response verification failed: {why}")))?;
        let svid_path = self.svid_path(&leaf, context)?;
        let sans = san_selectors(&leaf, context.trust_domain.as_str());
        let data = Data::new(&leaf, &certs[0], context.trust_domain.as_str(), &svid_path, &sans);
        let path = self.config.template.render(&data);
        let made = path.and_then(|path| {
            let id = SpiffeId::from_parts(context.trust_domain.as_str(), &format!("/spire/agent{path}"));
            id.map_err(|error| error.to_string())
        });
        Ok(AttestedNode {
            agent_id: made
                .map_err(|why| PluginError::internal(format!("failed to make spiffe id: {why}")))?,
            selector_values: selector_values(&leaf, &authorities, &sans),
            can_reattest: true,
        })
    }
}
