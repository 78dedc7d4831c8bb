//! The TrustDomain service: federation relationships are not built yet, so every RPC says so.

use svid_proto::spire::api::server::trustdomain::v1::{self as wire, trust_domain_server::TrustDomain};
use svid_proto::spire::api::types;
use tonic::{Request, Response, Status};

/// The service of this file.
#[derive(Clone)]
pub struct TrustDomainApi;

fn not_built<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented(
        "federation relationships are not built yet; exchange bundles with `bundle set`",
    ))
}

#[tonic::async_trait]
impl TrustDomain for TrustDomainApi {
    async fn list_federation_relationships(
        &self,
        _: Request<wire::ListFederationRelationshipsRequest>,
    ) -> Result<Response<wire::ListFederationRelationshipsResponse>, Status> {
        not_built()
    }
    async fn get_federation_relationship(
        &self,
        _: Request<wire::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        not_built()
    }
    async fn batch_create_federation_relationship(
        &self,
        _: Request<wire::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchCreateFederationRelationshipResponse>, Status> {
        not_built()
    }
    async fn batch_update_federation_relationship(
        &self,
        _: Request<wire::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchUpdateFederationRelationshipResponse>, Status> {
        not_built()
    }
    async fn batch_delete_federation_relationship(
        &self,
        _: Request<wire::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchDeleteFederationRelationshipResponse>, Status> {
        not_built()
    }
    async fn refresh_bundle(&self, _: Request<wire::RefreshBundleRequest>) -> Result<Response<()>, Status> {
        not_built()
    }
}
