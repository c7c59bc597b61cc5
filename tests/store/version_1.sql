-- The tables of a store of version 1.
CREATE TABLE channel (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    declared_at_ns INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    oldest_seq INTEGER NOT NULL DEFAULT 1,
    next_seq INTEGER NOT NULL DEFAULT 1,
    messages INTEGER NOT NULL DEFAULT 0,
    content_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Durable topics. until_ns is the greatest last_time_ns up to here, so that it never goes back.
CREATE TABLE parcel (
    id INTEGER PRIMARY KEY,
    channel INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    count INTEGER NOT NULL,
    content_bytes INTEGER NOT NULL,
    last_time_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX parcel_by_seq ON parcel (channel, first_seq, count, content_bytes, last_time_ns);
CREATE INDEX parcel_by_time ON parcel (channel, until_ns, first_seq, last_time_ns);
-- Queues.
CREATE TABLE queued (
    id INTEGER PRIMARY KEY,
    channel INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    count INTEGER NOT NULL,
    content_bytes INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    deliver_at_ns INTEGER NOT NULL,
    settled BLOB NOT NULL DEFAULT x'',
    data BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX queued_by_seq ON queued (channel, first_seq);
CREATE INDEX queued_by_priority ON queued (channel, priority, first_seq) WHERE deliver_at_ns = 0;
CREATE INDEX queued_by_time ON queued (channel, deliver_at_ns, first_seq) WHERE deliver_at_ns > 0;
CREATE TABLE attempt (
    channel INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    count INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    PRIMARY KEY (channel, first_seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE taken (
    channel INTEGER NOT NULL,
    source INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (channel, source)
) STRICT, WITHOUT ROWID;
CREATE TABLE place (
    channel INTEGER NOT NULL,
    name TEXT NOT NULL,
    seq INTEGER NOT NULL,
    saved_at_ns INTEGER NOT NULL,
    PRIMARY KEY (channel, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE value (
    channel INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    is_set INTEGER NOT NULL,
    payload BLOB NOT NULL,
    headers BLOB NOT NULL,
    changed_at_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE message_id (
    channel INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at_ns INTEGER NOT NULL,
    PRIMARY KEY (channel, message_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX message_id_by_time ON message_id (channel, at_ns);
CREATE TABLE committed (
    principal TEXT NOT NULL,
    name TEXT NOT NULL,
    response BLOB NOT NULL,
    at_ns INTEGER NOT NULL,
    PRIMARY KEY (principal, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX committed_by_time ON committed (at_ns);
-- What of dropped channels is still to be let go.
CREATE TABLE dropped (channel INTEGER PRIMARY KEY) STRICT;
PRAGMA application_id = 1416591219;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
