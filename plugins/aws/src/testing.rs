//! What the tests of this crate share: moto, and a fake for what moto will not do.

use std::io::{BufRead, BufReader};
use std::net::TcpListener as Listener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as AsyncReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::AccessKey;

pub(crate) const REGION: &str = "eu-west-1";

pub(crate) fn access_key(id: &str) -> AccessKey {
    AccessKey { id: id.to_owned(), secret: Zeroizing::new("secret".to_owned()) }
}

/// A moto of its own, with the corrections of `tests/interop/moto_aws.py`.
pub(crate) struct Moto {
    child: Child,
    pub(crate) url: String,
}

impl Moto {
    /// `None`, with a word about it, unless `./test` said that foreign servers are to run.
    pub(crate) fn start() -> Option<Self> {
        let (Some(_), Some(python)) =
            (std::env::var_os("SVID_TEST_INTEROP"), std::env::var_os("SVID_TEST_PYTHON"))
        else {
            println!("skipped: AWS as moto speaks it; run ./test without --quick");
            return None;
        };
        let port = Listener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Command::new(python)
            .arg(script())
            .args(["serve", "127.0.0.1", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python with moto");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let is_up = lines.any(|line| line.unwrap().contains("Running on"));
        assert!(is_up, "moto has not started");
        // It writes a line for each request.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, url: format!("http://127.0.0.1:{port}") })
    }

    /// A root CA, tagged as the script says: its ARN.
    pub(crate) fn root_ca(&self, tag: &[&str]) -> String {
        let python = std::env::var_os("SVID_TEST_PYTHON").unwrap();
        let mut command = Command::new(python);
        let output = command.arg(script()).args(["root", &self.url]).args(tag).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().next().unwrap().to_owned()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/moto_aws.py")
}

/// What the fake does with a request.
pub(crate) enum Answer {
    /// Answers.
    Json(Value),
    /// Refuses with this code.
    Refuse(&'static str),
    /// Does it, and loses the answer.
    Lose,
    /// Says nothing for so long.
    Hang(Duration),
}

type Script = dyn FnMut(&str, Value) -> Answer + Send;

/// An endpoint that speaks AWS JSON 1.1. `script` gets the operation's name and its input.
pub(crate) struct Fake {
    pub(crate) url: String,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub(crate) async fn start(script: impl FnMut(&str, Value) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script: Arc<Mutex<Box<Script>>> = Arc::new(Mutex::new(Box::new(script)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, script.clone()));
            }
        });
        Self { url, _tasks: tasks }
    }
}

async fn serve(stream: TcpStream, script: Arc<Mutex<Box<Script>>>) {
    let mut stream = AsyncReader::new(stream);
    while let Some((operation, input)) = read_request(&mut stream).await {
        let answer = script.lock().unwrap()(&operation, input);
        let (status, body) = match answer {
            Answer::Json(body) => ("200 OK", body),
            Answer::Refuse(code) => ("400 Bad Request", json!({ "__type": code, "message": "so it is" })),
            Answer::Lose => return,
            Answer::Hang(time) => {
                tokio::time::sleep(time).await;
                return;
            }
        };
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if stream.write_all((head + &body).as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read_request(stream: &mut AsyncReader<TcpStream>) -> Option<(String, Value)> {
    let (mut operation, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        match name.to_ascii_lowercase().as_str() {
            "x-amz-target" => operation = value.trim().rsplit('.').next()?.to_owned(),
            "content-length" => length = value.trim().parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((operation, serde_json::from_slice(&body).ok()?))
}
