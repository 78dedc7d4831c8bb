//! The CA's settings, and whether they fit each other.

use std::time::Duration;

use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_core::key::KeyType;
pub use svid_core::x509::CaSubject;
use svid_daemon::metrics::Metrics;

use super::SPREAD;
use super::rotation::{ACTIVATE_CAP, ACTIVATE_DIVISOR};
use crate::clock_guard::ClockGuard;

/// SPIRE's `ca_ttl` default.
pub const DEFAULT_CA_TTL: Duration = Duration::from_secs(24 * 3600);
/// SPIRE's `default_x509_svid_ttl` default.
pub const DEFAULT_X509_SVID_TTL: Duration = Duration::from_secs(3600);
/// SPIRE's `default_jwt_svid_ttl` default.
pub const DEFAULT_JWT_SVID_TTL: Duration = Duration::from_secs(300);

/// How the CA issues. Checked by `config/`.
#[derive(Clone, Debug)]
pub struct CaConfig {
    /// Whose authority this is.
    pub trust_domain: TrustDomain,
    /// Life of X.509 and JWT authorities (`ca_ttl`).
    pub ca_ttl: Duration,
    /// Key type of X.509 authorities and of the server's own SVID (`ca_key_type`).
    pub ca_key_type: KeyType,
    /// Key type of JWT authorities (`jwt_key_type`).
    pub jwt_key_type: KeyType,
    /// Subject of X.509 authorities (`ca_subject`).
    pub ca_subject: CaSubject,
    /// `iss` of JWT-SVIDs (`jwt_issuer`).
    pub jwt_issuer: Option<String>,
    /// No JWT authorities at all (`disable_jwt_svids`).
    pub disable_jwt_svids: bool,
    /// Life of X.509-SVIDs whose entry states none (`default_x509_svid_ttl`).
    pub default_x509_svid_ttl: Duration,
    /// Life of JWT-SVIDs whose entry states none (`default_jwt_svid_ttl`).
    pub default_jwt_svid_ttl: Duration,
    /// Life of agents' SVIDs (`agent_ttl`), else that of X.509-SVIDs.
    pub agent_ttl: Option<Duration>,
    /// How long a new authority stands in the bundle before it signs, where others go by that bundle.
    pub spread: Duration,
    /// Counts what is signed and rotated.
    pub metrics: Metrics,
    /// Expired authorities leave the bundle only while the clocks agree.
    pub clock_guard: ClockGuard,
}

impl CaConfig {
    /// SPIRE's defaults.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            ca_ttl: DEFAULT_CA_TTL,
            ca_key_type: KeyType::EcP256,
            jwt_key_type: KeyType::EcP256,
            ca_subject: CaSubject::default(),
            jwt_issuer: None,
            disable_jwt_svids: false,
            default_x509_svid_ttl: DEFAULT_X509_SVID_TTL,
            default_jwt_svid_ttl: DEFAULT_JWT_SVID_TTL,
            agent_ttl: None,
            spread: SPREAD,
            metrics: Metrics::disabled(),
            clock_guard: ClockGuard::new(Clock::system()),
        }
    }

    /// Life of an agent's SVID.
    pub fn agent_svid_ttl(&self) -> Duration {
        self.agent_ttl.unwrap_or(self.default_x509_svid_ttl)
    }

    /// Longest SVID life that a scheduled rotation never cuts short.
    pub fn max_svid_ttl(&self) -> Duration {
        (self.ca_ttl / ACTIVATE_DIVISOR).min(ACTIVATE_CAP)
    }

    /// One sentence for each TTL that cannot always be honoured; to be logged as warnings at start-up.
    pub fn ttl_warnings(&self) -> Vec<String> {
        let max = self.max_svid_ttl();
        [
            ("default_x509_svid_ttl", Some(self.default_x509_svid_ttl)),
            ("default_jwt_svid_ttl", Some(self.default_jwt_svid_ttl)),
            ("agent_ttl", self.agent_ttl),
        ]
        .into_iter()
        .filter_map(|(name, ttl)| {
            ttl.filter(|ttl| *ttl > max).map(|ttl| ttl_warning(name, ttl, self.ca_ttl, max))
        })
        .collect()
    }
}

fn ttl_warning(name: &str, ttl: Duration, ca_ttl: Duration, max: Duration) -> String {
    let remedy = if ttl > ACTIVATE_CAP {
        format!("set {name} to {} or less", go(ACTIVATE_CAP))
    } else {
        format!("set {name} to {} or less, or ca_ttl to {} or more", go(max), go(ttl * ACTIVATE_DIVISOR))
    };
    format!(
        "{name} ({}) is too high for the configured ca_ttl ({}): SVIDs may end sooner than asked; {remedy}",
        go(ttl),
        go(ca_ttl)
    )
}

/// A duration as configuration files write it: `1h30m`.
fn go(duration: Duration) -> String {
    let all = duration.as_secs();
    let parts = [(all / 3600, "h"), (all / 60 % 60, "m"), (all % 60, "s")];
    let text: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svid_ttls_that_a_rotation_would_cut_are_named() {
        let mut config = CaConfig::new("example.org".parse().expect("trust domain"));
        assert_eq!(config.max_svid_ttl(), Duration::from_secs(4 * 3600));
        assert!(config.ttl_warnings().is_empty());
        config.default_x509_svid_ttl = Duration::from_secs(5 * 3600);
        config.agent_ttl = Some(Duration::from_secs(8 * 24 * 3600));
        assert_eq!(
            config.ttl_warnings(),
            [
                "default_x509_svid_ttl (5h) is too high for the configured ca_ttl (24h): SVIDs may end sooner than asked; set default_x509_svid_ttl to 4h or less, or ca_ttl to 30h or more",
                "agent_ttl (192h) is too high for the configured ca_ttl (24h): SVIDs may end sooner than asked; set agent_ttl to 168h or less",
            ]
        );
        config.ca_ttl = Duration::from_secs(365 * 24 * 3600);
        assert_eq!(config.max_svid_ttl(), ACTIVATE_CAP);
        assert_eq!(config.ttl_warnings().len(), 1);
    }
}
