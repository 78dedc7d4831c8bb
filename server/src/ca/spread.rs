//! New authorities get time to spread before anything is signed with them.

use std::time::Duration;

use tokio::time::Instant;

use super::slots::AuthorityKind;

/// How long a new authority stands in the bundle before anything is signed with it, where others go by the bundle:
/// two polls of a stock agent, which asks each 5 s. Our agents and the other servers learn of it within a second.
pub const SPREAD: Duration = Duration::from_secs(10);

/// Until when the prepared authorities spread.
#[derive(Debug, Default)]
pub(super) struct Spreading {
    x509: Option<Instant>,
    jwt: Option<Instant>,
}

impl Spreading {
    /// The prepared authority of a kind is in the bundle since now, and waits for so long.
    pub(super) fn begin(&mut self, kind: AuthorityKind, wait: Duration) {
        let until = Some(Instant::now() + wait);
        match kind {
            AuthorityKind::X509 => self.x509 = until,
            AuthorityKind::Jwt => self.jwt = until,
        }
    }

    /// How long the prepared authority has to wait still.
    pub(super) fn left(&self, kind: AuthorityKind) -> Duration {
        let until = match kind {
            AuthorityKind::X509 => self.x509,
            AuthorityKind::Jwt => self.jwt,
        };
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}
