//! Machines with parts of their own: a network namespace, a real agent, real Envoys, a small service.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use svid_tests::envoy::{Envoy, Version};
use svid_tests::netns::Namespace;
use svid_tests::process::{bin, run};
use svid_tests::{Agent, AgentOptions, Process, Server, ServerOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// Where the server is, and what its machine, the switch, has as network.
const SERVER_IP: &str = "10.83.0.1";

/// The trust domain's machine: the server, on the switch that all machines are plugged into.
pub struct Site {
    pub server: Server,
    switch: Namespace,
}

impl Site {
    /// Starts the server. SVIDs live `svid_ttl` seconds.
    pub async fn start(svid_ttl: u32) -> Self {
        let switch = Namespace::new().await;
        switch.bridge(&format!("{SERVER_IP}/24")).await;
        let options = ServerOptions {
            server: format!("default_x509_svid_ttl = \"{svid_ttl}s\""),
            ..ServerOptions::default()
        };
        let mut server = Server::prepare(&options);
        move_to(&server.config(), "bind_address");
        let mut command = switch.command(&bin("svid-server"));
        server.adopt(launch("svid-server", &mut command, &server.config(), &[])).await;
        Self { server, switch }
    }
}

/// The harness writes configurations for loopback.
fn move_to(config: &Path, key: &str) {
    let text = std::fs::read_to_string(config).expect("the configuration");
    let moved = text.replace(&format!("{key} = \"127.0.0.1\""), &format!("{key} = \"{SERVER_IP}\""));
    assert_ne!(text, moved);
    std::fs::write(config, moved).expect("write the configuration");
}

fn launch(name: &str, command: &mut Command, config: &Path, flags: &[&str]) -> Process {
    Process::start(name, command.arg("run").arg("-config").arg(config).args(flags))
}

/// One machine.
pub struct Machine {
    pub namespace: Arc<Namespace>,
    pub agent: Agent,
    host: String,
}

impl Machine {
    /// Plugs a machine in and has its agent join with a token.
    pub async fn join(site: &Site, name: &str, ip: &str) -> Self {
        let namespace = Namespace::new().await;
        site.switch.plug_in(name, &namespace, &format!("{ip}/24")).await;
        let host = format!("/host/{name}");
        let token = site.server.token_for(&host).await;
        let unix = "discover_workload_path = true workload_size_limit = -1".to_owned();
        let mut agent = Agent::prepare(&site.server, AgentOptions { unix, ..Default::default() }).await;
        move_to(&agent.config(), "server_address");
        let mut command = namespace.command(&bin("svid-agent"));
        agent.adopt(launch("svid-agent", &mut command, &agent.config(), &["-joinToken", &token])).await;
        Self { namespace: Arc::new(namespace), agent, host }
    }

    /// Registers an Envoy, has `svidctl` write its configuration, and starts it.
    pub async fn envoy(&self, site: &Site, version: Version, service: &str, flags: &str) -> Envoy {
        let mut envoy = Envoy::prepare_version(version).expect("SVID_TEST_ENVOY and SVID_TEST_ENVOY_OLD");
        let id = site.server.id(&format!("/{service}"));
        let selector = format!("unix:path:{}", envoy.program().display());
        let parent = site.server.id(&self.host);
        let entry = ["entry", "create", "-parentID", &parent, "-spiffeID", &id, "-selector", &selector];
        site.server.cli(&entry).await.ok();
        let config = envoy.path().join("envoy.json");
        let (file, socket) = (config.display().to_string(), self.agent.socket().display().to_string());
        let admin = envoy.path().join("admin.sock").display().to_string();
        let args = ["envoy", "bootstrap", "--service", service, "--agent-socket", &socket, "--file", &file];
        let more = ["--admin-socket", &admin, "--max-connection-age", "1"];
        let args: Vec<&str> = args.into_iter().chain(more).chain(flags.split_whitespace()).collect();
        run("svidctl", &args).await.ok();
        envoy.start_by(self.namespace.command(&envoy.program()), &config);
        envoy.process().wait_for("starting main dispatch loop").await;
        envoy
    }

    /// Starts a service that answers with what it was told of its caller.
    pub fn serve(&self, at: &str) {
        tokio::spawn(serve(self.namespace.listen(at)));
    }

    /// As [`ask`], from here.
    pub async fn ask(&self, to: &str) -> Option<Answer> {
        ask(&self.namespace, to).await
    }
}

/// A request on a connection of its own, with a header that claims to be somebody.
pub async fn ask(from: &Namespace, to: &str) -> Option<Answer> {
    let to: SocketAddr = to.parse().expect("an address");
    let exchange = async {
        let mut client = Client::over(from.connect(to).await.ok()?);
        client.ask().await
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await.ok().flatten()
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// What the service was told of its caller, `x-forwarded-client-cert` as it arrived; empty if it was not.
    pub caller: String,
    /// True if the connection ends with it, as HTTP says it politely.
    pub last: bool,
}

impl Answer {
    /// The SPIFFE ID in it.
    pub fn caller_id(&self) -> Option<&str> {
        self.caller.split(';').find_map(|pair| pair.strip_prefix("URI="))
    }

    /// The hash of the caller's certificate.
    pub fn certificate(&self) -> Option<&str> {
        self.caller.split(';').find_map(|pair| pair.strip_prefix("Hash="))
    }
}

/// A plaintext HTTP client on one connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn over(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// One request. Nothing, if the connection broke or the answer is no HTTP.
    pub async fn ask(&mut self) -> Option<Answer> {
        let request = "GET /?secret=1 HTTP/1.1\r\nHost: test\r\nx-forwarded-client-cert: URI=spiffe://example.org/forged\r\n\r\n";
        self.stream.write_all(request.as_bytes()).await.ok()?;
        let head = read_head(&mut self.stream).await?;
        let status = head.first()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let field = |name: &str| {
            let value = |line: &String| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
            head.iter().find_map(value)
        };
        let length: usize = field("content-length").and_then(|text| text.parse().ok()).unwrap_or_default();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        let last = field("connection").is_some_and(|text| text == "close");
        Some(Answer { status, caller: field("x-caller").unwrap_or_default(), last })
    }
}

/// Request or status line and fields, until the empty line.
async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(lines),
            text => lines.push(text.to_owned()),
        }
    }
}

async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            while let Some(head) = read_head(&mut stream).await {
                let caller = head.iter().find_map(|line| line.strip_prefix("x-forwarded-client-cert: "));
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-caller: {}\r\n\r\nok\n",
                    caller.unwrap_or_default()
                );
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}
