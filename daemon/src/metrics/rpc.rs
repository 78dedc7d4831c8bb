//! gRPC calls, measured to their very end: what became of a stream stands in its trailers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

/// gRPC's name of a code, as Go prints it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// Calls `done` once with the status that the answer ends with: at once when its head says so, else with the trailers.
/// An answer that is given up before its end, because the client went away, counts as `given_up`.
pub fn on_end(
    response: http::Response<Body>,
    given_up: Code,
    done: impl FnOnce(Code) + Send + Unpin + 'static,
) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) => {
            done(status.code());
            response
        }
        None => response.map(|body| Body::new(Watched { body, given_up, done: Some(done) })),
    }
}

struct Watched<F: FnOnce(Code)> {
    body: Body,
    given_up: Code,
    done: Option<F>,
}

impl<F: FnOnce(Code)> Watched<F> {
    fn end(&mut self, code: Code) {
        if let Some(done) = self.done.take() {
            done(code);
        }
    }
}

impl<F: FnOnce(Code)> Drop for Watched<F> {
    fn drop(&mut self) {
        self.end(self.given_up);
    }
}

impl<F: FnOnce(Code) + Unpin> HttpBody for Watched<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code =
                        Status::from_header_map(trailers).map_or(Code::Unknown, |status| status.code());
                    self.end(code);
                }
            }
            Some(Err(status)) => self.end(status.code()),
            None => self.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt as _;

    use super::*;

    fn watched(body: Body) -> (Body, Arc<Mutex<Vec<Code>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let response =
            on_end(http::Response::new(body), Code::Cancelled, move |code| sink.lock().unwrap().push(code));
        (response.into_body(), seen)
    }

    fn trailers(code: &'static str) -> http::HeaderMap {
        http::HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static(code),
        )])
    }

    #[tokio::test]
    async fn the_end_counts_once() {
        for (trailer, want) in [("0", Code::Ok), ("5", Code::NotFound), ("x", Code::Unknown)] {
            let data = http_body_util::Full::new(Bytes::from_static(b"x"));
            let body = data.with_trailers(std::future::ready(Some(Ok(trailers(trailer)))));
            let (body, seen) = watched(Body::new(body));
            body.collect().await.unwrap();
            assert_eq!(*seen.lock().unwrap(), [want], "{trailer}");
        }
    }

    #[tokio::test]
    async fn an_answer_given_up() {
        let (body, seen) = watched(Body::new(http_body_util::Full::new(Bytes::from_static(b"x"))));
        assert!(seen.lock().unwrap().is_empty());
        drop(body);
        assert_eq!(*seen.lock().unwrap(), [Code::Cancelled]);
    }

    #[test]
    fn a_refusal_counts_at_once() {
        let seen = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&seen);
        let refusal = Status::permission_denied("no").into_http();
        let response = on_end(refusal, Code::Cancelled, move |code| *sink.lock().unwrap() = Some(code));
        assert_eq!(*seen.lock().unwrap(), Some(Code::PermissionDenied));
        drop(response);
    }
}
