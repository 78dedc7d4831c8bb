//! User and group names, cached briefly.
//!
//! A look-up may ask a directory service, so it runs on a thread that may block. A name lives a few seconds, and
//! not even that when the local database file changes: an id that was given to someone else must not go on under
//! its old name.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User};

const LIFE: Duration = Duration::from_secs(5);
/// More ids than this within one life and the cache starts over.
const MAX_NAMES: usize = 4096;

/// Which of the two databases.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Database {
    Users,
    Groups,
}

impl Database {
    fn file(self) -> &'static str {
        match self {
            Self::Users => "/etc/passwd",
            Self::Groups => "/etc/group",
        }
    }

    /// `None` for an id without a name. Errors count as that: the selector is left out, as in SPIRE.
    fn look_up(self, id: u32) -> Option<String> {
        let name = match self {
            Self::Users => User::from_uid(Uid::from_raw(id)).ok()??.name,
            Self::Groups => Group::from_gid(Gid::from_raw(id)).ok()??.name,
        };
        (!name.is_empty()).then_some(name)
    }

    fn stamp(self) -> Stamp {
        let meta = std::fs::metadata(self.file()).ok()?;
        Some([
            meta.dev(),
            meta.ino(),
            meta.size(),
            nanos(meta.mtime(), meta.mtime_nsec()),
            nanos(meta.ctime(), meta.ctime_nsec()),
        ])
    }
}

/// Wraps around, which is good enough to tell two moments apart.
fn nanos(seconds: i64, nanos: i64) -> u64 {
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos) as u64
}

/// What the local database file looks like; `None` when it cannot be looked at.
type Stamp = Option<[u64; 5]>;

#[derive(Default)]
struct Known {
    stamp: Stamp,
    names: HashMap<u32, (Instant, Option<String>)>,
}

impl Known {
    fn get(&mut self, id: u32, stamp: Stamp, now: Instant) -> Option<Option<String>> {
        if self.stamp != stamp {
            self.names.clear();
            self.stamp = stamp;
        }
        let (read_at, name) = self.names.get(&id)?;
        (now.saturating_duration_since(*read_at) < LIFE).then(|| name.clone())
    }

    /// Keeps a name unless the file changed since `stamp` was taken.
    fn put(&mut self, id: u32, name: Option<String>, stamp: Stamp, now: Instant) {
        if self.stamp != stamp {
            return;
        }
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        self.names.insert(id, (now, name));
    }
}

/// The names of one database.
pub(crate) struct Names {
    database: Database,
    known: Mutex<Known>,
}

impl Names {
    pub(crate) fn new(database: Database) -> Self {
        Self { database, known: Mutex::default() }
    }

    /// The name of each id, if it has one. The database file is looked at once for all of them.
    pub(crate) async fn of(&self, ids: impl Iterator<Item = u32> + Send) -> Vec<Option<String>> {
        let (database, stamp, now) = (self.database, self.database.stamp(), Instant::now());
        let mut names = Vec::new();
        for id in ids {
            let known = self.lock().get(id, stamp, now);
            names.push(match known {
                Some(name) => name,
                None => {
                    let name = tokio::task::spawn_blocking(move || database.look_up(id)).await.ok().flatten();
                    self.lock().put(id, name.clone(), stamp, now);
                    name
                }
            });
        }
        names
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Stamp = Some([1; 5]);

    #[test]
    fn a_name_lives_briefly() {
        let (mut known, start) = (Known::default(), Instant::now());
        assert_eq!(known.get(7, FILE, start), None);
        known.put(7, Some("web".into()), FILE, start);
        known.put(8, None, FILE, start);
        assert_eq!(known.get(7, FILE, start + LIFE / 2), Some(Some("web".into())));
        assert_eq!(
            known.get(8, FILE, start + LIFE / 2),
            Some(None),
            "that an id has no name is kept as well"
        );
        assert_eq!(known.get(7, FILE, start + LIFE), None);
    }

    #[test]
    fn a_changed_file_ends_every_name() {
        let (mut known, start) = (Known::default(), Instant::now());
        known.get(7, FILE, start);
        known.put(7, Some("web".into()), FILE, start);
        let changed = Some([2; 5]);
        assert_eq!(known.get(7, changed, start), None);
        known.put(7, Some("web".into()), FILE, start);
        assert_eq!(known.get(7, changed, start), None, "read before the change, so not kept");
    }

    #[test]
    fn the_cache_is_bounded() {
        let (mut known, start) = (Known::default(), Instant::now());
        known.get(0, FILE, start);
        for id in 0..10_000 {
            known.put(id, None, FILE, start);
        }
        assert!(known.names.len() <= MAX_NAMES);
    }

    #[tokio::test]
    async fn root_has_its_name() {
        let root = || Some("root".to_owned());
        let ids = || [0, u32::MAX - 7, 0].into_iter();
        assert_eq!(Names::new(Database::Users).of(ids()).await, [root(), None, root()]);
        assert_eq!(Names::new(Database::Groups).of(ids()).await, [root(), None, root()]);
    }
}
