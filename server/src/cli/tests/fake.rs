//! A server that answers each RPC with bytes made beforehand, and keeps what it was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tonic::Status;

type Answers = BTreeMap<&'static str, Result<Bytes, Status>>;

/// Answers by path; anything else is `Unimplemented`.
pub struct Fake {
    answers: Answers,
    asked: Arc<Mutex<Vec<(String, Bytes)>>>,
}

/// The running fake. Its socket goes with it.
pub struct Running {
    pub socket: PathBuf,
    asked: Arc<Mutex<Vec<(String, Bytes)>>>,
    _directory: tempfile::TempDir,
}

impl Fake {
    pub fn new() -> Self {
        Self { answers: BTreeMap::new(), asked: Arc::default() }
    }

    pub fn answer(mut self, path: &'static str, message: &impl Message) -> Self {
        self.answers.insert(path, Ok(message.encode_to_vec().into()));
        self
    }

    pub fn refuse(mut self, path: &'static str, status: Status) -> Self {
        self.answers.insert(path, Err(status));
        self
    }

    pub fn start(self) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (answers, asked) = (Arc::new(self.answers), Arc::clone(&self.asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, asked) = (Arc::clone(&answers), Arc::clone(&self.asked));
                let service = hyper::service::service_fn(move |request| {
                    respond(request, Arc::clone(&answers), Arc::clone(&asked))
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Running { socket, asked, _directory: directory }
    }
}

impl Running {
    /// The last request of this path.
    pub fn asked<M: Message + Default>(&self, path: &str) -> M {
        let asked = self.asked.lock().unwrap();
        let (_, bytes) = asked.iter().rev().find(|(one, _)| one == path).expect("it was asked");
        M::decode(bytes.clone()).unwrap()
    }
}

async fn respond(
    request: Request<Incoming>,
    answers: Arc<Answers>,
    asked: Arc<Mutex<Vec<(String, Bytes)>>>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    const FRAME_HEADER_BYTES: usize = 5;
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    asked.lock().unwrap().push((path.clone(), body.slice(FRAME_HEADER_BYTES..)));
    let unknown = Err(Status::unimplemented("unknown service"));
    let answer = answers.get(path.as_str()).cloned().unwrap_or(unknown);
    let mut frame = BytesMut::new();
    let mut trailers = HeaderMap::new();
    match answer {
        Ok(message) => {
            frame.put_u8(0);
            frame.put_u32(u32::try_from(message.len()).unwrap());
            frame.extend_from_slice(&message);
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
        }
        Err(status) => status.add_header(&mut trailers).unwrap(),
    }
    let body = Full::new(frame.freeze()).with_trailers(async move { Some(Ok(trailers)) });
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}
