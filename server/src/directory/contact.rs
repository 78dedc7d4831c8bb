//! When the log was last read to its end, and who waits for the next reading.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};

use super::Unavailable;
use super::watch::lock;
use crate::store::StoreError;

/// The start of a reading, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    steady: Instant,
    wall: SystemTime,
}

/// A reading that ended, well or not.
#[derive(Clone, Debug)]
struct Reading {
    begun: Instant,
    outcome: Result<(), StoreError>,
}

/// One reading of the log's end serves all who asked before it began.
pub(super) struct Contact {
    last: watch::Sender<Reading>,
    /// Somebody waits for a reading.
    wanted: Notify,
    /// The last one that succeeded. Memory is as old as its start.
    good: Mutex<Begun>,
}

impl Contact {
    /// Memory was just loaded.
    pub(super) fn new(begun: Begun) -> Self {
        let last = watch::Sender::new(Reading { begun: begun.steady, outcome: Ok(()) });
        Self { last, wanted: Notify::new(), good: Mutex::new(begun) }
    }

    /// Notes the end of a reading.
    pub(super) fn ended(&self, begun: Begun, outcome: Result<(), StoreError>) {
        if outcome.is_ok() {
            *lock(&self.good) = begun;
        }
        self.last.send_replace(Reading { begun: begun.steady, outcome });
    }

    /// How old memory is. The steady clock stands still while a machine is suspended and the wall clock can be set, so
    /// the longer of both counts.
    pub(super) fn staleness(&self, wall: SystemTime) -> Duration {
        let good = *lock(&self.good);
        good.steady.elapsed().max(wall.duration_since(good.wall).unwrap_or_default())
    }

    /// False after a reading that failed.
    pub(super) fn is_well(&self) -> bool {
        self.last.borrow().outcome.is_ok()
    }

    /// Returns when somebody asks for a reading.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits for the first reading that begins after this call.
    /// # Errors
    /// That it failed.
    pub(super) async fn next(&self) -> Result<(), Unavailable> {
        let asked = Instant::now();
        let mut last = self.last.subscribe();
        self.wanted.notify_one();
        // The sender is in `self`, so waiting ends with the value only.
        let Ok(reading) = last.wait_for(|reading| reading.begun > asked).await else {
            return Err(Unavailable::Behind);
        };
        Ok(reading.outcome.clone()?)
    }
}

impl Begun {
    /// Now.
    pub(super) fn now(wall: SystemTime) -> Self {
        Self { steady: Instant::now(), wall }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_as_old_as_the_longer_of_both_clocks_says() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let contact = Contact::new(Begun::now(at(1000)));
        assert!(contact.staleness(at(1000)) < Duration::from_secs(60));
        assert!(contact.staleness(at(900)) < Duration::from_secs(60), "set back");
        assert_eq!(contact.staleness(at(5000)), Duration::from_secs(4000), "suspended");
        contact.ended(Begun::now(at(5000)), Err(StoreError::Closed));
        assert!(!contact.is_well());
        assert_eq!(contact.staleness(at(5000)), Duration::from_secs(4000));
        contact.ended(Begun::now(at(5000)), Ok(()));
        assert!(contact.is_well() && contact.staleness(at(5000)) < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_reading_that_began_before_the_question_is_no_answer() {
        let contact = std::sync::Arc::new(Contact::new(Begun::now(SystemTime::UNIX_EPOCH)));
        let begun = Begun::now(SystemTime::UNIX_EPOCH);
        let asker = contact.clone();
        let asked = tokio::spawn(async move { asker.next().await });
        contact.wanted().await;
        contact.ended(begun, Ok(()));
        tokio::task::yield_now().await;
        assert!(!asked.is_finished());
        contact.ended(Begun::now(SystemTime::UNIX_EPOCH), Err(StoreError::Closed));
        assert!(matches!(asked.await.unwrap(), Err(Unavailable::Store(StoreError::Closed))));
    }
}
