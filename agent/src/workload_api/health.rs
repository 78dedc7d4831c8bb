//! Health: the agent asks itself over its own socket, the way a workload would.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use svid_proto::grpc::health::v1::health_check_response::ServingStatus;
use svid_proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use svid_proto::workload::X509svidRequest;
use svid_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(10);
/// How long a result holds for those who ask next.
const KEEP: Duration = Duration::from_millis(500);

/// Why the Workload API does not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The socket takes no connection.
    #[error("cannot connect to the Workload API")]
    Connect(#[source] tonic::transport::Error),
    /// It answers with something that no healthy agent says.
    #[error("unable to fetch X.509 context from Workload API: {0}")]
    Answer(#[source] Box<Status>),
    /// It does not answer.
    #[error("the Workload API did not answer within {PATIENCE:?}")]
    Silent,
}

/// Fetches X509-SVIDs over the socket. That this process has no identity is a healthy answer.
/// # Errors
/// [`ProbeError`].
pub async fn probe(socket: &Path) -> Result<(), ProbeError> {
    tokio::time::timeout(PATIENCE, fetch(socket)).await.unwrap_or(Err(ProbeError::Silent))
}

async fn fetch(socket: &Path) -> Result<(), ProbeError> {
    let mut client = SpiffeWorkloadApiClient::new(connect(socket).await.map_err(ProbeError::Connect)?);
    let mut request = Request::new(X509svidRequest::default());
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let first = match client.fetch_x509svid(request).await {
        Ok(stream) => stream.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    match first {
        Err(status) if status.code() != Code::PermissionDenied => Err(ProbeError::Answer(Box::new(status))),
        _ => Ok(()),
    }
}

/// A channel to a Unix socket.
/// # Errors
/// If the socket takes no connection.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket: PathBuf = socket.into();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address only fills the authority, as gRPC clients of Unix sockets do.
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// `grpc.health.v1.Health/Check`. A probe is a connection of this process's own user, of which there is an end, and
/// anybody may ask: whoever asks during a probe or soon after it shares its result.
pub(crate) struct Health {
    /// `None` without a Workload API, which counts as healthy.
    socket: Option<PathBuf>,
    last: Mutex<Option<(Instant, ServingStatus)>>,
}

impl Health {
    pub(crate) fn new(socket: Option<PathBuf>) -> Self {
        Self { socket, last: Mutex::default() }
    }

    pub(crate) async fn check(
        &self,
        request: HealthCheckRequest,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let status = match &self.socket {
            None => ServingStatus::Serving,
            Some(socket) => self.shared(socket).await,
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn shared(&self, socket: &Path) -> ServingStatus {
        let mut last = self.last.lock().await;
        if let Some((at, status)) = *last
            && at.elapsed() < KEEP
        {
            return status;
        }
        let status = match probe(socket).await {
            Ok(()) => ServingStatus::Serving,
            Err(err) => {
                let reason = "unable to fetch X.509 context from Workload API";
                tracing::warn!(reason, error = %svid_daemon::log::chain(&err), "Health check failed");
                ServingStatus::NotServing
            }
        };
        *last = Some((Instant::now(), status));
        status
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_who_ask_share_a_probe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let health = Health::new(Some(path));
        let asked = (0..50).map(|_| health.check(HealthCheckRequest::default()));
        for answer in futures_util::future::join_all(asked).await {
            assert_eq!(answer.unwrap().into_inner().status(), ServingStatus::NotServing);
        }
        // A probe may connect again when it is cut off.
        assert!(accepted.load(Ordering::SeqCst) < 10);
    }
}
