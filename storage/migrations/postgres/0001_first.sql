-- The first schema for PostgreSQL 14 or newer: the tables of the SQLite store, as two collectors at once need them.
-- A migration runs once, in one transaction, in the schema that new tables of this role go to (`search_path`).

CREATE TABLE exchange (
    id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE                  -- upper case: UPBIT
);

CREATE TABLE market (
    id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    symbol   text NOT NULL,                    -- BTC
    currency text NOT NULL,                    -- KRW
    UNIQUE (symbol, currency)
);

CREATE TABLE feed (
    id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    exchange integer NOT NULL REFERENCES exchange (id),
    market   integer NOT NULL REFERENCES market (id),
    channel  text NOT NULL,                    -- orderbook, trades, ticker, candles
    UNIQUE (exchange, market, channel)
);

-- One start of one collector. `closed_us` stays empty when it was killed.
CREATE TABLE run (
    id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uid          text NOT NULL UNIQUE,         -- made by the collector, so that a batch written twice is known again
    collector_id text NOT NULL,
    version      text NOT NULL,
    batch        bigint NOT NULL DEFAULT 0,    -- number of the newest batch; one that is not above it is here already
    started_us   bigint NOT NULL,
    alive_us     bigint NOT NULL,              -- time of the newest commit
    closed_us    bigint
) WITH (fillfactor = 50);

-- One subscription of one feed by one run; opens with a complete book and ends with a reason. Several collectors write
-- at once, so the database gives out the ids; `number` is the run's own count.
CREATE TABLE epoch (
    id        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run       integer NOT NULL REFERENCES run (id),
    number    integer NOT NULL,
    feed      integer NOT NULL REFERENCES feed (id),
    transport text NOT NULL,                   -- websocket, rest
    depth     integer,                         -- levels a side the exchange sends, NULL for all
    verdict   text NOT NULL,                   -- linked, checksummed, compared, unverified
    opened_us bigint NOT NULL,
    ended_us  bigint,
    reason    text,                            -- why it ended
    UNIQUE (run, number)
);
CREATE INDEX epoch_feed ON epoch (feed, opened_us);

-- The ledger: how far an epoch is accounted for. Moves in the transaction of the data it speaks of. Half of each page is
-- left empty, so that a row that moves four times a second finds room beside its old self and no index is touched.
CREATE TABLE coverage (
    epoch              integer PRIMARY KEY REFERENCES epoch (id),
    from_us            bigint NOT NULL,
    heard_until_us     bigint NOT NULL,        -- last frame of any kind that proves the connection
    confirmed_until_us bigint NOT NULL,        -- last data frame, or last probe that agreed
    frames             bigint NOT NULL,        -- data frames since from_us: the first k the exchange sent
    reason             text
) WITH (fillfactor = 50);

-- One row an update, a partition a UTC day of receipt (`book_20261121`); what has no partition of its day is in
-- `book_default`. No reference to `epoch`: it would cost a look-up a row, and the writer knows its epochs.
CREATE TABLE book (
    epoch       integer NOT NULL,
    n           integer NOT NULL,              -- counts 1, 2, 3... in an epoch
    received_us bigint NOT NULL,
    venue_us    bigint,                        -- the exchange's own time
    sequence    bigint,                        -- the exchange's own number
    flags       smallint NOT NULL,             -- 1 keyframe, 2 crossed, 4 checksum_mismatch, 8 sampled
    bids        text,                          -- [["price","volume"],...]; changes, or all of them in a keyframe
    asks        text,                          -- volume "0" removes a level; NULL: this side did not change
    PRIMARY KEY (epoch, n, received_us)
) PARTITION BY RANGE (received_us);
CREATE INDEX book_keyframe ON book (epoch, n, received_us) WHERE flags & 1 = 1;
CREATE TABLE book_default PARTITION OF book DEFAULT;

-- A partition a UTC day of the exchange's time (`trade_20261121`): the same trade, heard by two collectors, is one row.
CREATE TABLE trade (
    feed        integer NOT NULL REFERENCES feed (id),
    venue_us    bigint NOT NULL,
    trade_id    text NOT NULL,                 -- the exchange's own; a hash of the content where it has none
    received_us bigint NOT NULL,
    epoch       integer NOT NULL,
    side        text NOT NULL,                 -- buy, sell: what the taker did
    price       text NOT NULL,
    volume      text NOT NULL,
    PRIMARY KEY (feed, venue_us, trade_id)
) PARTITION BY RANGE (venue_us);
CREATE TABLE trade_default PARTITION OF trade DEFAULT;

CREATE TABLE ticker (
    feed        integer NOT NULL REFERENCES feed (id),
    received_us bigint NOT NULL,
    venue_us    bigint,
    epoch       integer NOT NULL,
    last        text,
    bid         text,
    ask         text,
    volume      text,
    PRIMARY KEY (feed, received_us)
);

CREATE TABLE candle (
    feed        integer NOT NULL REFERENCES feed (id),
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
);

-- Frames nobody could read, raw.
CREATE TABLE rejected (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run         integer NOT NULL REFERENCES run (id),
    exchange    text NOT NULL,
    market      text,
    received_us bigint NOT NULL,
    reason      text NOT NULL,
    frame       bytea NOT NULL
);

-- The log in the database.
CREATE TABLE event (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run     integer NOT NULL REFERENCES run (id),
    time_us bigint NOT NULL,
    level   text NOT NULL,
    tag     text NOT NULL,
    text    text NOT NULL
);

-- How far `migrate` has copied an SQLite database; moves in the transaction of the rows it speaks of.
CREATE TABLE migrated (
    source   text NOT NULL,                    -- run.uid of the first run in that database
    name     text NOT NULL,                    -- of a table
    position text NOT NULL,                    -- key of the newest row that is here, as JSON
    rows     bigint NOT NULL,                  -- how many were copied
    PRIMARY KEY (source, name)
);

-- `book` with everything spelt out. A condition on received_us reads only the days it names.
CREATE VIEW book_update AS
SELECT
    b.epoch                             AS epoch,
    b.n                                 AS n,
    x.name                              AS exchange,
    m.symbol                            AS symbol,
    m.currency                          AS currency,
    b.received_us                       AS received_us,
    b.venue_us                          AS venue_us,
    b.sequence                          AS sequence,
    b.flags & 1                         AS keyframe,
    (b.flags >> 1) & 1                  AS crossed,
    (b.flags >> 2) & 1                  AS checksum_mismatch,
    (b.flags >> 3) & 1                  AS sampled,
    b.bids                              AS bids,
    b.asks                              AS asks
FROM book AS b
JOIN epoch AS e ON e.id = b.epoch
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market;

-- The owner's table: complete books at keyframes (at every update in `mode: full`), a row a level, exact numbers.
CREATE VIEW orderbook AS
SELECT
    x.name                                              AS exchange,
    m.symbol                                            AS symbol,
    m.currency                                          AS currency,
    b.received_us * 0.000001                            AS timestamp,
    s.side                                              AS side,
    (l.level ->> 0)::numeric                            AS price,
    (l.level ->> 1)::numeric                            AS volume
FROM book AS b
JOIN epoch AS e ON e.id = b.epoch
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market
CROSS JOIN LATERAL (VALUES ('ask', b.asks), ('bid', b.bids)) AS s (side, levels)
CROSS JOIN LATERAL json_array_elements(s.levels::json) AS l (level)
WHERE b.flags & 1 = 1;

-- The same columns for what lies between keyframes; volume 0 removes a level.
CREATE VIEW orderbook_change AS
SELECT
    x.name                                              AS exchange,
    m.symbol                                            AS symbol,
    m.currency                                          AS currency,
    b.received_us * 0.000001                            AS timestamp,
    s.side                                              AS side,
    (l.level ->> 0)::numeric                            AS price,
    (l.level ->> 1)::numeric                            AS volume
FROM book AS b
JOIN epoch AS e ON e.id = b.epoch
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market
CROSS JOIN LATERAL (VALUES ('ask', b.asks), ('bid', b.bids)) AS s (side, levels)
CROSS JOIN LATERAL json_array_elements(s.levels::json) AS l (level)
WHERE b.flags & 1 = 0;
