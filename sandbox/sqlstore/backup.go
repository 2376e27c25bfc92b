package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// Backup writes a copy of the state as it is at one moment to path, which must
// not exist. It may be called while another process uses the state.
func (s *Store) Backup(ctx context.Context, path string) error {
	// SQLite would make it with the umask's mode.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("back up state: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("back up state: %w", err)
	}
	if _, err := s.w.ExecContext(ctx, "VACUUM INTO ?", path); err != nil {
		return errors.Join(s.fail("back up state", err), os.Remove(path))
	}
	return nil
}

// Restored is called once on a state that was put back from a backup. What the
// state says about certificates that are still valid may be out of date (uses
// that were made since, revocations), so all of them are revoked.
func (s *Store) Restored(ctx context.Context, now time.Time, ev sandbox.Event) error {
	return s.write(ctx, "close a restored state", func(t *tx) error {
		if _, err := t.exec("UPDATE certificates SET revoked_at = ? WHERE revoked_at = 0 AND valid_before > ?", nanos(now), nanos(now)); err != nil {
			return err
		}
		return t.append(ev)
	})
}
