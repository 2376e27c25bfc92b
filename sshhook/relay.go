package sshhook

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// The relay carries what a client forwards into the sandbox. sshd itself serves
// -L, -D, -W and -R, in the sandbox's portal: a network namespace with nothing in it
// but a loopback and this process.
//
// The daemon starts it with the first connection that may forward, as the
// sandbox's uid and with a group of its own, and gives it the listeners on the
// portal's port 1, which nobody of that uid could open. A rule of the portal's
// firewall brings every outgoing TCP connection there, but for the relay's own.
// For each the relay asks the daemon for a connection to the guest, by its peer
// credentials, and the guest dials the original destination inside. Thus root reads
// none of these bytes, connections go on while no daemon runs, and new ones work
// again with the next daemon.
//
// The other way (-R) it looks which ports sshd listens on in the portal, has the
// guest listen on the same, and carries what arrives there to sshd: mirror.go.
//
// It ends with the sandbox, since Destroy ends every process of the uid.

// Bounds of a relay.
const (
	maxForwards = 256              // connections at once
	maxOpening  = 4                // of which the daemon is being asked for
	openTime    = 30 * time.Second // from the connection to the guest's answer
	// What the daemon passes: the resolver's socket, the listener, and another for
	// IPv6 where there is that.
	resolverFD = 3
	listenerFD = 4
)

// relay is one run of the relay.
type relay struct {
	daemon  *localapi.Client
	slots   chan struct{}
	opening chan struct{}
	mirrors *mirrors
	names   names
}

func (h *Hook) relay(ctx context.Context) int {
	var listeners []*net.TCPListener
	for fd := listenerFD; fd < listenerFD+2; fd++ {
		l, err := listenerOf(fd)
		if err != nil {
			break
		}
		listeners = append(listeners, l)
	}
	resolver, err := net.FilePacketConn(os.NewFile(resolverFD, "resolver"))
	if len(listeners) == 0 || err != nil {
		return h.usage()
	}
	r := &relay{
		daemon: h.Daemon, slots: make(chan struct{}, maxForwards), opening: make(chan struct{}, maxOpening),
	}
	r.mirrors = newMirrors(r, os.Getuid(), listening)
	go r.mirrors.run(ctx) // until the process is killed, like everything here
	go r.names.serve(ctx, resolver)
	for _, l := range listeners[1:] {
		go r.accept(ctx, l)
	}
	r.accept(ctx, listeners[0])
	return exitLost
}

func listenerOf(fd int) (*net.TCPListener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	if f == nil {
		return nil, unix.EBADF
	}
	l, err := net.FileListener(f)
	if cerr := f.Close(); err != nil || cerr != nil {
		return nil, errors.Join(err, cerr)
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(unix.ENOTSOCK, l.Close())
	}
	return t, nil
}

func (r *relay) accept(ctx context.Context, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if !take(r.slots) {
			guest.Reset(c)
			continue
		}
		go func() {
			defer func() { <-r.slots }()
			r.out(ctx, c)
		}()
	}
}

func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// out carries one connection to where it was meant to go, inside the sandbox. One
// that was meant for the relay itself goes nowhere: it is how a session waits
// until the ports that its connection asked for are there.
func (r *relay) out(ctx context.Context, c *net.TCPConn) {
	to, err := originalDestination(c)
	if err != nil || to.Addr().IsUnspecified() {
		guest.Reset(c)
		return
	}
	if local, ok := c.LocalAddr().(*net.TCPAddr); ok && local.AddrPort().Port() == to.Port() && to.Addr().IsLoopback() {
		r.mirrors.sync(ctx)
		_ = c.Close() // which is the answer
		return
	}
	target := to.String()
	if name := r.names.name(to.Addr()); name != "" {
		target = net.JoinHostPort(name, strconv.Itoa(int(to.Port())))
	}
	in, err := r.open(ctx, localapi.ForwardRequest{Want: localapi.ForwardDial, Target: target}, func(ctx context.Context, f *os.File) (*net.UnixConn, error) {
		return guest.DialIn(ctx, f, target)
	})
	if err != nil {
		guest.Reset(c) // as near to "connection refused" as an accepted connection gets
		return
	}
	guest.Join(c, in)
}

// open asks the daemon for a guest connection and has start make something of it.
func (r *relay) open(ctx context.Context, req localapi.ForwardRequest, start func(context.Context, *os.File) (*net.UnixConn, error)) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	f, err := r.guest(ctx, req)
	if err != nil {
		return nil, err
	}
	return start(ctx, f)
}

// guest asks the daemon for a guest connection. A few at a time: the guest's
// backlog is short, and logins want to get through, too.
func (r *relay) guest(ctx context.Context, req localapi.ForwardRequest) (*os.File, error) {
	select {
	case r.opening <- struct{}{}:
		defer func() { <-r.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return guestFor(ctx, r.daemon, req)
}

func guestFor(ctx context.Context, daemon *localapi.Client, req localapi.ForwardRequest) (*os.File, error) {
	lease, err := daemon.Open(ctx, localapi.OpForward, localapi.Auth{}, req, nil)
	if err != nil {
		return nil, err
	}
	_ = lease.Close() // the daemon counts the connection, not what it carries
	if lease.File == nil {
		return nil, errors.New("no descriptor came")
	}
	return lease.File, nil
}

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, of
// linux/netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h.
const soOriginalDst = 80

// originalDestination asks the kernel where a redirected connection was meant to go.
func originalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	local, _ := c.LocalAddr().(*net.TCPAddr)
	v4 := local != nil && local.IP.To4() != nil
	var to netip.AddrPort
	var opErr error
	err = raw.Control(func(fd uintptr) {
		if v4 {
			// A sockaddr_in, read through a type of at least its size.
			var a *unix.IPv6Mreq
			if a, opErr = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, soOriginalDst); opErr == nil {
				b := a.Multiaddr
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
			}
			return
		}
		var a *unix.IPv6MTUInfo // begins with a sockaddr_in6
		if a, opErr = unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, soOriginalDst); opErr == nil {
			port := a.Addr.Port // in network byte order
			to = netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), port<<8|port>>8)
		}
	})
	return to, errors.Join(err, opErr)
}
