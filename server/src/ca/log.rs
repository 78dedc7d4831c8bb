//! The lines that operators and log searches know from SPIRE.

use std::time::SystemTime;

use svid_core::id::TrustDomain;

use super::slots::{AuthorityInfo, AuthorityKind};

/// A time as SPIRE's log lines carry it.
fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(
        |_| "out of range".to_owned(),
        |at| at.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string(),
    )
}

/// An authority was prepared.
pub(super) fn prepared(kind: AuthorityKind, info: &AuthorityInfo, self_signed: bool) {
    let (issued_at, expiration) = (time(info.issued_at), time(info.not_after));
    match kind {
        AuthorityKind::X509 => tracing::info!(
            slot = %info.slot,
            issued_at,
            expiration,
            self_signed,
            local_authority_id = info.authority_id,
            upstream_authority_id = info.upstream_authority_id,
            "X509 CA prepared"
        ),
        AuthorityKind::Jwt => tracing::info!(
            slot = %info.slot,
            issued_at,
            expiration,
            local_authority_id = info.authority_id,
            "JWT key prepared"
        ),
    }
}

/// An authority signs from now on.
pub(super) fn activated(
    kind: AuthorityKind,
    info: &AuthorityInfo,
    trust_domain: &TrustDomain,
    now: SystemTime,
) {
    let (issued_at, expiration) = (time(info.issued_at), time(info.not_after));
    match kind {
        AuthorityKind::X509 => {
            tracing::info!(
                slot = %info.slot,
                issued_at,
                expiration,
                local_authority_id = info.authority_id,
                upstream_authority_id = info.upstream_authority_id,
                "X509 CA activated"
            );
            let ttl = info.span().not_after.duration_since(now).unwrap_or_default().as_secs_f64();
            tracing::debug!(trust_domain_id = %trust_domain.id(), ttl, "Successfully rotated X.509 CA");
        }
        AuthorityKind::Jwt => tracing::info!(
            slot = %info.slot,
            issued_at,
            expiration,
            local_authority_id = info.authority_id,
            "JWT key activated"
        ),
    }
}

/// A journal entry cannot be used.
pub(super) fn unusable(kind: AuthorityKind, slot: &str, authority_id: &str, reason: &str) {
    match kind {
        AuthorityKind::X509 => {
            tracing::warn!(error = reason, slot, local_authority_id = authority_id, "X509CA slot unusable");
        }
        AuthorityKind::Jwt => {
            tracing::warn!(error = reason, slot, local_authority_id = authority_id, "JWT key slot unusable");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_read_as_in_spire() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        assert_eq!(time(at), "2023-11-14 22:13:20.25 +0000 UTC");
        assert_eq!(time(SystemTime::UNIX_EPOCH), "1970-01-01 00:00:00 +0000 UTC");
    }
}
