-- What `svidctl status` shows of each server. `place` is the data directory on one boot of one machine; `facts` is JSON.
-- `holder` '' is a server that ended by itself.
ALTER TABLE svid_servers ADD COLUMN place           TEXT NOT NULL DEFAULT '';
ALTER TABLE svid_servers ADD COLUMN facts           TEXT NOT NULL DEFAULT '{}';
ALTER TABLE svid_servers ADD COLUMN behind_lines    BIGINT NOT NULL DEFAULT 0;
ALTER TABLE svid_servers ADD COLUMN behind_s        BIGINT NOT NULL DEFAULT 0;
ALTER TABLE svid_servers ADD COLUMN authorities_end BIGINT NOT NULL DEFAULT 0;
