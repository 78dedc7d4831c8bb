//! gRPC health, on the admin socket: serving once the own bundle exists.

use std::pin::Pin;

use futures_util::Stream;
use svid_proto::grpc::health::v1::health_check_response::ServingStatus;
use svid_proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse, health_server::Health,
};
use tonic::{Request, Response, Status};

use super::service;
use super::status::invalid_argument;

service!(HealthApi);

#[tonic::async_trait]
impl Health for HealthApi {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(invalid_argument("per-service health is not supported"));
        }
        let status = match self.0.directory.bundle(&self.0.trust_domain) {
            Some(_) => ServingStatus::Serving,
            None => {
                tracing::warn!(reason = "bundle is missing", "Health check failed");
                ServingStatus::NotServing
            }
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("method List not implemented"))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("method Watch not implemented"))
    }
}
