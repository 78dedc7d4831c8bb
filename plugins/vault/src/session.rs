//! A token for Vault: who needs one gets one, one login at a time, renewed before it ends, and replaced when it is refused.

use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use rustify::endpoint::Endpoint;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest};
use zeroize::Zeroizing;

use crate::answer;
use crate::config::{Auth, Connection};
use crate::error::{self, VaultError};
use crate::http::{Answer, Http, Request};
use crate::lease::Lease;
use crate::login::LoginRequest;
use crate::secret::Secret;

/// How often a request is sent before its failure counts, as in Vault's own client.
const TRIES: u32 = 3;

/// One Vault, as one plugin sees it. Ends its background task with itself.
pub(crate) struct Vault {
    session: Arc<Session>,
    renewal: JoinHandle<()>,
}

struct Session {
    connection: Connection,
    http: StdMutex<Option<Arc<Http>>>,
    state: Mutex<State>,
    /// Told when there is a new token, or none any more.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Token>>,
    logins: u64,
    /// When the last login failed, and why: who waited for it need not try again.
    failed: Option<(Instant, VaultError)>,
}

struct Token {
    /// Counts logins, so that only the token that was refused is thrown away.
    number: u64,
    header: HeaderValue,
    secret: Secret,
    lease: StdMutex<Lease>,
}

impl Token {
    fn lease(&self) -> Lease {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_lease(&self, lease: Lease) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Vault {
    /// Contacts nobody yet.
    pub(crate) fn new(connection: Connection) -> Self {
        let session = Arc::new(Session {
            connection,
            http: StdMutex::default(),
            state: Mutex::default(),
            changed: Arc::default(),
        });
        let renewal = tokio::spawn(keep_alive(Arc::downgrade(&session)));
        Self { session, renewal }
    }

    /// Has an endpoint answered with the plugin's token. A token that is refused is replaced, and the call made once
    /// more: once, so that a policy that says no is not asked without end.
    pub(crate) async fn call(&self, endpoint: &impl Endpoint) -> Result<Answer, VaultError> {
        let request = Request::of(endpoint)?;
        let token = self.session.token().await?;
        let answer = self.session.send(&request, Some(&token)).await;
        if !answer.as_ref().is_err_and(VaultError::is_denied) {
            return answer;
        }
        tracing::info!(path = request.path(), "Vault refused the token; logging in again");
        self.session.forget(token.number).await;
        let token = self.session.token().await?;
        self.session.send(&request, Some(&token)).await
    }

    /// Has an endpoint answered that everybody may ask.
    pub(crate) async fn ask(&self, endpoint: &impl Endpoint) -> Result<Answer, VaultError> {
        self.session.send(&Request::of(endpoint)?, None).await
    }

    /// What Vault wants to be read, without anything that nobody may read.
    pub(crate) async fn presentable(&self, said: &str) -> String {
        let token = self.session.state.lock().await.token.clone();
        let secrets = self.session.secrets(token.as_deref());
        error::presentable(said, &secrets.iter().map(Secret::expose).collect::<Vec<_>>())
    }

    /// Such as ` in the namespace "a"`; empty without one.
    pub(crate) fn place(&self) -> String {
        self.session.place()
    }
}

impl Session {
    fn place(&self) -> String {
        let namespace = self.connection.namespace.as_ref();
        namespace.map(|namespace| format!(" in the namespace {namespace:?}")).unwrap_or_default()
    }

    fn http(&self) -> Result<Arc<Http>, VaultError> {
        let mut http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(http) = &*http {
            return Ok(http.clone());
        }
        Ok(http.insert(Arc::new(Http::open(&self.connection)?)).clone())
    }

    /// The next client reads the certificate files again.
    fn forget_http(&self) {
        *self.http.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sends a request until it is answered, refused for good, or failed too often.
    async fn send(&self, request: &Request, token: Option<&Token>) -> Result<Answer, VaultError> {
        let mut attempt = 1;
        loop {
            let answer = self.http()?.send(request, token.map(|token| &token.header)).await;
            let retry_after = answer.as_ref().ok().and_then(|answer| answer.retry_after);
            let error = match self.judged(answer, token) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if matches!(error, VaultError::Connect { .. }) {
                self.forget_http();
            }
            if attempt >= TRIES || !error.is_passing() {
                return Err(error);
            }
            let wait = retry_after.unwrap_or_else(|| jitter(attempt));
            tracing::warn!(path = request.path(), %error, attempt, retry_in = ?wait, "Vault did not answer as wanted");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// An answer that is not a success is an error, with what Vault says but none of our secrets.
    fn judged(
        &self,
        answer: Result<Answer, VaultError>,
        token: Option<&Token>,
    ) -> Result<Answer, VaultError> {
        let answer = answer?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let secrets = self.secrets(token);
        let secrets: Vec<&str> = secrets.iter().map(Secret::expose).collect();
        let errors = answer::read_errors(&answer.body);
        let errors = errors.iter().map(|said| error::presentable(said, &secrets)).collect();
        Err(VaultError::Status { status: answer.status, errors })
    }

    fn secrets(&self, token: Option<&Token>) -> Vec<Secret> {
        let login = match &self.connection.auth {
            Auth::Token { token } => Some(token.clone()),
            Auth::AppRole { secret_id, .. } => Some(secret_id.clone()),
            Auth::Cert { .. } => None,
            auth @ Auth::Kubernetes { .. } => {
                LoginRequest::new(auth).ok().flatten().and_then(|request| request.secret().cloned())
            }
        };
        login.into_iter().chain(token.map(|token| token.secret.clone())).collect()
    }

    /// The token in use, or a new one. Who comes while somebody logs in waits, and shares what comes of it.
    async fn token(&self) -> Result<Arc<Token>, VaultError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(token) = &state.token
            && !token.lease().is_over(Instant::now())
        {
            return Ok(token.clone());
        }
        if let Some((at, error)) = &state.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        state.token = None;
        match self.log_in(state.logins + 1).await {
            Ok(token) => {
                state.logins += 1;
                state.failed = None;
                self.changed.notify_one();
                Ok(state.token.insert(Arc::new(token)).clone())
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn forget(&self, number: u64) {
        let mut state = self.state.lock().await;
        state.token.take_if(|token| token.number == number);
        self.changed.notify_one();
    }

    async fn log_in(&self, number: u64) -> Result<Token, VaultError> {
        self.forget_http();
        let token = match LoginRequest::new(&self.connection.auth)? {
            Some(request) => self.exchange(&request, number).await?,
            None => self.look_up(number).await?,
        };
        let lease = token.lease();
        tracing::debug!(lifetime = ?lease.life(), renewable = lease.is_renewable(), "Logged in to Vault");
        Ok(token)
    }

    async fn exchange(&self, login: &LoginRequest, number: u64) -> Result<Token, VaultError> {
        let path = login.path();
        let begun = Instant::now();
        let answer = self.send(&Request::of(login)?, None).await;
        let answer = answer.map_err(|error| self.login_refused(&path, error))?;
        let grant = answer::login(&answer.body)?;
        if grant.client_token.is_empty() {
            let text = "authentication is successful, but could not get token".to_owned();
            return Err(VaultError::Answer(text));
        }
        token(grant.client_token, number, Lease::new(begun, grant.lease_duration, grant.renewable))
    }

    /// The token method: the configured token, and how long it lives.
    async fn look_up(&self, number: u64) -> Result<Token, VaultError> {
        let Auth::Token { token: secret } = &self.connection.auth else {
            return Err(VaultError::Login("this method has no token of its own".into()));
        };
        let begun = Instant::now();
        let unknown = token(secret.clone(), number, Lease::new(begun, 0, false))?;
        let answer = self.send(&Request::of(&LookupTokenSelfRequest {})?, Some(&unknown)).await;
        let answer = answer.map_err(|error| self.login_refused("auth/token/lookup-self", error))?;
        let found = answer::lookup(&answer.body)?;
        unknown.set_lease(Lease::new(begun, found.ttl, found.renewable));
        Ok(unknown)
    }

    fn login_refused(&self, path: &str, error: VaultError) -> VaultError {
        let VaultError::Status { status, .. } = error else { return error };
        if error.is_passing() {
            return error;
        }
        let advice = match (&self.connection.auth, status) {
            (_, 404 | 405) => "no such auth method is mounted there: check its mount point and the namespace",
            (Auth::Token { .. }, _) => {
                "the token has ended or was revoked, belongs to another namespace, or its policy lacks \
                 path \"auth/token/lookup-self\" { capabilities = [\"read\"] }"
            }
            (Auth::AppRole { .. }, _) => {
                "check approle_id and approle_secret_id: they may have ended or be used up"
            }
            (Auth::Cert { .. }, _) => {
                "no role takes the client certificate: check client_cert_path and cert_auth_role_name"
            }
            (Auth::Kubernetes { .. }, _) => {
                "check k8s_auth_role_name, and that the role takes the service account of token_path"
            }
        };
        let place = self.place();
        VaultError::Login(format!("authentication failed {path}{place}: {error}: {advice}"))
    }

    /// Renews the token, or notes when to try again.
    async fn renew(&self, current: &Token) {
        let begun = Instant::now();
        let renewed = async {
            let request = Request::of(&RenewTokenSelfRequest { increment: None })?;
            answer::login(&self.send(&request, Some(current)).await?.body)
        };
        match renewed.await {
            Ok(grant) => {
                let lease = Lease::new(begun, grant.lease_duration, grant.renewable);
                tracing::debug!(lifetime = ?lease.life(), "Renewed the token for Vault");
                current.set_lease(lease);
            }
            Err(error) if error.is_denied() => {
                tracing::warn!(%error, "The token for Vault is not renewed any more; logging in when it is needed next");
                self.forget(current.number).await;
            }
            Err(error) => {
                let lease = current.lease().after_failure(Instant::now());
                tracing::warn!(%error, ends_in = ?lease.left(Instant::now()), "Failed to renew the token for Vault");
                current.set_lease(lease);
            }
        }
    }
}

fn token(secret: Secret, number: u64, lease: Lease) -> Result<Token, VaultError> {
    // The header shares bytes that wipe themselves.
    let bytes = Bytes::from_owner(Zeroizing::new(secret.expose().as_bytes().to_vec()));
    let header = HeaderValue::from_maybe_shared(bytes);
    let mut header = header.map_err(|_| VaultError::Answer("the token is no text for a header".into()))?;
    header.set_sensitive(true);
    Ok(Token { number, header, secret, lease: StdMutex::new(lease) })
}

/// Renews whatever token there is when its time has come.
async fn keep_alive(session: Weak<Session>) {
    while let Some(strong) = session.upgrade() {
        let changed = strong.changed.clone();
        let token = strong.state.lock().await.token.clone();
        drop(strong);
        let due = token.as_ref().and_then(|token| token.lease().renew_at());
        match (due, token) {
            (Some(due), Some(token)) => tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep_until(due) => match session.upgrade() {
                    Some(session) => session.renew(&token).await,
                    None => return,
                },
            },
            _ => changed.notified().await,
        }
    }
}

/// 1 to 1.5 seconds for each attempt made, as in Vault's own client.
fn jitter(attempt: u32) -> Duration {
    let mut byte = [0u8; 1];
    // Without randomness the shortest wait does.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    Duration::from_millis(1000 + u64::from(byte[0]) * 500 / 255) * attempt
}
