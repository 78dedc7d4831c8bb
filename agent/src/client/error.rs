//! How talking to the server fails.

use std::sync::Arc;

use prost::Message as _;
use svid_core::key::KeyError;
use svid_daemon::tls::{TlsError, handshake_failure};
use svid_plugin_api::PluginError;
use svid_proto::spire::api::types::PermissionDeniedDetails;
use svid_proto::spire::api::types::permission_denied_details::Reason;
use tonic::{Code, Status};

use svid_daemon::metrics::code_name;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        source: std::io::Error,
    },
    /// No address accepted a connection; the last one's reason.
    #[error("cannot connect to {target}: {source}")]
    Tcp {
        /// Host and port.
        target: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The handshake failed.
    #[error("TLS handshake with {target} failed: {}", handshake_failure(source))]
    Tls {
        /// Host and port.
        target: String,
        /// Which rule.
        source: std::io::Error,
    },
    /// The TLS configuration could not be built.
    #[error("cannot use the agent's identity for TLS: {0}")]
    Config(#[from] TlsError),
    /// The HTTP/2 preface or settings failed.
    #[error("cannot speak HTTP/2 with {target}: {message}")]
    Http {
        /// Host and port.
        target: String,
        /// What went wrong.
        message: String,
    },
    /// Nothing happened for too long.
    #[error("connecting to {target} took too long")]
    Timeout {
        /// Host and port.
        target: String,
    },
}

impl ConnectError {
    /// The server's chain ends in an authority that is not in our bundle.
    pub fn is_unknown_authority(&self) -> bool {
        match self {
            Self::Tls { source, .. } => svid_daemon::tls::is_unknown_authority(source),
            _ => false,
        }
    }
}

/// What the server holds against this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// The agent has to prove anew what it is: expired, unknown, another serial, or told to.
    Reattest,
    /// The agent is banned.
    Banned,
}

/// Why an exchange with the server failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, because our bundle does not know the server's authority.
    #[error("{0}: x509: certificate signed by unknown authority")]
    UnknownAuthority(Arc<ConnectError>),
    /// No connection.
    #[error("{0}")]
    Connect(Arc<ConnectError>),
    /// The server refused this agent or this request.
    #[error("rpc error: code = PermissionDenied desc = {message}")]
    Denied {
        /// Set when the server says what to do about it.
        reason: Option<DenyReason>,
        /// The server's words.
        message: String,
    },
    /// The server does not know the RPC.
    #[error("rpc error: code = Unimplemented desc = {0}")]
    Unimplemented(String),
    /// Any other gRPC error.
    #[error("rpc error: code = {} desc = {message}", code_name(*.code))]
    Status {
        /// Its code.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// The operation took longer than it may.
    #[error("rpc error: code = DeadlineExceeded desc = the server did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The identity was replaced while the operation ran.
    #[error("the agent's identity was renewed meanwhile")]
    Superseded,
    /// The answer breaks a rule.
    #[error("malformed response from the server: {0}")]
    Malformed(String),
    /// A plugin refused.
    #[error("{0}")]
    Plugin(#[from] PluginError),
    /// A key could not be used.
    #[error("{0}")]
    Key(#[from] KeyError),
}

impl ClientError {
    /// Reads a gRPC error.
    pub fn from_status(status: &Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied => Self::Denied { reason: deny_reason(status.details()), message },
            Code::Unimplemented => Self::Unimplemented(message),
            code => Self::Status { code, message },
        }
    }

    /// The gRPC code that callers of ours may be told.
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownAuthority(_) | Self::Connect(_) | Self::Superseded => Code::Unavailable,
            Self::Denied { .. } => Code::PermissionDenied,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Status { code, .. } => *code,
            Self::Timeout(_) => Code::DeadlineExceeded,
            Self::Malformed(_) | Self::Plugin(_) | Self::Key(_) => Code::Internal,
        }
    }

    /// No server was there to answer: nothing was refused.
    pub fn is_unreachable(&self) -> bool {
        let connect = |error: &ConnectError| {
            matches!(
                error,
                ConnectError::Resolve { .. } | ConnectError::Tcp { .. } | ConnectError::Timeout { .. }
            )
        };
        match self {
            Self::Connect(error) => connect(error),
            Self::Timeout(_) => true,
            _ => false,
        }
    }

    /// What the server holds against this agent, if it says so.
    pub fn deny_reason(&self) -> Option<DenyReason> {
        match self {
            Self::Denied { reason, .. } => *reason,
            _ => None,
        }
    }
}

impl From<ConnectError> for ClientError {
    fn from(error: ConnectError) -> Self {
        let error = Arc::new(error);
        if error.is_unknown_authority() { Self::UnknownAuthority(error) } else { Self::Connect(error) }
    }
}

/// Reads `PermissionDeniedDetails` out of an encoded `google.rpc.Status`.
fn deny_reason(details: &[u8]) -> Option<DenyReason> {
    let status = svid_proto::google::rpc::Status::decode(details).ok()?;
    let any = status
        .details
        .iter()
        .find(|any| any.type_url.rsplit('/').next() == Some("spire.api.types.PermissionDeniedDetails"))?;
    let details = PermissionDeniedDetails::decode(any.value.as_slice()).ok()?;
    match details.reason() {
        Reason::Unknown => None,
        Reason::AgentBanned => Some(DenyReason::Banned),
        Reason::AgentExpired
        | Reason::AgentNotAttested
        | Reason::AgentNotActive
        | Reason::AgentMustReattest => Some(DenyReason::Reattest),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A refusal as SPIRE's server words it.
    pub(crate) fn denied(reason: Reason) -> Status {
        let details = PermissionDeniedDetails { reason: reason.into() };
        let any = prost_types::Any {
            type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".into(),
            value: details.encode_to_vec(),
        };
        let status = svid_proto::google::rpc::Status {
            code: Code::PermissionDenied.into(),
            message: "no".into(),
            details: vec![any],
        };
        Status::with_details(Code::PermissionDenied, "no", status.encode_to_vec().into())
    }

    #[test]
    fn reasons() {
        let rows = [
            (Reason::Unknown, None),
            (Reason::AgentExpired, Some(DenyReason::Reattest)),
            (Reason::AgentNotAttested, Some(DenyReason::Reattest)),
            (Reason::AgentNotActive, Some(DenyReason::Reattest)),
            (Reason::AgentBanned, Some(DenyReason::Banned)),
            (Reason::AgentMustReattest, Some(DenyReason::Reattest)),
        ];
        for (reason, want) in rows {
            assert_eq!(ClientError::from_status(&denied(reason)).deny_reason(), want, "{reason:?}");
        }
        let bare = ClientError::from_status(&Status::permission_denied("x"));
        assert!(matches!(bare, ClientError::Denied { reason: None, .. }));
        let garbage = Status::with_details(Code::PermissionDenied, "x", vec![0xff, 1].into());
        assert_eq!(ClientError::from_status(&garbage).deny_reason(), None);
    }
}
