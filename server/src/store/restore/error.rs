//! Why nothing is restored.

use std::io;
use std::path::PathBuf;

use svid_core::id::TrustDomain;
use svid_proto::backup::FormatError;

use crate::store::StoreError;

/// Why a backup cannot be restored. The database is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no backup, or not a whole one.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A record breaks a rule that everything in a database keeps.
    #[error("the backup holds {what} that no server would have written ({why}): it was altered")]
    Content {
        /// Which record.
        what: String,
        /// Which rule.
        why: String,
    },
    /// It is another trust domain's.
    #[error(
        "the backup is of trust domain {found:?}, and the configuration says {wanted:?}: take the backup or the \
         configuration that belongs to it"
    )]
    TrustDomain {
        /// The backup's.
        found: String,
        /// The configuration's.
        wanted: TrustDomain,
    },
    /// The file is not the one that was compared.
    #[error("the backup changed while it was read")]
    Changed,
    /// The database fails or cannot be used.
    #[error("the database of the configuration cannot be restored into")]
    Store(#[from] StoreError),
}

impl RestoreError {
    /// A record that breaks a rule.
    pub(super) fn content(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Content { what: what.to_string(), why: why.to_string() }
    }
}
