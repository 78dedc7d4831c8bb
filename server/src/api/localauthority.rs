//! The LocalAuthority service: an operator's hand on the rotation. Source: `spire-server.md`, 1.11.

use svid_core::clock::unix_seconds;
use svid_proto::spire::api::server::localauthority::v1::{
    self as wire, local_authority_server::LocalAuthority,
};
use tonic::{Request, Response, Status};

use super::caller::Call;
use super::{call_of, service, status};
use crate::ca::{AuthorityInfo, AuthorityKind, CaError};

service!(LocalAuthorityApi);

const WIT: &str = "WIT-SVID functionality is not yet implemented";

fn to_wire(info: &AuthorityInfo) -> wire::AuthorityState {
    wire::AuthorityState {
        authority_id: info.authority_id.clone(),
        expires_at: unix_seconds(info.not_after),
        upstream_authority_subject_key_id: info.upstream_authority_id.clone(),
    }
}

type States = (Option<wire::AuthorityState>, Option<wire::AuthorityState>, Option<wire::AuthorityState>);

impl LocalAuthorityApi {
    fn states(&self, kind: AuthorityKind) -> Result<States, Status> {
        let state =
            self.0.ca.state(kind).map_err(|error| status::ca("failed to get authority state", &error))?;
        let active = state.active.ok_or_else(|| Status::unavailable("server is initializing"))?;
        let wire = |info: Option<AuthorityInfo>| info.as_ref().map(to_wire);
        Ok((Some(to_wire(&active)), wire(state.prepared), wire(state.old)))
    }

    /// Taints or revokes an upstream root. Gives its subject key ID as it is stored.
    async fn change_upstream(&self, change: UpstreamChange, id: &str, call: &Call) -> Result<String, Status> {
        call.audit.add(|fields| fields.subject_key_id = Some(id.to_owned()));
        let (ca, id) = (&self.0.ca, id.to_ascii_lowercase());
        let done = match change {
            UpstreamChange::Taint => ca.taint_upstream(&id).await,
            UpstreamChange::Revoke => ca.revoke_upstream(&id).await,
        };
        done.map_err(|error| change.refused(&error))?;
        tracing::info!(subject_key_id = id, "X.509 upstream authority {}", change.done());
        Ok(id)
    }

    async fn prepare(&self, kind: AuthorityKind) -> Result<Option<wire::AuthorityState>, Status> {
        self.states(kind)?;
        let message = format!("failed to prepare {kind} authority");
        let prepared = self.0.ca.prepare(kind).await.map_err(|error| status::ca(&message, &error))?;
        tracing::info!(local_authority_id = %prepared.authority_id, "{kind} authority prepared");
        Ok(Some(to_wire(&prepared)))
    }

    async fn change(
        &self,
        kind: AuthorityKind,
        id: &str,
        call: &Call,
        change: Change,
    ) -> Result<Option<wire::AuthorityState>, Status> {
        call.audit.add(|fields| fields.local_authority_id = Some(id.to_owned()));
        self.states(kind)?;
        let (ca, verb) = (&self.0.ca, change.verb());
        let done = match change {
            Change::Activate => ca.activate(kind, id).await,
            Change::Taint => ca.taint(kind, id).await,
            Change::Revoke => ca.revoke(kind, id).await,
        };
        let done = done.map_err(|error| refused(kind, change, &error))?;
        tracing::info!(local_authority_id = %id, "{kind} authority {verb} successfully");
        let expires_at = if change == Change::Activate { unix_seconds(done.not_after) } else { 0 };
        let keep_expiry = kind == AuthorityKind::X509 && change == Change::Taint;
        let expires_at = if keep_expiry { unix_seconds(done.not_after) } else { expires_at };
        Ok(Some(wire::AuthorityState { expires_at, ..to_wire(&done) }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Activate,
    Taint,
    Revoke,
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Self::Activate => "activated",
            Self::Taint => "tainted",
            Self::Revoke => "revoked",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpstreamChange {
    Taint,
    Revoke,
}

impl UpstreamChange {
    fn done(self) -> &'static str {
        match self {
            Self::Taint => "tainted successfully",
            Self::Revoke => "successfully revoked",
        }
    }

    fn refused(self, error: &CaError) -> Status {
        let is_about_id = matches!(
            error,
            CaError::SubjectKeyIdMissing
                | CaError::UpstreamCurrent
                | CaError::UpstreamUnknown
                | CaError::UpstreamPrepared
        );
        match (self, is_about_id) {
            (Self::Taint, true) => status::invalid("provided subject key id is not valid", error),
            (Self::Revoke, true) => status::invalid("invalid subject key ID", error),
            (Self::Taint, false) => status::ca("failed to taint upstream authority", error),
            (Self::Revoke, false) => status::ca("failed to revoke X.509 upstream authority", error),
        }
    }
}

fn refused(kind: AuthorityKind, change: Change, error: &CaError) -> Status {
    let verb = match change {
        Change::Activate => "activate",
        Change::Taint => "taint",
        Change::Revoke => "revoke",
    };
    match error {
        CaError::NotPrepared => Status::internal(format!("{error}: unsupported local authority status: OLD")),
        CaError::NotOld(_) if change == Change::Taint => {
            Status::invalid_argument(format!("{error}: unsupported local authority status: PREPARED"))
        }
        error if change == Change::Revoke => refused_revocation(kind, error),
        error => status::ca(&format!("failed to {verb} {kind} authority"), error),
    }
}

/// Revocation has sentences of its own.
fn refused_revocation(kind: AuthorityKind, error: &CaError) -> Status {
    let why = match (kind, error) {
        (_, CaError::AuthorityIdMissing | CaError::RevokeCurrent) => error.to_string(),
        (AuthorityKind::X509, CaError::AuthorityIdUnexpected | CaError::NotOld(_)) => {
            "only Old local authority can be revoked".to_owned()
        }
        (AuthorityKind::Jwt, CaError::NotOld(_)) => "unable to use a prepared key".to_owned(),
        (AuthorityKind::Jwt, CaError::AuthorityIdUnexpected) => {
            "no JWT authority found with provided authority ID".to_owned()
        }
        _ => return status::ca(&format!("failed to revoke {kind} authority"), error),
    };
    Status::invalid_argument(format!("invalid authority ID: {why}"))
}

/// `rpc(kind, change) name, Request -> Response { field };`
macro_rules! local_authority {
    (
        state { $($state:ident $kind_s:ident $state_req:ident $state_resp:ident;)* }
        prepare { $($prepare:ident $kind_p:ident $prepare_req:ident $prepare_resp:ident;)* }
        change { $($change:ident $kind_c:ident $what:ident $change_req:ident $change_resp:ident $field:ident;)* }
        upstream { $($upstream:ident $upstream_what:ident $upstream_req:ident $upstream_resp:ident;)* }
        refuse { $($refused:ident $refused_req:ident $refused_resp:ident $text:ident;)* }
    ) => {
        #[tonic::async_trait]
        impl LocalAuthority for LocalAuthorityApi {
            $(async fn $state(&self, _: Request<wire::$state_req>) -> Result<Response<wire::$state_resp>, Status> {
                let (active, prepared, old) = self.states(AuthorityKind::$kind_s)?;
                Ok(Response::new(wire::$state_resp { active, prepared, old }))
            })*
            $(async fn $prepare(&self, _: Request<wire::$prepare_req>) -> Result<Response<wire::$prepare_resp>, Status> {
                let prepared_authority = self.prepare(AuthorityKind::$kind_p).await?;
                Ok(Response::new(wire::$prepare_resp { prepared_authority }))
            })*
            $(async fn $change(
                &self,
                request: Request<wire::$change_req>,
            ) -> Result<Response<wire::$change_resp>, Status> {
                let call = call_of(&request)?;
                let id = request.into_inner().authority_id;
                let $field = self.change(AuthorityKind::$kind_c, &id, &call, Change::$what).await?;
                Ok(Response::new(wire::$change_resp { $field }))
            })*
            $(async fn $upstream(
                &self,
                request: Request<wire::$upstream_req>,
            ) -> Result<Response<wire::$upstream_resp>, Status> {
                let call = call_of(&request)?;
                let id = request.into_inner().subject_key_id;
                let upstream_authority_subject_key_id =
                    self.change_upstream(UpstreamChange::$upstream_what, &id, &call).await?;
                Ok(Response::new(wire::$upstream_resp { upstream_authority_subject_key_id }))
            })*
            $(async fn $refused(
                &self,
                _: Request<wire::$refused_req>,
            ) -> Result<Response<wire::$refused_resp>, Status> {
                Err(Status::unimplemented($text))
            })*
        }
    };
}

local_authority! {
    state {
        get_jwt_authority_state Jwt GetJwtAuthorityStateRequest GetJwtAuthorityStateResponse;
        get_x509_authority_state X509 GetX509AuthorityStateRequest GetX509AuthorityStateResponse;
    }
    prepare {
        prepare_jwt_authority Jwt PrepareJwtAuthorityRequest PrepareJwtAuthorityResponse;
        prepare_x509_authority X509 PrepareX509AuthorityRequest PrepareX509AuthorityResponse;
    }
    change {
        activate_jwt_authority Jwt Activate ActivateJwtAuthorityRequest ActivateJwtAuthorityResponse activated_authority;
        taint_jwt_authority Jwt Taint TaintJwtAuthorityRequest TaintJwtAuthorityResponse tainted_authority;
        revoke_jwt_authority Jwt Revoke RevokeJwtAuthorityRequest RevokeJwtAuthorityResponse revoked_authority;
        activate_x509_authority X509 Activate ActivateX509AuthorityRequest ActivateX509AuthorityResponse activated_authority;
        taint_x509_authority X509 Taint TaintX509AuthorityRequest TaintX509AuthorityResponse tainted_authority;
        revoke_x509_authority X509 Revoke RevokeX509AuthorityRequest RevokeX509AuthorityResponse revoked_authority;
    }
    upstream {
        taint_x509_upstream_authority Taint TaintX509UpstreamAuthorityRequest TaintX509UpstreamAuthorityResponse;
        revoke_x509_upstream_authority Revoke RevokeX509UpstreamAuthorityRequest RevokeX509UpstreamAuthorityResponse;
    }
    refuse {
        get_wit_authority_state GetWitAuthorityStateRequest GetWitAuthorityStateResponse WIT;
        prepare_wit_authority PrepareWitAuthorityRequest PrepareWitAuthorityResponse WIT;
        activate_wit_authority ActivateWitAuthorityRequest ActivateWitAuthorityResponse WIT;
        taint_wit_authority TaintWitAuthorityRequest TaintWitAuthorityResponse WIT;
        revoke_wit_authority RevokeWitAuthorityRequest RevokeWitAuthorityResponse WIT;
    }
}
