//! A private PostgreSQL for tests, from the system's packages: started, stopped, killed, frozen, replicated, promoted.
//!
//! It lives in a fresh directory (in memory where there is room) with a Unix socket in it and a free port. A watchdog process ends it
//! and removes the directory when its handle is dropped, and also when the test itself is killed. Calls block, for a
//! second or so; they panic with what PostgreSQL said where something goes wrong.

mod cluster;
mod process;

use std::sync::{Arc, Mutex, PoisonError, Weak};

pub use cluster::{Database, Postgres, PostgresOptions, Shutdown, Sync};

/// The superuser of every cluster, and its password where one is asked for (over TCP).
pub const USER: &str = "svid";
/// See [`USER`].
pub const PASSWORD: &str = "hush-4711";

/// A fresh database in a PostgreSQL that all tests of this program share; it ends with the last one that uses it.
pub fn database() -> Database {
    static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let postgres = shared.upgrade().unwrap_or_else(|| {
        let postgres = Arc::new(Postgres::start());
        *shared = Arc::downgrade(&postgres);
        postgres
    });
    postgres.fresh_database()
}
