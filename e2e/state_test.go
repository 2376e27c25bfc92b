package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	stateDir  = "/var/lib/podspawn"
	stateFile = stateDir + "/state.db"
)

// stopped ends the daemon in order for one test, and starts it again afterwards.
func (h *machine) stopped(t *testing.T) {
	t.Helper()
	if err := h.end("daemon", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.started(t) })
}

func (h *machine) started(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	there := h.procs["daemon"] != nil
	h.mu.Unlock()
	if there {
		return
	}
	if err := errors.Join(h.start("daemon", podspawn, "daemon"), h.awaitReady()); err != nil {
		t.Fatal(err)
	}
}

// A state that cannot be used: the daemon says so with the remedy and does not
// start, nobody gets in, the file is as it was, and with it mended everything goes
// on, the sandbox included.
func TestStateThatCannotBeUsed(t *testing.T) {
	h := need(t)
	s := create(t, "--grace", "10m")
	c := connectable(t, s)
	h.stopped(t)
	good, err := os.ReadFile(stateFile)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(stateFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		break_ func() (repair func())
		hint   string
	}{
		{"corrupt", func() func() {
			b := bytes.Clone(good)
			for i := 4096; i < len(b); i++ {
				b[i] ^= 0x5a
			}
			put(b)
			return func() { put(good) }
		}, "is damaged"},
		{"cut off", func() func() { put(good[:len(good)/2]); return func() { put(good) } }, "is damaged"},
		{"newer schema", func() func() {
			b := bytes.Clone(good)
			binary.BigEndian.PutUint32(b[60:], 999) // user_version, sqlite.org/fileformat.html
			put(b)
			return func() { put(good) }
		}, "newer podspawn"},
		{"read-only", func() func() {
			if err := errors.Join(command("mount", "--bind", stateDir, stateDir), command("mount", "-o", "remount,bind,ro", stateDir)); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := command("umount", stateDir); err != nil {
					t.Fatal(err)
				}
			}
		}, "read-only"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			repair := tc.break_()
			before, err := os.ReadFile(stateFile)
			if err != nil {
				t.Fatal(err)
			}
			r := run(t, nil, podspawn, "daemon")
			if r.code == 0 || !strings.Contains(r.stderr, "podspawn: hint: ") || !strings.Contains(r.stderr, tc.hint) {
				t.Errorf("daemon: %v, want an error with a hint of %q", r, tc.hint)
			}
			if r := c.ssh(t, nil, "echo in"); r.code != 255 || r.stdout != "" {
				t.Errorf("ssh: %v, want refused", r)
			}
			after, err := os.ReadFile(stateFile)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file was changed (%v)", err)
			}
			repair()
		})
	}
	h.started(t)
	if r := connectable(t, s).ssh(t, nil, "echo in"); r.stdout != "in\n" {
		t.Errorf("with the state mended: %v", r)
	}
}

// The disk of the state is full: no login and no create goes unrecorded; with
// room again everything works, and nothing was lost.
func TestStateDiskFull(t *testing.T) {
	h := need(t)
	s := create(t, "--grace", "10m")
	h.stopped(t)
	kept := filepath.Join(t.TempDir(), "state")
	small := func() error {
		return errors.Join(command("cp", "-a", stateDir, kept), command("mount", "-t", "tmpfs", "-o", "size=6m,mode=711", "tmpfs", stateDir),
			command("cp", "-a", kept+"/.", stateDir))
	}
	if err := small(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before stopped's
		back := kept + ".back"
		if err := errors.Join(h.end("daemon", syscall.SIGTERM), command("cp", "-a", stateDir, back),
			command("umount", stateDir), command("cp", "-a", back+"/.", stateDir)); err != nil {
			t.Error(err)
		}
		_ = os.Remove(stateFile + "-wal") // of before
		_ = os.Remove(stateFile + "-shm")
	})
	h.started(t)
	c := connectable(t, s)
	if err := os.WriteFile(stateDir+"/filler", make([]byte, 64<<20), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	r := run(t, nil, podspawn, "create", "unrecorded")
	if r.code == 0 || !strings.Contains(r.stderr, "is full") {
		t.Errorf("create: %v, want an error that says what is full", r)
	}
	if r := c.ssh(t, nil, "echo in"); r.code == 0 || strings.Contains(r.stdout, "in\n") {
		t.Errorf("ssh: %v, want refused: it could not be recorded", r)
	}
	if err := os.Remove(stateDir + "/filler"); err != nil {
		t.Fatal(err)
	}
	if r := connectable(t, s).ssh(t, nil, "echo in"); r.stdout != "in\n" {
		t.Errorf("with room again: %v", r)
	}
	if r := run(t, nil, podspawn, "get", "unrecorded"); r.code != 3 {
		t.Errorf("get of what was refused: %v, want not found", r)
	}
}

// Backup from a running service, restore into an empty place and over another
// state.
func TestBackupAndRestore(t *testing.T) {
	h := need(t)
	s := create(t, "kept", "--grace", "10m")
	old := connectable(t, s)
	file := filepath.Join(t.TempDir(), "backup.tar")
	if r := run(t, nil, podspawn, "backup", file); r.code != 0 || r.stdout != file+"\n" {
		t.Fatalf("backup: %v", r)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("backup: %v, %v, want mode 0600", st, err)
	}
	if r := run(t, nil, podspawn, "backup", file); r.code == 0 {
		t.Errorf("a second backup overwrote the first: %v", r)
	}
	piped := run(t, nil, podspawn, "backup", "-")
	if piped.code != 0 || !strings.Contains(piped.stdout, "state.db") {
		t.Errorf("backup -: exit %d, %d bytes", piped.code, len(piped.stdout))
	}
	if r := run(t, nil, podspawn, "restore", "--force", file); r.code != 5 || !strings.Contains(r.stderr, "daemon runs") {
		t.Errorf("restore under a daemon: %v, want exit 5", r)
	}
	later := create(t, "later", "--grace", "10m") // unknown to the backup
	h.stopped(t)
	if r := run(t, nil, podspawn, "restore", file); r.code == 0 || !strings.Contains(r.stderr, "--force") {
		t.Errorf("restore over a state: %v, want refused", r)
	}
	ca, err := os.ReadFile(userCA)
	if err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, podspawn, "restore", "--force", file); r.code != 0 {
		t.Fatalf("restore --force: %v", r)
	}
	if got, err := os.ReadFile(userCA); err != nil || !bytes.Equal(ca, got) {
		t.Errorf("the CA key after the restore: %v, want the same", err)
	}
	for path, mode := range map[string]os.FileMode{userCA: 0o400, stateFile: 0o600, filepath.Dir(userCA): 0o700} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %o", path, st, err, mode)
		}
	}
	if r := run(t, nil, podspawn, "server-setup"); r.code != 0 {
		t.Errorf("server-setup: %v", r)
	}
	h.started(t)
	if r := old.ssh(t, nil, "echo in"); r.code == 0 {
		t.Errorf("a certificate of before the restore: %v, want revoked", r)
	}
	if r := connectable(t, s).ssh(t, nil, "echo in"); r.stdout != "in\n" {
		t.Errorf("the sandbox of the backup: %v", r)
	}
	noLeftovers(t, later) // nobody knows it any more
	kept, err := filepath.Glob(stateDir + "/replaced-*")
	if err != nil || len(kept) != 1 {
		t.Fatalf("what was replaced: %v, %v", kept, err)
	}
	if err := os.RemoveAll(kept[0]); err != nil {
		t.Fatal(err)
	}
}

// Other binaries over those that run: sessions go on, new ones work, and the
// state is read by both.
func TestUpgradeUnderALiveSession(t *testing.T) {
	h := need(t)
	s := create(t, "--grace", "10m")
	l := connectable(t, s).live(t)
	h.faulty(t) // by rename, as make up does
	l.echo("after the upgrade")
	if got := get(t, s.ID); got.State != "running" {
		t.Errorf("state = %s, want running", got.State)
	}
	if r := connectable(t, s).ssh(t, nil, "echo in"); r.stdout != "in\n" {
		t.Errorf("a login after the upgrade: %v", r)
	}
	if err := l.close(); err != nil {
		t.Errorf("session ends with %v", err)
	}
}
