//! Between wire types and core types. The texts of errors are SPIRE's, since callers see them.

mod bundle;
mod entry;
mod federation;
#[cfg(test)]
mod tests;

use svid_core::clock::unix_seconds;
use svid_core::entry::EntryError;
use svid_core::federation::EndpointUrlError;
use svid_core::id::{IdError, SpiffeId, TrustDomain};
use svid_core::selector::{Selector, SelectorError, SelectorSet, SetMatch};
use svid_core::x509::X509Svid;

use crate::spire::api::types;

pub use bundle::{
    apply_bundle_mask, bundle_from_wire, bundle_to_wire, jwt_authorities_from_wire, jwt_authority_to_wire,
    x509_authorities_from_wire,
};
pub use entry::{EntryFields, apply_entry_mask, entry_to_wire};
pub use federation::{apply_relationship_mask, relationship_from_wire, relationship_to_wire};

/// Why a wire value is no domain value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// An ID is not there.
    #[error("request must specify SPIFFE ID")]
    IdMissing,
    /// An ID or trust domain breaks a rule of the SPIFFE standard.
    #[error("{0}")]
    Id(#[from] IdError),
    /// An ID belongs to another trust domain.
    #[error("\"{id}\" is not a member of trust domain \"{trust_domain}\"")]
    NotMember {
        /// The ID.
        id: SpiffeId,
        /// The wanted trust domain.
        trust_domain: TrustDomain,
    },
    /// An ID is of the right trust domain and of the wrong kind.
    #[error("\"{id}\" is not {kind} trust domain \"{trust_domain}\"; {why}")]
    Kind {
        /// The ID.
        id: SpiffeId,
        /// The wanted trust domain.
        trust_domain: TrustDomain,
        /// `a workload in`, `an agent in`, `a member of`.
        kind: &'static str,
        /// What is wrong with the path.
        why: &'static str,
    },
    /// The message is not there.
    #[error("missing entry")]
    EntryMissing,
    /// A field of an entry.
    #[error("{field}: {source}")]
    Field {
        /// What the field is called in the message.
        field: &'static str,
        /// What is wrong with it.
        source: Box<ConvertError>,
    },
    /// A rule of entries.
    #[error("{0}")]
    Entry(#[from] EntryError),
    /// A selector.
    #[error("{0}")]
    Selector(#[from] SelectorError),
    /// An entry without selectors.
    #[error("selector list is empty")]
    SelectorsEmpty,
    /// An authority of a bundle.
    #[error("{0}")]
    Authority(String),
    /// The bundle is not there.
    #[error("no bundle provided")]
    BundleMissing,
    /// The URL of a bundle endpoint.
    #[error("{0}")]
    EndpointUrl(#[from] EndpointUrlError),
    /// A relationship without a profile.
    #[error("unsupported bundle endpoint profile type: <nil>")]
    ProfileMissing,
    /// A bundle that came with a relationship with somebody else.
    #[error(
        "trust domain bundle ({bundle:?}) must match the trust domain of the federation relationship (\"{relationship}\")"
    )]
    BundleOfOther {
        /// Whose bundle it says it is.
        bundle: String,
        /// The relationship's trust domain.
        relationship: TrustDomain,
    },
}

impl ConvertError {
    fn in_field(self, field: &'static str) -> Self {
        Self::Field { field, source: Box::new(self) }
    }
}

/// An ID on the wire.
pub fn id_to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}

impl From<&SpiffeId> for types::Spiffeid {
    fn from(id: &SpiffeId) -> Self {
        id_to_wire(id)
    }
}

/// An ID of any trust domain.
/// # Errors
/// [`ConvertError::IdMissing`] or [`ConvertError::Id`].
pub fn id_from_wire(id: Option<&types::Spiffeid>) -> Result<SpiffeId, ConvertError> {
    let id = id.ok_or(ConvertError::IdMissing)?;
    let trust_domain = TrustDomain::from_name_or_id(&id.trust_domain)?;
    Ok(SpiffeId::from_parts(trust_domain.as_str(), &id.path)?)
}

/// An ID of `trust_domain` that has a path.
/// # Errors
/// [`ConvertError`] names the rule.
pub fn member_id(id: Option<&types::Spiffeid>, trust_domain: &TrustDomain) -> Result<SpiffeId, ConvertError> {
    let id = id_from_wire(id)?;
    require_kind(&id, trust_domain, "a member of", "path is empty", id.path().is_empty())?;
    Ok(id)
}

/// An ID of an agent of `trust_domain`.
/// # Errors
/// [`ConvertError`] names the rule.
pub fn agent_id(id: Option<&types::Spiffeid>, trust_domain: &TrustDomain) -> Result<SpiffeId, ConvertError> {
    let id = id_from_wire(id)?;
    require_kind(&id, trust_domain, "an agent in", "path is empty", id.path().is_empty())?;
    let elsewhere = !id.is_agent();
    require_kind(&id, trust_domain, "an agent in", "path is not in the agent namespace", elsewhere)?;
    Ok(id)
}

/// An ID of a workload of `trust_domain`.
/// # Errors
/// [`ConvertError`] names the rule.
pub fn workload_id(
    id: Option<&types::Spiffeid>,
    trust_domain: &TrustDomain,
) -> Result<SpiffeId, ConvertError> {
    let id = id_from_wire(id)?;
    require_workload(&id, trust_domain)?;
    Ok(id)
}

/// Checks that `id` is a workload of `trust_domain`.
/// # Errors
/// [`ConvertError`] names the rule.
pub fn require_workload(id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), ConvertError> {
    require_kind(id, trust_domain, "a workload in", "path is empty", id.path().is_empty())?;
    require_kind(id, trust_domain, "a workload in", "path is in the reserved namespace", id.is_reserved())
}

fn require_kind(
    id: &SpiffeId,
    trust_domain: &TrustDomain,
    kind: &'static str,
    why: &'static str,
    broken: bool,
) -> Result<(), ConvertError> {
    if !id.is_member_of(trust_domain) {
        return Err(ConvertError::NotMember { id: id.clone(), trust_domain: trust_domain.clone() });
    }
    if broken {
        return Err(ConvertError::Kind { id: id.clone(), trust_domain: trust_domain.clone(), kind, why });
    }
    Ok(())
}

/// A set of selectors, perhaps empty.
/// # Errors
/// The first selector that is malformed.
pub fn selectors_from_wire(selectors: &[types::Selector]) -> Result<SelectorSet, ConvertError> {
    let parsed: Result<Vec<_>, _> =
        selectors.iter().map(|selector| Selector::new(&selector.r#type, &selector.value)).collect();
    Ok(parsed?.into_iter().collect())
}

/// Selectors on the wire.
pub fn selectors_to_wire(selectors: &SelectorSet) -> Vec<types::Selector> {
    let wire = |selector: &Selector| types::Selector {
        r#type: selector.kind().to_owned(),
        value: selector.value().to_owned(),
    };
    selectors.iter().map(wire).collect()
}

/// How sets compare; unknown numbers are `None`.
pub fn set_match(number: i32) -> Option<SetMatch> {
    Some(match number {
        0 => SetMatch::Exact,
        1 => SetMatch::Subset,
        2 => SetMatch::Superset,
        3 => SetMatch::Any,
        _ => return None,
    })
}

/// An X509-SVID on the wire, without hint.
pub fn x509_svid_to_wire(svid: &X509Svid) -> types::X509svid {
    types::X509svid {
        cert_chain: svid.chain().to_ders(),
        id: Some(svid.id().into()),
        expires_at: unix_seconds(svid.not_after()),
        hint: String::new(),
    }
}
