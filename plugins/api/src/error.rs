//! How plugins say no.

/// The kind of a refusal. Callers act on it, so it maps one to one to a gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginCode {
    /// The other side sent something malformed.
    InvalidArgument,
    /// The other side is well-formed and not allowed.
    PermissionDenied,
    /// The plugin is not in a state to do this.
    FailedPrecondition,
    /// Something the plugin needs is not there right now; trying again may help.
    Unavailable,
    /// The plugin cannot do this at all.
    Unimplemented,
    /// Whoever the plugin asked does not accept who it says it is: credentials that are wrong or have ended.
    Unauthenticated,
    /// A quota is used up. Trying again does not help before somebody raises it.
    ResourceExhausted,
    /// The other side did not answer in time.
    DeadlineExceeded,
    /// Anything else.
    Internal,
}

impl PluginCode {
    /// The name of the gRPC code that stands for it, as Go prints it: the `status` of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::PermissionDenied => "PermissionDenied",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Unavailable => "Unavailable",
            Self::Unimplemented => "Unimplemented",
            Self::Unauthenticated => "Unauthenticated",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::Internal => "Internal",
        }
    }
}

/// A refusal with its reason. The message never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PluginError {
    /// What kind of refusal.
    pub code: PluginCode,
    /// Which input, which rule.
    pub message: String,
}

impl PluginError {
    /// A refusal of this kind.
    pub fn new(code: PluginCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The other side sent something malformed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(PluginCode::InvalidArgument, message)
    }

    /// The other side is not allowed.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(PluginCode::PermissionDenied, message)
    }

    /// Something went wrong inside.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(PluginCode::Internal, message)
    }
}
