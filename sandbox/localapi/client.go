package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// Client calls the daemon. The zero value calls the one at SocketPath. It is
// safe for concurrent use; each call has a connection of its own.
type Client struct {
	Path string // of the socket; "" is SocketPath
	// ServerUID is the uid that the daemon must have: 0, but for tests.
	ServerUID int
}

// Call asks for op and decodes the answer into out, unless out is nil. Errors of
// the daemon are *sandbox.Error; a daemon that can't be reached or does not
// answer within ctx is one of KindUnavailable.
func (c *Client) Call(ctx context.Context, op Op, auth Auth, in, out any) error {
	l, err := c.Open(ctx, op, auth, in, out)
	if err != nil {
		return err
	}
	return l.Close()
}

// Lease is an answered call whose connection is still open. Closing it tells
// the daemon that what it asked for has ended.
type Lease struct {
	conn *net.UnixConn
	// File is the descriptor that came with the answer, or nil. It is the caller's
	// to close and is not closed by Close.
	File *os.File
}

// Close ends the lease.
func (l *Lease) Close() error { return l.conn.Close() }

// Finish ends the lease and says that what it stood for ended by itself, and was
// not cut off. An error means that the daemon may not know.
func (l *Lease) Finish() error {
	_, err := l.conn.Write([]byte{Finished})
	return errors.Join(err, l.conn.Close())
}

// Wait returns when the daemon closed its end.
func (l *Lease) Wait() {
	var b [1]byte
	_, _ = l.conn.Read(b[:]) // whatever ends the read, the daemon is gone
}

// Open is Call for the operations that answer with a descriptor or keep their
// connection open.
func (c *Client) Open(ctx context.Context, op Op, auth Auth, in, out any) (*Lease, error) {
	path := c.Path
	if path == "" {
		path = SocketPath
	}
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, unavailable(err)
	}
	lease, err := c.roundTrip(ctx, conn, op, auth, in, out)
	if err != nil {
		_ = conn.Close() // the call's error is the one to report
		return nil, err
	}
	return lease, nil
}

// dialRetry is for how long a full queue of the daemon's socket is waited for.
const dialRetry = 3 * time.Second

// dial connects. Anybody may fill the queue of connections that the daemon has
// not accepted yet, if only for a moment: that is no reason to fail a login.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialRetry)
	defer cancel()
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (c *Client) roundTrip(ctx context.Context, conn *net.UnixConn, op Op, auth Auth, in, out any) (*Lease, error) {
	peer, err := PeerOf(conn)
	if err != nil {
		return nil, err
	}
	if peer.UID != c.ServerUID {
		return nil, fmt.Errorf("the daemon's socket belongs to uid %d", peer.UID)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // unblocks the calls below
	defer stop()

	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", op, err)
	}
	if err := WriteFrame(conn, Request{V: Version, Op: op, Auth: auth, Body: body}, nil); err != nil {
		return nil, unavailable(err)
	}
	var resp Response
	file, err := readResponse(conn, &resp)
	if err != nil {
		return nil, unavailable(err)
	}
	if resp.Error != nil {
		closeAll(file)
		return nil, &sandbox.Error{Kind: resp.Error.Kind, Msg: resp.Error.Msg, Hint: resp.Error.Hint}
	}
	if out != nil {
		if err := json.Unmarshal(resp.Body, out); err != nil {
			closeAll(file)
			return nil, fmt.Errorf("decode answer to %s: %w", op, err)
		}
	}
	if !stop() { // ctx ended just now and took the deadline with it
		closeAll(file)
		return nil, unavailable(context.Cause(ctx))
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		closeAll(file)
		return nil, err
	}
	return &Lease{conn: conn, File: file}, nil
}

func unavailable(err error) error {
	hint := "start it with podspawn daemon; podspawn doctor shows what is wrong"
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		hint = "the daemon is overloaded or stuck; its log has more"
	}
	return &sandbox.Error{Kind: sandbox.KindUnavailable, Msg: "the podspawn daemon does not answer", Hint: hint, Err: err}
}
