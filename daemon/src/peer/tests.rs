#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use futures_util::StreamExt;

use super::*;

#[test]
fn identifies_ourselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    let caller = CallerProcess::identify(server.as_fd()).unwrap();
    assert_eq!(caller.pid(), std::process::id());
    assert_eq!(caller.uid(), nix::unistd::geteuid().as_raw());
    assert_eq!(caller.gid(), nix::unistd::getegid().as_raw());
    let mut groups: Vec<_> = nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
    groups.sort_unstable();
    let mut seen = caller.groups().to_vec();
    seen.sort_unstable();
    assert_eq!(seen, groups);
    assert!(caller.is_same_process());
    let exe = std::fs::metadata("/proc/self/exe").unwrap();
    assert_eq!(caller.program(), Some((exe.dev(), exe.ino())));
    assert_eq!(caller.exe().unwrap().path, std::env::current_exe().unwrap());
    assert!(!caller.read("cgroup", 1 << 20).unwrap().is_empty());
    assert!(caller.read("status", 10).is_err());
    drop(client);
}

#[test]
fn an_ended_process_is_gone() {
    // SO_PEERCRED of a socket pair is that of its maker, so a child has to connect by itself.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let exe = std::env::current_exe().unwrap();
    let mut child = Command::new(exe)
        .args(["--exact", "peer::tests::child_connects", "--nocapture"])
        .env("SVID_TEST_CONNECT", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (server, _) = listener.accept().unwrap();
    let caller = CallerProcess::identify(server.as_fd()).unwrap();
    assert_eq!(caller.pid(), child.id());
    assert!(caller.is_same_process());
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(matches!(caller.check(), Err(PeerError::Gone)));
    assert!(CallerProcess::identify(server.as_fd()).is_err());
}

/// Not a test by itself: the other half of the tests that need a process of their own. It connects, then waits
/// for the end of its input, or runs the program in SVID_TEST_EXEC in place of itself.
#[test]
fn child_connects() {
    let Some(path) = std::env::var_os("SVID_TEST_CONNECT") else { return };
    let socket = UnixStream::connect(Path::new(&path)).unwrap();
    // Unbuffered, so that what follows is left for the program that takes over.
    nix::unistd::read(std::io::stdin(), &mut [0u8]).unwrap();
    if let Some(uid) = std::env::var_os("SVID_TEST_SETUID") {
        nix::unistd::setuid(uid.to_str().unwrap().parse::<u32>().unwrap().into()).unwrap();
        nix::sys::prctl::set_dumpable(false).unwrap();
        print!("~");
        std::io::Write::flush(&mut std::io::stdout()).unwrap();
        nix::unistd::read(std::io::stdin(), &mut [0u8]).unwrap();
    }
    if std::env::var_os("SVID_TEST_EXEC").is_some() {
        let error =
            std::os::unix::process::CommandExt::exec(Command::new("/bin/cat").stdin(Stdio::inherit()));
        panic!("{error}");
    }
    drop(socket);
}

#[test]
fn a_replaced_program_is_not_the_caller() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "peer::tests::child_connects", "--nocapture"])
        .env("SVID_TEST_CONNECT", &path)
        .env("SVID_TEST_EXEC", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (server, _) = listener.accept().unwrap();
    let caller = CallerProcess::identify(server.as_fd()).unwrap();
    let mut input = child.stdin.take().unwrap();
    // The first byte lets it exec `cat`, whose echo of the second proves that it did.
    input.write_all(b"g~").unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut byte = [0u8];
    while byte[0] != b'~' {
        output.read_exact(&mut byte).unwrap();
    }
    assert!(matches!(caller.check(), Err(PeerError::ChangedProgram)));
    drop(input);
    child.wait().unwrap();
}

/// A process that cannot be dumped keeps its directory, so its user can be told; one that was root and is somebody
/// else now is refused, although files of its directory still belong to root.
#[test]
fn a_process_that_cannot_be_dumped_shows_its_user() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let us = nix::unistd::geteuid().as_raw();
    let becomes = if us == 0 { 65534 } else { us };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "peer::tests::child_connects", "--nocapture"])
        .env("SVID_TEST_CONNECT", &path)
        .env("SVID_TEST_SETUID", becomes.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (server, _) = listener.accept().unwrap();
    let caller = CallerProcess::identify(server.as_fd()).unwrap();
    caller.check().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"g").unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut byte = [0u8];
    while byte[0] != b'~' {
        output.read_exact(&mut byte).unwrap();
    }
    match caller.check() {
        // Its program cannot be looked at any more by an agent without privileges.
        Err(PeerError::ChangedProgram) => assert_ne!(us, 0),
        Err(PeerError::ChangedUser { now_uid, .. }) => assert_eq!((us, now_uid), (0, becomes)),
        other => panic!("{other:?}"),
    }
    drop(input);
    child.wait().unwrap();
    assert!(matches!(caller.check(), Err(PeerError::Gone)));
}

#[tokio::test]
async fn sockets_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/api.sock");
    let listener = bind_private(&path, 0o777, 0o755).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o777, 0o755));
    let busy = bind_private(&path, 0o777, 0o755).unwrap_err();
    assert!(busy.to_string().contains("another process is listening"), "{busy}");
    drop(listener);
    drop(bind_private(&path, 0o770, 0o755).unwrap());
    std::fs::remove_file(&path).unwrap();
    symlink("/nowhere", &path).unwrap();
    assert!(bind_private(&path, 0o770, 0o755).unwrap_err().to_string().contains("symlink"));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "x").unwrap();
    assert!(bind_private(&path, 0o770, 0o755).unwrap_err().to_string().contains("not a socket"));
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(bind_private(&open.join("s"), 0o777, 0o755), Err(BindError::Directory { .. })));
}

#[tokio::test]
async fn accepts_identifies_and_caps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = bind_private(&path, 0o777, 0o755).unwrap();
    let mut incoming = Box::pin(incoming(listener, PeerOptions { max_per_uid: 1, ..PeerOptions::default() }));
    let _first = tokio::net::UnixStream::connect(&path).await.unwrap();
    let conn = incoming.next().await.unwrap().unwrap();
    assert_eq!(conn.caller().pid(), std::process::id());
    let mut second = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut byte = [0u8];
    tokio::select! {
        accepted = incoming.next() => panic!("{accepted:?}"),
        read = tokio::io::AsyncReadExt::read(&mut second, &mut byte) => assert_eq!(read.unwrap(), 0),
    }
    drop(conn);
    let _third = tokio::net::UnixStream::connect(&path).await.unwrap();
    assert!(incoming.next().await.unwrap().is_ok());
}
