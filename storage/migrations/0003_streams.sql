-- Trades, tickers and candles begin to come. What sizes of a contract count stands with the epoch.

ALTER TABLE epoch ADD COLUMN unit TEXT;        -- what sizes count: 0.01 BTC, 100 USD; NULL: the symbol itself

-- Two epochs of a feed may overlap, and each has tickers of its own: the epoch is part of the key.
CREATE TABLE ticker_3 (
    feed        INTEGER NOT NULL REFERENCES feed (id),
    received_us INTEGER NOT NULL,
    venue_us    INTEGER,
    epoch       INTEGER NOT NULL,
    last        TEXT,
    bid         TEXT,
    ask         TEXT,
    volume      TEXT,
    PRIMARY KEY (feed, received_us, epoch)
) WITHOUT ROWID;
INSERT INTO ticker_3 SELECT feed, received_us, venue_us, epoch, last, bid, ask, volume FROM ticker;
DROP TABLE ticker;
ALTER TABLE ticker_3 RENAME TO ticker;
