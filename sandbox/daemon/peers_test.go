package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// closed returns nil once the other end has closed the connection.
func closed(c *net.UnixConn) error {
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	var b [1]byte
	if _, err := c.Read(b[:]); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("read = %w, want the end", err)
	}
	return nil
}

func (w *world) whoami(handle string) error {
	lease, err := w.asAPI(localapi.OpWhoAmI, localapi.Auth{Peer: handle}, struct{}{}, nil)
	if err != nil {
		return err
	}
	return lease.Close()
}

func TestCallerIsKnownAsLongAsItsConnection(t *testing.T) {
	needRoot(t)
	for _, end := range []string{"the caller hangs up", "the API process hangs up", "the daemon stops"} {
		t.Run(end, func(t *testing.T) {
			w := open(t)
			caller := w.dial(CallerSocket, 0)
			var got localapi.AcceptResponse
			lease, err := w.asAPI(localapi.OpAccept, localapi.Auth{}, struct{}{}, &got)
			if err != nil || lease.File == nil || got.UID != 0 {
				t.Fatalf("accept = %+v, %v", got, err)
			}
			if err := w.whoami(got.Peer); err != nil {
				t.Errorf("whoami of a connected caller: %v", err)
			}
			served, err := net.FileConn(lease.File)
			if err != nil {
				t.Fatal(err)
			}
			_ = lease.File.Close() // FileConn has a copy
			defer served.Close()
			if _, err := io.WriteString(caller, "x"); err != nil {
				t.Fatal(err)
			}
			var b [1]byte
			if _, err := io.ReadFull(served, b[:]); err != nil || b[0] != 'x' {
				t.Errorf("the API process reads %q, %v", b, err)
			}
			switch end {
			case "the caller hangs up":
				_ = caller.Close() // that is the test
			case "the API process hangs up":
				// With its descriptor open in this process: only the lease ends.
				if err := lease.Close(); err != nil {
					t.Error(err)
				}
				if err := closed(caller); err != nil {
					t.Error(err)
				}
			default:
				w.stop()
				if err := closed(caller); err != nil {
					t.Error(err)
				}
				return
			}
			eventually(t, func() error {
				if err := w.whoami(got.Peer); sandbox.KindOf(err) != sandbox.KindUnauthorized {
					return fmt.Errorf("whoami afterwards: %w, want unauthorized", err)
				}
				return nil
			})
			_ = lease.Close() // ended already in one case
			eventually(t, func() error { return w.nothingHeld() })
		})
	}
}

func TestCallerWhoIsNotRootNeedsAToken(t *testing.T) {
	needRoot(t)
	w := open(t)
	w.dial(CallerSocket, 1000)
	var got localapi.AcceptResponse
	lease, err := w.asAPI(localapi.OpAccept, localapi.Auth{}, struct{}{}, &got)
	if err != nil || got.UID != 1000 {
		t.Fatalf("accept = %+v, %v", got, err)
	}
	defer lease.Close()
	defer lease.File.Close()
	if err := w.whoami(got.Peer); sandbox.KindOf(err) != sandbox.KindUnauthorized {
		t.Errorf("whoami = %v, want unauthorized", err)
	}
}

func TestCallerWithoutAnAPIProcess(t *testing.T) {
	t.Parallel()
	w := open(t)
	if err := closed(w.dial(CallerSocket, 0)); err != nil {
		t.Error(err)
	}
}

// Nobody keeps root, or another user, from the API's socket.
func TestCallersOfOneUserAreBounded(t *testing.T) {
	needRoot(t)
	w := open(t)
	accepted := func() (localapi.AcceptResponse, *localapi.Lease) {
		t.Helper()
		var got localapi.AcceptResponse
		lease, err := w.asAPI(localapi.OpAccept, localapi.Auth{}, struct{}{}, &got)
		if err != nil {
			t.Fatalf("accept: %v", err)
		}
		t.Cleanup(func() { _, _ = lease.Close(), lease.File.Close() }) // the test is over
		return got, lease
	}
	for range maxPeersOfUID {
		w.dial(CallerSocket, 1000)
		accepted()
	}
	if err := closed(w.dial(CallerSocket, 1000)); err != nil {
		t.Errorf("one connection more than a user has: %v", err)
	}
	for _, uid := range []int{1001, 0} {
		w.dial(CallerSocket, uid)
		if got, _ := accepted(); got.UID != uid {
			t.Errorf("accepted uid %d, want %d", got.UID, uid)
		}
	}
}
