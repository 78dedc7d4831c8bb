//! What a process holding keys does to itself at start, and the lock on its data directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

/// Bits that the umask always has: nothing for others, no writing for the group.
const MIN_UMASK: u32 = 0o027;
const LOCK_FILE: &str = "svid.lock";

/// Why a directory cannot be used or the process cannot protect itself.
#[derive(Debug, thiserror::Error)]
pub enum HardenError {
    /// A system call failed.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A path where others could put something in place of ours.
    #[error("{path} {why}", path = .path.display())]
    Unsafe {
        /// The path.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        why: String,
    },
    /// Another process works on this data directory.
    #[error("data_dir {path} is in use by another process (pid {pid}); two processes must not share one data_dir", path = .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Process id that the holder wrote down, `unknown` when it is not readable.
        pid: String,
    },
}

/// Changes made by [`harden`], for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardened {
    /// The umask before, when it was too permissive and had to change.
    pub old_umask: Option<u32>,
    /// The umask now.
    pub umask: u32,
    /// Open files allowed now.
    pub max_files: u64,
}

/// Sets the umask to at least 027, raises the soft limit of open files to the hard one, forbids core dumps and
/// makes the process not dumpable, so that no other process of the same user reads its memory.
///
/// To be called first in `main`, before threads. A process that is not dumpable still reads its own `/proc`
/// entries; to read those of another one it needs the same user id and that one dumpable, or CAP_SYS_PTRACE.
///
/// # Errors
/// [`HardenError::System`].
pub fn harden() -> Result<Hardened, HardenError> {
    let failed =
        |what: &str, error: nix::Error| HardenError::System { what: what.into(), source: error.into() };
    let old = umask(Mode::from_bits_truncate(MIN_UMASK)).bits();
    let wanted = old | MIN_UMASK;
    umask(Mode::from_bits_truncate(wanted));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| failed("forbid core dumps", error))?;
    nix::sys::prctl::set_dumpable(false).map_err(|error| failed("make the process not dumpable", error))?;
    let limit = Resource::RLIMIT_NOFILE;
    let (soft, hard) = getrlimit(limit).map_err(|error| failed("read the limit of open files", error))?;
    // A container may forbid it; the daemon then runs with what it has.
    let raised = soft >= hard || setrlimit(limit, hard, hard).is_ok();
    let max_files = if raised { hard } else { soft };
    Ok(Hardened { old_umask: (old != wanted).then_some(old), umask: wanted, max_files })
}

/// Holds a data directory for this process until dropped; the system releases it when the process ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: Flock<File>,
}

/// Creates `dir` (mode 0755 less the umask) where it is missing, checks that nobody else can write to it and
/// locks it.
///
/// # Errors
/// [`HardenError`]; [`HardenError::Locked`] for the second process.
pub fn lock_data_dir(dir: &Path) -> Result<DataDirLock, HardenError> {
    let failed =
        |source| HardenError::System { what: format!("open the data_dir {}", dir.display()), source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    check_private_dir(dir)?;
    let path = dir.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&path).map_err(failed)?;
    let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err((mut file, nix::Error::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let known =
                Read::by_ref(&mut file).take(32).read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
            let pid = if known { pid.trim().to_owned() } else { "unknown".to_owned() };
            return Err(HardenError::Locked { path: dir.into(), pid });
        }
        Err((_, error)) => return Err(failed(error.into())),
    };
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(failed)?;
    Ok(DataDirLock { _file: file })
}

/// Refuses `dir` when it is a symlink, belongs to neither us nor root, or others can write to it (a sticky
/// directory of root such as /tmp is fine), and refuses the directories above it on the same grounds, those of the
/// path as it is written and those it leads to. A symlink on the way is fine if it is ours or root's.
///
/// # Errors
/// [`HardenError::Unsafe`] with what to do about it.
pub fn check_private_dir(dir: &Path) -> Result<(), HardenError> {
    let refuse = |path: &Path, why: String| Err(HardenError::Unsafe { path: path.into(), why });
    let failed = |source| HardenError::System { what: format!("inspect {}", dir.display()), source };
    if std::fs::symlink_metadata(dir).map_err(failed)?.is_symlink() {
        return refuse(dir, "is a symlink; configure the directory it points to".into());
    }
    let real = std::fs::canonicalize(dir).map_err(failed)?;
    let us = nix::unistd::geteuid().as_raw();
    let written = dir.ancestors().filter(|path| !path.as_os_str().is_empty());
    for path in real.ancestors().chain(written) {
        let meta = std::fs::symlink_metadata(path).map_err(failed)?;
        if !meta.is_dir() && !meta.is_symlink() {
            return refuse(path, "is not a directory".into());
        }
        if meta.uid() != us && meta.uid() != 0 {
            let uid = meta.uid();
            return refuse(
                path,
                format!(
                    "belongs to uid {uid}, who could replace what is in it; it must belong to uid {us} or root"
                ),
            );
        }
        if meta.is_symlink() {
            continue; // its mode says nothing
        }
        let sticky_root = meta.mode() & 0o1000 != 0 && meta.uid() == 0;
        let own_group = meta.gid() == 0 || meta.gid() == nix::unistd::getegid().as_raw();
        let group_writes = path == real && meta.mode() & 0o020 != 0 && !own_group;
        if (meta.mode() & 0o002 != 0 || group_writes) && !sticky_root {
            let mode = meta.mode() & 0o7777;
            return refuse(
                path,
                format!("can be written by other users (mode {mode:o}); take that away with chmod go-w"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn second_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_data_dir(dir.path()).unwrap();
        let error = lock_data_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(first);
        lock_data_dir(dir.path()).unwrap();
    }

    #[test]
    fn directories_others_can_write_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        set_permissions(&inner, Permissions::from_mode(0o777)).unwrap();
        assert!(check_private_dir(&inner).unwrap_err().to_string().contains("written by other users"));
        assert!(lock_data_dir(&inner.join("below")).is_err());
        set_permissions(&inner, Permissions::from_mode(0o755)).unwrap();
        check_private_dir(&inner).unwrap();
        let link = dir.path().join("link");
        symlink(&inner, &link).unwrap();
        assert!(check_private_dir(&link).unwrap_err().to_string().contains("symlink"));
        check_private_dir(&link.join("below")).unwrap();
        if nix::unistd::geteuid().is_root() {
            // Whoever owns a link on the way can point it elsewhere later.
            std::os::unix::fs::lchown(&link, Some(65534), Some(65534)).unwrap();
            let error = check_private_dir(&link.join("below")).unwrap_err().to_string();
            assert!(error.contains("belongs to uid 65534"), "{error}");
        }
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        symlink(&inner, open.join("link")).unwrap();
        set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        let error = check_private_dir(&open.join("link/below")).unwrap_err().to_string();
        assert!(error.contains("written by other users"), "{error}");
    }
}
