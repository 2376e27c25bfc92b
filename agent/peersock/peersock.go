package peersock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/podspawn/podspawn/sandbox/localapi"
)

// retryAfter is how long Accept waits before it asks a daemon again that does not
// answer, so that a restart of the daemon needs none of this process.
const retryAfter = 500 * time.Millisecond

// Listener accepts the connections of podspawn.sock. It is safe for concurrent use.
type Listener struct {
	daemon *localapi.Client
	ctx    context.Context // ended by Close; a net.Listener has no other way to end Accept
	cancel context.CancelFunc
}

var _ net.Listener = (*Listener)(nil)

// Listen returns a Listener. It does not contact the daemon.
func Listen(daemon *localapi.Client) *Listener {
	ctx, cancel := context.WithCancel(context.Background())
	return &Listener{daemon: daemon, ctx: ctx, cancel: cancel}
}

// Accept waits for a caller. While the daemon does not answer, or can't, it waits
// for that: whoever accepts takes an error for the end of the listener, and then
// the API would end with a burst of callers that the daemon had no descriptor for.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.accept()
		if l.ctx.Err() != nil {
			if conn != nil {
				_ = conn.Close() // nobody will serve it
			}
			return nil, net.ErrClosed
		}
		if err == nil {
			return conn, nil
		}
		select {
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		case <-time.After(retryAfter):
		}
	}
}

func (l *Listener) accept() (*Conn, error) {
	var out localapi.AcceptResponse
	lease, err := l.daemon.Open(l.ctx, localapi.OpAccept, localapi.Auth{}, struct{}{}, &out)
	if err != nil {
		return nil, fmt.Errorf("accept on podspawn.sock: %w", err)
	}
	if lease.File == nil || out.Peer == "" {
		_ = lease.Close() // the answer is useless either way
		return nil, errors.New("accept on podspawn.sock: the daemon sent no connection")
	}
	conn, err := net.FileConn(lease.File)
	_ = lease.File.Close() // FileConn made a copy
	if err != nil {
		_ = lease.Close() // FileConn's error is the one to report
		return nil, fmt.Errorf("accept on podspawn.sock: %w", err)
	}
	return &Conn{Conn: conn, lease: lease, peer: out.Peer}, nil
}

// Close ends Accept. Accepted connections stay.
func (l *Listener) Close() error {
	l.cancel()
	return nil
}

// Addr names the socket.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: "podspawn.sock", Net: "unix"} }

// Conn is a connection whose peer the daemon knows.
type Conn struct {
	net.Conn
	lease *localapi.Lease
	peer  string
	once  sync.Once
}

// PeerHandle returns the handle for localapi.Auth.
func (c *Conn) PeerHandle() string { return c.peer }

// Close closes the connection and tells the daemon, at which the handle ends.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { _ = c.lease.Close() }) // its end is all that matters
	return err
}
