//! Connects to a socket, hands the connection to a test, and becomes another program when told to.
//! Arguments: the socket, the test's socket, and the program to become.

use std::io::{IoSlice, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("svid-test-caller: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let mut next = || args.next().ok_or_else(|| std::io::Error::other("too few arguments"));
    let connection = UnixStream::connect(next()?)?;
    let mut control = UnixStream::connect(next()?)?;
    let fds = [connection.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(control.as_raw_fd(), &[IoSlice::new(b"c")], &rights, MsgFlags::empty(), None)?;
    // The end of the test ends this process as well.
    let told = control.read(&mut [0u8])?;
    match args.next() {
        Some(program) if told > 0 => Err(Command::new(program).args(args).exec()),
        _ => Ok(()),
    }
}
