//! What goes wrong on its own: processes killed, disks full, files damaged, agents put out.

mod agent_outage;
mod backup;
mod clock;
mod crash_agent;
mod crash_server;
mod files;
mod full_disk;
mod life;
mod lost_answers;
mod outside;
mod rotation;

use svid_tests::pki::{TestCa, TestCert};
use svid_tests::{Agent, AgentOptions, Server, ServerOptions};
use tempfile::TempDir;

/// The selector of the user who runs the tests.
fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

/// A server and the files of a node that attest by their key, so as often as they like.
struct KeyedNode {
    server: Server,
    dir: TempDir,
    node: TestCert,
}

impl KeyedNode {
    async fn start(server: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let ca = TestCa::new("nodes");
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, ca.pem()).expect("write");
        let plugins = format!(
            "NodeAttestor \"x509pop\" {{ plugin_data {{ ca_bundle_path = \"{}\" }} }}",
            path.display()
        );
        let options = ServerOptions { plugins, server: server.to_owned(), ..Default::default() };
        Self { server: Server::start_with(options).await, dir, node: ca.leaf("node", &[]) }
    }

    async fn agent(&self) -> Agent {
        let (cert, key) = (self.dir.path().join("node.pem"), self.dir.path().join("node.key"));
        std::fs::write(&cert, &self.node.cert_pem).expect("write");
        std::fs::write(&key, &self.node.key_pem).expect("write");
        let node_attestor = format!(
            "NodeAttestor \"x509pop\" {{ plugin_data {{ certificate_path = \"{}\" private_key_path = \"{}\" }} }}",
            cert.display(),
            key.display()
        );
        Agent::prepare(&self.server, AgentOptions { node_attestor, ..Default::default() }).await
    }

    /// Registers the user who runs the tests below the node's own ID.
    async fn entry(&self, path: &str) -> String {
        let agents = self.server.cli(&["agent", "list"]).await.ok();
        let id = agents.lines().find_map(|line| line.strip_prefix("SPIFFE ID")).expect("an agent");
        let parent = id.trim_start_matches([' ', ':']).to_owned();
        let spiffe_id = self.server.id(path);
        let args = ["entry", "create", "-parentID", &parent, "-spiffeID", &spiffe_id, "-selector", &my_uid()];
        self.server.cli(&args).await.ok()
    }
}

/// A number below `bound` that differs from run to run; the run prints it.
fn random_below(bound: usize) -> usize {
    let bytes = *uuid::Uuid::new_v4().as_bytes();
    let number = usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) % bound;
    println!("random: {number} of {bound}");
    number
}
