//! Calling the Workload API from the command line.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use svid_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use super::text::{dial_error, rpc_error};

/// Why a call failed. The text is what the user sees.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Nobody listens, or there is no runtime to call with.
    Local(String),
    /// The agent's answer.
    Status(Status),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local(text) => f.write_str(text),
            Self::Status(status) => f.write_str(&rpc_error(status)),
        }
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// Runs a command's calls to their end.
pub(crate) fn block_on<T>(calls: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|err| CallError::Local(err.to_string()))?.block_on(calls)
}

/// A channel over a Unix socket. The first connection is made here, so that its error is the user's.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, CallError> {
    let first =
        UnixStream::connect(socket).await.map_err(|err| CallError::Local(dial_error(socket, &err)))?;
    let (path, first) = (socket.to_owned(), std::sync::Mutex::new(Some(first)));
    let connector = tower::service_fn(move |_: Uri| {
        let first = first.lock().ok().and_then(|mut first| first.take());
        let path = path.clone();
        async move {
            match first {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => UnixStream::connect(path).await.map(TokioIo::new),
            }
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let dialled = endpoint.connect_with_connector(connector).await;
    dialled.map_err(|err| CallError::Local(format!("rpc error: code = Unavailable desc = {err}")))
}

/// A client of the Workload API.
pub(crate) async fn workload(socket: &Path) -> Result<SpiffeWorkloadApiClient<Channel>, CallError> {
    Ok(SpiffeWorkloadApiClient::new(channel(socket).await?).max_decoding_message_size(usize::MAX))
}

/// A request with the header that the Workload API asks for.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// Ends a call after `timeout`; zero is no limit.
pub(crate) async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    if timeout.is_zero() {
        return call.await;
    }
    let late = || CallError::Status(Status::deadline_exceeded("context deadline exceeded"));
    tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| Err(late()))
}

/// The first message of a stream.
pub(crate) async fn first<T>(
    stream: Result<tonic::Response<tonic::Streaming<T>>, Status>,
) -> Result<T, CallError> {
    let first = stream?.into_inner().message().await?;
    first.ok_or_else(|| CallError::Local("EOF".into()))
}
