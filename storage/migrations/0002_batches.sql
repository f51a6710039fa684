-- A batch's number is committed with it: one that is written again, after a crash or out of the spool, is known.

ALTER TABLE run ADD COLUMN batch INTEGER NOT NULL DEFAULT 0;   -- number of the newest batch that is here
