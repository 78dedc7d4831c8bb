//! Connections for reading: a few, kept open between reads.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::StoreError;
use super::db::{Conn, Connector};

/// How long a read waits for one of the connections.
const WAIT: Duration = Duration::from_secs(5);
/// A connection that was silent for this long is asked whether it still lives.
const TRUSTED: Duration = Duration::from_millis(500);

/// How many connections there may be, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolLimits {
    pub(super) open: usize,
    pub(super) idle: usize,
    pub(super) lifetime: Option<Duration>,
}

struct Idle {
    conn: Conn,
    opened: Instant,
    used: Instant,
}

/// Lends connections.
pub(super) struct Readers {
    connector: Connector,
    limits: PoolLimits,
    permits: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

/// A connection on loan. Dropped, it is closed, so that a read that failed or was given up leaves nothing behind.
pub(super) struct Reader<'p> {
    pub(super) conn: Conn,
    opened: Instant,
    readers: &'p Readers,
    _permit: SemaphorePermit<'p>,
}

impl Readers {
    pub(super) fn new(connector: Connector, limits: PoolLimits) -> Self {
        Self { connector, limits, permits: Semaphore::new(limits.open), idle: Mutex::default() }
    }

    /// A connection that answers.
    /// # Errors
    /// [`StoreError::Unavailable`] if all are busy for long, or none can be opened.
    pub(super) async fn get(&self) -> Result<Reader<'_>, StoreError> {
        let waited = tokio::time::timeout(WAIT, self.permits.acquire()).await;
        let permit = waited.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| StoreError::Closed)?;
        let (conn, opened) = match self.take_idle().await {
            Some(kept) => kept,
            None => (self.connector.connect().await?, Instant::now()),
        };
        Ok(Reader { conn, opened, readers: self, _permit: permit })
    }

    async fn take_idle(&self) -> Option<(Conn, Instant)> {
        loop {
            let Idle { mut conn, opened, used } = self.lock().pop()?;
            let too_old = self.limits.lifetime.is_some_and(|life| opened.elapsed() >= life);
            let in_doubt = self.connector.hangs_up() && used.elapsed() >= TRUSTED;
            if !too_old && (!in_doubt || conn.answers().await) {
                return Some((conn, opened));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader<'_> {
    /// Gives the connection back after a read that went well.
    pub(super) fn done(self) {
        let mut idle = self.readers.lock();
        if idle.len() < self.readers.limits.idle {
            idle.push(Idle { conn: self.conn, opened: self.opened, used: Instant::now() });
        }
    }
}
