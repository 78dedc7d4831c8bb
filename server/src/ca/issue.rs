//! Signing: what a request may ask for, and the rules every signature keeps. Nothing here touches the store.

use std::time::{Duration, SystemTime};

use svid_core::entry::EntrySpec;
use svid_core::id::SpiffeId;
use svid_core::jwt::{JwtSvid, new_jti, sign_jwt_svid_awaited};
use svid_core::key::{KeyType, LocalKey};
use svid_core::x509::{
    Authority, CaTemplate, IssueError, LeafTemplate, Prepared, PublicKey, Subject, VerifiedCsr, X509Svid,
};

use super::{Ca, CaError};

/// What an X509-SVID for a workload shall say.
#[derive(Clone, Copy, Debug)]
pub struct X509SvidRequest<'a> {
    /// Whose SVID it is. The caller has proved that its requester may have it.
    pub id: &'a SpiffeId,
    /// Life asked for; zero for the server's default.
    pub ttl: Duration,
    /// DNS SANs, in order.
    pub dns_names: &'a [String],
    /// The entry's expiry: the SVID does not outlive it.
    pub not_after_limit: Option<SystemTime>,
}

impl<'a> X509SvidRequest<'a> {
    /// What an entry entitles to.
    pub fn for_entry(spec: &'a EntrySpec) -> Self {
        Self {
            id: &spec.spiffe_id,
            ttl: seconds(spec.x509_svid_ttl),
            dns_names: &spec.dns_names,
            not_after_limit: expiry(spec.expires_at),
        }
    }
}

/// What a JWT-SVID shall say.
#[derive(Clone, Copy, Debug)]
pub struct JwtSvidRequest<'a> {
    /// Whose SVID it is. The caller has proved that its requester may have it.
    pub id: &'a SpiffeId,
    /// For whom it is; at least one.
    pub audience: &'a [String],
    /// Life asked for; zero for the server's default.
    pub ttl: Duration,
    /// Carry a `jti` claim.
    pub include_jti: bool,
    /// The entry's expiry: the SVID does not outlive it.
    pub not_after_limit: Option<SystemTime>,
}

impl<'a> JwtSvidRequest<'a> {
    /// What an entry entitles to.
    pub fn for_entry(spec: &'a EntrySpec, audience: &'a [String]) -> Self {
        Self {
            id: &spec.spiffe_id,
            audience,
            ttl: seconds(spec.jwt_svid_ttl),
            include_jti: spec.jwt_svid_include_jti,
            not_after_limit: expiry(spec.expires_at),
        }
    }
}

/// An intermediate CA for a nested server.
#[derive(Clone, Debug)]
pub struct DownstreamCa {
    /// Its certificate in DER, then what leads to the root, without the root.
    pub chain: Vec<Vec<u8>>,
}

fn seconds(ttl: i32) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

fn expiry(unix: i64) -> Option<SystemTime> {
    let unix = u64::try_from(unix).ok().filter(|unix| *unix > 0)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix))
}

fn or_default(asked: Duration, default: Duration) -> Duration {
    if asked.is_zero() { default } else { asked }
}

/// As much of the life asked for as the entry leaves.
fn capped(asked: Duration, limit: Option<SystemTime>, now: SystemTime) -> Result<Duration, CaError> {
    let Some(limit) = limit else { return Ok(asked) };
    match limit.duration_since(now) {
        Ok(left) if !left.is_zero() => Ok(asked.min(left)),
        _ => Err(CaError::EntryExpired),
    }
}

impl Ca {
    /// True if X509-SVIDs are signed in this process, by [`Ca::sign_workload_x509_inline`] without waiting.
    pub fn signs_inline(&self) -> bool {
        let snapshot = self.snapshots.borrow();
        snapshot.x509.active_key().is_none_or(|authority| authority.signs_inline())
    }

    /// Signs an X509-SVID for a workload. It ends with its TTL, its entry or its authority, whichever is first.
    /// # Errors
    /// [`CaError::NoX509Authority`], [`CaError::EntryExpired`] or [`CaError::Issue`].
    pub async fn sign_workload_x509(
        &self,
        request: &X509SvidRequest<'_>,
        public_key: PublicKey,
        now: SystemTime,
    ) -> Result<X509Svid, CaError> {
        let template = self.workload_template(request, public_key, now)?;
        let snapshot = self.snapshot();
        let svid = snapshot.x509_authority(now)?.prepare(template, now)?.sign_awaited().await?;
        self.metrics.x509_svid.add(1);
        Ok(svid)
    }

    /// As [`Ca::sign_workload_x509`], for threads that do not wait and a key that lives here.
    /// # Errors
    /// As [`Ca::sign_workload_x509`].
    pub fn sign_workload_x509_inline(
        &self,
        request: &X509SvidRequest<'_>,
        public_key: PublicKey,
        now: SystemTime,
    ) -> Result<X509Svid, CaError> {
        let template = self.workload_template(request, public_key, now)?;
        let snapshot = self.snapshot();
        let svid = snapshot.x509_authority(now)?.prepare(template, now)?.sign()?;
        self.metrics.x509_svid.add(1);
        Ok(svid)
    }

    fn workload_template(
        &self,
        request: &X509SvidRequest<'_>,
        public_key: PublicKey,
        now: SystemTime,
    ) -> Result<LeafTemplate, CaError> {
        let ttl = or_default(request.ttl, self.config.default_x509_svid_ttl);
        Ok(LeafTemplate {
            id: request.id.clone(),
            public_key,
            ttl: capped(ttl, request.not_after_limit, now)?,
            dns_names: request.dns_names.to_vec(),
            subject: Subject::Spire,
            not_after_limit: request.not_after_limit,
        })
    }

    /// Checks an agent's SVID and draws its serial, so that the caller can store it before [`Ca::sign_agent_x509`].
    /// `authority` is from [`super::CaSnapshot::x509_authority`].
    /// # Errors
    /// [`CaError::Issue`].
    pub fn prepare_agent_x509<'a>(
        &self,
        authority: &'a Authority,
        id: &SpiffeId,
        public_key: PublicKey,
        now: SystemTime,
    ) -> Result<Prepared<'a>, CaError> {
        Ok(authority.prepare(self.agent_template(id, public_key, None), now)?)
    }

    /// Signs what was prepared and stored.
    /// # Errors
    /// [`CaError::Issue`].
    pub async fn sign_agent_x509(&self, prepared: Prepared<'_>) -> Result<X509Svid, CaError> {
        let svid = prepared.sign_awaited().await?;
        self.metrics.x509_svid.add(1);
        Ok(svid)
    }

    /// The same agent's SVID again, for an answer that was lost: number and life are those that were stored.
    /// # Errors
    /// [`CaError::Issue`].
    pub fn prepare_agent_x509_again<'a>(
        &self,
        authority: &'a Authority,
        id: &SpiffeId,
        public_key: PublicKey,
        serial_decimal: &str,
        then: i64,
        not_after: i64,
    ) -> Result<Prepared<'a>, CaError> {
        let template = self.agent_template(id, public_key, expiry(not_after));
        Ok(authority.prepare_again(template, serial_decimal, expiry(then).ok_or(IssueError::Time)?)?)
    }

    fn agent_template(
        &self,
        id: &SpiffeId,
        public_key: PublicKey,
        not_after_limit: Option<SystemTime>,
    ) -> LeafTemplate {
        LeafTemplate {
            id: id.clone(),
            public_key,
            ttl: self.config.agent_svid_ttl(),
            dns_names: Vec::new(),
            subject: Subject::Spire,
            not_after_limit,
        }
    }

    /// Signs an X509-SVID without an entry, with the names and the subject of its CSR.
    /// # Errors
    /// As [`Ca::sign_workload_x509`].
    pub async fn mint_x509(
        &self,
        id: &SpiffeId,
        csr: &VerifiedCsr,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<X509Svid, CaError> {
        let template = LeafTemplate {
            id: id.clone(),
            public_key: csr.public_key().clone(),
            ttl: or_default(ttl, self.config.default_x509_svid_ttl),
            dns_names: csr.dns_sans().to_vec(),
            subject: Subject::Raw(csr.subject_der().to_vec()),
            not_after_limit: None,
        };
        let snapshot = self.snapshot();
        let svid = snapshot.x509_authority(now)?.prepare(template, now)?.sign_awaited().await?;
        self.metrics.x509_svid.add(1);
        Ok(svid)
    }

    /// Signs an intermediate CA for a nested server. `ttl` zero asks for as long as `ca_ttl`; it ends with its entry or its authority at the latest.
    /// # Errors
    /// [`CaError::NoX509Authority`], [`CaError::EntryExpired`] or [`CaError::Issue`].
    pub async fn sign_downstream_ca(
        &self,
        public_key: PublicKey,
        ttl: Duration,
        not_after_limit: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<DownstreamCa, CaError> {
        let ttl = capped(or_default(ttl, self.config.ca_ttl), not_after_limit, now)?;
        let template = CaTemplate { trust_domain: self.config.trust_domain.clone(), public_key, ttl };
        let snapshot = self.snapshot();
        let chain = snapshot.x509_authority(now)?.issue_downstream_ca_awaited(template, now).await?;
        self.metrics.x509_ca_svid.add(1);
        Ok(DownstreamCa { chain: chain.to_ders() })
    }

    /// Signs a JWT-SVID. It ends with its TTL, its entry or its key, whichever is first.
    /// # Errors
    /// [`CaError::JwtDisabled`], [`CaError::NoJwtAuthority`], [`CaError::EntryExpired`] or [`CaError::Jwt`].
    pub async fn sign_jwt(&self, request: &JwtSvidRequest<'_>, now: SystemTime) -> Result<JwtSvid, CaError> {
        if self.config.disable_jwt_svids {
            return Err(CaError::JwtDisabled);
        }
        let ttl = or_default(request.ttl, self.config.default_jwt_svid_ttl);
        let ttl = capped(ttl, request.not_after_limit, now)?;
        let snapshot = self.snapshot();
        let key = snapshot.jwt_authority(now)?;
        let jti = request.include_jti.then(new_jti);
        let signed = sign_jwt_svid_awaited(key, request.id, request.audience, ttl, now, jti.as_deref());
        let svid = signed.await?;
        self.metrics.jwt_svid.add(1);
        Ok(svid)
    }

    /// Signs an SVID that nobody gets, to see whether signing works.
    /// # Errors
    /// What a request would meet.
    pub async fn check_signing(&self, now: SystemTime) -> Result<(), CaError> {
        let key = LocalKey::generate(KeyType::EcP256)?;
        let id = SpiffeId::from_parts(self.config.trust_domain.as_str(), "/for/health/check/only")
            .expect("a constant path");
        let request =
            X509SvidRequest { id: &id, ttl: Duration::from_secs(60), dns_names: &[], not_after_limit: None };
        let public_key = PublicKey::of(&key).map_err(IssueError::from)?;
        self.sign_workload_x509(&request, public_key, now).await.map(drop)
    }
}
