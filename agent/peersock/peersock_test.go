package peersock

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConnectionsComeWithTheirPeer(t *testing.T) {
	d := agenttest.Start(t)
	l := Listen(d.Client())
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	seen := map[string]bool{}
	for range 3 {
		caller := d.Connect(t, "carol")
		conn := <-accepted
		p, ok := conn.(interface{ PeerHandle() string })
		if !ok || p.PeerHandle() == "" || seen[p.PeerHandle()] {
			t.Fatalf("connection %T has no handle of its own", conn)
		}
		seen[p.PeerHandle()] = true
		auth := localapi.Auth{Peer: p.PeerHandle()}
		if err := d.Client().Call(t.Context(), localapi.OpWhoAmI, auth, struct{}{}, nil); err != nil {
			t.Errorf("whoami with an open connection = %v", err)
		}
		if _, err := io.WriteString(conn, "hi"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 2)
		if _, err := io.ReadFull(caller, b); err != nil || string(b) != "hi" {
			t.Errorf("the caller read %q, %v", b, err)
		}
		if err := conn.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		_ = caller.Close()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			err := d.Client().Call(t.Context(), localapi.OpWhoAmI, auth, struct{}{}, nil)
			if sandbox.KindOf(err) == sandbox.KindUnauthorized {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the handle of a closed connection still works: %v", err)
			}
		}
	}
	_ = l.Close()
	if _, ok := <-accepted; ok {
		t.Error("Accept went on after Close")
	}
}

func TestAcceptWaitsForADaemonThatIsDownAndEndsWithClose(t *testing.T) {
	l := Listen(&localapi.Client{Path: filepath.Join(t.TempDir(), "none"), ServerUID: os.Getuid()})
	done := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("Accept = %v while the daemon is down, want it to wait", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v, want net.ErrClosed", err)
	}
}

// An error of Accept would end the API for everybody: a daemon that is short of
// descriptors, or refuses for a while, is waited for.
func TestAcceptOutlivesADaemonThatRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	daemon, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	asked, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for _, kind := range []sandbox.Kind{sandbox.KindInternal, sandbox.KindCapacity, sandbox.KindUnauthorized} {
			conn, err := daemon.AcceptUnix()
			if err != nil {
				t.Errorf("the daemon is not asked again: %v", err)
				return
			}
			var req localapi.Request
			if err := localapi.ReadFrame(conn, &req); err != nil {
				t.Error(err)
			}
			resp := localapi.Response{V: localapi.Version, Error: &localapi.Error{Kind: kind, Msg: "no"}}
			if err := localapi.WriteFrame(conn, resp, nil); err != nil {
				t.Error(err)
			}
			_ = conn.Close() // answered
		}
		close(asked)
	}()
	l := Listen(&localapi.Client{Path: path, ServerUID: os.Getuid()})
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	select {
	case <-asked:
	case err := <-ended:
		t.Errorf("Accept = %v when the daemon refuses", err)
	}
	_ = daemon.Close()
	<-done
	_ = l.Close()
	if t.Failed() {
		return
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v, want net.ErrClosed", err)
	}
}
