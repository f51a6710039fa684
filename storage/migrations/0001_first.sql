-- The first schema. A migration runs once, in one transaction, and never rewrites `book`.

CREATE TABLE exchange (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE                  -- upper case: UPBIT
);

CREATE TABLE market (
    id       INTEGER PRIMARY KEY,
    symbol   TEXT NOT NULL,                    -- BTC
    currency TEXT NOT NULL,                    -- KRW
    UNIQUE (symbol, currency)
);

CREATE TABLE feed (
    id       INTEGER PRIMARY KEY,
    exchange INTEGER NOT NULL REFERENCES exchange (id),
    market   INTEGER NOT NULL REFERENCES market (id),
    channel  TEXT NOT NULL,                    -- orderbook, trades, ticker, candles
    UNIQUE (exchange, market, channel)
);

-- One start of one collector. `closed_us` stays empty when it was killed.
CREATE TABLE run (
    id           INTEGER PRIMARY KEY,
    uid          TEXT NOT NULL UNIQUE,         -- made by the collector, so that a batch written twice is known again
    collector_id TEXT NOT NULL,
    version      TEXT NOT NULL,
    epoch_base   INTEGER NOT NULL,             -- epoch.id = epoch_base + the run's own count 1, 2, 3...
    started_us   INTEGER NOT NULL,
    alive_us     INTEGER NOT NULL,             -- time of the newest commit
    closed_us    INTEGER
);

-- One subscription of one feed by one run; opens with a complete book and ends with a reason.
CREATE TABLE epoch (
    id        INTEGER PRIMARY KEY,
    run       INTEGER NOT NULL REFERENCES run (id),
    feed      INTEGER NOT NULL REFERENCES feed (id),
    transport TEXT NOT NULL,                   -- websocket, rest
    depth     INTEGER,                         -- levels a side the exchange sends, NULL for all
    verdict   TEXT NOT NULL,                   -- linked, checksummed, compared, unverified
    opened_us INTEGER NOT NULL,
    ended_us  INTEGER,
    reason    TEXT                             -- why it ended
);
CREATE INDEX epoch_feed ON epoch (feed, opened_us);

-- The ledger: how far an epoch is accounted for. Moves in the transaction of the data it speaks of.
CREATE TABLE coverage (
    epoch              INTEGER PRIMARY KEY REFERENCES epoch (id),
    from_us            INTEGER NOT NULL,
    heard_until_us     INTEGER NOT NULL,       -- last frame of any kind that proves the connection
    confirmed_until_us INTEGER NOT NULL,       -- last data frame, or last probe that agreed
    frames             INTEGER NOT NULL,       -- data frames since from_us: the first k the exchange sent
    reason             TEXT
);

-- One row an update, keyed (epoch, n): both are in `id`, since a key of two columns would put every keyframe on a page of
-- its own. Times count from the epoch's opened_us and back from receipt; `book_update` shows them as times of day.
CREATE TABLE book (
    id       INTEGER PRIMARY KEY,              -- epoch << 24 | n: 16,777,215 rows an epoch
    at_us    INTEGER NOT NULL,                 -- receipt minus epoch.opened_us
    lag_us   INTEGER,                          -- receipt minus the exchange's own time
    sequence INTEGER,                          -- the exchange's own number
    flags    INTEGER NOT NULL,                 -- 1 keyframe, 2 crossed, 4 checksum_mismatch, 8 sampled
    bids     TEXT,                             -- [["price","volume"],...]; changes, or all of them in a keyframe
    asks     TEXT                              -- volume "0" removes a level; NULL: this side did not change
);
CREATE INDEX book_keyframe ON book (id) WHERE flags & 1;

CREATE TABLE trade (
    feed        INTEGER NOT NULL REFERENCES feed (id),
    venue_us    INTEGER NOT NULL,
    trade_id    TEXT NOT NULL,                 -- the exchange's own; a hash of the content where it has none
    received_us INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    side        TEXT NOT NULL,                 -- buy, sell: what the taker did
    price       TEXT NOT NULL,
    volume      TEXT NOT NULL,
    PRIMARY KEY (feed, venue_us, trade_id)
) WITHOUT ROWID;

CREATE TABLE ticker (
    feed        INTEGER NOT NULL REFERENCES feed (id),
    received_us INTEGER NOT NULL,
    venue_us    INTEGER,
    epoch       INTEGER NOT NULL,
    last        TEXT,
    bid         TEXT,
    ask         TEXT,
    volume      TEXT,
    PRIMARY KEY (feed, received_us)
) WITHOUT ROWID;

CREATE TABLE candle (
    feed        INTEGER NOT NULL REFERENCES feed (id),
    interval_s  INTEGER NOT NULL,
    open_us     INTEGER NOT NULL,
    open        TEXT NOT NULL,
    high        TEXT NOT NULL,
    low         TEXT NOT NULL,
    close       TEXT NOT NULL,
    volume      TEXT NOT NULL,
    closed      INTEGER NOT NULL,              -- 0: replaced until it is closed
    received_us INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    PRIMARY KEY (feed, interval_s, open_us)
) WITHOUT ROWID;

-- Frames nobody could read, raw.
CREATE TABLE rejected (
    id          INTEGER PRIMARY KEY,
    run         INTEGER NOT NULL REFERENCES run (id),
    exchange    TEXT NOT NULL,
    market      TEXT,
    received_us INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    frame       BLOB NOT NULL
);

-- The log in the database.
CREATE TABLE event (
    id      INTEGER PRIMARY KEY,
    run     INTEGER NOT NULL REFERENCES run (id),
    time_us INTEGER NOT NULL,
    level   TEXT NOT NULL,
    tag     TEXT NOT NULL,
    text    TEXT NOT NULL
);

-- `book` with everything spelt out.
CREATE VIEW book_update AS
SELECT
    b.id >> 24                          AS epoch,
    b.id & 16777215                   AS n,
    x.name                              AS exchange,
    m.symbol                            AS symbol,
    m.currency                          AS currency,
    e.opened_us + b.at_us               AS received_us,
    e.opened_us + b.at_us - b.lag_us    AS venue_us,
    b.sequence                          AS sequence,
    b.flags & 1                         AS keyframe,
    (b.flags >> 1) & 1                  AS crossed,
    (b.flags >> 2) & 1                  AS checksum_mismatch,
    (b.flags >> 3) & 1                  AS sampled,
    b.bids                              AS bids,
    b.asks                              AS asks
FROM book AS b
JOIN epoch AS e ON e.id = b.id >> 24
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market;

-- The owner's table: complete books at keyframes (at every update in `mode: full`), a row a level, numbers as SQL numbers.
CREATE VIEW orderbook AS
SELECT
    x.name                                              AS exchange,
    m.symbol                                            AS symbol,
    m.currency                                          AS currency,
    (e.opened_us + b.at_us) / 1000000.0                 AS timestamp,
    s.side                                              AS side,
    CAST(json_extract(l.value, '$[0]') AS NUMERIC)      AS price,
    CAST(json_extract(l.value, '$[1]') AS NUMERIC)      AS volume
FROM book AS b
JOIN epoch AS e ON e.id = b.id >> 24
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market
CROSS JOIN (SELECT 'ask' AS side UNION ALL SELECT 'bid') AS s
JOIN json_each(CASE s.side WHEN 'ask' THEN b.asks ELSE b.bids END) AS l
WHERE b.flags & 1;

-- The same columns for what lies between keyframes; volume 0 removes a level.
CREATE VIEW orderbook_change AS
SELECT
    x.name                                              AS exchange,
    m.symbol                                            AS symbol,
    m.currency                                          AS currency,
    (e.opened_us + b.at_us) / 1000000.0                 AS timestamp,
    s.side                                              AS side,
    CAST(json_extract(l.value, '$[0]') AS NUMERIC)      AS price,
    CAST(json_extract(l.value, '$[1]') AS NUMERIC)      AS volume
FROM book AS b
JOIN epoch AS e ON e.id = b.id >> 24
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market
CROSS JOIN (SELECT 'ask' AS side UNION ALL SELECT 'bid') AS s
JOIN json_each(CASE s.side WHEN 'ask' THEN b.asks ELSE b.bids END) AS l
WHERE NOT b.flags & 1;
