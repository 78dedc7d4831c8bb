//! The CA's metrics under SPIRE's names.

use std::time::SystemTime;

use svid_core::clock::unix_seconds;
use svid_core::id::TrustDomain;
use svid_daemon::metrics::{Call, Counter, Gauge, Metrics};

use super::CaError;
use super::slots::{AuthorityInfo, AuthorityKind};

/// Handles, made once.
#[derive(Debug)]
pub(super) struct CaMetrics {
    pub(super) x509_svid: Counter,
    pub(super) x509_ca_svid: Counter,
    pub(super) jwt_svid: Counter,
    pub(super) prune: Call,
    pub(super) pruned: Counter,
    pub(super) rotate_svid: Call,
    prepare: [Call; 2],
    activate: [Counter; 2],
    expiration: Gauge,
    ttl: Gauge,
}

fn index(kind: AuthorityKind) -> usize {
    match kind {
        AuthorityKind::X509 => 0,
        AuthorityKind::Jwt => 1,
    }
}

impl CaMetrics {
    pub(super) fn new(metrics: &Metrics, trust_domain: &TrustDomain) -> Self {
        let sign = |what| metrics.counter(&["server_ca", "sign", what], &[]);
        let of_domain = [("trust_domain_id", trust_domain.as_str())];
        let rotate = |what| metrics.gauge(&["manager", "x509_ca", "rotate", what], &of_domain);
        Self {
            x509_svid: sign("x509_svid"),
            x509_ca_svid: sign("x509_ca_svid"),
            jwt_svid: sign("jwt_svid"),
            prune: metrics.call(&["ca", "manager", "bundle", "prune"]),
            pruned: metrics.counter(&["ca", "manager", "bundle", "pruned"], &[]),
            rotate_svid: metrics.call(&["svid", "rotate"]),
            prepare: ["x509_ca", "jwt_key"].map(|kind| metrics.call(&["ca", "manager", kind, "prepare"])),
            activate: [
                metrics.counter(&["ca", "manager", "x509_ca", "activate"], &[]),
                // Without `ca` in front, as in SPIRE.
                metrics.counter(&["manager", "jwt_key", "activate"], &[]),
            ],
            expiration: rotate("expiration"),
            ttl: rotate("ttl"),
        }
    }

    pub(super) fn prepare(&self, kind: AuthorityKind) -> &Call {
        &self.prepare[index(kind)]
    }

    pub(super) fn activated(&self, kind: AuthorityKind) {
        self.activate[index(kind)].add(1);
    }

    /// Shows until when the active X.509 authority lasts.
    pub(super) fn shows_active(&self, info: &AuthorityInfo, now: SystemTime) {
        #[allow(clippy::cast_precision_loss)] // seconds since 1970
        self.expiration.set(unix_seconds(info.not_after) as f64);
        self.ttl.set(info.not_after.duration_since(now).unwrap_or_default().as_secs_f64());
    }
}

/// The `status` of a call's metric. SPIRE's errors carry no code here.
pub(super) fn outcome<T>(result: &Result<T, CaError>) -> &'static str {
    if result.is_ok() { "OK" } else { "Unknown" }
}
