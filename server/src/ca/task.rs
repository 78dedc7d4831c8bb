//! The loop around the manager. Nothing in it waits for an upstream authority, or for an operator's authority to spread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::X509Authority;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::manager::Manager;
use super::operate::{Command, Deferred};
use super::server_svid::Rotator;

/// Longest time between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Steps are due strictly after their moment.
const JUST_AFTER: Duration = Duration::from_millis(5);

pub(super) async fn run(mut manager: Manager, mut rotator: Rotator, mut inbox: mpsc::Receiver<Command>) {
    let mut roots = manager.upstream_roots();
    let mut deferred: Vec<Deferred> = Vec::new();
    loop {
        let rotation_due = manager.pass().await;
        let svid_due = rotator.turn(manager.now()).await;
        let pause = pause(&[rotation_due, svid_due], manager.now());
        let next_wish = deferred.iter().map(|deferred| deferred.until).min();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = until(next_wish) => {
                for wish in Deferred::take_due(&mut deferred) {
                    deferred.extend(manager.operate(wish).await);
                }
            }
            command = inbox.recv() => match command {
                // Nobody holds the handle any more.
                None => return,
                Some(Command::Poke) => {}
                Some(Command::Operate(wish)) => deferred.extend(manager.operate(wish).await),
            },
            // The failure has been noted; the next check goes on from there.
            answer = manager.answered() => drop(manager.take_answer(answer).await),
            () = changed(&mut roots) => {}
        }
    }
}

/// Sleeps until then, or for ever.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Until the first of the moments that lie ahead, at most one check interval. A moment that has passed is something
/// that just failed to happen, which is tried again at the next check.
fn pause(due: &[Option<SystemTime>], now: SystemTime) -> Duration {
    let ahead =
        due.iter().flatten().filter_map(|due| due.duration_since(now).ok()).filter(|left| !left.is_zero());
    ahead.map(|left| left + JUST_AFTER).fold(CHECK_INTERVAL, Duration::min)
}

/// Waits until the upstream roots change; for ever when there is no upstream, or it has no more to say. What they are is
/// looked at in each check.
async fn changed(roots: &mut Option<watch::Receiver<Arc<[X509Authority]>>>) {
    let Some(receiver) = roots else { return std::future::pending().await };
    if receiver.changed().await.is_err() {
        *roots = None;
        std::future::pending::<()>().await;
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
