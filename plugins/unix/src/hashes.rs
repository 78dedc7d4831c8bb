//! SHA-256 of executables, computed once per file and state of it.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::sync::OnceCell;

/// Hashes kept, the oldest dropped first.
const MAX_HASHES: usize = 1024;
/// A file changed less than this ago is hashed anew each time: its time stamps may be too coarse to show a further
/// change.
const SETTLED: Duration = Duration::from_secs(2);
const CHUNK_BYTES: usize = 64 * 1024;

/// Why a file has no hash.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    /// The file is larger than `workload_size_limit`.
    #[error("workload exceeds size limit ({size} > {limit})")]
    TooLarge { size: u64, limit: u64 },
    /// It was written to while it was read.
    #[error("the executable changed while it was read")]
    Changed,
    /// It could not be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The thread that read it ended early.
    #[error("the reading thread ended early")]
    Interrupted,
}

/// A file and its state. Any write changes the times, and nothing but the clock can set the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileState {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileState {
    fn of(meta: &Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(self.ctime.0.try_into().unwrap_or(0));
        since_epoch.saturating_sub(changed) > SETTLED
    }
}

type Slot = Arc<OnceCell<Arc<str>>>;

#[derive(Default)]
struct Known {
    slots: HashMap<FileState, Slot>,
    order: VecDeque<FileState>,
}

impl Known {
    fn slot(&mut self, state: FileState) -> Slot {
        if let Some(slot) = self.slots.get(&state) {
            return Arc::clone(slot);
        }
        while self.order.len() >= MAX_HASHES {
            self.order.pop_front().map(|oldest| self.slots.remove(&oldest));
        }
        self.order.push_back(state);
        Arc::clone(self.slots.entry(state).or_default())
    }
}

/// The hashes known so far. Callers that ask for one file at once share one reading of it.
#[derive(Default)]
pub(crate) struct Hashes(Mutex<Known>);

impl Hashes {
    /// SHA-256 of the file's content in lower-case hex.
    /// # Errors
    /// [`HashError`]; a file larger than `limit` bytes is not read.
    pub(crate) async fn sha256(&self, file: File, limit: u64) -> Result<Arc<str>, HashError> {
        let state = FileState::of(&file.metadata()?);
        if state.size > limit {
            return Err(HashError::TooLarge { size: state.size, limit });
        }
        if !state.is_settled(SystemTime::now()) {
            return hash_on_thread(file, state).await;
        }
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner).slot(state);
        slot.get_or_try_init(|| hash_on_thread(file, state)).await.cloned()
    }
}

async fn hash_on_thread(file: File, state: FileState) -> Result<Arc<str>, HashError> {
    tokio::task::spawn_blocking(move || hash(&file, state)).await.unwrap_or(Err(HashError::Interrupted))
}

/// Reads no more than the size that was checked against the limit.
fn hash(file: &File, state: FileState) -> Result<Arc<str>, HashError> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut reader = file.take(state.size);
    loop {
        match reader.read(&mut chunk)? {
            0 => break,
            read => context.update(&chunk[..read]),
        }
    }
    if FileState::of(&file.metadata()?) != state {
        return Err(HashError::Changed);
    }
    Ok(hex::encode(context.finish()).into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file_with(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[tokio::test]
    async fn hashes_and_limits() {
        let file = file_with(b"some data");
        let want = "1307990e6ba5ca145eb35e99182a9bec46531bc54ddf656a602c780fa0240dee";
        let hashes = Hashes::default();
        for limit in [u64::MAX, 9] {
            assert_eq!(&*hashes.sha256(file.reopen().unwrap(), limit).await.unwrap(), want, "limit {limit}");
        }
        let refused = hashes.sha256(file.reopen().unwrap(), 8).await.unwrap_err();
        assert_eq!(refused.to_string(), "workload exceeds size limit (9 > 8)");
    }

    #[tokio::test]
    async fn a_fresh_file_is_never_taken_from_the_cache() {
        let (file, hashes) = (file_with(b"one"), Hashes::default());
        let first = hashes.sha256(file.reopen().unwrap(), u64::MAX).await.unwrap();
        std::fs::write(file.path(), b"two").unwrap();
        let second = hashes.sha256(file.reopen().unwrap(), u64::MAX).await.unwrap();
        assert_ne!(first, second);
        assert!(hashes.0.lock().unwrap().slots.is_empty());
    }

    #[tokio::test]
    async fn a_settled_file_is_read_once() {
        let hashes = Hashes::default();
        let exe = || File::open("/proc/self/exe").unwrap();
        let state = FileState::of(&exe().metadata().unwrap());
        let slot = hashes.0.lock().unwrap().slot(state);
        slot.set("cached".into()).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(state.ctime.0 as u64 + 3);
        assert!(state.is_settled(long_ago));
        if state.is_settled(SystemTime::now()) {
            assert_eq!(&*hashes.sha256(exe(), u64::MAX).await.unwrap(), "cached");
        }
    }

    #[test]
    fn the_oldest_hash_goes_first() {
        let mut known = Known::default();
        let state = |ino| FileState { dev: 1, ino, size: 1, mtime: (0, 0), ctime: (0, 0) };
        for ino in 0..2 * MAX_HASHES as u64 {
            known.slot(state(ino));
        }
        assert_eq!(known.slots.len(), MAX_HASHES);
        assert!(
            !known.slots.contains_key(&state(0))
                && known.slots.contains_key(&state(2 * MAX_HASHES as u64 - 1))
        );
    }

    #[test]
    fn a_file_written_to_meanwhile_is_refused() {
        let file = file_with(b"one");
        let mut state = FileState::of(&file.as_file().metadata().unwrap());
        state.mtime.0 -= 1;
        assert!(matches!(hash(file.as_file(), state), Err(HashError::Changed)));
    }
}
