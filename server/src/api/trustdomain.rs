//! The TrustDomain service: relationships with other trust domains. Source: `spire-server.md`, 1.10.

use svid_core::federation::{EndpointProfile, Relationship};
use svid_core::id::TrustDomain as Domain;
use svid_proto::convert::{
    apply_relationship_mask, bundle_to_wire, relationship_from_wire, relationship_to_wire,
};
use svid_proto::spire::api::server::trustdomain::v1::{self as wire, trust_domain_server::TrustDomain};
use svid_proto::spire::api::types;
use tonic::{Code, Request, Response, Status};

use super::audit::Fields;
use super::entry::{next_token, page};
use super::status::{self, invalid, invalid_argument, item, item_ok};
use super::{call_of, service};
use crate::federation::RefreshError;
use crate::store::RelationshipMask;

service!(TrustDomainApi);

type Mask<'a> = Option<&'a types::FederationRelationshipMask>;

fn trust_domain(name: &str) -> Result<Domain, Status> {
    Domain::from_name_or_id(name).map_err(|error| invalid("failed to parse trust domain", error))
}

impl TrustDomainApi {
    fn shown(&self, relationship: &Relationship, mask: Mask<'_>) -> types::FederationRelationship {
        let wants_bundle = mask.is_none_or(|mask| mask.trust_domain_bundle);
        let bundle = wants_bundle.then(|| self.0.directory.bundle(&relationship.trust_domain)).flatten();
        let mut shown = relationship_to_wire(relationship, bundle.as_deref().map(bundle_to_wire));
        apply_relationship_mask(&mut shown, mask);
        shown
    }

    fn parsed(
        &self,
        wire: &types::FederationRelationship,
    ) -> Result<(Relationship, Option<svid_core::bundle::Bundle>), Status> {
        let parsed = relationship_from_wire(wire);
        let (relationship, bundle) =
            parsed.map_err(|error| invalid("failed to convert federation relationship", error))?;
        if relationship.trust_domain == self.0.trust_domain {
            return Err(invalid_argument("unable to create federation relationship for server trust domain"));
        }
        Ok((relationship, bundle))
    }

    async fn create(
        &self,
        wire: &types::FederationRelationship,
        mask: Mask<'_>,
    ) -> Result<types::FederationRelationship, Status> {
        let (relationship, bundle) = self.parsed(wire)?;
        let created = self.0.store.create_relationship(relationship, bundle).await;
        let created =
            created.map_err(|error| status::store("failed to create federation relationship", &error))?;
        self.warn_without_bundle(&created.relationship);
        tracing::debug!(trust_domain_id = %created.relationship.trust_domain, "Federation relationship created");
        Ok(self.shown(&created.relationship, mask))
    }

    async fn update(
        &self,
        wire: &types::FederationRelationship,
        input: Mask<'_>,
        output: Mask<'_>,
    ) -> Result<types::FederationRelationship, Status> {
        let (relationship, bundle) = self.parsed(wire)?;
        let wanted = |field: fn(&types::FederationRelationshipMask) -> bool| input.is_none_or(field);
        let mask = RelationshipMask {
            url: wanted(|mask| mask.bundle_endpoint_url),
            profile: wanted(|mask| mask.bundle_endpoint_profile),
        };
        let bundle = bundle.filter(|_| wanted(|mask| mask.trust_domain_bundle));
        let updated = self.0.store.update_relationship(relationship, mask, bundle).await;
        let updated = updated.map_err(|error| {
            let message = "failed to update federation relationship";
            status::store_or_not_found(message, "federation relationship not found", &error)
        })?;
        self.warn_without_bundle(&updated.relationship);
        tracing::debug!(trust_domain_id = %updated.relationship.trust_domain, "Federation relationship updated");
        Ok(self.shown(&updated.relationship, output))
    }

    /// The endpoint's server cannot be believed before somebody set its trust domain's bundle.
    fn warn_without_bundle(&self, relationship: &Relationship) {
        let EndpointProfile::Spiffe(id) = &relationship.profile else { return };
        if self.0.directory.bundle(&id.trust_domain()).is_none() {
            tracing::warn!(
                trust_domain_id = %relationship.trust_domain,
                endpoint_spiffe_id = %id,
                "bundle not found for the endpoint SPIFFE ID trust domain"
            );
        }
    }

    /// The trust domain's bundle goes with the relationship, unless the configuration has one as well.
    async fn delete(&self, name: &str) -> Result<Domain, Status> {
        if name.is_empty() {
            return Err(invalid_argument("missing trust domain"));
        }
        let trust_domain = trust_domain(name)?;
        let withdraw = !self.0.federation.is_static(&trust_domain);
        let withdrawn = self.0.store.delete_relationship(&trust_domain, withdraw).await;
        let withdrawn = withdrawn.map_err(|error| {
            let message = "failed to delete federation relationship";
            status::store_or_not_found(message, "federation relationship not found", &error)
        })?;
        tracing::debug!(trust_domain_id = %trust_domain, "Federation relationship deleted");
        if withdrawn.bundle {
            let entries = withdrawn.entries;
            tracing::info!(trust_domain_id = %trust_domain, entries, "Bundle withdrawn with its federation relationship");
        }
        Ok(trust_domain)
    }
}

fn audit(fields: &mut Fields, wire: &types::FederationRelationship, mask: Mask<'_>) {
    use types::federation_relationship::BundleEndpointProfile as Profile;
    fields.trust_domain_id = (!wire.trust_domain.is_empty()).then(|| wire.trust_domain.clone());
    if mask.is_none_or(|mask| mask.bundle_endpoint_url) {
        fields.bundle_endpoint_url = Some(wire.bundle_endpoint_url.clone());
    }
    if mask.is_none_or(|mask| mask.bundle_endpoint_profile) {
        match &wire.bundle_endpoint_profile {
            Some(Profile::HttpsWeb(_)) => fields.bundle_endpoint_profile = Some("https_web"),
            Some(Profile::HttpsSpiffe(profile)) => {
                fields.bundle_endpoint_profile = Some("https_spiffe");
                fields.endpoint_spiffe_id = Some(profile.endpoint_spiffe_id.clone());
            }
            None => {}
        }
    }
}

/// The wire status of an item, logged if it failed, and what came of it.
fn settled<T>(name: &str, done: Result<T, Status>) -> (types::Status, Option<T>) {
    match done {
        Ok(done) => (item_ok(), Some(done)),
        Err(status) => {
            tracing::error!(trust_domain_id = %name, status_code = ?status.code(), "{}", status.message());
            (item(&status), None)
        }
    }
}

fn code(status: &types::Status) -> Code {
    Code::from_i32(status.code)
}

#[tonic::async_trait]
impl TrustDomain for TrustDomainApi {
    async fn list_federation_relationships(
        &self,
        request: Request<wire::ListFederationRelationshipsRequest>,
    ) -> Result<Response<wire::ListFederationRelationshipsResponse>, Status> {
        let request = request.into_inner();
        let page = page(request.page_size, &request.page_token, "failed to list federation relationships")?;
        let listing = self.0.directory.list_relationships(page);
        let mask = request.output_mask.as_ref();
        let federation_relationships = listing.items.iter().map(|one| self.shown(one, mask)).collect();
        let next_page_token = next_token(listing.next);
        Ok(Response::new(wire::ListFederationRelationshipsResponse {
            federation_relationships,
            next_page_token,
        }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<wire::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        call.audit.add(|fields| fields.trust_domain_id = Some(request.trust_domain.clone()));
        let found = self.0.directory.relationship(&trust_domain(&request.trust_domain)?);
        let found = found.ok_or_else(|| Status::not_found("federation relationship does not exist"))?;
        Ok(Response::new(self.shown(&found, request.output_mask.as_ref())))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<wire::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchCreateFederationRelationshipResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.federation_relationships.len());
        for wanted in &request.federation_relationships {
            let created = self.create(wanted, request.output_mask.as_ref()).await;
            let (status, federation_relationship) = settled(&wanted.trust_domain, created);
            call.audit_item(code(&status), &status.message, |fields| audit(fields, wanted, None));
            results.push(wire::batch_create_federation_relationship_response::Result {
                status: Some(status),
                federation_relationship,
            });
        }
        Ok(Response::new(wire::BatchCreateFederationRelationshipResponse { results }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<wire::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchUpdateFederationRelationshipResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let input = request.input_mask.as_ref();
        let mut results = Vec::with_capacity(request.federation_relationships.len());
        for wanted in &request.federation_relationships {
            let updated = self.update(wanted, input, request.output_mask.as_ref()).await;
            let (status, federation_relationship) = settled(&wanted.trust_domain, updated);
            call.audit_item(code(&status), &status.message, |fields| audit(fields, wanted, input));
            results.push(wire::batch_update_federation_relationship_response::Result {
                status: Some(status),
                federation_relationship,
            });
        }
        Ok(Response::new(wire::BatchUpdateFederationRelationshipResponse { results }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<wire::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchDeleteFederationRelationshipResponse>, Status> {
        let call = call_of(&request)?;
        let mut results = Vec::new();
        for name in request.into_inner().trust_domains {
            let (status, deleted) = settled(&name, self.delete(&name).await);
            call.audit_item(code(&status), &status.message, |fields| {
                fields.trust_domain_id = Some(name.clone());
            });
            let trust_domain = deleted.map_or(name, |deleted| deleted.to_string());
            results.push(wire::batch_delete_federation_relationship_response::Result {
                status: Some(status),
                trust_domain,
            });
        }
        Ok(Response::new(wire::BatchDeleteFederationRelationshipResponse { results }))
    }

    async fn refresh_bundle(
        &self,
        request: Request<wire::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let call = call_of(&request)?;
        let name = request.into_inner().trust_domain;
        call.audit.add(|fields| fields.trust_domain_id = Some(name.clone()));
        let trust_domain = trust_domain(&name)?;
        match self.0.federation.refresh(&trust_domain, false).await {
            Ok(_) => {
                tracing::debug!(trust_domain_id = %trust_domain, "Bundle refreshed");
                Ok(Response::new(()))
            }
            Err(RefreshError::NoRelationship(_)) => {
                Err(Status::not_found(format!("no relationship with trust domain \"{trust_domain}\"")))
            }
            Err(error) => Err(Status::internal(format!(
                "failed to refresh bundle: {}",
                svid_daemon::log::chain(&error)
            ))),
        }
    }
}
