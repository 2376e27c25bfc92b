package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/podspawn/podspawn/sandbox"

	sqlite3 "modernc.org/sqlite/lib"
)

// columns of a sandbox, in the order of encodeSandbox and scanSandbox.
const columns = `id, tenant, subject, name, labels, spec, digest, uid, state, final, reason, user, image_id, container,
	portal, socket_dev, socket_ino, created_at, ready_at, expires_at, last_activity, grace_until, draining_at, ended_at, pool, alias`

// defaultList is List's limit when the filter has none.
const defaultList = 100

func encodeSandbox(s sandbox.Sandbox) ([]any, error) {
	if len(s.Labels) == 0 {
		s.Labels = map[string]string{}
	}
	labels, err := encode(s.Labels)
	if err != nil {
		return nil, err
	}
	spec, err := encode(s.Spec)
	if err != nil {
		return nil, err
	}
	return []any{
		string(s.ID), s.Tenant, s.Subject, s.Name, labels, spec, string(s.Digest), s.UID, string(s.State), s.State.Final(),
		string(s.Reason), s.User, s.ImageID, s.Container, int64(s.Portal), int64(s.SocketDev), int64(s.SocketIno),
		nanos(s.CreatedAt), nanos(s.ReadyAt), nanos(s.ExpiresAt), nanos(s.LastActivity), nanos(s.GraceUntil),
		nanos(s.DrainingAt), nanos(s.EndedAt), s.Pool, s.Alias,
	}, nil
}

func scanSandbox(row scanner) (s sandbox.Sandbox, err error) {
	var final bool
	err = row.Scan(
		&s.ID, &s.Tenant, &s.Subject, &s.Name, document{&s.Labels}, document{&s.Spec}, &s.Digest, &s.UID, &s.State, &final,
		&s.Reason, &s.User, &s.ImageID, &s.Container, unsigned{&s.Portal}, unsigned{&s.SocketDev}, unsigned{&s.SocketIno},
		moment{&s.CreatedAt}, moment{&s.ReadyAt}, moment{&s.ExpiresAt}, moment{&s.LastActivity}, moment{&s.GraceUntil},
		moment{&s.DrainingAt}, moment{&s.EndedAt}, &s.Pool, &s.Alias,
	)
	if len(s.Labels) == 0 {
		s.Labels = nil
	}
	return s, err
}

// Insert implements sandbox.Store. Its timestamp is s.CreatedAt: quarantines are
// counted from there.
func (s *Store) Insert(ctx context.Context, row sandbox.Sandbox, quota sandbox.Quota, ev sandbox.Event) (got sandbox.Sandbox, err error) {
	err = s.write(ctx, "insert sandbox", func(t *tx) error {
		if err := t.checkQuota(row, quota); err != nil {
			return err
		}
		if !sandbox.IsUserUID(row.UID) {
			if row.UID, err = t.nextUID(row); err != nil {
				return err
			}
		}
		row.State = sandbox.StateAccepted
		args, err := encodeSandbox(row)
		if err != nil {
			return err
		}
		if _, err := t.exec("INSERT INTO sandboxes ("+columns+") VALUES (?"+strings.Repeat(", ?", len(args)-1)+")", args...); err != nil {
			return conflict(row, err)
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

// checkQuota counts the living sandboxes, without the pool's unless row is to be one.
func (t *tx) checkQuota(row sandbox.Sandbox, quota sandbox.Quota) error {
	var total, own int
	var memory int64
	err := t.row(`SELECT count(*), count(*) FILTER (WHERE pool = '' AND tenant = ?1), coalesce(sum(json_extract(spec, '$.resources.memory')), 0)
		FROM sandboxes WHERE final = 0 AND (pool = '' OR ?2 <> '') AND id <> ?3`, row.Tenant, row.Pool, string(row.ID)).Scan(&total, &own, &memory)
	if err != nil {
		return err
	}
	if quota.PerTenant > 0 && own >= quota.PerTenant {
		return sandbox.Errorf(sandbox.KindQuota, "destroy one with podspawn destroy, or wait for one to end",
			"you already have %d of %d sandboxes", own, quota.PerTenant)
	}
	if quota.Total > 0 && total >= quota.Total {
		return sandbox.Errorf(sandbox.KindCapacity, "try again later", "this host already has %d of %d sandboxes", total, quota.Total)
	}
	if need := row.Spec.Resources.Memory; quota.Memory > 0 && need > quota.Memory-memory {
		return sandbox.Errorf(sandbox.KindCapacity, "ask for less memory, or try again when other sandboxes have ended",
			"this host has promised %d of %d MiB to other sandboxes; %d MiB more do not fit", memory>>20, quota.Memory>>20, need>>20)
	}
	return nil
}

// nextUID walks the round robin from the uid after the last one and takes the
// first that nobody has and that has rested.
func (t *tx) nextUID(row sandbox.Sandbox) (uid int, err error) {
	const count = sandbox.MaxSandboxUID - sandbox.MinUID + 1
	rested := nanos(row.CreatedAt.Add(-sandbox.UIDQuarantine))
	err = t.row(`
		WITH RECURSIVE
			start (uid) AS (SELECT CASE WHEN value BETWEEN ?1 AND ?2 - 1 THEN value + 1 ELSE ?1 END FROM counters WHERE name = 'last_uid'),
			candidate (i, uid) AS (
				SELECT 0, uid FROM start
				UNION ALL
				SELECT i + 1, CASE WHEN uid = ?2 THEN ?1 ELSE uid + 1 END FROM candidate WHERE i + 1 < ?3
			)
		SELECT uid FROM candidate
		WHERE NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.uid = candidate.uid AND (s.final = 0 OR s.ended_at > ?4))
		LIMIT 1`,
		sandbox.MinUID, sandbox.MaxSandboxUID, count, rested).Scan(&uid)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, sandbox.Errorf(sandbox.KindCapacity, "a uid rests for 24 hours after its sandbox; try again later",
			"all %d user ids for sandboxes are taken or resting", count)
	}
	if err != nil {
		return 0, err
	}
	_, err = t.exec("UPDATE counters SET value = ? WHERE name = 'last_uid'", uid)
	return uid, err
}

// conflict says what a broken UNIQUE means.
func conflict(row sandbox.Sandbox, err error) error {
	if sqliteCode(err) != sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		return err
	}
	if strings.Contains(err.Error(), "sandboxes.name") {
		return sandbox.Errorf(sandbox.KindConflict, "choose another name, or destroy that one first",
			"you already have a sandbox with the name %s", row.Name)
	}
	if strings.Contains(err.Error(), "sandboxes.uid") || strings.Contains(err.Error(), "sandboxes.alias") {
		return sandbox.Errorf(sandbox.KindConflict, "enter that one", "user %s has a sandbox already", row.Tenant)
	}
	return &sandbox.Error{
		Kind: sandbox.KindConflict, Msg: "this sandbox exists already",
		Hint: "make a new id", Err: err,
	}
}

const selectSandbox = "SELECT " + columns + " FROM sandboxes "

func (t *tx) sandbox(id sandbox.ID) (sandbox.Sandbox, error) {
	row, err := scanSandbox(t.row(selectSandbox+"WHERE id = ?", string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return row, notFound("sandbox")
	}
	return row, err
}

// Get implements sandbox.Store.
func (s *Store) Get(ctx context.Context, id sandbox.ID) (sandbox.Sandbox, error) {
	return s.one(ctx, "WHERE id = ?", string(id))
}

// ByUID implements sandbox.Store.
func (s *Store) ByUID(ctx context.Context, uid int) (sandbox.Sandbox, error) {
	return s.one(ctx, "WHERE uid = ? AND final = 0", uid)
}

// ByName implements sandbox.Store.
func (s *Store) ByName(ctx context.Context, tenant, name string) (sandbox.Sandbox, error) {
	return s.one(ctx, "WHERE tenant = ? AND name = ? AND name <> '' AND final = 0", tenant, name)
}

func (s *Store) one(ctx context.Context, where string, args ...any) (sandbox.Sandbox, error) {
	row, err := scanSandbox(s.r.QueryRowContext(ctx, selectSandbox+where, args...))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return sandbox.Sandbox{}, notFound("sandbox")
	case err != nil:
		return sandbox.Sandbox{}, s.fail("read sandbox", err)
	}
	return row, nil
}

// List implements sandbox.Store.
func (s *Store) List(ctx context.Context, f sandbox.Filter) ([]sandbox.Sandbox, error) {
	where, args := []string{"1"}, []any{}
	add := func(cond string, v ...any) { where, args = append(where, cond), append(args, v...) }
	if f.Tenant != "" {
		add("tenant = ?", f.Tenant)
	}
	if f.Living {
		add("final = 0")
	}
	for k, v := range f.Labels {
		// Not json_extract: a key is data here, not a path.
		add("EXISTS (SELECT 1 FROM json_each(labels) l WHERE l.key = ? AND l.value = ?)", k, v)
	}
	if f.Before != "" {
		// The cursor must be one that this caller can see, or it would tell whether an
		// id of another tenant exists.
		at, err := s.Get(ctx, f.Before)
		if err != nil {
			return nil, err
		}
		if f.Tenant != "" && at.Tenant != f.Tenant {
			return nil, notFound("sandbox")
		}
		add("(created_at, n) < (SELECT created_at, n FROM sandboxes WHERE id = ?)", string(f.Before))
	}
	limit := defaultList
	if f.Limit > 0 {
		limit = min(f.Limit, sandbox.MaxList)
	}
	args = append(args, limit)
	return query(ctx, s, "list sandboxes", scanSandbox,
		selectSandbox+"WHERE "+strings.Join(where, " AND ")+" ORDER BY created_at DESC, n DESC LIMIT ?", args...)
}

// Update implements sandbox.Store.
func (s *Store) Update(ctx context.Context, id sandbox.ID, change func(*sandbox.Sandbox) ([]sandbox.Event, error)) (got sandbox.Sandbox, err error) {
	err = s.write(ctx, "update sandbox", func(t *tx) error {
		old, err := t.sandbox(id)
		if err != nil {
			return err
		}
		before, err := encodeSandbox(old)
		if err != nil {
			return err
		}
		row := old
		events, err := change(&row)
		if err != nil {
			return callerError{err}
		}
		if row.State == sandbox.StateReady {
			open, err := t.openConnections(id)
			if err != nil {
				return err
			}
			if open > 0 { // a user's, who waited for it
				row.State = sandbox.StateRunning
			}
		}
		after, err := encodeSandbox(row)
		if err != nil {
			return err
		}
		if err := checkFrozen(before, after, old.State); err != nil {
			return err
		}
		if err := t.update(id, before, after); err != nil {
			return conflict(row, err)
		}
		if got, err = t.sandbox(id); err != nil {
			return err
		}
		return t.append(events...)
	})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	return got, nil
}

// frozen are the columns that no change may touch.
var frozen = []string{"id", "tenant", "spec", "digest", "uid", "alias", "created_at", "pool"}

// checkFrozen refuses changes that our own code must never ask for. before and
// after are encoded rows: a spec is compared as what its digest is taken over.
func checkFrozen(before, after []any, state sandbox.State) error {
	for i, name := range columnNames() {
		if before[i] == after[i] {
			continue
		}
		if slices.Contains(frozen, name) {
			return fmt.Errorf("change of a sandbox's %s, which is frozen", name)
		}
		if name == "state" && state.Final() {
			return fmt.Errorf("change of a sandbox's state from %v to %v: it is final", before[i], after[i])
		}
	}
	return nil
}

// update writes the columns that differ.
func (t *tx) update(id sandbox.ID, before, after []any) error {
	var set []string
	var args []any
	for i, name := range columnNames() {
		if before[i] != after[i] {
			set, args = append(set, name+" = ?"), append(args, after[i])
		}
	}
	if len(set) == 0 {
		return nil
	}
	_, err := t.exec("UPDATE sandboxes SET "+strings.Join(set, ", ")+" WHERE id = ?", append(args, string(id))...)
	return err
}

func columnNames() []string {
	names := strings.Split(columns, ",")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	return names
}
