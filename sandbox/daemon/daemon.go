package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Config is what a Server works with. All fields are needed unless they say so.
type Config struct {
	Store    sandbox.Store
	Runtime  sandbox.Runtime // only asked whether it is ready
	Manager  *sandbox.Manager
	Guests   *Guests
	Sessions *Sessions

	AuthUID, APIUID int // of podspawn-auth and podspawn-api

	UserCA *ephemeralkeys.CA
	// Keyring holds the user CA when it can be changed; nil is UserCA for ever.
	Keyring *Keyring
	// Revocations keeps sshd's revocation list; nil keeps none.
	Revocations  *Revocations
	ForceCommand string // in every certificate, and in sshd's Match block
	HostName     string // in key ids
	Host         localapi.HostInfo
	SFTPCommand  func() string // sshd's Subsystem text for sftp

	Tokens Tokens

	// NetNS identifies a process's network namespace, as sandbox.Host does a portal.
	NetNS func(pid int) (uint64, error)
	// Relay opens a sandbox's portal for forwarding and starts the relay, unless that
	// runs already. It is idempotent.
	Relay func(ctx context.Context, login string, uid int) error
	// SetupIntact returns nil while sshd, PAM and NSS are as server-setup left
	// them. It is asked on every login.
	SetupIntact func() error
	// HostRule returns nil while the host rule is in place. It is asked on every login.
	HostRule func() error
	// Egress returns nil while the host enforces what sandboxes with a network may
	// reach; nil is never asked. It is not asked when Limits.Egress allows no network.
	Egress func() error

	// Users of classic mode.
	UserHost UserHost
	KeysDir  string // one file of keys a user, root's
	// UserSpec is what a user's sandbox is made from who has no spec of her own.
	UserSpec func() (sandbox.Spec, error)

	Limits Limits
	Log    *slog.Logger // nil discards
}

// Limits are the configuration's; a caller's caps only narrow them.
type Limits struct {
	PerTenant  int           // living sandboxes of one tenant
	Total      int           // of all; 0 is no limit
	Memory     int64         // of all sandboxes' memory limits together, in bytes; 0 is no limit
	TTLMax     time.Duration // of a sandbox
	CertTTLMax time.Duration
	Egress     sandbox.Egress // the most that a sandbox gets; "" is EgressNone
}

// Tokens issues and verifies API tokens. Verify returns the token's claims
// without looking at the register of revoked ones; that is the daemon's.
type Tokens interface {
	Issue(t sandbox.APIToken) (string, error)
	Verify(raw string, now time.Time) (sandbox.APIToken, error)
	Keys() localapi.KeysResponse
}

// Server answers the daemon's socket. Use New.
type Server struct {
	Config
	keys     *Keyring
	peers    *peers
	refused  *refusals
	doors    admission
	tenants  tally[string]     // API calls
	running  tally[sandbox.ID] // commands of the API
	ofTokens *tokenCommands    // the same, by the token that asked for them
	draining atomic.Bool       // no new sandboxes
	userMu   sync.Mutex        // serialises changes of users
}

// requestTimeout bounds how long a peer may take to send its request.
const requestTimeout = 5 * time.Second

// New returns a Server.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	keys := c.Keyring
	if keys == nil {
		keys = &Keyring{ca: c.UserCA}
	}
	return &Server{
		Config: c, keys: keys, ofTokens: newTokenCommands(),
		peers: newPeers(), refused: newRefusals(),
	}
}

// Serve answers connections on l, and hands those on callers (the API's local
// socket) to the API process, until ctx ends. It closes both.
func (s *Server) Serve(ctx context.Context, l, callers *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { s.peers.run(ctx, callers, s.Log) })
	wg.Go(func() { s.keepKeys(ctx) })
	if s.Revocations != nil {
		wg.Go(func() { s.Revocations.Run(ctx) })
	}
	stop := context.AfterFunc(ctx, func() { _, _ = l.Close(), callers.Close() }) // ends both accept loops
	defer stop()
	defer wg.Wait()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			s.Log.ErrorContext(ctx, "accept", "err", err) // out of descriptors, most likely
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		peer, err := localapi.PeerOf(conn)
		if err != nil {
			s.Log.WarnContext(ctx, "peer unknown", "err", err)
			_ = conn.Close() // it gets no answer either way
			continue
		}
		release, ok := s.doors.admit(peer.UID, s.AuthUID, s.APIUID)
		if !ok {
			_ = conn.Close() // the peer sees the daemon as unavailable, which for it it is
			continue
		}
		wg.Go(func() {
			defer release()
			defer conn.Close()
			s.serve(ctx, conn, peer)
		})
	}
}

// call is one request with what the kernel and the token say about its caller.
type call struct {
	peer localapi.Peer
	req  localapi.Request
	// finished is set before the held context ends when the peer said so on its lease.
	finished *atomic.Bool
	// stopping reports whether the daemon ends, so that a held context ended for its
	// sake and not because the peer left.
	stopping func() bool
	// atEnd registers what is to be done when the connection has ended, whether
	// the answer was delivered or not: the release of what is being held for it.
	atEnd func(func())
}

// answer is what a handler returns: a body, perhaps a descriptor to pass, and
// perhaps something to do once it is delivered, while the connection is open.
type answer struct {
	body any
	file *os.File
	// held runs after the answer was written, with a context that ends when the
	// peer closes the connection or the daemon stops. The connection closes when it returns.
	held func(ctx context.Context)
}

func (s *Server) serve(ctx context.Context, conn *net.UnixConn, peer localapi.Peer) {
	var ends []func()
	defer func() {
		if p := recover(); p != nil {
			s.Log.ErrorContext(ctx, "panic while serving a request", "panic", fmt.Sprint(p))
		}
		for _, end := range slices.Backward(ends) {
			end()
		}
	}()
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return
	}
	c := call{
		peer: peer, finished: new(atomic.Bool), stopping: func() bool { return ctx.Err() != nil },
		atEnd: func(f func()) { ends = append(ends, f) },
	}
	if err := localapi.ReadFrame(conn, &c.req); err != nil {
		if !errors.Is(err, io.EOF) {
			s.Log.WarnContext(ctx, "request unreadable", "uid", peer.UID, "pid", peer.PID, "err", err)
			s.reply(conn, answer{}, sandbox.Errorf(sandbox.KindInternal, "install both binaries of one release", "the request is not in the daemon's protocol"))
		}
		return
	}
	// From here on the peer sends one byte at most, its last; a read ends then or
	// when it closes.
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		var b [1]byte
		n, _ := conn.Read(b[:]) // EOF, an error or a byte: all end the call
		c.finished.Store(n == 1 && b[0] == localapi.Finished)
		cancel()
	}()
	defer func() { _ = conn.Close(); <-gone }() // Close ends the read above

	began := time.Now()
	a, err := s.decide(rctx, c)
	delivered := s.reply(conn, a, err)
	s.Log.DebugContext(ctx, "request served", "op", clip(string(c.req.Op), 40), "us", time.Since(began).Microseconds(), "refused", err != nil)
	if a.file != nil {
		_ = a.file.Close() // the peer has its own copy now, or never will
	}
	if err == nil && delivered && a.held != nil {
		a.held(rctx)
	}
}

// decide is dispatch, whose panic is an error of ours for the one who asked.
func (s *Server) decide(ctx context.Context, c call) (a answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			a, err = answer{}, fmt.Errorf("panic in %s: %v\n%s", c.req.Op, p, debug.Stack())
		}
	}()
	return s.dispatch(ctx, c)
}

// whileOpen holds a connection until the peer closes it.
func whileOpen(ctx context.Context) { <-ctx.Done() }

// reply writes the answer and reports whether it was delivered. It logs errors
// that are not meant for the peer.
func (s *Server) reply(conn *net.UnixConn, a answer, err error) bool {
	resp := localapi.Response{V: localapi.Version}
	if err != nil {
		if sandbox.KindOf(err) == sandbox.KindInternal || sandbox.KindOf(err) == sandbox.KindUnavailable {
			s.Log.Error("request failed", "err", err)
		}
		pub := sandbox.Public(err)
		resp.Error = &localapi.Error{Kind: pub.Kind, Msg: pub.Msg, Hint: pub.Hint}
		a.file = nil
	} else if a.body != nil {
		if resp.Body, err = localapi.Encode(a.body); err != nil {
			s.Log.Error("answer not encoded", "err", err)
			return false
		}
	}
	if err := conn.SetWriteDeadline(time.Now().Add(requestTimeout)); err != nil {
		return false
	}
	return localapi.WriteFrame(conn, resp, a.file) == nil
}

// dispatch lets each peer use its own operations and no other.
func (s *Server) dispatch(ctx context.Context, c call) (answer, error) {
	if c.req.V != localapi.Version {
		return answer{}, sandbox.Errorf(sandbox.KindUnavailable, "install all binaries of one release and restart the daemon",
			"the daemon speaks version %d of its protocol, not %d", localapi.Version, c.req.V)
	}
	uid := c.peer.UID
	switch c.req.Op {
	case localapi.OpPrincipals:
		if uid == s.AuthUID {
			return s.principals(ctx, c)
		}
	case localapi.OpLoginKey:
		if uid == s.AuthUID {
			return s.loginKey(ctx, c)
		}
	case localapi.OpUserAdd, localapi.OpUserRemove, localapi.OpUserList, localapi.OpUserKeys:
		if uid == 0 {
			return s.users(ctx, c)
		}
	case localapi.OpPAMOpen:
		if uid == 0 {
			return s.pamOpen(ctx, c)
		}
	case localapi.OpPAMClose:
		if uid == 0 {
			return s.pamClose(ctx, c)
		}
	case localapi.OpPool:
		if uid == 0 {
			st, err := s.Manager.PoolStatus(ctx)
			return answer{body: st}, err
		}
	case localapi.OpSession:
		if uid >= sandbox.MinUID && uid <= sandbox.MaxUID {
			return s.session(ctx, c)
		}
	case localapi.OpChannel:
		if uid >= sandbox.MinUID && uid <= sandbox.MaxUID {
			return s.channel(ctx, c)
		}
	case localapi.OpForward:
		if uid >= sandbox.MinUID && uid <= sandbox.MaxUID {
			return s.forward(ctx, c)
		}
	default:
		if uid == s.APIUID {
			return s.api(ctx, c)
		}
	}
	s.Log.WarnContext(ctx, "operation refused", "op", c.req.Op, "uid", uid, "pid", c.peer.PID)
	return answer{}, sandbox.Errorf(sandbox.KindUnauthorized, "this socket serves podspawn's own processes; use the podspawn command",
		"uid %d may not use this operation", uid)
}
