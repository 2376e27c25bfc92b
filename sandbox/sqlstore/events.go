package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/podspawn/podspawn/sandbox"
)

// maxEvents bounds one answer of Events and RefusalsOf.
const maxEvents = 1000

// append adds events to the chain: each gets the next number and the hash of the
// one before. The write lock makes that the only one there can be.
func (t *tx) append(events ...sandbox.Event) error {
	if len(events) == 0 {
		return nil
	}
	seq, prev := int64(0), sandbox.GenesisHash
	err := t.row("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").Scan(&seq, &prev)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	for _, e := range events {
		seq++
		sealed, err := e.Seal(seq, prev)
		if err != nil {
			return err
		}
		line, err := sealed.Line()
		if err != nil {
			return err
		}
		if _, err := t.exec("INSERT INTO events (seq, event, sandbox, hash, line) VALUES (?, ?, ?, ?, ?)",
			seq, string(sealed.Event), string(sealed.Sandbox), sealed.Hash, string(line)); err != nil {
			return err
		}
		prev = sealed.Hash
	}
	t.appended = true
	return nil
}

// Append implements sandbox.Store.
func (s *Store) Append(ctx context.Context, events ...sandbox.Event) error {
	if len(events) == 0 {
		return nil
	}
	return s.write(ctx, "append to the audit log", func(t *tx) error { return t.append(events...) })
}

// Events implements sandbox.Store.
func (s *Store) Events(ctx context.Context, after int64, limit int) ([]sandbox.Event, error) {
	return s.events(ctx, "SELECT line FROM events WHERE seq > ? ORDER BY seq LIMIT ?", after, bound(limit, maxEvents))
}

// RefusalsOf implements sandbox.Store.
func (s *Store) RefusalsOf(ctx context.Context, id sandbox.ID, limit int) ([]sandbox.Event, error) {
	return s.events(ctx, "SELECT line FROM events WHERE sandbox = ? AND sandbox <> '' AND event = ? ORDER BY seq DESC LIMIT ?",
		string(id), string(sandbox.EventCertRefused), bound(limit, maxEvents))
}

func (s *Store) events(ctx context.Context, text string, args ...any) ([]sandbox.Event, error) {
	return query(ctx, s, "read the audit log", func(row scanner) (e sandbox.Event, err error) {
		var line string
		if err := row.Scan(&line); err != nil {
			return e, err
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return e, fmt.Errorf("%w: event: %w", errDamaged, err)
		}
		return e, nil
	}, text, args...)
}

// bound returns limit, or most when there is none or a larger one.
func bound(limit, most int) int {
	if limit <= 0 || limit > most {
		return most
	}
	return limit
}
