package guest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// forwardTime bounds how long the guest may take to answer an opening frame: it
// gives up dialling earlier.
const forwardTime = 20 * time.Second

// ErrRefused means that the guest did not do what was asked, for instance because
// nobody listens on the port.
var ErrRefused = errors.New("refused in the sandbox")

// SplitTarget checks and splits "host:port". The host is an address or a name.
func SplitTarget(s string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, errors.New("not of the form host:port")
	}
	if host == "" || len(host) > 253 {
		return "", 0, errors.New("the host's name is empty or too long")
	}
	for i := range len(host) {
		if c := host[i]; c <= ' ' || c > '~' || strings.IndexByte(`/\"'`, c) >= 0 {
			return "", 0, errors.New("the host's name holds a character that names don't have")
		}
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, errors.New("the port is not between 1 and 65535")
	}
	return host, int(n), nil
}

// ParseListen parses the payload of a FrameListen.
func ParseListen(b []byte) (Listen, error) {
	var l Listen
	if err := unmarshalStrict(b, &l); err != nil {
		return Listen{}, fmt.Errorf("request: %w", err)
	}
	if l.Agent != (l.Port == 0) || l.Port < 0 || l.Port > 65535 {
		return Listen{}, errors.New("request: want a port or an agent")
	}
	return l, nil
}

// DialIn connects to target in the sandbox over f, a connection that the guest has
// accepted, and returns it as that stream. It owns f.
func DialIn(ctx context.Context, f *os.File, target string) (*net.UnixConn, error) {
	conn, _, err := open(ctx, f, FrameDial, []byte(target))
	return conn, err
}

// Fetch is DialIn for a connection that a Listener has accepted.
func Fetch(ctx context.Context, f *os.File, id uint64) (*net.UnixConn, error) {
	conn, _, err := open(ctx, f, FrameAccept, binary.BigEndian.AppendUint64(nil, id))
	return conn, err
}

// Listener listens in the sandbox until it is closed. Its methods are for one
// goroutine, but for Close.
type Listener struct {
	Path string // of an agent's socket
	conn *net.UnixConn
}

// ListenIn has the guest listen. It owns f.
func ListenIn(ctx context.Context, f *os.File, l Listen) (*Listener, error) {
	b, err := json.Marshal(l)
	if err != nil {
		_ = f.Close() // unused
		return nil, err
	}
	conn, path, err := open(ctx, f, FrameListen, b)
	if err != nil {
		return nil, err
	}
	if l.Agent && (!strings.HasPrefix(path, "/") || printable(path) != path) || !l.Agent && path != "" {
		_ = conn.Close() // it does not keep to the protocol
		return nil, fmt.Errorf("%w: socket's path %q", ErrEnded, printable(path))
	}
	return &Listener{Path: path, conn: conn}, nil
}

// Next waits for a connection in the sandbox and returns what to Fetch.
func (l *Listener) Next() (uint64, error) {
	t, b, err := readFrame(l.conn, 8)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %w", ErrEnded, err)
	case t != FrameAccepted || len(b) != 8:
		return 0, fmt.Errorf("%w: %w: %q", ErrEnded, ErrUnknown, byte(t))
	}
	return binary.BigEndian.Uint64(b), nil
}

// Close ends the listener. Connections that were fetched go on.
func (l *Listener) Close() error {
	hangUp(l.conn)
	return l.conn.Close()
}

// open sends an opening frame and reads the answer, and not one byte more.
func open(ctx context.Context, f *os.File, t FrameType, payload []byte) (_ *net.UnixConn, said string, err error) {
	c, err := net.FileConn(f)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = errors.Join(cerr, c.Close())
	}
	if err != nil {
		return nil, "", fmt.Errorf("connection to the guest: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, "", errors.Join(fmt.Errorf("connection to the guest is a %s", c.LocalAddr().Network()), c.Close())
	}
	defer func() {
		if err != nil {
			_ = conn.Close() // of no use
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(forwardTime)); err != nil {
		return nil, "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // unblocks what follows
	defer stop()
	if err := NewWriter(conn).Frame(t, payload); err != nil {
		return nil, "", ended(ctx, err)
	}
	got, b, err := readFrame(conn, maxOpening)
	if err != nil {
		return nil, "", ended(ctx, err)
	}
	switch got {
	case FrameStarted:
	case FrameExit:
		e, err := parseExit(b)
		if err != nil {
			return nil, "", ended(ctx, err)
		}
		return nil, "", fmt.Errorf("%w: %s", ErrRefused, e.Error)
	default:
		return nil, "", ended(ctx, fmt.Errorf("%w: %q", ErrUnknown, byte(got)))
	}
	if !stop() {
		return nil, "", context.Cause(ctx)
	}
	return conn, string(b), conn.SetDeadline(time.Time{})
}

// readFrame reads one frame of at most limit bytes without reading ahead.
func readFrame(r io.Reader, limit uint32) (FrameType, []byte, error) {
	var h [HeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > limit {
		return 0, nil, fmt.Errorf("%w: %d bytes of type %q", ErrTooLong, n, h[0])
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, cut(err)
	}
	return FrameType(h[0]), b, nil
}

// Stream is a connection whose directions end separately.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// Join carries bytes between a and b until both directions have ended, or one of
// them broke, and closes both. An end is passed on as an end, a break as a break.
func Join(a, b Stream) {
	var wg sync.WaitGroup
	wg.Go(func() { pass(a, b) })
	wg.Go(func() { pass(b, a) })
	wg.Wait()
	_, _ = a.Close(), b.Close() // both have ended
}

func pass(dst, src Stream) {
	buf := make([]byte, chunk)
	// Only these methods: splice(2) between sockets is of no use inside gVisor.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err == nil {
		return
	}
	for _, s := range []Stream{dst, src} {
		Reset(s)
	}
}

// Reset closes a connection so that a TCP peer sees that it broke.
func Reset(s net.Conn) {
	if t, ok := s.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // it may have ended already, and so below
	}
	_ = s.Close()
}
