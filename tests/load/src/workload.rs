//! This process as a workload.

use std::path::Path;

use svid_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use svid_proto::workload::{X509svidRequest, X509svidResponse};
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use crate::conn::{Http2, origin};
use crate::stats::Failure;

/// An open FetchX509SVID stream, on a connection of its own.
pub struct Stream {
    answers: Streaming<X509svidResponse>,
    _connection: Http2,
}

impl Stream {
    /// Connects and asks.
    /// # Errors
    /// [`Failure`] of connecting, or the agent's refusal.
    pub async fn open(socket: &Path) -> Result<Self, Failure> {
        let connection = Http2::unix(socket).await?;
        let mut client = SpiffeWorkloadApiClient::with_origin(connection.clone(), origin());
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let answers = client.fetch_x509svid(request).await?.into_inner();
        Ok(Self { answers, _connection: connection })
    }

    /// The next message, which has at least one SVID.
    /// # Errors
    /// The agent's refusal, or the end of the stream.
    pub async fn next(&mut self) -> Result<X509svidResponse, Failure> {
        match self.answers.message().await? {
            Some(answer) if answer.svids.is_empty() => Err(Failure::new("BadAnswer", "no SVID")),
            Some(answer) => Ok(answer),
            None => Err(Failure::new("BadAnswer", "the stream ended")),
        }
    }
}

/// Whether `answer` holds an SVID of this path.
pub fn holds(answer: &X509svidResponse, path: &str) -> bool {
    answer
        .svids
        .iter()
        .any(|svid| svid.spiffe_id.strip_prefix("spiffe://").is_some_and(|id| id.ends_with(path)))
}
