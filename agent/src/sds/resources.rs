//! Names to Envoy secrets.
//!
//! A name is looked up only among what the caller's own entries give it, so a name cannot ask for more than the
//! selectors do. One request may name any mix of identities and bundles.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use prost::Message;
use prost_types::Any;
use svid_core::bundle::{Bundle, X509Authority};
use svid_core::id::TrustDomain as CoreTrustDomain;
use svid_core::key::{KeyType, LocalKey};
use svid_core::pem;
use svid_core::x509::{CaSubject, ca};
use svid_proto::Encoded;
use svid_proto::envoy::config::core::v3::data_source::Specifier;
use svid_proto::envoy::config::core::v3::{DataSource, Node, TypedExtensionConfig, node};
use svid_proto::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use svid_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
};
use zeroize::{Zeroize as _, Zeroizing};

use super::SdsError;
use crate::cache::{Identity, WorkloadUpdate};
use crate::config::SdsConfig;

/// Type URL of every resource.
pub(crate) const SECRET_TYPE_URL: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR_TYPE_URL: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
const VALIDATOR_NAME: &str = "envoy.tls.cert_validator.spiffe";
const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
const DISABLE_KEY: &str = "disable_spiffe_cert_validation";

/// How bundles are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For Envoy's SPIFFE validator, which keeps trust domains apart.
    Spiffe,
    /// As plain `trusted_ca`.
    Plain,
}

impl Form {
    /// The form for this client: its metadata has the last word, except that an Envoy up to 1.17 has no validator.
    pub(crate) fn of(config: &SdsConfig, node: Option<&Node>) -> Self {
        let disabled = node.and_then(disabled_by_metadata).unwrap_or(config.disable_spiffe_cert_validation);
        if disabled || !node.is_none_or(has_validator) { Self::Plain } else { Self::Spiffe }
    }
}

fn disabled_by_metadata(node: &Node) -> Option<bool> {
    use prost_types::value::Kind;
    match node.metadata.as_ref()?.fields.get(DISABLE_KEY)?.kind.as_ref()? {
        Kind::BoolValue(value) => Some(*value),
        Kind::StringValue(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// A client that does not tell its version counts as new enough.
fn has_validator(node: &Node) -> bool {
    let Some(node::UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type else {
        return true;
    };
    let version = build.version.unwrap_or_default();
    (version.major_number, version.minor_number) > (1, 17)
}

/// One secret, encoded.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    /// The name it was asked for by.
    pub name: String,
    /// Another text if and only if the content is another. Says nothing about a key.
    pub version: String,
    /// An `envoy...Secret` in wiping bytes.
    pub secret: Encoded,
}

/// Which names a client wants.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted<'a> {
    /// Whatever it may have.
    All,
    /// These.
    Named(&'a BTreeSet<String>),
}

impl Wanted<'_> {
    fn has(&self, name: &str) -> bool {
        matches!(self, Self::Named(names) if names.contains(name))
    }

    fn has_or_all(&self, name: &str) -> bool {
        matches!(self, Self::All) || self.has(name)
    }
}

/// What became of the names.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Bundles, then certificates. No name occurs twice.
    pub resources: Vec<Resource>,
    /// Names that this caller has nothing under, sorted.
    pub missing: Vec<String>,
}

impl Found {
    fn has(&self, name: &str) -> bool {
        self.resources.iter().any(|resource| resource.name == name)
    }

    fn push(&mut self, resource: Resource) {
        if !self.has(&resource.name) {
            self.resources.push(resource);
        }
    }
}

/// Looks up names in one update.
/// # Errors
/// [`SdsError::NoValidator`] if all bundles are asked for in a form that cannot keep trust domains apart.
pub(crate) fn resolve(
    config: &SdsConfig,
    update: &WorkloadUpdate,
    wanted: Wanted<'_>,
    form: Form,
) -> Result<Found, SdsError> {
    let mut found = Found::default();
    push_bundles(config, update, wanted, form, &mut found)?;
    push_certificates(config, update, wanted, &mut found);
    if let Wanted::Named(names) = wanted {
        found.missing = names.iter().filter(|name| !found.has(name)).cloned().collect();
    }
    Ok(found)
}

fn push_bundles(
    config: &SdsConfig,
    update: &WorkloadUpdate,
    wanted: Wanted<'_>,
    form: Form,
    found: &mut Found,
) -> Result<(), SdsError> {
    let own = &*update.bundle;
    let own_id = own.trust_domain.id();
    if wanted.has_or_all(own_id.as_str()) {
        found.push(validation_context(own_id.as_str(), &[own], form));
    }
    if wanted.has(&config.default_bundle_name) {
        found.push(validation_context(&config.default_bundle_name, &[own], form));
    }
    let all_name = &config.default_all_bundles_name;
    if wanted.has(all_name) && *all_name != config.default_bundle_name {
        if form == Form::Plain {
            return Err(SdsError::NoValidator);
        }
        let mut all: Vec<&Bundle> = vec![own];
        all.extend(update.federated.values().map(|bundle| &**bundle));
        all.sort_by(|a, b| a.trust_domain.cmp(&b.trust_domain));
        found.push(validation_context(all_name, &all, form));
    }
    for bundle in update.federated.values() {
        let id = bundle.trust_domain.id();
        if wanted.has_or_all(id.as_str()) {
            found.push(validation_context(id.as_str(), &[bundle], form));
        }
    }
    Ok(())
}

fn push_certificates(config: &SdsConfig, update: &WorkloadUpdate, wanted: Wanted<'_>, found: &mut Found) {
    for identity in &update.identities {
        let id = identity.entry.spiffe_id.as_str();
        if wanted.has_or_all(id) {
            found.push(tls_certificate(id, identity));
        }
    }
    if let Some(first) = update.identities.first().filter(|_| wanted.has(&config.default_svid_name)) {
        found.push(tls_certificate(&config.default_svid_name, first));
    }
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..Default::default() })
}

fn pem_of(bundle: &Bundle) -> Vec<u8> {
    pem::certs_to_pem(bundle.x509_authorities.iter().map(|authority| authority.der())).into_bytes()
}

impl Found {
    /// Gives those who `had` a trust domain's bundle one that nothing verifies against, now that they may not have it
    /// any more. Envoy goes on with what it has when a name is refused or removed, so it would trust for ever.
    pub(crate) fn withdraw(&mut self, had: impl Fn(&str) -> bool, form: Form) {
        let (withdrawn, missing) = std::mem::take(&mut self.missing)
            .into_iter()
            .partition(|name| had(name) && trust_domain_of(name).is_some());
        self.missing = missing;
        for name in withdrawn {
            let bundle = trust_domain_of(&name).and_then(bundle_of_nobody);
            match bundle {
                Some(bundle) => self.push(validation_context(&name, &[&bundle], form)),
                None => self.missing.push(name),
            }
        }
    }
}

/// The trust domain whose bundle is asked for by `name`.
fn trust_domain_of(name: &str) -> Option<CoreTrustDomain> {
    let trust_domain = name.strip_prefix("spiffe://")?.parse::<CoreTrustDomain>().ok()?;
    (trust_domain.id().as_str() == name).then_some(trust_domain)
}

/// A bundle with one root, whose key was thrown away when it was made.
fn bundle_of_nobody(trust_domain: CoreTrustDomain) -> Option<Bundle> {
    static ROOT: LazyLock<Option<X509Authority>> = LazyLock::new(|| {
        let nobody = "withdrawn.invalid".parse().ok()?;
        let key = LocalKey::generate(KeyType::EcP256).ok()?.into_signer();
        let root =
            ca::self_signed_ca(&nobody, &CaSubject::default(), A_CENTURY, &*key, SystemTime::now()).ok()?;
        X509Authority::from_der(&root).ok()
    });
    let mut bundle = Bundle::empty(trust_domain);
    bundle.x509_authorities.push(ROOT.clone()?);
    Some(bundle)
}

/// `bundles` is one bundle in the plain form, and any number in the SPIFFE form.
fn validation_context(name: &str, bundles: &[&Bundle], form: Form) -> Resource {
    let context = match form {
        Form::Plain => CertificateValidationContext {
            trusted_ca: inline(bundles.iter().flat_map(|bundle| pem_of(bundle)).collect()),
            ..Default::default()
        },
        Form::Spiffe => CertificateValidationContext {
            custom_validator_config: Some(validator(bundles)),
            ..Default::default()
        },
    };
    let secret = Secret { name: name.into(), r#type: Some(secret::Type::ValidationContext(context)) };
    let secret = Encoded::of(&secret);
    Resource { name: name.into(), version: version_of([secret.as_bytes()]), secret }
}

fn validator(bundles: &[&Bundle]) -> TypedExtensionConfig {
    let trust_domains = bundles.iter().map(|bundle| TrustDomain {
        name: bundle.trust_domain.as_str().into(),
        trust_bundle: inline(pem_of(bundle)),
    });
    let config = SpiffeCertValidatorConfig { trust_domains: trust_domains.collect(), ..Default::default() };
    TypedExtensionConfig {
        name: VALIDATOR_NAME.into(),
        typed_config: Some(Any { type_url: VALIDATOR_TYPE_URL.into(), value: config.encode_to_vec() }),
    }
}

/// The key passes through one wiping PEM text and one buffer that is wiped right after it was encoded.
fn tls_certificate(name: &str, identity: &Identity) -> Resource {
    let chain = identity.x509.svid.chain();
    let key: Zeroizing<String> = pem::key_to_pem(&identity.x509.key);
    let certificate = TlsCertificate {
        certificate_chain: inline(chain.to_pem().into_bytes()),
        private_key: inline(key.as_bytes().to_vec()),
        ..Default::default()
    };
    let mut message = Secret { name: name.into(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
    let secret = Encoded::of(&message);
    wipe(&mut message);
    Resource { name: name.into(), version: version_of(chain.iter()), secret }
}

fn wipe(message: &mut Secret) {
    if let Some(secret::Type::TlsCertificate(certificate)) = &mut message.r#type
        && let Some(DataSource { specifier: Some(Specifier::InlineBytes(key)), .. }) =
            &mut certificate.private_key
    {
        key.zeroize();
    }
}

fn version_of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut context = Context::new(&SHA256);
    parts.into_iter().for_each(|part| context.update(part));
    hex::encode(&context.finish().as_ref()[..12])
}
