//! A process that connects to a socket and hands the connection to the test: who holds a connection and who made it
//! are then two processes, as with a child that kept what its parent opened.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use hyper_util::rt::TokioIo;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, RecvMsg, recvmsg};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use crate::PATIENCE;

/// The program of this package that connects for others.
pub fn program() -> PathBuf {
    crate::process::bin("svid-test-caller")
}

/// Puts a copy of the program into a directory that everybody can read.
pub fn copy_to(path: &Path) {
    std::fs::copy(program(), path).expect("copy the caller");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// Lets every user reach what lies in a temporary directory.
pub fn open_to_all(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// A process that connected.
pub struct Caller {
    child: Child,
    control: tokio::net::UnixStream,
    connection: Option<UnixStream>,
    _dir: TempDir,
}

impl Caller {
    /// Runs `command`, which has to run a copy of [`program`], and takes over its connection to `socket`. Once
    /// [`Caller::go_on`] is called the process becomes `then`, if there is one.
    pub async fn connect(mut command: Command, socket: &Path, then: &[&str]) -> Self {
        let dir = TempDir::with_prefix("svid-caller-").expect("temporary directory");
        open_to_all(dir.path());
        let path = dir.path().join("give.sock");
        let listener = UnixListener::bind(&path).expect("listen");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("chmod");
        let child = command.arg(socket).arg(&path).args(then).stdin(Stdio::null()).kill_on_drop(true).spawn();
        let child = child.expect("start the caller");
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let (control, _) = accepted.expect("the caller connected").expect("accept");
        let connection = control
            .async_io(tokio::io::Interest::READABLE, || receive(control.as_raw_fd()).map_err(Into::into))
            .await
            .expect("a connection");
        Self { child, control, connection: Some(UnixStream::from(connection)), _dir: dir }
    }

    /// As [`Caller::connect`] with a copy of the program and no user to change to.
    pub async fn connect_as(program: &Path, socket: &Path) -> Self {
        Self::connect(Command::new(program), socket, &[]).await
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("running")
    }

    /// Lets it become what comes after, and waits until it is that.
    pub async fn go_on(&mut self) {
        let exe = format!("/proc/{}/exe", self.pid());
        let before = std::fs::read_link(&exe).expect("running");
        self.control.write_all(b"g").await.expect("running");
        crate::until("exec", || async { std::fs::read_link(&exe).is_ok_and(|now| now != before) }).await;
    }

    /// kill -9; afterwards its process id is free.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("kill");
    }

    /// gRPC over the connection that the process opened. It shows with the first call whether the agent has closed it.
    pub fn channel(&mut self) -> Channel {
        let stream = self.connection.take().expect("used once");
        stream.set_nonblocking(true).expect("nonblocking");
        let mut stream = Some(tokio::net::UnixStream::from_std(stream).expect("a socket"));
        let connect = tower::service_fn(move |_: tonic::transport::Uri| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| std::io::Error::other("the connection ended")) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
    }
}

fn receive(socket: i32) -> nix::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message: RecvMsg<()> = recvmsg(socket, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let [fd] = fds[..]
        {
            // SAFETY: the kernel just made this descriptor for us, and nobody else knows its number.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(nix::Error::EBADMSG)
}
