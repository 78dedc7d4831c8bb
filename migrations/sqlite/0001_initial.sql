-- The change log: one line for each write to entries, nodes, bundles and federation, in commit order, without gaps.
CREATE TABLE svid_log_counter (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    epoch     BLOB    NOT NULL,
    seq       INTEGER NOT NULL,
    pruned_to INTEGER NOT NULL
) STRICT;
INSERT INTO svid_log_counter (one, epoch, seq, pruned_to) VALUES (1, randomblob(16), 0, 0);

CREATE TABLE svid_log (
    seq  INTEGER PRIMARY KEY,
    tag  INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    key  TEXT    NOT NULL,
    at   INTEGER NOT NULL
) STRICT;

-- An entry is one row: what only the directory looks at is JSON in `data`.
-- `similar` is SHA-256 of SPIFFE ID, parent and sorted selectors: two entries never agree in all three.
CREATE TABLE svid_entries (
    row        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    spiffe_id  TEXT    NOT NULL,
    parent_id  TEXT    NOT NULL,
    similar    BLOB    NOT NULL UNIQUE,
    expires_at INTEGER NOT NULL,
    revision   INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    data       TEXT    NOT NULL
) STRICT;
CREATE INDEX svid_entries_by_expiry ON svid_entries (expires_at) WHERE expires_at > 0;

CREATE TABLE svid_bundles (
    trust_domain    TEXT    PRIMARY KEY,
    refresh_hint    INTEGER NOT NULL,
    sequence_number INTEGER NOT NULL
) STRICT;

-- kind 1: X.509, `key_id` is SHA-256 of the certificate; kind 2: JWT, `key_id` is the kid.
CREATE TABLE svid_authorities (
    row          INTEGER PRIMARY KEY AUTOINCREMENT,
    trust_domain TEXT    NOT NULL REFERENCES svid_bundles (trust_domain) ON DELETE CASCADE,
    kind         INTEGER NOT NULL,
    key_id       TEXT    NOT NULL,
    data         BLOB    NOT NULL,
    expires_at   INTEGER NOT NULL,
    tainted      INTEGER NOT NULL,
    UNIQUE (trust_domain, kind, key_id)
) STRICT;

CREATE TABLE svid_entry_federates (
    trust_domain TEXT    NOT NULL REFERENCES svid_bundles (trust_domain),
    entry_row    INTEGER NOT NULL REFERENCES svid_entries (row) ON DELETE CASCADE,
    PRIMARY KEY (trust_domain, entry_row)
) STRICT, WITHOUT ROWID;
CREATE INDEX svid_entry_federates_by_entry ON svid_entry_federates (entry_row);

-- `serial` '' is a banned node; `new_serial` '' is no renewal under way. `selectors` is a JSON array of type:value.
-- `alias_entry` is the entry that came with the join token, and goes with the node.
CREATE TABLE svid_nodes (
    row              INTEGER PRIMARY KEY AUTOINCREMENT,
    spiffe_id        TEXT    NOT NULL UNIQUE,
    attestation_type TEXT    NOT NULL,
    serial           TEXT    NOT NULL,
    expires_at       INTEGER NOT NULL,
    new_serial       TEXT    NOT NULL DEFAULT '',
    new_expires_at   INTEGER NOT NULL DEFAULT 0,
    can_reattest     INTEGER NOT NULL,
    agent_version    TEXT    NOT NULL DEFAULT '',
    selectors        TEXT    NOT NULL,
    alias_entry      TEXT
) STRICT;
CREATE INDEX svid_nodes_by_expiry ON svid_nodes (expires_at);

CREATE TABLE svid_join_tokens (
    token       TEXT    PRIMARY KEY,
    expires_at  INTEGER NOT NULL,
    alias_entry TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE svid_servers (
    server_id    TEXT    PRIMARY KEY,
    host         TEXT    NOT NULL,
    holder       TEXT    NOT NULL,
    heartbeat_at INTEGER NOT NULL
) STRICT;

CREATE TABLE svid_journals (
    server_id TEXT PRIMARY KEY,
    data      BLOB NOT NULL
) STRICT;
