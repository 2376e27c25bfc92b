package sqlstore

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// A backup taken under writes is a complete state of one moment, and restoring it
// leaves no certificate that opens anything.
func TestBackupWhileInUse(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "state.db"))
	row, err := newReady(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	cert, err := s.Issue(t.Context(), func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
		return sandbox.Certificate{Serial: serial, Sandbox: row.ID, Uses: 1, Blob: []byte("x"), IssuedAt: now, ValidBefore: now.Add(time.Minute)},
			sandbox.Event{Time: now, Event: sandbox.EventCertIssued}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = s.Append(context.Background(), sandbox.Event{Time: now, Event: sandbox.EventPolicyDenied}) // only to be busy
		}
	})
	copied := filepath.Join(dir, "copy.db")
	err = s.Backup(t.Context(), copied)
	cancel()
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(copied); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("copy: %v, %v, want mode 0600", st, err)
	}
	if err := s.Backup(t.Context(), copied); err == nil {
		t.Error("a second backup overwrote the first")
	}
	r := open(t, copied)
	if got, err := r.Get(t.Context(), row.ID); err != nil || got.State != sandbox.StateReady || got.UID != row.UID {
		t.Errorf("sandbox in the copy = %+v, %v", got, err)
	}
	evs, err := r.Events(t.Context(), 0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	prev := sandbox.GenesisHash
	for _, e := range evs {
		if e.Prev != prev {
			t.Fatalf("event %d follows %s, want %s", e.Seq, e.Prev, prev)
		}
		prev = e.Hash
	}
	if err := r.Restored(t.Context(), now, sandbox.Event{Time: now, Event: sandbox.EventSetupChanged}); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Certificate(t.Context(), cert.Serial); err != nil || got.RevokedAt.IsZero() {
		t.Errorf("certificate after a restore = %+v, %v, want revoked", got, err)
	}
}

// The first release's state, as its binary wrote it, is read by this one.
func TestOpenReadsTheFirstSchema(t *testing.T) {
	fixture, err := os.ReadFile("testdata/schema1.db")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	write(t, path, fixture)
	s := open(t, path)
	rows, err := s.List(t.Context(), sandbox.Filter{})
	if err != nil || len(rows) != 2 {
		t.Fatalf("rows = %v, %v, want two", rows, err)
	}
	for _, row := range rows {
		if row.Spec.Digest() == "" || row.Digest == "" || row.UID < sandbox.MinUID || row.Tenant != "fixture" {
			t.Errorf("row = %+v", row)
		}
	}
	if c, err := s.Certificate(t.Context(), 1); err != nil || c.Uses != 3 {
		t.Errorf("certificate 1 = %+v, %v", c, err)
	}
	if tok, err := s.Token(t.Context(), "tok_fixture"); err != nil || tok.Subject != "ann" {
		t.Errorf("token = %+v, %v", tok, err)
	}
	evs, err := s.Events(t.Context(), 0, 100)
	if err != nil || len(evs) == 0 {
		t.Fatalf("events = %v, %v", evs, err)
	}
	// And it is written to as before: serials go on, the chain too.
	if _, err := newReady(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	more, err := s.Events(t.Context(), evs[len(evs)-1].Seq, 1)
	if err != nil || len(more) != 1 || more[0].Prev != evs[len(evs)-1].Hash {
		t.Errorf("the chain goes on with %v, %v", more, err)
	}
}
