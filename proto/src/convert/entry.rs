//! Registration entries.

use svid_core::entry::{Entry, EntryError, EntrySpec, MAX_HINT_BYTES, check_dns_name};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::selector::SelectorSet;

use super::{ConvertError, member_id, selectors_from_wire, selectors_to_wire, workload_id};
use crate::spire::api::types;

/// What a caller states about an entry, as far as a mask lets it through. Fields outside the mask are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the fields of `EntrySpec`
pub struct EntryFields {
    pub parent_id: Option<SpiffeId>,
    pub spiffe_id: Option<SpiffeId>,
    pub dns_names: Option<Vec<String>>,
    pub federates_with: Option<Vec<TrustDomain>>,
    pub selectors: Option<SelectorSet>,
    pub hint: Option<String>,
    pub x509_svid_ttl: Option<i32>,
    pub jwt_svid_ttl: Option<i32>,
    pub admin: Option<bool>,
    pub downstream: Option<bool>,
    pub expires_at: Option<i64>,
    pub store_svid: Option<bool>,
    pub disable_x509_svid_prefetch: Option<bool>,
    pub jwt_svid_include_jti: Option<bool>,
}

const ALL: types::EntryMask = types::EntryMask {
    spiffe_id: true,
    parent_id: true,
    selectors: true,
    x509_svid_ttl: true,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: true,
    dns_names: true,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: true,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

impl EntryFields {
    /// Checks the fields that `mask` names, all when there is none, in SPIRE's order.
    /// # Errors
    /// The first rule that is broken.
    pub fn from_wire(
        entry: &types::Entry,
        mask: Option<&types::EntryMask>,
        trust_domain: &TrustDomain,
    ) -> Result<Self, ConvertError> {
        let mask = mask.unwrap_or(&ALL);
        let attributes = entry.additional_attributes.unwrap_or_default();
        Ok(Self {
            parent_id: mask.parent_id.then(|| parent_id(entry, trust_domain)).transpose()?,
            spiffe_id: mask.spiffe_id.then(|| spiffe_id(entry, trust_domain)).transpose()?,
            dns_names: mask.dns_names.then(|| dns_names(entry)).transpose()?,
            federates_with: mask.federates_with.then(|| federates_with(entry)).transpose()?,
            selectors: mask.selectors.then(|| selectors(entry)).transpose()?,
            hint: mask.hint.then(|| hint(entry)).transpose()?,
            x509_svid_ttl: mask.x509_svid_ttl.then_some(entry.x509_svid_ttl),
            jwt_svid_ttl: mask.jwt_svid_ttl.then_some(entry.jwt_svid_ttl),
            admin: mask.admin.then_some(entry.admin),
            downstream: mask.downstream.then_some(entry.downstream),
            expires_at: mask.expires_at.then_some(entry.expires_at),
            store_svid: mask.store_svid.then_some(entry.store_svid),
            disable_x509_svid_prefetch: mask
                .additional_attributes
                .then_some(attributes.disable_x509_svid_prefetch),
            jwt_svid_include_jti: mask.additional_attributes.then_some(attributes.jwt_svid_include_jti),
        })
    }

    /// A whole entry, checked by every rule.
    /// # Errors
    /// The first rule that is broken.
    pub fn spec_from_wire(
        entry: &types::Entry,
        trust_domain: &TrustDomain,
    ) -> Result<EntrySpec, ConvertError> {
        let attributes = entry.additional_attributes.unwrap_or_default();
        let spec = EntrySpec {
            parent_id: parent_id(entry, trust_domain)?,
            spiffe_id: spiffe_id(entry, trust_domain)?,
            dns_names: dns_names(entry)?,
            federates_with: federates_with(entry)?,
            selectors: selectors(entry)?,
            hint: hint(entry)?,
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            admin: entry.admin,
            downstream: entry.downstream,
            expires_at: entry.expires_at,
            store_svid: entry.store_svid,
            disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
            jwt_svid_include_jti: attributes.jwt_svid_include_jti,
        };
        spec.check(trust_domain)?;
        Ok(spec)
    }
}

fn parent_id(entry: &types::Entry, trust_domain: &TrustDomain) -> Result<SpiffeId, ConvertError> {
    member_id(entry.parent_id.as_ref(), trust_domain).map_err(|error| error.in_field("invalid parent ID"))
}

fn spiffe_id(entry: &types::Entry, trust_domain: &TrustDomain) -> Result<SpiffeId, ConvertError> {
    workload_id(entry.spiffe_id.as_ref(), trust_domain).map_err(|error| error.in_field("invalid spiffe ID"))
}

fn dns_names(entry: &types::Entry) -> Result<Vec<String>, ConvertError> {
    for name in &entry.dns_names {
        check_dns_name(name).map_err(EntryError::DnsName)?;
    }
    Ok(entry.dns_names.clone())
}

fn federates_with(entry: &types::Entry) -> Result<Vec<TrustDomain>, ConvertError> {
    let parse = |name: &String| TrustDomain::from_name_or_id(name).map_err(EntryError::FederatesWith);
    Ok(entry.federates_with.iter().map(parse).collect::<Result<_, _>>()?)
}

fn selectors(entry: &types::Entry) -> Result<SelectorSet, ConvertError> {
    if entry.selectors.is_empty() {
        return Err(ConvertError::SelectorsEmpty);
    }
    selectors_from_wire(&entry.selectors)
}

fn hint(entry: &types::Entry) -> Result<String, ConvertError> {
    if entry.hint.len() > MAX_HINT_BYTES {
        return Err(EntryError::HintLength.into());
    }
    Ok(entry.hint.clone())
}

/// An entry on the wire, every field.
pub fn entry_to_wire(entry: &Entry) -> types::Entry {
    let spec = &entry.spec;
    let attributes = types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: spec.disable_x509_svid_prefetch,
        jwt_svid_include_jti: spec.jwt_svid_include_jti,
    };
    types::Entry {
        id: entry.id.as_str().to_owned(),
        spiffe_id: Some((&spec.spiffe_id).into()),
        parent_id: Some((&spec.parent_id).into()),
        selectors: selectors_to_wire(&spec.selectors),
        x509_svid_ttl: spec.x509_svid_ttl,
        federates_with: spec.federates_with.iter().map(|name| name.as_str().to_owned()).collect(),
        admin: spec.admin,
        downstream: spec.downstream,
        expires_at: spec.expires_at,
        dns_names: spec.dns_names.clone(),
        revision_number: entry.revision,
        store_svid: spec.store_svid,
        jwt_svid_ttl: spec.jwt_svid_ttl,
        hint: spec.hint.clone(),
        created_at: entry.created_at,
        additional_attributes: (attributes != Default::default()).then_some(attributes),
    }
}

/// Clears the fields that `mask` does not name; without a mask nothing is cleared.
pub fn apply_entry_mask(entry: &mut types::Entry, mask: Option<&types::EntryMask>) {
    fn keep<T: Default>(wanted: bool, field: &mut T) {
        if !wanted {
            *field = T::default();
        }
    }
    let Some(mask) = mask else { return };
    keep(mask.spiffe_id, &mut entry.spiffe_id);
    keep(mask.parent_id, &mut entry.parent_id);
    keep(mask.selectors, &mut entry.selectors);
    keep(mask.x509_svid_ttl, &mut entry.x509_svid_ttl);
    keep(mask.federates_with, &mut entry.federates_with);
    keep(mask.admin, &mut entry.admin);
    keep(mask.downstream, &mut entry.downstream);
    keep(mask.expires_at, &mut entry.expires_at);
    keep(mask.dns_names, &mut entry.dns_names);
    keep(mask.revision_number, &mut entry.revision_number);
    keep(mask.store_svid, &mut entry.store_svid);
    keep(mask.jwt_svid_ttl, &mut entry.jwt_svid_ttl);
    keep(mask.hint, &mut entry.hint);
    keep(mask.created_at, &mut entry.created_at);
    keep(mask.additional_attributes, &mut entry.additional_attributes);
}
