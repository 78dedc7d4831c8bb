//! Workloads that are not what they were when they connected, or not what they look like.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use svid_proto::workload::X509svidRequest;
use svid_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use svid_tests::caller::{copy_to, open_to_all};
use svid_tests::calls::fetch_x509;
use svid_tests::{Agent, AgentOptions, Caller, PATIENCE, Server, root, until};
use tempfile::TempDir;
use tokio::process::Command;
use tonic::{Code, Status};

/// A server and an agent that tells paths apart, with one entry.
struct Node {
    server: Server,
    agent: Agent,
    /// Holds the registered program.
    dir: TempDir,
}

impl Node {
    async fn with_entry(selectors: &[&str]) -> Self {
        let dir = TempDir::with_prefix("svid-program-").expect("temporary directory");
        open_to_all(dir.path());
        let server = Server::start().await;
        let options = AgentOptions { unix: "discover_workload_path = true".into(), ..Default::default() };
        let agent = Agent::join_with(&server, options).await;
        open_to_all(agent.path());
        let more: Vec<&str> = selectors[1..].iter().flat_map(|selector| ["-selector", selector]).collect();
        server.entry("/victim", selectors[0], &more).await;
        Self { server, agent, dir }
    }

    /// A node on which only a program at [`Node::program`] has an identity.
    async fn with_program() -> Self {
        let dir = TempDir::with_prefix("svid-program-").expect("temporary directory");
        let selector = format!("unix:path:{}", dir.path().join("victim").display());
        let node = Self::with_entry(&[&selector]).await;
        open_to_all(dir.path());
        let node = Self { dir, ..node };
        copy_to(&node.program());
        node
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("victim")
    }

    async fn connect(&self, command: Command, then: &[&str]) -> Caller {
        Caller::connect(command, &self.agent.socket(), then).await
    }

    /// The honest caller gets its SVID: from here on a refusal is not a matter of time.
    async fn wait_until_served(&self, command: impl Fn() -> Command) {
        let try_once = || async {
            let mut caller = self.connect(command(), &[]).await;
            fetch_x509(&caller.channel()).await.is_ok()
        };
        until("an SVID for the honest caller", try_once).await;
    }
}

/// As the attestation of one who is not who connected ends. If the change came before the agent had accepted the
/// connection, it closes it.
#[track_caller]
fn refused(answer: Result<(), Status>) {
    let status = answer.expect_err("refused");
    if std::error::Error::source(&status).is_some() {
        return; // the transport's error, not an answer
    }
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "workload attestation failed"));
}

fn as_user(program: &Path, uid: u32) -> Command {
    let mut command = Command::new(program);
    command.uid(uid).gid(uid);
    command
}

/// A copy of sleep(1) that runs as `uid` whoever starts it, if `uid` is given.
fn sleep_as(dir: &Path, uid: Option<u32>) -> String {
    let path = dir.join(format!("sleep-{}", uid.unwrap_or_default()));
    std::fs::copy("/bin/sleep", &path).expect("copy sleep");
    if let Some(uid) = uid {
        chown(&path, Some(uid), None).expect("chown");
    }
    let mode = if uid.is_some() { 0o4755 } else { 0o755 };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_connected_as_one_user_and_runs_as_another() {
    if !root("callers of other users") {
        return;
    }
    // Both users have an identity, so either would be the wrong one to give.
    let node = Node::with_entry(&["unix:uid:1001"]).await;
    let parent = node.server.id("/host");
    let id = node.server.id("/first");
    let args = ["entry", "create", "-parentID", &parent, "-spiffeID", &id, "-selector", "unix:uid:1000"];
    node.server.cli(&args).await.ok();
    copy_to(&node.program());
    let program = node.program();
    node.wait_until_served(|| as_user(&program, 1000)).await;
    node.wait_until_served(|| as_user(&program, 1001)).await;

    let setuid = sleep_as(node.dir.path(), Some(1001));
    let mut caller = node.connect(as_user(&program, 1000), &[&setuid, "600"]).await;
    caller.go_on().await;
    refused(fetch_x509(&caller.channel()).await);

    // The same with an SVID already given on this connection: what was found then does not hold any more.
    let mut caller = node.connect(as_user(&program, 1000), &[&setuid, "600"]).await;
    let channel = caller.channel();
    fetch_x509(&channel).await.expect("still the user who connected");
    caller.go_on().await;
    refused(fetch_x509(&channel).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_runs_another_program_than_the_one_that_connected() {
    let node = Node::with_program().await;
    node.wait_until_served(|| Command::new(node.program())).await;
    let other = sleep_as(node.dir.path(), None);
    let mut caller = node.connect(Command::new(node.program()), &[&other, "600"]).await;
    let channel = caller.channel();
    fetch_x509(&channel).await.expect("the registered program");
    caller.go_on().await;
    refused(fetch_x509(&channel).await);
    // Nor the other way round: a connection that another program opened is not the registered program's.
    std::fs::rename(&other, node.program()).expect("the registered program is sleep now");
    let thief = node.dir.path().join("thief");
    copy_to(&thief);
    let program = node.program().display().to_string();
    let mut caller = node.connect(Command::new(&thief), &[&program, "600"]).await;
    caller.go_on().await;
    refused(fetch_x509(&caller.channel()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_caller_whose_connection_somebody_kept() {
    let node = Node::with_program().await;
    node.wait_until_served(|| Command::new(node.program())).await;
    let mut caller = node.connect(Command::new(node.program()), &[]).await;
    caller.kill().await;
    refused(fetch_x509(&caller.channel()).await);

    let mut caller = node.connect(Command::new(node.program()), &[]).await;
    let channel = caller.channel();
    fetch_x509(&channel).await.expect("alive");
    caller.kill().await;
    refused(fetch_x509(&channel).await);
}

/// A stream that was opened honestly is no longer served once its opener is another, whatever there is to tell.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_of_a_caller_that_is_gone() {
    let node = Node::with_program().await;
    node.wait_until_served(|| Command::new(node.program())).await;
    let other = sleep_as(node.dir.path(), None);
    let mut open = Vec::new();
    for kill in [true, false] {
        let mut caller = node.connect(Command::new(node.program()), &[&other, "600"]).await;
        let mut client = SpiffeWorkloadApiClient::new(caller.channel());
        let mut request = tonic::Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().expect("ascii"));
        let mut stream = client.fetch_x509svid(request).await.expect("a stream").into_inner();
        stream.message().await.expect("an SVID").expect("open");
        match kill {
            true => caller.kill().await,
            false => caller.go_on().await,
        }
        open.push((caller, stream));
    }
    let selector = format!("unix:path:{}", node.program().display());
    node.server.entry("/second", &selector, &[]).await;
    for (_caller, mut stream) in open {
        let next = tokio::time::timeout(PATIENCE, stream.message()).await.expect("the stream ends");
        refused(next.map(|message| assert!(message.is_none(), "it was told more")));
    }
}

/// The next process of this machine gets `pid`, unless another one is started in between.
fn next_pid(pid: u32) -> std::io::Result<()> {
    std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recycled_pid() {
    if !root("a recycled PID") {
        return;
    }
    let node = Node::with_program().await;
    node.wait_until_served(|| Command::new(node.program())).await;
    // The thief is any other program; it keeps a connection and dies, and the victim is born with its PID.
    let thief = node.dir.path().join("thief");
    copy_to(&thief);
    for _ in 0..200 {
        let mut dead = Caller::connect_as(&thief, &node.agent.socket()).await;
        let channel = dead.channel();
        let pid = dead.pid();
        dead.kill().await;
        if next_pid(pid).is_err() {
            println!("skipped: PIDs cannot be chosen here");
            return;
        }
        let victim = Caller::connect_as(&node.program(), &node.agent.socket()).await;
        if victim.pid() == pid {
            refused(fetch_x509(&channel).await);
            return;
        }
    }
    panic!("the PID was never recycled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_executable() {
    let node = Node::with_program().await;
    node.wait_until_served(|| Command::new(node.program())).await;
    let mut before = node.connect(Command::new(node.program()), &[]).await;
    std::fs::remove_file(node.program()).expect("delete");
    refused(fetch_x509(&before.channel()).await);
    // Nor if a file is there again.
    copy_to(&node.program());
    let mut replaced = node.connect(Command::new(node.program()), &[]).await;
    std::fs::remove_file(node.program()).expect("delete");
    copy_to(&node.program());
    refused(fetch_x509(&replaced.channel()).await);
    node.wait_until_served(|| Command::new(node.program())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bind_mounted_executable() {
    if !root("a mount namespace") {
        return;
    }
    let node = Node::with_program().await;
    node.wait_until_served(|| Command::new(node.program())).await;
    let evil = node.dir.path().join("evil");
    copy_to(&evil);
    let inside = |script: String| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script, "sh"]);
        command
    };
    let program = node.program().display().to_string();
    let mounted = format!("mount --bind '{}' '{program}' && exec '{program}' \"$@\"", evil.display());
    let mut caller = node.connect(inside(mounted), &[]).await;
    let exe = std::fs::read_link(format!("/proc/{}/exe", caller.pid())).expect("running");
    assert_eq!(exe, node.program(), "it looks like the victim");
    refused(fetch_x509(&caller.channel()).await);

    // A whole file system over the directory, with a program of the same name in it.
    let dir = node.dir.path().display();
    let covered = format!(
        "mount -t tmpfs tmpfs /mnt && cp '{}' /mnt/victim && mount --move /mnt '{dir}' 2>/dev/null \
         || mount --bind /mnt '{dir}'; exec '{program}' \"$@\"",
        evil.display()
    );
    let mut caller = node.connect(inside(covered), &[]).await;
    refused(fetch_x509(&caller.channel()).await);
    // A mount of the true file at the true place is no lie.
    let honest = format!("mount --bind '{program}' '{program}' && exec '{program}' \"$@\"");
    let mut caller = node.connect(inside(honest), &[]).await;
    fetch_x509(&caller.channel()).await.expect("the registered program");
}
