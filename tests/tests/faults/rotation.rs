//! kill -9 of the server at every step of a rotation below an upstream authority: what it signs is always believed, what
//! it holds verifies after each restart, and a CSR that went upstream is not forgotten.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use svid_tests::calls::{attested, call};
use svid_tests::client::AttestedAgent;
use svid_tests::pki::TestCa;
use svid_tests::process::{eventually, run};
use svid_tests::{Agent, Server, ServerOptions};
use tempfile::TempDir;

const ENTRIES: &str = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";

/// The files of an upstream authority `disk`.
struct Upstream {
    dir: TempDir,
    secrets: BTreeSet<String>,
}

impl Upstream {
    fn new(ca: &TestCa) -> Self {
        let mut upstream = Self { dir: tempfile::tempdir().expect("directory"), secrets: BTreeSet::new() };
        upstream.becomes(ca);
        upstream
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Each file is replaced as a whole, the key last.
    fn becomes(&mut self, ca: &TestCa) {
        self.secrets.extend(ca.key_pem().lines().filter(|line| !line.starts_with('-')).map(str::to_owned));
        for (name, text) in [("ca.crt", ca.pem()), ("ca.key", ca.key_pem())] {
            std::fs::write(self.file("next"), text).expect("write");
            std::fs::rename(self.file("next"), self.file(name)).expect("rename");
        }
    }

    /// Who reads the key from now on waits for ever.
    fn stalls(&self) {
        std::fs::remove_file(self.file("ca.key")).expect("remove");
        mkfifo(&self.file("ca.key"), Mode::S_IRUSR | Mode::S_IWUSR).expect("mkfifo");
    }

    fn plugin(&self) -> String {
        format!(
            r#"UpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = "{}" key_file_path = "{}" }} }}"#,
            self.file("ca.crt").display(),
            self.file("ca.key").display()
        )
    }
}

struct Scene {
    server: Server,
    upstream: Upstream,
    agent: AttestedAgent,
    log: Vec<String>,
}

impl Scene {
    /// Begins an operation and kills the server once its log has this line, so many times.
    async fn killed(&mut self, verb: &[&str], line: &str, times: usize) {
        let socket = self.server.socket().display().to_string();
        let args: Vec<String> =
            verb.iter().map(|arg| (*arg).to_owned()).chain(["-socketPath".into(), socket]).collect();
        let asking = tokio::spawn(async move {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            run("svid-server", &args).await
        });
        self.server.process().wait_for_lines(line, times).await;
        self.log.extend(self.server.process().log().iter().cloned());
        self.server.kill().await;
        asking.await.expect("it has ended, with an error or just before");
    }

    async fn restart(&mut self) {
        self.server.restart().await;
        self.check().await;
    }

    /// What the server signs verifies to its bundle, and who was attested is known.
    async fn check(&mut self) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().display().to_string();
        let id = self.server.id("/probe");
        self.server.cli(&["x509", "mint", "-spiffeID", &id, "-write", &path]).await.ok();
        openssl_verify(dir.path());
        let channel = self.agent.channel(&self.server).await;
        call(&channel, ENTRIES, &[]).await.expect("an agent's SVID is good still");
        let shown = self.show().await;
        let section = |name: &str| shown.iter().position(|line| line.starts_with(name)).expect("shown");
        assert!(shown[section("Active") + 1].contains("Authority ID: "), "{shown:?}");
    }

    async fn show(&self) -> Vec<String> {
        let out = self.server.cli(&["localauthority", "x509", "show"]).await.ok();
        out.lines().map(str::to_owned).collect()
    }

    /// A field of the active, prepared or old authority.
    async fn field(&self, of: &str, field: &str) -> Option<String> {
        let shown = self.show().await;
        let section = shown.iter().skip_while(|line| !line.starts_with(of)).skip(1);
        let mut lines = section.take_while(|line| !line.is_empty());
        lines.find_map(|line| line.trim().strip_prefix(field).map(|value| value.trim().to_owned()))
    }

    async fn prepared(&self) -> Option<String> {
        self.field("Prepared", "Authority ID:").await
    }

    async fn active(&self) -> String {
        self.field("Active", "Authority ID:").await.expect("an active authority")
    }

    async fn roots(&self) -> usize {
        self.server.bundle_pem().await.matches("BEGIN CERTIFICATE").count()
    }
}

fn openssl_verify(dir: &Path) {
    let (svid, bundle) = (dir.join("svid.pem"), dir.join("bundle.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]).arg(bundle);
    let output = openssl.arg("-untrusted").arg(&svid).arg(&svid).output().expect("openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const PREPARE: &[&str] = &["localauthority", "x509", "prepare"];

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_a_rotation() {
    let (first, second) = (TestCa::new("first"), TestCa::new("second"));
    let upstream = Upstream::new(&first);
    let options = ServerOptions { plugins: upstream.plugin(), ..Default::default() };
    let server = Server::start_with(options).await;
    let (agent, _) = attested(&server).await;
    let mut scene = Scene { server, upstream, agent, log: Vec::new() };
    scene.check().await;
    let before = scene.active().await;

    // A key is about to be made for the next one.
    scene.killed(PREPARE, "Preparing X509 CA", 2).await;
    scene.restart().await;

    // The CSR is with the upstream authority, which does not answer.
    scene.upstream.stalls();
    scene.killed(PREPARE, "CSR sent to the upstream authority", 1).await;
    scene.upstream.becomes(&first);
    scene.restart().await;
    scene.server.process().wait_for("its answer never stored; it is sent again").await;
    scene.server.process().wait_for("X509 CA prepared").await;
    assert_eq!(scene.active().await, before);
    let taken_up = scene.prepared().await.expect("it came after the restart");

    // Written down.
    scene.killed(PREPARE, "X509 CA prepared", 2).await;
    scene.restart().await;
    let prepared = scene.prepared().await.expect("it is in the journal");
    assert_ne!(prepared, taken_up);

    // Waiting for others to learn of it, and just after it took over: the start has told of the one before.
    let activate: &[&str] = &["localauthority", "x509", "activate", "-authorityID", &prepared];
    scene.killed(activate, "The new authority gets time to spread first", 1).await;
    scene.restart().await;
    assert_eq!(scene.active().await, before);
    scene.killed(activate, "X509 CA activated", 2).await;
    scene.restart().await;
    let now = scene.active().await;
    assert!(now == prepared, "the journal comes before the log: {now}");

    upstream_root_replaced(&mut scene, &second).await;
    scene.log.extend(scene.server.process().log().iter().cloned());
    for secret in &scene.upstream.secrets {
        assert!(!scene.log.iter().any(|line| line.contains(secret.as_str())), "a key is in the log");
    }
}

/// Another root upstream, and the old one tainted and revoked, with a death at each step.
async fn upstream_root_replaced(scene: &mut Scene, second: &TestCa) {
    let above = scene.field("Active", "Upstream authority Subject Key ID:").await.expect("its root");
    scene.upstream.becomes(second);
    scene.server.process().wait_for("Upstream roots added to the bundle").await;
    assert_eq!(scene.roots().await, 2, "without a restart, and before anything is signed below it");
    scene.server.cli(PREPARE).await.ok();
    let next = scene.prepared().await.expect("prepared");
    scene.server.cli(&["localauthority", "x509", "activate", "-authorityID", &next]).await.ok();

    let taint: &[&str] = &["upstreamauthority", "taint", "-subjectKeyID", &above];
    scene.killed(taint, "X.509 upstream authority tainted successfully", 1).await;
    scene.restart().await;
    let again = scene.server.cli(taint).await;
    assert!(again.code != 0 && again.stderr.contains("root CA is already tainted"), "{}", again.stderr);

    // Agents get a while; who holds nothing new after that is left out.
    let (fresh, _) = attested(&scene.server).await;
    scene.agent = fresh;
    let revoke: &[&str] = &["upstreamauthority", "revoke", "-subjectKeyID", &above];
    scene.killed(revoke, "get time to replace it first", 1).await;
    scene.restart().await;
    assert_eq!(scene.roots().await, 2);
    let out = scene.server.cli(revoke).await.ok();
    assert_eq!(out, format!("Revoked X.509 upstream authority:\n  Subject Key ID: {above}\n"));
    scene.check().await;
    assert_eq!(scene.roots().await, 1);
    scene.log.extend(scene.server.process().log().iter().cloned());
    scene.server.kill().await;
    scene.restart().await;
    assert_eq!(scene.roots().await, 1, "it does not come back");
    assert_eq!(scene.active().await, next);
}

/// Four commands in a row, as fast as an operator types: the waits that agents need are in the commands.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_in_a_row_puts_nobody_out() {
    let server = Server::start().await;
    let mut agents = [Agent::join(&server).await, Agent::join(&server).await];
    server.entry("/first", &crate::my_uid(), &[]).await;
    for agent in &agents {
        eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    }
    let authority = async |of: &str| {
        let out = server.cli(&["localauthority", "x509", "show"]).await.ok();
        let mut lines = out.lines().skip_while(|line| !line.starts_with(of));
        let id = lines.find_map(|line| line.trim().strip_prefix("Authority ID: ")).expect("an ID");
        id.to_owned()
    };
    for _ in 0..2 {
        let old = authority("Active").await;
        server.cli(PREPARE).await.ok();
        let next = authority("Prepared").await;
        for (verb, id) in [("activate", &next), ("taint", &old), ("revoke", &old)] {
            server.cli(&["localauthority", "x509", verb, "-authorityID", id]).await.ok();
        }
    }
    // Both agents are there still, and served: a new entry reaches them.
    server.entry("/second", &crate::my_uid(), &[]).await;
    for agent in &mut agents {
        let fetched = || agent.cli(&["api", "fetch", "x509"]);
        let both = async {
            loop {
                if eventually(fetched).await.contains("/second") {
                    break;
                }
            }
        };
        tokio::time::timeout(svid_tests::PATIENCE, both).await.expect("it comes");
        let log = agent.process().log();
        let errors: Vec<_> = log.iter().filter(|line| line.contains("level=error")).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}
