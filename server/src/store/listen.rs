//! Hearing of what other servers wrote. PostgreSQL's notifications come at once but may be lost (a dead connection, a
//! pooler in between), so the log is looked at each second as well.

use std::sync::Weak;
use std::time::Duration;

use sqlx::postgres::PgListener;

use super::db::PgConnector;
use super::{Shared, StoreError};

/// The channel on which writers tell the change log's new end.
const CHANNEL: &str = "svid_log";
/// How often the log is looked at although nobody said anything.
const POLL: Duration = Duration::from_secs(1);
/// Pauses after a listener was lost.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// Wakes readers of the log until the store is gone.
pub(super) async fn run(connector: PgConnector, shared: Weak<Shared>) {
    let hear = async {
        let mut pause = RETRY;
        loop {
            match hear(&connector, &shared).await {
                Ok(()) => pause = RETRY,
                Err(error) => {
                    if pause == RETRY {
                        tracing::warn!(%error, "Other servers' notifications cannot be heard: looking each second");
                    }
                    pause = (pause * 2).min(LONGEST_RETRY);
                }
            }
            tokio::time::sleep(pause).await;
        }
    };
    let look = async {
        while wake(&shared, None) {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::select! {
        () = hear => {}
        () = look => {}
    }
}

/// Hears until the connection is lost.
async fn hear(connector: &PgConnector, shared: &Weak<Shared>) -> Result<(), StoreError> {
    let mut listener: PgListener = connector.listener().await?;
    listener.listen(CHANNEL).await?;
    wake(shared, None); // for what was said while nobody heard
    while let Some(heard) = listener.try_recv().await? {
        wake(shared, heard.payload().parse().ok());
    }
    Ok(())
}

/// Wakes readers unless they know this line, which is our own then. False if the store is gone.
fn wake(shared: &Weak<Shared>, seq: Option<u64>) -> bool {
    let Some(shared) = shared.upgrade() else { return false };
    let applied = *shared.applied.borrow();
    if seq.is_none() || applied < seq {
        shared.committed.send_modify(|_| {});
    }
    true
}
