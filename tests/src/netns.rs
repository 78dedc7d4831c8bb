//! Network namespaces: machines of a scenario, with interfaces and loopbacks of their own. Needs root.
//!
//! A namespace lives as long as something is in it. What holds it open is a process that reads from a pipe of ours, so
//! it is gone with this test however that ends, and nothing is left in `/run/netns`.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Stdio;

use nix::sched::{CloneFlags, setns};
use tokio::process::{Child, Command};

use crate::process::run_at;

/// A machine of its own on a network of the scenario's own.
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    /// A namespace with nothing in it but a loopback that is up.
    pub async fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("unshare");
        let namespace = Self { holder };
        let own = namespace_of("self");
        let entered = || async { namespace_of(&namespace.pid().to_string()) != own };
        crate::until("a network namespace", entered).await;
        namespace.run(&["ip", "link", "set", "lo", "up"]).await;
        namespace
    }

    fn pid(&self) -> u32 {
        self.holder.id().expect("still running")
    }

    fn file(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// `program` as a command that runs inside. The process is the program itself, not a child.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file())).arg("--").arg(program);
        command
    }

    /// Runs a command inside that must succeed.
    pub async fn run(&self, args: &[&str]) {
        let net = format!("--net={}", self.file());
        run_at(Path::new("nsenter"), &[&[net.as_str(), "--"], args].concat()).await.ok();
    }

    /// Connects this one, as a switch, to a machine: an interface in each, that of the machine with `address` (CIDR).
    pub async fn plug_in(&self, port: &str, machine: &Namespace, address: &str) {
        let pid = machine.pid().to_string();
        self.run(&["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", &pid]).await;
        self.run(&["ip", "link", "set", port, "master", "bridge"]).await;
        self.run(&["ip", "link", "set", port, "up"]).await;
        machine.run(&["ip", "address", "add", address, "dev", "eth0"]).await;
        machine.run(&["ip", "link", "set", "eth0", "up"]).await;
    }

    /// Makes this one a switch, with an address of its own.
    pub async fn bridge(&self, address: &str) {
        self.run(&["ip", "link", "add", "bridge", "type", "bridge"]).await;
        self.run(&["ip", "address", "add", address, "dev", "bridge"]).await;
        self.run(&["ip", "link", "set", "bridge", "up"]).await;
    }

    /// Does something on a thread inside: a socket stays where it was made.
    fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(self.file()).expect("the namespace");
        let enter_and_act = || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
            act()
        };
        std::thread::scope(|scope| scope.spawn(enter_and_act).join().expect("the thread"))
    }

    /// Listens inside.
    pub fn listen(&self, at: &str) -> tokio::net::TcpListener {
        let listener = self.inside(|| std::net::TcpListener::bind(at)).expect("bind");
        listener.set_nonblocking(true).expect("non-blocking");
        tokio::net::TcpListener::from_std(listener).expect("within a runtime")
    }

    /// Connects from inside.
    /// # Errors
    /// What connecting says.
    pub async fn connect(&self, to: SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
        self.inside(tokio::net::TcpSocket::new_v4)?.connect(to).await
    }
}

fn namespace_of(pid: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}
