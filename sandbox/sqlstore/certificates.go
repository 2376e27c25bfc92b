package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

const (
	selectCertificates = `SELECT serial, sandbox, tenant, subject, token, key_id, blob, fingerprint, uses, used,
	issued_at, valid_before, revoked_at FROM certificates WHERE `
	selectCertificate = selectCertificates + "serial = ?"
)

func scanCertificate(row scanner) (c sandbox.Certificate, err error) {
	err = row.Scan(unsigned{&c.Serial}, &c.Sandbox, &c.Tenant, &c.Subject, &c.Token, &c.KeyID, &c.Blob, &c.Fingerprint,
		&c.Uses, &c.Used, moment{&c.IssuedAt}, moment{&c.ValidBefore}, moment{&c.RevokedAt})
	if errors.Is(err, sql.ErrNoRows) {
		return c, notFound("certificate")
	}
	return c, err
}

// Issue implements sandbox.Store.
func (s *Store) Issue(ctx context.Context, sign func(serial uint64) (sandbox.Certificate, sandbox.Event, error)) (c sandbox.Certificate, err error) {
	err = s.write(ctx, "issue certificate", func(t *tx) error {
		var last int64
		if err := t.row("SELECT value FROM counters WHERE name = 'last_serial'").Scan(&last); err != nil {
			return err
		}
		if last == math.MaxInt64 { // far below 2^64-1, which some tools take for "none"
			return sandbox.Errorf(sandbox.KindCapacity, "begin a new state file and a new certificate authority", "no serial number is left")
		}
		serial := uint64(last) + 1
		var ev sandbox.Event
		if c, ev, err = sign(serial); err != nil {
			return callerError{err}
		}
		if c.Serial != serial {
			return fmt.Errorf("certificate has serial %d, not %d", c.Serial, serial)
		}
		if _, err := t.sandbox(c.Sandbox); err != nil {
			return err
		}
		if _, err := t.exec(`INSERT INTO certificates (serial, sandbox, tenant, subject, token, key_id, blob, fingerprint,
			uses, used, issued_at, valid_before, revoked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			int64(serial), string(c.Sandbox), c.Tenant, c.Subject, c.Token, c.KeyID, notNil(c.Blob), c.Fingerprint,
			c.Uses, c.Used, nanos(c.IssuedAt), nanos(c.ValidBefore), nanos(c.RevokedAt)); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE counters SET value = ? WHERE name = 'last_serial'", int64(serial)); err != nil {
			return err
		}
		if c, err = scanCertificate(t.row(selectCertificate, int64(serial))); err != nil {
			return err
		}
		return t.append(ev)
	})
	if err != nil {
		return sandbox.Certificate{}, err
	}
	return c, nil
}

// Certificate implements sandbox.Store.
func (s *Store) Certificate(ctx context.Context, serial uint64) (sandbox.Certificate, error) {
	c, err := scanCertificate(s.r.QueryRowContext(ctx, selectCertificate, int64(serial)))
	if err != nil {
		return sandbox.Certificate{}, s.fail("read certificate", err)
	}
	return c, nil
}

// Certificates implements sandbox.Store.
func (s *Store) Certificates(ctx context.Context, f sandbox.CertificateFilter) ([]sandbox.Certificate, error) {
	where, args := []string{"serial > 0"}, []any{}
	for _, c := range []struct{ column, value string }{
		{"sandbox", string(f.Sandbox)}, {"key_id", f.KeyID}, {"token", f.Token}, {"tenant", f.Tenant},
	} {
		if c.value != "" {
			where, args = append(where, c.column+" = ?"), append(args, c.value)
		}
	}
	if f.Token != "" {
		where = append(where, "token <> ''") // lets the partial index serve
	}
	if !f.ValidAfter.IsZero() {
		where, args = append(where, "valid_before > ?"), append(args, nanos(f.ValidAfter))
	}
	if f.Revoked {
		where = append(where, "revoked_at <> 0")
	}
	return query(ctx, s, "list certificates", scanCertificate,
		selectCertificates+strings.Join(where, " AND ")+" ORDER BY serial", args...)
}

// RevokeCertificate implements sandbox.Store. The first time stays.
func (s *Store) RevokeCertificate(ctx context.Context, serial uint64, now time.Time, ev sandbox.Event) error {
	return s.write(ctx, "revoke certificate", func(t *tx) error {
		c, err := scanCertificate(t.row(selectCertificate, int64(serial)))
		if err != nil || !c.RevokedAt.IsZero() {
			return err
		}
		if _, err := t.exec("UPDATE certificates SET revoked_at = ? WHERE serial = ?", nanos(now), int64(serial)); err != nil {
			return err
		}
		return t.append(ev)
	})
}

// notNil: a nil slice would be stored as NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
