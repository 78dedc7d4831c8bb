//! Servers and agents of a run's own, each in a fresh directory: for measures that need more than one, or a fresh one.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::cli::{Cli, Common};
use crate::site::Site;
use crate::stats::Failure;
use crate::workload::Stream;

/// Slower than this nothing starts.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

/// A directory with a configuration for a server and its agents.
pub struct Ground {
    dir: TempDir,
    port: u16,
    trust_domain: String,
}

/// A program that ends with its owner.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(bin: &Path, config: &Path, log: PathBuf) -> Result<Self> {
        let output = std::fs::File::create(&log)?;
        let errors = output.try_clone()?;
        let child = Command::new(bin)
            .args(["run", "-config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {}", bin.display()))?;
        Ok(Self { child, log })
    }

    fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(5).collect();
        bail!("ended with {status}; its last lines, newest first:\n{}", last.join("\n"))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// A free TCP port of the loopback address.
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Ground {
    /// A fresh directory.
    /// # Errors
    /// If it cannot be made.
    pub fn new(trust_domain: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("svid-load-")?;
        let ground = Self { dir, port: free_port()?, trust_domain: trust_domain.to_owned() };
        for dir in ["server", "admin"] {
            std::fs::create_dir(ground.path(dir))?;
        }
        Ok(ground)
    }

    /// A file of the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The agent's socket for workloads. Agents are told apart by their names.
    pub fn agent_socket(&self, agent: &str) -> PathBuf {
        self.path(agent).join("public/api.sock")
    }

    /// The server's configuration, with more lines for `server {}` and for `plugins {}`.
    fn server_config(&self, server: &str, plugins: &str) -> String {
        let (dir, port, trust_domain) = (self.dir.path().display(), self.port, &self.trust_domain);
        format!(
            r#"server {{
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{dir}/admin/api.sock"
  trust_domain = "{trust_domain}"
  data_dir = "{dir}/server"
  log_level = "WARN"
  ratelimit {{ attestation = false signing = false }}
  {server}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{dir}/server/datastore.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{dir}/server/keys.json" }} }}
  {plugins}
}}
"#
        )
    }

    fn agent_config(&self, agent: &str, token: &str) -> String {
        let (dir, port, trust_domain) = (self.dir.path().display(), self.port, &self.trust_domain);
        format!(
            r#"agent {{
  data_dir = "{dir}/{agent}/data"
  log_level = "WARN"
  server_address = "127.0.0.1"
  server_port = {port}
  socket_path = "{dir}/{agent}/public/api.sock"
  trust_bundle_path = "{dir}/bundle.pem"
  trust_domain = "{trust_domain}"
  join_token = "{token}"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{dir}/{agent}/data" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
        )
    }

    /// The options that point a measure at this server.
    pub fn common(&self) -> Common {
        let server = format!("127.0.0.1:{}", self.port);
        let admin = self.path("admin/api.sock").display().to_string();
        let args = ["svid-load", "entries", "--server", &server, "--admin-socket", &admin];
        <Cli as clap::Parser>::parse_from(args).common
    }

    /// Starts the server and meets it. Its bundle lies in the directory afterwards.
    /// # Errors
    /// What its log says.
    pub async fn server(&self, bin: &Path, server: &str, plugins: &str) -> Result<(Program, Site)> {
        std::fs::write(self.path("server.conf"), self.server_config(server, plugins))?;
        let mut program = Program::start(bin, &self.path("server.conf"), self.path("server.log"))?;
        let (common, give_up) = (self.common(), Instant::now() + PATIENCE);
        while tokio::net::UnixStream::connect(common.admin_socket()).await.is_err() {
            program.check().context("the server")?;
            if Instant::now() > give_up {
                bail!("the server did not open its admin socket");
            }
            sleep(POLL).await;
        }
        let site = Site::open(&common).await?;
        let roots = site.bundle().x509_authorities.iter().map(|root| &root.asn1);
        std::fs::write(self.path("bundle.pem"), svid_core::pem::certs_to_pem(roots))?;
        Ok((program, site))
    }

    /// Starts an agent, without waiting for it.
    /// # Errors
    /// If it cannot be started.
    pub fn agent(&self, bin: &Path, agent: &str, token: &str) -> Result<Program> {
        for dir in ["data", "public"] {
            std::fs::create_dir_all(self.path(agent).join(dir))?;
        }
        let config = self.path(agent).join("agent.conf");
        std::fs::write(&config, self.agent_config(agent, token))?;
        Program::start(bin, &config, self.path(agent).join("agent.log"))
    }

    /// A stream of the agent's socket with its first answer, as soon as there is one.
    /// # Errors
    /// What the agent's log says, or its last refusal.
    pub async fn first_svid(
        &self,
        program: &mut Program,
        agent: &str,
    ) -> Result<(Stream, svid_proto::workload::X509svidResponse)> {
        let (socket, give_up) = (self.agent_socket(agent), Instant::now() + PATIENCE);
        loop {
            let first = async {
                let mut stream = Stream::open(&socket).await?;
                let answer = stream.next().await?;
                Ok::<_, Failure>((stream, answer))
            };
            let failure = match first.await {
                Ok(first) => return Ok(first),
                Err(failure) => failure,
            };
            program.check().context("the agent")?;
            if Instant::now() > give_up {
                return Err(failure).context("no SVID from the agent");
            }
            sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_configurations_are_hcl() {
        let ground = Ground::new("example.org").expect("a directory");
        let federation = "federation { bundle_endpoint { address = \"127.0.0.1\" port = 1 } }";
        for text in [ground.server_config(federation, ""), ground.agent_config("one", "svid-load-00")] {
            svid_core::hcl::parse(&text).expect("HCL");
        }
        assert_eq!(ground.common().server(), format!("127.0.0.1:{}", ground.port));
    }
}
