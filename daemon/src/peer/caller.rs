//! One identified caller.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{PeerError, sys};

/// Longest `stat` file read, in bytes.
const PROC_FILE_LIMIT: u64 = 64 * 1024;

/// A process that connected, as the kernel vouched for it at that moment.
///
/// Everything read about it goes through one handle on its `/proc` directory, which never means another process,
/// even after its pid was used again.
#[derive(Debug)]
pub struct CallerProcess {
    pid: u32,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    pidfd: OwnedFd,
    proc_dir: OwnedFd,
    /// In clock ticks since boot; only where the handle came from the pid, on kernels before 6.5.
    start_time: Option<u64>,
    program: Option<(u64, u64)>,
}

/// The executable of a caller, opened once.
#[derive(Debug)]
pub struct Exe {
    /// The file itself, open for reading.
    pub file: File,
    /// Path the kernel gives for it; ends in ` (deleted)` when it is gone from there.
    pub path: PathBuf,
}

impl CallerProcess {
    /// Identifies the process at the other end of `socket`. To be called at accept, before anything is read.
    ///
    /// # Errors
    /// [`PeerError`]; the connection is to be dropped.
    pub fn identify(socket: BorrowedFd<'_>) -> Result<Self, PeerError> {
        let failed = |what| move |source| PeerError::System { what, source };
        let creds = sys::credentials(socket).map_err(failed("read the credentials"))?;
        if creds.pid == 0 {
            return Err(PeerError::OtherPidNamespace);
        }
        let groups = sys::groups(socket).map_err(failed("read the groups"))?;
        let (pidfd, from_socket) = pidfd(socket, creds.pid)?;
        let proc_dir = open_dir(creds.pid)?;
        let mut caller = Self {
            pid: creds.pid,
            uid: creds.uid,
            gid: creds.gid,
            groups,
            pidfd,
            proc_dir,
            start_time: None,
            program: None,
        };
        if !from_socket {
            caller.start_time = Some(caller.read_start_time()?);
        }
        caller.program = caller.read_program()?;
        let same_user = caller.check_owner();
        // Alive after the directory was opened: so the pid still meant this process when it was.
        caller.check_alive()?;
        same_user.map(|()| caller)
    }

    /// Process id, for log lines and selectors; not a handle.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Effective user id at connect.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Effective group id at connect.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Supplementary group ids at connect.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Device and inode of the program it ran when it connected, and still runs if [`Self::check`] says that nothing
    /// changed; `None` where we may not look.
    pub fn program(&self) -> Option<(u64, u64)> {
        self.program
    }

    /// Whether the kernel tied the handle to the connection (SO_PEERPIDFD), rather than to the pid.
    pub fn has_socket_pidfd(&self) -> bool {
        self.start_time.is_none()
    }

    /// The caller's directory below /proc.
    pub fn proc_dir(&self) -> BorrowedFd<'_> {
        self.proc_dir.as_fd()
    }

    /// Whether the process still lives, as the same user, running the same program. To be asked before every
    /// secret is written.
    pub fn is_same_process(&self) -> bool {
        self.check().is_ok()
    }

    /// [`Self::is_same_process`] with the reason.
    ///
    /// # Errors
    /// [`PeerError`] saying what changed.
    pub fn check(&self) -> Result<(), PeerError> {
        let same = self.check_facts();
        // Last, because what was read belongs to the process only if it still lives: the directory of a dead one
        // looks like root's.
        self.check_alive()?;
        same
    }

    fn check_facts(&self) -> Result<(), PeerError> {
        self.check_owner()?;
        if self.read_program()? != self.program {
            return Err(PeerError::ChangedProgram);
        }
        match self.start_time {
            Some(start_time) if self.read_start_time()? != start_time => Err(PeerError::Gone),
            _ => Ok(()),
        }
    }

    /// Reads a file below the caller's /proc directory, `cgroup` or `mountinfo` for example.
    ///
    /// # Errors
    /// What the system says; `InvalidData` when it has more than `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = File::from(openat(&self.proc_dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{name} has more than {limit} bytes"),
            ));
        }
        Ok(content)
    }

    /// Opens the executable. Needs the same user or CAP_SYS_PTRACE.
    ///
    /// # Errors
    /// What the system says.
    pub fn exe(&self) -> io::Result<Exe> {
        let file = openat(&self.proc_dir, "exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let path = rustix::fs::readlinkat(&self.proc_dir, "exe", Vec::new())?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes()));
        Ok(Exe { file: File::from(file), path })
    }

    /// Compares the effective user and group with those at connect. They own the process's directory, whether it can
    /// be dumped or not: only the files in it go to root then. Source: `task_dump_owner` in the kernel's
    /// fs/proc/base.c. Ten times cheaper than to read `status`.
    fn check_owner(&self) -> Result<(), PeerError> {
        let stat = rustix::fs::fstat(&self.proc_dir).map_err(|error| match error {
            Errno::SRCH | Errno::NOENT => PeerError::Gone,
            error => PeerError::System { what: "inspect the process directory", source: error.into() },
        })?;
        let (uid, gid, now_uid, now_gid) = (self.uid, self.gid, stat.st_uid, stat.st_gid);
        match (now_uid, now_gid) == (uid, gid) {
            true => Ok(()),
            false => Err(PeerError::ChangedUser { uid, gid, now_uid, now_gid }),
        }
    }

    fn check_alive(&self) -> Result<(), PeerError> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = rustix::event::Timespec::try_from(Duration::ZERO).ok();
        let ready = poll(&mut fds, now.as_ref())
            .map_err(|error| PeerError::System { what: "poll the process handle", source: error.into() })?;
        if ready == 0 { Ok(()) } else { Err(PeerError::Gone) }
    }

    /// Field 22 of `stat`; the name in field 2 may hold blanks and parentheses.
    fn read_start_time(&self) -> Result<u64, PeerError> {
        let stat = self.read("stat", PROC_FILE_LIMIT).map_err(|source| match source.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) => PeerError::Gone,
            _ => PeerError::System { what: "read /proc", source },
        })?;
        let stat = String::from_utf8_lossy(&stat);
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
        let field = after_name.and_then(|rest| rest.split_ascii_whitespace().nth(19));
        field.and_then(|field| field.parse().ok()).ok_or(PeerError::Proc { pid: self.pid, file: "stat" })
    }

    /// Device and inode of the program; `None` where we may not look.
    fn read_program(&self) -> Result<Option<(u64, u64)>, PeerError> {
        match statat(&self.proc_dir, "exe", AtFlags::empty()) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(Errno::SRCH) => Err(PeerError::Gone),
            // Kernel threads have none; another user's is closed to us without CAP_SYS_PTRACE.
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => Ok(None),
            Err(error) => Err(PeerError::System { what: "inspect the program", source: error.into() }),
        }
    }
}

fn open_dir(pid: u32) -> Result<OwnedFd, PeerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT | Errno::SRCH => PeerError::Gone,
        error => PeerError::System { what: "open /proc", source: error.into() },
    })
}

/// A handle on the caller, and whether the kernel tied it to the connection.
fn pidfd(socket: BorrowedFd<'_>, pid: u32) -> Result<(OwnedFd, bool), PeerError> {
    static OLD_KERNEL: Once = Once::new();
    let failed = |source| PeerError::System { what: "open a process handle", source };
    match sys::pidfd(socket) {
        Ok(pidfd) => return Ok((pidfd, true)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOPROTOOPT) => {}
            Some(libc::ESRCH | libc::EINVAL | libc::ENODATA) => return Err(PeerError::Gone),
            _ => return Err(failed(error)),
        },
    }
    OLD_KERNEL.call_once(|| {
        tracing::warn!(
            "This kernel has no SO_PEERPIDFD (Linux 6.5); callers are identified by PID and start time"
        );
    });
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(PeerError::Gone)?;
    match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(pidfd) => Ok((pidfd, false)),
        Err(Errno::SRCH | Errno::INVAL) => Err(PeerError::Gone),
        Err(error) => Err(failed(error.into())),
    }
}
