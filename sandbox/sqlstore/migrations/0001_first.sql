-- Times are nanoseconds since 1970 in UTC; 0 is "never". Unsigned 64-bit numbers
-- are stored as the signed number with the same bits.

CREATE TABLE sandboxes (
	n             INTEGER PRIMARY KEY AUTOINCREMENT, -- order of creation
	id            TEXT    NOT NULL UNIQUE,
	tenant        TEXT    NOT NULL,
	subject       TEXT    NOT NULL,
	name          TEXT    NOT NULL,
	labels        TEXT    NOT NULL, -- JSON object
	spec          TEXT    NOT NULL, -- JSON of sandbox.Spec
	digest        TEXT    NOT NULL,
	uid           INTEGER NOT NULL,
	state         TEXT    NOT NULL,
	final         INTEGER NOT NULL, -- sandbox.State.Final
	reason        TEXT    NOT NULL,
	user          TEXT    NOT NULL,
	image_id      TEXT    NOT NULL,
	container     TEXT    NOT NULL,
	portal        INTEGER NOT NULL,
	socket_dev    INTEGER NOT NULL,
	socket_ino    INTEGER NOT NULL,
	created_at    INTEGER NOT NULL,
	ready_at      INTEGER NOT NULL,
	expires_at    INTEGER NOT NULL,
	last_activity INTEGER NOT NULL,
	grace_until   INTEGER NOT NULL,
	draining_at   INTEGER NOT NULL,
	ended_at      INTEGER NOT NULL,
	CHECK (final = 0 OR ended_at <> 0) -- the uid's quarantine counts from there
) STRICT;

CREATE UNIQUE INDEX sandboxes_living_uid  ON sandboxes (uid) WHERE final = 0;
CREATE UNIQUE INDEX sandboxes_living_name ON sandboxes (tenant, name) WHERE final = 0 AND name <> '';
CREATE INDEX sandboxes_uid     ON sandboxes (uid, final, ended_at);
CREATE INDEX sandboxes_state   ON sandboxes (final, created_at, n);
CREATE INDEX sandboxes_tenant  ON sandboxes (tenant, final, created_at, n);
CREATE INDEX sandboxes_created ON sandboxes (created_at, n);

CREATE TABLE certificates (
	serial       INTEGER PRIMARY KEY,
	sandbox      TEXT    NOT NULL REFERENCES sandboxes (id),
	tenant       TEXT    NOT NULL,
	subject      TEXT    NOT NULL,
	token        TEXT    NOT NULL,
	key_id       TEXT    NOT NULL,
	blob         BLOB    NOT NULL,
	fingerprint  TEXT    NOT NULL,
	uses         INTEGER NOT NULL,
	used         INTEGER NOT NULL,
	issued_at    INTEGER NOT NULL,
	valid_before INTEGER NOT NULL,
	revoked_at   INTEGER NOT NULL,
	CHECK (uses = 0 OR used <= uses)
) STRICT;

CREATE TABLE connections (
	id            TEXT    PRIMARY KEY,
	sandbox       TEXT    NOT NULL REFERENCES sandboxes (id),
	serial        INTEGER NOT NULL REFERENCES certificates (serial),
	source        TEXT    NOT NULL,
	monitor_pid   INTEGER NOT NULL,
	monitor_start INTEGER NOT NULL,
	opened_at     INTEGER NOT NULL,
	closed_at     INTEGER NOT NULL,
	close_note    TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX connections_open ON connections (sandbox) WHERE closed_at = 0;

CREATE TABLE tokens (
	n          INTEGER PRIMARY KEY AUTOINCREMENT,
	id         TEXT    NOT NULL UNIQUE,
	tenant     TEXT    NOT NULL,
	subject    TEXT    NOT NULL,
	scopes     TEXT    NOT NULL, -- JSON array
	caps       TEXT    NOT NULL, -- JSON of sandbox.Caps
	issued_at  INTEGER NOT NULL,
	expires_at INTEGER NOT NULL,
	revoked_at INTEGER NOT NULL
) STRICT;

CREATE INDEX tokens_tenant ON tokens (tenant, n);

CREATE TABLE idempotency (
	tenant TEXT    NOT NULL,
	key    TEXT    NOT NULL,
	digest TEXT    NOT NULL,
	value  TEXT    NOT NULL,
	at     INTEGER NOT NULL,
	PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_at ON idempotency (at);

-- The audit log: the file is appended from here. line is the whole line.
CREATE TABLE events (
	seq     INTEGER PRIMARY KEY,
	event   TEXT    NOT NULL,
	sandbox TEXT    NOT NULL,
	hash    TEXT    NOT NULL,
	line    TEXT    NOT NULL
) STRICT;

CREATE INDEX events_sandbox ON events (sandbox, event, seq) WHERE sandbox <> '';

-- last_serial and last_uid are the last that were given out.
CREATE TABLE counters (
	name  TEXT    PRIMARY KEY,
	value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO counters (name, value) VALUES ('last_serial', 0), ('last_uid', 0);
