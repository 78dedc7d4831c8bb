//! A real svid-agent in a directory of its own.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use crate::process::{Output, Process, bin, run};
use crate::{Server, init};

/// What differs from scenario to scenario.
#[derive(Clone, Default)]
pub struct AgentOptions {
    /// Lines for the `agent {}` block.
    pub agent: String,
    /// The NodeAttestor block; join_token when empty.
    pub node_attestor: String,
    /// The body of the unix attestor's `plugin_data`.
    pub unix: String,
    /// Blocks at the top level.
    pub top: String,
    /// Where the agent believes its server, if not at the server's own port.
    pub server_port: Option<u16>,
}

/// A running agent.
pub struct Agent {
    /// Before the directory, so that nothing is written into it any more when it goes.
    process: Option<Process>,
    dir: TempDir,
    options: AgentOptions,
}

impl Agent {
    /// Starts an agent that joins `server` with a token, and waits until it serves.
    pub async fn join(server: &Server) -> Self {
        Self::join_with(server, AgentOptions::default()).await
    }

    /// As [`Agent::join`], with more configuration.
    pub async fn join_with(server: &Server, options: AgentOptions) -> Self {
        let token = server.token().await;
        let mut agent = Self::prepare(server, options).await;
        agent.start_with(&["-joinToken", &token]).await;
        agent
    }

    /// Makes the directory, the bundle file and the configuration, and starts nothing.
    pub async fn prepare(server: &Server, options: AgentOptions) -> Self {
        init();
        let agent = Self {
            dir: TempDir::with_prefix("svid-agent-").expect("temporary directory"),
            process: None,
            options,
        };
        std::fs::write(agent.path().join("bundle.pem"), server.bundle_pem().await).expect("write the bundle");
        agent.write_config(server);
        agent
    }

    /// Writes the configuration of the next start.
    pub fn write_config(&self, server: &Server) {
        let dir = self.path().display();
        let attestor = match self.options.node_attestor.as_str() {
            "" => r#"NodeAttestor "join_token" { plugin_data {} }"#,
            block => block,
        };
        let bootstrap = match self.options.agent.contains("insecure_bootstrap") {
            true => String::new(),
            false => format!("trust_bundle_path = \"{dir}/bundle.pem\""),
        };
        let text = format!(
            r#"agent {{
    data_dir = "{dir}/data"
    log_level = "DEBUG"
    server_address = "127.0.0.1"
    server_port = {port}
    socket_path = "{socket}"
    admin_socket_path = "{admin}"
    trust_domain = "{td}"
    {bootstrap}
    {agent}
}}
plugins {{
    {attestor}
    KeyManager "disk" {{ plugin_data {{ directory = "{dir}/data" }} }}
    WorkloadAttestor "unix" {{ plugin_data {{ {unix} }} }}
}}
{top}
"#,
            port = self.options.server_port.unwrap_or(server.port),
            socket = self.socket().display(),
            admin = self.admin_socket().display(),
            td = server.trust_domain,
            agent = self.options.agent,
            unix = self.options.unix,
            top = self.options.top,
        );
        std::fs::write(self.config(), text).expect("write the configuration");
    }

    /// Starts the program with more flags, without waiting.
    pub fn launch(&self, flags: &[&str]) -> Process {
        let mut command = Command::new(bin("svid-agent"));
        Process::start("svid-agent", command.arg("run").arg("-config").arg(self.config()).args(flags))
    }

    /// Starts the program and waits until it serves workloads.
    pub async fn start_with(&mut self, flags: &[&str]) {
        let mut process = self.launch(flags);
        process.wait_for("Starting agent APIs").await;
        self.process = Some(process);
    }

    /// Takes a program that was started by other means, such as inside a network namespace, and waits until it serves.
    pub async fn adopt(&mut self, mut process: Process) {
        process.wait_for("Starting agent APIs").await;
        self.process = Some(process);
    }

    /// The running program.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("running")
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        self.process.take().expect("running").kill().await;
    }

    /// SIGTERM, and a clean end.
    pub async fn stop(&mut self) {
        self.process.take().expect("running").stop().await;
    }

    /// The agent's directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path().join("agent.conf")
    }

    /// The Workload API and SDS socket.
    pub fn socket(&self) -> PathBuf {
        self.path().join("public").join("api.sock")
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.path().join("admin").join("admin.sock")
    }

    /// The socket as `SPIFFE_ENDPOINT_SOCKET` names it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Runs a CLI verb against the workload socket.
    pub async fn cli(&self, args: &[&str]) -> Output {
        let socket = self.socket().display().to_string();
        let args: Vec<&str> = args.iter().copied().chain(["-socketPath", &socket]).collect();
        run("svid-agent", &args).await
    }

    /// The first X.509-SVID that this process gets as a workload, leaf first, and its trust bundle, in DER.
    pub async fn x509(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let dir = TempDir::new().expect("temporary directory");
        self.cli(&["api", "fetch", "x509", "-write", &dir.path().display().to_string()]).await.ok();
        let read = |name: &str| {
            crate::lint::ders(&std::fs::read_to_string(dir.path().join(name)).expect("written by the CLI"))
        };
        (read("svid.0.pem"), read("bundle.0.pem"))
    }

    /// Runs a CLI verb against the admin socket.
    pub async fn admin_cli(&self, args: &[&str]) -> Output {
        let socket = self.admin_socket().display().to_string();
        let args: Vec<&str> = args.iter().copied().chain(["-socketPath", &socket]).collect();
        run("svid-agent", &args).await
    }
}
