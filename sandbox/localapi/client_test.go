package localapi

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// Anybody may fill the queue of the daemon's socket for a moment: a call waits
// until there is room, and no longer than it may.
func TestCallWaitsForAFullQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	l, err := net.FileListener(f)
	_ = f.Close() // FileListener has a copy
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var flood []net.Conn
	for {
		c, err := net.Dial("unix", path)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil || len(flood) > 1000 {
			t.Fatalf("fill the queue: %v after %d", err, len(flood))
		}
		defer c.Close()
		flood = append(flood, c)
	}
	client := &Client{Path: path, ServerUID: os.Getuid()}

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := client.Call(ctx, OpKeys, Auth{}, struct{}{}, nil); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("call with a full queue = %v, want unavailable", err)
	}

	called := make(chan error, 1)
	go func() { called <- client.Call(t.Context(), OpKeys, Auth{}, struct{}{}, nil) }()
	for range len(flood) + 1 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var req Request
		if ReadFrame(c, &req) == nil {
			if err := WriteFrame(c.(*net.UnixConn), Response{V: Version}, nil); err != nil {
				t.Error(err)
			}
		}
	}
	if err := <-called; err != nil {
		t.Errorf("call after the queue was emptied: %v", err)
	}
}
