//! Federation: relationships that were made at run time, and the bundles that were fetched because of them.

use std::collections::HashMap;

use async_trait::async_trait;
use svid_core::bundle::Bundle;
use svid_core::federation::{EndpointProfile, Relationship};
use svid_core::id::{SpiffeId, TrustDomain};

use super::bundles::{self, Expect};
use super::db::{Conn, Row, args};
use super::metrics::Operation;
use super::writer::{Tx, Write};
use super::{
    BundleMask, DeleteMode, FetchRecord, FetchedBundle, Kind, RelationshipMask, Store, StoreError, Stored,
    StoredRelationship, Withdrawn,
};

/// The columns [`from_row`] reads, in its order.
macro_rules! columns {
    () => {
        "row, trust_domain, bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id"
    };
}
/// The schema version from which on there are relationships.
pub(super) const SINCE_VERSION: i64 = 5;
const WHAT: &str = "federation relationship";
/// That the endpoint still gives the same is noted at most this often, in seconds.
const CONFIRM_EVERY: i64 = 600;

fn from_row(row: &Row) -> Result<StoredRelationship, StoreError> {
    let bad = |why: &dyn std::fmt::Display| StoreError::corrupt(WHAT, why);
    let profile = match row.get::<&str>(3)? {
        "https_web" => EndpointProfile::Web,
        "https_spiffe" => EndpointProfile::Spiffe(row.get::<&str>(4)?.parse().map_err(|e| bad(&e))?),
        other => return Err(bad(&format_args!("profile {other:?}"))),
    };
    let relationship = Relationship {
        trust_domain: row.get::<&str>(1)?.parse().map_err(|e| bad(&e))?,
        url: row.get::<&str>(2)?.parse().map_err(|e| bad(&e))?,
        profile,
    };
    Ok(StoredRelationship { row: row.get::<i64>(0)?.unsigned_abs(), relationship })
}

/// Every relationship, in order of creation.
pub(super) async fn read_all(conn: &mut Conn) -> Result<Vec<StoredRelationship>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM svid_federation ORDER BY row");
    conn.fetch_all(sql, &[]).await?.iter().map(from_row).collect()
}

/// The relationship with a trust domain.
pub(super) async fn read(conn: &mut Conn, name: &str) -> Result<Option<StoredRelationship>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM svid_federation WHERE trust_domain = $1");
    conn.fetch_optional(sql, args![name]).await?.as_ref().map(from_row).transpose()
}

/// Writes a relationship that is not there.
pub(super) async fn insert(conn: &mut Conn, relationship: &Relationship) -> Result<(), StoreError> {
    let sql = "INSERT INTO svid_federation
             (trust_domain, bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id)
         VALUES ($1, $2, $3, $4)";
    let Relationship { trust_domain, url, profile } = relationship;
    let id = profile.endpoint_id().map_or("", SpiffeId::as_str);
    conn.execute(sql, args![trust_domain.as_str(), url.as_str(), profile.name(), id]).await.map(drop)
}

/// A bundle that comes with a relationship replaces what is there.
async fn put_bundle(tx: &mut Tx<'_>, bundle: Option<&Bundle>) -> Result<(), StoreError> {
    let Some(bundle) = bundle else { return Ok(()) };
    let put = bundles::Put { bundle: bundle.clone(), mask: BundleMask::ALL, expect: Expect::Any };
    // With `Any` there is nothing to refuse.
    put.run(tx).await?.map(drop)
}

/// The relationship after a change, which goes to the log.
async fn changed(tx: &mut Tx<'_>, name: &str) -> Result<Result<StoredRelationship, StoreError>, StoreError> {
    tx.log(Kind::Federation, name);
    Ok(read(tx.conn, name).await?.ok_or(StoreError::NotFound(WHAT)))
}

struct Create {
    relationship: Relationship,
    bundle: Option<Bundle>,
}

#[async_trait]
impl Write for Create {
    type Out = Result<StoredRelationship, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let name = self.relationship.trust_domain.as_str();
        if read(tx.conn, name).await?.is_some() {
            return Ok(Err(StoreError::AlreadyExists(WHAT)));
        }
        put_bundle(tx, self.bundle.as_ref()).await?;
        insert(tx.conn, &self.relationship).await?;
        changed(tx, name).await
    }
}

struct Update {
    relationship: Relationship,
    mask: RelationshipMask,
    bundle: Option<Bundle>,
}

#[async_trait]
impl Write for Update {
    type Out = Result<StoredRelationship, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let Relationship { trust_domain, url, profile } = &self.relationship;
        let name = trust_domain.as_str();
        if read(tx.conn, name).await?.is_none() {
            return Ok(Err(StoreError::NotFound(WHAT)));
        }
        put_bundle(tx, self.bundle.as_ref()).await?;
        let sql =
            "UPDATE svid_federation SET bundle_endpoint_url = CASE WHEN $2 THEN $3 ELSE bundle_endpoint_url END,
                 bundle_endpoint_profile = CASE WHEN $4 THEN $5 ELSE bundle_endpoint_profile END,
                 endpoint_spiffe_id = CASE WHEN $4 THEN $6 ELSE endpoint_spiffe_id END WHERE trust_domain = $1";
        let id = profile.endpoint_id().map_or("", SpiffeId::as_str);
        let args = args![name, self.mask.url, url.as_str(), self.mask.profile, profile.name(), id];
        tx.conn.execute(sql, args).await?;
        changed(tx, name).await
    }
}

struct Delete {
    trust_domain: TrustDomain,
    withdraw: bool,
}

#[async_trait]
impl Write for Delete {
    type Out = Result<Withdrawn, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let name = self.trust_domain.as_str();
        let sql = "DELETE FROM svid_federation WHERE trust_domain = $1";
        if tx.conn.execute(sql, args![name]).await? == 0 {
            return Ok(Err(StoreError::NotFound(WHAT)));
        }
        tx.log(Kind::Federation, name);
        if !self.withdraw {
            return Ok(Ok(Withdrawn::default()));
        }
        let sql = "SELECT count(*) FROM svid_entry_federates WHERE trust_domain = $1";
        let entries = tx.conn.fetch_one(sql, args![name]).await?.get::<i64>(0)?.unsigned_abs();
        let (trust_domain, mode) = (self.trust_domain.clone(), DeleteMode::Dissociate);
        let bundle = bundles::Delete { trust_domain, mode }.run(tx).await?.is_ok();
        Ok(Ok(Withdrawn { bundle, entries }))
    }
}

/// Where a fetched bundle stands to the one that is stored.
struct StoreFetched(FetchedBundle);

#[async_trait]
impl Write for StoreFetched {
    type Out = Result<Stored, StoreError>;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Out, StoreError> {
        let FetchedBundle { bundle, has_sequence, fetched_for, force, now } = &self.0;
        let name = bundle.trust_domain.as_str();
        if let Some(wanted) = fetched_for
            && read(tx.conn, name).await?.is_none_or(|stored| stored.relationship != *wanted)
        {
            return Ok(Ok(Stored::Ended));
        }
        let stored = bundles::read(tx.conn, name).await?;
        let before = fetched_before(tx.conn, name).await?;
        let offered = has_sequence.then_some(bundle.sequence_number);
        let known = before.and_then(|record| record.sequence_number);
        let same = stored.as_ref().is_some_and(|stored| stored.has_same_content(bundle));
        // What an operator set by hand has no number that the endpoint's could be compared with.
        if let (Some(offered), Some(known), false) = (offered, known, *force)
            && offered < known
        {
            return Ok(Ok(Stored::Older { offered, known }));
        }
        if same && before.is_some() && known == offered {
            return Ok(Ok(Stored::Unchanged));
        }
        if !same {
            put_bundle(tx, Some(bundle)).await?;
        }
        let sequence = offered.map(|number| number.cast_signed().to_string());
        let sql = "INSERT INTO svid_bundle_fetches (trust_domain, sequence_number, fetched_at, confirmed_at)
             VALUES ($1, CAST($2 AS BIGINT), $3, $3) ON CONFLICT (trust_domain) DO UPDATE
             SET sequence_number = CAST($2 AS BIGINT), fetched_at = $3, confirmed_at = $3";
        tx.conn.execute(sql, args![name, sequence.as_deref(), *now]).await?;
        Ok(Ok(match same {
            true => Stored::Unchanged,
            false => Stored::Replaced { same_sequence: offered.is_some() && offered == known },
        }))
    }
}

async fn fetched_before(conn: &mut Conn, name: &str) -> Result<Option<FetchRecord>, StoreError> {
    let sql =
        "SELECT sequence_number, fetched_at, confirmed_at FROM svid_bundle_fetches WHERE trust_domain = $1";
    conn.fetch_optional(sql, args![name]).await?.as_ref().map(record_from_row).transpose()
}

fn record_from_row(row: &Row) -> Result<FetchRecord, StoreError> {
    Ok(FetchRecord {
        sequence_number: row.get::<Option<i64>>(0)?.map(i64::cast_unsigned),
        fetched_at: row.get(1)?,
        confirmed_at: row.get(2)?,
    })
}

struct Confirm {
    trust_domain: TrustDomain,
    now: i64,
}

#[async_trait]
impl Write for Confirm {
    type Out = bool;
    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        let sql =
            "UPDATE svid_bundle_fetches SET confirmed_at = $2 WHERE trust_domain = $1 AND confirmed_at < $3";
        let args = args![self.trust_domain.as_str(), self.now, self.now - CONFIRM_EVERY];
        tx.conn.execute(sql, args).await?;
        let sql = "SELECT EXISTS (SELECT 1 FROM svid_bundle_fetches WHERE trust_domain = $1)";
        tx.conn.fetch_one(sql, args![self.trust_domain.as_str()]).await?.get(0)
    }
}

struct ServeHint {
    trust_domain: TrustDomain,
    hint: i64,
}

#[async_trait]
impl Write for ServeHint {
    type Out = ();
    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let name = self.trust_domain.as_str();
        let sql = "UPDATE svid_bundles SET served_hint = $2, sequence_number = sequence_number + 1
             WHERE trust_domain = $1 AND served_hint != $2";
        if tx.conn.execute(sql, args![name, self.hint]).await? > 0 {
            tx.log(Kind::Bundle, name);
        }
        Ok(())
    }
}

impl Store {
    /// Creates a relationship; a bundle that comes with it replaces the stored one.
    /// # Errors
    /// [`StoreError::AlreadyExists`].
    pub async fn create_relationship(
        &self,
        relationship: Relationship,
        bundle: Option<Bundle>,
    ) -> Result<StoredRelationship, StoreError> {
        self.counted(Operation::RelationshipCreate, async {
            self.refuse_own(&relationship.trust_domain)?;
            self.write(Create { relationship, bundle }).await?
        })
        .await
    }

    /// Changes the parts of a relationship that `mask` names; a bundle that comes with it replaces the stored one.
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn update_relationship(
        &self,
        relationship: Relationship,
        mask: RelationshipMask,
        bundle: Option<Bundle>,
    ) -> Result<StoredRelationship, StoreError> {
        self.counted(Operation::RelationshipUpdate, async {
            self.refuse_own(&relationship.trust_domain)?;
            self.write(Update { relationship, mask, bundle }).await?
        })
        .await
    }

    /// Ends a relationship. With `withdraw` the trust domain's bundle goes as well, out of entries too.
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_relationship(
        &self,
        trust_domain: &TrustDomain,
        withdraw: bool,
    ) -> Result<Withdrawn, StoreError> {
        self.counted(Operation::RelationshipDelete, async {
            self.refuse_own(trust_domain)?;
            self.write(Delete { trust_domain: trust_domain.clone(), withdraw }).await?
        })
        .await
    }

    /// Takes over a bundle as an endpoint gave it, unless it is older than the last one from there.
    /// # Errors
    /// Only the database's, and [`StoreError::Conflict`] for the server's own trust domain.
    pub async fn store_fetched(&self, fetched: FetchedBundle) -> Result<Stored, StoreError> {
        self.counted(Operation::BundleSet, async {
            self.refuse_own(&fetched.bundle.trust_domain)?;
            self.write(StoreFetched(fetched)).await?
        })
        .await
    }

    /// Notes that an endpoint still gives what is stored; every ten minutes at most.
    /// # Errors
    /// Only the database's.
    pub async fn confirm_fetched(&self, trust_domain: &TrustDomain, now: i64) -> Result<bool, StoreError> {
        self.write(Confirm { trust_domain: trust_domain.clone(), now }).await
    }

    /// When bundles were fetched; those that were set by hand are not among them.
    /// # Errors
    /// Only the database's.
    pub async fn fetch_records(&self) -> Result<HashMap<TrustDomain, FetchRecord>, StoreError> {
        let sql = "SELECT sequence_number, fetched_at, confirmed_at, trust_domain FROM svid_bundle_fetches";
        let mut reader = self.0.reads.get().await?;
        let rows = self.0.connector.limit(reader.conn.fetch_all(sql, &[])).await?;
        reader.done();
        let named = |row: &Row| {
            let name = row.get::<&str>(3)?.parse();
            Ok((name.map_err(|e| StoreError::corrupt("fetch", e))?, record_from_row(row)?))
        };
        rows.iter().map(named).collect()
    }

    /// Notes the refresh hint that the bundle endpoint serves from now on: with another one the document changes, and so
    /// its sequence number has to grow.
    /// # Errors
    /// Only the database's.
    pub async fn serve_hint(&self, seconds: u64) -> Result<(), StoreError> {
        let hint = i64::try_from(seconds).unwrap_or(i64::MAX);
        self.write(ServeHint { trust_domain: self.0.trust_domain.clone(), hint }).await
    }

    /// Whatever a caller did not check: nobody else says what our own authorities are.
    fn refuse_own(&self, trust_domain: &TrustDomain) -> Result<(), StoreError> {
        match *trust_domain == self.0.trust_domain {
            true => Err(StoreError::Conflict("the server's own trust domain is not federated with")),
            false => Ok(()),
        }
    }
}
