//! The upstream authority.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_acmpca::Client;
use aws_sdk_acmpca::config::interceptors::InterceptorContext;
use aws_sdk_acmpca::config::retry::{ClassifyRetry, RetryAction};
use aws_sdk_acmpca::error::SdkError;
use aws_sdk_acmpca::operation::get_certificate::GetCertificateOutput;
use aws_sdk_acmpca::operation::issue_certificate::IssueCertificateError;
use aws_sdk_acmpca::primitives::Blob;
use aws_sdk_acmpca::types::{
    CertificateAuthority, CertificateAuthorityStatus, CertificateAuthorityUsageMode, SigningAlgorithm,
    Validity, ValidityPeriodType,
};
use svid_core::bundle::X509Authority;
use svid_core::clock::{Clock, unix_seconds};
use svid_core::pem::{block_to_pem, parse_certs_pem};
use svid_core::x509::{ParsedCert, VerifiedCsr, is_issued_by, is_self_issued, order_path};
use svid_plugin_api::{MintedCa, PluginCode, PluginError, UpstreamAuthority};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bundle::{self, RootSets};
use super::config::PcaConfig;
use crate::AccessKey;
use crate::errors::Call;
use crate::session::{Session, assume_role};

/// How long one attempt of a request may take.
const ATTEMPT: Duration = Duration::from_secs(60);
/// How long a start waits to hear of the CA.
const LOOK_UP: Duration = Duration::from_secs(10);
/// How long a certificate may take to be issued.
const MAX_WAIT: Duration = Duration::from_secs(180);
const MIN_POLL: Duration = Duration::from_secs(1);
const MAX_POLL: Duration = Duration::from_secs(16);
/// Life of a CA when none is asked for.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// The longest that a CA of the mode SHORT_LIVED_CERTIFICATE signs for.
const SHORT_LIVED: Duration = Duration::from_secs(7 * 24 * 3600);
/// The longest idempotency token.
const TOKEN_CHARS: usize = 36;

/// UpstreamAuthority `aws_pca`.
pub struct AwsPca {
    config: PcaConfig,
    client: Client,
    clock: Clock,
    /// What the CA was when it was last asked.
    last: Mutex<Option<CaFacts>>,
    roots: Arc<RootSets>,
    min_poll: Duration,
    _tasks: JoinSet<()>,
}

/// What tests set and operators do not.
pub(super) struct Seams<'a> {
    pub(super) access_key: Option<&'a AccessKey>,
    /// Of all services.
    pub(super) endpoint: Option<&'a str>,
    pub(super) min_poll: Duration,
}

/// The SDK takes a quota that is used up for throttling, and would ask again.
#[derive(Debug)]
struct QuotaIsFinal;

impl ClassifyRetry for QuotaIsFinal {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(Err(error)) = context.output_or_error() else { return RetryAction::NoActionIndicated };
        let refused =
            error.as_operation_error().and_then(|error| error.downcast_ref::<IssueCertificateError>());
        match refused {
            Some(refused) if refused.is_limit_exceeded_exception() => RetryAction::RetryForbidden,
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "quota is final"
    }
}

/// What a request has to know of the CA.
#[derive(Clone)]
struct CaFacts {
    status: CertificateAuthorityStatus,
    algorithm: Option<SigningAlgorithm>,
    not_after: Option<i64>,
    short_lived: bool,
}

impl From<CertificateAuthority> for CaFacts {
    fn from(ca: CertificateAuthority) -> Self {
        Self {
            status: ca.status.unwrap_or(CertificateAuthorityStatus::Failed),
            algorithm: ca.certificate_authority_configuration.map(|config| config.signing_algorithm),
            not_after: ca.not_after.map(|end| end.secs()),
            short_lived: ca.usage_mode == Some(CertificateAuthorityUsageMode::ShortLivedCertificate),
        }
    }
}

impl CaFacts {
    fn is_active(&self) -> bool {
        self.status == CertificateAuthorityStatus::Active
    }
}

impl fmt::Debug for AwsPca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsPca").field("config", &self.config).finish_non_exhaustive()
    }
}

impl AwsPca {
    /// Looks the CA up, and begins to follow the supplemental bundle.
    /// # Errors
    /// The bundle cannot be read, or AWS refuses. If it cannot be reached the server starts all the same: the CA it has
    /// may last until it can.
    pub async fn open(config: PcaConfig, clock: Clock) -> Result<Self, PluginError> {
        let seams = Seams { access_key: None, endpoint: None, min_poll: MIN_POLL };
        Self::open_with(config, clock, seams).await
    }

    pub(super) async fn open_with(
        config: PcaConfig,
        clock: Clock,
        seams: Seams<'_>,
    ) -> Result<Self, PluginError> {
        let mut supplemental = Vec::new();
        if let Some(path) = &config.supplemental_bundle_path {
            tracing::info!(
                supplemental_bundle_path = %path.display(),
                "Loading supplemental certificates for inclusion in the bundle"
            );
            supplemental = bundle::load(path)?;
        }
        let roots = RootSets::new(supplemental);
        let Seams { access_key, endpoint, min_poll } = seams;
        let session = Session { region: &config.region, access_key, endpoint, attempt: ATTEMPT };
        let mut sdk = session.load().await;
        if let Some(role) = &config.assume_role_arn {
            sdk = assume_role(&sdk, role).await;
        }
        let mut client = aws_sdk_acmpca::config::Builder::from(&sdk);
        if let Some(endpoint) = &config.endpoint {
            client.set_endpoint_url(Some(endpoint.clone()));
        }
        let mut tasks = JoinSet::new();
        if let Some(path) = &config.supplemental_bundle_path {
            tasks.spawn(bundle::follow(path.clone(), roots.clone()));
        }
        let client = Client::from_conf(client.retry_classifier(QuotaIsFinal).build());
        let pca = Self { config, client, clock, last: Mutex::default(), roots, min_poll, _tasks: tasks };
        pca.look_up().await?;
        Ok(pca)
    }

    async fn look_up(&self) -> Result<(), PluginError> {
        let arn = &self.config.certificate_authority_arn;
        tracing::info!(certificate_authority_arn = arn, "Looking up certificate authority from ACM");
        let silent =
            || PluginError::new(PluginCode::Unavailable, "no answer to DescribeCertificateAuthority");
        let answer = tokio::time::timeout(LOOK_UP, self.describe()).await;
        let facts = match answer.unwrap_or_else(|_| Err(silent())) {
            Ok(facts) => facts,
            Err(error) if error.code == PluginCode::Unavailable => {
                tracing::warn!(%error, "AWS Private CA does not answer; it is asked again when a CA is needed");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if !facts.is_active() {
            tracing::warn!(
                certificate_authority_arn = arn,
                status = facts.status.as_str(),
                "Certificate is in an invalid state for issuance"
            );
        }
        if facts.short_lived {
            tracing::warn!(
                certificate_authority_arn = arn,
                "The CA is of the mode SHORT_LIVED_CERTIFICATE: what it signs lasts for seven days at most"
            );
        }
        Ok(())
    }

    async fn describe(&self) -> Result<CaFacts, PluginError> {
        let arn = &self.config.certificate_authority_arn;
        let failed = "failed to describe CertificateAuthority";
        let call = Call { failed, action: "acm-pca:DescribeCertificateAuthority", on: arn };
        let request = self.client.describe_certificate_authority().certificate_authority_arn(arn);
        let answer = request.send().await.map_err(|error| call.error(&error))?;
        let ca = answer.certificate_authority;
        let facts: CaFacts =
            ca.ok_or_else(|| PluginError::internal(format!("{failed}: empty answer")))?.into();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts.clone());
        Ok(facts)
    }

    /// The CA as it is now or, while AWS does not answer that, as it was.
    async fn current(&self) -> Result<CaFacts, PluginError> {
        let facts = match self.describe().await {
            Err(error) if error.code == PluginCode::Unavailable => {
                let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
                last.ok_or(error)?
            }
            answer => answer?,
        };
        if facts.is_active() {
            return Ok(facts);
        }
        let arn = &self.config.certificate_authority_arn;
        let status = facts.status.as_str();
        let remedy = match facts.status {
            CertificateAuthorityStatus::PendingCertificate | CertificateAuthorityStatus::Creating => {
                "install its certificate"
            }
            CertificateAuthorityStatus::Disabled => "enable it",
            _ => "name another CA in certificate_authority_arn",
        };
        let text = format!("certificate authority {arn} is {status} and cannot sign; {remedy}");
        Err(PluginError::new(PluginCode::FailedPrecondition, text))
    }

    fn algorithm(&self, facts: &CaFacts) -> Result<SigningAlgorithm, PluginError> {
        let configured = self.config.signing_algorithm.as_deref().map(SigningAlgorithm::from);
        configured.or_else(|| facts.algorithm.clone()).ok_or_else(|| {
            PluginError::new(
                PluginCode::FailedPrecondition,
                "AWS does not say with which algorithm the CA signs; set signing_algorithm",
            )
        })
    }

    /// The end to ask for, in seconds since 1970: AWS refuses one behind the CA's own.
    fn end(&self, ttl: Duration, facts: &CaFacts) -> i64 {
        let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl };
        let ttl = if facts.short_lived { ttl.min(SHORT_LIVED) } else { ttl };
        let now = self.clock.now();
        let wanted = unix_seconds(now.checked_add(ttl).unwrap_or(now));
        match facts.not_after {
            Some(end) if end < wanted => {
                tracing::warn!(
                    certificate_authority_arn = self.config.certificate_authority_arn,
                    expiration = end,
                    "The CA ends before what was asked for: its own end is asked for"
                );
                end
            }
            _ => wanted,
        }
    }

    async fn issue(&self, csr: &[u8], ttl: Duration) -> Result<String, PluginError> {
        let facts = self.current().await?;
        let algorithm = self.algorithm(&facts)?;
        let arn = &self.config.certificate_authority_arn;
        let validity =
            Validity::builder().r#type(ValidityPeriodType::Absolute).value(self.end(ttl, &facts)).build();
        let validity = validity.map_err(|error| PluginError::internal(error.to_string()))?;
        tracing::info!(signing_algorithm = algorithm.as_str(), "Submitting CSR to ACM");
        let request = self.client.issue_certificate().certificate_authority_arn(arn);
        let request = request.csr(Blob::new(block_to_pem("CERTIFICATE REQUEST", csr)));
        let request = request.signing_algorithm(algorithm).validity(validity);
        let request =
            request.template_arn(&self.config.ca_signing_template_arn).idempotency_token(token(csr));
        let call = Call { failed: "failed submitting CSR", action: "acm-pca:IssueCertificate", on: arn };
        let answer = request.send().await.map_err(|error| call.error(&error))?;
        answer.certificate_arn.ok_or_else(|| PluginError::internal("failed submitting CSR: empty answer"))
    }

    /// Asks for the certificate until it is there.
    async fn fetch(&self, certificate_arn: &str) -> Result<GetCertificateOutput, PluginError> {
        tracing::info!(certificate_arn, "Waiting for issuance from ACM");
        let arn = &self.config.certificate_authority_arn;
        let call = Call { failed: "failed waiting for issuance", action: "acm-pca:GetCertificate", on: arn };
        let (deadline, mut pause) = (Instant::now() + MAX_WAIT, self.min_poll);
        loop {
            let request = self.client.get_certificate().certificate_authority_arn(arn);
            match request.certificate_arn(certificate_arn).send().await {
                Ok(answer) => {
                    tracing::info!(certificate_arn, "Certificate and chain received");
                    return Ok(answer);
                }
                Err(SdkError::ServiceError(error)) if error.err().is_request_in_progress_exception() => {
                    if Instant::now() + pause >= deadline {
                        let seconds = MAX_WAIT.as_secs();
                        let text = format!(
                            "failed waiting for issuance: {certificate_arn} was not issued within {seconds} s; the same \
                             request is made again"
                        );
                        return Err(PluginError::new(PluginCode::DeadlineExceeded, text));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_POLL);
                }
                Err(error) => return Err(call.error(&error)),
            }
        }
    }

    /// Puts what came into order, by signatures.
    fn accept(&self, answer: &GetCertificateOutput, csr: &VerifiedCsr) -> Result<MintedCa, PluginError> {
        let bad = |what: &str| PluginError::internal(what.to_owned());
        let cert = parse_certs_pem(answer.certificate.as_deref().unwrap_or_default());
        let cert = cert.ok().and_then(|certs| certs.into_iter().next());
        let cert = cert.ok_or_else(|| bad("failed to parse certificate from response"))?;
        let chain = parse_certs_pem(answer.certificate_chain.as_deref().unwrap_or_default()).ok();
        let chain = chain.filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| bad("failed to parse certificate chain from response"))?;
        let facts =
            ParsedCert::from_der(&cert).map_err(|_| bad("failed to parse certificate from response"))?;
        if facts.public_key_der() != csr.public_key().spki() {
            return Err(bad("the certificate from AWS is not for the key that was sent"));
        }
        let ordered = order_path(&cert, chain);
        let mut path = ordered
            .map_err(|error| bad(&format!("failed to parse certificate chain from response: {error}")))?
            .path;
        let root = self.take_root(&mut path).ok_or_else(|| {
            let arn = &self.config.certificate_authority_arn;
            let text = format!(
                "the chain from AWS does not lead from the new certificate to a root; import the whole chain into {arn}, or \
                 put its root into supplemental_bundle_path"
            );
            PluginError::new(PluginCode::FailedPrecondition, text)
        })?;
        let root = X509Authority::from_der(&root)
            .map_err(|error| bad(&format!("unable to form response upstream X.509 roots: {error}")))?;
        Ok(MintedCa { chain: path, roots: self.roots.with_root(root) })
    }

    /// The root at the end of a path, taken off, or that of the supplemental bundle which the path leads to.
    fn take_root(&self, path: &mut Vec<Vec<u8>>) -> Option<Vec<u8>> {
        let last = path.last()?;
        if is_self_issued(last) {
            return path.pop().filter(|_| !path.is_empty());
        }
        let supplemental = self.roots.supplemental();
        let root =
            supplemental.iter().find(|root| is_self_issued(root.der()) && is_issued_by(last, root.der()));
        root.map(|root| root.der().to_vec())
    }
}

/// The same for the same CSR: within five minutes AWS takes that for one request, so that a lost answer costs nothing.
fn token(csr: &[u8]) -> String {
    let hash = digest(&SHA256, csr);
    let mut token: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    token.truncate(TOKEN_CHARS);
    token
}

#[async_trait]
impl UpstreamAuthority for AwsPca {
    fn name(&self) -> &str {
        "aws_pca"
    }

    async fn mint_x509_ca(&self, csr: &[u8], ttl: Duration) -> Result<MintedCa, PluginError> {
        let request = VerifiedCsr::from_der(csr);
        let request = request.map_err(|error| PluginError::invalid(format!("invalid CSR: {error}")))?;
        let begun = SystemTime::now();
        let certificate_arn = self.issue(csr, ttl).await?;
        let answer = self.fetch(&certificate_arn).await?;
        let minted = self.accept(&answer, &request)?;
        let took_ms = begun.elapsed().unwrap_or_default().as_millis();
        tracing::debug!(certificate_arn, took_ms, "CA certificate taken over from AWS Private CA");
        Ok(minted)
    }

    fn roots(&self) -> watch::Receiver<Arc<[X509Authority]>> {
        self.roots.subscribe()
    }
}
