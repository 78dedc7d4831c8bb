-- A node that came back with a backup and has not renewed since: the backup's moment (Unix seconds). One certificate that
-- was issued after it and that the row does not know may take the place of the known ones; 0: none.
ALTER TABLE svid_nodes ADD COLUMN adopt_from INTEGER NOT NULL DEFAULT 0;
