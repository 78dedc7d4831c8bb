//! How federation goes, for `svidctl`.

use std::collections::HashMap;

use svid_core::bundle::Bundle;
use svid_core::clock::unix_seconds;
use svid_core::id::TrustDomain;
use svid_proto::svid::federation::v1::{self as wire, federation_server::Federation};
use tonic::{Request, Response, Status};

use super::service;
use super::status::invalid;
use crate::federation::{Followed, RefreshError, Refreshed, Source};
use crate::store::FetchRecord;

service!(FederationApi);

type Records = HashMap<TrustDomain, FetchRecord>;

impl FederationApi {
    /// Where stored bundles come from. Without the database it is not known.
    async fn records(&self) -> Records {
        self.0.store.fetch_records().await.unwrap_or_else(|error| {
            tracing::warn!(error = %svid_daemon::log::chain(&error), "It is not known when bundles were fetched");
            Records::default()
        })
    }

    fn shown(&self, followed: Followed, records: &Records) -> wire::RelationshipStatus {
        let Followed { relationship, source, hides_stored, progress } = followed;
        let record = records.get(&relationship.trust_domain);
        let last_success_at = progress.last_success_at.max(record.map_or(0, |record| record.confirmed_at));
        let bundle = self.0.directory.bundle(&relationship.trust_domain);
        let age = self.0.now_unix().saturating_sub(last_success_at).max(0);
        wire::RelationshipStatus {
            trust_domain: relationship.trust_domain.to_string(),
            source: match source {
                Source::Static => wire::Source::Static,
                Source::Dynamic => wire::Source::Dynamic,
            }
            .into(),
            hides_dynamic: hides_stored,
            bundle_endpoint_url: relationship.url.to_string(),
            bundle_endpoint_profile: relationship.profile.name().into(),
            endpoint_spiffe_id: relationship
                .profile
                .endpoint_id()
                .map(ToString::to_string)
                .unwrap_or_default(),
            last_attempt_at: progress.last_attempt_at,
            last_success_at,
            last_error: progress.last_error,
            failures_in_a_row: progress.failures,
            next_refresh_at: progress.next_at,
            is_fetching: progress.is_fetching,
            bundle: bundle.map(|bundle| bundle_status(&bundle, record, age)),
        }
    }

    async fn one(&self, trust_domain: &TrustDomain) -> Option<wire::RelationshipStatus> {
        let all = self.0.federation.list();
        let found = all.into_iter().find(|one| one.relationship.trust_domain == *trust_domain)?;
        Some(self.shown(found, &self.records().await))
    }
}

fn bundle_status(bundle: &Bundle, record: Option<&FetchRecord>, age: i64) -> wire::BundleStatus {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let ends = bundle.x509_authorities.iter().map(|root| unix_seconds(root.parsed().life().not_after));
    wire::BundleStatus {
        sequence_number: bundle.sequence_number,
        refresh_hint_s: i64::try_from(bundle.refresh_hint.as_secs()).unwrap_or(i64::MAX),
        x509_authorities_count: count(bundle.x509_authorities.len()),
        jwt_authorities_count: count(bundle.jwt_authorities.len()),
        is_fetched: record.is_some(),
        fetched_at: record.map_or(0, |record| record.fetched_at),
        age_s: record.map_or(0, |_| age),
        x509_authorities_end_at: ends.max().unwrap_or_default(),
    }
}

fn domain(name: &str) -> Result<TrustDomain, Status> {
    TrustDomain::from_name_or_id(name).map_err(|error| invalid("failed to parse trust domain", error))
}

#[tonic::async_trait]
impl Federation for FederationApi {
    async fn list_relationships(
        &self,
        request: Request<wire::ListRelationshipsRequest>,
    ) -> Result<Response<wire::ListRelationshipsResponse>, Status> {
        let only = request.into_inner().trust_domain;
        let only = if only.is_empty() { None } else { Some(domain(&only)?) };
        let records = self.records().await;
        let wanted = |one: &Followed| only.as_ref().is_none_or(|only| one.relationship.trust_domain == *only);
        let all = self.0.federation.list().into_iter().filter(wanted);
        let relationships: Vec<_> = all.map(|one| self.shown(one, &records)).collect();
        match only {
            Some(only) if relationships.is_empty() => {
                Err(Status::not_found(RefreshError::NoRelationship(only).to_string()))
            }
            _ => Ok(Response::new(wire::ListRelationshipsResponse { relationships })),
        }
    }

    async fn refresh_bundle(
        &self,
        request: Request<wire::RefreshBundleRequest>,
    ) -> Result<Response<wire::RefreshBundleResponse>, Status> {
        let request = request.into_inner();
        let trust_domain = domain(&request.trust_domain)?;
        if request.accept_older {
            tracing::warn!(%trust_domain, "An operator asked for this trust domain's bundle, also if it is older than the stored one");
        }
        let (outcome, error) = match self.0.federation.refresh(&trust_domain, request.accept_older).await {
            Ok(Refreshed::Unchanged) => (wire::RefreshOutcome::Unchanged, String::new()),
            Ok(Refreshed::Replaced) => (wire::RefreshOutcome::Replaced, String::new()),
            Err(error @ RefreshError::NoRelationship(_)) => return Err(Status::not_found(error.to_string())),
            Err(error @ RefreshError::Older { .. }) => (wire::RefreshOutcome::Older, error.to_string()),
            Err(error) => (wire::RefreshOutcome::Failed, svid_daemon::log::chain(&error)),
        };
        let relationship = self.one(&trust_domain).await;
        Ok(Response::new(wire::RefreshBundleResponse { outcome: outcome.into(), error, relationship }))
    }
}
