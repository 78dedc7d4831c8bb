-- Relationships with other trust domains that were made at run time.
-- `bundle_endpoint_profile` is https_web or https_spiffe; `endpoint_spiffe_id` '' with https_web.
CREATE TABLE svid_federation (
    row                     INTEGER PRIMARY KEY AUTOINCREMENT,
    trust_domain            TEXT    NOT NULL UNIQUE,
    bundle_endpoint_url     TEXT    NOT NULL,
    bundle_endpoint_profile TEXT    NOT NULL,
    endpoint_spiffe_id      TEXT    NOT NULL
) STRICT;

-- Bundles that are as their trust domain's endpoint gave them. A bundle that was set by hand has no row.
-- `sequence_number` is NULL where the document states none. `confirmed_at`: when the endpoint last gave the same; written
-- now and then only.
CREATE TABLE svid_bundle_fetches (
    trust_domain    TEXT    PRIMARY KEY REFERENCES svid_bundles (trust_domain) ON DELETE CASCADE,
    sequence_number INTEGER,
    fetched_at      INTEGER NOT NULL,
    confirmed_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The refresh hint that the bundle endpoint last served with this bundle: another one is a change of the document.
ALTER TABLE svid_bundles ADD COLUMN served_hint INTEGER NOT NULL DEFAULT 0;
