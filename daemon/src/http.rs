//! The small HTTP/1 listener behind metrics and health.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::tls::CurrentTls;

const READ_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 256;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a handler answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: http::StatusCode,
    /// Value of Content-Type.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// Serves `answer`, which gets the path of each request, until `stop`. Requests' bodies are not read, headers
/// have to arrive within ten seconds.
///
/// # Errors
/// None after the listener is there; failures of single connections are not reported.
pub async fn serve(
    listener: TcpListener,
    tls: Option<CurrentTls>,
    stop: CancellationToken,
    answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let (answer, stop, tls) =
            (Arc::clone(&answer), stop.clone(), tls.as_ref().map(|tls| tls.load_full()));
        tokio::spawn(async move {
            let serving = async {
                match tls {
                    None => connection(stream, answer).await,
                    Some(tls) => {
                        let shaking = TlsAcceptor::from(tls).accept(stream);
                        let shaken = tokio::time::timeout(READ_HEADER_TIMEOUT, shaking).await;
                        connection(shaken.map_err(io::Error::other)??, answer).await
                    }
                }
            };
            tokio::select! {
                result = serving => if let Err(error) = result {
                    tracing::debug!(error = %error, "HTTP connection failed");
                },
                () = stop.cancelled() => {}
            }
            drop(slot);
        });
    }
}

async fn connection<S>(
    stream: S,
    answer: Arc<impl Fn(&str) -> Answer + Send + Sync + 'static>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let service = service_fn(|request: Request<Incoming>| {
        let Answer { status, content_type, body } = answer(request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
        std::future::ready(Ok::<_, Infallible>(response))
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}
