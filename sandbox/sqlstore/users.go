package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/podspawn/podspawn/sandbox"

	sqlite3 "modernc.org/sqlite/lib"
)

const selectUser = "SELECT name, uid, portal, spec, created_at, removed_at FROM users WHERE removed_at = 0 "

func scanUser(row scanner) (u sandbox.User, err error) {
	err = row.Scan(&u.Name, &u.UID, unsigned{&u.Portal}, document{&u.Spec}, moment{&u.CreatedAt}, moment{&u.RemovedAt})
	if errors.Is(err, sql.ErrNoRows) {
		return u, notFound("user")
	}
	return u, err
}

// AddUser implements sandbox.Store.
func (s *Store) AddUser(ctx context.Context, u sandbox.User, ev sandbox.Event) (got sandbox.User, err error) {
	err = s.write(ctx, "add user", func(t *tx) error {
		if u.UID, err = t.nextUserUID(u.CreatedAt); err != nil {
			return err
		}
		spec, err := encode(u.Spec)
		if err != nil {
			return err
		}
		if _, err := t.exec("INSERT INTO users (name, uid, portal, spec, created_at, removed_at) VALUES (?, ?, ?, ?, ?, 0)",
			u.Name, u.UID, int64(u.Portal), spec, nanos(u.CreatedAt)); err != nil {
			if sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
				return sandbox.Errorf(sandbox.KindConflict, "podspawn remove-user removes it", "there is a user %s already", u.Name)
			}
			return err
		}
		if got, err = scanUser(t.row(selectUser+"AND name = ?", u.Name)); err != nil {
			return err
		}
		return t.append(ev)
	})
	if err != nil {
		return sandbox.User{}, err
	}
	return got, nil
}

// nextUserUID returns the first uid that is free. A name that comes back gets
// another uid than before, unless it has rested.
func (t *tx) nextUserUID(now time.Time) (uid int, err error) {
	const count = sandbox.MaxUserUID - sandbox.MinUserUID + 1
	err = t.row(`
		WITH RECURSIVE candidate (uid) AS (SELECT ?1 UNION ALL SELECT uid + 1 FROM candidate WHERE uid < ?2)
		SELECT uid FROM candidate
		WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.uid = candidate.uid AND (u.removed_at = 0 OR u.removed_at > ?3))
		  AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.uid = candidate.uid AND s.final = 0)
		LIMIT 1`, sandbox.MinUserUID, sandbox.MaxUserUID, nanos(now.Add(-sandbox.UIDQuarantine))).Scan(&uid)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, sandbox.Errorf(sandbox.KindCapacity, "a uid rests for 24 hours after its user; try again later",
			"all %d user ids for users are taken or resting", count)
	}
	return uid, err
}

// UserByName implements sandbox.Store.
func (s *Store) UserByName(ctx context.Context, name string) (sandbox.User, error) {
	return s.user(ctx, "AND name = ?", name)
}

// UserByUID implements sandbox.Store.
func (s *Store) UserByUID(ctx context.Context, uid int) (sandbox.User, error) {
	return s.user(ctx, "AND uid = ?", uid)
}

func (s *Store) user(ctx context.Context, where string, arg any) (sandbox.User, error) {
	u, err := scanUser(s.r.QueryRowContext(ctx, selectUser+where, arg))
	if err != nil {
		return sandbox.User{}, s.fail("read user", err)
	}
	return u, nil
}

// Users implements sandbox.Store.
func (s *Store) Users(ctx context.Context) ([]sandbox.User, error) {
	return query(ctx, s, "list users", scanUser, selectUser+"ORDER BY name")
}

// ChangeUser implements sandbox.Store.
func (s *Store) ChangeUser(ctx context.Context, u sandbox.User, ev ...sandbox.Event) error {
	return s.write(ctx, "change user", func(t *tx) error {
		spec, err := encode(u.Spec)
		if err != nil {
			return err
		}
		n, err := t.exec("UPDATE users SET portal = ?, spec = ? WHERE name = ? AND removed_at = 0", int64(u.Portal), spec, u.Name)
		if err == nil && n == 0 {
			return notFound("user")
		}
		if err != nil {
			return err
		}
		return t.append(ev...)
	})
}

// RemoveUser implements sandbox.Store.
func (s *Store) RemoveUser(ctx context.Context, name string, now time.Time, ev sandbox.Event) error {
	return s.write(ctx, "remove user", func(t *tx) error {
		n, err := t.exec("UPDATE users SET removed_at = ? WHERE name = ? AND removed_at = 0", nanos(now), name)
		if err == nil && n == 0 {
			return notFound("user")
		}
		if err != nil {
			return err
		}
		return t.append(ev)
	})
}

// Enter implements sandbox.Store.
func (s *Store) Enter(ctx context.Context, c sandbox.Connection, ev sandbox.Event) error {
	return s.write(ctx, "enter", func(t *tx) error {
		if _, err := scanUser(t.row(selectUser+"AND name = ?", c.User)); err != nil {
			return err
		}
		var open int
		if err := t.row("SELECT count(*) FROM connections WHERE user = ? AND user <> '' AND closed_at = 0", c.User).Scan(&open); err != nil {
			return err
		}
		if open >= sandbox.MaxConnections {
			return sandbox.Errorf(sandbox.KindQuota, "close one first, or share one with ControlMaster",
				"user %s already has %d connections", c.User, open)
		}
		if err := t.insertConnection(c); err != nil {
			return err
		}
		if c.Sandbox != "" {
			if err := t.occupy(c.Sandbox); err != nil {
				return err
			}
		}
		return t.append(ev)
	})
}

// Bind implements sandbox.Store.
func (s *Store) Bind(ctx context.Context, connection string, id sandbox.ID) (got sandbox.Sandbox, err error) {
	err = s.write(ctx, "bind connection", func(t *tx) error {
		c, err := scanConnection(t.row(selectConnection+"WHERE id = ?", connection))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return notFound("connection")
		case err != nil:
			return err
		case !c.ClosedAt.IsZero():
			return sandbox.Errorf(sandbox.KindGone, "connect again", "the connection has ended")
		case c.Sandbox != "" && c.Sandbox != id:
			return sandbox.Errorf(sandbox.KindConflict, "open another connection", "the connection belongs to another sandbox")
		}
		if _, err := t.exec("UPDATE connections SET sandbox = ? WHERE id = ?", string(id), connection); err != nil {
			return err
		}
		if err := t.occupy(id); err != nil {
			return err
		}
		got, err = t.sandbox(id)
		return err
	})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	return got, nil
}

// occupy does what a connection means to its sandbox.
func (t *tx) occupy(id sandbox.ID) error {
	row, err := t.sandbox(id)
	if err != nil {
		return err
	}
	if row.State.Final() || row.State == sandbox.StateDraining {
		return sandbox.Gone(row)
	}
	state := row.State // one that is still being started becomes running when it is ready
	if state.Usable() {
		state = sandbox.StateRunning
	}
	_, err = t.exec("UPDATE sandboxes SET state = ?, grace_until = 0 WHERE id = ?", string(state), string(id))
	return err
}
