//! Federation relationships.

use svid_core::bundle::Bundle;
use svid_core::federation::{EndpointProfile, Relationship};
use svid_core::id::TrustDomain;

use super::{ConvertError, bundle_from_wire};
use crate::spire::api::types;
use types::federation_relationship::BundleEndpointProfile as Wire;

/// A relationship from the wire, and the bundle that came with it.
/// # Errors
/// [`ConvertError`] in SPIRE's words.
pub fn relationship_from_wire(
    wire: &types::FederationRelationship,
) -> Result<(Relationship, Option<Bundle>), ConvertError> {
    let trust_domain = TrustDomain::from_name_or_id(&wire.trust_domain)
        .map_err(|error| ConvertError::Id(error).in_field("failed to parse trust domain"))?;
    let url = wire.bundle_endpoint_url.parse()?;
    let profile = match &wire.bundle_endpoint_profile {
        Some(Wire::HttpsWeb(_)) => EndpointProfile::Web,
        Some(Wire::HttpsSpiffe(profile)) => {
            let id = profile.endpoint_spiffe_id.parse();
            let id =
                id.map_err(|error| ConvertError::Id(error).in_field("failed to parse endpoint SPIFFE ID"))?;
            EndpointProfile::Spiffe(id)
        }
        None => return Err(ConvertError::ProfileMissing),
    };
    let bundle = match &wire.trust_domain_bundle {
        None => None,
        Some(bundle) => Some(bundle_of(bundle, &trust_domain)?),
    };
    Ok((Relationship { trust_domain, url, profile }, bundle))
}

fn bundle_of(wire: &types::Bundle, trust_domain: &TrustDomain) -> Result<Bundle, ConvertError> {
    let bundle = bundle_from_wire(wire).map_err(|error| error.in_field("failed to parse bundle"))?;
    match bundle.trust_domain == *trust_domain {
        true => Ok(bundle),
        false => Err(ConvertError::BundleOfOther {
            bundle: wire.trust_domain.clone(),
            relationship: trust_domain.clone(),
        }),
    }
}

/// A relationship on the wire. `bundle` is the trust domain's, if it is known.
pub fn relationship_to_wire(
    relationship: &Relationship,
    bundle: Option<types::Bundle>,
) -> types::FederationRelationship {
    let profile = match &relationship.profile {
        EndpointProfile::Web => Wire::HttpsWeb(types::HttpsWebProfile {}),
        EndpointProfile::Spiffe(id) => {
            Wire::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: id.to_string() })
        }
    };
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: relationship.url.to_string(),
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: bundle,
    }
}

/// Clears what the mask does not name; no mask keeps everything.
pub fn apply_relationship_mask(
    wire: &mut types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) {
    let Some(mask) = mask else { return };
    if !mask.bundle_endpoint_url {
        wire.bundle_endpoint_url.clear();
    }
    if !mask.bundle_endpoint_profile {
        wire.bundle_endpoint_profile = None;
    }
    if !mask.trust_domain_bundle {
        wire.trust_domain_bundle = None;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wire() -> types::FederationRelationship {
        types::FederationRelationship {
            trust_domain: "a.test".into(),
            bundle_endpoint_url: "https://a.test:8443/x".into(),
            bundle_endpoint_profile: Some(Wire::HttpsWeb(types::HttpsWebProfile {})),
            trust_domain_bundle: Some(types::Bundle { trust_domain: "a.test".into(), ..Default::default() }),
        }
    }

    /// Conformance: FED-20, FED-24, FED-25, FED-46, FED-47, FED-48.
    #[test]
    fn what_is_missing_is_refused_in_spires_words() {
        let check = |change: fn(&mut types::FederationRelationship), want: &str| {
            let mut wire = wire();
            change(&mut wire);
            assert_eq!(relationship_from_wire(&wire).unwrap_err().to_string(), want);
        };
        check(|wire| wire.trust_domain.clear(), "failed to parse trust domain: trust domain is missing");
        check(
            |wire| wire.bundle_endpoint_url = "http://a.test".into(),
            "bundle endpoint URL must use the https scheme",
        );
        check(
            |wire| wire.bundle_endpoint_url = "https://".into(),
            "bundle endpoint URL must specify the host",
        );
        check(
            |wire| wire.bundle_endpoint_url = "https://me@a.test".into(),
            "bundle endpoint URL must not contain user info",
        );
        check(|wire| wire.bundle_endpoint_profile = None, "unsupported bundle endpoint profile type: <nil>");
        check(
            |wire| {
                let profile = types::HttpsspiffeProfile { endpoint_spiffe_id: "a.test".into() };
                wire.bundle_endpoint_profile = Some(Wire::HttpsSpiffe(profile));
            },
            "failed to parse endpoint SPIFFE ID: scheme is missing or invalid",
        );
        check(
            |wire| wire.trust_domain = "b.test".into(),
            "trust domain bundle (\"a.test\") must match the trust domain of the federation relationship (\"b.test\")",
        );
    }

    #[test]
    fn there_and_back() {
        let (relationship, bundle) = relationship_from_wire(&wire()).unwrap();
        assert_eq!(bundle.unwrap().trust_domain, relationship.trust_domain);
        let back = relationship_to_wire(&relationship, wire().trust_domain_bundle);
        assert_eq!(back, wire());
        let mut masked = back;
        apply_relationship_mask(&mut masked, None);
        assert_eq!(masked, wire());
        apply_relationship_mask(&mut masked, Some(&types::FederationRelationshipMask::default()));
        assert_eq!(
            masked,
            types::FederationRelationship { trust_domain: "a.test".into(), ..Default::default() }
        );
    }
}
