package pid1

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a guest as an ordinary process on an ordinary kernel.
type fixture struct {
	*server
	path string
	log  syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newFixture(t *testing.T, change func(*server)) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{path: filepath.Join(dir, guest.SocketName)}
	passwd := filepath.Join(dir, "passwd")
	if err := os.WriteFile(passwd, []byte("root:x:0:0::/:/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.server = &server{
		log:      slog.New(slog.NewTextHandler(&f.log, nil)),
		users:    users{passwd: passwd, group: filepath.Join(dir, "group")},
		dir:      dir,
		reaper:   &reaper{}, // never waits for what it did not start
		expires:  newDeadline(time.Now().Add(time.Hour).Unix()),
		isHost:   func(unix.Ucred) bool { return true },
		ourDisk:  func(string) error { return nil },
		sameUser: true,
	}
	if change != nil {
		change(f.server)
	}
	l, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.reaper.run(ctx) })
	served := make(chan error, 1)
	// The reaper has to outlive the server, which waits for its processes.
	serveCtx, stop := context.WithCancel(context.Background())
	go func() { served <- f.serve(serveCtx, l) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server does not end")
		}
		cancel()
		wg.Wait()
	})
	return f
}

func (f *fixture) dial(t *testing.T) *os.File {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: f.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	file, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

var allRights = []guest.Right{guest.RightExec, guest.RightPTY, guest.RightSFTP}

func (f *fixture) run(t *testing.T, e guest.Exec, s guest.Streams) (guest.Exit, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := f.dial(t)
	if err := guest.SendPreamble(ctx, c, guest.Preamble{Rights: allRights, Deadline: time.Now().Add(time.Minute).Unix()}); err != nil {
		c.Close()
		t.Fatalf("SendPreamble: %v", err)
	}
	return guest.Run(ctx, c, e, s)
}

func TestServerRunsCommands(t *testing.T) {
	f := newFixture(t, nil)
	for name, c := range map[string]struct {
		exec           guest.Exec
		in, out, errOt string
		exit           guest.Exit
	}{
		"streams":   {guest.Exec{Script: "cat; echo err >&2"}, "in", "in", "err\n", guest.Exit{}},
		"status":    {guest.Exec{Script: "exit 9"}, "", "", "", guest.Exit{Code: 9}},
		"signal":    {guest.Exec{Script: "kill -KILL $$"}, "", "", "", guest.Exit{Code: 137, Signal: "KILL"}},
		"argv":      {guest.Exec{Argv: []string{"printf", "%s.", "a b", "c"}}, "", "a b.c.", "", guest.Exit{}},
		"not found": {guest.Exec{Argv: []string{"/no/such"}}, "", "", "", guest.Exit{Code: 127, Error: "/no/such does not exist in the sandbox"}},
		"terminal": {
			guest.Exec{Script: "stty size; test -t 0 && test -t 2 && echo yes", PTY: &guest.Terminal{Term: "vt100", Window: guest.Window{Rows: 7, Cols: 77}}},
			"", "7 77\r\nyes\r\n", "",
			guest.Exit{},
		},
		"terminal held open": {guest.Exec{Script: "trap '' HUP; sleep 3 & echo end", PTY: &guest.Terminal{}}, "", "end\r\n", "", guest.Exit{}},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			exit, err := f.run(t, c.exec, guest.Streams{Stdin: strings.NewReader(c.in), Stdout: &out, Stderr: &errOut})
			if err != nil || exit != c.exit || out.String() != c.out || errOut.String() != c.errOt {
				t.Errorf("Run = %+v, %v, %q, %q; want %+v, %q, %q", exit, err, out.String(), errOut.String(), c.exit, c.out, c.errOt)
			}
		})
	}
}

func TestServerKillsWhatIgnoresTheEnd(t *testing.T) {
	f := newFixture(t, nil)
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	c := f.dial(t)
	if err := guest.SendPreamble(ctx, c, guest.Preamble{Rights: allRights, Deadline: time.Now().Add(time.Minute).Unix()}); err != nil {
		t.Fatal(err)
	}
	var pids string
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = guest.Run(ctx, c, guest.Exec{Script: "trap '' HUP TERM; sleep 1000 & echo $$ $!; wait; sleep 1000"},
			guest.Streams{Stdout: writerFunc(func(p []byte) (int, error) {
				pids = string(p)
				close(ready)
				return len(p), nil
			})})
	}()
	<-ready
	cancel()
	<-done
	for _, pid := range strings.Fields(pids) {
		await(t, pid+" is gone", func() bool {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			state, _, ok := parseStat(stat)
			return err != nil || ok && state == 'Z' // its parent in a test is not us
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

// A process of the sandbox can't speak as the host: its preamble is not even answered.
func TestPreambleFromInsideIsNotAnswered(t *testing.T) {
	f := newFixture(t, func(s *server) { s.isHost = hostPeer })
	c := f.dial(t)
	defer c.Close()
	err := guest.SendPreamble(t.Context(), c, guest.Preamble{Rights: allRights, Deadline: time.Now().Add(time.Hour).Unix()})
	if err == nil {
		t.Fatal("a preamble of an ordinary process was accepted")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known {
		t.Error("the preamble was taken over")
	}
}

func TestHostPeer(t *testing.T) {
	for _, c := range []struct {
		cred unix.Ucred
		want bool
	}{
		{unix.Ucred{Pid: 0, Uid: ^uint32(0), Gid: ^uint32(0)}, true},
		{unix.Ucred{Pid: 7, Uid: 0}, false},
		{unix.Ucred{Pid: 0, Uid: 0}, false}, // root of another pid namespace
		{unix.Ucred{Pid: 7, Uid: ^uint32(0)}, false},
		{unix.Ucred{Pid: 0, Uid: 65534}, false}, // a user without a mapping
	} {
		if got := hostPeer(c.cred); got != c.want {
			t.Errorf("hostPeer(%+v) = %t", c.cred, got)
		}
	}
}

func TestServerRefusesAnotherDisk(t *testing.T) {
	f := newFixture(t, func(s *server) { s.ourDisk = checkDisk }) // the machine's temporary folder
	c := f.dial(t)
	defer c.Close()
	err := guest.SendPreamble(t.Context(), c, guest.Preamble{Deadline: time.Now().Add(time.Hour).Unix()})
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok || !strings.Contains(e.Msg, "socket directory") {
		t.Errorf("SendPreamble = %v, want a refusal of the disk", err)
	}
}

func TestPanicInAConnectionEndsOnlyIt(t *testing.T) {
	panics := true
	var mu sync.Mutex // guards panics
	f := newFixture(t, func(s *server) {
		s.ourDisk = func(string) error {
			mu.Lock()
			defer mu.Unlock()
			if panics {
				panics = false
				panic("boom")
			}
			return nil
		}
	})
	c := f.dial(t)
	defer c.Close()
	if err := guest.SendPreamble(t.Context(), c, guest.Preamble{Deadline: time.Now().Add(time.Hour).Unix()}); err == nil {
		t.Error("the connection survived")
	}
	if exit, err := f.run(t, guest.Exec{Script: "exit 4"}, guest.Streams{}); err != nil || exit.Code != 4 {
		t.Errorf("after the panic: %+v, %v", exit, err)
	}
	if !strings.Contains(f.log.String(), "boom") {
		t.Error("the panic is not in the log")
	}
}

func TestSudoNeedsThreeStreams(t *testing.T) {
	for name, fds := range map[string]int{"none": 0, "two": 2, "four": 4} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(s *server) { s.isHost = func(unix.Ucred) bool { return false } })
			before := countFDs(t)
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: f.path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var oob []byte
			if fds > 0 {
				list := make([]int, fds)
				for i := range list {
					list[i] = 1
				}
				oob = unix.UnixRights(list...)
			}
			if _, _, err := c.WriteMsgUnix([]byte(sudoHello), oob, nil); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			_, err = c.Read(make([]byte, 1))
			if fds < 4 && err != io.EOF {
				t.Errorf("Read = %v, want the end", err)
			}
			c.Close()
			await(t, "no descriptor is left", func() bool { return countFDs(t) <= before })
		})
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// The container engine went away: its pipe is full, and nobody reads.
func TestLogDoesNotWaitForItsReader(t *testing.T) {
	r, w := io.Pipe()
	l := newLogWriter(w)
	for range 1000 {
		if _, err := l.Write([]byte("line\n")); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "line\n" {
		t.Errorf("read %q, %v", b, err)
	}
	r.Close()
	close(l)
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		d := newDeadline(begin.Add(time.Hour).Unix())
		over := make(chan bool, 1)
		go func() { over <- d.wait(t.Context()) }()
		time.Sleep(30 * time.Minute)
		d.set(begin.Add(2 * time.Hour).Unix()) // extended
		time.Sleep(time.Hour)
		synctest.Wait()
		select {
		case <-over:
			t.Fatal("ended at the old deadline")
		default:
		}
		d.set(begin.Add(100 * time.Minute).Unix()) // and shortened
		if !<-over || time.Since(begin) != 100*time.Minute {
			t.Errorf("ended after %s, want 100m", time.Since(begin))
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if newDeadline(time.Now().Add(time.Hour).Unix()).wait(ctx) {
		t.Error("wait returned true with a canceled ctx")
	}
}

func TestInboxIsBounded(t *testing.T) {
	b := newInbox()
	if err := b.put(make([]byte, guest.StdinWindow)); err != nil {
		t.Fatalf("a whole window: %v", err)
	}
	if err := b.put([]byte("x")); !errors.Is(err, errWindow) {
		t.Errorf("a byte more = %v, want errWindow", err)
	}
	buf := make([]byte, 1000)
	if n := b.take(buf); n != 1000 {
		t.Fatalf("take = %d", n)
	}
	if err := b.put([]byte("x")); !errors.Is(err, errWindow) {
		t.Errorf("before credit was given = %v, want errWindow", err)
	}
	b.consumed(1000)
	if err := b.put(make([]byte, 1000)); err != nil {
		t.Errorf("with credit: %v", err)
	}
	b.end()
	if err := b.put(nil); err == nil {
		t.Error("put after the end succeeded")
	}
}
