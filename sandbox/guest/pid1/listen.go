package pid1

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// Bounds of what listens for the host.
const (
	maxListeners = 128              // 64 ports, and an agent a session
	maxPending   = 64               // accepted connections that the host has not fetched yet
	fetchTime    = 10 * time.Second // after which one is closed
	agentDir     = "/tmp"
)

// inbound holds accepted connections until the host fetches them. The zero value
// is ready. It is safe for concurrent use.
type inbound struct {
	mu        sync.Mutex // guards what follows
	waiting   map[uint64]*waiting
	listeners int
}

type waiting struct {
	conn guest.Stream
	late *time.Timer
}

// add keeps a connection and returns what it is fetched with: random, since any
// connection with a right to listen may name it.
func (in *inbound) add(c guest.Stream) (uint64, bool) {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	id := binary.BigEndian.Uint64(b[:])
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.waiting) >= maxPending {
		return 0, false
	}
	if in.waiting == nil {
		in.waiting = map[uint64]*waiting{}
	}
	in.waiting[id] = &waiting{conn: c, late: time.AfterFunc(fetchTime, func() { in.drop(id) })}
	return id, true
}

// drop closes a connection that was not fetched.
func (in *inbound) drop(id uint64) {
	if w := in.remove(id); w != nil {
		guest.Reset(w.conn)
	}
}

func (in *inbound) remove(id uint64) *waiting {
	in.mu.Lock()
	defer in.mu.Unlock()
	w := in.waiting[id]
	if w != nil {
		w.late.Stop()
		delete(in.waiting, id)
	}
	return w
}

func (in *inbound) take(b []byte) (guest.Stream, error) {
	if len(b) != 8 {
		return nil, errors.New("not what stands for a connection")
	}
	if w := in.remove(binary.BigEndian.Uint64(b)); w != nil {
		return w.conn, nil
	}
	return nil, errors.New("no such connection")
}

// open counts a listener.
func (in *inbound) open() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.listeners >= maxListeners {
		return false
	}
	in.listeners++
	return true
}

func (in *inbound) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.listeners--
}

// listenFor listens until the host hangs up, and reports each connection.
func (s *server) listenFor(ctx context.Context, conn *net.UnixConn, fw *guest.Writer, p guest.Preamble, l guest.Listen) error {
	refuser := &session{fw: fw}
	if !s.inbound.open() {
		return refuser.refuse(errors.New("too many listeners"))
	}
	defer s.inbound.close()
	var ls []net.Listener
	var path string
	var err error
	if l.Agent {
		var remove func()
		path, ls, remove, err = s.agentSocket(p)
		if err == nil {
			defer remove()
		}
	} else {
		ls, err = listenLoopback(l.Port)
	}
	if err != nil {
		return refuser.refuse(err)
	}
	if err := fw.Frame(guest.FrameStarted, []byte(path)); err != nil {
		closeAll(ls)
		return err
	}
	var wg sync.WaitGroup
	for _, one := range ls {
		wg.Go(func() {
			defer s.survive()
			s.acceptFor(one, fw)
		})
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // unblocks the read
	var b [1]byte
	_, _ = conn.Read(b[:]) // the end, or a byte out of turn, which comes to the same
	stop()
	closeAll(ls)
	wg.Wait()
	return nil
}

// acceptFor reports connections until the listener is closed.
func (s *server) acceptFor(l net.Listener, fw *guest.Writer) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors or memory, which the sandbox can bring about
			time.Sleep(100 * time.Millisecond)
			continue
		}
		id, ok := s.inbound.add(c.(guest.Stream))
		if !ok {
			guest.Reset(c)
			continue
		}
		if fw.Frame(guest.FrameAccepted, binary.BigEndian.AppendUint64(nil, id)) != nil {
			s.inbound.drop(id)
		}
	}
}

// listenLoopback listens as sshd would: on both loopbacks, where there are two.
func listenLoopback(port int) ([]net.Listener, error) {
	p := strconv.Itoa(port)
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", p))
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, cause(err))
	}
	ls := []net.Listener{l}
	l, err = net.Listen("tcp6", net.JoinHostPort("::1", p))
	if err == nil {
		ls = append(ls, l)
	} else if errors.Is(err, syscall.EADDRINUSE) { // else there is no such loopback
		closeAll(ls)
		return nil, fmt.Errorf("listen on port %d: %w", port, cause(err))
	}
	return ls, nil
}

// agentSocket makes a socket that only the session's user can open, in a
// directory of root's, so that nobody can put something else in its place.
func (s *server) agentSocket(p guest.Preamble) (path string, _ []net.Listener, remove func(), err error) {
	a, err := s.users.lookup(p.User)
	if err != nil {
		return "", nil, nil, err
	}
	dir, err := os.MkdirTemp(agentDir, "podspawn-agent-")
	if err != nil {
		return "", nil, nil, fmt.Errorf("make a directory for the agent's socket: %w", cause(err))
	}
	path = filepath.Join(dir, "agent.sock")
	remove = func() { _ = os.RemoveAll(dir) } // the sandbox's root may have been there before
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		if !s.sameUser {
			err = os.Lchown(path, int(a.uid), int(a.gid))
		}
		// Until here the directory is closed to everybody else.
		err = errors.Join(err, os.Chmod(path, 0o600), os.Chmod(dir, 0o711))
		if err != nil {
			_ = l.Close() // the error above is the one to report
		}
	}
	if err != nil {
		remove()
		return "", nil, nil, fmt.Errorf("make the agent's socket: %w", cause(err))
	}
	return path, []net.Listener{l}, remove, nil
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		_ = l.Close() // twice is harmless
	}
}
