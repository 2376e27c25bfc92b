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
