package pid1

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// open returns a connection that the guest has accepted, with rights.
func (f *fixture) open(t *testing.T, rights ...guest.Right) (*os.File, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	c := f.dial(t)
	if err := guest.SendPreamble(ctx, c, guest.Preamble{Rights: rights, Deadline: time.Now().Add(time.Minute).Unix()}); err != nil {
		t.Fatal(err)
	}
	return c, ctx
}

// greeter is a server that says a word and returns what it is told.
func greeter(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello ")
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func exchange(t *testing.T, c guest.Stream, say, want string) {
	t.Helper()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, say); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != want || err != nil {
		t.Errorf("answer %q, %v, want %q", b, err, want)
	}
}

func TestDialCarriesBothWaysAndEnds(t *testing.T) {
	f := newFixture(t, nil)
	addr := greeter(t)
	_, port, _ := net.SplitHostPort(addr)
	for _, target := range []string{addr, "localhost:" + port, "[::1]:" + port} {
		file, ctx := f.open(t, guest.RightDial)
		c, err := guest.DialIn(ctx, file, target)
		if err != nil {
			t.Fatalf("DialIn(%s): %v", target, err)
		}
		exchange(t, c, "you", "hello you")
	}
}

func TestForwardingIsRefused(t *testing.T) {
	f := newFixture(t, nil)
	addr := greeter(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	_ = l.Close()
	dial := func(target string) func(context.Context, *os.File) error {
		return func(ctx context.Context, file *os.File) error {
			_, err := guest.DialIn(ctx, file, target)
			return err
		}
	}
	listen := func(l guest.Listen) func(context.Context, *os.File) error {
		return func(ctx context.Context, file *os.File) error {
			_, err := guest.ListenIn(ctx, file, l)
			return err
		}
	}
	for name, tt := range map[string]struct {
		right guest.Right
		do    func(context.Context, *os.File) error
		words string
	}{
		"dial without the right":    {guest.RightExec, dial(addr), "not allowed"},
		"dial with another's right": {guest.RightListen, dial(addr), "not allowed"},
		"closed port":               {guest.RightDial, dial(closed), "connection refused"},
		"no port":                   {guest.RightDial, dial("127.0.0.1"), "host:port"},
		"unknown name":              {guest.RightDial, dial("no-such-host.invalid:80"), "connect"},
		"listen without the right":  {guest.RightDial, listen(guest.Listen{Port: 9}), "not allowed"},
		"agent without the right":   {guest.RightListen, listen(guest.Listen{Agent: true}), "not allowed"},
		"a port for an agent":       {guest.RightAgent, listen(guest.Listen{Port: 9000}), "not allowed"},
		"neither port nor agent":    {guest.RightListen, listen(guest.Listen{}), "want a port"},
		"port in use":               {guest.RightListen, listen(guest.Listen{Port: mustPort(t, addr)}), "address already in use"},
		"accept of nothing": {guest.RightListen, func(ctx context.Context, file *os.File) error {
			_, err := guest.Fetch(ctx, file, 1)
			return err
		}, "no such connection"},
	} {
		t.Run(name, func(t *testing.T) {
			file, ctx := f.open(t, tt.right)
			if err := tt.do(ctx, file); !errors.Is(err, guest.ErrRefused) || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("err = %v, want refused with %q", err, tt.words)
			}
		})
	}
}

func mustPort(t *testing.T, addr string) int {
	t.Helper()
	_, port, err := guest.SplitTarget(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return mustPort(t, l.Addr().String())
}

func TestListenReportsConnectionsAndEndsWithItsOwn(t *testing.T) {
	f := newFixture(t, nil)
	port := freePort(t)
	file, ctx := f.open(t, guest.RightListen)
	l, err := guest.ListenIn(ctx, file, guest.Listen{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	inside, err := net.DialTCP("tcp", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	id, err := l.Next()
	if err != nil {
		t.Fatal(err)
	}
	fetch, ctx := f.open(t, guest.RightListen)
	c, err := guest.Fetch(ctx, fetch, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
	exchange(t, inside, "still carried", "still carried")
	deadline := time.Now().Add(5 * time.Second)
	for {
		n, err := net.DialTCP("tcp", nil, addr)
		if err != nil {
			break
		}
		_ = n.Close()
		if time.Now().After(deadline) {
			t.Fatal("the port still listens after its connection has ended")
		}
		time.Sleep(5 * time.Millisecond)
	}
	again, ctx := f.open(t, guest.RightListen)
	if _, err := guest.Fetch(ctx, again, id); !errors.Is(err, guest.ErrRefused) {
		t.Errorf("a second fetch = %v, want refused", err)
	}
}

func TestAgentSocketIsTheUsersAloneAndGoes(t *testing.T) {
	f := newFixture(t, nil)
	file, ctx := f.open(t, guest.RightAgent)
	l, err := guest.ListenIn(ctx, file, guest.Listen{Agent: true})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(l.Path)
	if err != nil || st.Mode().Perm() != 0o600 || st.Mode().Type() != os.ModeSocket {
		t.Errorf("%s: %v, %v, want a socket of mode 600", l.Path, st, err)
	}
	inside, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: l.Path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	id, err := l.Next()
	if err != nil {
		t.Fatal(err)
	}
	fetch, ctx := f.open(t, guest.RightAgent)
	c, err := guest.Fetch(ctx, fetch, id)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
	exchange(t, inside, "keys", "keys")
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, err := os.Lstat(filepath.Dir(l.Path)); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the socket's directory is still there after its connection has ended")
		}
		time.Sleep(5 * time.Millisecond)
	}
}
