//! The agent's one connection to its server, shared by all that talk to it.

mod attest;
mod calls;
mod dial;
pub(crate) mod error;
mod identity;
mod signing;

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use svid_core::clock::unix_seconds;
use tokio::sync::{Notify, watch};
use tonic::Status;
use tonic::transport::Channel;

pub use attest::{AttestChannel, Attested};
pub use calls::FederatedBundle;
use dial::Connection;
pub use dial::{Dialer, SharedRoots};
pub use error::{ClientError, ConnectError, DenyReason};
pub use identity::AgentIdentity;

use crate::stored::ClockGuard;

/// How long one logical operation may take. Source: SPIRE.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(30);

struct State {
    /// Counts identities; tells an answer to the old one from an answer to the current one.
    generation: u64,
    connection: Option<Connection>,
}

struct Inner {
    dialer: Dialer,
    roots: SharedRoots,
    identity: watch::Sender<Arc<AgentIdentity>>,
    state: Mutex<State>,
    /// Held while connecting, so that many callers make one connection.
    connecting: tokio::sync::Mutex<()>,
    contact: Contact,
}

/// When a server last answered.
#[derive(Default)]
struct Contact {
    /// Unix seconds; 0 for never.
    last: AtomicI64,
    answered: Notify,
    clock: OnceLock<ClockGuard>,
}

/// Talks to the server as the agent. Clones share the connection.
#[derive(Clone)]
pub struct ServerClient(Arc<Inner>);

impl fmt::Debug for ServerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerClient").field("target", &self.0.dialer.target()).finish_non_exhaustive()
    }
}

/// A connection and whose it is.
struct Lease {
    connection: Connection,
    generation: u64,
}

impl ServerClient {
    /// Connects when first used.
    pub fn new(dialer: Dialer, roots: SharedRoots, identity: AgentIdentity) -> Self {
        Self(Arc::new(Inner {
            dialer,
            roots,
            identity: watch::Sender::new(Arc::new(identity)),
            state: Mutex::new(State { generation: 0, connection: None }),
            connecting: tokio::sync::Mutex::new(()),
            contact: Contact::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's identity, now and after each renewal.
    pub fn identity(&self) -> watch::Receiver<Arc<AgentIdentity>> {
        self.0.identity.subscribe()
    }

    /// The agent's identity now.
    pub fn current_identity(&self) -> Arc<AgentIdentity> {
        Arc::clone(&self.0.identity.borrow())
    }

    /// The authorities that connections check the server against.
    pub fn roots(&self) -> &SharedRoots {
        &self.0.roots
    }

    /// How the server is reached.
    pub fn dialer(&self) -> &Dialer {
        &self.0.dialer
    }

    /// Whether there is a connection that was not seen failing.
    pub fn is_connected(&self) -> bool {
        self.state().connection.is_some()
    }

    /// Tells `guard` of each answer: over a verified connection it proves the clock right. The first call counts.
    pub fn watch_clock(&self, guard: ClockGuard) {
        // There is one clock in a process.
        let _ = self.0.contact.clock.set(guard);
    }

    /// When a server last answered, now or before a restart; `None` for never.
    pub fn last_contact(&self) -> Option<SystemTime> {
        let at = u64::try_from(self.0.contact.last.load(Ordering::Relaxed)).ok().filter(|at| *at > 0)?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(at))
    }

    /// Notes when a server answered an earlier process.
    pub fn remember_contact(&self, at: SystemTime) {
        self.0.contact.last.fetch_max(unix_seconds(at), Ordering::Relaxed);
    }

    /// Completes with the next answer of a server.
    pub async fn answered(&self) {
        self.0.contact.answered.notified().await;
    }

    /// A server answered.
    pub(crate) fn note_contact(&self) {
        let contact = &self.0.contact;
        contact.last.store(unix_seconds(SystemTime::now()), Ordering::Relaxed);
        if let Some(guard) = contact.clock.get() {
            guard.confirm();
        }
        contact.answered.notify_waiters();
    }

    /// Everything from now on happens as `identity`, over a new connection.
    pub fn replace_identity(&self, identity: AgentIdentity) {
        {
            let mut state = self.state();
            state.generation += 1;
            state.connection = None;
        }
        self.0.identity.send_replace(Arc::new(identity));
    }

    /// Runs one logical operation on the shared connection, which is given up after any error of the transport.
    pub(crate) async fn call<T, F>(&self, operation: impl FnOnce(Channel) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let timed = async {
            let lease = self.lease().await?;
            let result = operation(lease.connection.channel.clone()).await;
            let value = result.map_err(|status| self.judge(&lease, &status))?;
            self.note_contact();
            Ok(value)
        };
        match tokio::time::timeout(RPC_TIMEOUT, timed).await {
            Ok(result) => result,
            Err(_) => {
                self.state().connection = None;
                Err(ClientError::Timeout(RPC_TIMEOUT))
            }
        }
    }

    /// As [`ServerClient::call`] without the limit of time, for streams that stay open. The second value tells
    /// errors of the stream apart later.
    pub(crate) async fn open<T, F>(
        &self,
        operation: impl FnOnce(Channel) -> F,
    ) -> Result<(T, StreamJudge), ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let timed = async {
            let lease = self.lease().await?;
            let result = operation(lease.connection.channel.clone()).await;
            let value = result.map_err(|status| self.judge(&lease, &status))?;
            Ok((value, StreamJudge { client: self.clone(), lease }))
        };
        let timeout = |_| ClientError::Timeout(RPC_TIMEOUT);
        tokio::time::timeout(RPC_TIMEOUT, timed).await.map_err(timeout)?
    }

    async fn lease(&self) -> Result<Lease, ClientError> {
        if let Some(lease) = self.existing() {
            return Ok(lease);
        }
        let _turn = self.0.connecting.lock().await;
        if let Some(lease) = self.existing() {
            return Ok(lease);
        }
        let generation = self.state().generation;
        let identity = self.current_identity();
        let connection = self.0.dialer.connect(Some(&self.0.roots), Some(&identity)).await?;
        let mut state = self.state();
        if state.generation != generation {
            return Err(ClientError::Superseded);
        }
        state.connection = Some(connection.clone());
        Ok(Lease { connection, generation })
    }

    fn existing(&self) -> Option<Lease> {
        let state = self.state();
        Some(Lease { connection: state.connection.clone()?, generation: state.generation })
    }

    /// Turns a gRPC error into ours and drops the connection, as SPIRE does after any error.
    fn judge(&self, lease: &Lease, status: &Status) -> ClientError {
        let mut state = self.state();
        if state.generation != lease.generation {
            // A server denies the old serial once the new one was used: that says nothing about this agent.
            return ClientError::Superseded;
        }
        if is_about_the_connection(status) {
            state.connection = None;
        }
        drop(state);
        match lease.connection.last_error.take() {
            Some(error) => error.into(),
            None => ClientError::from_status(status),
        }
    }
}

/// Reads the errors of an open stream.
pub(crate) struct StreamJudge {
    client: ServerClient,
    lease: Lease,
}

impl StreamJudge {
    pub(crate) fn judge(&self, status: &Status) -> ClientError {
        self.client.judge(&self.lease, status)
    }
}

/// Codes that a broken connection, or a server that drops this agent, leads to.
fn is_about_the_connection(status: &Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}
