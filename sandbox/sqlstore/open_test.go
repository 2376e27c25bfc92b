package sqlstore

import (
	"bytes"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

func TestOpenMakesAPrivateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?c#d%20.db")
	s := open(t, path)
	if _, err := newReady(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		st, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("mode of state%s = %v, want 0600", suffix, st.Mode().Perm())
		}
	}
}

func TestOpenIsDurable(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		for name, db := range map[string]*sql.DB{"writer": s.w, "reader": s.r} {
			var got string
			if err := db.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s of the %s = %s, %v, want %s", pragma, name, got, err, want)
			}
		}
	}
	if _, err := s.r.Exec("DELETE FROM events"); err == nil {
		t.Error("the readers can write")
	}
}

// TestOpenLeavesForeignFilesAlone: whatever is refused is as it was, byte for byte.
func TestOpenLeavesForeignFilesAlone(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, path string)
		hint string
	}{
		{"no database", func(t *testing.T, path string) { write(t, path, []byte(strings.Repeat("not a database\n", 100))) }, "damaged"},
		{"damaged page", func(t *testing.T, path string) {
			s := mustOpen(t, path)
			for range 20 {
				if _, err := newReady(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			closeStore(t, s)
			b := read(t, path)
			for i := 4096; i < len(b); i++ { // all pages but the first
				b[i] ^= 0x5a
			}
			write(t, path, b)
		}, "damaged"},
		{"cut off", func(t *testing.T, path string) {
			closeStore(t, mustOpen(t, path))
			b := read(t, path)
			write(t, path, b[:len(b)/2])
		}, "damaged"},
		{"newer schema", func(t *testing.T, path string) {
			closeStore(t, mustOpen(t, path))
			execute(t, path, "PRAGMA user_version = 9999")
		}, "newer podspawn"},
		{"another program's", func(t *testing.T, path string) { execute(t, path, "CREATE TABLE theirs (x)") }, "another state file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			tt.make(t, path)
			before := read(t, path)
			s, err := Open(t.Context(), path)
			if err == nil {
				closeStore(t, s)
				t.Fatal("Open succeeded")
			}
			if p := sandbox.Public(err); p.Kind != sandbox.KindUnavailable || !strings.Contains(p.Hint, tt.hint) {
				t.Errorf("Open = %s %q (%q), %v, want %s with a hint of %q", p.Kind, p.Msg, p.Hint, err, sandbox.KindUnavailable, tt.hint)
			}
			if !bytes.Equal(read(t, path), before) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "target"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, dir, filepath.Join(dir, "no", "folder", "state.db")} {
		_, err := Open(t.Context(), path)
		if p := sandbox.Public(err); err == nil || p.Kind != sandbox.KindUnavailable || p.Hint == "" {
			t.Errorf("Open(%s) = %v, want %s with a hint", path, err, sandbox.KindUnavailable)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "target")); err == nil {
		t.Error("Open followed the link")
	}
}

func TestOpenByManyAtOnceMigratesOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := Open(t.Context(), path)
			if err != nil {
				t.Errorf("Open: %v", err)
				return
			}
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestClosedStoreIsUnavailable(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "state.db"))
	closeStore(t, s)
	_, err := s.Get(t.Context(), sandbox.NewID())
	if err == nil || sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("Get = %v, want %s", err, sandbox.KindUnavailable)
	}
	if err := s.Append(t.Context(), sandbox.Event{}); err == nil || sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("Append = %v, want %s", err, sandbox.KindUnavailable)
	}
}

func TestUIDsRestAndGoRound(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	now := time.Now()
	insert := func(at time.Time) (sandbox.Sandbox, error) {
		return s.Insert(t.Context(), sandbox.Sandbox{ID: sandbox.NewID(), Tenant: "t", Spec: spec(), CreatedAt: at}, sandbox.Quota{}, sandbox.Event{})
	}
	last := func(uid int) {
		t.Helper()
		if _, err := s.w.Exec("UPDATE counters SET value = ? WHERE name = 'last_uid'", uid); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(at time.Time, want int) sandbox.Sandbox {
		t.Helper()
		r, err := insert(at)
		if err != nil || r.UID != want {
			t.Fatalf("uid = %d, %v, want %d", r.UID, err, want)
		}
		return r
	}
	first := expect(now, sandbox.MinUID)
	if _, err := s.Update(t.Context(), first.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
		r.State, r.EndedAt = sandbox.StateDestroyed, now
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	last(sandbox.MaxSandboxUID - 1)
	expect(now, sandbox.MaxSandboxUID)
	expect(now.Add(sandbox.UIDQuarantine-1), sandbox.MinUID+1) // the first still rests
	last(sandbox.MaxSandboxUID)
	expect(now.Add(sandbox.UIDQuarantine), sandbox.MinUID) // rested
	last(sandbox.MaxSandboxUID - 1)
	expect(now.Add(sandbox.UIDQuarantine), sandbox.MinUID+2) // the others live
	last(12)                                                 // nonsense: begin anew
	expect(now.Add(sandbox.UIDQuarantine), sandbox.MinUID+3)

	// None is left.
	if _, err := s.w.Exec(`WITH RECURSIVE u (uid) AS (SELECT ?1 UNION ALL SELECT uid + 1 FROM u WHERE uid < ?2)
		INSERT INTO sandboxes (`+columns+`) SELECT 'x' || uid, 't', '', '', '{}', '{}', '', uid, 'destroyed', 1, '', '', '', '', 0, 0, 0, 1, 0, 0, 0, 0, 0, ?3, '', '' FROM u`,
		sandbox.MinUID, sandbox.MaxSandboxUID, now.UnixNano()); err != nil {
		t.Fatal(err)
	}
	if _, err := insert(now); err == nil || sandbox.KindOf(err) != sandbox.KindCapacity {
		t.Errorf("Insert without a free uid = %v, want %s", err, sandbox.KindCapacity)
	}
}

func TestLastSerialIsRefused(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	r, err := newReady(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.w.Exec("UPDATE counters SET value = ? WHERE name = 'last_serial'", int64(1<<63-2)); err != nil {
		t.Fatal(err)
	}
	if c, err := issue(t.Context(), s, r.ID, 0); err != nil || c.Serial != 1<<63-1 {
		t.Fatalf("serial = %d, %v", c.Serial, err)
	}
	if _, err := issue(t.Context(), s, r.ID, 0); err == nil || sandbox.KindOf(err) != sandbox.KindCapacity {
		t.Errorf("Issue without a serial = %v, want %s", err, sandbox.KindCapacity)
	}
}

func TestNotifyIsCalledAfterCommitsWithEvents(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	calls := 0
	s.Notify(func() {
		if events, err := s.Events(t.Context(), 0, 0); err != nil || len(events) == 0 {
			t.Errorf("in Notify: %d events, %v", len(events), err)
		}
		calls++
	})
	r, err := newReady(t.Context(), s) // one change with an event, one without
	if err != nil || calls != 1 {
		t.Fatalf("%d calls, %v, want 1", calls, err)
	}
	if _, err := issue(t.Context(), s, "sbx_none", 0); err == nil || calls != 1 {
		t.Errorf("%d calls after a failed change of %s, want 1", calls, r.ID)
	}
}

func mustOpen(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeStore(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func execute(t *testing.T, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
