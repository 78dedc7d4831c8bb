//! From what went wrong to SPIRE's codes and texts: the one place that knows gRPC's codes of our errors.

use prost::Message as _;
use svid_proto::spire::api::types;
use tonic::{Code, Status};

use crate::ca::CaError;
use crate::directory::{AgentDenied, Unavailable};
use crate::store::StoreError;

/// `msg: inner`, as SPIRE joins them. A `NotFound` never shows the inner error.
pub fn status(code: Code, message: &str, inner: Option<&dyn std::fmt::Display>) -> Status {
    match inner {
        Some(inner) if code != Code::NotFound => Status::new(code, format!("{message}: {inner}")),
        _ => Status::new(code, message),
    }
}

/// The caller sent something malformed.
pub fn invalid(message: &str, inner: impl std::fmt::Display) -> Status {
    status(Code::InvalidArgument, message, Some(&inner))
}

/// As [`invalid`], without an inner error.
pub fn invalid_argument(message: &str) -> Status {
    Status::new(Code::InvalidArgument, message)
}

/// The code that a store error stands for.
pub fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::NotFound(_) => Code::NotFound,
        StoreError::AlreadyExists(_) => Code::AlreadyExists,
        StoreError::Invalid(_) | StoreError::TokenUnknown | StoreError::TokenExpired => Code::InvalidArgument,
        StoreError::BundleInUse(_) => Code::FailedPrecondition,
        StoreError::Banned => Code::PermissionDenied,
        StoreError::Unavailable(_) | StoreError::Closed | StoreError::Overtaken => Code::Unavailable,
        StoreError::Conflict(_)
        | StoreError::FederatedBundleMissing(_)
        | StoreError::CannotReattest
        | StoreError::ServerIdHeld(_)
        | StoreError::Schema(_)
        | StoreError::Config(_)
        | StoreError::Corrupt { .. }
        | StoreError::Internal(_) => Code::Internal,
    }
}

/// A store error under SPIRE's sentence for the operation. The whole chain goes to the log, not to the caller.
pub fn store(message: &str, error: &StoreError) -> Status {
    let code = store_code(error);
    if matches!(code, Code::Internal | Code::Unavailable) {
        tracing::error!(error = %svid_daemon::log::chain(error), "{message}");
    }
    status(code, message, Some(error))
}

/// A store error where a missing row has a sentence of its own.
pub fn store_or_not_found(message: &str, not_found: &str, error: &StoreError) -> Status {
    match error {
        StoreError::NotFound(_) => Status::not_found(not_found),
        error => store(message, error),
    }
}

/// A failure to sign.
pub fn ca(message: &str, error: &CaError) -> Status {
    let code = match error {
        CaError::JwtDisabled => Code::Unimplemented,
        CaError::Stopped => Code::Unavailable,
        error if error.is_key_unavailable() => Code::Unavailable,
        CaError::HasUpstream(_) | CaError::NoUpstream => Code::FailedPrecondition,
        CaError::AuthorityIdMissing
        | CaError::AuthorityIdUnexpected
        | CaError::TaintCurrent
        | CaError::RevokeCurrent
        | CaError::NotOld(_) => Code::InvalidArgument,
        _ => Code::Internal,
    };
    let own_words = !matches!(code, Code::Internal) && !error.is_key_unavailable();
    if !own_words {
        tracing::error!(error = %svid_daemon::log::chain(error), "{message}");
        return status(code, message, Some(error));
    }
    Status::new(code, error.to_string())
}

/// The state cannot be brought up to date: agents try again.
pub fn unavailable(error: &Unavailable) -> Status {
    tracing::warn!(error = %svid_daemon::log::chain(error), "The authorization state cannot be brought up to date");
    Status::unavailable("the server cannot reach its database; try again")
}

/// What memory holds may no longer be true.
pub(super) fn too_stale() -> Status {
    Status::unavailable("the server has not reached its database for too long; try again")
}

/// The reason that rides with a denial.
pub fn denial_reason(denied: AgentDenied) -> types::permission_denied_details::Reason {
    use types::permission_denied_details::Reason;
    match denied {
        AgentDenied::Expired => Reason::AgentExpired,
        AgentDenied::NotAttested => Reason::AgentNotAttested,
        AgentDenied::NotActive => Reason::AgentNotActive,
        AgentDenied::Banned => Reason::AgentBanned,
    }
}

/// A `PermissionDenied` with the detail that agents act on.
pub fn denied_because(message: &str, reason: types::permission_denied_details::Reason) -> Status {
    let details = types::PermissionDeniedDetails { reason: reason.into() };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".into(),
        value: details.encode_to_vec(),
    };
    let status = svid_proto::google::rpc::Status {
        code: Code::PermissionDenied as i32,
        message: message.to_owned(),
        details: vec![any],
    };
    Status::with_details(Code::PermissionDenied, message, status.encode_to_vec().into())
}

/// The status of a batch item that went well.
pub fn item_ok() -> types::Status {
    types::Status { code: Code::Ok as i32, message: "OK".into() }
}

/// The status of a batch item.
pub fn item(status: &Status) -> types::Status {
    types::Status { code: status.code() as i32, message: status.message().to_owned() }
}
