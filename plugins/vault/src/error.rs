//! What can go wrong between a plugin and Vault, and which code the server is told.

use svid_plugin_api::{PluginCode, PluginError};

/// Longest text of Vault's that is passed on, in characters.
const MAX_SAID: usize = 400;

/// Why Vault did not do what it was asked. Holds no secret: what Vault says is cleaned of them before it gets here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VaultError {
    /// A file that the configuration names is missing or of no use.
    #[error("{0}")]
    File(String),
    /// No connection, or it broke.
    #[error("cannot reach Vault at {address}: {reason}")]
    Connect { address: String, reason: String },
    /// No answer in time.
    #[error("Vault at {address} gave no answer within {seconds} s")]
    Timeout { address: String, seconds: u64 },
    /// It sends us elsewhere, and we do not go there.
    #[error("Vault at {address} answers with a redirect that is not followed: {reason}")]
    Redirect { address: String, reason: &'static str },
    /// The answer cannot be used.
    #[error("Vault's answer cannot be used: {0}")]
    Answer(String),
    /// A refusal, with what Vault says about it.
    #[error("Vault answers {status}{}", said(.errors))]
    Status { status: u16, errors: Vec<String> },
    /// Vault does not accept who we are.
    #[error("{0}")]
    Login(String),
}

fn said(errors: &[String]) -> String {
    if errors.is_empty() { String::new() } else { format!(": {}", errors.join("; ")) }
}

/// One line of printable text, cut to a length that fits a log line, and with none of `secrets` in it.
pub(crate) fn presentable(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "[secret]");
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|char| !char.is_control()).collect();
    let line = line.trim_end_matches('.');
    let mut shown: String = line.chars().take(MAX_SAID).collect();
    if shown.len() < line.len() {
        shown.push_str(" ...");
    }
    shown
}

impl VaultError {
    /// True if the token, or what it may do, was refused.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Status { status: 403, .. })
    }

    /// True if trying again may help by itself.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } => true,
            Self::Status { status, errors } => is_passing(*status) && !is_precondition(errors),
            _ => false,
        }
    }

    fn code(&self) -> PluginCode {
        match self {
            Self::File(_) => PluginCode::InvalidArgument,
            Self::Connect { .. } => PluginCode::Unavailable,
            Self::Timeout { .. } => PluginCode::DeadlineExceeded,
            Self::Redirect { .. } => PluginCode::FailedPrecondition,
            Self::Answer(_) => PluginCode::Internal,
            Self::Login(_) => PluginCode::Unauthenticated,
            Self::Status { status: 400, .. } => PluginCode::InvalidArgument,
            Self::Status { status: 403, .. } => PluginCode::PermissionDenied,
            Self::Status { status: 404 | 405, .. } => PluginCode::FailedPrecondition,
            Self::Status { status, .. } if is_passing(*status) => PluginCode::Unavailable,
            Self::Status { .. } => PluginCode::Internal,
        }
    }
}

/// What SPIRE's client tries again: a replica that is behind, a quota, whatever a proxy or a sealed Vault says.
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 412 | 429) || (status >= 500 && status != 501)
}

/// What was wanted, for the words of a refusal.
pub(crate) struct Doing<'a> {
    /// Such as `sign the CA certificate`.
    pub(crate) what: &'a str,
    /// The path below `/v1/`.
    pub(crate) path: &'a str,
    /// The capability that a policy has to give on the path.
    pub(crate) capability: &'static str,
    /// The key that names the engine's mount, and its value.
    pub(crate) mount: (&'static str, &'a str),
    /// Such as ` in the namespace "a"`; empty without one.
    pub(crate) place: String,
}

impl Doing<'_> {
    /// The refusal as the server is told it, with what to do about it.
    pub(crate) fn refused(&self, error: &VaultError) -> PluginError {
        let advice = self.advice(error);
        let code = match error {
            VaultError::Status { status: 400 | 500, errors } if is_precondition(errors) => {
                PluginCode::FailedPrecondition
            }
            other => other.code(),
        };
        PluginError::new(code, format!("failed to {}: {error}{advice}", self.what))
    }

    fn advice(&self, error: &VaultError) -> String {
        let (key, mount) = self.mount;
        let place = &self.place;
        match error {
            VaultError::Status { status: 403, .. } => format!(
                ". The token's policy has to hold: path \"{}\" {{ capabilities = [\"{}\"] }}{place}",
                self.path, self.capability
            ),
            VaultError::Status { status: 404 | 405, .. } => {
                format!(". There is no such engine at the mount {mount:?}{place}: check {key} and namespace")
            }
            VaultError::Status { status: 503, errors }
                if errors.iter().any(|said| said.contains("sealed")) =>
            {
                ". It has to be unsealed".to_owned()
            }
            VaultError::Status { status: 429, .. } => ". A rate limit quota is used up".to_owned(),
            VaultError::Status { status: 412, .. } => {
                ". The replica asked is still behind the primary".to_owned()
            }
            VaultError::Status { status: 400 | 500, errors } if is_precondition(errors) => {
                format!(". The mount {mount:?}{place} is not set up for this")
            }
            _ => String::new(),
        }
    }
}

/// Refusals that lie in how the mount is set up, not in what was sent. Some come as 500.
fn is_precondition(errors: &[String]) -> bool {
    const SIGNS: [&str; 5] =
        ["path length", "could not fetch the CA", "no default issuer", "unable to find", "CA certificate"];
    errors.iter().any(|said| SIGNS.iter().any(|sign| said.contains(sign)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, said: &str) -> PluginError {
        let doing = Doing {
            what: "sign the CA certificate",
            path: "pki/root/sign-intermediate",
            capability: "update",
            mount: ("pki_mount_point", "pki"),
            place: " in the namespace \"a\"".into(),
        };
        doing.refused(&VaultError::Status { status, errors: vec![said.to_owned()] })
    }

    #[test]
    fn codes_and_advice() {
        use PluginCode::{FailedPrecondition, Internal, InvalidArgument, PermissionDenied, Unavailable};
        for (status, said, code, advice) in [
            (400, "csr contains no data", InvalidArgument, "csr contains no data"),
            (400, "signing certificate has a max path length of zero", FailedPrecondition, "is not set up"),
            (500, "unable to find PKI issuer for reference: x", FailedPrecondition, "is not set up"),
            (500, "disk full", Unavailable, "disk full"),
            (
                403,
                "permission denied",
                PermissionDenied,
                "path \"pki/root/sign-intermediate\" { capabilities = [\"update\"] } in the namespace \"a\"",
            ),
            (404, "no handler for route", FailedPrecondition, "check pki_mount_point and namespace"),
            (412, "", Unavailable, "behind the primary"),
            (429, "quota", Unavailable, "quota is used up"),
            (501, "", Internal, "501"),
            (503, "Vault is sealed", Unavailable, "has to be unsealed"),
        ] {
            let error = refused(status, said);
            assert_eq!(error.code, code, "{status}");
            assert!(error.message.contains(advice), "{}", error.message);
        }
    }

    #[test]
    fn what_vault_says_is_cleaned() {
        assert_eq!(presentable("a\n b\u{7} hush!", &["hush", ""]), "a b [secret]!");
        assert_eq!(presentable(&"x".repeat(1000), &[]).len(), MAX_SAID + 4);
    }
}
