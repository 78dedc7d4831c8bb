//! `federation add`: follows another trust domain, with a first bundle where one is needed.

use std::path::Path;

use svid_core::bundle::document::BundleDocument;
use svid_core::bundle::{Bundle, X509Authority};
use svid_core::federation::{EndpointProfile, EndpointUrl};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::pem;
use svid_proto::convert::bundle_to_wire;
use svid_proto::spire::api::server::bundle::v1::GetFederatedBundleRequest;
use svid_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use svid_proto::spire::api::server::trustdomain::v1::BatchCreateFederationRelationshipRequest;
use svid_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use svid_proto::spire::api::types;
use tonic::Code;
use tonic::transport::Channel;
use types::federation_relationship::BundleEndpointProfile;

use super::{refresh, show_refreshed};
use crate::args::{FederationAdd, Profile};
use crate::connect::{self, Failure, Who};
use crate::render::Screen;

pub(super) async fn run(channel: Channel, add: &FederationAdd, screen: &mut Screen) -> Result<(), Failure> {
    let trust_domain = TrustDomain::from_name_or_id(&add.trust_domain)
        .map_err(|error| Failure::new(format!("{} is no trust domain: {error}", add.trust_domain)))?;
    let url: EndpointUrl =
        add.url.parse().map_err(|error| Failure::new(format!("--url {}: {error}", add.url)))?;
    let profile = profile(add, &trust_domain)?;
    let bundle = add.bundle.as_deref().map(|path| read_bundle(path, &trust_domain)).transpose()?;
    if bundle.is_none() {
        need_bundle(channel.clone(), &trust_domain, &profile).await?;
    }
    let relationship = types::FederationRelationship {
        trust_domain: trust_domain.as_str().to_owned(),
        bundle_endpoint_url: url.as_str().to_owned(),
        bundle_endpoint_profile: Some(match &profile {
            EndpointProfile::Web => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
            EndpointProfile::Spiffe(id) => BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: id.to_string(),
            }),
        }),
        trust_domain_bundle: bundle.as_ref().map(bundle_to_wire),
    };
    create(channel.clone(), relationship).await?;
    show_refreshed(refresh(channel, trust_domain.as_str(), false).await?, screen)
}

fn profile(add: &FederationAdd, trust_domain: &TrustDomain) -> Result<EndpointProfile, Failure> {
    match (add.profile, &add.endpoint_spiffe_id) {
        (Profile::HttpsWeb, None) => Ok(EndpointProfile::Web),
        (Profile::HttpsWeb, Some(_)) => Err(Failure::new("--endpoint-spiffe-id has no use with https_web")
            .advise("With https_web the endpoint proves itself with a certificate of a public CA.")),
        (Profile::HttpsSpiffe, id) => {
            // What SPIRE's servers have.
            let id = id.clone().unwrap_or_else(|| format!("{}/spire/server", trust_domain.id()));
            let read = id.parse::<SpiffeId>();
            let id = read.map_err(|error| Failure::new(format!("--endpoint-spiffe-id {id}: {error}")))?;
            Ok(EndpointProfile::Spiffe(id))
        }
    }
}

/// An endpoint that proves itself with an SVID needs a bundle to be believed by, and there has to be a first one.
async fn need_bundle(
    channel: Channel,
    partner: &TrustDomain,
    profile: &EndpointProfile,
) -> Result<(), Failure> {
    let Some(endpoint) = profile.endpoint_id().map(SpiffeId::trust_domain) else { return Ok(()) };
    let request =
        GetFederatedBundleRequest { trust_domain: endpoint.as_str().to_owned(), ..Default::default() };
    match BundleClient::new(channel).get_federated_bundle(request).await {
        Err(status) if status.code() == Code::NotFound => {
            Err(Failure::new(format!("nothing is known of {endpoint} yet, so its endpoint could not be believed"))
                .advise(format!(
                    "Bring a first bundle over by a way you trust: on a server of {endpoint} run `svid-server bundle \
                     show -format spiffe > {endpoint}.json`, and give the file here with `--bundle {endpoint}.json`{}.",
                    if endpoint == *partner { "" } else { " to `bundle set` of this server" }
                )))
        }
        // Its own trust domain, or known; anything else is said by what comes next.
        _ => Ok(()),
    }
}

/// A SPIFFE bundle document, or roots in PEM.
fn read_bundle(path: &Path, trust_domain: &TrustDomain) -> Result<Bundle, Failure> {
    let at = path.display();
    let bytes = std::fs::read(path).map_err(|error| Failure::new(format!("--bundle {at}: {error}")))?;
    let advice =
        "It has to be what `bundle show -format spiffe`, or `-format pem`, prints on the partner's server.";
    if bytes.trim_ascii_start().starts_with(b"{") {
        return BundleDocument::parse(trust_domain, &bytes)
            .map(|document| document.bundle)
            .map_err(|error| Failure::new(format!("--bundle {at}: {error}")).advise(advice));
    }
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(format!("--bundle {at}: {error}")).advise(advice);
    let mut bundle = Bundle::empty(trust_domain.clone());
    for der in pem::parse_certs_pem(&bytes).map_err(|error| failed(&error))? {
        bundle.x509_authorities.push(X509Authority::from_der(&der).map_err(|error| failed(&error))?);
    }
    match bundle.x509_authorities.is_empty() {
        true => Err(failed(&"there is no certificate in it")),
        false => Ok(bundle),
    }
}

async fn create(channel: Channel, relationship: types::FederationRelationship) -> Result<(), Failure> {
    let name = relationship.trust_domain.clone();
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![relationship],
        output_mask: None,
    };
    let answer = TrustDomainClient::new(channel).batch_create_federation_relationship(request).await;
    let answer = answer.map_err(|status| connect::rpc(Who::Server, &status))?.into_inner();
    let status = answer.results.into_iter().next().and_then(|result| result.status).unwrap_or_default();
    match Code::from(status.code) {
        Code::Ok => Ok(()),
        Code::AlreadyExists => Err(Failure::new(format!("{name} is followed already")).advise(format!(
            "`svidctl federation show {name}` tells how; `federation update` of the server's command line changes it."
        ))),
        code => Err(Failure::new(format!("the server refused {name}: {code:?}: {}", status.message))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn add(profile: Profile, id: Option<&str>) -> FederationAdd {
        FederationAdd {
            trust_domain: "partner.test".into(),
            url: "https://partner.test".into(),
            profile,
            endpoint_spiffe_id: id.map(str::to_owned),
            bundle: None,
        }
    }

    #[test]
    fn profiles_and_their_ids() {
        let partner: TrustDomain = "partner.test".parse().unwrap();
        let of = |name, id| profile(&add(name, id), &partner).map_err(|failure| failure.to_string());
        assert_eq!(of(Profile::HttpsWeb, None), Ok(EndpointProfile::Web));
        let id = "spiffe://partner.test/spire/server".parse().unwrap();
        assert_eq!(of(Profile::HttpsSpiffe, None), Ok(EndpointProfile::Spiffe(id)));
        assert!(of(Profile::HttpsWeb, Some("spiffe://a/b")).is_err_and(|text| text.contains("no use")));
        assert!(
            of(Profile::HttpsSpiffe, Some("b")).is_err_and(|text| text.contains("--endpoint-spiffe-id b"))
        );
    }

    #[test]
    fn files_that_are_no_bundle_say_what_they_should_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle");
        for text in ["", "{\"keys\": 1}", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, text).unwrap();
            let failure = read_bundle(&path, &"partner.test".parse().unwrap()).unwrap_err().to_string();
            assert!(failure.contains("bundle show -format spiffe"), "{text:?}: {failure}");
        }
    }
}
