//! The socket options that the crates we use do not cover.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Credentials of the process that connected, fixed at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Not in libc yet for every target. Source: asm-generic/socket.h.
const SO_PEERPIDFD: libc::c_int = 77;

fn option<T>(fd: BorrowedFd<'_>, name: libc::c_int, value: &mut T) -> io::Result<libc::socklen_t> {
    let mut len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let pointer = std::ptr::from_mut(value).cast::<libc::c_void>();
    // SAFETY: `pointer` is valid for `len` bytes, and both outlive the call.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, pointer, &raw mut len) };
    if result == 0 { Ok(len) } else { Err(io::Error::last_os_error()) }
}

/// SO_PEERCRED.
pub(super) fn credentials(fd: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut raw = libc::ucred { pid: 0, uid: 0, gid: 0 };
    option(fd, libc::SO_PEERCRED, &mut raw)?;
    let pid = u32::try_from(raw.pid).unwrap_or_default();
    Ok(Credentials { pid, uid: raw.uid, gid: raw.gid })
}

/// SO_PEERGROUPS: the supplementary groups at connect.
pub(super) fn groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // NGROUPS_MAX is 65536; most have a handful.
    let mut groups = vec![0u32; 64];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        let pointer = groups.as_mut_ptr().cast::<libc::c_void>();
        // SAFETY: `pointer` is valid for `len` bytes, and both outlive the call.
        let result = unsafe {
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, pointer, &raw mut len)
        };
        let count = usize::try_from(len).map_err(io::Error::other)? / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > 65536 {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// SO_PEERPIDFD: a handle on the very process that connected. Linux 6.5.
pub(super) fn pidfd(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut raw: RawFd = -1;
    option(fd, SO_PEERPIDFD, &mut raw)?;
    // SAFETY: the kernel has just installed this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
