package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// faulty is a state that fails, or is interrupted, as told.
type faulty struct {
	sandbox.Store
	closes atomic.Int32 // how many more CloseConnection fail
	listed func()       // runs after the connections were listed
}

func (f *faulty) CloseConnection(ctx context.Context, id string, now time.Time, exited bool, note string, ev sandbox.Event) (bool, error) {
	if f.closes.Add(-1) >= 0 {
		return false, errors.New("disk full")
	}
	return f.Store.CloseConnection(ctx, id, now, exited, note, ev)
}

func (f *faulty) OpenConnections(ctx context.Context, id sandbox.ID) ([]sandbox.Connection, error) {
	conns, err := f.Store.OpenConnections(ctx, id)
	if f.listed != nil {
		f.listed()
	}
	return conns, err
}

// process starts one that ends with the test; trap makes it ignore TERM.
func process(t *testing.T, trap bool) sandbox.Process {
	t.Helper()
	script := "echo up; exec sleep 600"
	if trap {
		script = "trap '' TERM; " + script
	}
	cmd := exec.Command("sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err := errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	var b [3]byte
	if _, err := out.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // most have ended
		_ = cmd.Wait()
	})
	st, err := statProc(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return st.Process
}

// connect claims a connection below a process.
func (w *world) connect(row sandbox.Sandbox, monitor sandbox.Process) sandbox.Connection {
	w.t.Helper()
	c := sandbox.Connection{ID: sandbox.NewToken("con_"), Sandbox: row.ID, Serial: w.issue(row, nil).Serial, Monitor: monitor, OpenedAt: time.Now()}
	if _, err := w.store.Claim(w.t.Context(), c, sandbox.Event{Time: time.Now(), Event: sandbox.EventCertAccepted}); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) sessions(f *faulty) *Sessions {
	w.t.Helper()
	s := NewSessions(f, func() {}, slog.New(slog.NewTextHandler(w.t.Output(), nil)))
	w.t.Cleanup(s.Close)
	return s
}

func (w *world) closedWith(c sandbox.Connection, why string) {
	w.t.Helper()
	eventually(w.t, func() error {
		if n := len(w.open(c.Sandbox)); n != 0 {
			return fmt.Errorf("%d connections are open", n)
		}
		evs := w.events(sandbox.EventSessionClosed)
		if len(evs) != 1 || evs[0].Reason != why || evs[0].Session != c.ID {
			return fmt.Errorf("session.closed = %+v, want one by %s", evs, why)
		}
		return nil
	})
}

func TestConnectionEndsWithItsMonitor(t *testing.T) {
	for _, why := range []string{"exit", "lost"} {
		t.Run(why, func(t *testing.T) {
			w := open(t)
			row := w.ready()
			c := w.connect(row, process(t, false))
			w.Sessions.Watch(row, c)
			w.Sessions.Watch(row, c) // as a restart might
			if why == "exit" {
				done, err := w.Sessions.openChannel(row.ID, c.ID)
				if err != nil {
					t.Fatal(err)
				}
				done(true)
				done(false) // the first word counts
			}
			if err := signalProcess(c.Monitor, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			w.closedWith(c, why)
			eventually(t, w.nothingRemembered)
		})
	}
}

// A full disk at the wrong moment must not keep a sandbox alive to its deadline.
func TestEndOfConnectionIsRecordedInTheEnd(t *testing.T) {
	w := open(t)
	row := w.ready()
	f := &faulty{Store: w.store}
	f.closes.Store(2)
	s := w.sessions(f)
	c := w.connect(row, process(t, false))
	s.Watch(row, c)
	if err := signalProcess(c.Monitor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.closedWith(c, "lost")
}

func TestResumeClosesWhatEndedMeanwhile(t *testing.T) {
	w := open(t)
	row := w.ready()
	gone, lives := process(t, false), process(t, false)
	dead := w.connect(row, gone)
	w.connect(row, lives)
	// Its pid belongs to another process by now.
	w.connect(row, sandbox.Process{PID: lives.PID, Start: lives.Start + 1})
	if err := signalProcess(gone, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := w.sessions(&faulty{Store: w.store})
	if err := s.Resume(t.Context()); err != nil {
		t.Fatalf("Resume: %v", err)
	}
	eventually(t, func() error {
		conns := w.open(row.ID)
		if len(conns) != 1 || conns[0].Monitor != lives {
			return fmt.Errorf("open: %+v, want the one of %+v", conns, lives)
		}
		return nil
	})
	if !alive(lives) {
		t.Error("Resume ended a living connection")
	}
	_ = dead
}

// TERM is ignored by all of them: they end together, not one after the other.
func TestEndIsQuickWhateverSSHDDoes(t *testing.T) {
	w := open(t)
	row := w.ready()
	var conns []sandbox.Connection
	for range 6 {
		c := w.connect(row, process(t, true))
		w.Sessions.Watch(row, c)
		done, err := w.Sessions.openChannel(row.ID, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		done(false)
		conns = append(conns, c)
	}
	began := time.Now()
	if err := w.Sessions.End(t.Context(), row, conns); err != nil {
		t.Fatalf("End: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("End took %s, want less than 2 s", took)
	}
	for _, c := range conns {
		if alive(c.Monitor) {
			t.Errorf("monitor %d is alive", c.Monitor.PID)
		}
	}
	if err := w.Sessions.End(t.Context(), row, conns); err != nil {
		t.Errorf("End of what has ended: %v", err)
	}
	eventually(t, w.nothingRemembered)
}

func (w *world) nothingRemembered() error {
	s := w.Sessions
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.watching)+len(s.conns)+len(s.notes)+len(s.channels) != 0 {
		return fmt.Errorf("remembered of ended connections: %v %v %v %v", s.watching, s.conns, s.notes, s.channels)
	}
	return nil
}

func TestSweepKillsOnlyStrays(t *testing.T) {
	needRoot(t)
	w := open(t)
	row, other := w.ready(), w.ready()
	sleeper := func(m *monitor, uid int, orphan bool) sandbox.Process {
		t.Helper()
		st, err := statProc(m.ask(order{UID: uid, Sleeper: true, Hold: true, Orphan: orphan}, nil).PID)
		if err != nil {
			t.Fatal(err)
		}
		return st.Process
	}
	claimed, refused, unknown, late := w.monitor(), w.monitor(), w.monitor(), w.monitor()
	w.connect(row, claimed.Process)
	in, of, hearing := sleeper(claimed, row.UID, false), sleeper(unknown, other.UID, false), sleeper(refused, row.UID, false)
	stray, escaped := sleeper(unknown, row.UID, false), sleeper(claimed, row.UID, true)

	f := &faulty{Store: w.store}
	s := w.sessions(f)
	s.refused[refused.Process] = true
	var began sandbox.Process
	f.listed = func() {
		// A login between the sweep's two looks: claimed, and its process started.
		f.listed = nil
		w.connect(row, late.Process)
		began = sleeper(late, row.UID, false)
	}
	if err := s.sweep(t.Context(), row, ""); err != nil {
		t.Fatalf("sweep: %v", err)
	}
	for name, p := range map[string]sandbox.Process{
		"in a claimed connection": in, "another sandbox's": of, "being told why it is refused": hearing, "begun during the sweep": began,
	} {
		if !alive(p) {
			t.Errorf("killed the process %s", name)
		}
	}
	for name, p := range map[string]sandbox.Process{"in no connection": stray, "that left its connection": escaped} {
		eventually(t, func() error {
			if alive(p) {
				return fmt.Errorf("the process %s lives", name)
			}
			return nil
		})
	}
	delete(s.refused, refused.Process)
}

func TestCloseLeavesConnectionsAlone(t *testing.T) {
	w := open(t)
	row := w.ready()
	s := NewSessions(w.store, func() {}, slog.New(slog.DiscardHandler))
	c := w.connect(row, process(t, false))
	s.Watch(row, c)
	s.Close()
	if !alive(c.Monitor) || len(w.open(row.ID)) != 1 {
		t.Error("Close ended the connection")
	}
}
