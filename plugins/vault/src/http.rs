//! Requests over HTTP: one redirect at most, a cap on what is read, and no secret in what is said about a failure.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Method, StatusCode};
use reqwest::Url;
use reqwest::redirect::Policy;
use rustify::endpoint::Endpoint;
use zeroize::Zeroizing;

use crate::config::{Connection, is_loopback};
use crate::error::VaultError;
use crate::tls;

/// How long one request may take, as in Vault's own client.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Longest that a server may tell us to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const X_VAULT_REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const X_VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const X_VAULT_NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

/// A request that can be sent more than once.
pub(crate) struct Request {
    method: Method,
    /// Below `/v1/`, with a query where there is one.
    path: String,
    /// Wiped when the last copy is dropped.
    body: Bytes,
}

impl Request {
    /// What an endpoint of vaultrs, or one of ours, asks for.
    pub(crate) fn of(endpoint: &impl Endpoint) -> Result<Self, VaultError> {
        // The path is all that is wanted of the URL.
        let request =
            endpoint.request("http://vault").map_err(|_| VaultError::Answer("no request was made".into()))?;
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map(|path| path.as_str().trim_start_matches('/').to_owned());
        let body = if body.is_empty() { Bytes::new() } else { Bytes::from_owner(Zeroizing::new(body)) };
        Ok(Self { method: parts.method, path: path.unwrap_or_default(), body })
    }

    /// The path below `/v1/`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// What came back, whatever its status. The body may hold a token.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// A client for one Vault, with the files as they were when it was made.
pub(crate) struct Http {
    client: reqwest::Client,
    address: String,
    namespace: Option<HeaderValue>,
}

impl Http {
    pub(crate) fn open(connection: &Connection) -> Result<Self, VaultError> {
        let words = |error: &dyn std::fmt::Display| VaultError::File(format!("HTTP client: {error}"));
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(connection)?)
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT);
        // Go's clients, and so SPIRE, never ask a proxy for the own machine.
        let builder = if is_loopback(&connection.address) { builder.no_proxy() } else { builder };
        let namespace = connection.namespace.as_deref().map(HeaderValue::from_str).transpose();
        Ok(Self {
            client: builder.build().map_err(|error| words(&error.without_url()))?,
            address: connection.address.clone(),
            namespace: namespace.map_err(|error| words(&error))?,
        })
    }

    /// Sends a request once, and after a redirect once more. Any status is an answer.
    pub(crate) async fn send(
        &self,
        request: &Request,
        token: Option<&HeaderValue>,
    ) -> Result<Answer, VaultError> {
        let url = format!("{}/v1/{}", self.address, request.path);
        let url = Url::parse(&url).map_err(|_| VaultError::File(format!("{url:?} is no URL")))?;
        let response = self.send_to(url.clone(), request, token).await?;
        let response = match self.redirect(&url, &response)? {
            None => response,
            Some(elsewhere) => {
                let response = self.send_to(elsewhere.clone(), request, token).await?;
                if self.redirect(&elsewhere, &response)?.is_some() {
                    return Err(self.no_redirect("it leads to another redirect"));
                }
                response
            }
        };
        self.read(response).await
    }

    async fn send_to(
        &self,
        url: Url,
        request: &Request,
        token: Option<&HeaderValue>,
    ) -> Result<reqwest::Response, VaultError> {
        let mut sent = self.client.request(request.method.clone(), url).header(X_VAULT_REQUEST, "true");
        if let Some(namespace) = &self.namespace {
            sent = sent.header(X_VAULT_NAMESPACE, namespace);
        }
        if let Some(token) = token {
            sent = sent.header(X_VAULT_TOKEN, token);
        }
        if !request.body.is_empty() {
            sent = sent.header(http::header::CONTENT_TYPE, "application/json").body(request.body.clone());
        }
        sent.send().await.map_err(|error| self.failed(&error.without_url()))
    }

    /// Where a standby sends us. The one who says so was proved by TLS and knows the token already; only a step from
    /// TLS down to plain HTTP would show it to others.
    fn redirect(&self, from: &Url, response: &reqwest::Response) -> Result<Option<Url>, VaultError> {
        use StatusCode as Status;
        let moved = [
            Status::MOVED_PERMANENTLY,
            Status::FOUND,
            Status::TEMPORARY_REDIRECT,
            Status::PERMANENT_REDIRECT,
        ];
        if !moved.contains(&response.status()) {
            return Ok(None);
        }
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let to = location.and_then(|location| from.join(location).ok());
        let to = to.ok_or_else(|| self.no_redirect("it says nowhere to go"))?;
        if to.scheme() != from.scheme() {
            return Err(self.no_redirect("it leads to another scheme"));
        }
        Ok(Some(to))
    }

    fn no_redirect(&self, reason: &'static str) -> VaultError {
        VaultError::Redirect { address: self.address.clone(), reason }
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Answer, VaultError> {
        let too_large = || VaultError::Answer(format!("it is larger than {MAX_ANSWER} bytes"));
        let length = response.content_length().unwrap_or_default();
        if length > MAX_ANSWER as u64 {
            return Err(too_large());
        }
        // What holds a token is smaller than this, so that growing leaves no copies of it behind.
        let room = usize::try_from(length).unwrap_or_default().max(64 * 1024);
        let mut body = Zeroizing::new(Vec::with_capacity(room));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error.without_url()))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
        let retry_after = retry_after.map(|wait| wait.min(MAX_RETRY_AFTER));
        Ok(Answer { status: response.status().as_u16(), retry_after, body })
    }

    fn failed(&self, error: &reqwest::Error) -> VaultError {
        let address = self.address.clone();
        if error.is_timeout() && !error.is_connect() {
            return VaultError::Timeout { address, seconds: TIMEOUT.as_secs() };
        }
        VaultError::Connect { address, reason: reason(error) }
    }
}

/// The innermost cause: what lies around it says that a request could not be sent.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    match text.as_str() {
        text if text.contains("UnknownIssuer") => {
            format!(
                "{text}: its certificate is not signed by a CA of ca_cert_path (of the operating system without one)"
            )
        }
        text if error.is_timeout() => format!("no connection within {} s: {text}", CONNECT_TIMEOUT.as_secs()),
        _ => text,
    }
}
