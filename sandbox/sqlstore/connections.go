package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/podspawn/podspawn/sandbox"

	sqlite3 "modernc.org/sqlite/lib"
)

const selectConnection = `SELECT id, coalesce(sandbox, ''), coalesce(serial, 0), user, key, source, monitor_pid, monitor_start, opened_at, closed_at, close_note FROM connections `

func scanConnection(row scanner) (c sandbox.Connection, err error) {
	err = row.Scan(&c.ID, &c.Sandbox, unsigned{&c.Serial}, &c.User, &c.Key, &c.Source, &c.Monitor.PID, unsigned{&c.Monitor.Start},
		moment{&c.OpenedAt}, moment{&c.ClosedAt}, &c.CloseNote)
	return c, err
}

// Claim implements sandbox.Store. The transaction has the write lock before it
// reads, so nobody else's claim comes between the check and the count.
func (s *Store) Claim(ctx context.Context, c sandbox.Connection, ev sandbox.Event) (got sandbox.Sandbox, err error) {
	err = s.write(ctx, "claim certificate", func(t *tx) error {
		cert, err := scanCertificate(t.row(selectCertificate, int64(c.Serial)))
		if err != nil {
			return err
		}
		row, err := t.sandbox(c.Sandbox)
		if err != nil {
			return err
		}
		if err := t.mayClaim(cert, row); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE certificates SET used = used + 1 WHERE serial = ?", int64(c.Serial)); err != nil {
			return err
		}
		if err := t.insertConnection(c); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE sandboxes SET state = ?, grace_until = 0 WHERE id = ?",
			string(sandbox.StateRunning), string(row.ID)); err != nil {
			return err
		}
		if got, err = t.sandbox(row.ID); err != nil {
			return err
		}
		return t.append(ev)
	})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	return got, nil
}

func (t *tx) mayClaim(cert sandbox.Certificate, row sandbox.Sandbox) error {
	const again = "get a new certificate with podspawn cert"
	switch {
	case cert.Sandbox != row.ID:
		return sandbox.Errorf(sandbox.KindPolicy, "use the certificate that was issued for this sandbox",
			"the certificate belongs to another sandbox")
	case !cert.RevokedAt.IsZero():
		return sandbox.Errorf(sandbox.KindPolicy, again, "the certificate was revoked")
	case !row.State.Usable():
		return sandbox.Errorf(sandbox.KindGone, "create another with podspawn create", "sandbox %s is %s", row.ID, row.State)
	case cert.Uses > 0 && cert.Used >= cert.Uses:
		return sandbox.Errorf(sandbox.KindPolicy, again, "the certificate was good for %d connections and is used up", cert.Uses)
	}
	open, err := t.openConnections(row.ID)
	if err != nil {
		return err
	}
	if open >= sandbox.MaxConnections {
		return sandbox.Errorf(sandbox.KindQuota, "close one first, or share one with ControlMaster",
			"sandbox %s already has %d connections", row.ID, open)
	}
	return nil
}

func (t *tx) openConnections(id sandbox.ID) (n int, err error) {
	err = t.row("SELECT count(*) FROM connections WHERE sandbox = ? AND closed_at = 0", string(id)).Scan(&n)
	return n, err
}

func (t *tx) insertConnection(c sandbox.Connection) error {
	_, err := t.exec(`INSERT INTO connections (id, sandbox, serial, user, key, source, monitor_pid, monitor_start, opened_at, closed_at, close_note)
		VALUES (?, nullif(?, ''), nullif(?, 0), ?, ?, ?, ?, ?, ?, 0, '')`,
		c.ID, string(c.Sandbox), int64(c.Serial), c.User, c.Key, c.Source, c.Monitor.PID, int64(c.Monitor.Start), nanos(c.OpenedAt))
	if sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY {
		return &sandbox.Error{Kind: sandbox.KindConflict, Msg: "this connection exists already", Hint: "make a new id", Err: err}
	}
	return err
}

// CloseConnection implements sandbox.Store.
func (s *Store) CloseConnection(ctx context.Context, id string, now time.Time, exited bool, note string, ev sandbox.Event) (closed bool, err error) {
	err = s.write(ctx, "close connection", func(t *tx) error {
		closed = false
		c, err := scanConnection(t.row(selectConnection+"WHERE id = ?", id))
		if errors.Is(err, sql.ErrNoRows) {
			return notFound("connection")
		}
		if err != nil || !c.ClosedAt.IsZero() {
			return err
		}
		if _, err := t.exec("UPDATE connections SET closed_at = ?, close_note = ? WHERE id = ?", nanos(now), note, id); err != nil {
			return err
		}
		if c.Sandbox != "" {
			if err := t.lastOneOut(c.Sandbox, now, exited); err != nil {
				return err
			}
		}
		closed = true
		return t.append(ev)
	})
	return closed && err == nil, err
}

// lastOneOut does what the end of a sandbox's last connection means. A sandbox
// that is being destroyed has nothing left to decide.
func (t *tx) lastOneOut(id sandbox.ID, now time.Time, exited bool) error {
	open, err := t.openConnections(id)
	if err != nil || open > 0 {
		return err
	}
	row, err := t.sandbox(id)
	if err != nil || row.State.Final() || row.State == sandbox.StateDraining {
		return err
	}
	state := row.State // a user may leave while her sandbox is still being started
	if state == sandbox.StateRunning {
		state = sandbox.StateReady
	}
	var grace time.Time
	if exited && row.Spec.Lifecycle.OnExit == sandbox.OnExitDestroy {
		grace = now.Add(row.Spec.Lifecycle.Grace)
	}
	_, err = t.exec("UPDATE sandboxes SET state = ?, last_activity = max(last_activity, ?), grace_until = ? WHERE id = ?",
		string(state), nanos(now), nanos(grace), string(id))
	return err
}

// OpenConnections implements sandbox.Store.
func (s *Store) OpenConnections(ctx context.Context, id sandbox.ID) ([]sandbox.Connection, error) {
	return query(ctx, s, "list connections", scanConnection,
		selectConnection+"WHERE closed_at = 0 AND (?1 = '' OR sandbox = ?1) ORDER BY opened_at, id", string(id))
}
