package pid1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// dialTime bounds a connection attempt.
const dialTime = 10 * time.Second

// forward serves a connection that is not about a process.
func (s *server) forward(ctx context.Context, conn *net.UnixConn, fr *guest.Reader, p guest.Preamble, t guest.FrameType, b []byte) error {
	fw := guest.NewWriter(conn)
	has := func(r guest.Right) bool { return slices.Contains(p.Rights, r) }
	var other guest.Stream
	var err error
	switch {
	case t == guest.FrameDial && has(guest.RightDial):
		other, err = dialTarget(ctx, string(b))
	case t == guest.FrameAccept && (has(guest.RightListen) || has(guest.RightAgent)):
		other, err = s.inbound.take(b)
	case t == guest.FrameListen:
		var l guest.Listen
		if l, err = guest.ParseListen(b); err != nil {
			break
		}
		if l.Agent && has(guest.RightAgent) || !l.Agent && has(guest.RightListen) {
			return s.listenFor(ctx, conn, fw, p, l)
		}
		fallthrough
	default:
		err = errors.New("not allowed for this connection")
	}
	refuser := &session{fw: fw}
	if err != nil {
		return refuser.refuse(err)
	}
	defer other.Close()
	if err := fw.Frame(guest.FrameStarted, nil); err != nil {
		return err
	}
	rest, err := fr.Rest()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { guest.Reset(other) })
	defer stop()
	guest.Join(&ahead{UnixConn: conn, rest: bytes.NewReader(rest)}, other)
	return nil
}

// ahead is a connection some bytes of which were read already.
type ahead struct {
	*net.UnixConn
	rest *bytes.Reader
}

func (a *ahead) Read(b []byte) (int, error) {
	if n, err := a.rest.Read(b); !errors.Is(err, io.EOF) {
		return n, err
	}
	return a.UnixConn.Read(b)
}

// dialTarget connects as a process of the sandbox would. Names are resolved by
// the sandbox's own files and servers. A server on one loopback only is found by
// the other's address too: to the client both are "localhost", and whoever
// chose one of them could not see which would answer.
func dialTarget(ctx context.Context, target string) (guest.Stream, error) {
	host, port, err := guest.SplitTarget(target)
	if err != nil {
		return nil, err
	}
	hosts := []string{host}
	switch host {
	case "127.0.0.1":
		hosts = append(hosts, "::1")
	case "::1":
		hosts = append(hosts, "127.0.0.1")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	d := net.Dialer{Resolver: &net.Resolver{PreferGo: true}}
	var first error
	for _, h := range hosts {
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(h, strconv.Itoa(port)))
		if err == nil {
			return c.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("connect: %w", cause(first))
}

// cause leaves out the addresses, which the other side knows.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
