//! A real svid-server in a directory of its own.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use crate::process::{Output, Process, bin, run};
use crate::{TRUST_DOMAIN, free_port, init};

/// What differs from scenario to scenario.
#[derive(Clone, Default)]
pub struct ServerOptions {
    /// Lines for the `server {}` block.
    pub server: String,
    /// Blocks for `plugins {}`, besides datastore, key manager and join_token.
    pub plugins: String,
    /// Blocks at the top level: telemetry, health_checks.
    pub top: String,
    /// Another trust domain than [`TRUST_DOMAIN`].
    pub trust_domain: Option<String>,
    /// The KeyManager block, instead of one on disk.
    pub key_manager: Option<String>,
    /// A connection string of PostgreSQL, instead of a SQLite file.
    pub postgres: Option<String>,
    /// Environment variables of the program.
    pub env: Vec<(String, String)>,
}

impl ServerOptions {
    /// The usual server on a PostgreSQL database.
    pub fn on(database: &crate::postgres::Database) -> Self {
        Self { postgres: Some(database.connection_string()), ..Self::default() }
    }

    fn data_store(&self, dir: &Path) -> String {
        match &self.postgres {
            Some(text) => format!(r#"database_type = "postgres" connection_string = "{text}""#),
            None => format!(
                r#"database_type = "sqlite3" connection_string = "{}/data/datastore.sqlite3""#,
                dir.display()
            ),
        }
    }
}

/// A running server.
pub struct Server {
    /// Before the directory, so that nothing is written into it any more when it goes.
    process: Option<Process>,
    dir: TempDir,
    /// TCP port of the agent-facing API.
    pub port: u16,
    /// The trust domain.
    pub trust_domain: String,
    env: Vec<(String, String)>,
}

impl Server {
    /// Starts a server with the usual configuration.
    pub async fn start() -> Self {
        Self::start_with(ServerOptions::default()).await
    }

    /// Starts a server on a PostgreSQL database.
    pub async fn on(database: &crate::postgres::Database) -> Self {
        Self::start_with(ServerOptions::on(database)).await
    }

    /// Starts a server and waits until it serves on both sockets.
    pub async fn start_with(options: ServerOptions) -> Self {
        let mut server = Self::prepare(&options);
        server.spawn().await;
        server
    }

    /// Makes the directory and the configuration, and starts nothing.
    pub fn prepare(options: &ServerOptions) -> Self {
        init();
        let dir = TempDir::with_prefix("svid-server-").expect("temporary directory");
        let trust_domain = options.trust_domain.clone().unwrap_or_else(|| TRUST_DOMAIN.to_owned());
        let env = options.env.clone();
        let server = Self { dir, port: free_port(), trust_domain, process: None, env };
        server.write_config(options);
        server
    }

    /// Takes a program that was started by other means, such as inside a mount namespace, and waits until it serves.
    pub async fn adopt(&mut self, mut process: Process) {
        process.wait_for_lines("Starting Server APIs", 2).await;
        self.process = Some(process);
    }

    /// The program and its arguments as a shell reads them.
    pub fn command_line(&self) -> String {
        format!("'{}' run -config '{}'", bin("svid-server").display(), self.config().display())
    }

    /// Writes the configuration of the next start.
    pub fn write_config(&self, options: &ServerOptions) {
        let text = format!(
            r#"server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{socket}"
    trust_domain = "{td}"
    data_dir = "{dir}/data"
    log_level = "DEBUG"
    ratelimit {{ attestation = false signing = false }}
    {server}
}}
plugins {{
    DataStore "sql" {{ plugin_data {{ {data_store} }} }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    {key_manager}
    {plugins}
}}
{top}
"#,
            port = self.port,
            socket = self.socket().display(),
            td = self.trust_domain,
            dir = self.path().display(),
            data_store = options.data_store(self.path()),
            key_manager = options.key_manager.clone().unwrap_or_else(|| self.disk_keys()),
            server = options.server,
            plugins = options.plugins,
            top = options.top,
        );
        std::fs::write(self.config(), text).expect("write the configuration");
    }

    fn disk_keys(&self) -> String {
        format!(
            r#"KeyManager "disk" {{ plugin_data {{ keys_path = "{}/data/keys.json" }} }}"#,
            self.path().display()
        )
    }

    async fn spawn(&mut self) {
        let process = self.launch();
        self.adopt(process).await;
    }

    /// Starts the program without waiting for anything.
    pub fn launch(&self) -> Process {
        Process::start(
            "svid-server",
            Command::new(bin("svid-server"))
                .envs(self.env.iter().cloned())
                .arg("run")
                .arg("-config")
                .arg(self.config()),
        )
    }

    /// Starts again after [`Server::kill`] or [`Server::stop`].
    pub async fn restart(&mut self) {
        self.spawn().await;
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        self.process.take().expect("running").kill().await;
    }

    /// SIGTERM, and a clean end.
    pub async fn stop(&mut self) {
        self.process.take().expect("running").stop().await;
    }

    /// The running program.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("running")
    }

    /// The server's directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path().join("server.conf")
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.path().join("api.sock")
    }

    /// A SPIFFE ID of the trust domain.
    pub fn id(&self, path: &str) -> String {
        format!("spiffe://{}{path}", self.trust_domain)
    }

    /// Runs a CLI verb against this server.
    pub async fn cli(&self, args: &[&str]) -> Output {
        let socket = self.socket().display().to_string();
        let args: Vec<&str> = args.iter().copied().chain(["-socketPath", &socket]).collect();
        run("svid-server", &args).await
    }

    /// A fresh join token whose agent is also known as `/host`.
    pub async fn token(&self) -> String {
        self.token_for("/host").await
    }

    /// A fresh join token whose agent is also known as `alias`.
    pub async fn token_for(&self, alias: &str) -> String {
        let out = self.cli(&["token", "generate", "-spiffeID", &self.id(alias)]).await.ok();
        let value = out.lines().find_map(|line| line.strip_prefix("Token: ")).expect("a token");
        value.trim().to_owned()
    }

    /// The trust bundle in PEM, as operators hand it to agents.
    pub async fn bundle_pem(&self) -> String {
        self.cli(&["bundle", "show"]).await.ok()
    }

    /// Registers a workload below `/host` and returns the entry's ID.
    pub async fn entry(&self, path: &str, selector: &str, more: &[&str]) -> String {
        let (parent, id) = (self.id("/host"), self.id(path));
        let args =
            [&["entry", "create", "-parentID", &parent, "-spiffeID", &id, "-selector", selector], more]
                .concat();
        let out = self.cli(&args).await.ok();
        let line = out.lines().find(|line| line.starts_with("Entry ID")).expect("an entry");
        line.split_once(": ").expect("a value").1.trim().to_owned()
    }

    /// `localauthority <kind> <verb>`, for the authority `id` where the verb needs one. The id that it tells.
    pub async fn authority(&self, kind: &str, verb: &str, id: Option<&str>) -> String {
        let id = id.into_iter().flat_map(|id| ["-authorityID", id]);
        let args: Vec<&str> = ["localauthority", kind, verb].into_iter().chain(id).collect();
        let said = self.cli(&args).await.ok();
        let id = said.lines().find_map(|line| line.trim().strip_prefix("Authority ID: "));
        id.unwrap_or_else(|| panic!("no authority in {said}")).to_owned()
    }
}
