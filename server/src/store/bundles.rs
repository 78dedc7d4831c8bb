//! Bundles: one row per authority, so that servers never fight over a blob.

use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest;
use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::clock::unix_seconds;
use svid_core::id::TrustDomain;

use super::codec::json;
use super::db::{Conn, Sql, args};
use super::entries;
use super::metrics::Operation;
use super::writer::{Tx, Write};
use super::{AuthorityRef, BundleMask, DeleteMode, Kind, Store, StoreError};

const X509: i64 = 1;
const JWT: i64 = 2;

/// Reads one bundle, in one statement and so as it was at one moment; authorities come in the order in which they
/// were added.
pub(super) async fn read(conn: &mut Conn, name: &str) -> Result<Option<Bundle>, StoreError> {
    let sql = "SELECT refresh_hint, sequence_number, kind, key_id, data, expires_at, tainted
         FROM svid_bundles AS bundle LEFT JOIN svid_authorities AS authority
             ON authority.trust_domain = bundle.trust_domain
         WHERE bundle.trust_domain = $1 ORDER BY authority.row";
    let rows = conn.fetch_all(sql, args![name]).await?;
    let Some(head) = rows.first() else { return Ok(None) };
    let bad = |why: &dyn std::fmt::Display| StoreError::corrupt("bundle", why);
    let mut bundle = Bundle::empty(name.parse::<TrustDomain>().map_err(|e| bad(&e))?);
    bundle.refresh_hint = Duration::from_secs(head.get::<i64>(0)?.unsigned_abs());
    bundle.sequence_number = head.get::<i64>(1)?.cast_unsigned();
    for row in &rows {
        let Some(kind) = row.get::<Option<i64>>(2)? else { continue }; // no authority at all
        let data: &[u8] = row.get(4)?;
        let tainted: bool = row.get(6)?;
        if kind == X509 {
            let mut authority = X509Authority::from_der(data).map_err(|e| bad(&e))?;
            authority.tainted = tainted;
            bundle.x509_authorities.push(authority);
        } else {
            let (key_id, expires_at) = (row.get(3)?, row.get(5)?);
            bundle.jwt_authorities.push(JwtAuthority {
                key_id,
                public_key: data.into(),
                expires_at,
                tainted,
            });
        }
    }
    Ok(Some(bundle))
}

/// True if the bundle is there.
async fn exists(tx: &mut Tx<'_>, name: &str) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM svid_bundles WHERE trust_domain = $1)";
    tx.conn.fetch_one(sql, args![name]).await?.get(0)
}

fn x509_key_id(authority: &X509Authority) -> String {
    hex::encode(digest::digest(&digest::SHA256, authority.der()))
}

/// Adds authorities that are not there yet; returns how many were new.
async fn add(
    tx: &mut Tx<'_>,
    name: &str,
    x509: &[X509Authority],
    jwt: &[JwtAuthority],
) -> Result<u64, StoreError> {
    let mut added = 0;
    for authority in x509 {
        let ends = unix_seconds(authority.parsed().life().not_after);
        added += add_one(tx, name, (X509, &x509_key_id(authority)), authority.der(), ends, authority.tainted)
            .await?;
    }
    for key in jwt {
        added += add_one(tx, name, (JWT, &key.key_id), &key.public_key, key.expires_at, key.tainted).await?;
    }
    Ok(added)
}

async fn add_one(
    tx: &mut Tx<'_>,
    name: &str,
    (kind, key_id): (i64, &str),
    data: &[u8],
    expires_at: i64,
    tainted: bool,
) -> Result<u64, StoreError> {
    let sql = "INSERT INTO svid_authorities (trust_domain, kind, key_id, data, expires_at, tainted)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    tx.conn.execute(sql, args![name, kind, key_id, data, expires_at, tainted]).await
}

async fn clear(tx: &mut Tx<'_>, name: &str, kind: i64) -> Result<(), StoreError> {
    let sql = "DELETE FROM svid_authorities WHERE trust_domain = $1 AND kind = $2";
    tx.conn.execute(sql, args![name, kind]).await.map(drop)
}

/// Writes a bundle's own row; true if it was new.
async fn put_head(tx: &mut Tx<'_>, name: &str, hint: Duration, sequence: u64) -> Result<bool, StoreError> {
    let sql = "INSERT INTO svid_bundles (trust_domain, refresh_hint, sequence_number) VALUES ($1, $2, $3)
         ON CONFLICT DO NOTHING";
    let args = args![name, hint.as_secs().cast_signed(), sequence.cast_signed()];
    Ok(tx.conn.execute(sql, args).await? > 0)
}

/// The bundle after a change, which goes to the log.
async fn changed(tx: &mut Tx<'_>, name: &str) -> Result<Result<Bundle, StoreError>, StoreError> {
    tx.log(Kind::Bundle, name);
    Ok(read(tx.conn, name).await?.ok_or(StoreError::NotFound("bundle")))
}

async fn count_up(tx: &mut Tx<'_>, name: &str) -> Result<(), StoreError> {
    let sql = "UPDATE svid_bundles SET sequence_number = sequence_number + 1 WHERE trust_domain = $1";
    tx.conn.execute(sql, args![name]).await.map(drop)
}

/// Adds to a bundle, which is created if need be. The sequence number grows only if something was added.
pub(super) struct Append {
    pub(super) trust_domain: TrustDomain,
    pub(super) x509: Vec<X509Authority>,
    pub(super) jwt: Vec<JwtAuthority>,
}

#[async_trait]
impl Write for Append {
    type Out = Result<Bundle, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let name = self.trust_domain.as_str();
        let is_new = put_head(tx, name, Duration::ZERO, 0).await?;
        let added = add(tx, name, &self.x509, &self.jwt).await?;
        if added > 0 && !is_new {
            count_up(tx, name).await?;
        }
        if added > 0 || is_new {
            return changed(tx, name).await;
        }
        Ok(read(tx.conn, name).await?.ok_or(StoreError::NotFound("bundle")))
    }
}

/// Which rows a write of a whole bundle expects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// None: creation.
    Absent,
    /// One: update.
    Present,
    /// Either.
    Any,
}

pub(super) struct Put {
    pub(super) bundle: Bundle,
    pub(super) mask: BundleMask,
    pub(super) expect: Expect,
}

#[async_trait]
impl Write for Put {
    type Out = Result<Bundle, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let name = self.bundle.trust_domain.as_str();
        let exists = exists(tx, name).await?;
        match self.expect {
            Expect::Absent if exists => return Ok(Err(StoreError::AlreadyExists("bundle"))),
            Expect::Present if !exists => return Ok(Err(StoreError::NotFound("bundle"))),
            _ => {}
        }
        put_head(tx, name, self.bundle.refresh_hint, self.bundle.sequence_number).await?;
        // From here on it is what the caller says, and no longer what the trust domain's endpoint gave.
        tx.conn.execute("DELETE FROM svid_bundle_fetches WHERE trust_domain = $1", args![name]).await?;
        let sql = "UPDATE svid_bundles SET refresh_hint = CASE WHEN $2 THEN $3 ELSE refresh_hint END,
                 sequence_number = CASE WHEN $4 THEN $5 ELSE sequence_number END WHERE trust_domain = $1";
        let args = args![
            name,
            self.mask.refresh_hint,
            self.bundle.refresh_hint.as_secs().cast_signed(),
            self.mask.sequence_number,
            self.bundle.sequence_number.cast_signed(),
        ];
        tx.conn.execute(sql, args).await?;
        if self.mask.x509_authorities {
            clear(tx, name, X509).await?;
            add(tx, name, &self.bundle.x509_authorities, &[]).await?;
        }
        if self.mask.jwt_authorities {
            clear(tx, name, JWT).await?;
            add(tx, name, &[], &self.bundle.jwt_authorities).await?;
        }
        changed(tx, name).await
    }
}

pub(super) struct Delete {
    pub(super) trust_domain: TrustDomain,
    pub(super) mode: DeleteMode,
}

#[async_trait]
impl Write for Delete {
    type Out = Result<(), StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let name = self.trust_domain.as_str();
        if !exists(tx, name).await? {
            return Ok(Err(StoreError::NotFound("bundle")));
        }
        let sql = "SELECT id FROM svid_entry_federates JOIN svid_entries ON row = entry_row WHERE trust_domain = $1";
        let federated: Vec<String> = tx.conn.fetch_column(sql, args![name]).await?;
        match self.mode {
            DeleteMode::Restrict if !federated.is_empty() => {
                return Ok(Err(StoreError::BundleInUse(federated.len() as u64)));
            }
            DeleteMode::Restrict => {}
            DeleteMode::Delete => drop(entries::delete(tx, &json(&federated)?).await?),
            DeleteMode::Dissociate => dissociate(tx, name, federated).await?,
        }
        tx.conn.execute("DELETE FROM svid_bundles WHERE trust_domain = $1", args![name]).await?;
        tx.log(Kind::Bundle, name);
        Ok(Ok(()))
    }
}

/// Takes the trust domain out of entries' lists. They get a new revision, so that agents hear of it.
async fn dissociate(tx: &mut Tx<'_>, name: &str, ids: Vec<String>) -> Result<(), StoreError> {
    let sql = Sql::each(
        "UPDATE svid_entries SET revision = revision + 1, data = json_set(data, '$.f',
             (SELECT json_group_array(value) FROM json_each(data, '$.f') WHERE value != $1))
         WHERE row IN (SELECT entry_row FROM svid_entry_federates WHERE trust_domain = $1)",
        "UPDATE svid_entries SET revision = revision + 1,
             data = jsonb_set(data::jsonb, '{f}', (data::jsonb -> 'f') - $1)::text
         WHERE row IN (SELECT entry_row FROM svid_entry_federates WHERE trust_domain = $1)",
    );
    tx.conn.execute(sql, args![name]).await?;
    tx.conn.execute("DELETE FROM svid_entry_federates WHERE trust_domain = $1", args![name]).await?;
    for id in ids {
        tx.log(Kind::Entry, id);
    }
    Ok(())
}

/// Marks an authority as no longer to be used, or removes one that is marked.
pub(super) struct Discredit {
    pub(super) trust_domain: TrustDomain,
    pub(super) authority: AuthorityRef,
    pub(super) revoke: bool,
}

#[async_trait]
impl Write for Discredit {
    type Out = Result<Bundle, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let name = self.trust_domain.as_str();
        let Some(bundle) = read(tx.conn, name).await? else {
            return Ok(Err(StoreError::NotFound("bundle")));
        };
        let keys = match self.keys(&bundle) {
            Ok(keys) => keys,
            Err(refused) => return Ok(Err(refused)),
        };
        let sql = match self.revoke {
            false => {
                "UPDATE svid_authorities SET tainted = true WHERE trust_domain = $1 AND kind = $2 AND key_id = $3"
            }
            true => "DELETE FROM svid_authorities WHERE trust_domain = $1 AND kind = $2 AND key_id = $3",
        };
        for (kind, key_id) in keys {
            tx.conn.execute(sql, args![name, kind, &key_id]).await?;
        }
        count_up(tx, name).await?;
        changed(tx, name).await
    }
}

impl Discredit {
    /// The rows that are meant, checked to be in the right state: tainting is done once, and comes before revoking.
    fn keys(&self, bundle: &Bundle) -> Result<Vec<(i64, String)>, StoreError> {
        let (found, words): (Vec<(i64, String, bool)>, [&'static str; 3]) = match &self.authority {
            AuthorityRef::X509(id) => (
                bundle
                    .x509_authorities
                    .iter()
                    .filter(|authority| authority.parsed().subject_key_id_hex().as_ref() == Some(id))
                    .map(|authority| (X509, x509_key_id(authority), authority.tainted))
                    .collect(),
                [
                    "ca with the provided subject key ID",
                    "root CA is already tainted",
                    "it is not possible to revoke an untainted root CA",
                ],
            ),
            AuthorityRef::Jwt(id) => (
                bundle
                    .jwt_authority(id)
                    .map(|key| (JWT, key.key_id.clone(), key.tainted))
                    .into_iter()
                    .collect(),
                [
                    "JWT Key with the provided key ID",
                    "key is already tainted",
                    "it is not possible to revoke an untainted key",
                ],
            ),
        };
        if found.is_empty() {
            return Err(StoreError::NotFound(words[0]));
        }
        match (self.revoke, found.iter().any(|(_, _, tainted)| *tainted), found.iter().all(|(_, _, t)| *t)) {
            (false, true, _) => Err(StoreError::Conflict(words[1])),
            (true, _, false) => Err(StoreError::Conflict(words[2])),
            _ => Ok(found.into_iter().map(|(kind, key_id, _)| (kind, key_id)).collect()),
        }
    }
}

/// Removes authorities that ended before a moment. A kind that would have none left keeps them, whatever the other does.
pub(super) struct Prune {
    pub(super) trust_domain: TrustDomain,
    pub(super) ended_before: i64,
}

#[async_trait]
impl Write for Prune {
    type Out = Result<bool, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let name = self.trust_domain.as_str();
        // A JWT key whose end is not known stays (SPIRE takes it for expired).
        let sql =
            "DELETE FROM svid_authorities WHERE trust_domain = $1 AND expires_at > 0 AND expires_at < $2
                 AND kind IN (SELECT kind FROM svid_authorities WHERE trust_domain = $1 GROUP BY kind
                     HAVING count(*) > count(*) FILTER (WHERE expires_at > 0 AND expires_at < $2))";
        if tx.conn.execute(sql, args![name, self.ended_before]).await? > 0 {
            count_up(tx, name).await?;
            tx.log(Kind::Bundle, name);
            return Ok(Ok(true));
        }
        // What is left and has ended is all that its kind has.
        let sql = "SELECT EXISTS (SELECT 1 FROM svid_authorities
                 WHERE trust_domain = $1 AND expires_at > 0 AND expires_at < $2)";
        let ended = tx.conn.fetch_one(sql, args![name, self.ended_before]).await?;
        Ok(match ended.get(0)? {
            true => Err(StoreError::Conflict("would prune all authorities of a kind")),
            false => Ok(false),
        })
    }
}

impl Store {
    /// Reads a bundle from the database (the directory has it in memory).
    /// # Errors
    /// Only the database's.
    pub async fn bundle(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
        let work = async {
            let mut reader = self.0.reads.get().await?;
            let read = read(&mut reader.conn, trust_domain.as_str());
            let bundle = self.0.connector.limit(read).await?;
            reader.done();
            Ok(bundle)
        };
        self.counted(Operation::BundleFetch, work).await
    }

    /// Adds authorities to a bundle, which is created if need be. What is there already stays as it is.
    /// # Errors
    /// Only the database's.
    pub async fn append_bundle(
        &self,
        trust_domain: &TrustDomain,
        x509: Vec<X509Authority>,
        jwt: Vec<JwtAuthority>,
    ) -> Result<Bundle, StoreError> {
        self.counted(Operation::BundleAppend, async {
            self.write(Append { trust_domain: trust_domain.clone(), x509, jwt }).await?
        })
        .await
    }

    /// Creates a bundle.
    /// # Errors
    /// [`StoreError::AlreadyExists`].
    pub async fn create_bundle(&self, bundle: Bundle) -> Result<Bundle, StoreError> {
        self.counted(Operation::BundleCreate, async {
            self.write(Put { bundle, mask: BundleMask::ALL, expect: Expect::Absent }).await?
        })
        .await
    }

    /// Replaces parts of a bundle.
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn update_bundle(&self, bundle: Bundle, mask: BundleMask) -> Result<Bundle, StoreError> {
        self.counted(Operation::BundleUpdate, async {
            self.write(Put { bundle, mask, expect: Expect::Present }).await?
        })
        .await
    }

    /// Creates or replaces a bundle.
    /// # Errors
    /// Only the database's.
    pub async fn set_bundle(&self, bundle: Bundle) -> Result<Bundle, StoreError> {
        self.counted(Operation::BundleSet, async {
            self.write(Put { bundle, mask: BundleMask::ALL, expect: Expect::Any }).await?
        })
        .await
    }

    /// Deletes a bundle.
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::BundleInUse`] in restrict mode.
    pub async fn delete_bundle(
        &self,
        trust_domain: &TrustDomain,
        mode: DeleteMode,
    ) -> Result<(), StoreError> {
        self.counted(Operation::BundleDelete, async {
            self.write(Delete { trust_domain: trust_domain.clone(), mode }).await?
        })
        .await
    }

    /// Marks an authority as no longer to be used.
    /// # Errors
    /// [`StoreError::NotFound`] for the bundle or the authority; [`StoreError::Conflict`] if it is marked already.
    pub async fn taint_authority(
        &self,
        trust_domain: &TrustDomain,
        authority: AuthorityRef,
    ) -> Result<Bundle, StoreError> {
        let operation = match &authority {
            AuthorityRef::X509(_) => Operation::X509Taint,
            AuthorityRef::Jwt(_) => Operation::JwtTaint,
        };
        let work = async {
            self.write(Discredit { trust_domain: trust_domain.clone(), authority, revoke: false }).await?
        };
        self.counted(operation, work).await
    }

    /// Removes a tainted authority.
    /// # Errors
    /// [`StoreError::NotFound`] for the bundle or the authority; [`StoreError::Conflict`] if it is not tainted.
    pub async fn revoke_authority(
        &self,
        trust_domain: &TrustDomain,
        authority: AuthorityRef,
    ) -> Result<Bundle, StoreError> {
        let operation = match &authority {
            AuthorityRef::X509(_) => Operation::X509Revoke,
            AuthorityRef::Jwt(_) => Operation::JwtRevoke,
        };
        self.counted(operation, async {
            self.write(Discredit { trust_domain: trust_domain.clone(), authority, revoke: true }).await?
        })
        .await
    }

    /// Removes authorities that ended before a moment; true if something went.
    /// # Errors
    /// [`StoreError::Conflict`] if all that could go is the whole of the X.509 or of the JWT authorities.
    pub async fn prune_bundle(
        &self,
        trust_domain: &TrustDomain,
        ended_before: i64,
    ) -> Result<bool, StoreError> {
        self.counted(Operation::BundlePrune, async {
            self.write(Prune { trust_domain: trust_domain.clone(), ended_before }).await?
        })
        .await
    }
}
