//! Where requests go, who sends them, and how long they may take.

use std::fmt;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kms::config::{Credentials, SharedCredentialsProvider};
use zeroize::Zeroizing;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A throttled request waits 1 s, 2 s, 4 s and 8 s at the most, by chance less.
const ATTEMPTS: u32 = 5;
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// The session that an assumed role shows in CloudTrail.
const ROLE_SESSION: &str = "spire-server";

/// An access key from the configuration. `Debug` shows neither half.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// `access_key_id`.
    pub id: String,
    /// `secret_access_key`.
    pub secret: Zeroizing<String>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessKey")
    }
}

/// What a client is made with. Without an access key the SDK's chain finds credentials: environment, shared files, web
/// identity, container and instance.
pub(crate) struct Session<'a> {
    pub(crate) region: &'a str,
    pub(crate) access_key: Option<&'a AccessKey>,
    /// For all services, in tests; operators use `AWS_ENDPOINT_URL_<SERVICE>`.
    pub(crate) endpoint: Option<&'a str>,
    /// How long one attempt may take.
    pub(crate) attempt: Duration,
}

impl Session<'_> {
    pub(crate) async fn load(&self) -> SdkConfig {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(self.attempt)
            .operation_timeout(self.attempt * 2 + MAX_BACKOFF * 2)
            .build();
        let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS).with_max_backoff(MAX_BACKOFF);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.region.to_owned()))
            .timeout_config(timeouts)
            .retry_config(retries);
        if let Some(key) = self.access_key {
            let secret = key.secret.as_str();
            loader = loader.credentials_provider(Credentials::new(
                &key.id,
                secret,
                None,
                None,
                "svid-server configuration",
            ));
        }
        if let Some(endpoint) = self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        loader.load().await
    }
}

/// The same with the credentials of a role.
pub(crate) async fn assume_role(base: &SdkConfig, role: &str) -> SdkConfig {
    let provider = AssumeRoleProvider::builder(role).session_name(ROLE_SESSION).configure(base).build().await;
    base.to_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build()
}

/// The partition of an ARN: `aws`, `aws-cn`, `aws-us-gov`, ...
pub(crate) fn partition(arn: &str) -> &str {
    arn.strip_prefix("arn:").and_then(|rest| rest.split(':').next()).unwrap_or("aws")
}
