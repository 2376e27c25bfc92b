package sqlstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

func spec() sandbox.Spec { return sandbox.Spec{}.WithDefaults(sandbox.BuiltinDefaults()) }

// newReady puts a sandbox that can be connected to into the store.
func newReady(ctx context.Context, s *Store) (sandbox.Sandbox, error) {
	now := time.Now()
	r, err := s.Insert(ctx, sandbox.Sandbox{ID: sandbox.NewID(), Tenant: "t", Spec: spec(), Digest: spec().Digest(), CreatedAt: now},
		sandbox.Quota{}, sandbox.Event{Time: now, Event: sandbox.EventSandboxCreated})
	if err != nil {
		return r, err
	}
	return s.Update(ctx, r.ID, func(r *sandbox.Sandbox) ([]sandbox.Event, error) {
		r.State = sandbox.StateReady
		return nil, nil
	})
}

func issue(ctx context.Context, s *Store, id sandbox.ID, uses int) (sandbox.Certificate, error) {
	return s.Issue(ctx, func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
		return sandbox.Certificate{Serial: serial, Sandbox: id, Uses: uses, Blob: make([]byte, 700)},
			sandbox.Event{Time: time.Now(), Event: sandbox.EventCertIssued, Sandbox: id, Serial: serial}, nil
	})
}

func child(t *testing.T, work, arg string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^$", arg)
	cmd.Env = append(os.Environ(), childEnv+"="+work)
	cmd.Stderr = os.Stderr
	return cmd
}

// childWrite changes the state as fast as it can until it is killed. It says the
// serial of each certificate after its commit.
func childWrite(path string) int {
	ctx := context.Background()
	s, err := Open(ctx, path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		r, err := newReady(ctx, s)
		if err == nil {
			var c sandbox.Certificate
			if c, err = issue(ctx, s, r.ID, 1); err == nil {
				con := sandbox.Connection{ID: sandbox.NewToken("con_"), Sandbox: r.ID, Serial: c.Serial, OpenedAt: time.Now()}
				_, err = s.Claim(ctx, con, sandbox.Event{Time: time.Now(), Event: sandbox.EventSessionOpened, Sandbox: r.ID})
				fmt.Println(c.Serial)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

func TestKilledWriterLeavesAConsistentState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var said bytes.Buffer // whatever child has said is durable
	for round := range 5 {
		cmd := child(t, "write", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Killed after some commits, somewhere in the next ones.
		buf := make([]byte, 4096)
		for n := 0; n < 10+40*round; {
			k, err := out.Read(buf)
			if err != nil {
				t.Fatalf("child ended by itself: %v", err)
			}
			said.Write(buf[:k])
			n += k
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for {
			k, err := out.Read(buf)
			said.Write(buf[:k])
			if err != nil {
				break
			}
		}
		_ = cmd.Wait() // it was killed
		checkConsistent(t, path, said.String())
	}
}

// checkConsistent opens the state after a crash and compares what commits together.
func checkConsistent(t *testing.T, path, said string) {
	t.Helper()
	s, err := Open(t.Context(), path) // runs quick_check
	if err != nil {
		t.Fatalf("Open after a kill: %v", err)
	}
	defer s.Close()
	var certs, used, conns, running, serial, sandboxes int
	if err := s.r.QueryRow(`SELECT count(*), coalesce(sum(used), 0), (SELECT count(*) FROM connections),
		(SELECT count(*) FROM sandboxes WHERE state = 'running'), (SELECT value FROM counters WHERE name = 'last_serial'),
		(SELECT count(*) FROM sandboxes) FROM certificates`).Scan(&certs, &used, &conns, &running, &serial, &sandboxes); err != nil {
		t.Fatal(err)
	}
	count := map[sandbox.EventKind]int{}
	prev := sandbox.GenesisHash
	for after := int64(0); ; {
		events, err := s.Events(t.Context(), after, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			if e.Seq != after+1 || e.Prev != prev {
				t.Fatalf("event %d with prev %s follows event %d with hash %s", e.Seq, e.Prev, after, prev)
			}
			after, prev = e.Seq, e.Hash
			count[e.Event]++
		}
	}
	if certs != serial || certs != count[sandbox.EventCertIssued] || used != conns || conns != running ||
		used != count[sandbox.EventSessionOpened] || sandboxes != count[sandbox.EventSandboxCreated] {
		t.Errorf("inconsistent: %d certificates, last serial %d, used %d, %d connections, %d running, %d sandboxes, events %v",
			certs, serial, used, conns, running, sandboxes, count)
	}
	if lines := strings.Count(said, "\n"); certs < lines {
		t.Errorf("%d certificates are left of the %d that were committed", certs, lines)
	}
}

// childClaim waits for a line on stdin, then tries to claim certificate 1 many
// times, and says how often it got it.
func childClaim(path string) int {
	ctx := context.Background()
	s, err := Open(ctx, path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.Close()
	rows, err := s.List(ctx, sandbox.Filter{})
	if err != nil || len(rows) != 1 {
		fmt.Fprintln(os.Stderr, rows, err)
		return 1
	}
	fmt.Println("open")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return 1
	}
	won := 0
	for range 20 {
		con := sandbox.Connection{ID: sandbox.NewToken("con_"), Sandbox: rows[0].ID, Serial: 1, OpenedAt: time.Now()}
		switch _, err := s.Claim(ctx, con, sandbox.Event{Event: sandbox.EventSessionOpened}); {
		case err == nil:
			won++
		case sandbox.KindOf(err) != sandbox.KindPolicy:
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	fmt.Println(won)
	return 0
}

func TestOneClaimWinsAcrossProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	r, err := newReady(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := issue(t.Context(), s, r.ID, 1); err != nil {
		t.Fatal(err)
	}
	const processes = 4
	cmds, outs := make([]*exec.Cmd, processes), make([]*bytes.Buffer, processes)
	start := make([]*os.File, processes)
	for i := range processes {
		cmds[i], outs[i] = child(t, "claim", path), &bytes.Buffer{}
		in, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		defer w.Close()
		start[i] = w
		cmds[i].Stdin, cmds[i].Stdout = in, outs[i]
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range start {
		if _, err := w.WriteString("\n"); err != nil {
			t.Fatal(err)
		}
	}
	won := 0
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("child %d: %v", i, err)
		}
		var n int
		if _, err := fmt.Sscanf(outs[i].String(), "open\n%d\n", &n); err != nil {
			t.Fatalf("child %d said %q", i, outs[i])
		}
		won += n
	}
	if won != 1 {
		t.Errorf("%d claims of a one-use certificate succeeded, want 1", won)
	}
}

// childFull runs in a mount namespace of its own and fills a small file system.
func childFull(dir string) int {
	if err := full(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func full(dir string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return err
	}
	ctx := context.Background()
	path := filepath.Join(dir, "state.db")
	s, err := Open(ctx, path)
	if err != nil {
		return err
	}
	r, err := newReady(ctx, s)
	if err != nil {
		return err
	}
	issued := 0
	for err == nil {
		if _, err = issue(ctx, s, r.ID, 0); err == nil {
			issued++
		}
		if issued > 5000 {
			return errors.New("the disk does not get full")
		}
	}
	if p := sandbox.Public(err); p.Kind != sandbox.KindUnavailable || !strings.Contains(p.Hint, "full") {
		return fmt.Errorf("issue on a full disk = %s %q (%q), %w", p.Kind, p.Msg, p.Hint, err)
	}
	if _, err := s.Certificate(ctx, uint64(issued)); err != nil {
		return fmt.Errorf("the last certificate can't be read on a full disk: %w", err)
	}
	if _, err := s.Certificate(ctx, uint64(issued)+1); sandbox.KindOf(err) != sandbox.KindNotFound {
		return fmt.Errorf("the failed certificate: %w", err)
	}
	// Space again: it goes on with the next serial.
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
		return err
	}
	c, err := issue(ctx, s, r.ID, 0)
	if err != nil || c.Serial != uint64(issued)+1 {
		return fmt.Errorf("after the disk was full: serial %d, want %d: %w", c.Serial, issued+1, err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	// Read-only: refused with the remedy.
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return err
	}
	_, err = Open(ctx, path)
	if p := sandbox.Public(err); err == nil || p.Kind != sandbox.KindUnavailable || !strings.Contains(p.Hint, "read-only") {
		return fmt.Errorf("Open on a read-only file system = %s %q (%q), %w", p.Kind, p.Msg, p.Hint, err)
	}
	return nil
}

func TestFullAndReadOnlyDiskLoseNothing(t *testing.T) {
	needRoot(t)
	cmd := child(t, "full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}
