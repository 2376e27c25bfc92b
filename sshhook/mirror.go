package sshhook

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Bounds of mirrored ports.
const (
	maxMirrors  = 64
	lookEvery   = 500 * time.Millisecond // for ports that come and go in a running connection
	mirrorAgain = 5 * time.Second        // after a port could not be had in the sandbox
)

// mirrors keeps the sandbox listening on the ports that sshd listens on in the
// portal. Its goroutines live as long as the process.
type mirrors struct {
	relay *relay
	uid   int
	look  func(uid int) (map[uint16]bool, error)

	mu    sync.Mutex // guards ports; held over a whole round, so that sync waits for it
	ports map[uint16]*mirror
}

// mirror is one port. Its listener is nil while the port can't be had.
type mirror struct {
	listener *guest.Listener
	ended    chan struct{} // closed when the listener has ended
	again    time.Time
}

func newMirrors(r *relay, uid int, look func(int) (map[uint16]bool, error)) *mirrors {
	return &mirrors{relay: r, uid: uid, look: look, ports: map[uint16]*mirror{}}
}

func (m *mirrors) run(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		m.sync(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// sync returns when the sandbox listens on every port that sshd listens on now,
// or can't.
func (m *mirrors) sync(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	want, err := m.look(m.uid)
	if err != nil {
		return // the next round asks again
	}
	for port, mi := range m.ports {
		if !want[port] {
			mi.close()
			delete(m.ports, port)
		}
	}
	var wg sync.WaitGroup
	for port := range want {
		mi := m.ports[port]
		switch {
		case mi == nil && len(m.ports) >= maxMirrors:
			continue
		case mi == nil:
			mi = &mirror{}
			m.ports[port] = mi
		case mi.listener != nil && !mi.over():
			continue
		case time.Now().Before(mi.again):
			continue
		}
		wg.Go(func() { m.open(ctx, port, mi) })
	}
	wg.Wait()
}

func (m *mirrors) open(ctx context.Context, port uint16, mi *mirror) {
	mi.again = time.Now().Add(mirrorAgain)
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	want := localapi.ForwardRequest{Want: localapi.ForwardListen}
	f, err := m.relay.guest(ctx, want)
	if err != nil {
		return
	}
	l, err := guest.ListenIn(ctx, f, guest.Listen{Port: int(port)})
	if err != nil {
		return // somebody in the sandbox has the port, most likely
	}
	mi.listener, mi.ended = l, make(chan struct{})
	ended := mi.ended
	go func() {
		defer close(ended)
		m.relay.in(context.WithoutCancel(ctx), l, want, func(ctx context.Context) (guest.Stream, error) { return dialPortal(ctx, port) })
	}()
}

func (mi *mirror) over() bool {
	select {
	case <-mi.ended:
		return true
	default:
		return false
	}
}

func (mi *mirror) close() {
	if mi.listener != nil {
		_ = mi.listener.Close() // of no further use
	}
}

// in carries each connection that l accepts to what dial connects to, until l ends.
func (r *relay) in(ctx context.Context, l *guest.Listener, want localapi.ForwardRequest, dial func(context.Context) (guest.Stream, error)) {
	defer l.Close()
	for {
		id, err := l.Next()
		if err != nil {
			return
		}
		if !take(r.slots) {
			continue // the guest gives it up after a while
		}
		go func() {
			defer func() { <-r.slots }()
			c, err := r.open(ctx, want, func(ctx context.Context, f *os.File) (*net.UnixConn, error) {
				return guest.Fetch(ctx, f, id)
			})
			if err != nil {
				return
			}
			join(ctx, c, dial)
		}()
	}
}

// join carries c to what dial connects to, or breaks it.
func join(ctx context.Context, c *net.UnixConn, dial func(context.Context) (guest.Stream, error)) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	to, err := dial(ctx)
	if err != nil {
		_ = c.Close() // there is nothing to carry it to
		return
	}
	guest.Join(c, to)
}

// dialPortal connects to sshd's listener on a port of the portal's loopback.
func dialPortal(ctx context.Context, port uint16) (guest.Stream, error) {
	var d net.Dialer
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return c.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// awaitRelay returns when the relay has mirrored the ports that sshd listens on, or
// soon. Without a relay the port is closed and it returns at once.
func awaitRelay(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", "127.0.0.1:1")
	if err != nil {
		return
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok && c.SetDeadline(deadline) != nil {
		return
	}
	var b [1]byte
	_, _ = c.Read(b[:]) // the end is the answer, and so is no answer
}
