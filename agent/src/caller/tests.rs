#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use svid_core::selector::Selector;
use svid_plugin_api::{PluginError, WorkloadAttestor};

use super::*;

fn connect(dir: &Path) -> (UnixStream, Arc<CallerProcess>) {
    let path = dir.join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, Arc::new(CallerProcess::identify(server.as_fd()).unwrap()))
}

/// A process that connects and then stays. Python is what every test machine has that can connect and go on.
fn python(dir: &Path, program: &Path, then: &str) -> Option<(Child, Arc<CallerProcess>)> {
    let path = dir.join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let script = format!(
        "import socket,sys,os\ns=socket.socket(socket.AF_UNIX)\ns.connect({:?})\ns.set_inheritable(True)\n{then}",
        path.to_str().unwrap()
    );
    let child = Command::new(program)
        .arg("-c")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let (server, _) = listener.accept().unwrap();
    Some((child, Arc::new(CallerProcess::identify(server.as_fd()).unwrap())))
}

const WAIT: &str = "sys.stdin.read()";

fn interpreter() -> Option<std::path::PathBuf> {
    let found = Command::new("python3").args(["-c", "import sys;print(sys.executable)"]).output().ok()?;
    let path = String::from_utf8(found.stdout).ok()?;
    fs::canonicalize(path.trim()).ok()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

struct Count(AtomicUsize, Result<&'static str, &'static str>);

#[async_trait]
impl WorkloadAttestor for Count {
    fn name(&self) -> &str {
        "count"
    }
    async fn attest(&self, caller: &dyn Caller) -> Result<Vec<Selector>, PluginError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        assert!(caller.pid() > 0);
        self.1.map(|value| vec![Selector::new("count", value).unwrap()]).map_err(PluginError::internal)
    }
}

#[tokio::test]
async fn one_process_on_one_connection_is_attested_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_client, process) = connect(dir.path());
    let connection = Connection::from_process(process);
    let attestor = Arc::new(Count(AtomicUsize::new(0), Ok("a")));
    let attestors = Attestors::new(vec![Arc::clone(&attestor) as _]);
    for _ in 0..3 {
        assert_eq!(attestors.attest(&connection).await.unwrap().len(), 1);
    }
    assert_eq!(attestor.0.load(Ordering::Relaxed), 1);
    assert!(connection.is_agent());
}

#[tokio::test]
async fn some_attestors_may_fail_and_not_all() {
    let check = async |answers: &[Result<&'static str, &'static str>], want: Option<usize>| {
        let dir = tempfile::tempdir().unwrap();
        let (_client, process) = connect(dir.path());
        let attestors =
            answers.iter().map(|answer| Arc::new(Count(AtomicUsize::new(0), *answer)) as _).collect();
        let got = Attestors::new(attestors).attest(&Connection::from_process(process)).await;
        assert_eq!(got.as_ref().ok().map(|set| set.len()), want, "{answers:?}: {got:?}");
    };
    check(&[Ok("a"), Ok("b")], Some(2)).await;
    check(&[Ok("a"), Err("no")], Some(1)).await;
    check(&[Err("no"), Err("no")], None).await;
    check(&[], Some(0)).await;
}

#[test]
fn the_executable_is_the_one_at_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let (_client, process) = connect(dir.path());
    let exe = process::Process(process).executable().unwrap();
    assert_eq!(exe.path, std::env::current_exe().unwrap().canonicalize().unwrap());
}

/// A recycled pid cannot be met: the handle is the process's, and says that it ended.
#[tokio::test]
async fn a_caller_that_ended_is_nobody() {
    let (Some(python3), dir) = (interpreter(), tempfile::tempdir().unwrap()) else { return };
    let (child, process) = python(dir.path(), &python3, WAIT).unwrap();
    let connection = Connection::from_process(process);
    let attestors = Attestors::new(vec![Arc::new(Count(AtomicUsize::new(0), Ok("a")))]);
    attestors.attest(&connection).await.unwrap();
    end(child);
    assert!(connection.check().is_err());
    assert!(attestors.attest(&connection).await.is_err(), "what was known of it counts no more");
}

/// The child keeps the socket while the parent, who connected, runs something else.
#[test]
fn a_caller_that_execs_is_nobody() {
    let (Some(python3), dir) = (interpreter(), tempfile::tempdir().unwrap()) else { return };
    let then = "r,w=os.pipe()\nos.set_inheritable(w,True)\nif os.fork()==0:\n  os.close(w)\n  os.read(r,1)\n  os._exit(0)\nsys.stdin.readline()\nos.execvp('sh',['sh','-c','echo ready; exec sleep 60'])";
    let (mut child, process) = python(dir.path(), &python3, then).unwrap();
    let connection = Connection::from_process(process);
    connection.check().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut ready = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert!(connection.check().is_err());
    end(child);
}

#[test]
fn a_deleted_executable_is_refused() {
    let (Some(python3), dir) = (interpreter(), tempfile::tempdir().unwrap()) else { return };
    let copy = dir.path().join("workload");
    fs::copy(&python3, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let Some((child, process)) = python(dir.path(), &copy, WAIT) else { return };
    let process = process::Process(process);
    assert_eq!(process.executable().unwrap().path, copy.canonicalize().unwrap());
    fs::remove_file(&copy).unwrap();
    let refused = |why: &str| {
        let err = process.executable().err().expect("a refusal");
        assert!(err.message.contains(why), "{err}");
    };
    refused("it was deleted or replaced");
    fs::write(&copy, "something else").unwrap();
    refused("it was deleted or replaced");
    fs::write(dir.path().join("workload (deleted)"), "a trap").unwrap();
    refused("it was deleted or replaced");
    end(child);
}

/// In a mount namespace of its own a caller can show any path for its file; the agent looks with its own eyes.
#[test]
fn a_bind_mounted_executable_is_refused() {
    let (Some(python3), dir) = (interpreter(), tempfile::tempdir().unwrap()) else { return };
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (evil, good) = (dir.path().join("evil"), dir.path().join("good"));
    for path in [&evil, &good] {
        fs::copy(&python3, path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let script =
        format!("import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect({path:?})\nsys.stdin.read()");
    let mount =
        format!("mount --bind {} {} && exec {} -c \"$0\"", evil.display(), good.display(), good.display());
    let spawned =
        Command::new("unshare").args(["-m", "sh", "-c", &mount, &script]).stdin(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else { return };
    listener.set_nonblocking(true).unwrap();
    let server = loop {
        match listener.accept() {
            Ok((server, _)) => break server,
            // Namespaces are not to be had everywhere, not even for root.
            Err(_) if child.try_wait().unwrap().is_some() => return,
            Err(_) => std::thread::yield_now(),
        }
    };
    let process = process::Process(Arc::new(CallerProcess::identify(server.as_fd()).unwrap()));
    let err = process.executable().err().expect("a refusal");
    assert!(err.message.contains("another file lies there"), "{err}");
    end(child);
}
