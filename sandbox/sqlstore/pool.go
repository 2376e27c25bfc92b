package sqlstore

import (
	"context"
	"errors"

	"github.com/podspawn/podspawn/sandbox"
)

// ClaimPooled implements sandbox.Store. The transaction has the write lock before
// it reads, so nobody else's claim, and no retirement, comes in between.
func (s *Store) ClaimPooled(ctx context.Context, want sandbox.Sandbox, quota sandbox.Quota, key string, events ...sandbox.Event) (got sandbox.Sandbox, err error) {
	if want.Tenant == "" || want.Pool == "" {
		return sandbox.Sandbox{}, errors.New("a claim without tenant or pool key")
	}
	err = s.write(ctx, "claim pooled sandbox", func(t *tx) error {
		row, err := t.sandbox(want.ID)
		if err != nil {
			return err
		}
		if row.State != sandbox.StatePooled || row.Pool != want.Pool {
			return notFound("pooled sandbox")
		}
		before, err := encodeSandbox(row)
		if err != nil {
			return err
		}
		row.Pool, row.State = "", sandbox.StateReady
		row.Tenant, row.Subject, row.Name, row.Labels = want.Tenant, want.Subject, want.Name, want.Labels
		row.Spec, row.Digest, row.User = want.Spec, want.Digest, want.User
		row.CreatedAt, row.ReadyAt = want.CreatedAt, want.CreatedAt
		row.ExpiresAt, row.LastActivity = want.ExpiresAt, want.LastActivity
		if err := t.checkQuota(row, quota); err != nil {
			return err
		}
		after, err := encodeSandbox(row)
		if err != nil {
			return err
		}
		if err := t.update(want.ID, before, after); err != nil {
			return conflict(row, err)
		}
		if key != "" {
			if _, err := t.exec("UPDATE idempotency SET value = ? WHERE tenant = ? AND key = ?", string(want.ID), want.Tenant, key); err != nil {
				return err
			}
		}
		if got, err = t.sandbox(want.ID); err != nil {
			return err
		}
		return t.append(events...)
	})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	return got, nil
}

// Pooled implements sandbox.Store.
func (s *Store) Pooled(ctx context.Context) ([]sandbox.Sandbox, error) {
	return query(ctx, s, "list the pool", scanSandbox, selectSandbox+"WHERE pool <> '' AND final = 0 ORDER BY n")
}
