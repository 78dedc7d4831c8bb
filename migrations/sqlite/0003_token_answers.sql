-- What the answer to an attestation was, so that one which got lost can be given again to the same key: `answer_key` is
-- SHA-256 of the public key in hex, the answer is good while `answer_serial` is `serial` and until `answer_until`.
ALTER TABLE svid_nodes ADD COLUMN answer_key TEXT;
ALTER TABLE svid_nodes ADD COLUMN answer_serial TEXT NOT NULL DEFAULT '';
ALTER TABLE svid_nodes ADD COLUMN answered_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE svid_nodes ADD COLUMN answer_until INTEGER NOT NULL DEFAULT 0;
-- The last serial that was seen in use. It says nothing of another one, so an older release that changes `serial` does
-- not make it wrong.
ALTER TABLE svid_nodes ADD COLUMN used_serial TEXT NOT NULL DEFAULT '';
-- When an old serial was last used after its successor; 0: never.
ALTER TABLE svid_nodes ADD COLUMN suspected_at INTEGER NOT NULL DEFAULT 0;
