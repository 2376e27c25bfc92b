package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// scanner is *sql.Row and *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

// query runs a query on the readers and reads each row with scan.
func query[T any](ctx context.Context, s *Store, doing string, scan func(scanner) (T, error), text string, args ...any) (got []T, err error) {
	defer func() {
		if err != nil {
			got, err = nil, s.fail(doing, err)
		}
	}()
	rows, err := s.r.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		got = append(got, v)
	}
	return got, rows.Err()
}

// nanos is how a time is stored: 0 for the zero time.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// moment is a time as it is read.
type moment struct{ t *time.Time }

// Scan implements sql.Scanner.
func (m moment) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("%w: a time is a %T", errDamaged, src)
	}
	*m.t = time.Time{}
	if n != 0 {
		*m.t = time.Unix(0, n).UTC()
	}
	return nil
}

// unsigned is a 64-bit number as it is read; it is written as int64(v).
type unsigned struct{ v *uint64 }

// Scan implements sql.Scanner.
func (u unsigned) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("%w: a number is a %T", errDamaged, src)
	}
	*u.v = uint64(n)
	return nil
}

// document is a JSON column as it is read.
type document struct{ v any }

// Scan implements sql.Scanner.
func (d document) Scan(src any) error {
	text, ok := src.(string)
	if !ok {
		return fmt.Errorf("%w: a document is a %T", errDamaged, src)
	}
	if err := json.Unmarshal([]byte(text), d.v); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}

// encode is a JSON column as it is written.
func encode(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}
