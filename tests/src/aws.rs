//! AWS as moto speaks it, with the corrections of `tests/interop/moto_aws.py`, on a port of its own.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::process::{Process, run_at};
use crate::{free_port, init};

/// The region of every test.
pub const REGION: &str = "eu-west-1";
/// The secret access key that servers get, to be looked for where it must not be.
pub const SECRET: &str = "SecretAccessKeyOfTheServer0123456789abcd";
/// The session token that servers get. It is sent, and part of what is signed.
pub const SESSION_TOKEN: &str = "SessionTokenOfTheServer0123456789";

/// A running moto.
pub struct Moto {
    process: Process,
    /// Such as `http://127.0.0.1:5000`.
    pub url: String,
}

fn python() -> Option<PathBuf> {
    let on = std::env::var_os("SVID_TEST_INTEROP").and_then(|_| std::env::var_os("SVID_TEST_PYTHON"));
    if on.is_none() {
        println!("skipped: AWS as moto speaks it; run ./test without --quick");
    }
    on.map(PathBuf::from)
}

fn script() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/moto_aws.py").display().to_string()
}

impl Moto {
    /// Starts one. `None` if there is no Python to run it; prints what is left out then.
    pub async fn start() -> Option<Self> {
        init();
        let port = free_port();
        let mut command = Command::new(python()?);
        command.args([&script(), "serve", "127.0.0.1", &port.to_string()]);
        let mut process = Process::start("moto", &mut command);
        process.wait_for("Running on").await;
        Some(Self { process, url: format!("http://127.0.0.1:{port}") })
    }

    async fn run(&self, args: &[&str]) -> String {
        let script = script();
        let args: Vec<&str> = std::iter::once(script.as_str()).chain(args.iter().copied()).collect();
        run_at(&python().expect("moto runs"), &args).await.ok()
    }

    /// One call of boto3, as an operator.
    pub async fn call(&self, service: &str, operation: &str, input: &Value) -> Value {
        let said = self.run(&["call", &self.url, service, operation, &input.to_string()]).await;
        serde_json::from_str(&said).expect("JSON")
    }

    /// A root CA that is active: its ARN and its certificate in PEM. With `only`, credentials have to begin so.
    pub async fn root_ca(&self, only: Option<&str>) -> (String, String) {
        let tag = only.map(|only| format!("only={only}"));
        let args: Vec<&str> = ["root", self.url.as_str()].into_iter().chain(tag.as_deref()).collect();
        let said = self.run(&args).await;
        let (arn, pem) = said.split_once('\n').expect("an ARN and a certificate");
        (arn.to_owned(), pem.to_owned())
    }

    /// What a server needs in its environment: credentials of this name, and where AWS is.
    pub fn env(&self, access_key_id: &str) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ACCESS_KEY_ID", access_key_id),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_SESSION_TOKEN", SESSION_TOKEN),
            ("AWS_ENDPOINT_URL", &self.url),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// From now on it takes requests and answers none.
    pub fn freeze(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// It answers again.
    pub fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }
}
