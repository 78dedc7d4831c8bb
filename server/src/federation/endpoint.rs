//! The bundle endpoint: `GET /` gives the trust domain's bundle to anybody.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use svid_core::bundle::Bundle;
use svid_core::id::TrustDomain;
use svid_daemon::caps::Caps;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::serving::Current;
use crate::directory::Directory;

/// For the handshake, and for the headers of each request.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a connection as a whole: a partner asks once and goes.
const MAX_LIFE: Duration = Duration::from_secs(60);
/// All headers of a request together.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Connections at once.
const MAX_CONNECTIONS: usize = 256;
/// Connections at once from one address.
const MAX_OF_ADDRESS: usize = 32;
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is served.
pub struct Endpoint {
    directory: Directory,
    trust_domain: TrustDomain,
    refresh_hint: Duration,
    /// The last document, and the bundle that it was made of.
    made: Mutex<Option<(Arc<Bundle>, Bytes)>>,
}

impl Endpoint {
    /// Serves the bundle of `trust_domain` as the directory has it at each request.
    pub fn new(directory: Directory, trust_domain: TrustDomain, refresh_hint: Duration) -> Self {
        Self { directory, trust_domain, refresh_hint, made: Mutex::default() }
    }

    /// Serves until told to stop.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Current, stop: CancellationToken) {
        let of_address = Caps::new(MAX_OF_ADDRESS);
        let of_all = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((stream, peer)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Some(one) = of_address.acquire(source_of(peer)) else { continue };
            let Ok(all) = Arc::clone(&of_all).try_acquire_owned() else { continue };
            let (endpoint, tls, stop) = (self.clone(), tls.load_full(), stop.clone());
            tokio::spawn(async move {
                let _places = (one, all);
                let serving = timeout(MAX_LIFE, endpoint.connection(stream, TlsAcceptor::from(tls)));
                tokio::select! {
                    ended = serving => if let Ok(Err(error)) = ended {
                        tracing::debug!(address = %peer, %error, "Connection to the bundle endpoint failed");
                    },
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, tls: TlsAcceptor) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let stream = timeout(PATIENCE, tls.accept(stream)).await.map_err(io::Error::other)??;
        let service = service_fn(|request: Request<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(self.answer(request.method(), request.uri().path())))
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    }

    /// As SPIRE's Go server answers.
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed\n");
        }
        if path != "/" {
            return refusal(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        match self.document() {
            Some(document) => with_type(Response::new(Full::new(document)), "application/json"),
            None => {
                tracing::error!("Unable to retrieve local bundle");
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "500 unable to retrieve local bundle\n")
            }
        }
    }

    /// The document of the bundle as it is now.
    fn document(&self) -> Option<Bytes> {
        let bundle = self.directory.bundle(&self.trust_domain)?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, document)) = &*made
            && Arc::ptr_eq(of, &bundle)
        {
            return Some(document.clone());
        }
        let with_hint = Bundle { refresh_hint: self.refresh_hint, ..(*bundle).clone() };
        let document = Bytes::from(with_hint.to_document());
        *made = Some((bundle, document.clone()));
        Some(document)
    }
}

/// Hosts own whole /64 networks.
fn source_of(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

fn with_type(mut response: Response<Full<Bytes>>, content_type: &'static str) -> Response<Full<Bytes>> {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn refusal(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    with_type(response, "text/plain; charset=utf-8")
}
