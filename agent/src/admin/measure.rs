//! Counts the calls of the admin socket.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use crate::workload_api::metrics::SocketMetrics;

/// A service whose calls are counted.
#[derive(Clone)]
pub(super) struct Measured<S> {
    pub(super) inner: S,
    pub(super) metrics: Arc<SocketMetrics>,
}

impl<S> Service<Request<Body>> for Measured<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let measured = self.metrics.begin(request.uri().path(), false);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(match measured {
                Some(call) => call.until_end(response),
                None => response,
            })
        })
    }
}
