//! The loop around the manager, and the manual operations it takes in.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::X509Authority;
use tokio::sync::{mpsc, watch};

use super::CaError;
use super::manager::{Command, Manager, Operation};
use super::server_svid::Rotator;
use super::slots::{AuthorityInfo, AuthorityKind, Status};

/// Longest time between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Steps are due strictly after their moment.
const JUST_AFTER: Duration = Duration::from_millis(5);

pub(super) async fn run(mut manager: Manager, mut rotator: Rotator, mut inbox: mpsc::Receiver<Command>) {
    let mut roots = manager.upstream_roots();
    loop {
        let rotation_due = manager.pass().await;
        let svid_due = rotator.turn(manager.now()).await;
        tokio::select! {
            () = tokio::time::sleep(pause(&[rotation_due, svid_due], manager.now())) => {}
            command = inbox.recv() => match command {
                // Nobody holds the handle any more.
                None => return,
                Some(Command::Poke) => {}
                Some(Command::Operate { kind, operation, answer }) => {
                    // Whoever asked may have gone; what was asked for is done all the same.
                    let _ = answer.send(manager.operate(kind, operation).await);
                }
            },
            Some(current) = next_roots(&mut roots) => manager.add_upstream_roots(&current).await,
        }
    }
}

/// Until the first of the moments that lie ahead, at most one check interval. A moment that has passed is something
/// that just failed to happen, which is tried again at the next check.
fn pause(due: &[Option<SystemTime>], now: SystemTime) -> Duration {
    let ahead =
        due.iter().flatten().filter_map(|due| due.duration_since(now).ok()).filter(|left| !left.is_zero());
    ahead.map(|left| left + JUST_AFTER).fold(CHECK_INTERVAL, Duration::min)
}

/// The next set of upstream roots; waits for ever when there is no upstream, or it has no more to say.
async fn next_roots(
    roots: &mut Option<watch::Receiver<Arc<[X509Authority]>>>,
) -> Option<Arc<[X509Authority]>> {
    let Some(receiver) = roots else { return std::future::pending().await };
    if receiver.changed().await.is_err() {
        *roots = None;
        return std::future::pending().await;
    }
    Some(receiver.borrow_and_update().clone())
}

impl Manager {
    async fn operate(&mut self, kind: AuthorityKind, operation: Operation) -> Result<AuthorityInfo, CaError> {
        match operation {
            Operation::Prepare => self.prepare(kind).await,
            Operation::Activate(id) => {
                self.require_prepared(kind, &id)?;
                self.spread_out(kind).await;
                self.activate(kind).await
            }
            Operation::Taint(id) => self.taint(kind, &id).await,
            Operation::Revoke(id) => self.revoke(kind, &id).await,
        }
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
    ) -> Result<AuthorityInfo, CaError> {
        if kind == AuthorityKind::X509 && self.state.upstream.is_some() {
            return Err(CaError::HasUpstream(done));
        }
        let state = self.state.state(kind);
        match state.old.or(state.prepared) {
            _ if id.is_empty() => Err(CaError::AuthorityIdMissing),
            _ if state.active.is_some_and(|active| active.authority_id == id) => Err(is_current),
            Some(next) if next.authority_id == id && next.status == Status::Old => Ok(next),
            Some(next) if next.authority_id == id => Err(CaError::NotOld(done)),
            Some(_) | None => Err(CaError::AuthorityIdUnexpected),
        }
    }

    async fn taint(&mut self, kind: AuthorityKind, id: &str) -> Result<AuthorityInfo, CaError> {
        let info = self.require_old(kind, id, "tainted", CaError::TaintCurrent)?;
        match kind {
            AuthorityKind::X509 => self.store.taint_x509(id).await?,
            AuthorityKind::Jwt => self.store.taint_jwt(id).await?,
        }
        if kind == AuthorityKind::X509 {
            self.state.tainted.push(id.into());
            self.publish();
        }
        Ok(info)
    }

    async fn revoke(&mut self, kind: AuthorityKind, id: &str) -> Result<AuthorityInfo, CaError> {
        let info = self.require_old(kind, id, "revoked", CaError::RevokeCurrent)?;
        match kind {
            AuthorityKind::X509 => self.store.revoke_x509(id).await?,
            AuthorityKind::Jwt => self.store.revoke_jwt(id).await?,
        }
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let check = |due: &[Option<SystemTime>], want| assert_eq!(pause(due, at(100)), want);
        check(&[None, None], CHECK_INTERVAL);
        check(&[Some(at(1000)), None], CHECK_INTERVAL);
        check(&[Some(at(1000)), Some(at(103))], Duration::from_millis(3005));
        check(&[Some(at(99)), Some(at(100))], CHECK_INTERVAL);
    }
}
