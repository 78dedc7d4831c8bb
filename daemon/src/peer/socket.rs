//! Sockets in the file system that nobody else can put themselves in front of.

use std::fs::{DirBuilder, Permissions, set_permissions, symlink_metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{SockType, getsockopt, sockopt};
use tokio::net::UnixListener;

use crate::harden::{HardenError, check_private_dir};

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The directory is not ours alone.
    #[error("cannot create a socket at {path}", path = .path.display())]
    Directory {
        /// The socket's path.
        path: PathBuf,
        /// What is wrong.
        source: HardenError,
    },
    /// Something that is not a stale socket of ours is in the way.
    #[error("cannot create a socket at {path}: {why}", path = .path.display())]
    Occupied {
        /// The socket's path.
        path: PathBuf,
        /// What is there.
        why: &'static str,
    },
    /// A socket that was passed in is not what it should be.
    #[error("cannot use the socket passed in for {path}: {why}", path = .path.display())]
    Passed {
        /// The socket's path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A system call failed.
    #[error("cannot create a socket at {path}", path = .path.display())]
    System {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens at `path`. Missing directories are made with `dir_mode`; a directory or a socket that is a symlink,
/// belongs to others or can be written by them is refused; a socket that nobody listens on is replaced. The
/// socket gets `mode` whatever the umask is.
///
/// # Errors
/// [`BindError`]. Must be called within a tokio runtime.
pub fn bind_private(path: &Path, mode: u32, dir_mode: u32) -> Result<UnixListener, BindError> {
    let system = |source| BindError::System { path: path.into(), source };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    make_dirs(dir, dir_mode).map_err(system)?;
    check_private_dir(dir).map_err(|source| BindError::Directory { path: path.into(), source })?;
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(system)?;
    // The directory is ours alone, so the path still means the socket just made.
    set_permissions(path, Permissions::from_mode(mode)).map_err(system)?;
    Ok(listener)
}

/// Takes over a listening socket that somebody else made at `path`, such as systemd. The same rules hold as for
/// [`bind_private`]: it has to lie at that very path, in a directory that is not others', belong to this process's user
/// or root, and be open to no more than `mode` says.
///
/// # Errors
/// [`BindError`]. Must be called within a tokio runtime.
pub fn adopt_private(listener: StdListener, path: &Path, mode: u32) -> Result<UnixListener, BindError> {
    let system = |source| BindError::System { path: path.into(), source };
    let refuse = |why| Err(BindError::Passed { path: path.into(), why });
    let listens = getsockopt(&listener, sockopt::AcceptConn).map_err(|error| system(error.into()))?;
    let is_stream = getsockopt(&listener, sockopt::SockType).map_err(|error| system(error.into()))?;
    if !listens || is_stream != SockType::Stream {
        return refuse("it is not a listening stream socket");
    }
    if !is_at(&listener, path) {
        return refuse("it lies at another path");
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    check_private_dir(dir).map_err(|source| BindError::Directory { path: path.into(), source })?;
    let meta = symlink_metadata(path).map_err(system)?;
    if !meta.file_type().is_socket() {
        return refuse("another file took its place");
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() && meta.uid() != 0 {
        return refuse("it belongs neither to root nor to this process's user (SocketUser=)");
    }
    if meta.mode() & 0o777 & !mode != 0 {
        return refuse("it is open to more than it may be (SocketMode=)");
    }
    listener.set_nonblocking(true).map_err(system)?;
    UnixListener::from_std(listener).map_err(system)
}

/// Whether `listener` was bound at `path`, whichever way the directory was named.
pub fn is_at(listener: &StdListener, path: &Path) -> bool {
    let real = |path: &Path| {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(std::fs::canonicalize(dir).ok()?.join(path.file_name()?))
    };
    let bound = listener.local_addr().ok();
    let bound = bound.as_ref().and_then(|address| address.as_pathname()).and_then(real);
    bound.is_some() && bound == real(path)
}

/// Creates what is missing of `dir`; the mode of the last part does not depend on the umask.
fn make_dirs(dir: &Path, mode: u32) -> io::Result<()> {
    if symlink_metadata(dir).is_ok() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    set_permissions(dir, Permissions::from_mode(mode))
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let occupied = |why| Err(BindError::Occupied { path: path.into(), why });
    let system = |source| BindError::System { path: path.into(), source };
    let meta = match symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
    };
    if meta.is_symlink() {
        return occupied("a symlink is in the way");
    }
    if !meta.file_type().is_socket() {
        return occupied("a file that is not a socket is in the way");
    }
    let us = nix::unistd::geteuid().as_raw();
    if meta.uid() != us && us != 0 {
        return occupied("a socket of another user is in the way");
    }
    match UnixStream::connect(path) {
        Ok(_) => occupied("another process is listening there"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(system)
        }
        Err(error) => Err(system(error)),
    }
}

/// Removes the file of a socket when dropped, so that a process that ends on an error leaves none behind either.
/// Best dropped before the listener: while that is open, nobody else makes a socket at the path.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl SocketFile {
    /// For a socket that [`bind_private`] just made at `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.into())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already, or a stale socket that the next start replaces.
        let _ = std::fs::remove_file(&self.0);
    }
}
