package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// peers accepts callers on the API's local socket (podspawn.sock) and hands
// their connections to the API process, each with a handle that stands for the
// caller's kernel-checked credentials for as long as the connection is open.
//
// The daemon accepts, and not the API process, because SO_PEERCRED of a
// descriptor says who listened or connected on its other side: an API process
// that handed descriptors up could connect to any socket that root listens on
// and pass its own end off as a caller that is root.
type peers struct {
	ready chan caller // callers for whoever serves them

	mu    sync.Mutex // guards open
	open  map[string]localapi.Peer
	byUID tally[int]
	total tally[bool] // of root's callers, and of all others
}

type caller struct {
	conn   *net.UnixConn
	handle string
	uid    int
	// release ends the caller: the API process has closed its side, or died.
	release context.CancelFunc
}

// noServer is how long a caller waits for an API process.
const noServer = 2 * time.Second

// Callers that are connected at once. Anybody may connect, so nobody may take
// every place, and root, who has to look after such things, has some for itself.
const (
	maxPeers      = 512 // root's, and as many of all others together
	maxPeersOfUID = 64
)

func newPeers() *peers {
	return &peers{ready: make(chan caller), open: map[string]localapi.Peer{}}
}

// run accepts callers until l is closed.
func (p *peers) run(ctx context.Context, l *net.UnixListener, log *slog.Logger) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			log.ErrorContext(ctx, "accept a caller", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		wg.Go(func() { p.keep(ctx, conn) })
	}
}

// keep offers one caller to the API process and remembers it until it hangs up.
func (p *peers) keep(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	peer, err := localapi.PeerOf(conn)
	if err != nil {
		return
	}
	leave, ok := p.enter(peer.UID)
	if !ok {
		return
	}
	defer leave()
	handle := p.add(peer)
	defer p.remove(handle)
	t := time.NewTimer(noServer)
	defer t.Stop()
	ctx, release := context.WithCancel(ctx)
	defer release()
	select {
	case p.ready <- caller{conn: conn, handle: handle, uid: peer.UID, release: release}:
	case <-t.C:
		return // nobody serves: the caller sees the connection close
	case <-ctx.Done():
		return
	}
	waitHangup(ctx, conn)
	// The API process may have died with its descriptor open in nobody's hands but
	// ours: end the stream itself, not only this descriptor.
	_ = conn.CloseRead()  // both fail only on a connection
	_ = conn.CloseWrite() // that has ended already
}

// enter counts a caller, unless its user or all users have too many.
func (p *peers) enter(uid int) (leave func(), ok bool) {
	all, ok := p.total.take(uid == 0, maxPeers)
	if !ok || uid == 0 {
		return all, ok
	}
	own, ok := p.byUID.take(uid, maxPeersOfUID)
	if !ok {
		all()
		return nil, false
	}
	return func() { own(); all() }, true
}

func (p *peers) add(peer localapi.Peer) (handle string) {
	handle = sandbox.NewToken("peer_")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[handle] = peer
	return handle
}

func (p *peers) remove(handle string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, handle)
}

// of returns the credentials behind a handle whose connection is still open.
func (p *peers) of(handle string) (localapi.Peer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	peer, ok := p.open[handle]
	return peer, ok
}

// waitHangup returns when either side of the connection has gone. It reads
// nothing: the bytes are the API process's. MSG_PEEK tells the end of the stream
// from data, and the poller wakes it for each new arrival.
func waitHangup(ctx context.Context, conn *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }) // unblocks the wait
	defer stop()
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool { // an error is the end, too
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, 0)
		return err != nil && !errors.Is(err, unix.EINTR) || n > 0
	})
}

// accept hands the next caller to the API process. The lease of the answer is
// the API process's word that it still serves the caller.
func (s *Server) accept(ctx context.Context, c call) (answer, error) {
	for {
		select {
		case from := <-s.peers.ready:
			f, err := from.conn.File()
			if err != nil {
				// It hung up already, which anybody can do: the next one, please.
				from.release()
				continue
			}
			c.atEnd(from.release)
			return answer{body: localapi.AcceptResponse{Peer: from.handle, UID: from.uid}, file: f, held: whileOpen}, nil
		case <-ctx.Done():
			return answer{}, sandbox.Errorf(sandbox.KindUnavailable, "", "nobody called")
		}
	}
}
