-- Trades, tickers and candles begin to come. What sizes of a contract count stands with the epoch.

ALTER TABLE epoch ADD COLUMN unit text;        -- what sizes count: 0.01 BTC, 100 USD; NULL: the symbol itself

-- Tickers and candles get a partition a UTC day as well, so that a day can go at one stroke. No reference to `feed`, as
-- none of `book`: the writer knows its feeds. Whatever stands in the old tables moves.
CREATE TEMPORARY TABLE old_ticker ON COMMIT DROP AS TABLE ticker;
DROP TABLE ticker;
-- A day is one of receipt (`ticker_20261121`). Two epochs of a feed may overlap, and each has tickers of its own.
CREATE TABLE ticker (
    feed        integer NOT NULL,
    received_us bigint NOT NULL,
    venue_us    bigint,
    epoch       integer NOT NULL,
    last        text,
    bid         text,
    ask         text,
    volume      text,
    PRIMARY KEY (feed, received_us, epoch)
) PARTITION BY RANGE (received_us);
CREATE TABLE ticker_default PARTITION OF ticker DEFAULT;
INSERT INTO ticker (feed, received_us, venue_us, epoch, last, bid, ask, volume)
SELECT feed, received_us, venue_us, epoch, last, bid, ask, volume FROM old_ticker;

CREATE TEMPORARY TABLE old_candle ON COMMIT DROP AS TABLE candle;
DROP TABLE candle;
-- A day is one of a candle's beginning (`candle_20261121`).
CREATE TABLE candle (
    feed        integer NOT NULL,
    interval_s  integer NOT NULL,
    open_us     bigint NOT NULL,
    open        text NOT NULL,
    high        text NOT NULL,
    low         text NOT NULL,
    close       text NOT NULL,
    volume      text NOT NULL,
    closed      smallint NOT NULL,             -- 0: replaced until it is closed
    received_us bigint NOT NULL,
    epoch       integer NOT NULL,
    PRIMARY KEY (feed, interval_s, open_us)
) PARTITION BY RANGE (open_us);
CREATE TABLE candle_default PARTITION OF candle DEFAULT;
INSERT INTO candle (feed, interval_s, open_us, open, high, low, close, volume, closed, received_us, epoch)
SELECT feed, interval_s, open_us, open, high, low, close, volume, closed, received_us, epoch FROM old_candle;
