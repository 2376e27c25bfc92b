package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Limits of one resolver.
const (
	maxAtOnce  = 512 // questions being answered, of all sandboxes
	maxConns   = 128 // TCP connections
	ofOne      = 32  // of either, of one sandbox
	perSecond  = 100 // questions of one sandbox, after a burst of burst
	burst      = 400
	tcpIdle    = 10 * time.Second
	maxPerConn = 100 // questions over one connection
)

// Config says where a Server listens and whom it answers. All fields are needed
// but Log.
type Config struct {
	Listen     netip.AddrPort
	Sources    netip.Prefix // of those who may ask
	ResolvConf string       // the host's; read again for every question
	Log        *slog.Logger
}

// Server is a resolver. Use [New].
type Server struct {
	c     Config
	port  uint16 // of name servers; 53 but in tests
	quota *quota
	atAll chan struct{} // one element per question being answered
	conns chan struct{} // one element per TCP connection
}

// New returns a Server that does not listen yet.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{c: c, port: 53, quota: newQuota(), atAll: make(chan struct{}, maxAtOnce), conns: make(chan struct{}, maxConns)}
}

// Run answers questions until ctx ends. The address need not be on the host yet.
func (s *Server) Run(ctx context.Context) error {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) }), err)
	}}
	udp, err := lc.ListenPacket(ctx, "udp4", s.c.Listen.String())
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	defer udp.Close()
	tcp, err := lc.Listen(ctx, "tcp4", s.c.Listen.String())
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	defer tcp.Close()
	s.c.Log.InfoContext(ctx, "answering", "listen", s.c.Listen, "sources", s.c.Sources)
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { udp.Close(); tcp.Close() })
	defer stop()
	g.Go(func() error { return s.serveUDP(ctx, udp.(*net.UDPConn)) })
	g.Go(func() error { return s.serveTCP(ctx, tcp) })
	if err := g.Wait(); ctx.Err() == nil || !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *Server) serveUDP(ctx context.Context, c *net.UDPConn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	buf := make([]byte, maxQuery+1)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return net.ErrClosed
			}
			continue // an ICMP error of an earlier answer
		}
		who := from.Addr().Unmap()
		if !s.c.Sources.Contains(who) {
			continue
		}
		release, ok := s.admit(who)
		if !ok {
			continue // whoever floods waits; others are served
		}
		msg := append([]byte(nil), buf[:n]...)
		wg.Go(func() {
			defer release()
			if out := s.answer(ctx, msg, "udp"); out != nil {
				_, _ = c.WriteToUDPAddrPort(out, from) // who asked may be gone
			}
		})
	}
}

// admit takes a place for one question of a sandbox.
func (s *Server) admit(who netip.Addr) (release func(), ok bool) {
	select {
	case s.atAll <- struct{}{}:
	default:
		return nil, false
	}
	if !s.quota.take(who, time.Now()) {
		<-s.atAll
		return nil, false
	}
	return func() { s.quota.give(who); <-s.atAll }, true
}

func (s *Server) serveTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	conns := newQuota()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return net.ErrClosed
			}
			select { // out of descriptors, say
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		from, err := netip.ParseAddrPort(c.RemoteAddr().String())
		who := from.Addr().Unmap()
		if err != nil || !s.c.Sources.Contains(who) || !conns.take(who, time.Now()) {
			c.Close()
			continue
		}
		select {
		case s.conns <- struct{}{}:
		default:
			conns.give(who)
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { c.Close(); conns.give(who); <-s.conns }()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			s.converse(ctx, c, who)
		})
	}
}

func (s *Server) converse(ctx context.Context, c net.Conn, who netip.Addr) {
	for range maxPerConn {
		if c.SetDeadline(time.Now().Add(tcpIdle)) != nil {
			return
		}
		msg, err := readTCP(c, maxQuery)
		if err != nil {
			return
		}
		release, ok := s.admit(who)
		if !ok {
			return
		}
		out := s.answer(ctx, msg, "tcp")
		release()
		if out == nil || c.SetDeadline(time.Now().Add(tcpIdle)) != nil || writeTCP(c, out) != nil {
			return
		}
	}
}

// answer answers one message; nil is silence. It is the root of what runs on
// foreign bytes: a panic costs that answer and no more.
func (s *Server) answer(ctx context.Context, msg []byte, network string) (out []byte) {
	defer func() {
		if p := recover(); p != nil {
			s.c.Log.ErrorContext(ctx, "panic while answering", "panic", p)
			out = nil
		}
	}()
	q, code, err := parseQuery(msg)
	if err != nil {
		return nil
	}
	if code == dnsmessage.RCodeSuccess {
		if out, err = s.resolve(ctx, q, network); err == nil {
			return out
		}
		s.c.Log.DebugContext(ctx, "not answered", "err", err)
		code = dnsmessage.RCodeServerFailure
	}
	if out, err = q.empty(code, false); err != nil {
		return nil
	}
	return out
}

func (s *Server) resolve(ctx context.Context, q query, network string) ([]byte, error) {
	ups, err := servers(s.c.ResolvConf, s.port)
	if err != nil {
		return nil, err
	}
	b, err := ask(ctx, q, network, ups)
	if err != nil {
		return nil, err
	}
	var p dnsmessage.Parser
	if h, err := p.Start(b); err != nil {
		return nil, err
	} else if h.Truncated { // half an answer is not looked at: the asker comes back over TCP
		return q.empty(dnsmessage.RCodeSuccess, true)
	}
	out, err := q.answer(b)
	if err == nil && network == "udp" && len(out) > q.udpSize {
		return q.empty(dnsmessage.RCodeSuccess, true)
	}
	return out, err
}
