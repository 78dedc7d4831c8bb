//! From an empty directory to the first X.509-SVID in this process: server, join token, entry, agent.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::cli::{Cli, Common};
use crate::report::Report;
use crate::site::{Site, own_selector};
use crate::stats::{Failure, Outcome};
use crate::workload::Stream;

/// Slower than this nothing starts.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

/// A directory with a configuration for both halves.
struct Ground {
    dir: TempDir,
    port: u16,
}

/// A program that ends with its owner.
struct Program {
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
}

impl Ground {
    fn new() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self { dir: TempDir::with_prefix("svid-load-")?, port })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server_config(&self) -> String {
        let (dir, port) = (self.dir.path().display(), self.port);
        format!(
            r#"server {{
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{dir}/admin/api.sock"
  trust_domain = "example.org"
  data_dir = "{dir}/server"
  log_level = "WARN"
  ratelimit {{ attestation = false signing = false }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{dir}/server/datastore.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{dir}/server/keys.json" }} }}
}}
"#
        )
    }

    fn agent_config(&self, token: &str) -> String {
        let (dir, port) = (self.dir.path().display(), self.port);
        format!(
            r#"agent {{
  data_dir = "{dir}/agent"
  log_level = "WARN"
  server_address = "127.0.0.1"
  server_port = {port}
  socket_path = "{dir}/public/api.sock"
  trust_bundle_path = "{dir}/bundle.pem"
  trust_domain = "example.org"
  join_token = "{token}"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{dir}/agent" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
        )
    }

    fn common(&self) -> Common {
        let server = format!("127.0.0.1:{}", self.port);
        let admin = self.path("admin/api.sock").display().to_string();
        let args = ["svid-load", "entries", "--server", &server, "--admin-socket", &admin];
        <Cli as clap::Parser>::parse_from(args).common
    }
}

async fn site(server: &mut Program, common: &Common, give_up: Instant) -> Result<Site> {
    while tokio::net::UnixStream::connect(common.admin_socket()).await.is_err() {
        server.check().context("the server")?;
        if Instant::now() > give_up {
            bail!("the server did not open its admin socket");
        }
        sleep(POLL).await;
    }
    Site::open(common).await
}

async fn first_svid(agent: &mut Program, socket: &Path, give_up: Instant) -> Result<()> {
    loop {
        let failure = match async { Stream::open(socket).await?.next().await }.await {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        agent.check().context("the agent")?;
        if Instant::now() > give_up {
            return Err(failure).context("no SVID from the agent");
        }
        sleep(POLL).await;
    }
}

async fn once(server_bin: &Path, agent_bin: &Path) -> Result<Duration> {
    let ground = Ground::new()?;
    let common = ground.common();
    for dir in ["server", "agent", "admin", "public"] {
        std::fs::create_dir(ground.path(dir))?;
    }
    std::fs::write(ground.path("server.conf"), ground.server_config())?;
    let began = Instant::now();
    let give_up = began + PATIENCE;
    let mut server = Program::start(server_bin, &ground.path("server.conf"), ground.path("server.log"))?;
    let site = site(&mut server, &common, give_up).await?;
    let roots = site.bundle().x509_authorities.iter().map(|root| &root.asn1);
    std::fs::write(ground.path("bundle.pem"), svid_core::pem::certs_to_pem(roots))?;
    let token = site.tokens(1).await?.pop().context("one token")?;
    site.create(vec![site.entry("/first", &site.agent_of(&token), vec![own_selector()])]).await?;
    std::fs::write(ground.path("agent.conf"), ground.agent_config(&token))?;
    let mut agent = Program::start(agent_bin, &ground.path("agent.conf"), ground.path("agent.log"))?;
    first_svid(&mut agent, &ground.path("public/api.sock"), give_up).await?;
    Ok(began.elapsed())
}

pub(super) async fn run(server_bin: &Path, agent_bin: &Path, repeat: usize) -> Result<Report> {
    let mut outcome = Outcome::default();
    let mut seconds = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let from = Instant::now();
        match once(server_bin, agent_bin).await {
            Ok(took) => {
                outcome.add(took, Ok(1));
                seconds.push(format!("{:.3}", took.as_secs_f64()));
            }
            Err(error) => outcome.add(from.elapsed(), Err(Failure::new("NotStarted", format!("{error:#}")))),
        }
        outcome.wall += from.elapsed();
    }
    let mut report = Report::of("start", "starts", 1, outcome);
    report.notes.push(format!("seconds, in turn: {}", seconds.join(" ")));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_configurations_are_hcl() {
        let ground = Ground::new().expect("a directory");
        for text in [ground.server_config(), ground.agent_config("svid-load-00")] {
            svid_core::hcl::parse(&text).expect("HCL");
        }
        assert_eq!(ground.common().server(), format!("127.0.0.1:{}", ground.port));
    }
}
