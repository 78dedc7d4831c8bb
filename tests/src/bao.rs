//! A real OpenBao server in memory, on a port of its own.

use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::lint::ders;
use crate::{Process, free_port, init, until};

/// The token that may do everything.
pub const ROOT_TOKEN: &str = "root-of-the-test";
/// What a server needs of a PKI mount, and no more.
pub const SIGN_POLICY: &str = r#"path "pki/root/sign-intermediate" { capabilities = ["update"] }"#;

/// A running OpenBao.
pub struct Bao {
    /// The program, for its log.
    pub process: Process,
    /// Such as `http://127.0.0.1:8200`.
    pub address: String,
    dir: TempDir,
    client: reqwest::Client,
}

impl Bao {
    /// Starts one over plain HTTP. `None` if there is no program to start; prints what is left out then.
    pub async fn start() -> Option<Self> {
        Self::start_with(false).await
    }

    /// As [`Bao::start`], over TLS: its CA is at [`Bao::ca_path`].
    pub async fn start_tls() -> Option<Self> {
        Self::start_with(true).await
    }

    async fn start_with(tls: bool) -> Option<Self> {
        init();
        let Some(program) = std::env::var_os("SVID_TEST_BAO") else {
            println!("skipped: OpenBao; run ./test without --quick");
            return None;
        };
        let dir = TempDir::with_prefix("svid-bao-").expect("temporary directory");
        let port = free_port();
        let mut command = Command::new(program);
        command
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env("HOME", dir.path());
        if tls {
            command.arg("-dev-tls").arg(format!("-dev-tls-cert-dir={}", dir.path().display()));
        }
        let mut process = Process::start("bao", &mut command);
        process.wait_for("Development mode should NOT be used").await;
        // Whom it shows itself to be is looked at by the servers under test.
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().build();
        let scheme = if tls { "https" } else { "http" };
        let address = format!("{scheme}://127.0.0.1:{port}");
        let bao = Self { process, address, dir, client: client.expect("a client") };
        until("OpenBao is ready", || async { bao.get("sys/health").await.is_ok() }).await;
        Some(bao)
    }

    /// The CA of [`Bao::start_tls`].
    pub fn ca_path(&self) -> PathBuf {
        let is_ca =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains("ca.pem"));
        let files = std::fs::read_dir(self.dir.path())
            .expect("the directory")
            .map(|file| file.expect("a file").path());
        files.filter(|path| path.is_file()).find(is_ca).expect("the CA's certificate")
    }

    /// A directory that goes with the server.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Any request as root.
    /// # Errors
    /// Status and body of a refusal.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        namespace: &str,
        body: Value,
    ) -> Result<Value, String> {
        let mut request = self
            .client
            .request(method, format!("{}/v1/{path}", self.address))
            .header("x-vault-token", ROOT_TOKEN)
            .header("x-vault-namespace", namespace);
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|error| error.to_string())?;
        let (status, text) = (response.status(), response.text().await.map_err(|error| error.to_string())?);
        if !status.is_success() {
            return Err(format!("{path}: {status}: {text}"));
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// A POST as root that has to succeed. Gives `data`.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.post_in("", path, body).await
    }

    /// As [`Bao::post`], in a namespace.
    pub async fn post_in(&self, namespace: &str, path: &str, body: Value) -> Value {
        let answer = self.request(Method::POST, path, namespace, body).await;
        answer.unwrap_or_else(|error| panic!("{error}"))["data"].take()
    }

    /// A GET as root.
    /// # Errors
    /// Status and body of a refusal.
    pub async fn get(&self, path: &str) -> Result<Value, String> {
        self.request(Method::GET, path, "", Value::Null).await
    }

    /// Mounts an engine.
    pub async fn mount(&self, namespace: &str, path: &str, kind: &str) {
        let body = json!({"type": kind, "config": {"max_lease_ttl": "87600h"}});
        self.post_in(namespace, &format!("sys/mounts/{path}"), body).await;
    }

    /// A PKI mount with a root of its own. Gives the root in DER.
    pub async fn pki(&self, namespace: &str, path: &str) -> Vec<u8> {
        self.mount(namespace, path, "pki").await;
        let body = json!({"common_name": "test root", "ttl": "87600h", "key_type": "ec", "key_bits": 256});
        let root = self.post_in(namespace, &format!("{path}/root/generate/internal"), body).await;
        der(&root["certificate"])
    }

    /// The certificate of a mount's default issuer, in DER.
    pub async fn root(&self, path: &str) -> Vec<u8> {
        der(
            &self.get(&format!("{path}/issuer/default/json")).await.expect("an issuer")["data"]["certificate"],
        )
    }

    /// A PKI mount that is an intermediate of the mount `parent`, and is not told of its root. Gives its certificate.
    pub async fn intermediate(&self, path: &str, parent: &str, ttl: &str) -> Vec<u8> {
        self.mount("", path, "pki").await;
        let body = json!({"common_name": "test intermediate", "key_type": "ec", "key_bits": 256});
        let csr = self.post(&format!("{path}/intermediate/generate/internal"), body).await["csr"].take();
        let body = json!({"csr": csr, "common_name": "test intermediate", "ttl": ttl});
        let cert = self.post(&format!("{parent}/root/sign-intermediate"), body).await["certificate"].take();
        self.post(&format!("{path}/intermediate/set-signed"), json!({"certificate": cert})).await;
        der(&cert)
    }

    /// A policy.
    pub async fn policy(&self, namespace: &str, name: &str, rules: &str) {
        self.post_in(namespace, &format!("sys/policies/acl/{name}"), json!({"policy": rules})).await;
    }

    /// A token with this policy that lives for `ttl` and can be renewed.
    pub async fn token(&self, policy: &str, ttl: &str) -> String {
        let body = json!({"policies": [policy], "ttl": ttl, "explicit_max_ttl": "0", "renewable": true});
        let answer = self.request(Method::POST, "auth/token/create", "", body).await.expect("a token");
        text(&answer["auth"]["client_token"])
    }

    /// An AppRole with this policy. Gives role id and secret id.
    pub async fn approle(&self, namespace: &str, policy: &str) -> (String, String) {
        self.post_in(namespace, "sys/auth/approle", json!({"type": "approle"})).await;
        let body = json!({"token_policies": policy, "token_ttl": "10m", "token_max_ttl": "1h"});
        self.post_in(namespace, "auth/approle/role/spire", body).await;
        let role = self.request(Method::GET, "auth/approle/role/spire/role-id", namespace, Value::Null).await;
        let secret = self.post_in(namespace, "auth/approle/role/spire/secret-id", json!({})).await;
        (text(&role.expect("a role")["data"]["role_id"]), text(&secret["secret_id"]))
    }

    /// Seals the server: it answers 503 from then on.
    pub async fn seal(&self) {
        self.post("sys/seal", json!({})).await;
    }

    /// Opens it again.
    pub async fn unseal(&mut self) {
        let line = self.process.wait_for("Unseal Key: ").await;
        let (_, key) = line.split_once("Unseal Key: ").expect("a key");
        self.post("sys/unseal", json!({"key": key.trim()})).await;
        until("OpenBao is active again", || async { self.get("sys/health").await.is_ok() }).await;
    }

    /// Revokes every token that the AppRole gave.
    pub async fn revoke_logins(&self, method: &str) {
        let path = format!("sys/leases/revoke-prefix/auth/{method}/login");
        self.post(&path, json!({})).await;
    }
}

fn der(pem: &Value) -> Vec<u8> {
    ders(&text(pem)).into_iter().next().expect("a certificate")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string: {value}")).to_owned()
}

/// Answers like the TokenReview API of a Kubernetes: every token belongs to the account that it names. Gives its URL.
pub async fn token_reviewer() -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 64 * 1024];
                let length = stream.read(&mut request).await.unwrap_or_default();
                assert!(request[..length].starts_with(b"POST /apis/authentication.k8s.io/v1/tokenreviews"));
                let user = json!({"uid": "u", "username": "system:serviceaccount:spire:spire-server"});
                let status = json!({"authenticated": true, "user": user, "audiences": []});
                let body = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status});
                let body = body.to_string();
                let head = "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nconnection: close";
                let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

/// What a kubelet writes for a service account, with a signature that only a reviewer looks at.
pub fn service_account_token(namespace: &str, account: &str) -> String {
    use base64::Engine as _;
    let part = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let now = crate::calls::unix_now();
    let account = json!({"name": account, "uid": "u"});
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "sub": format!("system:serviceaccount:{namespace}:{}", account["name"].as_str().unwrap_or_default()),
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "kubernetes.io": {"namespace": namespace, "serviceaccount": account},
    });
    format!("{}.{}.c2lnbmF0dXJl", part(json!({"alg": "RS256", "typ": "JWT"})), part(claims))
}
