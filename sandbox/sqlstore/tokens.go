package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/podspawn/podspawn/sandbox"

	sqlite3 "modernc.org/sqlite/lib"
)

const selectToken = `SELECT id, tenant, subject, scopes, caps, issued_at, expires_at, revoked_at FROM tokens `

func scanToken(row scanner) (t sandbox.APIToken, err error) {
	err = row.Scan(&t.ID, &t.Tenant, &t.Subject, document{&t.Scopes}, document{&t.Caps},
		moment{&t.IssuedAt}, moment{&t.ExpiresAt}, moment{&t.RevokedAt})
	if errors.Is(err, sql.ErrNoRows) {
		return t, notFound("token")
	}
	return t, err
}

// AddToken implements sandbox.Store. An id that exists is KindConflict.
func (s *Store) AddToken(ctx context.Context, a sandbox.APIToken, ev sandbox.Event) error {
	scopes, err := encode(a.Scopes)
	if err != nil {
		return err
	}
	caps, err := encode(a.Caps)
	if err != nil {
		return err
	}
	return s.write(ctx, "add token", func(t *tx) error {
		_, err := t.exec("INSERT INTO tokens (id, tenant, subject, scopes, caps, issued_at, expires_at, revoked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			a.ID, a.Tenant, a.Subject, scopes, caps, nanos(a.IssuedAt), nanos(a.ExpiresAt), nanos(a.RevokedAt))
		if sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
			return &sandbox.Error{Kind: sandbox.KindConflict, Msg: "this token exists already", Hint: "make a new id", Err: err}
		}
		if err != nil {
			return err
		}
		return t.append(ev)
	})
}

// Token implements sandbox.Store.
func (s *Store) Token(ctx context.Context, id string) (sandbox.APIToken, error) {
	t, err := scanToken(s.r.QueryRowContext(ctx, selectToken+"WHERE id = ?", id))
	if err != nil {
		return sandbox.APIToken{}, s.fail("read token", err)
	}
	return t, nil
}

// Tokens implements sandbox.Store.
func (s *Store) Tokens(ctx context.Context, tenant string) ([]sandbox.APIToken, error) {
	return query(ctx, s, "list tokens", scanToken, selectToken+"WHERE ?1 = '' OR tenant = ?1 ORDER BY n DESC", tenant)
}

// RevokeToken implements sandbox.Store. The first time stays.
func (s *Store) RevokeToken(ctx context.Context, id string, now time.Time, ev sandbox.Event) error {
	return s.write(ctx, "revoke token", func(t *tx) error {
		have, err := scanToken(t.row(selectToken+"WHERE id = ?", id))
		if err != nil || !have.RevokedAt.IsZero() {
			return err
		}
		if _, err := t.exec("UPDATE tokens SET revoked_at = ? WHERE id = ?", nanos(now), id); err != nil {
			return err
		}
		return t.append(ev)
	})
}
