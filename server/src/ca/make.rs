//! Preparing and activating: what brings an authority into its slot, and from there to signing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::clock::unix_seconds;
use svid_core::jwt::{JwtSigner, new_kid};
use svid_core::key::{KeyType, Signer};
use svid_core::x509::is_issued_by;
use svid_plugin_api::{PluginCode, PluginError};
use tokio::time::Instant;

use super::journal::Journal;
use super::manager::{Manager, whole_seconds};
use super::metrics::outcome;
use super::prepare::{self, Minted};
use super::slots::{AuthorityInfo, AuthorityKind, Held, SlotId, Status};
use super::{CaError, log};

/// How long a key manager may take to make a key.
const KEY_DEADLINE: Duration = Duration::from_secs(60);

impl Manager {
    /// Prepares an authority that no upstream has to sign.
    pub(super) async fn prepare(&mut self, kind: AuthorityKind) -> Result<AuthorityInfo, CaError> {
        let begun = Instant::now();
        let prepared = match kind {
            AuthorityKind::X509 => self.prepare_x509().await,
            AuthorityKind::Jwt => self.prepare_jwt().await,
        };
        self.metrics.prepare(kind).done(outcome(&prepared), begun.elapsed());
        prepared
    }

    /// A new key in a slot. Who keeps keys elsewhere may be slow, and the whole CA waits here.
    pub(super) async fn new_key(
        &self,
        slot: SlotId,
        kind: AuthorityKind,
        key_type: KeyType,
    ) -> Result<Arc<dyn Signer>, CaError> {
        // Without the database the key would be for nothing, and each attempt would make one more.
        self.store.bundle().await?;
        let made = tokio::time::timeout(KEY_DEADLINE, self.keys.generate(slot.key_id(kind), key_type)).await;
        let late = || {
            let words = format!("the key manager made no key within {} seconds", KEY_DEADLINE.as_secs());
            PluginError::new(PluginCode::DeadlineExceeded, words)
        };
        Ok(made.unwrap_or_else(|_| Err(late()))?)
    }

    async fn prepare_x509(&mut self) -> Result<AuthorityInfo, CaError> {
        let (slot, now) = (self.state.x509.free(), whole_seconds(self.clock.now()));
        self.discard_prepared(AuthorityKind::X509);
        tracing::debug!(%slot, "Preparing X509 CA");
        let signer = self.new_key(slot, AuthorityKind::X509, self.config.ca_key_type).await?;
        let minted = prepare::self_signed(&self.config, signer, now).await?;
        self.put_x509(slot, now, &minted).await
    }

    /// Publishes a new authority's roots, writes it down and puts it into its slot.
    pub(super) async fn put_x509(
        &mut self,
        slot: SlotId,
        issued_at: SystemTime,
        minted: &Minted,
    ) -> Result<AuthorityInfo, CaError> {
        let authority = &minted.authority;
        self.store.append_to_bundle(&minted.roots, &[]).await?;
        self.note_published(&minted.roots);
        self.spread(AuthorityKind::X509, self.published_since(minted)).await;
        let upstream_id = authority.cert().authority_key_id_hex().filter(|_| self.upstream.is_some());
        let info = AuthorityInfo {
            upstream_authority_id: upstream_id.unwrap_or_default(),
            ..new_info(slot, issued_at, authority.life().not_after, authority.id_hex())
        };
        let mut journal = self.journal.clone();
        journal.append_x509(&info, authority.cert_der(), authority.chain());
        journal.clear_request();
        self.save(journal).await?;
        self.state.x509.put(Held { info: info.clone(), key: Some(authority.clone()) });
        self.publish();
        log::prepared(AuthorityKind::X509, &info, self.upstream.is_none());
        Ok(info)
    }

    /// Since when a root that an authority leads to is known to agents.
    fn published_since(&self, minted: &Minted) -> Instant {
        let authority = &minted.authority;
        let last = authority.chain().last().map_or(authority.cert_der(), Vec::as_slice);
        let roots = minted.roots.iter().filter(|root| is_issued_by(last, root.der()));
        let since = roots.filter_map(|root| self.roots.published.get(root.der()));
        since.min().copied().unwrap_or_else(Instant::now)
    }

    async fn prepare_jwt(&mut self) -> Result<AuthorityInfo, CaError> {
        let (slot, now) = (self.state.jwt.free(), whole_seconds(self.clock.now()));
        self.discard_prepared(AuthorityKind::Jwt);
        tracing::debug!(%slot, "Preparing JWT key");
        let signer = self.new_key(slot, AuthorityKind::Jwt, self.config.jwt_key_type).await?;
        let not_after = now + self.config.ca_ttl;
        let key = JwtSigner::new(new_kid()?, signer, not_after, self.config.jwt_issuer.clone());
        let published = published_key(&key, not_after);
        self.store.append_to_bundle(&[], std::slice::from_ref(&published)).await?;
        self.spread(AuthorityKind::Jwt, Instant::now()).await;
        let info = new_info(slot, now, not_after, key.key_id().to_owned());
        let mut journal = self.journal.clone();
        journal.append_jwt(&info, &published.public_key);
        self.save(journal).await?;
        self.state.jwt.put(Held { info: info.clone(), key: Some(Arc::new(key)) });
        self.publish();
        log::prepared(AuthorityKind::Jwt, &info, true);
        Ok(info)
    }

    /// Lets the prepared authority take over.
    pub(super) async fn activate(&mut self, kind: AuthorityKind) -> Result<AuthorityInfo, CaError> {
        let next = self.state.state(kind).prepared.ok_or(CaError::NotPrepared)?;
        if !self.is_published(kind).await? {
            self.discard_prepared(kind);
            return Err(CaError::NotPublished);
        }
        let mut journal = self.journal.clone();
        match kind {
            AuthorityKind::X509 => journal.activate_x509(&next.authority_id),
            AuthorityKind::Jwt => journal.activate_jwt(&next.authority_id),
        }
        self.save(journal).await?;
        let activated = match kind {
            AuthorityKind::X509 => self.state.x509.activate(),
            AuthorityKind::Jwt => self.state.jwt.activate(),
        };
        let info = self.state.state(kind).active.filter(|_| activated).ok_or(CaError::NotPrepared)?;
        self.publish();
        let now = self.clock.now();
        log::activated(kind, &info, &self.config.trust_domain, now);
        self.metrics.activated(kind);
        self.show_active(kind, &info, now);
        Ok(info)
    }

    /// True if the prepared authority is in the bundle still. A database may lose what it had: a restored copy, a
    /// failover to a replica that was behind.
    async fn is_published(&self, kind: AuthorityKind) -> Result<bool, CaError> {
        let bundle = self.store.bundle().await?;
        let Some(bundle) = bundle else { return Ok(false) };
        let prepared = self.state.x509.prepared().and_then(|held| held.key.as_ref());
        Ok(match (kind, prepared) {
            (AuthorityKind::Jwt, _) => {
                let key = self.state.jwt.prepared().and_then(|held| held.key.as_ref());
                key.is_some_and(|key| bundle.jwt_authority(key.key_id()).is_some())
            }
            (AuthorityKind::X509, Some(authority)) if authority.chain().is_empty() => {
                bundle.x509_authorities.iter().any(|root| root.der() == authority.cert_der())
            }
            (AuthorityKind::X509, Some(authority)) => {
                let last = authority.chain().last().map_or(&[][..], Vec::as_slice);
                bundle.x509_authorities.iter().any(|root| is_issued_by(last, root.der()))
            }
            (AuthorityKind::X509, None) => false,
        })
    }

    /// Puts authorities that sign back into a bundle that lost them. None of them was revoked: only old ones can be.
    pub(super) async fn put_back(&self, bundle: &Bundle) {
        let (mut x509, mut jwt) = (Vec::new(), Vec::new());
        if let Some(authority) = self.state.x509.active().and_then(|held| held.key.as_ref())
            && authority.chain().is_empty()
            && !bundle.x509_authorities.iter().any(|root| root.der() == authority.cert_der())
        {
            x509.extend(X509Authority::from_der(authority.cert_der()).ok());
        }
        if let Some(held) = self.state.jwt.active()
            && let Some(key) = &held.key
            && bundle.jwt_authority(key.key_id()).is_none()
        {
            jwt.push(published_key(key, held.info.not_after));
        }
        if x509.is_empty() && jwt.is_empty() {
            return;
        }
        match self.store.append_to_bundle(&x509, &jwt).await {
            Ok(()) => tracing::error!(
                "The bundle had lost the authorities that this server signs with, and has them again: the database went \
                 back to an older state. Agents may have been refused meanwhile"
            ),
            Err(error) => {
                tracing::error!(%error, "The bundle lacks the authorities that this server signs with")
            }
        }
    }

    pub(super) fn discard_prepared(&mut self, kind: AuthorityKind) {
        match kind {
            AuthorityKind::X509 => self.state.x509.discard_prepared(),
            AuthorityKind::Jwt => self.state.jwt.discard_prepared(),
        }
        self.publish();
    }

    /// Saves a journal, and keeps it once it is saved.
    pub(super) async fn save(&mut self, journal: Journal) -> Result<(), CaError> {
        self.store.save_journal(&journal.encode()).await?;
        self.journal = journal;
        Ok(())
    }
}

fn published_key(key: &JwtSigner, not_after: SystemTime) -> JwtAuthority {
    JwtAuthority {
        key_id: key.key_id().to_owned(),
        public_key: key.public_key_der().into(),
        expires_at: unix_seconds(not_after),
        tainted: false,
    }
}

fn new_info(
    slot: SlotId,
    issued_at: SystemTime,
    not_after: SystemTime,
    authority_id: String,
) -> AuthorityInfo {
    let status = Status::Prepared;
    AuthorityInfo { slot, status, issued_at, not_after, authority_id, upstream_authority_id: String::new() }
}
