package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// rememberFor is how long an idempotency key is kept.
const rememberFor = 24 * time.Hour

// Remember implements sandbox.Store.
func (s *Store) Remember(ctx context.Context, tenant, key, digest, value string, now time.Time) (gotDigest, gotValue string, fresh bool, err error) {
	err = s.write(ctx, "remember request", func(t *tx) error {
		fresh = false
		if _, err := t.exec("DELETE FROM idempotency WHERE at <= ?", nanos(now.Add(-rememberFor))); err != nil {
			return err
		}
		err := t.row("SELECT digest, value FROM idempotency WHERE tenant = ? AND key = ?", tenant, key).Scan(&gotDigest, &gotValue)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		gotDigest, gotValue, fresh = digest, value, true
		_, err = t.exec("INSERT INTO idempotency (tenant, key, digest, value, at) VALUES (?, ?, ?, ?, ?)",
			tenant, key, digest, value, nanos(now))
		return err
	})
	if err != nil {
		return "", "", false, err
	}
	return gotDigest, gotValue, fresh, nil
}
