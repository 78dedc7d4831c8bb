//! Manual operations: what an operator asks for, whether it may be done, and when.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::CaError;
use super::manager::Manager;
use super::slots::{AuthorityInfo, AuthorityKind, Status};

/// What the handle asks of the task.
pub(super) enum Command {
    /// Check now.
    Poke,
    /// A manual operation.
    Operate(Wish),
}

/// A manual operation, and who waits for it.
pub(super) struct Wish {
    pub(super) kind: AuthorityKind,
    pub(super) operation: Operation,
    pub(super) answer: oneshot::Sender<Result<AuthorityInfo, CaError>>,
}

/// A manual operation. Strings are authority IDs.
pub(super) enum Operation {
    Prepare,
    Activate(String),
    Taint(String),
    Revoke(String),
    /// Of the upstream root that the old authority was signed by.
    TaintUpstream(String),
    /// As [`Operation::TaintUpstream`].
    RevokeUpstream(String),
}

/// A wish whose time has not come: an authority that spreads, a tainted one that holders are leaving.
pub(super) struct Deferred {
    pub(super) until: Instant,
    wish: Wish,
}

impl Deferred {
    /// The wishes whose time has come; the others stay.
    pub(super) fn take_due(list: &mut Vec<Self>) -> Vec<Wish> {
        let now = Instant::now();
        list.extract_if(.., |deferred| deferred.until <= now).map(|deferred| deferred.wish).collect()
    }
}

impl Manager {
    /// Does what an operator wishes and answers, or gives it back for later. Nothing waits in here.
    pub(super) async fn operate(&mut self, wish: Wish) -> Option<Deferred> {
        let Wish { kind, operation, answer } = wish;
        match self.wait_for(kind, &operation).await {
            Err(error) => {
                // Whoever asked may have gone.
                let _ = answer.send(Err(error));
                None
            }
            Ok(wait) if !wait.is_zero() => {
                Some(Deferred { until: Instant::now() + wait, wish: Wish { kind, operation, answer } })
            }
            Ok(_) => {
                self.perform(kind, operation, answer).await;
                None
            }
        }
    }

    /// Whether an operation may be done, and how long it has to wait.
    async fn wait_for(&self, kind: AuthorityKind, operation: &Operation) -> Result<Duration, CaError> {
        Ok(match operation {
            Operation::Prepare => Duration::ZERO,
            Operation::Activate(id) => {
                self.require_prepared(kind, id)?;
                let left = self.spreading.left(kind);
                say_why(left, "The new authority gets time to spread first", kind);
                left
            }
            Operation::Taint(id) => {
                self.require_old(kind, id, "tainted", CaError::TaintCurrent)?;
                Duration::ZERO
            }
            Operation::Revoke(id) if kind == AuthorityKind::Jwt => {
                self.require_revocable_key(id).await?;
                Duration::ZERO
            }
            Operation::Revoke(id) => {
                self.require_old(kind, id, "revoked", CaError::RevokeCurrent)?;
                self.wait_to_revoke(id).await
            }
            Operation::TaintUpstream(id) => {
                self.require_old_upstream(id)?;
                Duration::ZERO
            }
            Operation::RevokeUpstream(id) => {
                self.require_old_upstream(id)?;
                self.wait_to_revoke(id).await
            }
        })
    }

    async fn wait_to_revoke(&self, id: &str) -> Duration {
        let left = self.revoke_wait(id).await;
        say_why(
            left,
            "Holders of what the authority signed get time to replace it first",
            AuthorityKind::X509,
        );
        left
    }

    async fn perform(
        &mut self,
        kind: AuthorityKind,
        operation: Operation,
        answer: oneshot::Sender<Result<AuthorityInfo, CaError>>,
    ) {
        let done = match operation {
            Operation::Prepare if kind == AuthorityKind::X509 && self.upstream.is_some() => {
                return self.prepare_upstream(answer).await;
            }
            Operation::Prepare => self.prepare(kind).await,
            Operation::Activate(_) => self.activate(kind).await,
            Operation::Taint(id) => self.taint(kind, &id).await,
            Operation::Revoke(id) => self.revoke(kind, &id).await,
            Operation::TaintUpstream(id) => self.taint(AuthorityKind::X509, &id).await,
            Operation::RevokeUpstream(id) => self.revoke(AuthorityKind::X509, &id).await,
        };
        // What was asked for is done all the same if nobody waits any more.
        let _ = answer.send(done);
    }

    fn require_prepared(&self, kind: AuthorityKind, id: &str) -> Result<(), CaError> {
        let state = self.state.state(kind);
        match state.prepared.or(state.old) {
            _ if id.is_empty() => Err(CaError::AuthorityIdMissing),
            Some(next) if next.authority_id == id && next.status == Status::Prepared => Ok(()),
            Some(next) if next.authority_id == id => Err(CaError::NotPrepared),
            Some(_) | None => Err(CaError::AuthorityIdUnexpected),
        }
    }

    /// Checks in SPIRE's order that `id` is the authority that was replaced last.
    fn require_old(
        &self,
        kind: AuthorityKind,
        id: &str,
        done: &'static str,
        is_current: CaError,
    ) -> Result<(), CaError> {
        if kind == AuthorityKind::X509 && self.state.upstream.is_some() {
            return Err(CaError::HasUpstream(done));
        }
        let state = self.state.state(kind);
        match state.prepared.or(state.old) {
            _ if id.is_empty() => Err(CaError::AuthorityIdMissing),
            _ if state.active.is_some_and(|active| active.authority_id == id) => Err(is_current),
            Some(next) if next.authority_id == id && next.status == Status::Old => Ok(()),
            Some(next) if next.authority_id == id => Err(CaError::NotOld(done)),
            Some(_) | None => Err(CaError::AuthorityIdUnexpected),
        }
    }

    /// A JWT authority can be revoked if it neither signs nor stands ready to: also one of another server, or of before.
    async fn require_revocable_key(&self, id: &str) -> Result<(), CaError> {
        let state = self.state.state(AuthorityKind::Jwt);
        let is = |info: &Option<AuthorityInfo>| info.as_ref().is_some_and(|info| info.authority_id == id);
        match () {
            () if id.is_empty() => Err(CaError::AuthorityIdMissing),
            () if is(&state.prepared) => Err(CaError::NotOld("revoked")),
            () if is(&state.old) => Ok(()),
            () if is(&state.active) => Err(CaError::RevokeCurrent),
            () => {
                let bundle = self.store.bundle().await?;
                let known = bundle.is_some_and(|bundle| bundle.jwt_authority(id).is_some());
                if known { Ok(()) } else { Err(CaError::AuthorityIdUnexpected) }
            }
        }
    }

    /// Checks in SPIRE's order that `id` signed the authority that was replaced last, and not the one that signs now.
    /// SPIRE looks at the key next above only; a root behind intermediates counts here, too.
    fn require_old_upstream(&self, id: &str) -> Result<(), CaError> {
        if self.state.upstream.is_none() {
            return Err(CaError::NoUpstream);
        }
        let signed = |info: &AuthorityInfo| {
            info.upstream_authority_id == id
                || self.journal.issuers(&info.authority_id).iter().any(|issuer| issuer == id)
        };
        let state = self.state.state(AuthorityKind::X509);
        match state.prepared.or(state.old) {
            _ if id.is_empty() => Err(CaError::SubjectKeyIdMissing),
            _ if state.active.is_some_and(|active| signed(&active)) => Err(CaError::UpstreamCurrent),
            Some(next) if signed(&next) && next.status == Status::Old => Ok(()),
            Some(next) if signed(&next) => Err(CaError::UpstreamPrepared),
            Some(_) | None => Err(CaError::UpstreamUnknown),
        }
    }

    async fn taint(&mut self, kind: AuthorityKind, id: &str) -> Result<AuthorityInfo, CaError> {
        let info = self.old(kind)?;
        match kind {
            AuthorityKind::X509 => {
                self.store.taint_x509(id).await?;
                self.note_tainted(id);
            }
            AuthorityKind::Jwt => self.store.taint_jwt(id).await?,
        }
        Ok(info)
    }

    async fn revoke(&mut self, kind: AuthorityKind, id: &str) -> Result<AuthorityInfo, CaError> {
        // A JWT key may be of another server, whose slots are not ours.
        let info = self.old(kind).or_else(|error| self.state.state(kind).active.ok_or(error))?;
        match kind {
            AuthorityKind::X509 => {
                self.store.revoke_x509(id).await?;
                self.note_revoked(id).await;
            }
            AuthorityKind::Jwt => self.store.revoke_jwt(id).await?,
        }
        Ok(AuthorityInfo { authority_id: id.to_owned(), ..info })
    }

    fn old(&self, kind: AuthorityKind) -> Result<AuthorityInfo, CaError> {
        self.state.state(kind).old.ok_or(CaError::AuthorityIdUnexpected)
    }
}

fn say_why(left: Duration, why: &'static str, kind: AuthorityKind) {
    if !left.is_zero() {
        tracing::info!(wait_s = left.as_secs_f64().ceil(), authority = %kind, "{why}");
    }
}
