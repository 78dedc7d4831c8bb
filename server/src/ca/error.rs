//! Why the CA said no.

use std::sync::Arc;

use svid_core::jwt::JwtError;
use svid_core::key::KeyError;
use svid_core::x509::{CertError, IssueError, SvidError};
use svid_plugin_api::{PluginCode, PluginError};

use super::prepare::UpstreamFault;
use super::store::CaStoreError;

/// What can go wrong between wanting a signature and having one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CaError {
    /// No X.509 authority is active: the first rotation has not succeeded yet, or the last authority ended.
    #[error("X509 CA is not available for signing")]
    NoX509Authority,
    /// No JWT authority is active.
    #[error("JWT key is not available for signing")]
    NoJwtAuthority,
    /// `disable_jwt_svids` is set.
    #[error("JWT functionality is disabled")]
    JwtDisabled,
    /// What the SVID is for (an entry) ends before the SVID could begin.
    #[error("the registration entry has expired")]
    EntryExpired,
    /// A certificate could not be built or signed.
    #[error("unable to sign X509 SVID: {0}")]
    Issue(#[from] IssueError),
    /// A token could not be built or signed.
    #[error("unable to sign JWT SVID: {0}")]
    Jwt(#[from] JwtError),
    /// A key could not be made or used.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The key manager refused.
    #[error("{0}")]
    Plugin(#[from] PluginError),
    /// The store refused.
    #[error("{0}")]
    Store(#[from] CaStoreError),
    /// An authority's certificate is malformed.
    #[error("{0}")]
    Cert(#[from] CertError),
    /// What came out of the issuance is no X.509-SVID.
    #[error("{0}")]
    Svid(#[from] SvidError),
    /// The upstream authority refused, or what it gave cannot be used.
    #[error("upstreamauthority({plugin}): {fault}")]
    Upstream {
        /// The plugin's name.
        plugin: Arc<str>,
        /// What was wrong.
        fault: UpstreamFault,
    },
    /// The stored journal is not a journal.
    #[error("unable to unmarshal entries from CA journal record: {0}")]
    Journal(#[from] prost::DecodeError),
    /// A manual operation named no authority.
    #[error("no authority ID provided")]
    AuthorityIdMissing,
    /// A manual operation named another authority than the one it can work on.
    #[error("unexpected authority ID")]
    AuthorityIdUnexpected,
    /// The prepared authority is not in the bundle any more: the database lost it.
    #[error("the prepared authority is no longer in the bundle; another one will be prepared")]
    NotPublished,
    /// Only a prepared authority can be activated.
    #[error("only Prepared authorities can be activated")]
    NotPrepared,
    /// The active authority cannot be tainted.
    #[error("unable to taint current local authority")]
    TaintCurrent,
    /// The active authority cannot be revoked.
    #[error("unable to use current authority")]
    RevokeCurrent,
    /// Only an authority that was replaced can be tainted or revoked.
    #[error("only Old local authorities can be {0}")]
    NotOld(&'static str),
    /// Local X.509 authorities are not trusted by themselves below an upstream.
    #[error("local authority can't be {0} if there is an upstream authority")]
    HasUpstream(&'static str),
    /// There is no upstream authority to taint or revoke.
    #[error("upstream authority is not configured")]
    NoUpstream,
    /// A manual operation named no upstream authority.
    #[error("no subject key ID provided")]
    SubjectKeyIdMissing,
    /// The active authority was signed by this upstream authority.
    #[error("unable to use upstream authority singing current authority")] // "singing" is SPIRE's
    UpstreamCurrent,
    /// The old authority was signed by another upstream authority.
    #[error("upstream authority didn't sign the old local authority")]
    UpstreamUnknown,
    /// The prepared authority was signed by this upstream authority.
    #[error("only upstream authorities signing an old authority can be used")]
    UpstreamPrepared,
    /// The task that rotates authorities has ended: the server is shutting down.
    #[error("CA manager is not running")]
    Stopped,
}

impl CaError {
    /// True if the service that keeps the signing key is away, slow or overloaded.
    pub fn is_key_unavailable(&self) -> bool {
        let (Self::Key(error) | Self::Issue(IssueError::Key(error)) | Self::Jwt(JwtError::Key(error))) = self
        else {
            return false;
        };
        matches!(error, KeyError::Unavailable(_))
    }

    /// True if the same request may succeed later without a change to it.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::NoX509Authority | Self::NoJwtAuthority | Self::Stopped => true,
            Self::Upstream { fault, .. } => fault.is_unavailable(),
            Self::Store(error) => error.is_unavailable,
            Self::Plugin(error) => {
                matches!(error.code, PluginCode::Unavailable | PluginCode::DeadlineExceeded)
            }
            error => error.is_key_unavailable(),
        }
    }
}
