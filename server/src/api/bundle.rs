//! The Bundle service. Source: `spire-server.md`, 1.7.

use svid_core::bundle::{Bundle as CoreBundle, JwtAuthority};
use svid_core::id::TrustDomain;
use svid_proto::convert::{
    apply_bundle_mask, bundle_from_wire, bundle_to_wire, jwt_authorities_from_wire, jwt_authority_to_wire,
    x509_authorities_from_wire,
};
use svid_proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use svid_proto::spire::api::server::bundle::v1::{self as wire, bundle_server::Bundle};
use svid_proto::spire::api::types;
use tonic::{Code, Request, Response, Status};

use super::caller::Call;
use super::entry::page;
use super::status::{self, invalid, invalid_argument, item, item_ok};
use super::{call_of, service};
use crate::store::{BundleMask, DeleteMode, StoreError};

service!(BundleApi);

/// Keys that publishing may bring a bundle to: every agent and workload gets them all.
const MAX_JWT_AUTHORITIES: usize = 1000;

/// What a batch does with a bundle.
#[derive(Clone, Copy)]
enum Write {
    Create,
    Update(BundleMask),
    Set,
}

impl Write {
    fn verb(self) -> &'static str {
        match self {
            Self::Create => "creating",
            Self::Update(_) => "updating",
            Self::Set => "setting",
        }
    }
}

fn masked(bundle: &CoreBundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    let mut bundle = bundle_to_wire(bundle);
    apply_bundle_mask(&mut bundle, mask);
    bundle
}

fn update_mask(mask: Option<&types::BundleMask>) -> BundleMask {
    mask.map_or(BundleMask::ALL, |mask| BundleMask {
        x509_authorities: mask.x509_authorities,
        jwt_authorities: mask.jwt_authorities,
        refresh_hint: mask.refresh_hint,
        sequence_number: mask.sequence_number,
    })
}

/// A published key has to end, or it would be believed for ever: its publisher may be gone when it is to be removed.
fn check_published(key: &JwtAuthority, known: &[JwtAuthority], now: i64) -> Result<(), Status> {
    if key.expires_at <= now {
        return Err(invalid("invalid JWT authority", "expires_at has to be set and in the future"));
    }
    let is_new = known.iter().all(|other| other.key_id != key.key_id);
    if is_new && known.len() >= MAX_JWT_AUTHORITIES {
        return Err(Status::resource_exhausted("the bundle has too many JWT authorities"));
    }
    Ok(())
}

fn not_found() -> Status {
    Status::not_found("bundle not found")
}

impl BundleApi {
    fn own(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// A trust domain that is not the server's own.
    fn foreign(&self, name: &str, doing: &str) -> Result<TrustDomain, Status> {
        let trust_domain = TrustDomain::from_name_or_id(name)
            .map_err(|error| invalid("trust domain argument is not valid", error))?;
        if trust_domain == *self.own() {
            return Err(invalid_argument(&format!(
                "{doing} a federated bundle for the server's own trust domain is not allowed"
            )));
        }
        Ok(trust_domain)
    }

    async fn write(&self, bundle: &types::Bundle, write: Write) -> Result<CoreBundle, Status> {
        self.foreign(&bundle.trust_domain, write.verb())?;
        let bundle = bundle_from_wire(bundle).map_err(|error| invalid("failed to convert bundle", error))?;
        let store = &self.0.store;
        let (written, message) = match write {
            Write::Create => (store.create_bundle(bundle).await, "unable to create bundle"),
            Write::Update(mask) => (store.update_bundle(bundle, mask).await, "failed to update bundle"),
            Write::Set => (store.set_bundle(bundle).await, "failed to set bundle"),
        };
        let written = written.map_err(|error| match error {
            StoreError::AlreadyExists(_) => Status::already_exists("bundle already exists"),
            error => status::store_or_not_found(message, "bundle not found", &error),
        })?;
        if matches!(write, Write::Set) {
            tracing::info!(trust_domain_id = %written.trust_domain, "Bundle set successfully");
        }
        Ok(written)
    }

    /// One item of a batch: the wire status and, when it went well, the stored bundle.
    async fn write_item(
        &self,
        call: &Call,
        bundle: &types::Bundle,
        write: Write,
        mask: Option<&types::BundleMask>,
    ) -> (Option<types::Status>, Option<types::Bundle>) {
        let written = self.write(bundle, write).await;
        audit(call, &bundle.trust_domain, None, written.as_ref().err());
        match written {
            Ok(written) => (Some(item_ok()), Some(masked(&written, mask))),
            Err(status) => (Some(item(&status)), None),
        }
    }

    async fn delete(&self, name: &str, mode: DeleteMode) -> Result<(), Status> {
        let trust_domain = TrustDomain::from_name_or_id(name)
            .map_err(|error| invalid("trust domain argument is not valid", error))?;
        if trust_domain == *self.own() {
            return Err(invalid_argument("removing the bundle for the server trust domain is not allowed"));
        }
        let deleted = self.0.store.delete_bundle(&trust_domain, mode).await;
        deleted.map_err(|error| match error {
            StoreError::BundleInUse(_) => status::store("failed to delete federated bundle", &error),
            error => {
                status::store_or_not_found("failed to delete federated bundle", "bundle not found", &error)
            }
        })
    }
}

fn audit(call: &Call, trust_domain: &str, mode: Option<&'static str>, failed: Option<&Status>) {
    let (code, message) = failed.map_or((Code::Ok, ""), |status| (status.code(), status.message()));
    if let Some(status) = failed {
        tracing::error!(trust_domain_id = %trust_domain, status_code = ?code, "{}", status.message());
    }
    call.audit_item(code, message, |fields| {
        fields.trust_domain_id = Some(trust_domain.to_owned());
        fields.mode = mode;
    });
}

#[tonic::async_trait]
impl Bundle for BundleApi {
    async fn count_bundles(
        &self,
        _: Request<wire::CountBundlesRequest>,
    ) -> Result<Response<wire::CountBundlesResponse>, Status> {
        let count = self.0.directory.list_bundles().len();
        Ok(Response::new(wire::CountBundlesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) }))
    }

    async fn get_bundle(
        &self,
        request: Request<wire::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = call_of(&request)?;
        call.audit.add(|fields| fields.trust_domain_id = Some(self.own().to_string()));
        let bundle = self.0.directory.bundle(self.own()).ok_or_else(not_found)?;
        Ok(Response::new(masked(&bundle, request.get_ref().output_mask.as_ref())))
    }

    async fn append_bundle(
        &self,
        request: Request<wire::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let request = request.into_inner();
        if request.jwt_authorities.is_empty() && request.x509_authorities.is_empty() {
            return Err(invalid_argument("no authorities to append"));
        }
        let jwt = jwt_authorities_from_wire(&request.jwt_authorities)
            .map_err(|error| invalid("failed to convert JWT authority", error))?;
        let x509 = x509_authorities_from_wire(&request.x509_authorities)
            .map_err(|error| invalid("failed to convert X.509 authority", error))?;
        let appended = self.0.store.append_bundle(self.own(), x509, jwt).await;
        let bundle = appended.map_err(|error| status::store("failed to append bundle", &error))?;
        Ok(Response::new(masked(&bundle, request.output_mask.as_ref())))
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<wire::PublishJwtAuthorityRequest>,
    ) -> Result<Response<wire::PublishJwtAuthorityResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        call.audit.add(|fields| {
            fields.jwt_authority_key_id = request.jwt_authority.as_ref().map(|key| key.key_id.clone());
        });
        self.0.limit(&call, 1, "key publishing rate limiting").await?;
        let key = request.jwt_authority.ok_or_else(|| invalid_argument("missing JWT authority"))?;
        let keys =
            jwt_authorities_from_wire(&[key]).map_err(|error| invalid("invalid JWT authority", error))?;
        let known = self.0.directory.bundle(self.own());
        let known = known.as_ref().map_or(&[][..], |bundle| &bundle.jwt_authorities);
        let now = self.0.now_unix();
        keys.iter().try_for_each(|key| check_published(key, known, now))?;
        let appended = self.0.store.append_bundle(self.own(), Vec::new(), keys).await;
        let bundle = appended.map_err(|error| status::store("failed to publish JWT key", &error))?;
        let jwt_authorities = bundle.jwt_authorities.iter().map(jwt_authority_to_wire).collect();
        Ok(Response::new(wire::PublishJwtAuthorityResponse { jwt_authorities }))
    }

    async fn publish_wit_authority(
        &self,
        _: Request<wire::PublishWitAuthorityRequest>,
    ) -> Result<Response<wire::PublishWitAuthorityResponse>, Status> {
        Err(Status::unimplemented("WIT-SVID functionality is not yet implemented"))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<wire::ListFederatedBundlesRequest>,
    ) -> Result<Response<wire::ListFederatedBundlesResponse>, Status> {
        let request = request.into_inner();
        // Bundles are few and have no rows of their own to page by: a token counts those that were shown.
        let page = page(request.page_size, &request.page_token, "failed to list bundles")?;
        let mut bundles = self.0.directory.list_bundles();
        bundles.retain(|bundle| bundle.trust_domain != *self.own());
        let skip = usize::try_from(page.after).unwrap_or(usize::MAX);
        let size = if page.size == 0 { usize::MAX } else { page.size };
        let shown: Vec<_> = bundles.iter().skip(skip).take(size).collect();
        let more = page.size != 0 && !shown.is_empty();
        let next_page_token = if more { skip.saturating_add(shown.len()).to_string() } else { String::new() };
        let bundles = shown.into_iter().map(|bundle| masked(bundle, request.output_mask.as_ref())).collect();
        Ok(Response::new(wire::ListFederatedBundlesResponse { bundles, next_page_token }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<wire::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        call.audit.add(|fields| fields.trust_domain_id = Some(request.trust_domain.clone()));
        let trust_domain = self.foreign(&request.trust_domain, "getting")?;
        let bundle = self.0.directory.bundle(&trust_domain).ok_or_else(not_found)?;
        Ok(Response::new(masked(&bundle, request.output_mask.as_ref())))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<wire::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchCreateFederatedBundleResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.bundle.len());
        for bundle in &request.bundle {
            let (status, bundle) =
                self.write_item(&call, bundle, Write::Create, request.output_mask.as_ref()).await;
            results.push(wire::batch_create_federated_bundle_response::Result { status, bundle });
        }
        Ok(Response::new(wire::BatchCreateFederatedBundleResponse { results }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<wire::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchUpdateFederatedBundleResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let update = Write::Update(update_mask(request.input_mask.as_ref()));
        let mut results = Vec::with_capacity(request.bundle.len());
        for bundle in &request.bundle {
            let (status, bundle) = self.write_item(&call, bundle, update, request.output_mask.as_ref()).await;
            results.push(wire::batch_update_federated_bundle_response::Result { status, bundle });
        }
        Ok(Response::new(wire::BatchUpdateFederatedBundleResponse { results }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<wire::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchSetFederatedBundleResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.bundle.len());
        for bundle in &request.bundle {
            let (status, bundle) =
                self.write_item(&call, bundle, Write::Set, request.output_mask.as_ref()).await;
            results.push(wire::batch_set_federated_bundle_response::Result { status, bundle });
        }
        Ok(Response::new(wire::BatchSetFederatedBundleResponse { results }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<wire::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchDeleteFederatedBundleResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let unknown =
            |_| invalid("failed to parse deletion mode", format!("unhandled delete mode {}", request.mode));
        let (mode, name) = match Mode::try_from(request.mode).map_err(unknown)? {
            Mode::Restrict => (DeleteMode::Restrict, "RESTRICT"),
            Mode::Delete => (DeleteMode::Delete, "DELETE"),
            Mode::Dissociate => (DeleteMode::Dissociate, "DISSOCIATE"),
        };
        let mut results = Vec::with_capacity(request.trust_domains.len());
        for trust_domain in request.trust_domains {
            let deleted = self.delete(&trust_domain, mode).await;
            audit(&call, &trust_domain, Some(name), deleted.as_ref().err());
            let status = Some(deleted.map_or_else(|status| item(&status), |()| item_ok()));
            results.push(wire::batch_delete_federated_bundle_response::Result { status, trust_domain });
        }
        Ok(Response::new(wire::BatchDeleteFederatedBundleResponse { results }))
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, JwtAuthority, MAX_JWT_AUTHORITIES, check_published};

    #[test]
    fn published_keys_end_and_are_not_too_many() {
        let key = |kid: usize, expires_at| JwtAuthority {
            key_id: kid.to_string(),
            public_key: [1][..].into(),
            expires_at,
            tainted: false,
        };
        let full: Vec<_> = (0..MAX_JWT_AUTHORITIES).map(|kid| key(kid, 9)).collect();
        for (kid, expires_at, known, want) in [
            (1, 11, &[][..], None),
            (1, 10, &[], Some(Code::InvalidArgument)),
            (1, 0, &[], Some(Code::InvalidArgument)),
            (5000, 11, &full, Some(Code::ResourceExhausted)),
            (1, 11, &full, None),
        ] {
            let refused = check_published(&key(kid, expires_at), known, 10).err();
            assert_eq!(refused.map(|status| status.code()), want, "{kid} {expires_at}");
        }
    }
}
