-- Users log in by a key of their own. A connection of theirs has no certificate,
-- and no sandbox until it enters one.

CREATE TABLE users (
	n          INTEGER PRIMARY KEY AUTOINCREMENT,
	name       TEXT    NOT NULL,
	uid        INTEGER NOT NULL,
	portal     INTEGER NOT NULL,
	spec       TEXT    NOT NULL, -- JSON of *sandbox.Spec
	created_at INTEGER NOT NULL,
	removed_at INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX users_name ON users (name) WHERE removed_at = 0;
CREATE UNIQUE INDEX users_uid  ON users (uid)  WHERE removed_at = 0;

ALTER TABLE sandboxes ADD COLUMN alias TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX sandboxes_living_alias ON sandboxes (alias) WHERE final = 0 AND alias <> '';

CREATE TABLE connections_2 (
	id            TEXT    PRIMARY KEY,
	sandbox       TEXT    REFERENCES sandboxes (id),   -- NULL before it entered one
	serial        INTEGER REFERENCES certificates (serial), -- NULL without one
	user          TEXT    NOT NULL,
	key           TEXT    NOT NULL,
	source        TEXT    NOT NULL,
	monitor_pid   INTEGER NOT NULL,
	monitor_start INTEGER NOT NULL,
	opened_at     INTEGER NOT NULL,
	closed_at     INTEGER NOT NULL,
	close_note    TEXT    NOT NULL,
	CHECK ((serial IS NULL) <> (user = ''))
) STRICT, WITHOUT ROWID;

INSERT INTO connections_2 SELECT id, sandbox, serial, '', '', source, monitor_pid, monitor_start, opened_at, closed_at, close_note FROM connections;
DROP TABLE connections;
ALTER TABLE connections_2 RENAME TO connections;

CREATE INDEX connections_open ON connections (sandbox) WHERE closed_at = 0;
CREATE INDEX connections_user ON connections (user) WHERE closed_at = 0 AND user <> '';
